"""LanceDB tables: made, opened and filled, where its own `create_table`, `open_table` and `add` fall short.

Functions inside lancedb's own schemas, tables and searches need none of this: see `lancedb_adapter`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg import identity, metadata
from embedreg import schema as schemas
from embedreg import table as tables
from embedreg.engines.lancedb_adapter import offer_stored
from embedreg.errors import EmbedregError, InputError, SchemaError, StorageError
from embedreg.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["add", "create_table", "dataset_at", "declare_at", "open_table", "schema_at"]

log = logging.getLogger("embedreg")


def create_table(db: Any, name: str, schema: Any, *, mode: str = "create") -> Any:
    """Create an empty table for a schema.

    Args:
        db: a `lancedb.connect(...)` connection.
        name: of the table.
        schema: an embedreg Schema, a LanceModel, or an Arrow schema with declarations.
        mode: "create", "overwrite" or "exist_ok", as lancedb has it.
    Raises:
        StorageError: lancedb could not write it, or it exists. SchemaError: there are no columns in what was passed.
    """
    _refuse_async(db, "await db.create_table(name, schema=YourSchema.to_arrow_schema())")
    declared, configs = schemas.resolve(schema)
    if declared is None:
        raise SchemaError(
            "a list of declarations has no columns.", "pass a Schema class, or add(table, data) to a table"
        )
    if configs:
        declared = declared.with_metadata(
            {**(declared.metadata or {}), metadata.KEY.encode(): metadata.encode(configs)}
        )
    arguments = {"exist_ok": True} if mode == "exist_ok" else {"mode": mode}
    try:
        return db.create_table(name, schema=declared, **arguments)
    except (OSError, RuntimeError, ValueError) as exc:
        hint = "check the folder's permissions and the space on its disk"
        if "exists" in str(exc):
            hint = f"open_table(db, {name!r}) opens it; mode='overwrite' replaces it"
        raise StorageError(f"table {name!r} could not be created: {_first_line(exc)}", hint) from exc


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
            f"table {name!r} could not be opened: {_first_line(exc)}", "list(db.list_tables().tables)"
        ) from exc
    found = metadata.entries(table.schema.metadata)
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
                f"the metadata of table {name!r} could not be rewritten: {_first_line(exc)}",
                "open it once where it can be written",
            ) from exc
    return table


def add(
    table: Any,
    data: Any,
    *,
    on_error: tables.OnError = "null",
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
        data, on_error, report, progress, max_bad_rows, batch_rows: as `embedreg.embed_batches`.
    Returns:
        What `table.add` does.
    Raises:
        StorageError: lancedb could not write. EmbedregError: whatever embedding raises.
    """
    _refuse_async(
        table,
        "await table.add(embedreg.embed_batches(data, await table.schema(), on_error='null'), on_bad_vectors='null')",
    )
    schema = table.schema
    offer_stored(metadata.entries(schema.metadata))
    report = report if report is not None else tables.Report()
    before = report.embedded
    reader = tables.embed_batches(
        data,
        schema,
        on_error=on_error,
        report=report,
        progress=progress,
        max_bad_rows=max_bad_rows,
        batch_rows=batch_rows,
    )
    kept = _Remembered(reader)
    try:
        result = table.add(kept.reader(), on_bad_vectors="null")
    except Exception as exc:
        if kept.problem is not None:
            raise kept.problem from None
        if isinstance(exc, EmbedregError):
            raise
        raise StorageError(
            f"lancedb could not add the rows: {_first_line(exc)}", "the table is as it was before; see the cause above"
        ) from exc
    if report.embedded > before:
        _record(table)
    return result


def _record(table: Any) -> None:
    """Let the table's declarations hold the probe that its first write learnt.

    The rows are written by now, so what fails here is logged: the next `add` tries again.
    """
    schema = table.schema
    found = metadata.entries(schema.metadata)
    if all(entry.reserved.get("probe") for entry in found):
        return
    try:
        _, configs = schemas.resolve(schema)
        for config in configs:
            identity.learn(config.function, metadata.declared_by(config))
        text = metadata.encode(configs, found).decode()
        if [entry.raw for entry in metadata.entries({metadata.KEY: text})] != [entry.raw for entry in found]:
            _write_metadata(table, text)  # else another client's entries alone, which stay as they are
    except (EmbedregError, NotImplementedError, OSError, RuntimeError, ValueError) as exc:
        log.warning("the rows are added; the probe of their vectors could not be recorded: %s", _first_line(exc))


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


def schema_at(path: Path) -> pa.Schema:
    """Return the schema of the table in a `.lance` folder.

    Raises:
        StorageError: it is no table.
    """
    lancedb = attempt_import_or_raise("lancedb", extra="lancedb")
    try:
        schema: pa.Schema = lancedb.connect(path.parent).open_table(path.stem).schema
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(f"{str(path)!r} is no Lance table: {_first_line(exc)}", "check the path") from exc
    return schema


def dataset_at(path: Path) -> Any:
    """Open the table in a `.lance` folder as pylance's dataset, whose rows can be taken by number.

    Raises:
        StorageError: it is no table.
    """
    lance = attempt_import_or_raise("lance", "pylance", extra="lancedb")
    try:
        return lance.dataset(str(path))
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(f"{str(path)!r} is no Lance table: {_first_line(exc)}", "check the path") from exc


def declare_at(dataset: Any, text: bytes) -> None:
    """Write the declarations of a dataset that `dataset_at` opened; its rows stay as they are.

    Raises:
        StorageError: they cannot be written.
    """
    try:
        dataset.update_schema_metadata({metadata.KEY: text.decode()})
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(f"the table's metadata cannot be written: {_first_line(exc)}", "try again") from exc


def _write_metadata(table: Any, text: str) -> None:
    """Write the declarations; lancedb itself has no call for it."""
    attempt_import_or_raise("lance", "pylance")
    table.to_lance().update_schema_metadata({metadata.KEY: text})
    table.checkout_latest()


def _refuse_async(thing: Any, instead: str) -> None:
    if type(thing).__name__.startswith("Async"):
        raise InputError(f"an asynchronous {type(thing).__name__} was given.", instead)


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0]
