"""Rows that can be read more than once, as a stream or in pieces, in bounded memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from embedreg import manifest, metadata
from embedreg.errors import EmbedregError, InputError, SchemaError, StorageError
from embedreg.jobs import formats, texts
from embedreg.jobs.formats import Look, Span, Unit
from embedreg.jobs.places import Kind, Place
from embedreg.jobs.storage import AGAIN, File, Storage

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.compute as pc

__all__ = ["Input", "Known", "Source", "conformed", "open_source"]

_KEY = metadata.KEY.encode()
_LOOKING = 16  # files looked at side by side: an object store answers each after a while

Looker: TypeAlias = Callable[[Storage, str], Look]
Reader: TypeAlias = "Callable[[Storage, str, Span, Sequence[str] | None, int, pa.Schema], Iterator[pa.RecordBatch]]"

_FORMATS: dict[Kind, tuple[Looker, Reader]] = {
    "parquet": (formats.look_parquet, formats.read_parquet),
    "arrow": (formats.look_arrow, formats.read_arrow),
    "jsonl": (texts.look_jsonl, texts.read_jsonl),
    "csv": (texts.look_csv, texts.read_csv),
}


@dataclass(frozen=True)
class Input:
    """A file of a source, or a fragment of a Lance table, as it was when it was looked at.

    Attributes:
        path: relative to the source.
        size: in bytes.
        mtime_ns: when it was written, where that is known.
        etag: what an object store calls this content, or a digest of what a fragment is made of.
        units: what can be read by itself.
    """

    path: str
    size: int
    mtime_ns: int | None
    etag: str | None
    units: tuple[Unit, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> int | None:
        """How many rows it has, where that is known without reading them."""
        rows = [unit.rows for unit in self.units]
        return None if None in rows else sum(filter(None, rows))

    def same(self, other: Input) -> bool:
        """Say whether this is the content that another look has seen."""
        if self.path != other.path or self.size != other.size:
            return False
        if self.etag is not None and other.etag is not None:
            return self.etag == other.etag
        return self.mtime_ns == other.mtime_ns


@dataclass(frozen=True)
class Known:
    """What an earlier look at a source found: its schema, and its inputs by path."""

    schema: pa.Schema
    inputs: Mapping[str, Input]


@dataclass(frozen=True)
class Source:
    """Rows that can be read more than once.

    Attributes:
        place: where they are.
        schema: their Arrow schema, metadata included.
        inputs: the files, in the order of the rows.
        version: of a Lance table.
    """

    place: Place
    schema: pa.Schema
    inputs: tuple[Input, ...] = ()
    version: int | None = None

    @property
    def rows(self) -> int | None:
        """How many rows there are; None where only reading them all would tell."""
        rows = [each.rows for each in self.inputs]
        return None if None in rows else sum(filter(None, rows))

    def changed(self) -> list[str]:
        """Return the inputs that are not what they were when they were looked at; a Lance table's version stays."""
        if self.place.kind == "lance":
            return []
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
        names = [name for name in wanted.names if name in self.schema.names]
        with _readable(self.place, path):
            for batch in self._raw(path, span, names, batch_rows):
                yield conformed(batch, wanted, path)

    def metadata(self, path: str) -> Mapping[bytes, bytes]:
        """Return the schema metadata of one input, with the source's declarations where it has none of its own.

        The inputs of one source may say different things.
        """
        of_all = self.schema.metadata or {}
        look = _FORMATS[self.place.kind][0] if self.place.kind in ("parquet", "arrow") else None
        if look is None:
            return of_all
        with _readable(self.place, path):
            schema = look(self.place.storage, path).schema
        own = {} if schema is None else schema.metadata or {}
        return {**{key: value for key, value in of_all.items() if key == _KEY}, **own}

    def _raw(self, path: str, span: Span, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        if self.place.kind == "lance":
            return formats.read_lance(self._dataset, span, columns, batch_rows)
        read = _FORMATS[self.place.kind][1]
        return read(self.place.storage, path, span, columns, batch_rows, self.schema)

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


def open_source(place: Place, known: Known | None = None) -> Source:
    """Look at the data: its schema, and how it can be divided.

    Args:
        known: what an earlier look found; of what has not changed since, nothing is read again.
    Raises:
        StorageError: it is corrupt, empty, or not what its name says. SchemaError: its files do not agree on a type.
    """
    if place.kind == "lance":
        return _open_lance(place)
    before = dict(known.inputs) if known is not None else {}

    def look(file: File) -> tuple[Input, pa.Schema | None]:
        old = before.get(file.path)
        if old is not None and (old.size, old.mtime_ns) == (file.size, file.mtime_ns):
            return old, None
        with _readable(place, file.path):
            etag = place.storage.etag(file.path)
            found = _FORMATS[place.kind][0](place.storage, file.path)
        return Input(file.path, file.size, file.mtime_ns, etag, found.units), found.schema

    if len(place.files) == 1:
        looked = [look(place.files[0])]
    else:
        with ThreadPoolExecutor(_LOOKING, "embedreg-look") as pool:
            looked = list(pool.map(look, place.files))
    schemas = [] if known is None else [(place.text, known.schema)]
    schemas += [(each.path, schema) for each, schema in looked if schema is not None]
    if not schemas:
        raise StorageError(f"{place} is empty.", "write one object {...} per line")
    return Source(place, _with_manifest(place, _unified(schemas)), tuple(each for each, _ in looked))


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
    return Source(place, data.schema, tuple(inputs), data.version)


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
            columns.append(column if column.type == item.type else column.cast(item.type))
        except pa.ArrowException as exc:
            raise InputError(
                f"{path}: column {item.name!r} is {column.type} where others are {item.type}: {exc}.", "cast it first"
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
