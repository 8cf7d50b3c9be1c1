"""From texts to vectors: tokenize once, plan, run the batches, scatter into one matrix.

On a CPU, batches run in worker threads of one core each (`workers`), on GPUs they are dealt out to the devices
(`devices`). The next window is tokenized while this one is in the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.progress import Step
from embedreg.runtime.text.devices import DeviceWorkers
from embedreg.runtime.text.plan import MIN_BUDGET, padded_tokens, plan
from embedreg.runtime.text.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np

    from embedreg.runtime.text.backend import Backend

__all__ = ["Made", "embed_texts"]

CPU_BUDGET = 1024  # padded tokens: a batch's activations stay in the caches; 8192 is a fifth slower
WINDOW = 8192  # rows planned at once: from a few thousand on, next to no padding is left
_FIRST = 1024  # rows of the first window on devices, which stand idle until it is tokenized
_TOKENIZED = 512  # rows a call of the tokenizer, which one thread at a time may use: a query must not wait for long
_ALONE = 192  # padded tokens: so few are quicker in one thread, on all cores


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
    backend: Backend | Sequence[Backend],
    texts: list[str],
    ndims: int,
    *,
    budget: int | None = None,
    max_rows: int | None = None,
    threads: int | None = None,
    whole: bool = False,
) -> Made:
    """Embed texts.

    Args:
        backend: the model; or the same model on several devices, which share the work.
        texts: n texts.
        ndims: d, the width of its vectors.
        budget: padded tokens of a batch; None for what suits the device.
        max_rows: the most rows of a batch; None for no bound.
        threads: worker threads on a CPU; None for one per core that torch may use.
        whole: whether rows that would be truncated are left out.
    Returns:
        The vectors in the order of the texts.
    """
    import numpy as np

    backends = list(backend) if isinstance(backend, Sequence) else [backend]
    on_cpu = len(backends) == 1 and backends[0].device == "cpu"
    runner = _CpuWorkers(backends[0], threads or workers.lanes(), budget) if on_cpu else DeviceWorkers(backends, budget)
    vectors = np.zeros((len(texts), ndims), np.float32)
    truncated = np.zeros(len(texts), bool)
    finish = _nothing
    with runner:
        for start, tokens, took in _tokenized(backends[0], texts, WINDOW if on_cpu else _FIRST):
            stop = start + len(tokens)
            progress.report(Step(tokenize_s=took))
            if tokens.truncated is not None:
                truncated[start:stop] = tokens.truncated
            wanted = np.flatnonzero(~truncated[start:stop]) if whole else np.arange(len(tokens))
            batches = plan(
                tokens.lengths[wanted],
                runner.budget,
                max_rows=max_rows,
                workers=runner.workers,
                least=runner.least,
                start_cost=runner.start_cost,
            )
            queued = runner.start(tokens, [wanted[rows] for rows in batches], vectors[start:stop])
            finish()  # the window before, while the devices are at work on this one
            finish = queued
            if skipped := len(tokens) - len(wanted):
                progress.report(Step(rows=skipped))
        finish()
    return Made(vectors, truncated)


def _tokenized(backend: Backend, texts: list[str], first: int) -> Iterator[tuple[int, Tokens, float]]:
    """Yield (first row, tokens, seconds) of each window, the next one being tokenized meanwhile.

    Args:
        first: rows of the first window, at most; the others have `WINDOW`.
    """
    starts = [0, *range(min(first, WINDOW), len(texts), WINDOW)] if texts else []

    def tokenize(number: int) -> tuple[Tokens, float]:
        began = time.perf_counter()
        start, stop = starts[number], [*starts, len(texts)][number + 1]
        parts = [backend.tokenize(texts[at : min(at + _TOKENIZED, stop)]) for at in range(start, stop, _TOKENIZED)]
        return Tokens.join(parts), time.perf_counter() - began

    if len(starts) <= 1:
        for number, start in enumerate(starts):
            yield start, *tokenize(number)
        return
    with ThreadPoolExecutor(1, "embedreg-tokenize") as ahead:
        coming = ahead.submit(tokenize, 0)
        for number, start in enumerate(starts):
            tokens, took = coming.result()
            if number + 1 < len(starts):
                coming = ahead.submit(tokenize, number + 1)
            yield start, tokens, took


class _CpuWorkers:
    """Batches in worker threads, each of one core."""

    least = MIN_BUDGET
    start_cost = (
        32  # tokens: measured with MiniLM, where a batch of 8 to 1,024 tokens costs its tokens and 26 to 60 more
    )

    def __init__(self, backend: Backend, threads: int, budget: int | None) -> None:
        self.backend, self.workers, self.budget = backend, threads, budget or CPU_BUDGET

    def __enter__(self) -> _CpuWorkers:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the workers as they are: they belong to the process."""

    def start(self, tokens: Tokens, batches: list[np.ndarray], vectors: np.ndarray) -> Callable[[], None]:
        """Fill the rows of `vectors` that the batches name; there is nothing left to wait for."""
        threads = self.workers

        def work(rows: np.ndarray) -> Step:
            began = time.perf_counter()
            vectors[rows] = self.backend.forward(tokens.padded(rows))
            took = time.perf_counter() - began
            return Step(
                len(rows), int(tokens.lengths[rows].sum()), padded_tokens(tokens.lengths, [rows]), 0.0, took, threads
            )

        if padded_tokens(tokens.lengths, batches) <= _ALONE:
            threads = 1
            for rows in batches:
                progress.report(workers.alone(work, rows))
        else:
            for step in workers.run(work, batches, threads):
                progress.report(step)
        return _nothing


def _nothing() -> None:
    """Wait for nothing."""
