"""`Source`: rows that can be read more than once, as a stream or in pieces, in bounded memory."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

from embedreg.core.modality import files_of
from embedreg.datasets import csv_files, formats, json_lines
from embedreg.datasets.formats import Input, Scan, Span
from embedreg.datasets.places import Kind, Place, partitions_of
from embedreg.datasets.reading import Reading
from embedreg.datasets.schemas import conformed, refuse_invalid, similar_names, text_schema, unified, with_partition
from embedreg.datasets.storage import AGAIN, File, Storage
from embedreg.declaration import codec, manifest
from embedreg.errors import ConfigError, EmbedregError, InputError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

__all__ = ["Input", "Known", "Source", "open_source"]

_KEY = codec.KEY.encode()
_SCAN_THREADS = 16  # scans at a time: each request to an object store has latency

Scanner: TypeAlias = Callable[[Storage, str], Scan]
Reader: TypeAlias = "Callable[[Storage, str, Span, Sequence[str] | None, int, pa.Schema], Iterator[pa.RecordBatch]]"
TextScanner: TypeAlias = Callable[[Storage, str, Reading], Scan]
TextReader: TypeAlias = (
    "Callable[[Storage, str, Span, Sequence[str] | None, int, pa.Schema, Reading], Iterator[pa.RecordBatch]]"
)

_BINARY: dict[Kind, tuple[Scanner, Reader]] = {
    "parquet": (formats.scan_parquet, formats.read_parquet),
    "arrow": (formats.scan_arrow, formats.read_arrow),
}
_TEXT: dict[Kind, tuple[TextScanner, TextReader]] = {
    "jsonl": (json_lines.scan_jsonl, json_lines.read_jsonl),
    "csv": (csv_files.scan_csv, csv_files.read_csv),
}
_AS_TEXT = Reading()
_HEADER = "the first line must name the columns: id,text"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Known:
    """The result of an earlier scan of a source: its schema, its inputs by path, and how its text was read.

    `reading` is None for a plan of an earlier version, which had no such options.
    """

    schema: pa.Schema
    inputs: Mapping[str, Input]
    reading: Reading | None = None

    def fits(self, reading: Reading) -> bool:
        """Return whether the scan used the same options for text."""
        return self.reading == reading or (self.reading is None and not reading.asked)


@dataclass(frozen=True)
class Source:
    """Rows that can be read more than once.

    Attributes:
        place: their location.
        schema: their Arrow schema, metadata included.
        inputs: the files, in the order of the rows.
        version: of a Lance table.
        reading: how text files are read.
        notes: parts that were left out, and surprising findings.
        partitioned: whether the names of folders (`year=2024/`) are columns.
    """

    place: Place
    schema: pa.Schema
    inputs: tuple[Input, ...] = ()
    version: int | None = None
    reading: Reading = _AS_TEXT
    notes: tuple[str, ...] = ()
    partitioned: bool = False

    @property
    def rows(self) -> int | None:
        """The number of rows; None if it is known only after reading them all."""
        rows = [each.rows for each in self.inputs]
        return None if None in rows else sum(filter(None, rows))

    def changed(self) -> list[str]:
        """Return the inputs that have changed since they were scanned; a version of a Lance table never does."""
        if self.place.kind == "lance":
            return []
        if (files := _files_reader(self.place)) is not None:
            return files.changed(self.place, self.inputs)  # type: ignore[no-any-return]  # a module by name
        with ThreadPoolExecutor(_SCAN_THREADS, "embedreg-scan") as pool:
            same = list(pool.map(self._is_unchanged, self.inputs))
        return [each.path for each, kept in zip(self.inputs, same, strict=True) if not kept]

    def _is_unchanged(self, each: Input) -> bool:
        storage = self.place.storage
        info = storage.info(each.path)
        if info.size != each.size or (each.mtime_ns is not None and info.mtime_ns != each.mtime_ns):
            return False
        return each.etag is None or storage.etag(each.path) == each.etag

    def batches(
        self, columns: list[str] | None = None, batch_rows: int = 8192, where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows from the start.

        Args:
            columns: the columns to read; None for all.
            batch_rows: the most rows of one batch.
            where: only the rows that meet this condition; for Parquet and Arrow files on this machine.
        Raises:
            StorageError: the data is corrupt.
        """
        if where is not None:
            yield from self._filtered(columns, batch_rows, where)
            return
        import pyarrow as pa

        wanted = None if columns is None else pa.schema([self.schema.field(name) for name in columns])
        for each in self.inputs:
            if each.units:
                yield from self.read(each.path, Span(each.units[0].start, each.units[-1].stop), wanted, batch_rows)

    def reader(self, batch_rows: int = 8192) -> pa.RecordBatchReader:
        """Return the rows as an Arrow stream."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self.schema, self.batches(batch_rows=batch_rows))

    def read(
        self, path: str, span: Span, wanted: pa.Schema | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a part of one input.

        Args:
            wanted: the columns and their types; None for those of the source. Columns that the input lacks are null.
        Raises:
            StorageError: it is corrupt or no longer exists. InputError: a column cannot be cast.
        """
        wanted = self.schema if wanted is None else wanted
        folders = partitions_of(path) if self.partitioned else {}
        known = frozenset(self.schema.names)
        names = [name for name in wanted.names if name in known]
        row = span.first_row
        with _readable(self.place, path):
            for batch in self._raw(path, span, names, batch_rows):
                if self.place.kind not in _TEXT:
                    refuse_invalid(batch, self.place.storage.shown(path), row)
                row += batch.num_rows
                for name in names:
                    if name in folders:
                        batch = with_partition(batch, name, folders[name], wanted.field(name).type)
                yield conformed(batch, wanted, path)

    def with_partitions(self) -> Source:
        """Return the source with its partition folders (`year=2024/`) as columns, for a destination without folders."""
        found: dict[str, set[str | None]] = {}
        for each in self.inputs:
            for name, value in partitions_of(each.path).items():
                found.setdefault(name, set()).add(value)
        import pyarrow as pa

        schema = self.schema
        for name, values in found.items():
            if name not in schema.names:
                whole = all(value is None or _INTEGER.fullmatch(value) for value in values)
                schema = schema.append(pa.field(name, pa.int64() if whole else pa.string()))
        return dataclasses.replace(self, schema=schema, partitioned=True)

    def metadata(self, path: str) -> Mapping[bytes, bytes]:
        """Return the schema metadata of one input, with the source's declarations if it has none of its own.

        The inputs of one source may carry different metadata.
        """
        of_all = self.schema.metadata or {}
        if self.place.kind not in _BINARY:
            return of_all
        scan = _BINARY[self.place.kind][0]
        with _readable(self.place, path):
            schema = scan(self.place.storage, path).schema
        own = {} if schema is None else schema.metadata or {}
        return {**{key: value for key, value in of_all.items() if key == _KEY}, **own}

    def _raw(self, path: str, span: Span, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        if self.place.kind == "lance":
            return formats.read_lance(self._dataset, span, columns, batch_rows)
        if (files := _files_reader(self.place)) is not None:
            return files.read(self.place, path, span, columns, batch_rows)  # type: ignore[no-any-return]  # as above
        if self.place.kind in _TEXT:
            read = _TEXT[self.place.kind][1]
            return read(self.place.storage, path, span, columns, batch_rows, self.schema, self.reading)
        return _BINARY[self.place.kind][1](self.place.storage, path, span, columns, batch_rows, self.schema)

    @functools.cached_property
    def _dataset(self) -> Any:
        return _lance(self.place, self.version)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_dataset"}

    def _filtered(self, columns: list[str] | None, batch_rows: int, where: pc.Expression) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import pyarrow.dataset as ds

        files = [self.place.storage.full(each.path) for each in self.inputs]
        with _readable(self.place, self.place.text):
            try:
                if self.place.kind == "arrow":  # Arrow's own reader does not take the stream format
                    rows = self.batches(None, batch_rows)
                    yield from ds.Scanner.from_batches(
                        rows, schema=self.schema, columns=columns, filter=where
                    ).to_batches()
                    return
                data = ds.dataset(files, schema=self.schema, format="parquet", filesystem=self.place.storage.fs)
                # Arrow's default read-ahead (16 batches of 4 files) uses too much memory.
                scan = data.scanner(
                    columns=columns, filter=where, batch_size=batch_rows, batch_readahead=2, fragment_readahead=1
                )
                yield from scan.to_batches()
            except pa.ArrowNotImplementedError as exc:  # Arrow has no kernel that compares these two types
                hint = "compare strings with 'strings' and numbers with numbers; embedreg inspect shows the types"
                raise InputError(f"--where cannot be computed: {exc}.", hint) from exc


def open_source(place: Place, known: Known | None = None, reading: Reading = _AS_TEXT) -> Source:
    """Scan the data for its schema and its units.

    Args:
        known: the result of an earlier scan; inputs that have not changed since are not scanned again.
        reading: how text files are read.
    Raises:
        StorageError: it is corrupt, empty, or not of the kind that its name implies. SchemaError: its files have
            incompatible types. ConfigError: options for text files, and there are none.
    """
    if reading.asked and place.kind not in _TEXT:
        raise ConfigError(f"{place} is {place.kind}, but {reading.asked[0]} is for text files.", "leave it out")
    if place.kind == "lance":
        return _open_lance(place)
    if (files := _files_reader(place)) is not None:
        return Source(place, files.schema(), files.inputs(place), notes=place.notes)
    if known is not None and place.kind in _TEXT and not known.fits(reading):
        known = None
    before = dict(known.inputs) if known is not None else {}

    def scan(file: File) -> tuple[Input, Scan | None]:
        old = before.get(file.path)
        if old is not None and (old.size, old.mtime_ns) == (file.size, file.mtime_ns):
            return old, None
        with _readable(place, file.path):
            etag = place.storage.etag(file.path)
            if place.kind in _TEXT:
                found = _TEXT[place.kind][0](place.storage, file.path, reading)
            else:
                found = _BINARY[place.kind][0](place.storage, file.path)
        return Input(file.path, file.size, file.mtime_ns, etag, found.units), found

    if len(place.files) == 1:
        scanned = [scan(place.files[0])]
    else:
        with ThreadPoolExecutor(_SCAN_THREADS, "embedreg-scan") as pool:
            scanned = list(pool.map(scan, place.files))
    scans = [(each.path, found) for each, found in scanned if found is not None]
    if place.kind in _TEXT:
        schema, notes = text_schema(place.kind, None if known is None else known.schema, scans, reading)
    else:
        schemas = [] if known is None else [(place.text, known.schema)]
        schemas += [(path, found.schema) for path, found in scans if found.schema is not None]
        schema = unified(schemas) if schemas else None
        notes = []
    if schema is None:
        what = "cannot be read as csv: it is empty" if place.kind == "csv" else "is empty"
        if any(unit.rows for _, found in scans for unit in found.units):
            what = "has rows, but no field in any of them"
        raise StorageError(f"{place} {what}.", "write one object {...} per line" if place.kind == "jsonl" else _HEADER)
    reading.refuse_unknown(schema.names, str(place))
    notes += similar_names(str(place), scans, reading)
    inputs = tuple(each for each, _ in scanned)
    return Source(place, _with_manifest(place, schema), inputs, None, reading, (*place.notes, *notes))


def _files_reader(place: Place) -> Any:
    """Return the module that reads the files of a modality as rows; None for data."""
    files = files_of(place.kind)
    return None if files is None else import_module(files.reader)


def _with_manifest(place: Place, schema: pa.Schema) -> pa.Schema:
    """Return a schema with the declarations of the dataset's manifest, if the files themselves have none."""
    if _KEY in (schema.metadata or {}) or not place.whole:
        return schema
    data = place.storage.read(manifest.NAME)
    if data is None:
        return schema
    return schema.with_metadata({**(schema.metadata or {}), _KEY: manifest.declaration(data)})


def _open_lance(place: Place) -> Source:
    data = _lance(place, None)
    inputs = []
    for fragment in data.get_fragments():
        unit, digest = formats.scan_lance(fragment)
        inputs.append(Input(f"fragment-{unit.start:010}", unit.size, None, digest, (unit,)))
    return Source(place, data.schema, tuple(inputs), data.version, notes=place.notes)


def _lance(place: Place, version: int | None) -> Any:
    place.storage.refuse_for_lance()
    with _readable(place, place.text):
        data = formats.lance_dataset(place.text)
        return data if version is None else data.checkout_version(version)


@contextlib.contextmanager
def _readable(place: Place, path: str) -> Iterator[None]:
    """Convert the errors of a corrupt or missing file into one `StorageError` that names it."""
    import pyarrow as pa

    try:
        yield
    except EmbedregError:
        raise
    except (pa.ArrowException, OSError, ValueError) as exc:
        where = path if path == place.text else place.storage.shown(path)
        first = str(exc).splitlines()[0].rstrip(".") if str(exc) else type(exc).__name__
        if isinstance(exc, OSError) and (exc.strerror or place.storage.local is None):
            hint = "check the path and its permissions" if exc.strerror else f"{AGAIN}, once it can be reached"
            raise StorageError(f"{where} cannot be read: {exc.strerror or first}.", hint) from exc
        raise StorageError(
            f"{where} cannot be read as {place.kind}: {first}.", "write it again, or check that the copy is complete"
        ) from exc
