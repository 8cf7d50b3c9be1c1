"""LanceDB tables: made, opened and filled, where its own `create_table`, `open_table` and `add` fall short.

Functions inside lancedb's own schemas, tables and searches need none of this: see `adapter`.

Over 400 lines: each call for the synchronous and the asynchronous client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from embedreg.arrow.quantized import Quantizer, Ranges
from embedreg.core import canonical
from embedreg.core.lancedb_hooks import unwrap
from embedreg.declaration import codec, drift
from embedreg.declaration.fingerprint import fingerprint
from embedreg.declaration.quantization import quantizer_of, refuse_in_lance
from embedreg.embedding import schema as schemas
from embedreg.embedding import table as tables
from embedreg.embedding.column import ZeroVectors
from embedreg.engines.lancedb.adapter import offer_stored
from embedreg.engines.lancedb.ranges import agreed
from embedreg.errors import ConfigError, EmbedregError, InputError, SchemaError, StorageError
from embedreg.support.display import first_line, plain
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.core.base import EmbeddingFunctionConfig

__all__ = ["aadd", "add", "create_table", "open_table"]

log = logging.getLogger("embedreg")


def create_table(db: Any, name: str, schema: Any, *, mode: str = "create") -> Any:
    """Create an empty table for a schema.

    Args:
        db: a `lancedb.connect(...)` connection.
        name: of the table.
        schema: an embedreg Schema, a LanceModel, or an Arrow schema with declarations.
        mode: "create", "overwrite" or "exist_ok". The last opens a table that exists if it has these columns and
            functions, whatever has been recorded of its vectors since and whichever version of embedreg did it.
    Raises:
        ConfigError: another mode. StorageError: lancedb could not write it, or it exists.
        SchemaError: there are no columns in what was passed, or a table that exists has others, or other functions.
    """
    if mode not in ("create", "overwrite", "exist_ok"):
        raise ConfigError(f"unknown mode {mode!r}.", "mode='create', 'overwrite' or 'exist_ok'")
    _refuse_async(db, "await db.create_table(name, schema=YourSchema.to_arrow_schema())")
    declared, configs = schemas.resolve(schema)
    for config in configs:
        refuse_in_lance(config.value_type, config.vector_column)
    if declared is None:
        raise SchemaError(
            "a list of declarations has no columns.", "pass a Schema class, or add(table, data) to a table"
        )
    if configs:
        declared = declared.with_metadata(
            {**(declared.metadata or {}), codec.KEY.encode(): codec.encode(configs, written=False)}
        )
    if mode not in ("create", "overwrite", "exist_ok"):
        raise ConfigError(f"unknown mode {mode!r}; expected 'create', 'overwrite' or 'exist_ok'.", "mode='exist_ok'")
    arguments = {"exist_ok": True} if mode == "exist_ok" else {"mode": mode}
    try:
        return db.create_table(name, schema=declared, **arguments)
    except (OSError, RuntimeError, ValueError) as exc:
        if mode == "exist_ok" and (table := _existing(db, name)) is not None:
            # lancedb compares the metadata byte for byte, where the probe and versions are recorded too
            _refuse_other(name, table.schema, declared, configs)
            return table
        hint = "check the folder's permissions and the space on its disk"
        if "exists" in str(exc):  # lancedb raises a plain ValueError or OSError for it
            hint = f"open_table(db, {name!r}) opens it; mode='overwrite' replaces it"
        raise StorageError(f"table {name!r} could not be created: {first_line(exc)}", hint) from exc


def _existing(db: Any, name: str) -> Any:
    try:
        db.open_table(name)
    except (OSError, RuntimeError, ValueError):
        return None
    return open_table(db, name)


def _refuse_other(name: str, there: pa.Schema, declared: pa.Schema, configs: list[EmbeddingFunctionConfig]) -> None:
    """Refuse a table that exists with other columns or functions than are declared.

    Raises:
        SchemaError: naming what differs. MetadataError: what the table declares cannot be read.
    """
    theirs, ours = ({item.name: _described(item) for item in schema} for schema in (there, declared))
    differ = [
        f"column {plain(column)!r} is {theirs.get(column, 'not there')}, declared {ours.get(column, 'not at all')}"
        for column in theirs | ours
        if theirs.get(column) != ours.get(column)
    ]
    stored = {entry.vector_column: entry for entry in codec.entries(there.metadata)}
    wanted = {config.vector_column: config for config in configs}
    for column in stored | wanted:
        config, entry = wanted.get(column), stored.get(column)
        if config is None or entry is None:
            differ.append(f"column {plain(column)!r} has a function in {'the table' if entry else 'the schema'} only")
        elif config.source_column != entry.source_column:
            differ.append(f"column {plain(column)!r} is made from {plain(entry.source_column)!r} in the table")
        elif config.template != entry.reserved.get("template"):
            differ.append(f"column {plain(column)!r} is rendered from another template in the table")
        elif not codec.says_same(config, entry) and (
            entry.reserved.get("fingerprint") != fingerprint(unwrap(config.function))
        ):
            function = canonical.persisted_name(unwrap(config.function))
            differ.append(
                f"column {plain(column)!r} is declared with {plain(entry.name or '')!r} in the table, with "
                f"{function!r} in the schema, or with another configuration of it"
            )
    if differ:
        raise SchemaError(
            f"table {name!r} exists and differs: {'; '.join(differ)}.",
            f"open_table(db, {name!r}) opens it as it is; mode='overwrite' replaces it",
        )


def _described(item: pa.Field) -> str:
    return f"{item.type}{'' if item.nullable else ' not null'}"


def open_table(db: Any, name: str) -> Any:
    """Open a table whose declarations either client wrote.

    LanceDB's Python client reads no column names but its own spelling of them, so that is written beside the JavaScript
    client's, once: that client adds rows by its own spelling only (tried with its 0.37). The data is not touched.

    Args:
        db: a `lancedb.connect(...)` connection.
        name: of the table.
    Raises:
        StorageError: there is no such table, or its metadata cannot be rewritten. MetadataError: it cannot be read.
    """
    _refuse_async(db, "open it with lancedb.connect(...) once; its metadata is then right for both")
    try:
        table = db.open_table(name)
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(
            f"table {name!r} could not be opened: {first_line(exc)}", "list(db.list_tables().tables)"
        ) from exc
    found = codec.entries(table.schema.metadata)
    offer_stored(found)
    spelled = [json.loads(entry.raw) for entry in found]
    if not all({"source_column", "vector_column"} <= keys.keys() for keys in spelled):
        items = [
            {**keys, "source_column": entry.source_column, "vector_column": entry.vector_column}
            for keys, entry in zip(spelled, found, strict=True)
        ]
        try:
            _write_metadata(table, json.dumps(items, indent=2))
        except (OSError, RuntimeError, ValueError) as exc:
            raise StorageError(
                f"the metadata of table {name!r} could not be rewritten: {first_line(exc)}",
                "open it once where it can be written",
            ) from exc
    return table


def add(
    table: Any,
    data: Any,
    *,
    on_error: tables.OnError = "null",
    zero_vectors: ZeroVectors | None = None,
    report: tables.Report | None = None,
    progress: tables.Progress | None = None,
    max_bad_rows: int | None = None,
    batch_rows: int = tables.BATCH_ROWS,
) -> Any:
    """Embed data and append it to a table in one commit: all of it or, when anything fails, nothing.

    Unlike `table.add`, rows whose input is null or blank get a null vector, partly null vector columns are filled, each
    distinct text is embedded once, and errors come out as they were raised.

    Args:
        table: a lancedb table with declared functions.
        data, on_error, zero_vectors, report, progress, max_bad_rows, batch_rows: as `embedreg.embed_batches`.
    Returns:
        What `table.add` does.
    Raises:
        SchemaError: the table declares no function. StorageError: lancedb could not write.
        EmbedregError: whatever embedding raises.
    """
    _refuse_async(table, "await embedreg.engines.lancedb.aadd(table, data)")
    schema = _newest_schema(table)
    offer_stored(_declared(schema, table.name))
    report = report if report is not None else tables.Report()
    before = report.embedded

    def agree(learnt: Mapping[str, Ranges]) -> Mapping[str, Ranges]:
        made = agreed(lambda: _newest_dataset(table), table.name, learnt)
        table.checkout_latest()
        return made

    reader = tables.embed_agreed(
        data,
        schema,
        agree,
        on_error=on_error,
        zero_vectors=zero_vectors,
        report=report,
        progress=progress,
        max_bad_rows=max_bad_rows,
        batch_rows=batch_rows,
    )
    kept = _Remembered(reader)
    with _translated(kept):
        result = table.add(kept.reader(), on_bad_vectors="null")
    if report.embedded > before:
        with _unrecorded():
            if (text := _recorded(table.schema)) is not None:
                _write_metadata(table, text)
    return result


async def aadd(
    table: Any,
    data: Any,
    *,
    on_error: tables.OnError = "null",
    zero_vectors: ZeroVectors | None = None,
    report: tables.Report | None = None,
    progress: tables.Progress | None = None,
    max_bad_rows: int | None = None,
    batch_rows: int = tables.BATCH_ROWS,
) -> Any:
    """Embed data and append it to a table of the asynchronous client, as `add` does; the event loop is never blocked.

    Models are loaded and run in other threads, where `progress` is called too.

    Args:
        table: a table of `lancedb.connect_async(...)`.
        data, on_error, zero_vectors, report, progress, max_bad_rows, batch_rows: as `add`.
    Raises:
        As `add`.
    """
    schema = await table.schema()
    learns = any(each is not None and not each.known for each in map(_quantizer, codec.entries(schema.metadata)))
    dataset = await _dataset_of(table) if learns else None
    report = report if report is not None else tables.Report()
    before = report.embedded

    def planned() -> _Remembered:  # which loads the model, and embeds the probe
        offer_stored(_declared(schema, table.name))
        reader = tables.embed_agreed(
            data,
            schema,
            lambda learnt: agreed(lambda: _newest_of(dataset), table.name, learnt),
            on_error=on_error,
            zero_vectors=zero_vectors,
            report=report,
            progress=progress,
            max_bad_rows=max_bad_rows,
            batch_rows=batch_rows,
        )
        return _Remembered(reader)

    kept = await asyncio.to_thread(planned)
    if learns:
        await table.checkout_latest()
    with _translated(kept):
        result = await table.add(kept.reader(), on_bad_vectors="null")
    if report.embedded > before:
        with _unrecorded():
            current = await table.schema()
            if (text := await asyncio.to_thread(_recorded, current)) is not None:
                dataset = await _dataset_of(table)
                await asyncio.to_thread(dataset.update_schema_metadata, {codec.KEY: text})
                await table.checkout_latest()
    return result


def _quantizer(entry: codec.Entry) -> Quantizer | None:
    return quantizer_of(entry.reserved)


def _newest_dataset(table: Any) -> Any:
    """Return the newest version of a table as pylance's dataset.

    Raises:
        StorageError: the table is remote: its metadata cannot be changed.
    """
    attempt_import_or_raise("lance", "pylance", extra="lancedb")
    try:
        table.checkout_latest()
        return table.to_lance()
    except NotImplementedError as exc:  # LanceDB's, for tables of a remote database
        raise StorageError(
            f"the ranges of table {plain(table.name)!r} cannot be recorded: it is a table of a remote database.",
            "declare them when it is made: Vector(fn.ndims(), 'int8', ranges=embedreg.calibrate(fn, texts))",
        ) from exc


async def _dataset_of(table: Any) -> Any:
    attempt_import_or_raise("lance", "pylance", extra="lancedb")
    return await table.to_lance()


def _newest_of(dataset: Any) -> Any:
    return dataset.checkout_version(dataset.latest_version)


def _declared(schema: pa.Schema, name: str) -> list[codec.Entry]:
    """Return the declarations of a table.

    Raises:
        SchemaError: there are none, so no vector would be made.
    """
    found = codec.entries(schema.metadata)
    if not found:
        raise SchemaError(
            f"table {plain(name)!r} declares no embedding function, so there is no vector column to fill (LanceDB's "
            "add(mode='overwrite') drops declarations).",
            "make the table with create_table(db, name, YourSchema); or declare what made its vectors: embedreg attach",
        )
    return found


def _newest_schema(table: Any) -> pa.Schema:
    """Return the schema that rows are appended to: that of the newest version, which the handle may not have seen yet.

    A handle that was opened before the table's declaration changed would embed with the function declared at that time.
    """
    try:
        newest = table._conn.open_table(table.name, namespace_path=table.namespace, branch=table.current_branch())
        schema: pa.Schema = newest.schema
    # NotImplementedError: tables of a remote database
    except (AttributeError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError):
        schema = table.schema  # a client that cannot open a table twice: only its handle's schema is available
    return schema


def _recorded(schema: pa.Schema) -> str | None:
    """Return a table's declarations with the probe that its first write learnt; None where nothing changes."""
    found = codec.entries(schema.metadata)
    if all(entry.reserved.get("probe") for entry in found):
        return None
    _, configs = schemas.resolve(schema)
    for config in configs:
        drift.learn(config.function, codec.declared_by(config))
    text = codec.encode(configs, found).decode()
    # where nothing changes there are another client's entries alone, which stay as they are
    if [entry.raw for entry in codec.entries({codec.KEY: text})] == [entry.raw for entry in found]:
        return None
    old = codec.serialized(schema.metadata)
    # in LanceDB's own layout where it was in that: LanceDB compares it when it opens a table that it was to create
    return _laid_out(text) if old is not None and _laid_out(old) == old else text


def _laid_out(text: str) -> str:
    return json.dumps(json.loads(text), indent=2)


@contextlib.contextmanager
def _translated(kept: _Remembered) -> Iterator[None]:
    """Raise the error that a stream ended with, instead of lancedb's version of it."""
    try:
        yield
    except Exception as exc:
        if kept.problem is not None:
            raise kept.problem from None
        if isinstance(exc, EmbedregError):
            raise
        raise StorageError(
            f"lancedb could not add the rows: {first_line(exc)}", "the table is as it was before; see the cause above"
        ) from exc


@contextlib.contextmanager
def _unrecorded() -> Iterator[None]:
    """Log why the probe could not be recorded: the rows are written by now, and the next `add` tries again."""
    try:
        yield
    # NotImplementedError: tables of a remote database have no schema metadata to replace
    except (EmbedregError, NotImplementedError, OSError, RuntimeError, ValueError) as exc:
        log.warning("the rows are added; the probe of their vectors could not be recorded: %s", first_line(exc))


class _Remembered:
    """A stream that keeps the error it ended with: across lancedb's C interface only the text would survive."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._source = reader
        self.problem: BaseException | None = None

    def reader(self) -> pa.RecordBatchReader:
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(self._source.schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._source
        except GeneratorExit:
            raise
        except BaseException as exc:
            self.problem = exc
            raise


def _write_metadata(table: Any, text: str) -> None:
    """Write the declarations; lancedb itself has no call for it."""
    attempt_import_or_raise("lance", "pylance")
    table.to_lance().update_schema_metadata({codec.KEY: text})
    table.checkout_latest()


def _refuse_async(thing: Any, instead: str) -> None:
    if type(thing).__name__.startswith("Async"):
        raise InputError(f"an asynchronous {type(thing).__name__} was given.", instead)
