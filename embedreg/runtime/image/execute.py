"""Embeds images or recordings: opens and prepares them in threads, runs batches, scatters the vectors into one matrix.

On a CPU each worker thread opens its own batch and runs it on one core. Images from a network, and images for a GPU,
are opened and prepared by separate threads, ahead of the model. In both cases memory holds only the images of the
threads and batches in progress, independent of the length of the column.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from embedreg.errors import RowError
from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.progress import Step
from embedreg.runtime.vectors.packed import Packed, PackedRows, concatenated, on_host

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Opened", "PictureModel", "Whole", "embed_picture", "embed_pictures", "opened_image"]

log = logging.getLogger("embedreg")

CPU_BATCH = 8  # images: smaller batches have slower products, larger ones are not faster
DEVICE_BATCH = 64
DRAFT = 2  # times the model's input: a JPEG is decoded at 1/2, 1/4 or 1/8 if the result is still at least this large
_AHEAD = 4  # images that a thread prepares at a time, to reduce the overhead of passing them on
_FETCHING = 16  # threads that open images from a network, which mostly wait
_IN_FLIGHT = 3  # batches on a device: one is copied, one waits, one is computed


class PictureModel(Protocol):
    """The interface of an image model."""

    @property
    def device(self) -> str:
        """Return "cpu", or the torch device that `forward` expects its tensors on."""

    @property
    def side(self) -> int | None:
        """Return the side of the model's input in pixels to allow decoding large JPEGs at a fraction of their size.

        They are never decoded below twice this side. None decodes every pixel, which is exact.
        """

    def prepare(self, picture: Any) -> np.ndarray:
        """Convert an RGB `PIL.Image.Image` to an array, all of the same shape; called in many threads.

        uint8 is best, a quarter of the bytes of float32. A RowError fails that image, any other error the call. An
        array () of one Python object, such as an image whose size matters, is passed on as it is.
        """

    def forward(self, batch: Any) -> Any:
        """Embed b prepared images: (b, d) floats, a numpy array or, on its device, a tensor; called in many threads.

        Args:
            batch: (b, ...), a numpy array on a CPU and a tensor elsewhere; a numpy array everywhere if of objects.
        """


@dataclass(frozen=True)
class Whole:
    """An image that `prepare` passes on as it is, for a library that resizes it with its batch."""

    picture: Any

    def prepared(self) -> np.ndarray:
        """Return it in an array () of objects: numpy would take an image itself for an array of pixels."""
        import numpy as np

        made = np.empty((), object)
        made[()] = self
        return made


Opened: TypeAlias = "Callable[[PictureModel, Any, bool], np.ndarray]"  # see `opened_image`


def opened_image(model: PictureModel, picture: Any, from_query: bool) -> np.ndarray:
    """Open an image and prepare it for a model.

    Args:
        from_query: whether it is a query, whose path needs no grant.
    Raises:
        RowError: it cannot be opened or prepared.
    """
    from embedreg.images import open_image

    draft = None if model.side is None else (DRAFT * model.side, DRAFT * model.side)
    return model.prepare(open_image(picture, draft=draft, from_query=from_query))


def embed_pictures(
    model: PictureModel,
    pictures: Any,
    ndims: int,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    from_query: bool = False,
    packed: bool = False,
    opened: Opened = opened_image,
) -> Any:
    """Embed images, or recordings.

    Args:
        model: the model.
        pictures: n images of any kind that `opened` accepts, in a list or an Arrow array.
        ndims: d, the width of its vectors.
        batch_size: maximum images of a forward pass; None for the default of the device. On a CPU at most 8.
        threads: worker threads on a CPU, threads that open and prepare elsewhere; None for one per core that torch may
            use.
        from_query: whether they are queries, whose paths need no grant.
        packed: whether the model returns `Packed` rows.
        opened: opens one of them and prepares it; called in many threads.
    Returns:
        (n, d) float32, or a list of n as `Packed.rows` returns them; or, if some images have no vector, a list of n
        vectors with None for a null and a RowError for each image that could not be opened.
    """
    run = _Run(model, pictures, None if packed else ndims, from_query, opened)
    threads = threads or workers.worker_threads()
    if model.device != "cpu":
        run.on_device(batch_size or DEVICE_BATCH, threads)
    elif run.has_urls():
        run.fetched(min(batch_size or CPU_BATCH, CPU_BATCH), threads)
    else:
        run.on_cpu(min(batch_size or CPU_BATCH, CPU_BATCH), threads)
    return run.result()


def embed_picture(model: PictureModel, picture: Any, opened: Opened = opened_image) -> Any:
    """Embed one query image, or recording, in this thread, on all cores.

    Returns:
        (1, d) float32, or one row of `Packed` arrays.
    Raises:
        RowError: the image cannot be opened or prepared.
    """
    return _forward(model, opened(model, picture, True)[None])


def _forward(model: PictureModel, batch: np.ndarray) -> Any:
    """Run a batch and wait for it: (b, d) float32, or `Packed` arrays."""
    import numpy as np

    torch = sys.modules.get("torch")  # a back end may do without
    if torch is None:
        return np.asarray(model.forward(batch), np.float32)
    with torch.inference_mode():
        plain = model.device == "cpu" or batch.dtype == object
        made = model.forward(batch if plain else torch.from_numpy(batch).to(model.device))
        if isinstance(made, Packed):
            return on_host(made)
        return np.asarray(made.float().cpu().numpy() if torch.is_tensor(made) else made, np.float32)


@dataclass(frozen=True)
class _Batch:
    """Rows that were opened and prepared as one array, the rows that failed, and the thread time in seconds."""

    rows: list[int]
    prepared: np.ndarray | None
    failed: dict[int, RowError]
    took: float


class _Run:
    """The state of one call: its images, their vectors, and the rows that failed.

    `failed` is changed only in the caller's thread; rows of `vectors` are written by the thread that computes them.
    """

    def __init__(
        self,
        model: PictureModel,
        pictures: Any,
        ndims: int | None,
        from_query: bool = False,
        opened: Opened = opened_image,
    ) -> None:
        import numpy as np

        self.model, self.pictures, self.from_query, self.opened = model, pictures, from_query, opened
        packed, n = ndims is None, len(pictures)
        self.vectors: Any = PackedRows(n) if packed else np.zeros((n, ndims or 0), np.float32)
        valid = pictures.is_valid() if hasattr(pictures, "is_valid") else [each is not None for each in pictures]
        self.rows: list[int] = np.flatnonzero(np.asarray(valid, bool)).tolist()
        self.failed: dict[int, RowError | None] = dict.fromkeys(np.flatnonzero(~np.asarray(valid, bool)).tolist())
        if self.failed:
            progress.report(Step(rows=len(self.failed)))

    def result(self) -> Any:
        """Return the result of `embed_pictures`."""
        made = self.vectors.rows() if isinstance(self.vectors, PackedRows) else self.vectors
        if not self.failed:
            return made
        return [self.failed.get(row, vector) for row, vector in enumerate(made)]

    def has_urls(self) -> bool:
        """Return whether some image has to be fetched from a network."""
        if str(getattr(self.pictures, "type", "string")) not in ("string", "large_string", "string_view"):
            return False
        from embedreg.media.fetching import is_url

        pictures = (self._picture(row) for row in self.rows)
        return any(isinstance(picture, str) and is_url(picture) for picture in pictures)

    def on_cpu(self, batch_size: int, threads: int) -> None:
        """Open, prepare and run each batch in one worker thread of one core."""

        def work(rows: list[int]) -> tuple[_Batch, Step]:
            batch = self._open(rows)
            return batch, self._embed(batch, threads)

        if len(self.rows) == 1:
            self._record(*workers.alone(work, self.rows))
            return
        for batch, step in workers.run(work, _cut(self.rows, batch_size, threads), threads):
            self._record(batch, step)

    def fetched(self, batch_size: int, threads: int) -> None:
        """Fetch images ahead in many threads, and run each batch in a worker thread when it is full."""

        def work(batch: _Batch) -> tuple[_Batch, Step]:
            return batch, self._embed(batch, threads)

        with closing(self._ahead(batch_size, 1, _FETCHING)) as batches:
            for batch, step in workers.run(work, batches, threads):
                self._record(batch, step)

    def on_device(self, batch_size: int, threads: int) -> None:
        """Open and prepare images ahead, and queue the batches on a GPU, at most `_IN_FLIGHT` at a time.

        This was not run on a CUDA device, since none was available. The tests run it on torch's CPU device.
        """
        import torch

        queue = _DeviceQueue(self.model)
        with closing(self._ahead(batch_size, _AHEAD, threads)) as batches, torch.inference_mode():
            for batch in batches:
                for done in queue.put(batch):
                    self._settle(*done)
        for done in queue.rest():
            self._settle(*done)

    # -- steps ------------------------------------------------------------------------------------------------------

    def _picture(self, row: int) -> Any:
        """Return one image; a value of an Arrow array is copied only here."""
        picture = self.pictures[row]
        return picture.as_py() if hasattr(picture, "as_py") else picture

    def _open(self, rows: list[int]) -> _Batch:
        import numpy as np

        began = time.perf_counter()
        prepared, failed = {}, {}
        for row in rows:
            try:
                prepared[row] = self.opened(self.model, self._picture(row), self.from_query)
            except RowError as exc:
                failed[row] = exc.with_traceback(None)  # the traceback would keep every image of the batch alive
        stacked = np.stack(list(prepared.values())) if prepared else None
        return _Batch(list(prepared), stacked, failed, time.perf_counter() - began)

    def _ahead(self, batch_size: int, at_a_time: int, threads: int) -> Generator[_Batch, None, None]:
        """Yield full batches that threads have opened and prepared; their rows are in any order."""
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
        return Step(rows, model_s=time.perf_counter() - began, workers=threads, prepare_s=batch.took)

    def _settle(self, batch: _Batch, made: Any, took: float) -> None:
        if made is not None:
            self.vectors[batch.rows] = made
        rows = len(batch.rows) + len(batch.failed)
        self._record(batch, Step(rows, model_s=took, prepare_s=batch.took))

    def _record(self, batch: _Batch, step: Step) -> None:
        self.failed.update(batch.failed)
        progress.report(step)


def _cut(rows: list[int], batch_size: int, threads: int) -> list[list[int]]:
    """Cut rows into batches of equal size, so that all workers finish at about the same time."""
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
    """Batches in progress on a device, copied asynchronously in both directions if the device supports it.

    On out-of-memory the batches are halved, once.
    """

    def __init__(self, model: PictureModel) -> None:
        self.model = model
        self.cuda = model.device.startswith("cuda")  # only CUDA has pinned memory and events
        self.limit: int | None = None
        self.queued: deque[tuple[_Batch, list[Any], Any, float]] = deque()

    def put(self, batch: _Batch) -> Iterator[tuple[_Batch, Any, float]]:
        """Queue a batch; if too many are queued, wait for the oldest and yield it."""
        import torch

        made = [] if batch.prepared is None else list(self._pieces(batch.prepared))
        event = torch.cuda.current_stream(self.model.device).record_event() if self.cuda else None
        self.queued.append((batch, made, event, time.perf_counter()))
        while len(self.queued) >= _IN_FLIGHT:
            yield self._oldest()

    def rest(self) -> Iterator[tuple[_Batch, Any, float]]:
        """Wait for the queued batches and yield them."""
        while self.queued:
            yield self._oldest()

    def _oldest(self) -> tuple[_Batch, Any, float]:
        batch, made, event, began = self.queued.popleft()
        if event is not None:
            event.synchronize()
        vectors = concatenated(made) if made else None
        return batch, vectors, time.perf_counter() - began

    def _pieces(self, prepared: np.ndarray) -> Iterator[Any]:
        """Yield the vectors of a batch, which are still being copied to the host; in parts if memory is short."""
        import torch

        if self.limit is None or len(prepared) <= self.limit:
            try:
                yield self._through(prepared)
                return
            except torch.OutOfMemoryError:
                if self.limit is not None or len(prepared) == 1:
                    raise
                self.limit = -(-len(prepared) // 2)
                log.warning("%s is out of memory for %d images; continuing with half", self.model.device, len(prepared))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        for start in range(0, len(prepared), self.limit):
            yield self._through(prepared[start : start + self.limit])

    def _through(self, prepared: np.ndarray) -> Any:
        import torch

        if prepared.dtype == object:
            return on_host(self.model.forward(prepared), pinned=self.cuda)
        batch = torch.from_numpy(prepared)
        batch = batch.pin_memory() if self.cuda else batch
        made = self.model.forward(batch.to(self.model.device, non_blocking=self.cuda))
        return on_host(made, pinned=self.cuda)
