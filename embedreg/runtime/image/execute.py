"""From pictures to vectors: opened and prepared in threads, through the model in whole batches, scattered back.

On a CPU each worker thread opens a batch of its own and runs it on one core. Pictures that come over a network, and
pictures for a GPU, are opened and prepared ahead of the model in threads of their own. Either way no more of them are
held at once than the threads and the batches under way take, however long the column is.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from embedreg.errors import RowError
from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.progress import Step

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PictureModel", "embed_picture", "embed_pictures"]

log = logging.getLogger("embedreg")

CPU_BATCH = 8  # pictures: with fewer the products are slower, with more they are no quicker
DEVICE_BATCH = 64
DRAFT = 2  # times what the model sees: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves so much of it
_AHEAD = 4  # pictures that a thread prepares at a time, so that handing them over costs next to nothing
_FETCHING = 16  # threads that open pictures from a network, where they wait rather than work
_IN_FLIGHT = 3  # batches on a device: one that is copied, one that waits, one that is computed


class PictureModel(Protocol):
    """What the pipeline needs of a model of pictures."""

    @property
    def device(self) -> str:
        """Return "cpu", or the torch device that `forward` wants its tensors on."""

    @property
    def side(self) -> int | None:
        """Return how many pixels wide and high the model sees a picture, if large JPEGs may be decoded at a fraction of
        their size, never below twice this; None to decode every pixel, which is exact.
        """

    def prepare(self, picture: Any) -> np.ndarray:
        """Turn an RGB `PIL.Image.Image` into an array, all of one shape; called in many threads.

        uint8 is best: a quarter of float32 to copy. A RowError is that picture's own, anything else the call's.
        """

    def forward(self, batch: Any) -> Any:
        """Embed b prepared pictures: (b, d) floats, a numpy array or, on its device, a tensor; called in many threads.

        Args:
            batch: (b, ...), a numpy array on a CPU and a tensor elsewhere.
        """


def embed_pictures(
    model: PictureModel,
    pictures: Any,
    ndims: int,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    from_query: bool = False,
) -> Any:
    """Embed pictures.

    Args:
        model: the model.
        pictures: n pictures of whatever kinds `images.open_image` opens, in a list or an Arrow array.
        ndims: d, the width of its vectors.
        batch_size: the most pictures of a forward pass; None for what suits the device. On a CPU never more than 8.
        threads: on a CPU the worker threads, elsewhere those that open and prepare; None for one per core that torch
            may use.
        from_query: whether they are what a user asks for, whose paths need no permission.
    Returns:
        (n, d) float32; or, where some pictures have no vector, a list of n vectors with None for a null and a RowError
        for each that could not be opened.
    """
    run = _Run(model, pictures, ndims, from_query)
    threads = threads or workers.lanes()
    if model.device != "cpu":
        run.on_device(batch_size or DEVICE_BATCH, threads)
    elif run.far():
        run.fetched(min(batch_size or CPU_BATCH, CPU_BATCH), threads)
    else:
        run.on_cpu(min(batch_size or CPU_BATCH, CPU_BATCH), threads)
    return run.result()


def embed_picture(model: PictureModel, picture: Any) -> np.ndarray:
    """Embed one picture that a user asks for, in this thread, with all of its cores.

    Returns:
        (1, d) float32.
    Raises:
        RowError: the picture cannot be opened or prepared.
    """
    return _forward(model, _opened(model, picture, from_query=True)[None])


def _opened(model: PictureModel, picture: Any, *, from_query: bool = False) -> np.ndarray:
    from embedreg.images import open_image

    draft = None if model.side is None else (DRAFT * model.side, DRAFT * model.side)
    return model.prepare(open_image(picture, draft=draft, from_query=from_query))


def _forward(model: PictureModel, batch: np.ndarray) -> np.ndarray:
    """Run a batch and wait for it: (b, d) float32."""
    import numpy as np
    import torch

    with torch.inference_mode():
        made = model.forward(batch if model.device == "cpu" else torch.from_numpy(batch).to(model.device))
        return np.asarray(made.float().cpu().numpy() if torch.is_tensor(made) else made, np.float32)


@dataclass(frozen=True)
class _Batch:
    """Rows that were opened, prepared as one array, with those that failed, and the seconds of a thread it took."""

    rows: list[int]
    prepared: np.ndarray | None
    failed: dict[int, RowError]
    took: float


class _Run:
    """One call: its pictures, and what has come of them.

    `failed` changes in the caller's thread only; rows of `vectors` wherever they are made.
    """

    def __init__(self, model: PictureModel, pictures: Any, ndims: int, from_query: bool = False) -> None:
        import numpy as np

        self.model, self.pictures, self.from_query = model, pictures, from_query
        self.vectors = np.zeros((len(pictures), ndims), np.float32)
        valid = pictures.is_valid() if hasattr(pictures, "is_valid") else [each is not None for each in pictures]
        self.rows: list[int] = np.flatnonzero(np.asarray(valid, bool)).tolist()
        self.failed: dict[int, RowError | None] = dict.fromkeys(np.flatnonzero(~np.asarray(valid, bool)).tolist())
        if self.failed:
            progress.report(Step(rows=len(self.failed)))

    def result(self) -> Any:
        """Return what `embed_pictures` does."""
        if not self.failed:
            return self.vectors
        return [self.failed.get(row, vector) for row, vector in enumerate(self.vectors)]

    def far(self) -> bool:
        """Return whether some picture has to be fetched."""
        if str(getattr(self.pictures, "type", "string")) not in ("string", "large_string", "string_view"):
            return False
        from embedreg.images.fetching import is_url

        pictures = (self._picture(row) for row in self.rows)
        return any(isinstance(picture, str) and is_url(picture) for picture in pictures)

    def on_cpu(self, batch_size: int, threads: int) -> None:
        """Open, prepare and run each batch in one worker thread of one core."""

        def work(rows: list[int]) -> tuple[_Batch, Step]:
            batch = self._open(rows)
            return batch, self._embed(batch, threads)

        if len(self.rows) == 1:
            self._tell(*workers.alone(work, self.rows))
            return
        for batch, step in workers.run(work, _cut(self.rows, batch_size, threads), threads):
            self._tell(batch, step)

    def fetched(self, batch_size: int, threads: int) -> None:
        """Fetch ahead, many at a time, and run the batches in worker threads as they fill."""

        def work(batch: _Batch) -> tuple[_Batch, Step]:
            return batch, self._embed(batch, threads)

        with closing(self._ahead(batch_size, 1, _FETCHING)) as batches:
            for batch, step in workers.run(work, batches, threads):
                self._tell(batch, step)

    def on_device(self, batch_size: int, threads: int) -> None:
        """Open and prepare ahead, and queue the batches on a GPU without waiting for any but the last but two.

        Nothing of this was run on a CUDA device by its author: there was none. The tests run it on torch's CPU device.
        """
        import torch

        queue = _DeviceQueue(self.model)
        with closing(self._ahead(batch_size, _AHEAD, threads)) as batches, torch.inference_mode():
            for batch in batches:
                for done in queue.put(batch):
                    self._settle(*done)
        for done in queue.rest():
            self._settle(*done)

    # -- the pieces -------------------------------------------------------------------------------------------------

    def _picture(self, row: int) -> Any:
        """Return one picture; what an Arrow array holds is copied out of it only now."""
        picture = self.pictures[row]
        return picture.as_py() if hasattr(picture, "as_py") else picture

    def _open(self, rows: list[int]) -> _Batch:
        import numpy as np

        began = time.perf_counter()
        prepared, failed = {}, {}
        for row in rows:
            try:
                prepared[row] = _opened(self.model, self._picture(row), from_query=self.from_query)
            except RowError as exc:
                failed[row] = exc.with_traceback(None)  # which would keep every picture of the batch alive
        stacked = np.stack(list(prepared.values())) if prepared else None
        return _Batch(list(prepared), stacked, failed, time.perf_counter() - began)

    def _ahead(self, batch_size: int, at_a_time: int, threads: int) -> Generator[_Batch, None, None]:
        """Yield whole batches as they fill, opened and prepared in threads; their rows come in any order."""
        parts: list[_Batch] = []
        chunks = [self.rows[start : start + at_a_time] for start in range(0, len(self.rows), at_a_time)]
        with closing(workers.run(self._open, chunks, threads)) as opened:
            for part in opened:
                parts.append(part)
                if sum(len(each.rows) for each in parts) >= batch_size:
                    yield _joined(parts)
                    parts = []
        if parts:
            yield _joined(parts)

    def _embed(self, batch: _Batch, threads: int) -> Step:
        began = time.perf_counter()
        if batch.prepared is not None:
            self.vectors[batch.rows] = _forward(self.model, batch.prepared)
        rows = len(batch.rows) + len(batch.failed)
        return Step(rows, model_s=time.perf_counter() - began, lanes=threads, prepare_s=batch.took)

    def _settle(self, batch: _Batch, made: Any, took: float) -> None:
        if made is not None:
            self.vectors[batch.rows] = made
        rows = len(batch.rows) + len(batch.failed)
        self._tell(batch, Step(rows, model_s=took, prepare_s=batch.took))

    def _tell(self, batch: _Batch, step: Step) -> None:
        self.failed.update(batch.failed)
        progress.report(step)


def _cut(rows: list[int], batch_size: int, threads: int) -> list[list[int]]:
    """Cut rows into even batches, so that no worker is left with one of a few rows while the others are done."""
    batches = -(-len(rows) // batch_size)
    batches = min(-(-batches // threads) * threads, len(rows))
    ends = [len(rows) * number // batches for number in range(batches + 1)] if batches else [0]
    return [rows[start:stop] for start, stop in itertools.pairwise(ends)]


def _joined(parts: list[_Batch]) -> _Batch:
    import numpy as np

    arrays = [part.prepared for part in parts if part.prepared is not None]
    return _Batch(
        [row for part in parts for row in part.rows],
        np.concatenate(arrays) if arrays else None,
        {row: problem for part in parts for row, problem in part.failed.items()},
        sum(part.took for part in parts),
    )


class _DeviceQueue:
    """Batches on their way through a device: copied there and back asynchronously where the device can.

    Memory that runs out halves the batches, once for all.
    """

    def __init__(self, model: PictureModel) -> None:
        self.model = model
        self.cuda = model.device.startswith("cuda")  # pinned memory and events are CUDA's
        self.limit: int | None = None
        self.queued: deque[tuple[_Batch, list[Any], Any, float]] = deque()

    def put(self, batch: _Batch) -> Iterator[tuple[_Batch, Any, float]]:
        """Queue a batch, and yield those that have come back by now, waiting for the oldest if too many are queued."""
        import torch

        made = [] if batch.prepared is None else list(self._pieces(batch.prepared))
        event = torch.cuda.current_stream(self.model.device).record_event() if self.cuda else None
        self.queued.append((batch, made, event, time.perf_counter()))
        while len(self.queued) >= _IN_FLIGHT:
            yield self._oldest()

    def rest(self) -> Iterator[tuple[_Batch, Any, float]]:
        """Wait for all that are queued."""
        while self.queued:
            yield self._oldest()

    def _oldest(self) -> tuple[_Batch, Any, float]:
        import numpy as np

        batch, made, event, began = self.queued.popleft()
        if event is not None:
            event.synchronize()
        vectors = np.concatenate([each.numpy() for each in made]) if made else None
        return batch, vectors, time.perf_counter() - began

    def _pieces(self, prepared: np.ndarray) -> Iterator[Any]:
        """Yield the vectors of a batch, on their way to this machine; in several parts where memory is short."""
        import torch

        if self.limit is None or len(prepared) <= self.limit:
            try:
                yield self._through(prepared)
                return
            except torch.OutOfMemoryError:
                if self.limit is not None or len(prepared) == 1:
                    raise
                self.limit = -(-len(prepared) // 2)
                log.warning("%s has no memory for %d pictures; going on with half", self.model.device, len(prepared))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for start in range(0, len(prepared), self.limit):
            yield self._through(prepared[start : start + self.limit])

    def _through(self, prepared: np.ndarray) -> Any:
        import torch

        batch = torch.from_numpy(prepared)
        batch = batch.pin_memory() if self.cuda else batch
        made = self.model.forward(batch.to(self.model.device, non_blocking=self.cuda))
        host = torch.empty(made.shape, dtype=torch.float32, pin_memory=self.cuda)
        return host.copy_(made, non_blocking=self.cuda)
