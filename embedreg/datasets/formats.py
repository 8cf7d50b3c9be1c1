"""Read binary formats: Parquet, Arrow IPC and Lance, in units that are independent of each other."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.arrow.inputs import storable
from embedreg.datasets.storage import Storage
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "BATCH_BYTES",
    "Input",
    "Scan",
    "Span",
    "Unit",
    "cut",
    "lance_dataset",
    "scan_arrow",
    "scan_lance",
    "scan_parquet",
]
__all__ += ["read_arrow", "read_lance", "read_parquet"]

BATCH_BYTES = 128 << 20  # of a batch as stored in the file: fewer rows at a time if they hold images
_READ_BYTES = 4 << 20  # of one column that is fetched at a time, instead of its whole column chunk


@dataclass(frozen=True)
class Unit:
    """The smallest part of a file that can be read alone: a row group, a record batch, a run of complete lines.

    Attributes:
        start, stop: numbers of row groups, record batches or bytes, or a fragment's number and the next.
        rows: number of rows; None if it is known only after reading.
        size: in bytes, as far as the file records it.
    """

    start: int
    stop: int
    rows: int | None
    size: int


@dataclass(frozen=True)
class Input:
    """A file of a source, or a fragment of a Lance table, in its state at the time of a scan.

    Attributes:
        path: relative to the source.
        size: in bytes.
        mtime_ns: the time of its last change, if known.
        etag: the ETag of an object, or a digest of a fragment's metadata.
        units: parts that can be read alone.
    """

    path: str
    size: int
    mtime_ns: int | None
    etag: str | None
    units: tuple[Unit, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> int | None:
        """The number of rows, if it is known without reading them."""
        rows = [unit.rows for unit in self.units]
        return None if None in rows else sum(filter(None, rows))

    def same(self, other: Input) -> bool:
        """Return whether this is the same content as at another scan."""
        if self.path != other.path or self.size != other.size:
            return False
        if self.etag is not None and other.etag is not None:
            return self.etag == other.etag
        return self.mtime_ns == other.mtime_ns


@dataclass(frozen=True)
class Span:
    """The rows of a file that a piece reads.

    Attributes:
        start, stop: of its first and of its last unit.
        skip: rows of the first unit that belong to the previous piece.
        first_row: the number of its first row in the file.
        rows: number of rows; None for all.
    """

    start: int
    stop: int
    skip: int = 0
    first_row: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class Scan:
    """The result of scanning a file.

    Attributes:
        schema: None if it has no rows, or for a text file, whose `columns` describe it.
        units: parts that can be read alone.
        columns: of a text file, column name -> what is known about its values; None for other formats.
        notes: parts that were left out, and surprising findings.
    """

    schema: pa.Schema | None
    units: tuple[Unit, ...]
    columns: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def cut(batches: Iterator[pa.RecordBatch], span: Span, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a span from the batches of its units, at most `batch_rows` at a time."""
    skip, left = span.skip, span.rows
    for whole in batches:
        batch = whole.slice(min(skip, whole.num_rows))
        skip -= whole.num_rows - batch.num_rows
        if left is not None:
            batch = batch.slice(0, left)
            left -= batch.num_rows
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)
        if left == 0:
            return


# -- Parquet -----------------------------------------------------------------------------------------------------------


def _parquet(file: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_READ_BYTES)


def scan_parquet(storage: Storage, path: str) -> Scan:
    """Read the footer."""
    with storage.open(path) as file:
        parquet = _parquet(file)
        groups = [parquet.metadata.row_group(n) for n in range(parquet.num_row_groups)]
        units = tuple(Unit(n, n + 1, group.num_rows, group.total_byte_size) for n, group in enumerate(groups))
        return Scan(parquet.schema_arrow, units)


def read_parquet(
    storage: Storage, path: str, span: Span, columns: Sequence[str] | None, batch_rows: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Read a span's row groups."""
    with storage.open(path) as file:
        parquet = _parquet(file)
        groups = list(range(span.start, span.stop))
        rows = sum(parquet.metadata.row_group(n).num_rows for n in groups)
        size = sum(parquet.metadata.row_group(n).total_byte_size for n in groups)
        at_once = max(1, min(batch_rows, BATCH_BYTES * max(rows, 1) // max(size, 1)))
        wanted = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
        batches = parquet.iter_batches(at_once, row_groups=groups, columns=wanted, use_threads=False)
        yield from cut(batches, span, batch_rows)


# -- Arrow IPC ---------------------------------------------------------------------------------------------------------

_FILE = b"ARROW1"


def _is_file(file: Any) -> bool:
    """Return whether this is Arrow's file format, which has random access; the other is the stream format."""
    magic = file.read(len(_FILE))
    file.seek(0)
    return bool(magic == _FILE)


def scan_arrow(storage: Storage, path: str) -> Scan:
    """Read the footer and the first column of each record batch, which gives its rows; a stream is one unit."""
    import pyarrow as pa

    with storage.open(path) as file:
        size = file.size()
        if not _is_file(file):
            stream = pa.ipc.open_stream(file)
            rows = sum(batch.num_rows for batch in stream)
            return Scan(storable(stream.schema, iter(()))[0], (Unit(0, 1, rows, size),) if rows else ())
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[0]))
        count = reader.num_record_batches
        schema = storable(pa.ipc.open_file(file).schema, iter(()))[0]
        rows_of = [reader.get_batch(n).num_rows for n in range(count)]
        return Scan(schema, tuple(Unit(n, n + 1, rows, size // count) for n, rows in enumerate(rows_of)))


def _aligned() -> Any:
    """Return options that align buffers: IPC files need not align views, but Lance requires it."""
    import pyarrow as pa

    return pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.At64Byte)


def read_arrow(
    storage: Storage, path: str, span: Span, columns: Sequence[str] | None, batch_rows: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Read a span's record batches."""
    import pyarrow as pa

    batches: Iterator[pa.RecordBatch]
    with storage.open(path) as file:
        if _is_file(file):
            reader = pa.ipc.open_file(file, options=_aligned())
            batches = (reader.get_batch(n) for n in range(span.start, span.stop))
        else:
            reader = pa.ipc.open_stream(file, options=_aligned())
            batches = iter(reader)
        batches = storable(reader.schema, batches)[1]
        yield from cut((_selected(batch, columns) for batch in batches), span, batch_rows)


def _selected(batch: pa.RecordBatch, columns: Sequence[str] | None) -> pa.RecordBatch:
    return batch if columns is None else batch.select([name for name in columns if name in batch.schema.names])


# -- Lance -------------------------------------------------------------------------------------------------------------


def lance_dataset(uri: str) -> Any:
    """Open a Lance dataset at its newest version."""
    return attempt_import_or_raise("lance", "pylance", extra="lancedb").dataset(uri)


def scan_lance(fragment: Any) -> tuple[Unit, str]:
    """Return a fragment as a unit, and a digest of its metadata."""
    facts = json.dumps(fragment.metadata.to_json(), sort_keys=True, default=str)
    size = sum(file.get("file_size_bytes") or 0 for file in json.loads(facts).get("files", []))
    number = fragment.fragment_id
    return Unit(number, number + 1, fragment.count_rows(), size), hashlib.sha256(facts.encode()).hexdigest()


def read_lance(dataset: Any, span: Span, columns: Sequence[str] | None, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Read a span of one fragment."""
    fragment = dataset.get_fragment(span.start)
    wanted = None if columns is None else list(columns)
    scan = fragment.scanner(
        columns=wanted, batch_size=batch_rows, offset=span.skip or None, limit=span.rows, batch_readahead=2
    )
    rest = Span(span.start, span.stop, 0, span.first_row, span.rows)
    yield from cut(itertools.chain(scan.to_batches()), rest, batch_rows)
