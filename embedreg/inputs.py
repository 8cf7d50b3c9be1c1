"""What callers bring, as Arrow: tables, streams of batches, columns. No copy where none is needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["batches_of", "column_of", "total_rows"]

_MAX_STRING_BYTES = 2**31 - 1
_WIDER = {"string": "large_string", "binary": "large_binary"}


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
        values: a list, tuple, numpy array, pandas or polars series, Arrow array or chunked array; one text or image
            is a column of one row. An array of four axes is a stack of images, one of three a stack of grey ones.
        modality: of the function; a text function takes nothing but text.
    Returns:
        A `pa.Array` of plain strings or binaries, or a list (images and other Python objects), None where null.
    Raises:
        InputError: a text function was given something else, or an image function what cannot be images.
    """
    import pyarrow as pa

    if isinstance(values, str | bytes) or (modality != "text" and _is_one(values)):
        values = [values]
    if isinstance(values, pa.ChunkedArray):
        wider = _WIDER.get(str(values.type))
        if wider is not None and values.nbytes > _MAX_STRING_BYTES:
            values = values.cast(wider)  # 32-bit offsets would overflow
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return _decoded(values, modality)
    objects = str(getattr(values, "dtype", "")).lower() == "object"  # pandas and polars call a series of any things so
    if not objects and (hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__")):
        return column_of(pa.chunked_array(values), modality)
    if modality != "text" and getattr(values, "ndim", 1) > 1:
        return _unstacked(values)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if modality != "text" and _is_mixed(listed):
        return _without_nulls(listed)
    try:
        return _decoded(pa.array(listed, from_pandas=True), modality)
    except pa.ArrowCapacityError:
        raise
    except (pa.ArrowException, TypeError) as exc:
        if modality == "text":
            kinds = ", ".join(sorted({type(value).__name__ for value in listed if value is not None}))
            raise InputError(f"a text function was given {kinds}.", "pass str values, and None for a null") from None
        if isinstance(exc, InputError):  # it is a TypeError too
            raise
        return _without_nulls(listed)


def _is_one(values: Any) -> bool:
    """Say whether it is one image and no column; Pillow's have `__arrow_c_array__`, for their pixels."""
    return isinstance(values, bytearray | memoryview | Path) or type(values).__module__.partition(".")[0] == "PIL"


def _unstacked(values: Any) -> list[Any]:
    """Cut an array of several axes into its images.

    Raises:
        InputError: it is none, or may be one image as well.
    """
    if values.ndim == 4 or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        return list(values)
    what = ": it may be one image, or a stack of grey ones." if values.ndim == 3 else "."
    raise InputError(
        f"an array of shape {values.shape} is no column of images{what}",
        "pass a list of images, [image], or an array (n, h, w, 3)",
    )


def _is_mixed(values: list[Any]) -> bool:
    """Say whether Arrow would make something else of these: of names beside bytes bytes, of arrays lists."""
    import numpy as np

    kinds = {type(value) for value in values}
    names, arrays = (any(issubclass(kind, base) for kind in kinds) for base in (str, np.ndarray))
    return arrays or (names and any(issubclass(kind, bytes | bytearray | memoryview) for kind in kinds))


def _without_nulls(values: list[Any]) -> list[Any]:
    """Put None where pandas has a null of its own."""
    nulls = {"NAType", "NaTType"}
    return [
        None if type(value).__name__ in nulls or (isinstance(value, float) and value != value) else value
        for value in values
    ]


def _decoded(array: pa.Array, modality: str) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if modality == "text" and not text:
        raise InputError(
            f"a text function cannot embed a column of type {kind}.",
            "cast it to string first, or choose another column",
        )
    if pa.types.is_binary_view(kind):
        return array.cast(pa.large_binary())
    if pa.types.is_fixed_size_binary(kind):
        return array.cast(pa.binary())
    if "image" in modality.split("+") and not (text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return _images_of(array)
    return array


def _images_of(array: pa.Array) -> Any:
    """Return the images of a column that is neither names nor bytes: both, as Hugging Face's datasets have them.

    Raises:
        InputError: it holds no images.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        raise InputError(
            f"an image function cannot embed a column of type {kind}.",
            "images are bytes, paths or URLs (binary or string), or structs of both, {bytes, path}",
        )
    content, names = (_decoded(pc.struct_field(array, name), "any") for name in ("bytes", "path"))
    if content.null_count in (array.null_count, len(array)):
        return content if content.null_count == array.null_count else names
    return [
        one if one is not None else other for one, other in zip(content.to_pylist(), names.to_pylist(), strict=True)
    ]
