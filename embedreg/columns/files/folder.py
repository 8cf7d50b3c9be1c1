"""`DataFiles`: the files of a dataset or one file, how each is read and written, and where working files are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from embedreg.datasets import formats
from embedreg.datasets.formats import Scan, Span, Unit
from embedreg.datasets.schemas import refuse_invalid
from embedreg.datasets.storage import Storage
from embedreg.declaration import codec, manifest
from embedreg.declaration.entries import Entry
from embedreg.errors import EmbedregError, StorageError
from embedreg.inspection import locate
from embedreg.support import confined
from embedreg.support.atomic import storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DataFiles", "find"]

Kind = Literal["parquet", "arrow"]
_PARQUET = (".parquet", ".pq")
_GROUP_ROWS = 65_536  # of a row group that is written: what has to be held in memory


@dataclass(frozen=True)
class DataFiles:
    """A file, or a folder of files that are one dataset.

    Attributes:
        path: what the user named.
        data: the folder that holds the files.
        root: the folder that holds `_embedreg/` with locks and working files: as for a job that writes there.
        name: of the file; None for a folder.
    """

    path: Path
    data: Storage
    root: Storage
    name: str | None = None

    def names(self) -> list[str]:
        """Return the files, in the order of the rows.

        Raises:
            StorageError: a name that could not be written safely, or a link.
        """
        if self.name is not None:
            return [self.name]
        found = [path.relative_to(self.path).as_posix() for path in locate.data_files(self.path)]
        for name in found:
            if not confined.is_plain(name):
                raise StorageError(f"the name of the file {name[:200]!r} is invalid for a dataset.", "rename it")
        return found

    def stamp(self, name: str) -> list[int] | None:
        """Return what changes when a file is replaced or written to; None if it does not exist."""
        found = self.data.entry(name)
        if found is None:
            return None
        if found.kind != "file":
            raise StorageError(f"{self.data.shown(name)!r} is a link or not a regular file.", "name its target instead")
        return [found.inode, found.mtime_ns, found.size]

    @staticmethod
    def kind(name: str) -> Kind:
        """Return the format of a file, by its name."""
        return "parquet" if PurePosixPath(name).suffix.lower() in _PARQUET else "arrow"

    def scan(self, name: str) -> Scan:
        """Return the schema and the units of a file.

        Raises:
            StorageError: it cannot be read.
        """
        with self._readable(name):
            read = formats.scan_parquet if self.kind(name) == "parquet" else formats.scan_arrow
            return read(self.data, name)

    def schema(self, name: str) -> pa.Schema:
        """Return the schema of a file, with its own metadata."""
        schema = self.scan(name).schema
        assert schema is not None  # only of text files
        return schema

    def batches(
        self, name: str, columns: Sequence[str] | None, batch_rows: int, unit: Unit | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a file, or of one of its units; columns that it lacks are left out.

        Raises:
            StorageError: it cannot be read.
        """
        scan = self.scan(name)
        if not scan.units:
            return
        first, last = (scan.units[0], scan.units[-1]) if unit is None else (unit, unit)
        span = Span(first.start, last.stop)
        read = formats.read_parquet if self.kind(name) == "parquet" else formats.read_arrow
        row = 0
        with self._readable(name):
            for batch in read(self.data, name, span, columns, batch_rows, scan.schema):
                refuse_invalid(batch, self.data.shown(name), row)
                row += batch.num_rows
                yield batch

    def fill(self, new: Path, like: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Write a new file in the format of an existing one, with its compression.

        Raises:
            StorageError: it cannot be written.
        """
        writer = self._writer(new, like, schema)
        try:
            for table in _grouped(batches, schema):
                with storage_errors(self.data.shown(like)):
                    writer.write_table(table)
        finally:
            with storage_errors(self.data.shown(like)):
                writer.close()

    def _writer(self, new: Path, like: str, schema: pa.Schema) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with storage_errors(self.data.shown(like)):
            if self.kind(like) == "arrow":
                with self.data.open(like) as file:
                    stream = file.read(6) != b"ARROW1"
                return (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(new), schema)
            with self.data.open(like) as file:
                footer = pq.ParquetFile(file).metadata
            first = footer.row_group(0) if footer.num_row_groups else None  # a file without rows may have none
            codecs = set() if first is None else {first.column(n).compression for n in range(footer.num_columns)}
            codecs -= {"UNCOMPRESSED"}
            codec = codecs.pop() if len(codecs) == 1 else "SNAPPY"
            plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
            return pq.ParquetWriter(new, schema, use_dictionary=plain, compression=codec)

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except EmbedregError:
            raise
        except (pa.ArrowException, OSError, ValueError) as exc:
            why = str(exc).partition("\n")[0].rstrip(".") or type(exc).__name__
            raise StorageError(f"{self.data.shown(name)} cannot be read: {why}.", "is the file complete?") from exc

    # -- declarations ------------------------------------------------------------------------------------------------

    def declared(self) -> list[Entry]:
        """Return the declarations of the dataset, from the first file and the manifest."""
        return codec.entries(locate.metadata_of(self.path))

    def own_entries(self, name: str) -> list[Entry]:
        """Return the declarations in the schema of one file."""
        return codec.entries(self.schema(name).metadata)

    def manifest(self) -> list[Entry] | None:
        """Return the declarations in the folder's manifest; None without one."""
        if self.name is not None or (text := manifest.read(self.path)) is None:
            return None
        return codec.entries({codec.KEY: text})

    def declare(self, entries: Sequence[Entry]) -> None:
        """Write the manifest of a folder; one file carries its own declarations."""
        if self.name is None:
            self.data.write(manifest.NAME, manifest.content(text_of(entries)))


def text_of(entries: Sequence[Entry]) -> bytes:
    """Return declarations as the value of the schema metadata, byte for byte."""
    return f"[{', '.join(entry.raw for entry in entries)}]".encode()


def with_entries(schema: pa.Schema, entries: Sequence[Entry]) -> pa.Schema:
    """Return a schema with other declarations; its other metadata stays."""
    info: Mapping[bytes, bytes] = {k: v for k, v in (schema.metadata or {}).items() if k != codec.KEY.encode()}
    return schema.with_metadata({**info, **({codec.KEY.encode(): text_of(entries)} if entries else {})})


def _grouped(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """Join batches into row groups."""
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        if batch.num_rows:
            waiting.append(batch)
        if sum(each.num_rows for each in waiting) >= _GROUP_ROWS:
            yield pa.Table.from_batches(waiting, schema)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting, schema)


def find(path: Path) -> DataFiles | None:
    """Return the dataset at a path; None if it is neither a data file nor a folder of them."""
    if path.is_dir():
        files = locate.data_files(path)
        root = Storage(str(path))
        return DataFiles(path, root, root) if files else None
    if path.is_file() and path.name.endswith(locate.SUFFIXES):
        parent = Storage(str(path.parent))
        return DataFiles(path, parent, parent.inside(f".{path.name}.embedreg"), path.name)
    return None
