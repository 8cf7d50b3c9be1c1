"""What callers bring, as Arrow: the one door. A value stays what it is, or an error names its column, row and value.

`values` turns Python values into arrays, `casting` arrays into declared types; here are the forms that tables have.
No copy is made where none is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.arrow import frames
from embedreg.arrow.casting import Unfit, common_type, exactly, shown, storable_type, value_at
from embedreg.arrow.columns import texts_of
from embedreg.arrow.values import NO_DEFAULTS, Defaults, array_of, items_of, keys_of, numpy_array
from embedreg.errors import InputError, MissingColumnError, SchemaError
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Defaults",
    "Expected",
    "as_declared",
    "batches_of",
    "made_column",
    "storable",
    "total_rows",
]

_NOTHING = object()
_CHUNK = 8192  # rows that are turned into Arrow at a time: more do not stay in a processor's cache


@dataclass(frozen=True)
class Expected:
    """What a declaration says of rows that bring no types.

    Attributes:
        schema: the declared types, where there are some.
        defaults: what stands for keys that rows lack.
        sources: the columns that are to be embedded.
        vectors: the columns that are to be filled.
        texts: those of the sources that hold texts for functions of text.
    """

    schema: pa.Schema | None = None
    defaults: Defaults = NO_DEFAULTS
    sources: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()

    def types(self) -> dict[str, Any]:
        """Return the declared types; vectors as doubles, since what becomes of each is for `given_vectors` to say."""
        import pyarrow as pa

        found = {}
        for item in self.schema if self.schema is not None else []:
            found[item.name] = item.type
            if item.name in self.vectors and pa.types.is_fixed_size_list(item.type):
                found[item.name] = pa.list_(pa.float64(), item.type.list_size)
        return found

    def required(self) -> set[str]:
        """Return the columns that may hold no null; those that are to be filled do not count."""
        return {item.name for item in self.schema or [] if not item.nullable} - self.vectors


def total_rows(data: Any) -> int | None:
    """Return the number of rows where the data knows it, else None (a stream)."""
    rows = getattr(data, "num_rows", None)
    if isinstance(rows, int):
        return rows
    try:
        return len(next(iter(data.values()), [])) if isinstance(data, Mapping) else len(data)
    except (TypeError, NotImplementedError):
        return None


def batches_of(
    data: Any, expected: Expected, batch_rows: int, *, whole: bool = False
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Turn anything column-like into a schema and batches of at most `batch_rows` rows.

    Args:
        data: an Arrow table, batch or reader, anything with `__arrow_c_stream__` (polars, DuckDB, Lance), a pandas
            frame, a dict of columns, a named series, a list or an iterator of dicts, of models or of any of these.
        expected: types for rows that bring none (dicts, models).
        batch_rows: the upper bound of a batch, in rows.
        whole: whether all of an iterator may be read before the schema is given; its columns then get the type that
            holds all their values. Else its first `batch_rows` rows settle what is not declared, and later ones that
            do not fit are an error.
    Raises:
        InputError: something else; or a value that cannot be kept, with its column and row.
        MissingColumnError: a row lacks a key that the schema requires.
    """
    import pyarrow as pa

    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return storable(data.schema, _cut(data.to_batches(max_chunksize=batch_rows), batch_rows))
    if isinstance(data, pa.RecordBatchReader):
        return storable(data.schema, _cut(data, batch_rows))
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
                f"a {type(data).__name__} is no table that Arrow can read: {plain(exc, 200)}.",
                "pass a table, with a column for each name",
            ) from None
        return storable(reader.schema, _cut(reader, batch_rows))
    if hasattr(data, "to_batches") and hasattr(data, "schema"):  # pyarrow.dataset, Lance
        return storable(data.schema, _cut(data.to_batches(), batch_rows))
    if isinstance(data, Mapping):
        return batches_of(_table(data, expected), expected, batch_rows)
    if isinstance(data, str | bytes | pa.Array | pa.ChunkedArray) or not isinstance(data, Iterable):
        raise InputError(
            f"a {type(data).__name__} is no table.",
            "pass an Arrow table or reader, a pandas or polars frame, or a list of dicts",
        )
    return _from_rows(data, expected, batch_rows, whole)


def _cut(batches: Iterable[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def storable(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return batches without dictionaries of views, as polars has categories: neither Parquet nor Lance writes them."""
    import pyarrow as pa

    made = pa.schema([item.with_type(storable_type(item.type)) for item in schema], metadata=schema.metadata)
    if made.types == schema.types:
        return schema, batches
    return made, (
        pa.RecordBatch.from_arrays(
            [exactly(column, kind) for column, kind in zip(batch.columns, made.types, strict=True)], schema=made
        )
        for batch in batches
    )


# -- columns -----------------------------------------------------------------------------------------------------------


def _unfit(name: str, exc: Unfit, first_row: int, want: pa.DataType | None) -> InputError:
    import pyarrow as pa

    if want is not None and pa.types.is_null(want):
        return InputError(
            f"column {plain(name, 80)!r} does not agree on a type: row {first_row + exc.row} is the first with "
            "a value, and the schema of the stream is given out.",
            "declare it in a Schema, or pass list(rows), which has all rows at hand",
        )
    what = (
        f"is no {want}" if want is not None else "does not agree on a type" if exc.mixed else "cannot be kept as it is"
    )
    where = f"column {plain(name, 80)!r} {what}"
    return InputError(
        f"{where}: row {first_row + exc.row}{f' at {exc.path}' if exc.path else ''}: {exc.why}.",
        "convert the value, or declare the column as a type that holds it"
        if want is not None
        else "convert the values to one type, or declare it in a Schema"
        if exc.mixed
        else "convert the value",
    )


def _column(
    name: str,
    values: list[Any],
    expected: Expected,
    want: pa.DataType | None,
    first_row: int = 0,
    *,
    settled: bool = False,
) -> pa.Array:
    """Turn the Python values of one column into Arrow.

    Args:
        settled: whether `want` is what earlier rows of a stream have and nobody declared: no float is rounded to it.
    """
    import pyarrow as pa

    defaults = expected.defaults.inner.get(name, NO_DEFAULTS)
    try:
        if settled and want is not None and _narrow(want):
            return exactly(array_of(values, None, defaults), want, rounds=False)
        return array_of(values, want, defaults)
    except Unfit as exc:
        if name in expected.texts and (want is None or pa.types.is_string(want) or pa.types.is_large_string(want)):
            texts = texts_of(values, want)
            if texts is not None:
                return texts
        raise _unfit(name, exc, first_row, want) from None
    except RecursionError:
        raise InputError(
            f"column {plain(name, 80)!r}: a value from row {first_row} on is nested too deep, or holds itself.",
            "flatten it, or store it as JSON text",
        ) from None
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError) as exc:
        raise InputError(
            f"column {plain(name, 80)!r} from row {first_row} on cannot become Arrow: {plain(exc, 200)}.",
            "convert its values, or declare it in a Schema",
        ) from None


def _narrow(type_: pa.DataType) -> bool:
    """Return whether a type has floats that are narrower than Python's."""
    import pyarrow as pa

    if pa.types.is_floating(type_):
        return not pa.types.is_float64(type_)
    return any(_narrow(type_.field(at).type) for at in range(type_.num_fields))


def as_declared(array: pa.Array, item: pa.Field, first_row: int) -> pa.Array:
    """Return a column as it is declared: its type, and null only where null may be.

    Raises:
        InputError: a value that would change, or a null, with its row.
    """
    import numpy as np

    made = array
    if array.type != item.type:
        try:
            made = exactly(array, item.type)
        except Unfit as exc:
            raise InputError(
                f"column {plain(item.name, 80)!r} is {array.type}, the schema says {item.type}: "
                f"row {first_row + exc.row}{f' at {exc.path}' if exc.path else ''}: {exc.why}.",
                "cast it, or change the schema",
            ) from None
    if not item.nullable and made.null_count:
        row = first_row + int(np.argmax(np.asarray(made.is_null())))
        raise InputError(
            f"column {plain(item.name, 80)!r}: row {row} is null, which the schema does not allow.",
            f"fill it, or declare {item.name}: ... | None",
        )
    return made


def made_column(item: pa.Field, values: list[Any]) -> pa.Array:
    """Return default values as a column."""
    return _column(item.name, values, Expected(), item.type)


def _named(name: Any) -> str:
    if not isinstance(name, str):
        raise InputError(f"a column is named {shown(name)}, which is no str.", "name columns with str")
    return str.__str__(name)


def _table(columns: Mapping[Any, Any], expected: Expected) -> pa.Table:
    """Turn a dict of columns into a table."""
    import pyarrow as pa

    types = expected.types()
    arrays = {_named(name): _any_column(_named(name), values, expected, types) for name, values in columns.items()}
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        sizes = ", ".join(f"{plain(name, 40)!r} has {count} rows" for name, count in rows.items())
        raise InputError(f"the columns make no table: {sizes}.", "give all of them the same rows")
    return pa.table(arrays) if arrays else pa.table({})


def _any_column(name: str, values: Any, expected: Expected, types: dict[str, Any]) -> Any:
    """Turn what stands for a column in a dict of columns into Arrow."""
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
            return _column(name, values.to_list(), expected, want)
        try:
            return pa.chunked_array(values) if hasattr(values, "__arrow_c_stream__") else pa.array(values)
        except pa.ArrowException:
            return _column(name, list(values), expected, want)
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
                return _column(name, values.tolist(), expected, want)
            return numpy_array(values)
        except Unfit as exc:
            raise _unfit(name, exc, 0, want) from None
    if isinstance(values, np.ndarray) and values.ndim == 0:
        raise InputError(f"column {plain(name, 80)!r} is one number, not a list of values.", f"{{{name!r}: [...]}}")
    if isinstance(values, memoryview) and values.ndim > 1:  # it has no rows to walk over
        values = values.tolist()
    return _column(name, list(values), expected, want)


def _from_pandas(frame: Any, expected: Expected) -> pa.Table:
    """Turn a pandas frame into a table, its named index among the columns."""
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
    """Turn one pandas column into Arrow.

    NaN stays in a column of floats. It is a null where pandas has no other: beside texts and other objects, and in
    a column of floats that is declared to hold something else.
    """
    import pyarrow as pa

    dtype = series.dtype
    if dtype.kind == "O" and str(dtype) == "object":
        return _column(name, frames.without_missing(series.tolist()), expected, want)
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
    except Unfit as exc:
        raise _unfit(name, exc, 0, want) from None
    except (pa.ArrowException, TypeError, ValueError, AttributeError):
        return _column(name, frames.without_missing(series.tolist()), expected, want)


# -- rows --------------------------------------------------------------------------------------------------------------


def _from_rows(
    rows: Iterable[Any], expected: Expected, batch_rows: int, whole: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Turn dicts, models or tables into batches."""
    import pyarrow as pa

    all_here = isinstance(rows, Sequence)
    items = iter(rows)
    first = next(items, _NOTHING)
    if first is _NOTHING:
        schema = expected.schema if expected.schema is not None else pa.schema([])
        return pa.schema(list(schema)), iter(())
    if _is_row(first):
        return _from_dicts(
            itertools.chain([first], items), rows if isinstance(rows, Sequence) else None, expected, batch_rows, whole
        )
    _refuse_item(first, 0)
    tables = itertools.chain([first], items)
    return _from_tables(tables, expected, batch_rows, whole or all_here)


def _is_row(item: Any) -> bool:
    return isinstance(item, Mapping) or hasattr(item, "model_dump")


def _refuse_item(item: Any, row: int) -> None:
    """Refuse what is neither a row nor a table of rows."""
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
        f"row {row} is a {plain(type(item).__name__, 80)}, and a {plain(type(item).__name__, 80)} is no table.",
        "pass an Arrow table or reader, a pandas or polars frame, or a list of dicts",
    )


def _dicts(rows: Sequence[Any], first_row: int) -> list[Any]:
    """Return rows as dicts."""
    kinds = set(map(type, rows))
    models = {kind for kind in kinds if hasattr(kind, "model_dump")}
    if odd := [kind for kind in kinds - models if not issubclass(kind, Mapping)]:
        row = next(row for row, item in enumerate(rows) if type(item) in odd)
        name = plain(type(rows[row]).__name__, 80)
        raise InputError(f"the rows mix dicts with {name}: row {first_row + row}.", "pass dicts or models only")
    return [row.model_dump() if type(row) in models else row for row in rows] if models else list(rows)


def _arrays(
    rows: list[Any],
    expected: Expected,
    wants: Mapping[str, Any],
    first_row: int,
    names: Iterable[str] = (),
    declared: Iterable[str] | None = None,
) -> dict[str, pa.Array]:
    """Return the columns of some dicts: of all their keys, and of `names`.

    Args:
        declared: the columns whose `wants` somebody declared; None for all.
    """
    import numpy as np

    found = dict.fromkeys(itertools.chain(keys_of(rows), names))
    made, required = {}, expected.required()
    for key in found:
        name = _named(key)
        values = items_of(rows, key, expected.defaults.made.get(name))
        array = made[name] = _column(
            name,
            values,
            expected,
            wants.get(name),
            first_row,
            settled=declared is not None and name not in declared,
        )
        if name in required and array.null_count:
            row = int(np.argmax(np.asarray(array.is_null())))
            what = "is None" if key in rows[row] else "is missing"
            kind = InputError if key in rows[row] else MissingColumnError
            raise kind(
                f"row {first_row + row}: {plain(name, 80)!r} {what}, and the schema requires it.",
                f"fill it, or declare {name}: ... | None",
            )
    return made


def _from_dicts(
    items: Iterator[Any], rows: Sequence[Any] | None, expected: Expected, batch_rows: int, whole: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Turn dicts and models into batches; with all of them at hand, the types are those that hold all values."""
    import pyarrow as pa

    wants = expected.types()
    if whole or rows is not None:
        return _unified(_chunks(items, max(_CHUNK, batch_rows), expected, wants), batch_rows, expected)
    first = _dicts(list(itertools.islice(items, batch_rows)), 0)
    wants |= {
        name: pa.list_(pa.float64()) for name in expected.vectors - wants.keys()
    }  # a given vector may come late, and of other numbers
    required = expected.required() | expected.sources
    always = [name for name in wants if name not in required or name in expected.defaults.made]
    arrays = _arrays(first, expected, wants, 0, always)
    schema = pa.schema([(name, array.type) for name, array in arrays.items()])
    return schema, _stream(items, first, arrays, schema, expected, batch_rows)


def _stream(
    items: Iterator[Any],
    first: list[Any],
    arrays: dict[str, pa.Array],
    schema: pa.Schema,
    expected: Expected,
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    """Yield the first chunk, then the others as the schema has them that was settled by it."""
    import pyarrow as pa

    yield pa.RecordBatch.from_arrays(list(arrays.values()), schema=schema)
    done, wants = len(first), {item.name: item.type for item in schema}
    declared = expected.vectors | expected.types().keys()
    del first, arrays
    while some := list(itertools.islice(items, batch_rows)):
        some = _dicts(some, done)
        for name in keys_of(some).keys() - wants.keys():
            for row, item in enumerate(some):
                if item.get(name) is not None:
                    raise _late(name, done + row)
            some = [{key: value for key, value in item.items() if key != name} for item in some]
        made = _arrays(some, expected, wants, done, wants, declared)
        yield pa.RecordBatch.from_arrays([made[name] for name in schema.names], schema=schema)
        done += len(some)


def _late(name: Any, row: int) -> InputError:
    return InputError(
        f"row {row} has {shown(name)}, which neither the schema nor the first rows of the stream have.",
        "declare it in a Schema, give the first row that key too, or pass list(rows), which has all rows at hand",
    )


def _chunks(
    items: Iterator[Any], size: int, expected: Expected, wants: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    done = 0
    while some := list(itertools.islice(items, size)):
        yield len(some), _arrays(_dicts(some, done), expected, wants, done)
        done += len(some)


# -- several tables ----------------------------------------------------------------------------------------------------


def _from_tables(
    items: Iterator[Any], expected: Expected, batch_rows: int, whole: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Turn tables, or lists of rows, into one stream."""
    import pyarrow as pa

    first = next(items)
    schema, head = batches_of(first, expected, batch_rows)

    def rest() -> Iterator[pa.RecordBatch]:
        for number, item in enumerate(items, 1):
            if _is_row(item):
                raise InputError(
                    f"item {number} of the data is a row, the ones before are tables.", "pass rows only, or tables only"
                )
            _refuse_item(item, number)
            yield from batches_of(item, expected, batch_rows)[1]

    batches = itertools.chain(head, rest())
    if whole:
        parts = ((batch.num_rows, dict(zip(batch.schema.names, batch.columns, strict=True))) for batch in batches)
        return _unified(parts, batch_rows, expected, schema)
    wanted = expected.types()
    required = expected.required() | expected.sources | expected.vectors
    for name in wanted.keys() - set(schema.names):  # declared columns are read, also where the first table lacks them
        if name not in required or name in expected.defaults.made:
            schema = schema.append(pa.field(name, wanted[name]))
    return schema, _aligned(batches, schema, expected)


def _unified(
    parts: Iterable[tuple[int, dict[str, Any]]], batch_rows: int, expected: Expected, first: pa.Schema | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Join parts that may differ in columns and types: each column gets the type that holds all its values.

    Args:
        parts: how many rows, and their columns by name.
        first: the schema of the first part, whose metadata is kept, and which is that of no parts.
    """
    import pyarrow as pa

    listed, types = list(parts), {item.name: item.type for item in first or []}
    done = 0
    for rows, arrays in listed:
        for name, array in arrays.items():
            known = types.setdefault(name, array.type)
            joined = common_type(known, array.type)
            if joined is None:
                present = next((row for row, null in enumerate(array.is_null().to_pylist()) if not null), None)
                if present is None:
                    continue
                raise InputError(
                    f"column {plain(name, 80)!r} does not agree on a type: row {done + present} is "
                    f"{shown(value_at(array, present))} ({array.type}), the rows before it {known}.",
                    "cast the column, or declare it in a Schema",
                )
            types[name] = joined
        done += rows
    fields = {item.name: item for item in first or []}
    schema = pa.schema(
        [fields[name].with_type(kind) if name in fields else pa.field(name, kind) for name, kind in types.items()],
        metadata=first.metadata if first is not None else None,
    )

    def batches() -> Iterator[pa.RecordBatch]:
        done = 0
        for rows, arrays in listed:
            made = [_part(arrays.get(item.name), rows, item, done, expected) for item in schema]
            yield from _cut([pa.RecordBatch.from_arrays(made, schema=schema)], batch_rows)
            done += rows

    return schema, iter(list(batches()))


def _part(array: Any, rows: int, item: pa.Field, first_row: int, expected: Expected, *, rounds: bool = True) -> Any:
    import pyarrow as pa

    if array is None:
        if (make := expected.defaults.made.get(item.name)) is not None:
            return made_column(item, [make({}) for _ in range(rows)])
        return pa.nulls(rows, item.type)
    try:
        return exactly(array, item.type, rounds=rounds)
    except Unfit as exc:
        raise InputError(
            f"column {plain(item.name, 80)!r} does not agree on a type: row {first_row + exc.row}"
            f"{f' at {exc.path}' if exc.path else ''}: {exc.why}, which other rows need.",
            "cast the column, or declare it in a Schema",
        ) from None


def _aligned(batches: Iterable[pa.RecordBatch], schema: pa.Schema, expected: Expected) -> Iterator[pa.RecordBatch]:
    """Yield batches in a schema that is given out already; what it cannot hold is an error.

    Floats are rounded to its types only in the columns that are declared or to be filled.
    """
    import numpy as np
    import pyarrow as pa

    done, declared = 0, expected.vectors | expected.types().keys()

    for batch in batches:
        if batch.schema.equals(schema):
            yield batch
        else:
            given = dict(zip(batch.schema.names, batch.columns, strict=True))
            for name, array in given.items():
                if name not in schema.names and array.null_count < len(array):
                    raise _late(name, done + int(np.argmax(np.asarray(array.is_valid()))))
            made = [
                _part(given.get(item.name), batch.num_rows, item, done, expected, rounds=item.name in declared)
                for item in schema
            ]
            yield pa.RecordBatch.from_arrays(made, schema=schema)
        done += batch.num_rows
