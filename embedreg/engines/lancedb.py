"""LanceDB: embedreg's functions inside its schemas and tables, with nothing in lancedb patched.

LanceDB accepts subclasses of its own base class only, and resolves names in its own registry. So each name gets a thin
adapter class there, registered through lancedb's public `register`; an adapter delegates to one embedreg function.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PrivateAttr, model_serializer

from embedreg import base, engines, identity, metadata, registry
from embedreg import schema as schemas
from embedreg import table as tables
from embedreg.base import EmbeddingFunction
from embedreg.errors import EmbedregError, InputError, SchemaError, StorageError
from embedreg.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.embeddings.base import EmbeddingFunction as LanceBase
else:
    LanceBase = attempt_import_or_raise("lancedb.embeddings.base", "lancedb", extra="lancedb").EmbeddingFunction

__all__ = ["adapter_for", "add", "create_table", "install", "open_table"]

log = logging.getLogger("embedreg")


class Adapter(LanceBase):
    """Stands in lancedb for one embedreg function, `embedreg_function`."""

    embedreg_alias: ClassVar[str] = ""
    _function: Any = PrivateAttr(default=None)
    _dtype: str = PrivateAttr(default="float32")
    _refusal: Any = PrivateAttr(default=None)

    @classmethod
    def create(cls, **model: Any) -> Adapter:
        """Rebuild from stored metadata when lancedb asks; a user's own call creates as embedreg does."""
        owner = registry.get(cls.embedreg_alias)
        if not engines.called_from("lancedb"):
            return adapter_for(owner.create(**model))
        function, notes = metadata.rebuild(owner, cls.embedreg_alias, model)
        for note in notes:
            log.warning("%s", note)
        stored = model.get(metadata.RESERVED)
        dtype = stored.get("dtype") if isinstance(stored, dict) else None
        return adapter_for(function, dtype=str(dtype or "float32"))

    @property
    def embedreg_function(self) -> EmbeddingFunction:
        """The function that does the work."""
        return self._function  # type: ignore[no-any-return]

    def _use(self) -> EmbeddingFunction:
        if self._refusal is not None:
            raise self._refusal
        return self._function  # type: ignore[no-any-return]

    def __getattribute__(self, name: str) -> Any:
        if name == "__embedding_function_registry_alias__":
            return metadata.persisted_name(self.embedreg_function)
        return super().__getattribute__(name)

    def safe_model_dump(self) -> dict[str, Any]:
        """Return the persisted form, which lancedb stores."""
        model = metadata.persisted_model(self._use())
        model[metadata.RESERVED]["dtype"] = self._dtype
        return model

    @model_serializer
    def _as_json(self) -> dict[str, Any]:
        return {"function": type(self).embedreg_alias}

    def ndims(self) -> int:
        return self._use().ndims()

    def compute_source_embeddings(self, inputs: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Embed a column; a row without a vector is None, and lancedb's `on_bad_vectors` decides on it."""
        embedded = tables.embed_column(self._use(), inputs)
        for row, reason in list(embedded.reasons.items())[: tables.SHOWN]:
            log.warning("%s: row %d of the batch has no vector: %s", type(self).embedreg_alias, row, reason)
        matrix = embedded.matrix if self._dtype == "float32" else embedded.matrix.astype(self._dtype)
        # a list of float32 rows is what lancedb takes in fastest (docs/benchmarks.md)
        rows = list(matrix)
        for row in (~embedded.valid).nonzero()[0]:
            rows[row] = None
        return rows

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return [tables.embed_query(self._use(), query)]

    # embed_column and embed_query retry by the function's own policy; lancedb's would retry programming errors too
    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        return self.compute_source_embeddings(*args, **kwargs)

    def compute_query_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> list[Any]:
        return self.compute_query_embeddings(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self._function == other._function and self._dtype == other._dtype

    def __hash__(self) -> int:
        return hash((Adapter, self._function))


_classes: dict[str, type[Adapter]] = {}


def _adapter_class(alias: str) -> type[Adapter]:
    if alias not in _classes:
        namespace = {"__module__": __name__, "__doc__": Adapter.__doc__, "embedreg_alias": alias}
        namespace["__annotations__"] = {"embedreg_alias": ClassVar[str]}
        _classes[alias] = type(f"embedreg adapter of {alias}", (Adapter,), namespace)
    return _classes[alias]


def adapter_for(function: EmbeddingFunction, source: str | None = None, dtype: str = "float32") -> Adapter:
    """Return the adapter of a function: one object per instance, source field and value type.

    lancedb pairs source and vector columns by the identity of these objects.
    """
    key = f"{source}\0{dtype}"
    adapter = function._adapters.get(key)
    if adapter is None:
        adapter = _adapter_class(base.registered_name(type(function)) or "")()
        adapter._function, adapter._dtype = function, dtype
        function._adapters[key] = adapter
    return adapter  # type: ignore[no-any-return]


def mark(owner: type, sources: list[schemas.Marker], vectors: list[schemas.Marker]) -> None:
    """Give each source/vector pair of a LanceModel class an adapter of its own, and refuse what is ambiguous.

    Raising while a class is made would come out wrapped, so a refused pair raises where lancedb first uses it.
    """
    for vector in vectors:
        own = [source for source in sources if source.function is vector.function]
        try:
            [(source, _)] = schemas.pair(own, [vector])
            adapter = adapter_for(vector.function, source.field, _dtype_of(owner, vector.field))
            own = [source]
        except SchemaError as exc:
            adapter = Adapter()
            adapter._function, adapter._refusal = vector.function, exc
        for marker, role in [*((source, schemas.SOURCE) for source in own), (vector, schemas.VECTOR)]:
            extra = dict(marker.info.json_schema_extra or {})  # type: ignore[arg-type]  # ours is a dict
            marker.info.json_schema_extra = {**extra, role: adapter}  # type: ignore[dict-item]


def _dtype_of(owner: type, field: str) -> str:
    annotation = owner.__dict__.get("__annotations__", {}).get(field)
    return (
        annotation._value_type
        if isinstance(annotation, type) and issubclass(annotation, schemas.VectorType)
        else "float32"
    )


def adopt_vector_type(vector_type: type) -> None:
    """Let lancedb take our vector type for one of its own."""
    from lancedb.pydantic import FixedSizeListMixin

    FixedSizeListMixin.register(vector_type)


def offer(name: str) -> None:
    """Register a function name with lancedb, in place of lancedb's own function of that name if there is one."""
    from lancedb.embeddings.registry import EmbeddingFunctionRegistry as LanceRegistry

    theirs = LanceRegistry.get_instance()
    names = [name, f"{metadata.RESERVED}:{name}"] if name in registry.BUILTINS else [name]
    for alias in names:
        theirs.register(alias)(_adapter_class(name))


def install() -> None:
    """Offer every known name to lancedb; it runs by itself when lancedb is imported beside embedreg."""
    adopt_vector_type(schemas.VectorType)
    for name in registry.get_registry().list():
        offer(name)


# -- tables -------------------------------------------------------------------------------------------------------------


def create_table(db: Any, name: str, schema: Any, *, mode: str = "create") -> Any:
    """Create an empty table for a schema.

    Args:
        db: a `lancedb.connect(...)` connection.
        name: of the table.
        schema: an embedreg Schema, a LanceModel, or an Arrow schema with declarations.
        mode: "create", "overwrite" or "exist_ok", as lancedb has it.
    Raises:
        StorageError: lancedb could not write it.
    """
    declared, configs = schemas.resolve(schema)
    if declared is None:
        raise SchemaError(
            "a list of declarations has no columns.", "pass a Schema class, or add(table, data) to a table"
        )
    info = (
        {**(declared.metadata or {}), metadata.KEY.encode(): metadata.encode(configs)} if configs else declared.metadata
    )
    arguments = {"exist_ok": True} if mode == "exist_ok" else {"mode": mode}
    try:
        return db.create_table(name, schema=declared.with_metadata(info), **arguments)
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(f"table {name!r} could not be created: {_first_line(exc)}", "mode='overwrite'?") from exc


def open_table(db: Any, name: str) -> Any:
    """Open a table whose declarations either client wrote.

    LanceDB's Python client fails on the JavaScript client's spelling, so it is rewritten once, in the spelling that both
    read; the data is not touched.

    Raises:
        StorageError: there is no such table.
    """
    try:
        table = db.open_table(name)
    except (OSError, RuntimeError, ValueError) as exc:
        raise StorageError(
            f"table {name!r} could not be opened: {_first_line(exc)}", "list(db.list_tables().tables)"
        ) from exc
    text = metadata.serialized(table.schema.metadata)
    found = metadata.entries(table.schema.metadata)
    if text is None or all("source_column" in (raw := json.loads(e.raw)) and "vector_column" in raw for e in found):
        return table
    items = [
        {
            "name": e.name,
            "model": e.model,
            "source_column": e.source_column,
            "vector_column": e.vector_column,
            **e.extra,
        }
        for e in found
    ]
    _write_metadata(table, json.dumps(items, indent=2))
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
    Raises:
        StorageError: lancedb could not write. EmbedregError: whatever embedding raises.
    """
    if type(table).__name__.startswith("Async"):
        raise InputError(
            "an asynchronous table was given.",
            "await table.add(embedreg.embed_batches(data, await table.schema()), on_bad_vectors='null')",
        )
    schema = table.schema
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
        _record(table, metadata.parse(schema.metadata))
    return result


def _record(table: Any, functions: metadata.Functions) -> None:
    """Let the table's declarations hold the probe that its first write learnt."""
    if all(entry.reserved.get("probe") for entry in functions.entries.values()):
        return
    for config in functions.values():
        identity.learn(config.function)
    _, configs = schemas.resolve(table.schema)
    kept = [entry for column, entry in functions.entries.items() if column in functions.problems]
    _write_metadata(table, metadata.encode(configs, kept).decode())


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


def _write_metadata(table: Any, text: str) -> None:
    attempt_import_or_raise("lance", "pylance", extra="lancedb")
    table.to_lance().update_schema_metadata({metadata.KEY: text})
    table.checkout_latest()


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().partition("\n")[0]
