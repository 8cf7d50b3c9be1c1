"""`batches_of`: convert callers' data to Arrow batches, exactly, or raise an error with column, row and value.

All data enters here. `values` converts Python values to arrays, `casting` casts arrays to declared types, and this
module handles the kinds of tables. Data is copied only if needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow import frames
from embedreg.arrow.casting import ConversionError, cast_exactly
from embedreg.arrow.layouts import storable_type
from embedreg.arrow.values import numpy_array
from embedreg.errors import InputError, SchemaError
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa
from embedreg.arrow.declared import Expected, column, conversion_error, named
from embedreg.arrow.rows import from_dicts
from embedreg.arrow.unify import aligned, cut, unified

__all__ = ["batches_of", "storable", "total_rows"]

_NOTHING = object()


def total_rows(data: Any) -> int | None:
    """Return the number of rows, or None if it is unknown (a stream)."""
    rows = getattr(data, "num_rows", None)
    if isinstance(rows, int):
        return rows
    try:
        return len(next(iter(data.values()), [])) if isinstance(data, Mapping) else len(data)
    except (TypeError, NotImplementedError):  # a generator has no length; some libraries' lazy frames raise the latter
        return None


def batches_of(
    data: Any, expected: Expected, batch_rows: int, *, whole: bool = False
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Convert any kind of table to a schema and batches of at most `batch_rows` rows.

    Args:
        data: an Arrow table, batch or reader, anything with `__arrow_c_stream__` (polars, DuckDB, Lance), a pandas
            frame, a dict of columns, a named series, a list or an iterator of dicts, of models or of any of these.
        expected: types for rows that carry none (dicts, models).
        batch_rows: the maximum rows of a batch.
        whole: whether all of an iterator may be read before the schema is returned; its columns then get the type that
            holds all their values. Otherwise its first `batch_rows` rows determine undeclared types, and later rows
            that do not fit raise an error.
    Raises:
        InputError: the data is not a table, or a value cannot be stored exactly; it names column and row.
        MissingColumnError: a row lacks a key that the schema requires.
    """
    import pyarrow as pa

    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return storable(data.schema, cut(data.to_batches(max_chunksize=batch_rows), batch_rows))
    if isinstance(data, pa.RecordBatchReader):
        return storable(data.schema, cut(data, batch_rows))
    if (series := frames.series_of(data)) is not None:
        return batches_of(series, expected, batch_rows)
    if frames.is_pandas(data, "DataFrame"):
        return batches_of(_from_pandas(data, expected), expected, batch_rows)
    if hasattr(data, "collect_schema") and hasattr(data, "collect"):  # a polars LazyFrame
        data = data.collect()
    if frames.is_polars(data, "DataFrame") and (columns := frames.odd_columns(data)):
        return batches_of(columns, expected, batch_rows)
    if hasattr(data, "__arrow_c_stream__") and not isinstance(data, pa.Array | pa.ChunkedArray):
        try:
            reader = pa.RecordBatchReader.from_stream(data)
        except pa.ArrowException as exc:
            raise InputError(
                f"a {type(data).__name__} is not a table that Arrow can read: {plain(exc, 200)}.",
                "pass a table with named columns",
            ) from None
        return storable(reader.schema, cut(reader, batch_rows))
    if hasattr(data, "to_batches") and hasattr(data, "schema"):  # pyarrow.dataset, Lance
        return storable(data.schema, cut(data.to_batches(), batch_rows))
    if isinstance(data, Mapping):
        return batches_of(_table(data, expected), expected, batch_rows)
    if isinstance(data, str | bytes | pa.Array | pa.ChunkedArray) or not isinstance(data, Iterable):
        raise InputError(
            f"a {type(data).__name__} is not a table.",
            "pass an Arrow table or reader, a pandas or polars frame, or a list of dicts",
        )
    return _from_rows(data, expected, batch_rows, whole)


def storable(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return batches without dictionaries of views (polars' categories), which Parquet and Lance cannot write."""
    import pyarrow as pa

    made = pa.schema([item.with_type(storable_type(item.type)) for item in schema], metadata=schema.metadata)
    if made.types == schema.types:
        return schema, batches
    return made, (
        pa.RecordBatch.from_arrays(
            [cast_exactly(column, kind) for column, kind in zip(batch.columns, made.types, strict=True)], schema=made
        )
        for batch in batches
    )


def _table(columns: Mapping[Any, Any], expected: Expected) -> pa.Table:
    """Convert a dict of columns to a table."""
    import pyarrow as pa

    types = expected.types()
    arrays = {named(name): _any_column(named(name), values, expected, types) for name, values in columns.items()}
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        sizes = ", ".join(f"{plain(name, 40)!r} has {count} rows" for name, count in rows.items())
        raise InputError(f"the columns do not form a table: {sizes}.", "give all columns the same number of rows")
    return pa.table(arrays) if arrays else pa.table({})


def _any_column(name: str, values: Any, expected: Expected, types: dict[str, Any]) -> Any:
    """Convert one value of a dict of columns to Arrow."""
    import numpy as np
    import pyarrow as pa

    want = types.get(name)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes | bytearray | Mapping | set | frozenset) or not (
        isinstance(values, Iterable) or hasattr(values, "__array__")
    ):
        raise InputError(
            f"column {plain(name, 80)!r} is one {type(values).__name__}, not a list of values.",
            f"for one row pass [{{{name!r}: ...}}], for a column {{{name!r}: [...]}}",
        )
    if frames.is_pandas(values, "Series", "Index"):
        return _pandas_column(name, values, expected, want)
    if hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__"):
        if "Object" in str(getattr(values, "dtype", "")):
            return column(name, values.to_list(), expected, want)
        try:
            return pa.chunked_array(values) if hasattr(values, "__arrow_c_stream__") else pa.array(values)
        except pa.ArrowException:
            return column(name, list(values), expected, want)
    if hasattr(values, "__array__") and not isinstance(values, list | tuple):
        try:
            values = values if isinstance(values, np.ndarray) else np.asarray(values)
        except (TypeError, ValueError, RuntimeError) as exc:
            raise InputError(
                f"column {plain(name, 80)!r} is a {type(values).__name__} that numpy cannot read: {plain(exc, 200)}.",
                "pass a list or a numpy array",
            ) from None
    if isinstance(values, np.ndarray) and values.ndim == 1:
        try:
            if values.dtype == object or values.dtype.kind == "U":
                return column(name, values.tolist(), expected, want)
            return numpy_array(values)
        except ConversionError as exc:
            raise conversion_error(name, exc, 0, want) from None
    if isinstance(values, np.ndarray) and values.ndim == 0:
        raise InputError(f"column {plain(name, 80)!r} is one number, not a list of values.", f"{{{name!r}: [...]}}")
    if isinstance(values, memoryview) and values.ndim > 1:  # it cannot be iterated
        values = values.tolist()
    return column(name, list(values), expected, want)


def _from_pandas(frame: Any, expected: Expected) -> pa.Table:
    """Convert a pandas frame to a table; its named index becomes a column."""
    import pyarrow as pa

    types = expected.types()
    found: list[tuple[str, Any]] = [
        (name, _pandas_column(name, series, expected, types.get(name))) for name, series in frames.columns_of(frame)
    ]
    names = [name for name, _ in found]
    if twice := {name for name in names if names.count(name) > 1}:
        shown_names = ", ".join(repr(plain(name, 80)) for name in sorted(twice))
        raise SchemaError(
            f"the data has two columns of one name: {shown_names}.",
            "rename one of them; a named index is a column too, frame.reset_index(drop=True) leaves it out",
        )
    table = pa.table(dict(found)) if found else pa.table({})
    return table.replace_schema_metadata(frames.pandas_metadata(frame))


def _pandas_column(name: str, series: Any, expected: Expected, want: pa.DataType | None) -> pa.Array:
    """Convert one pandas column to Arrow.

    NaN stays NaN in a column of floats. It becomes null if pandas has no other null: among texts and other objects, and
    in a column of floats that is declared to have another type.
    """
    import pyarrow as pa

    dtype = series.dtype
    if dtype.kind == "O" and str(dtype) == "object":
        return column(name, frames.without_missing(series.tolist()), expected, want)
    is_numpy = type(dtype).__module__.partition(".")[0] == "numpy"
    try:
        if is_numpy:
            array = numpy_array(series.to_numpy())
            if dtype.kind == "f" and want is not None and not pa.types.is_floating(want):
                array = pa.array(series.to_numpy(), from_pandas=True)
            return array
        if str(dtype).startswith("Sparse"):
            return numpy_array(series.to_numpy())
        return pa.array(series)
    except ConversionError as exc:
        raise conversion_error(name, exc, 0, want) from None
    except (pa.ArrowException, TypeError, ValueError, AttributeError):
        return column(name, frames.without_missing(series.tolist()), expected, want)


def _from_rows(
    rows: Iterable[Any], expected: Expected, batch_rows: int, whole: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Convert dicts, models or tables to batches."""
    import pyarrow as pa

    is_sequence = isinstance(rows, Sequence)
    items = iter(rows)
    first = next(items, _NOTHING)
    if first is _NOTHING:
        schema = expected.schema if expected.schema is not None else pa.schema([])
        return pa.schema(list(schema)), iter(())
    if _is_row(first):
        return from_dicts(
            itertools.chain([first], items), rows if isinstance(rows, Sequence) else None, expected, batch_rows, whole
        )
    _refuse_item(first, 0)
    tables = itertools.chain([first], items)
    return _from_tables(tables, expected, batch_rows, whole or is_sequence)


def _is_row(item: Any) -> bool:
    return isinstance(item, Mapping) or hasattr(item, "model_dump")


def _refuse_item(item: Any, row: int) -> None:
    """Raise if an item is neither a row nor a table of rows."""
    import pyarrow as pa

    inner = item[0] if isinstance(item, list | tuple) and item else None
    tables = isinstance(item, pa.Table | pa.RecordBatch | pa.RecordBatchReader) or hasattr(item, "__arrow_c_stream__")
    if (
        tables
        or frames.is_pandas(item, "DataFrame")
        or (inner is not None and _is_row(inner))
        or (isinstance(item, list) and not item)
    ):
        return
    raise InputError(
        f"row {row} is a {plain(type(item).__name__, 80)}, and a {plain(type(item).__name__, 80)} is not a table.",
        "pass an Arrow table or reader, a pandas or polars frame, or a list of dicts",
    )


def _from_tables(
    items: Iterator[Any], expected: Expected, batch_rows: int, whole: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Convert tables, or lists of rows, to one stream."""
    import pyarrow as pa

    first = next(items)
    schema, head = batches_of(first, expected, batch_rows)

    def rest() -> Iterator[pa.RecordBatch]:
        for number, item in enumerate(items, 1):
            if _is_row(item):
                raise InputError(
                    f"item {number} of the data is a row, but earlier items are tables.",
                    "pass only rows, or only tables",
                )
            _refuse_item(item, number)
            yield from batches_of(item, expected, batch_rows)[1]

    batches = itertools.chain(head, rest())
    if whole:
        parts = ((batch.num_rows, dict(zip(batch.schema.names, batch.columns, strict=True))) for batch in batches)
        return unified(parts, batch_rows, expected, schema)
    wanted = expected.types()
    required = expected.required() | expected.sources | expected.vectors
    for name in wanted.keys() - set(schema.names):  # read declared columns even if the first table lacks them
        if name not in required or name in expected.defaults.made:
            schema = schema.append(pa.field(name, wanted[name]))
    return schema, aligned(batches, schema, expected)
