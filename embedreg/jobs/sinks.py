"""Where pieces go: a folder of Parquet files, one file, or a Lance table. Each appears whole, under its own name."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, TypeVar

from embedreg.errors import EmbedregError, StorageError
from embedreg.imports import attempt_import_or_raise
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.places import Target
from embedreg.jobs.storage import File, Storage
from embedreg.writing import fill_arrow, fill_parquet, in_place_of, take_place

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Sink", "sink_for"]

T = TypeVar("T")

_TABLE = "table.lance"  # the one that grows
_PATIENCE_S = 0.1  # between two looks at whether the other thread still runs


class Sink(ABC):
    """A destination.

    It travels to other processes, where `write` is called; the rest is the driver's.
    """

    root: Storage
    """The folder in which pieces and records lie while the job runs."""

    def prepare(self, schema: pa.Schema) -> None:  # noqa: B027  # most have nothing to prepare
        """Get ready, once the job's lock is held."""

    @abstractmethod
    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        """Write a piece; return what `present` needs to find it again."""

    @abstractmethod
    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        """Say whether a recorded piece is still there; `files` lists `root`."""

    @abstractmethod
    def drop(self, output: str) -> None:
        """Remove a piece that may not be there."""

    def reset(self) -> None:  # noqa: B027  # most have nothing besides their pieces
        """Remove what is left when every piece is dropped."""

    @abstractmethod
    def finish(self, schema: pa.Schema, outcomes: Sequence[Outcome]) -> None:
        """Make the destination appear, of all pieces in their order."""


@dataclass(frozen=True)
class FolderSink(Sink):
    """A Parquet file a piece, under its final name from the start."""

    root: Storage

    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        with self.root.publish(piece.output) as path:
            fill_parquet(path, schema, batches, self.root.shown(piece.output))
            return {"size": path.stat().st_size}

    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        found = files.get(outcome.piece.output)
        return found is not None and found.size == outcome.stored.get("size")

    def drop(self, output: str) -> None:
        self.root.remove(output)

    def finish(self, schema: pa.Schema, outcomes: Sequence[Outcome]) -> None:
        pass


@dataclass(frozen=True)
class FileSink(FolderSink):
    """One file: pieces grow in a hidden folder beside it, and are put together at the end."""

    target: Target

    def finish(self, schema: pa.Schema, outcomes: Sequence[Outcome]) -> None:
        names = [outcome.piece.output for outcome in outcomes]
        here, pieces = self.target.path, self.root.local
        if here is None or pieces is None:
            with self.target.storage.publish(self.target.name) as growing:
                self._fill(growing, schema, names)
        elif len(names) == 1 and self.target.kind == "parquet":
            take_place(pieces / names[0], here)
        else:
            with in_place_of(here) as hidden:
                self._fill(hidden, schema, names)

    def _fill(self, path: Path, schema: pa.Schema, names: Sequence[str]) -> None:
        fill = {"parquet": fill_parquet, "arrow": fill_arrow}[self.target.kind]
        fill(path, schema, self._batches(names), str(self.target))

    def _batches(self, pieces: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read the pieces back, a batch for each of their row groups."""
        import pyarrow.parquet as pq

        for name in pieces:
            with self.root.open(name) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)
                for group in range(parquet.num_row_groups):
                    yield from parquet.read_row_group(group, use_threads=False).combine_chunks().to_batches()


@dataclass(frozen=True)
class LanceSink(Sink):
    """A Lance table: each piece writes fragments that no version names yet; one commit at the end names them all.

    So nothing can be there twice, and the rows lie in their order, whatever order the pieces were done in.
    """

    root: Storage
    target: Target

    @property
    def _uri(self) -> str:
        return str(self.target) if self.root.local is None else str(self.root.local / _TABLE)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "target": self.target}

    @functools.cached_property
    def _growing(self) -> Any:
        """The table that grows: a dataset, or its address where there is none yet."""
        here = self.root.local is not None
        storage, name = (self.root, _TABLE) if here else (self.target.storage, self.target.name)
        if not storage.files(f"{name}/_versions"):
            return self._uri
        with _lance_errors(self._uri):
            return _lance().dataset(self._uri)

    def prepare(self, schema: pa.Schema) -> None:
        if self.root.local is not None and isinstance(self._growing, str):
            self._commit(schema, [])
            self.__dict__.pop("_growing")

    def _commit(self, schema: pa.Schema, fragments: Sequence[Any]) -> None:
        """Make a version of some fragments, in a thread: a signal must not leave Lance writing behind our back."""
        lance = _lance()
        made = lance.LanceOperation.Overwrite(schema, fragments)
        commit = functools.partial(lance.LanceDataset.commit, self._uri, made, enable_v2_manifest_paths=True)
        with _lance_errors(str(self.target)), _aside(commit) as result:
            result.result()

    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        write_fragments = attempt_import_or_raise("lance.fragment", "pylance", extra="lancedb").write_fragments
        growing = self._growing
        mode = "create" if isinstance(growing, str) else "overwrite"  # of its schema: nothing is until the commit

        def store(reader: pa.RecordBatchReader) -> Any:
            with _lance_errors(str(self.target)):  # here: what embedding raises is not about the table
                return write_fragments(reader, growing, mode=mode)

        made = _fed(schema, batches, store)
        return {"fragments": [each.to_json() for each in made]}

    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        if self.root.local is None:
            return True
        names = [file["path"] for each in outcome.stored["fragments"] for file in each["files"]]
        return all(f"{_TABLE}/data/{name}" in files for name in names)

    def drop(self, output: str) -> None:
        pass  # what no record names is left out of the commit

    def reset(self) -> None:
        if self.root.local is not None:
            self.root.remove_all(_TABLE)
            self.__dict__.pop("_growing", None)

    def finish(self, schema: pa.Schema, outcomes: Sequence[Outcome]) -> None:
        metadata = attempt_import_or_raise("lance.fragment", "pylance").FragmentMetadata
        stored = [each for outcome in outcomes for each in outcome.stored["fragments"]]
        self._commit(schema, [metadata.from_json(json.dumps(each)) for each in stored])
        if self.root.local is not None and self.target.path is not None:
            growing = self.root.local / _TABLE
            _remove_unnamed(growing / "data", {file["path"] for each in stored for file in each["files"]})
            take_place(growing, self.target.path)


def _remove_unnamed(folder: Path, names: set[str]) -> None:
    """Remove what killed runs left of pieces that were done again."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in names:
            path.unlink()


def _lance() -> Any:
    return attempt_import_or_raise("lance", "pylance", extra="lancedb")


def _fed(schema: pa.Schema, batches: Iterable[pa.RecordBatch], consume: Callable[[pa.RecordBatchReader], T]) -> T:
    """Let a consumer of Arrow streams run in a thread, on batches that are made in this one.

    Lance itself would call for them from threads of its own: out of reach of Ctrl-C and of this thread's variables, and
    an error would come through its C interface as mere text.
    """
    import pyarrow as pa

    line: Queue[pa.RecordBatch | None] = Queue(maxsize=1)
    left = threading.Event()

    def coming() -> Iterator[pa.RecordBatch]:
        while not left.is_set():
            with contextlib.suppress(Empty):
                batch = line.get(timeout=_PATIENCE_S)
                if batch is None:
                    return
                yield batch
        raise InterruptedError("the rows ended before their time")

    def give(batch: pa.RecordBatch | None) -> bool:
        """Hand over a batch, unless the consumer has ended: then its own error is the one to show."""
        while not result.done():
            with contextlib.suppress(Full):
                line.put(batch, timeout=_PATIENCE_S)
                return True
        return False

    # a signal may end this at any point, and the other thread must not wait for what never comes
    with _aside(lambda: consume(pa.RecordBatchReader.from_batches(schema, coming())), left.set) as result:
        if all(give(batch) for batch in batches):
            give(None)
        return result.result()


@contextlib.contextmanager
def _aside(call: Callable[[], T], leave: Callable[[], object] = bool) -> Iterator[Future[T]]:
    """Run a call in a thread, which has ended when this has: also where a signal comes while the thread starts.

    An executor would not know a thread yet whose start was interrupted, and would leave it to itself.

    Args:
        leave: tells the call that nobody brings it anything any more.
    """
    result: Future[T] = Future()

    def run() -> None:
        if result.set_running_or_notify_cancel():
            try:
                result.set_result(call())
            except BaseException as exc:  # noqa: BLE001  # whatever it is, who waits must get it
                result.set_exception(exc)

    try:
        threading.Thread(target=run, name="embedreg-lance").start()
        yield result
    finally:
        leave()
        if not result.cancel():  # it has begun
            wait([result])


@contextlib.contextmanager
def _lance_errors(where: str) -> Iterator[None]:
    """Turn Lance's errors into a `StorageError` of one line."""
    try:
        yield
    except EmbedregError:
        raise
    except (OSError, RuntimeError, ValueError) as exc:
        first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise StorageError(f"{where} cannot be written: {first}", "free some space, or choose another place") from exc


def sink_for(target: Target) -> Sink:
    """Return the sink of a destination; of a file or a table, the pieces grow beside it under a hidden name."""
    if target.kind == "folder":
        return FolderSink(target.storage)
    if target.kind == "lance":
        target.storage.refuse_for_lance()
        _lance()  # before anything is written, should it be missing
    beside = target.storage.inside(f".{target.name}.embedreg")
    return LanceSink(beside, target) if target.kind == "lance" else FileSink(beside, target)
