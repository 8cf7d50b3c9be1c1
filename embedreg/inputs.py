"""What callers bring, as Arrow: tables, streams of batches, columns. No copy where none is needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from embedreg.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["batches_of", "column_of", "total_rows"]

_MAX_STRING_BYTES = 2**31 - 1


def total_rows(data: Any) -> int | None:
    """Return the number of rows where the data knows it, else None (a stream)."""
    rows = getattr(data, "num_rows", None)
    if isinstance(rows, int):
        return rows
    if isinstance(data, Mapping):
        return len(next(iter(data.values()), []))
    try:
        return len(data)
    except TypeError:
        return None


def batches_of(data: Any, declared: pa.Schema | None, batch_rows: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Turn anything column-like into a schema and batches of at most `batch_rows` rows.

    Args:
        data: an Arrow table, batch or reader, anything with `__arrow_c_stream__` (polars, DuckDB, Lance), a pandas
            frame, a dict of columns, a list or an iterator of dicts, of models or of any of these.
        declared: types for rows that bring none (dicts, models).
        batch_rows: the upper bound of a batch, in rows.
    Raises:
        InputError: something else, or rows that do not agree on a type.
    """
    import pyarrow as pa

    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return data.schema, _cut(data.to_batches(max_chunksize=batch_rows), batch_rows)
    if isinstance(data, pa.RecordBatchReader):
        return data.schema, _cut(data, batch_rows)
    if type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns"):
        return batches_of(_from_pandas(data), declared, batch_rows)
    if hasattr(data, "collect_schema") and hasattr(data, "collect"):  # a polars LazyFrame
        data = data.collect()
    if hasattr(data, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(data)
        return reader.schema, _cut(reader, batch_rows)
    if hasattr(data, "to_batches") and hasattr(data, "schema"):  # pyarrow.dataset, Lance
        return data.schema, _cut(data.to_batches(), batch_rows)
    if isinstance(data, Mapping):
        return batches_of(_table(data, declared), declared, batch_rows)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InputError(
            f"a {type(data).__name__} is no table.",
            "pass an Arrow table or reader, a pandas or polars frame, or a list of dicts",
        )
    return _from_rows(iter(data), declared, batch_rows)


def _cut(batches: Iterable[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def _from_pandas(frame: Any) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, TypeError) as exc:
        raise InputError(f"the pandas frame has a column that Arrow cannot hold: {exc}.", "cast it first") from None


def _table(columns: Mapping[str, Any], declared: pa.Schema | None) -> pa.Table:
    import pyarrow as pa

    types = {field.name: field.type for field in declared} if declared is not None else {}

    def column(name: str, values: Any) -> Any:
        if isinstance(values, pa.Array | pa.ChunkedArray):
            return values
        try:
            return pa.array(values, types.get(name), from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError) as exc:
            what = f"is no {types[name]}" if name in types else "does not agree on a type"
            raise InputError(
                f"column {name!r} {what}: {str(exc).rstrip('.')}.", "cast it, or declare its type in a Schema"
            ) from None

    arrays = {name: column(name, values) for name, values in columns.items()}
    try:
        return pa.table(arrays)
    except (pa.ArrowException, TypeError, ValueError) as exc:
        raise InputError(
            f"the columns make no table: {str(exc).rstrip('.')}.", "give all of them the same rows"
        ) from None


def _from_rows(
    rows: Iterator[Any], declared: pa.Schema | None, batch_rows: int
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Stream dicts, models or tables; the first chunk settles the schema, `declared` where it says."""
    import pyarrow as pa

    first = next(rows, None)
    if first is None:
        schema = declared if declared is not None else pa.schema([])
        return pa.schema(list(schema)), iter(())
    if not isinstance(first, Mapping) and not hasattr(first, "model_dump"):
        schema, head = batches_of(first, declared, batch_rows)

        def tables() -> Iterator[pa.RecordBatch]:
            yield from head
            for item in rows:
                yield from _aligned(batches_of(item, declared, batch_rows)[1], schema)

        return schema, tables()

    def chunk(some: Iterable[Any], schema: pa.Schema | None) -> pa.Table:
        dicts = [row.model_dump() if hasattr(row, "model_dump") else row for row in some]
        if odd := [type(row).__name__ for row in dicts if not isinstance(row, Mapping)]:
            raise InputError(f"the rows mix dicts with {odd[0]}.", "pass dicts or models only")
        names = list(schema.names) if schema is not None else list(dict.fromkeys(name for row in dicts for name in row))
        # a column at a time: from_pylist would drop what the first row lacks
        return _table(
            {name: [row.get(name) for row in dicts] for name in names}, schema if schema is not None else declared
        )

    table = chunk(itertools.chain([first], itertools.islice(rows, batch_rows - 1)), None)

    def chunks() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches(max_chunksize=batch_rows)
        while some := list(itertools.islice(rows, batch_rows)):
            yield from _aligned(chunk(some, table.schema).to_batches(max_chunksize=batch_rows), table.schema)

    return table.schema, chunks()


def _aligned(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for batch in batches:
        try:
            yield from pa.Table.from_batches([batch]).select(schema.names).cast(schema).to_batches()
        except (pa.ArrowException, KeyError, ValueError) as exc:
            raise InputError(
                f"the rows do not agree on a type: {str(exc).rstrip('.')}.",
                "cast the column, or declare it in a Schema",
            ) from None


def column_of(values: Any, modality: str) -> Any:
    """Turn one column into an Arrow array where its type has one, else a plain list.

    Args:
        values: a list, tuple, numpy array, pandas or polars series, Arrow array or chunked array.
        modality: of the function; a text function takes nothing but text.
    Returns:
        A `pa.Array` of plain strings or binaries, or a list (images and other Python objects), None where null.
    Raises:
        InputError: a text function was given something else.
    """
    import pyarrow as pa

    if isinstance(values, str | bytes):
        values = [values]
    if isinstance(values, pa.ChunkedArray):
        if values.nbytes > _MAX_STRING_BYTES and pa.types.is_string(values.type):
            values = values.cast(pa.large_string())  # 32-bit offsets would overflow
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return _decoded(values, modality)
    if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
        return column_of(pa.chunked_array(values), modality)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        return _decoded(pa.array(listed, from_pandas=True), modality)
    except pa.ArrowCapacityError:
        raise
    except (pa.ArrowException, TypeError):
        if modality == "text":
            kinds = ", ".join(sorted({type(value).__name__ for value in listed if value is not None}))
            raise InputError(f"a text function was given {kinds}.", "pass str values, and None for a null") from None
        return listed


def _decoded(array: pa.Array, modality: str) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    text = pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if modality == "text" and not text:
        raise InputError(
            f"a text function cannot embed a column of type {array.type}.",
            "cast it to string first, or choose another column",
        )
    return array
