"""Where pieces go: a folder of Parquet files, one file, or a Lance table. Each appears whole, under its own name."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, Self, TypeVar

from embedreg.arrow.casting import exactly
from embedreg.datasets.places import Target
from embedreg.datasets.storage import AGAIN, File, Storage
from embedreg.declaration import codec
from embedreg.errors import EmbedregError, StorageError
from embedreg.jobs import stored
from embedreg.jobs.lock import Held
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.support import confined
from embedreg.support.atomic import fill_arrow, fill_parquet, storage_errors, sync
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.strict_json import Malformed

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

    right: Held | None
    """What allows this run to write there, once it is; looked up before anything appears."""

    def check(self) -> None:
        """Raise `StorageError` where the destination is another run's by now."""
        if self.right is not None:
            self.right.check()

    def held(self, right: Held) -> Self:
        """Return this destination for the run that holds it."""
        return dataclasses.replace(self, right=right)  # type: ignore[type-var]  # each of them is a dataclass

    def prepare(self, schema: pa.Schema) -> None:  # noqa: B027  # most have nothing to prepare
        """Get ready, once the job's lock is held."""

    @abstractmethod
    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        """Write a piece; return what `present` needs to find it again."""

    def listing(self) -> dict[str, File]:
        """Return the files among which `present` looks."""
        return {file.path: file for file in self.root.listing()}

    @abstractmethod
    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        """Return whether a recorded piece is still there, whole; `files` is what `listing` returned."""

    @abstractmethod
    def drop(self, output: str) -> None:
        """Remove a piece that may not be there.

        Raises:
            StorageError: what has its name is not one.
        """

    def reset(self) -> None:  # noqa: B027  # most have nothing besides their pieces
        """Remove what is left when every piece is dropped."""

    @abstractmethod
    def finish(
        self, schema: pa.Schema, outcomes: Sequence[Outcome], making: Callable[[list[Any]], object] = bool
    ) -> None:
        """Make the destination appear, of all pieces in their order.

        Args:
            making: called with the stamp of a file or a table on this machine, right before it appears.
        """

    def list_bad_rows(self, target: Target, path: str) -> contextlib.AbstractContextManager[Path]:
        """Give a new path for the list of bad rows, which appears in the target's folder."""
        return target.storage.publish(path, self.check)


@dataclass(frozen=True)
class FolderSink(Sink):
    """A Parquet file a piece, under its final name from the start."""

    root: Storage
    right: Held | None = None

    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        with self.root.publish(piece.output, self.check) as path:
            fill_parquet(path, schema, batches, self.root.shown(piece.output))
            return {"size": path.stat().st_size}

    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        found = files.get(outcome.piece.output)
        return found is not None and found.size == outcome.stored.get("size")

    def drop(self, output: str) -> None:
        if not stored.is_output(output):
            raise StorageError(f"{output!r} is not the name of a piece.", "start anew in another folder")
        if self.root.local is not None and not self._is_ours(output):
            raise StorageError(
                f"{self.root.shown(output)!r} would be removed, and embedreg has not written it.",
                "move it elsewhere, or write to another folder",
            )
        self.root.remove(output)

    def _is_ours(self, output: str) -> bool:
        """Return whether nothing has a name, or a Parquet file that carries a declaration.

        The records may be anybody's, and may name a file that somebody has put here.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = self.root.look(output)
        if found is None or found.kind != "file":
            return found is None or found.kind == "link"  # of which the link itself is removed
        try:
            with self.root.open(output) as file:
                return codec.KEY.encode() in (pq.read_schema(file).metadata or {})
        except (pa.ArrowException, OSError):
            return False

    def finish(
        self, schema: pa.Schema, outcomes: Sequence[Outcome], making: Callable[[list[Any]], object] = bool
    ) -> None:
        pass


@dataclass(frozen=True)
class FileSink(FolderSink):
    """One file: pieces grow in a hidden folder beside it, and are put together at the end."""

    root: Storage
    target: Target = dataclasses.field(kw_only=True)

    def finish(
        self, schema: pa.Schema, outcomes: Sequence[Outcome], making: Callable[[list[Any]], object] = bool
    ) -> None:
        names = [outcome.piece.output for outcome in outcomes]
        to, name = self.target.storage, self.target.name
        if self.root.local is None:
            with to.publish(name, self.check) as growing:
                self._fill(growing, schema, names)
            return
        with self.root.grow(self.check) as growing:
            if not (len(names) == 1 and self.target.kind == "parquet" and self._linked(names[0], growing)):
                self._fill(growing, schema, names)
            stat = growing.stat()
            making([stat.st_ino, stat.st_mtime_ns, stat.st_size])
            self.root.rename(growing, to, name, self.check)

    def _linked(self, piece: str, growing: Path) -> bool:
        """Give the one piece of a file a second name, and return whether this disk can."""
        self._refuse_other_than_a_file(piece)
        with contextlib.suppress(OSError):
            os.link(Path(self.root.uri, piece), growing, follow_symlinks=False)
            return True
        return False

    def list_bad_rows(self, target: Target, path: str) -> contextlib.AbstractContextManager[Path]:
        return _beside(self, target, path)

    def _refuse_other_than_a_file(self, piece: str) -> None:
        found = self.root.look(piece)
        if found is None or found.kind != "file":
            raise StorageError(f"{self.root.shown(piece)!r} is not there, or is not a regular file.", AGAIN)

    def _fill(self, path: Path, schema: pa.Schema, names: Sequence[str]) -> None:
        fill = {"parquet": fill_parquet, "arrow": fill_arrow}[self.target.kind]
        fill(path, schema, (_as_was(batch, schema) for batch in self._batches(names)), str(self.target))

    def _batches(self, pieces: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read the pieces back, a batch for each of their row groups."""
        import pyarrow.parquet as pq

        for name in pieces:
            if self.root.local is not None:
                self._refuse_other_than_a_file(name)
            with self.root.open(name) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)
                for group in range(parquet.num_row_groups):
                    yield from parquet.read_row_group(group, use_threads=False).combine_chunks().to_batches()


def _as_was(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with the types that it had: a piece is Parquet, which has no seconds and no numbered integers."""
    import pyarrow as pa

    if batch.schema.types == schema.types:
        return batch
    columns = [exactly(column, item.type, rounds=False) for column, item in zip(batch.columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@contextlib.contextmanager
def _beside(sink: Sink, target: Target, path: str) -> Iterator[Path]:
    """Give a path in the job's own scratch folder, of which a file beside the destination is made."""
    if sink.root.local is None:
        with target.storage.publish(path, sink.check) as growing:
            yield growing
        return
    with sink.root.grow(sink.check) as growing:
        yield growing
        sink.root.rename(growing, target.storage, path, sink.check)


@dataclass(frozen=True)
class LanceSink(Sink):
    """A Lance table: each piece writes fragments that no version names yet; one commit at the end names them all.

    So nothing can be there twice, and the rows lie in their order, whatever order the pieces were done in.
    """

    root: Storage
    target: Target
    right: Held | None = None

    @property
    def _uri(self) -> str:
        return str(self.target) if self.root.local is None else str(self.root.local / _TABLE)

    @property
    def _place(self) -> tuple[Storage, str]:
        """Where the table that grows lies: a hidden one here, the table itself elsewhere."""
        return (self.root, _TABLE) if self.root.local is not None else (self.target.storage, self.target.name)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "target": self.target, "right": self.right}

    @functools.cached_property
    def _growing(self) -> Any:
        """The table that grows: a dataset, or its address where there is none yet."""
        storage, name = self._place
        storage.refuse_links(name)
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
        self.check()
        with _lance_errors(str(self.target)), _aside(commit) as result:
            result.result()

    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        write_fragments = attempt_import_or_raise("lance.fragment", "pylance", extra="lancedb").write_fragments
        self.check()
        storage, name = self._place
        storage.refuse_links(name)
        growing = self._growing
        mode = "create" if isinstance(growing, str) else "overwrite"  # of its schema: nothing is until the commit

        def store(reader: pa.RecordBatchReader) -> Any:
            with _lance_errors(str(self.target)):  # here: what embedding raises is not about the table
                return write_fragments(reader, growing, mode=mode)

        made = [each.to_json() for each in _fed(schema, batches, store)]
        names = [file["path"] for each in made for file in each["files"]]
        try:
            self.check()
            self._sync(names)
        except StorageError:
            self._take_back(names)
            raise
        return {"fragments": made}

    def _sync(self, names: Sequence[str]) -> None:
        """Push the files of fragments to the disk: Lance does not, and a record must not be there before them."""
        if self.root.local is not None:
            data = self.root.local / _TABLE / "data"
            with storage_errors(str(self.target)):
                for path in [*(data / name for name in names), data]:
                    sync(path)

    def _take_back(self, names: Sequence[str]) -> None:
        """Remove what Lance has written for a run that had lost the destination meanwhile."""
        if self.root.local is not None:
            with contextlib.suppress(EmbedregError):
                for name in names:
                    self.root.remove(f"{_TABLE}/data/{name}")
            for folder in (f"{_TABLE}/data", _TABLE, ""):
                self.root.remove_empty(folder)

    def listing(self) -> dict[str, File]:
        storage, name = self._place
        start = len(f"{name}/data/")
        return {file.path[start:]: file for file in storage.listing(f"{name}/data")}

    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        try:
            parts = _fragments(outcome)
        except Malformed:
            return False
        if outcome.written and not parts:
            return False
        found = [(files.get(file["path"]), file.get("file_size_bytes")) for each in parts for file in each["files"]]
        return all(file is not None and (not size or file.size == size) for file, size in found)

    def drop(self, output: str) -> None:
        pass  # what no record names is left out of the commit

    def reset(self) -> None:
        if self.root.local is not None:
            self.root.remove_all(_TABLE)
            self.__dict__.pop("_growing", None)

    def finish(
        self, schema: pa.Schema, outcomes: Sequence[Outcome], making: Callable[[list[Any]], object] = bool
    ) -> None:
        fragment = attempt_import_or_raise("lance.fragment", "pylance").FragmentMetadata
        kept = [each for outcome in outcomes for each in _fragments(outcome)]
        storage, name = self._place
        storage.refuse_links(name)
        with _lance_errors(str(self.target)):
            fragments = [fragment.from_json(json.dumps(each)) for each in kept]
        self._commit(schema, fragments)
        if self.root.local is None:
            return
        self.root.refuse_links(_TABLE)
        names = {file["path"] for each in kept for file in each["files"]}
        for found in self.root.listing(f"{_TABLE}/data"):  # what killed runs left of pieces that were done again
            if found.path.removeprefix(f"{_TABLE}/data/") not in names:
                self.check()
                self.root.remove(found.path)
        growing = self.root.local / _TABLE
        with storage_errors(str(self.target)):
            for path in [*growing.rglob("*"), growing]:
                sync(path)
        making([growing.stat().st_ino])
        self.root.swap(_TABLE, self.target.storage, self.target.name, self.check)

    def list_bad_rows(self, target: Target, path: str) -> contextlib.AbstractContextManager[Path]:
        return _beside(self, target, path)


def _fragments(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the fragments that a record names.

    Raises:
        Malformed: they are not what embedreg writes: files of this table, and nothing besides.
    """
    found = outcome.stored.get("fragments")
    if not isinstance(found, list) or not all(isinstance(each, dict) and _is_fragment(each) for each in found):
        raise Malformed("its fragments are not those of a Lance table")
    return found


def _is_fragment(each: dict[str, Any]) -> bool:
    files = each.get("files")
    return (
        isinstance(files, list)
        and all(isinstance(file, dict) and _is_data_file(file) for file in files)
        and each.get("deletion_file") is None
        and type(each.get("physical_rows")) is int
    )


def _is_data_file(file: dict[str, Any]) -> bool:
    path, size = file.get("path"), file.get("file_size_bytes")
    numbers = [file.get("fields"), file.get("column_indices")]
    return (
        confined.is_plain(path)
        and "/" not in path  # type: ignore[operator]  # it is text
        and file.get("base_id") is None
        and (size is None or type(size) is int)
        and all(isinstance(each, list) and all(type(number) is int for number in each) for each in numbers)
    )


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
    except BaseException as exc:
        # a panic of Lance's is no Exception, and has no class that can be imported
        if not isinstance(exc, OSError | RuntimeError | ValueError | TypeError | KeyError | OverflowError) and (
            type(exc).__name__ != "PanicException"
        ):
            raise
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
    return LanceSink(beside, target) if target.kind == "lance" else FileSink(beside, target=target)
