"""Join several tables: one common schema, and each part cast to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from embedreg.arrow.casting import ConversionError, cast_exactly, shown, value_at
from embedreg.arrow.common_types import common_type
from embedreg.errors import InputError
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa
from embedreg.arrow.declared import Expected, made_column

__all__ = ["aligned", "cut", "late", "unified"]


def cut(batches: Iterable[pa.RecordBatch], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches of at most `batch_rows` rows."""
    for batch in batches:
        for start in range(0, batch.num_rows, batch_rows):
            yield batch.slice(start, batch_rows)


def late(name: Any, row: int) -> InputError:
    """Return the error for a column that first appears after the schema of a stream was returned."""
    return InputError(
        f"row {row} has {shown(name)}, which neither the schema nor the first rows of the stream have.",
        "declare it in a Schema, give the first row that key too, or pass list(rows), so that all rows are known",
    )


def unified(
    parts: Iterable[tuple[int, dict[str, Any]]], batch_rows: int, expected: Expected, first: pa.Schema | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Join parts with different columns and types: each column gets the type that holds all of its values.

    Args:
        parts: the number of rows of each, and its columns by name.
        first: the schema of the first part, whose metadata is kept; it is the result if there are no parts.
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
                    f"column {plain(name, 80)!r} has no common type: row {done + present} is "
                    f"{shown(value_at(array, present))} ({array.type}), the rows before it are {known}.",
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
            yield from cut([pa.RecordBatch.from_arrays(made, schema=schema)], batch_rows)
            done += rows

    return schema, iter(list(batches()))


def _part(array: Any, rows: int, item: pa.Field, first_row: int, expected: Expected, *, rounds: bool = True) -> Any:
    import pyarrow as pa

    if array is None:
        if (make := expected.defaults.made.get(item.name)) is not None:
            return made_column(item, [make({}) for _ in range(rows)])
        return pa.nulls(rows, item.type)
    try:
        return cast_exactly(array, item.type, rounds=rounds)
    except ConversionError as exc:
        raise InputError(
            f"column {plain(item.name, 80)!r} has no common type: row {first_row + exc.row}"
            f"{f' at {exc.path}' if exc.path else ''}: {exc.why}, the type of other rows.",
            "cast the column, or declare it in a Schema",
        ) from None


def aligned(batches: Iterable[pa.RecordBatch], schema: pa.Schema, expected: Expected) -> Iterator[pa.RecordBatch]:
    """Yield batches in a schema that was already returned; a value that it cannot hold is an error.

    Floats are rounded to its types only in columns that are declared or to be filled.
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
                    raise late(name, done + int(np.argmax(np.asarray(array.is_valid()))))
            made = [
                _part(given.get(item.name), batch.num_rows, item, done, expected, rounds=item.name in declared)
                for item in schema
            ]
            yield pa.RecordBatch.from_arrays(made, schema=schema)
        done += batch.num_rows
