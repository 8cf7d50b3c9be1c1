"""`LanceSink` writes a Lance table: fragments for each piece, and one commit at the end."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import TYPE_CHECKING, Any, TypeVar

from embedreg.datasets.storage import File, Storage
from embedreg.datasets.targets import Target
from embedreg.errors import EmbedregError, SchemaError, StorageError
from embedreg.jobs.lock import Held
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.sinks import Sink, beside
from embedreg.support import confined
from embedreg.support.atomic import storage_errors, sync
from embedreg.support.display import plain
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.strict_json import Malformed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LanceSink", "refuse_missing_lance", "refuse_unstorable"]

T = TypeVar("T")

_TABLE = "table.lance"  # the table under construction
_POLL_S = 0.1  # between two checks whether the other thread still runs


@dataclass(frozen=True)
class LanceSink(Sink):
    """A Lance table: each piece writes fragments that no version contains yet; one commit at the end adds them all.

    So no row is stored twice, and the rows keep their order, in whatever order the pieces ran.
    """

    root: Storage
    target: Target
    right: Held | None = None

    @property
    def _uri(self) -> str:
        return str(self.target) if self.root.local is None else str(self.root.local / _TABLE)

    @property
    def _place(self) -> tuple[Storage, str]:
        """The table under construction: a hidden one on this machine, the table itself on an object store."""
        return (self.root, _TABLE) if self.root.local is not None else (self.target.storage, self.target.name)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "target": self.target, "right": self.right}

    @functools.cached_property
    def _growing(self) -> Any:
        """The table under construction: a dataset, or its URI if there is none yet."""
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
        """Commit a version of the fragments, in a thread: after a signal, Lance must not keep writing unnoticed."""
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
        mode = "create" if isinstance(growing, str) else "overwrite"  # concerns the schema only, until the commit

        def store(reader: pa.RecordBatchReader) -> Any:
            with _lance_errors(str(self.target)):  # only here: errors of embedding are not about the table
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
        """Sync the files of fragments to disk: Lance does not, and a record must never exist before its files."""
        if self.root.local is not None:
            data = self.root.local / _TABLE / "data"
            with storage_errors(str(self.target)):
                for path in [*(data / name for name in names), data]:
                    sync(path)

    def _take_back(self, names: Sequence[str]) -> None:
        """Remove what Lance has written for a run that lost the destination meanwhile."""
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
        pass  # a fragment without a record is left out of the commit

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
        for found in self.root.listing(f"{_TABLE}/data"):  # left by killed runs, of pieces that ran again
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
        return beside(self, target, path)


def _fragments(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the fragments of a record.

    Raises:
        Malformed: they are not as embedreg writes them: only files of this table.
    """
    found = outcome.stored.get("fragments")
    if not isinstance(found, list) or not all(isinstance(each, dict) and _is_fragment(each) for each in found):
        raise Malformed("its Lance fragments are invalid")
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


def refuse_missing_lance() -> None:
    """Raise `MissingDependencyError` if Lance is not installed."""
    _lance()


def refuse_unstorable(schema: pa.Schema) -> None:
    """Raise `SchemaError` for a column that Lance does not store, or that it does not find again under its name."""
    import pyarrow as pa

    if _is_stored(schema):
        return
    for item in schema:
        if not _is_stored(pa.schema([item])):
            raise SchemaError(
                f"column {plain(item.name, 80)!r} of type {plain(item.type, 80)} cannot be stored in a Lance table.",
                "rename the column, cast it to another type, or write Parquet",
            )


def _is_stored(schema: pa.Schema) -> bool:
    """Return whether a table without rows, in memory, has these columns again when it is read."""
    import pyarrow as pa

    if any(pa.types.is_struct(item.type) and not item.type.num_fields for item in schema):
        return False  # Lance fails once there are rows
    reader = pa.RecordBatchReader.from_batches(schema, iter(()))
    try:
        with _lance_errors("a table in memory"):
            found = _lance().write_dataset(reader, "memory://", schema=schema).to_table()
    except StorageError:
        return False
    return bool(found.schema.names == schema.names)


def _lance() -> Any:
    return attempt_import_or_raise("lance", "pylance", extra="lancedb")


def _fed(schema: pa.Schema, batches: Iterable[pa.RecordBatch], consume: Callable[[pa.RecordBatchReader], T]) -> T:
    """Run a consumer of an Arrow stream in a thread, on batches that are made in this thread.

    Lance itself would pull them from its own threads: Ctrl-C and context variables would not reach them, and an error
    would pass its C interface as mere text.
    """
    import pyarrow as pa

    queue: Queue[pa.RecordBatch | None] = Queue(maxsize=1)
    left = threading.Event()

    def coming() -> Iterator[pa.RecordBatch]:
        while not left.is_set():
            with contextlib.suppress(Empty):
                batch = queue.get(timeout=_POLL_S)
                if batch is None:
                    return
                yield batch
        raise InterruptedError("the stream of rows ended early")

    def give(batch: pa.RecordBatch | None) -> bool:
        """Put a batch into the queue, unless the consumer has ended: then its own error is raised."""
        while not result.done():
            with contextlib.suppress(Full):
                queue.put(batch, timeout=_POLL_S)
                return True
        return False

    # a signal may end this at any point, and the other thread must not wait forever
    with _aside(lambda: consume(pa.RecordBatchReader.from_batches(schema, coming())), left.set) as result:
        if all(give(batch) for batch in batches):
            give(None)
        return result.result()


@contextlib.contextmanager
def _aside(call: Callable[[], T], leave: Callable[[], object] = bool) -> Iterator[Future[T]]:
    """Run a call in a thread and wait for its end, also if a signal arrives while the thread starts.

    An executor would not yet know a thread whose start was interrupted, and would not wait for it.

    Args:
        leave: signals to the call that no more input comes.
    """
    result: Future[T] = Future()

    def run() -> None:
        if result.set_running_or_notify_cancel():
            try:
                result.set_result(call())
            except BaseException as exc:  # noqa: BLE001  # the waiting thread must get every error
                result.set_exception(exc)

    try:
        threading.Thread(target=run, name="embedreg-lance").start()
        yield result
    finally:
        leave()
        if not result.cancel():  # it is running
            wait([result])


@contextlib.contextmanager
def _lance_errors(where: str) -> Iterator[None]:
    """Convert Lance's errors into a `StorageError` of one line."""
    try:
        yield
    except EmbedregError:
        raise
    except BaseException as exc:
        # a panic in Lance is not an Exception, and its class cannot be imported
        if not isinstance(exc, OSError | RuntimeError | ValueError | TypeError | KeyError | OverflowError) and (
            type(exc).__name__ != "PanicException"
        ):
            raise
        first = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise StorageError(f"{where} cannot be written: {first}", "free some space, or choose another place") from exc
