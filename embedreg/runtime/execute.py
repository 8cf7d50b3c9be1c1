"""From texts to vectors: tokenize once, plan, run the batches, scatter into one matrix.

On a CPU, batches run in worker threads of one core each (`workers`). On a GPU they are queued one after the other
without waiting for any: pinned memory there and back, and one synchronisation a window. The next window is tokenized
while this one is in the model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from embedreg.runtime import progress, workers
from embedreg.runtime.plan import padded_tokens, plan
from embedreg.runtime.progress import Step
from embedreg.runtime.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Backend", "Made", "embed_texts"]

log = logging.getLogger("embedreg")

CPU_BUDGET = 1024  # padded tokens: a batch's activations stay in the caches; 8192 is a fifth slower
GPU_BUDGET = 32_768  # padded tokens: what keeps a large device busy for longer than the launches take
WINDOW = 8192  # rows planned at once: from a few thousand on, next to no padding is left
_TOKENIZED = 512  # rows a call of the tokenizer, which one thread at a time may use: a query must not wait for long
_ALONE = 192  # padded tokens: so few are quicker in the caller's own thread, on all of its cores


class Backend(Protocol):
    """What the runtime needs of a model of texts."""

    @property
    def device(self) -> str:
        """Say "cpu", or the torch device that `forward` wants its tensors on."""

    def tokenize(self, texts: list[str]) -> Tokens:
        """Tokenize texts, without padding; called in one thread at a time."""

    def forward(self, batch: dict[str, Any]) -> Any:
        """Embed a padded batch: (b, d) floats, a numpy array or, on its device, a tensor; called in many threads.

        Args:
            batch: kind -> (b, t) int64, numpy arrays on a CPU and tensors elsewhere; and the extras of its `Tokens`.
        """


@dataclass(frozen=True)
class Made:
    """Vectors, and what was lost on the way.

    Attributes:
        vectors: (n, d) float32; rows that were left out are zeros.
        truncated: (n,) bool, the rows that lost tokens to the model's limit.
    """

    vectors: np.ndarray
    truncated: np.ndarray


def embed_texts(
    backend: Backend,
    texts: list[str],
    ndims: int,
    *,
    budget: int | None = None,
    max_rows: int | None = None,
    lanes: int | None = None,
    whole: bool = False,
) -> Made:
    """Embed texts.

    Args:
        backend: the model.
        texts: n texts.
        ndims: d, the width of its vectors.
        budget: padded tokens of a batch; None for what suits the device.
        max_rows: the most rows of a batch; None for no bound.
        lanes: worker threads on a CPU; None for one per core that torch may use.
        whole: whether rows that would be truncated are left out.
    Returns:
        The vectors in the order of the texts.
    """
    import numpy as np

    runner = _Cpu(backend, lanes or workers.lanes()) if backend.device == "cpu" else _Device(backend)
    runner.budget = budget or runner.budget
    vectors = np.zeros((len(texts), ndims), np.float32)
    truncated = np.zeros(len(texts), bool)
    for start, tokens, took in _tokenized(backend, texts):
        stop = start + len(tokens)
        progress.report(Step(tokenize_s=took))
        if tokens.truncated is not None:
            truncated[start:stop] = tokens.truncated
        wanted = np.flatnonzero(~truncated[start:stop]) if whole else np.arange(len(tokens))
        batches = plan(tokens.lengths[wanted], runner.budget, max_rows=max_rows, lanes=runner.lanes)
        runner.run(tokens, [wanted[rows] for rows in batches], vectors[start:stop])
        if skipped := len(tokens) - len(wanted):
            progress.report(Step(rows=skipped))
    return Made(vectors, truncated)


def _tokenized(backend: Backend, texts: list[str]) -> Iterator[tuple[int, Tokens, float]]:
    """Yield (first row, tokens, seconds) of each window, the next one being tokenized meanwhile."""

    def tokenize(start: int) -> tuple[Tokens, float]:
        began = time.perf_counter()
        stop = min(start + WINDOW, len(texts))
        parts = [backend.tokenize(texts[at : min(at + _TOKENIZED, stop)]) for at in range(start, stop, _TOKENIZED)]
        return Tokens.join(parts), time.perf_counter() - began

    starts = range(0, len(texts), WINDOW)
    if len(starts) <= 1:
        for start in starts:
            yield start, *tokenize(start)
        return
    with ThreadPoolExecutor(1, "embedreg-tokenize") as ahead:
        coming = ahead.submit(tokenize, 0)
        for start in starts:
            tokens, took = coming.result()
            if start + WINDOW < len(texts):
                coming = ahead.submit(tokenize, start + WINDOW)
            yield start, tokens, took


class _Cpu:
    """Batches in worker threads, each of one core."""

    def __init__(self, backend: Backend, lanes: int) -> None:
        self.backend, self.lanes, self.budget = backend, lanes, CPU_BUDGET

    def run(self, tokens: Tokens, batches: list[np.ndarray], vectors: np.ndarray) -> None:
        """Fill the rows of `vectors` that the batches name."""

        def work(rows: np.ndarray) -> Step:
            began = time.perf_counter()
            vectors[rows] = self.backend.forward(tokens.padded(rows))
            took = time.perf_counter() - began
            return Step(
                len(rows), int(tokens.lengths[rows].sum()), padded_tokens(tokens.lengths, [rows]), 0.0, took, lanes
            )

        lanes = self.lanes
        if len(batches) == 1 and padded_tokens(tokens.lengths, batches) <= _ALONE:
            lanes = 1
            progress.report(work(batches[0]))
            return
        for step in workers.run(work, batches, lanes):
            progress.report(step)


class _Device:
    """Batches queued on a GPU, one after the other; memory that runs out halves them, once for all.

    Nothing of this was run on a CUDA device by its author: there was none. The tests run it on torch's CPU device.
    """

    lanes = 1

    def __init__(self, backend: Backend) -> None:
        self.backend, self.budget = backend, GPU_BUDGET
        self.pinned = backend.device.startswith("cuda")  # pinned memory is what makes copies asynchronous
        self.halved = False

    def run(self, tokens: Tokens, batches: list[np.ndarray], vectors: np.ndarray) -> None:
        """Fill the rows of `vectors` that the batches name, waiting for the device once, at the end."""
        import numpy as np
        import torch

        if not batches:
            return
        began = time.perf_counter()
        order = np.concatenate(batches)
        host = torch.empty((len(order), vectors.shape[1]), dtype=torch.float32, pin_memory=self.pinned)
        at = padded = 0
        for rows in batches:
            for part, made in self._forward(tokens, rows):
                host[at : at + len(part)].copy_(made, non_blocking=True)
                at, padded = at + len(part), padded + padded_tokens(tokens.lengths, [part])
        if self.pinned:
            torch.cuda.synchronize(self.backend.device)
        vectors[order] = host.numpy()
        took = time.perf_counter() - began
        progress.report(Step(len(order), int(tokens.lengths[order].sum()), padded, 0.0, took))

    def _forward(self, tokens: Tokens, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield rows and their vectors, in one piece, or in several where memory is short."""
        import numpy as np
        import torch

        if padded_tokens(tokens.lengths, [rows]) <= self.budget or len(rows) == 1:
            try:
                yield rows, self._embed(tokens, rows)
                return
            except torch.OutOfMemoryError:
                if self.halved or len(rows) == 1:
                    raise
                self.halved, self.budget = True, max(padded_tokens(tokens.lengths, [rows]) // 2, 1)
                log.warning("%s has no memory for a batch; going on with half of it", self.backend.device)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for part in np.array_split(rows, min(-(-padded_tokens(tokens.lengths, [rows]) // self.budget), len(rows))):
            yield part, self._embed(tokens, part)

    def _embed(self, tokens: Tokens, rows: np.ndarray) -> Any:
        import torch

        batch = {}
        for kind, value in tokens.padded(rows).items():
            if kind in tokens.joined:
                tensor = torch.from_numpy(value)
                value = (tensor.pin_memory() if self.pinned else tensor).to(self.backend.device, non_blocking=True)
            batch[kind] = value
        return self.backend.forward(batch)
