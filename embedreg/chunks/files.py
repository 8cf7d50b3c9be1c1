"""A child in one Parquet or Arrow IPC file, written as a new file that replaces the old one by a rename.

Chunks of changed parents are written to pieces in a hidden folder beside the file. A killed run leaves them there. The
next run uses the parents in a piece whose digest still matches, since a digest covers the text and how it was cut.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.chunks.child import Child, digests_of
from embedreg.chunks.settings import CHUNK, PARENT_DIGEST
from embedreg.datasets.storage import SCRATCH, Storage
from embedreg.errors import EmbedregError, StorageError
from embedreg.jobs.lock import FOLDER as LOCK
from embedreg.jobs.lock import Lock
from embedreg.support.atomic import fill_arrow, fill_parquet

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FileChild"]

PIECES = "pieces"
_PIECE = re.compile(rf"{PIECES}/[0-9]{{8}}\.parquet")
_BATCH_ROWS = 8192


class FileChild(Child):
    """A file of chunks."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.shown, self.folder = str(path), str(self.path.parent)
        self._data = Storage(self.folder)
        self._root = self._data.inside(f".{path.name}.embedreg")
        self._lock: Lock | None = None
        self._schema: pa.Schema | None = None
        self._pieces: list[str] = []
        self._replaced: set[Any] = set()  # parents whose chunks in the file do not stay
        self._gone: set[Any] = set()  # of these, those whose chunks in pieces do not count either
        self._key = ""
        self._metadata_changed = False

    # -- reading -----------------------------------------------------------------------------------------------------

    def schema(self) -> pa.Schema | None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = self._data.entry(self.path.name)
        if found is None:
            return None
        if found.kind != "file":
            raise StorageError(f"{self.shown} is a link or not a regular file.", "name its target instead")
        try:
            if self._is_parquet:
                return pq.read_schema(self.path)
            with pa.OSFile(str(self.path)) as file:
                return pa.ipc.open_file(file).schema
        except (pa.ArrowException, OSError, ValueError) as exc:
            raise StorageError(
                f"{self.shown} cannot be read: {str(exc).partition(chr(10))[0]}.", "is the file complete?"
            ) from exc

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix.lower() in (".parquet", ".pq")

    def _dataset(self) -> Any:
        import pyarrow.dataset as ds

        return ds.dataset(str(self.path), format="parquet" if self._is_parquet else "ipc")

    def parents(self, key: str) -> dict[Any, str | None]:
        found: dict[Any, str | None] = {}
        if self.schema() is not None:
            found = digests_of(self._dataset().to_table(columns=[key, CHUNK, PARENT_DIGEST]), key)
        for name in self._pieces:  # later ones count
            later = digests_of(self._piece(name), key)
            found |= later
            self._replaced |= later.keys()
        self._key = key
        return found

    def rows(self, key: str, keys: Sequence[Any], columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa
        import pyarrow.compute as pc

        own = self.schema()
        if own is None:
            return self._wanted().empty_table().select(columns)
        wanted = pc.field(key).isin(pa.array(list(keys), own.field(key).type))
        table: pa.Table = self._dataset().to_table(columns=list(columns), filter=wanted)
        return table

    def count(self) -> int:
        return 0 if self.schema() is None else int(self._dataset().count_rows())

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def locked(self, *, resume: bool) -> Iterator[None]:
        lock = Lock(self._root)
        try:
            lock.acquire()
            self._lock = lock
            self._root.sweep()
            if not resume:
                self._root.remove_all(PIECES)
            yield
        finally:
            self._lock = None
            with contextlib.suppress(EmbedregError):  # the next run removes them
                if lock.is_mine():
                    self._root.remove_all(SCRATCH)
            refused = lock.refused
            lock.release()
            if not refused:
                for folder in (PIECES, SCRATCH, LOCK, "_embedreg", ""):
                    self._root.remove_empty(folder)

    def _check(self) -> None:
        assert self._lock is not None
        self._lock.check()

    def _wanted(self) -> pa.Schema:
        assert self._schema is not None
        return self._schema

    def begin(self, schema: pa.Schema) -> None:
        own = self.schema()
        self._schema, self._metadata_changed = schema, own is None or own.metadata != schema.metadata
        listed = [file for file in self._root.listing(PIECES) if file.path.endswith(".parquet")]
        for file in listed:
            if file.size >= 0 and _PIECE.fullmatch(file.path) and self._fits(file.path):
                self._pieces.append(file.path)
            else:
                self._root.remove(file.path)

    def _fits(self, name: str) -> bool:
        import pyarrow as pa

        try:
            return bool(self._piece(name).schema.equals(self._wanted()))
        except (pa.ArrowException, OSError, ValueError, EmbedregError):
            return False

    def _piece(self, name: str) -> pa.Table:
        import pyarrow.parquet as pq

        with self._root.open(name) as file:
            return pq.ParquetFile(file).read()

    def write(self, key: str, keys: Sequence[Any], made: pa.Table, *, known: bool) -> None:
        self._replaced |= set(keys)
        self._gone |= set(keys)
        self._gone -= set(made[key].to_pylist())
        if not len(made):
            return
        number = 1 + max((int(Path(name).stem) for name in self._pieces), default=0)
        name = f"{PIECES}/{number:08}.parquet"
        with self._root.publish(name, self._check) as growing:
            fill_parquet(growing, self._wanted(), made.combine_chunks().to_batches(), self.shown)
        self._pieces.append(name)

    def remove(self, key: str, keys: Sequence[Any]) -> None:
        self._replaced |= set(keys)
        self._gone |= set(keys)

    def finish(self) -> None:
        self._check()
        if not self._replaced and not self._metadata_changed:
            return
        fill = fill_parquet if self._is_parquet else fill_arrow
        with self._root.scratch_file(self._check) as growing:
            fill(growing, self._wanted(), self._all(), self.shown)
            self._root.rename(growing, self._data, self.path.name, self._check)
        self._root.remove_all(PIECES)

    def _all(self) -> Iterator[pa.RecordBatch]:
        """Yield the chunks that stay, then those of the pieces, each parent as the last piece has it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        schema, own = self._wanted(), self.schema()
        kind = schema.field(self._key).type
        if own is not None:
            gone = pa.array(list(self._replaced), kind)
            for batch in self._dataset().to_batches(columns=schema.names, batch_size=_BATCH_ROWS):
                kept = batch.filter(pc.invert(pc.is_in(batch.column(self._key), value_set=gone)))
                yield pa.RecordBatch.from_arrays(kept.columns, schema=schema)
        later: set[Any] = set()
        last: list[pa.Table] = []
        for name in reversed(self._pieces):
            piece = self._piece(name)
            keep = pc.invert(pc.is_in(piece[self._key], value_set=pa.array(list(later | self._gone), kind)))
            later |= set(piece[self._key].to_pylist())
            last.append(piece.filter(keep))
        for piece in reversed(last):
            yield from piece.combine_chunks().to_batches()
