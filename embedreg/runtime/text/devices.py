"""Runs batches on devices: each device has its own copy of the model and one worker thread that queues its batches.

A device worker queues batches without waiting for their results. It copies through pinned memory in both directions and
synchronises once per chunk of rows, when the next chunk is already queued. One device uses the same code as several.

The tests run this module on torch's CPU device, with one worker and with several.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.runtime import progress
from embedreg.runtime.progress import Step
from embedreg.runtime.text.plan import padded_tokens, share
from embedreg.runtime.text.tokens import Tokens
from embedreg.runtime.vectors.packed import concatenated, on_host

if TYPE_CHECKING:
    import numpy as np

    from embedreg.runtime.text.backend import Backend

__all__ = ["DeviceWorkers"]

log = logging.getLogger("embedreg")

BUDGET = 32_768  # padded tokens: a batch that keeps a large device busy for longer than its kernel launches take
LEAST = 4096  # padded tokens: smaller batches are not worth another device

_fitting_budgets: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # after out-of-memory, by model


class DeviceWorkers:
    """Devices that run in parallel.

    Args:
        backends: the same model on each device; the devices are assumed to be equally fast.
        budget: padded tokens of a batch; None for the default, or the budget that fitted this model before.
    """

    least = LEAST
    start_cost = None  # planning runs while the device computes, and has to be fast

    def __init__(self, backends: Sequence[Backend], budget: int | None) -> None:
        self._workers = [_DeviceWorker(backend, budget) for backend in backends]
        self.workers = len(backends)

    @property
    def budget(self) -> int:
        """The padded tokens that fit on every device."""
        return min(worker.budget for worker in self._workers)

    def __enter__(self) -> DeviceWorkers:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.thread.shutdown(wait=True, cancel_futures=True)

    def start(self, tokens: Tokens, batches: list[np.ndarray], vectors: Any) -> Callable[[], None]:
        """Distribute batches to the device workers, which queue them on their devices.

        Returns:
            A function that waits for them and fills their rows of `vectors`: (n, d), or of `PackedRows`.
        """
        ndims = vectors.shape[1] if hasattr(vectors, "shape") else None
        pending = [
            (worker, worker.thread.submit(contextvars.copy_context().run, worker.queue, tokens, part, ndims))
            for worker, part in zip(self._workers, share(tokens.lengths, batches, self.workers), strict=True)
            if part
        ]

        def finish() -> None:
            for worker, future in pending:
                queued = future.result()
                took = worker.wait(queued)
                vectors[queued.rows] = queued.made if ndims is None else queued.made.numpy()
                real = int(tokens.lengths[queued.rows].sum())
                progress.report(Step(len(queued.rows), real, queued.padded, 0.0, took, self.workers))

        return finish


@dataclass(frozen=True)
class _Queued:
    """Batches that a device may not have finished yet.

    Attributes:
        rows: (m,) the rows of the chunk.
        made: (m, d) float32 on the host, valid after `done`; or `Packed` numpy arrays.
        padded: their tokens, padding included.
        began: when the first of them was queued.
        done: the CUDA event after the last of them; None if there is nothing to wait for.
    """

    rows: np.ndarray
    made: Any
    padded: int
    began: float
    done: Any


class _DeviceWorker:
    """One device; on out-of-memory its batches are halved, once per call."""

    def __init__(self, backend: Backend, budget: int | None) -> None:
        self.backend = backend
        self.cuda = backend.device.startswith("cuda")  # on other devices asynchronous copies are not reliable
        self.model = getattr(backend, "model", backend)
        self.budget = budget or BUDGET
        self.budget = min(self.budget, _fitting_budgets.get(self.model, self.budget))
        self.halved = False
        self.idle_since = 0.0
        self.thread = ThreadPoolExecutor(1, f"embedreg-{backend.device}")

    def queue(self, tokens: Tokens, batches: list[np.ndarray], ndims: int | None) -> _Queued:
        """Queue batches; runs in the worker's thread.

        Args:
            ndims: the width of their vectors; None for `Packed` rows, each batch of which is waited for.
        """
        import numpy as np
        import torch

        began = time.perf_counter()
        order = np.concatenate(batches)
        with self._current():
            made: Any = []
            if ndims is not None:
                made = torch.empty((len(order), ndims), dtype=torch.float32, pin_memory=self.cuda)
            at = padded = 0
            for rows in batches:
                for part, vectors in self._forward(tokens, rows):
                    if ndims is None:
                        made.append(on_host(vectors))
                    else:
                        made[at : at + len(part)].copy_(vectors, non_blocking=self.cuda)
                    at, padded = at + len(part), padded + padded_tokens(tokens.lengths, [part])
            if ndims is None:
                made = concatenated(made)
            done = None
            if self.cuda:
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch ships it untyped
                done.record()
        return _Queued(order, made, padded, began, done)

    def wait(self, queued: _Queued) -> float:
        """Wait until the device has finished; return the seconds that it computed."""
        if queued.done is not None:
            queued.done.synchronize()
        now = time.perf_counter()
        took = now - max(queued.began, self.idle_since)  # the next chunk is queued before this one is finished
        self.idle_since = now
        return took

    def _current(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        # some kernels run on the thread's current device, not on that of their tensors
        return torch.cuda.device(self.backend.device) if self.cuda else contextlib.nullcontext()

    def _forward(self, tokens: Tokens, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield rows and their vectors, as one batch, or as several if memory is short."""
        import numpy as np
        import torch

        size = padded_tokens(tokens.lengths, [rows])
        if size <= self.budget or len(rows) == 1:
            try:
                yield rows, self._embed(tokens, rows)
                return
            except torch.OutOfMemoryError:
                if self.halved or len(rows) == 1:
                    raise
                self.halved, self.budget = True, max(size // 2, 1)
                _fitting_budgets[self.model] = self.budget
                log.warning("%s is out of memory for a batch; continuing with half of it", self.backend.device)
            if self.cuda:  # outside the except block, whose traceback keeps the batch's memory alive
                torch.cuda.empty_cache()
        for part in np.array_split(rows, min(-(-size // self.budget), len(rows))):
            yield part, self._embed(tokens, part)

    def _embed(self, tokens: Tokens, rows: np.ndarray) -> Any:
        import torch

        batch = tokens.padded(rows)
        for kind in tokens.joined:
            tensor = torch.from_numpy(batch[kind])
            tensor = tensor.pin_memory() if self.cuda else tensor
            batch[kind] = tensor.to(self.backend.device, non_blocking=self.cuda)
        return self.backend.forward(batch)
