"""Embeds texts: tokenize once, plan batches, run them, scatter the vectors into one matrix.

On a CPU, batches run in worker threads of one core each (`workers`); on GPUs they are distributed to the devices
(`devices`). The next chunk of rows is tokenized while the model runs the current one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.progress import Step
from embedreg.runtime.text.devices import DeviceWorkers
from embedreg.runtime.text.plan import MIN_BUDGET, padded_tokens, plan
from embedreg.runtime.text.tokens import Tokens
from embedreg.runtime.vectors.packed import PackedRows

if TYPE_CHECKING:
    import numpy as np

    from embedreg.runtime.text.backend import Backend

__all__ = ["Made", "embed_texts"]

CPU_BUDGET = 1024  # padded tokens: a batch's activations stay in the caches; 8192 is 20% slower
CHUNK = 8192  # rows planned at once: with a few thousand or more there is almost no padding
_FIRST = 1024  # rows of the first chunk on devices, which are idle until it is tokenized
_TOKENIZED = 512  # rows per tokenizer call, which one thread at a time may use: a query must not wait for long
_ALONE = 192  # padded tokens: fewer are faster in one thread on all cores


@dataclass(frozen=True)
class Made:
    """Vectors, and which rows were truncated.

    Attributes:
        vectors: (n, d) float32, rows that were skipped are zeros; or, for rows of several entries, a list of n as
            `Packed.rows` returns them, rows that were skipped are empty.
        truncated: (n,) bool, the rows that exceed the model's limit of tokens.
    """

    vectors: Any
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
    packed: bool = False,
) -> Made:
    """Embed texts.

    Args:
        backend: the model; or the same model on several devices, which share the work.
        texts: n texts.
        ndims: d, the width of its vectors.
        budget: padded tokens of a batch; None for the default of the device.
        max_rows: maximum rows of a batch; None for no limit.
        threads: worker threads on a CPU; None for one per core that torch may use.
        whole: whether rows that would be truncated are skipped.
        packed: whether the model returns `Packed` rows.
    Returns:
        The vectors in the order of the texts.
    """
    import numpy as np

    backends = list(backend) if isinstance(backend, Sequence) else [backend]
    on_cpu = len(backends) == 1 and backends[0].device == "cpu"
    threads = threads or (workers.worker_threads() if on_cpu else 1)
    runner = _CpuWorkers(backends[0], threads, budget) if on_cpu else DeviceWorkers(backends, budget)
    vectors: Any = PackedRows(len(texts)) if packed else np.zeros((len(texts), ndims), np.float32)
    truncated = np.zeros(len(texts), bool)
    finish = _nothing
    with runner:
        for start, tokens, took in _tokenized(backends[0], texts, CHUNK if on_cpu else _FIRST):
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
            part = vectors.part(start) if packed else vectors[start:stop]
            queued = runner.start(tokens, [wanted[rows] for rows in batches], part)
            finish()  # the previous chunk, while the devices compute this one
            finish = queued
            if skipped := len(tokens) - len(wanted):
                progress.report(Step(rows=skipped))
        finish()
    return Made(vectors.rows() if packed else vectors, truncated)


def _tokenized(backend: Backend, texts: list[str], first: int) -> Iterator[tuple[int, Tokens, float]]:
    """Yield (first row, tokens, seconds) of each chunk, while a thread tokenizes the next one.

    Args:
        first: maximum rows of the first chunk; the others have `CHUNK`.
    """
    starts = [0, *range(min(first, CHUNK), len(texts), CHUNK)] if texts else []

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
        pending = ahead.submit(tokenize, 0)
        for number, start in enumerate(starts):
            tokens, took = pending.result()
            if number + 1 < len(starts):
                pending = ahead.submit(tokenize, number + 1)
            yield start, tokens, took


class _CpuWorkers:
    """Runs batches in worker threads of one core each."""

    least = MIN_BUDGET
    start_cost = 32  # tokens: measured with MiniLM, where a batch of 8 to 1,024 tokens costs 26 to 60 more

    def __init__(self, backend: Backend, threads: int, budget: int | None) -> None:
        self.backend, self.workers, self.budget = backend, threads, budget or CPU_BUDGET

    def __enter__(self) -> _CpuWorkers:
        return self

    def __exit__(self, *exc: object) -> None:
        """Do nothing: the workers belong to the process."""

    def start(self, tokens: Tokens, batches: list[np.ndarray], vectors: Any) -> Callable[[], None]:
        """Run the batches and fill their rows of `vectors`; the returned function does nothing."""
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
    """Do nothing: there is no work to wait for."""
