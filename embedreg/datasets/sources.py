"""Rows that can be read more than once, as a stream or in pieces, in bounded memory."""

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

from embedreg.arrow.casting import Unfit, exactly
from embedreg.core.modality import files_of
from embedreg.datasets import csv_files, formats, json_lines
from embedreg.datasets.csv_types import Column
from embedreg.datasets.formats import Input, Look, Span
from embedreg.datasets.json_types import Seen
from embedreg.datasets.places import Kind, Place, partitions_of
from embedreg.datasets.reading import Reading
from embedreg.datasets.storage import AGAIN, File, Storage
from embedreg.declaration import codec, manifest
from embedreg.errors import ConfigError, EmbedregError, InputError, SchemaError, StorageError, option
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

__all__ = ["Input", "Known", "Source", "conformed", "open_source"]

_KEY = codec.KEY.encode()
_LOOKING = 16  # files looked at side by side: an object store answers each after a while

Looker: TypeAlias = Callable[[Storage, str], Look]
Reader: TypeAlias = "Callable[[Storage, str, Span, Sequence[str] | None, int, pa.Schema], Iterator[pa.RecordBatch]]"
TextLooker: TypeAlias = Callable[[Storage, str, Reading], Look]
TextReader: TypeAlias = (
    "Callable[[Storage, str, Span, Sequence[str] | None, int, pa.Schema, Reading], Iterator[pa.RecordBatch]]"
)

_BINARY: dict[Kind, tuple[Looker, Reader]] = {
    "parquet": (formats.look_parquet, formats.read_parquet),
    "arrow": (formats.look_arrow, formats.read_arrow),
}
_TEXT: dict[Kind, tuple[TextLooker, TextReader, Any]] = {
    "jsonl": (json_lines.look_jsonl, json_lines.read_jsonl, Seen),
    "csv": (csv_files.look_csv, csv_files.read_csv, Column),
}
_AS_TEXT = Reading()


@dataclass(frozen=True)
class Known:
    """What an earlier look at a source found: its schema, its inputs by path, and how its text was read.

    `reading` is None for a plan of an embedreg that had no such options.
    """

    schema: pa.Schema
    inputs: Mapping[str, Input]
    reading: Reading | None = None

    def fits(self, reading: Reading) -> bool:
        """Return whether text read in this way is what was found."""
        return self.reading == reading or (self.reading is None and not reading.asked)


@dataclass(frozen=True)
class Source:
    """Rows that can be read more than once.

    Attributes:
        place: where they are.
        schema: their Arrow schema, metadata included.
        inputs: the files, in the order of the rows.
        version: of a Lance table.
        reading: how text files are read.
        notes: what was left out, or is not as somebody may expect.
        partitioned: whether what the folders say (`year=2024/`) are columns.
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
        """How many rows there are; None where only reading them all would tell."""
        rows = [each.rows for each in self.inputs]
        return None if None in rows else sum(filter(None, rows))

    def changed(self) -> list[str]:
        """Return the inputs that are not what they were when they were looked at; a Lance table's version stays."""
        if self.place.kind == "lance":
            return []
        if (files := _files_reader(self.place)) is not None:
            return files.changed(self.place, self.inputs)  # type: ignore[no-any-return]  # a module by name
        with ThreadPoolExecutor(_LOOKING, "embedreg-look") as pool:
            same = list(pool.map(self._is_as_it_was, self.inputs))
        return [each.path for each, kept in zip(self.inputs, same, strict=True) if not kept]

    def _is_as_it_was(self, each: Input) -> bool:
        storage = self.place.storage
        info = storage.info(each.path)
        if info.size != each.size or (each.mtime_ns is not None and info.mtime_ns != each.mtime_ns):
            return False
        return each.etag is None or storage.etag(each.path) == each.etag

    def batches(
        self, columns: list[str] | None = None, batch_rows: int = 8192, where: pc.Expression | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Read the rows from the start.

        Args:
            columns: the ones to read; all for None.
            batch_rows: the most rows of one batch.
            where: only the rows that meet this condition; for Parquet on this machine.
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
        """Return the rows as a reader, for a consumer of Arrow streams."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self.schema, self.batches(batch_rows=batch_rows))

    def read(
        self, path: str, span: Span, wanted: pa.Schema | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        """Read a part of one input.

        Args:
            wanted: the columns and their types; None for those of the whole source. What the input lacks is null.
        Raises:
            StorageError: it is corrupt, or not there any more. InputError: a column cannot be cast.
        """
        wanted = self.schema if wanted is None else wanted
        folders = partitions_of(path) if self.partitioned else {}
        known = frozenset(self.schema.names)
        names = [name for name in wanted.names if name in known]
        row = span.first_row
        with _readable(self.place, path):
            for batch in self._raw(path, span, names, batch_rows):
                if self.place.kind not in _TEXT:
                    _refuse_invalid(batch, self.place.storage.shown(path), row)
                row += batch.num_rows
                for name in names:
                    if name in folders:
                        batch = _with_partition(batch, name, folders[name], wanted.field(name).type)
                yield conformed(batch, wanted, path)

    def with_partitions(self) -> Source:
        """Return the source with what its folders say (`year=2024/`) as columns, for a destination without folders."""
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
        """Return the schema metadata of one input, with the source's declarations where it has none of its own.

        The inputs of one source may say different things.
        """
        of_all = self.schema.metadata or {}
        if self.place.kind not in _BINARY:
            return of_all
        look = _BINARY[self.place.kind][0]
        with _readable(self.place, path):
            schema = look(self.place.storage, path).schema
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
                data = ds.dataset(files, schema=self.schema, format="parquet", filesystem=self.place.storage.fs)
                # Arrow's own read-ahead (16 batches of 4 files) is for speed; ours is for bounded memory.
                scan = data.scanner(
                    columns=columns, filter=where, batch_size=batch_rows, batch_readahead=2, fragment_readahead=1
                )
                yield from scan.to_batches()
            except pa.ArrowNotImplementedError as exc:
                hint = "compare texts with 'texts' and numbers with numbers; embedreg inspect shows the types"
                raise InputError(f"--where cannot be computed: {exc}.", hint) from exc


def open_source(place: Place, known: Known | None = None, reading: Reading = _AS_TEXT) -> Source:
    """Look at the data: its schema, and how it can be divided.

    Args:
        known: what an earlier look found; of what has not changed since, nothing is read again.
        reading: how text files are read.
    Raises:
        StorageError: it is corrupt, empty, or not what its name says. SchemaError: its files do not agree on a type.
        ConfigError: options for text files, and there are none.
    """
    if reading.asked and place.kind not in _TEXT:
        raise ConfigError(f"{place} is {place.kind}, and {reading.asked[0]} is for text files.", "leave it out")
    if place.kind == "lance":
        return _open_lance(place)
    if (files := _files_reader(place)) is not None:
        return Source(place, files.schema(), files.inputs(place), notes=place.notes)
    if known is not None and place.kind in _TEXT and not known.fits(reading):
        known = None
    before = dict(known.inputs) if known is not None else {}

    def look(file: File) -> tuple[Input, Look | None]:
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
        looked = [look(place.files[0])]
    else:
        with ThreadPoolExecutor(_LOOKING, "embedreg-look") as pool:
            looked = list(pool.map(look, place.files))
    looks = [(each.path, found) for each, found in looked if found is not None]
    if place.kind in _TEXT:
        schema, notes = _typed(place, known, looks, reading)
    else:
        schemas = [] if known is None else [(place.text, known.schema)]
        schemas += [(path, found.schema) for path, found in looks if found.schema is not None]
        schema = _unified(schemas) if schemas else None
        notes = []
    if schema is None:
        what = "is no readable csv: it is empty" if place.kind == "csv" else "is empty"
        if any(unit.rows for _, found in looks for unit in found.units):
            what = "has rows, and no field in any of them"
        raise StorageError(f"{place} {what}.", "write one object {...} per line" if place.kind == "jsonl" else _HEADER)
    reading.refuse_unknown(schema.names, str(place))
    notes += _alike(place, looks, reading)
    inputs = tuple(each for each, _ in looked)
    return Source(place, _with_manifest(place, schema), inputs, None, reading, (*place.notes, *notes))


def _files_reader(place: Place) -> Any:
    """Return the module that makes rows of the files of a modality; None for data."""
    files = files_of(place.kind)
    return None if files is None else import_module(files.reader)


_HEADER = "its first line names the columns: id,text"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_SHOWN_NOTES = 8


def _typed(
    place: Place, known: Known | None, looks: Sequence[tuple[str, Look]], reading: Reading
) -> tuple[pa.Schema | None, list[str]]:
    """Return the columns of all text files, each of a type that keeps every value of every file, and the notes."""
    import pyarrow as pa

    evidence = _TEXT[place.kind][2]
    columns = {} if known is None else {item.name: evidence.of(item.type) for item in known.schema}
    for _, found in looks:
        for name, column in (found.columns or {}).items():
            columns[name] = columns[name].merged(column) if name in columns else column
    if not columns:
        return None, []
    made, stays = [], []
    for name, column in columns.items():
        declared = reading.type_of(name)
        if declared is None:
            kind = column.type() if place.kind == "csv" else column.type(name)
            found_notes = [column.note(name)] if place.kind == "csv" else column.notes(name)
            stays += [note for note in found_notes if note is not None]
        made.append(pa.field(name, kind if declared is None else declared))
    notes = [note for _, found in looks for note in found.notes]
    notes += stays[:_SHOWN_NOTES]
    if more := len(stays) - _SHOWN_NOTES:
        notes += [f"{more:,} more columns stay text"] if more > 0 else []
    if stays:
        notes.append(
            option("--types COLUMN=int (or float, date, ...) reads a column as such", "types={'COLUMN': 'int'}")
        )
    metadata_ = None if known is None else known.schema.metadata
    return pa.schema(made, metadata=metadata_), notes


def _alike(place: Place, looks: Sequence[tuple[str, Look]], reading: Reading) -> list[str]:
    """Name the columns whose names differ in the case of letters only, from file to file.

    Raises:
        SchemaError: one of them is embedded: rows of the other files would get no vector.
    """
    files: dict[str, int] = {}
    for _, found in looks:
        for name in found.columns if found.columns is not None else found.schema.names if found.schema else ():
            files[name] = files.get(name, 0) + 1
    groups: dict[str, list[str]] = {}
    for name in files:
        groups.setdefault(name.casefold(), []).append(name)
    notes = []
    for names in groups.values():
        if len(names) == 1:
            continue
        counted = ", ".join(f"{name!r} in {files[name]:,} file(s)" for name in names)
        if set(names) & set(reading.sources) and any(files[name] < len(looks) for name in names):
            raise SchemaError(
                f"{place} has columns that differ in capital letters only: {counted}.",
                "give them one name; else the rows of some files would get no vector",
            )
        notes.append(f"columns differ in capital letters only: {counted}; each is null where a file lacks it")
    filled = sum(1 for _, found in looks if found.columns or (found.columns is None and found.schema))
    for name in reading.sources:
        if name in files and (lacking := filled - files[name]):
            notes.append(f"{lacking:,} file(s) have no column {name!r}: their rows get no vector")
    return notes


def _with_partition(batch: pa.RecordBatch, name: str, value: str | None, kind: pa.DataType) -> pa.RecordBatch:
    """Return a batch with what its folder says; what the file itself has of that name stays.

    Raises:
        SchemaError: the file has nulls there, and the folder says what is none of the column's values.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = batch.schema.get_field_index(name)
    own = None if found < 0 else exactly(batch.column(found), kind, rounds=False)
    if own is not None and not own.null_count:
        return batch.set_column(found, name, own)
    try:
        said = pa.repeat(pa.scalar(value, pa.string()).cast(kind), batch.num_rows)
    except pa.ArrowException:
        raise SchemaError(
            f"a folder is called {plain(f'{name}={value}', 80)!r}, and column {plain(name, 80)!r} is {kind}.",
            "rename the folder, or the column in its files",
        ) from None
    if own is None:
        return batch.append_column(name, said)
    return batch.set_column(found, name, pc.coalesce(own, said))


def _refuse_invalid(batch: pa.RecordBatch, where: str, first_row: int) -> None:
    """Refuse texts that are not UTF-8, which no reader of the output could read.

    Raises:
        StorageError: naming file, column and row.
    """
    import pyarrow as pa

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not _has_text(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as exc:
            low, high = 0, len(column)
            while high - low > 1:  # the first row that is not valid by itself
                middle = (low + high) // 2
                try:
                    # a copy: what Arrow validates of a slice may be more than its rows
                    column.slice(low, middle - low).take(pa.array(range(middle - low))).validate(full=True)
                    low = middle
                except pa.ArrowInvalid:
                    high = middle
            raise StorageError(
                f"{where}, row {first_row + low}: column {name!r} holds bytes that are not valid UTF-8.",
                "write the file again, or read the column as binary and decode it",
            ) from exc


def _has_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_has_text(kind.field(number).type) for number in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _with_manifest(place: Place, schema: pa.Schema) -> pa.Schema:
    """Return a schema with the declarations of the dataset's manifest, where the files themselves have lost theirs."""
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
        unit, digest = formats.look_lance(fragment)
        inputs.append(Input(f"fragment-{unit.start:010}", unit.size, None, digest, (unit,)))
    return Source(place, data.schema, tuple(inputs), data.version, notes=place.notes)


def _lance(place: Place, version: int | None) -> Any:
    place.storage.refuse_for_lance()
    with _readable(place, place.text):
        data = formats.lance_dataset(place.text)
        return data if version is None else data.checkout_version(version)


def _unified(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """Return the schema of all: the columns of every file, of the widest of their types."""
    import pyarrow as pa

    name, made = schemas[0]
    for other, schema in schemas[1:]:
        if schema.equals(made):
            continue
        try:
            made = pa.unify_schemas([made, schema], promote_options="permissive").with_metadata(made.metadata)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
            raise SchemaError(
                f"{other} does not fit {name}: {str(exc).splitlines()[0]}.", "give a column one type in all files"
            ) from exc
    return made


def conformed(batch: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
    """Return a batch with the columns of a schema: those that it lacks are null, others are cast."""
    import pyarrow as pa

    if batch.schema.equals(schema):
        return batch
    columns = []
    for item in schema:
        found = batch.schema.get_field_index(item.name)
        if found < 0:
            columns.append(pa.nulls(batch.num_rows, item.type))
            continue
        column = batch.column(found)
        try:
            columns.append(exactly(column, item.type, rounds=False))
        except Unfit as exc:
            raise InputError(
                f"{path}: column {item.name!r} is {column.type} where others are {item.type}: {exc.why}.",
                "cast it first",
            ) from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@contextlib.contextmanager
def _readable(place: Place, path: str) -> Iterator[None]:
    """Turn what a corrupt or vanished file raises into one `StorageError` that names it."""
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
            f"{where} is no readable {place.kind}: {first}.", "write it again, or check that the copy is complete"
        ) from exc
