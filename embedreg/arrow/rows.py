"""Convert rows (dicts or models) to batches: a list of them, or a stream whose first rows determine the schema."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow.values import items_of, keys_of
from embedreg.errors import InputError, MissingColumnError
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa
from embedreg.arrow.declared import Expected, column, named
from embedreg.arrow.unify import late, unified

__all__ = ["from_dicts"]

_CHUNK = 8192  # rows that are converted to Arrow at a time: more would not stay in the processor's cache


def _dicts(rows: Sequence[Any], first_row: int) -> list[Any]:
    """Convert rows to dicts."""
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
    """Return the columns of some dicts: all of their keys, and `names`.

    Args:
        declared: the columns whose `wants` are declared; None for all.
    """
    import numpy as np

    found = dict.fromkeys(itertools.chain(keys_of(rows), names))
    made, required = {}, expected.required()
    for key in found:
        name = named(key)
        values = items_of(rows, key, expected.defaults.made.get(name))
        array = made[name] = column(
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
                f"row {first_row + row}: {plain(name, 80)!r} {what}, but the schema requires it.",
                f"fill it, or declare {name}: ... | None",
            )
    return made


def from_dicts(
    items: Iterator[Any], rows: Sequence[Any] | None, expected: Expected, batch_rows: int, whole: bool
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Convert dicts and models to batches; if all rows are known, the types are those that hold all values."""
    import pyarrow as pa

    wants = expected.types()
    if whole or rows is not None:
        return unified(_chunks(items, max(_CHUNK, batch_rows), expected, wants), batch_rows, expected)
    first = _dicts(list(itertools.islice(items, batch_rows)), 0)
    wants |= {
        name: pa.list_(pa.float64()) for name in expected.vectors - wants.keys()
    }  # a given vector may first appear late, and with another type of numbers
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
    """Yield the first chunk, then the others in the schema that it determined."""
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
                    raise late(name, done + row)
            some = [{key: value for key, value in item.items() if key != name} for item in some]
        made = _arrays(some, expected, wants, done, wants, declared)
        yield pa.RecordBatch.from_arrays([made[name] for name in schema.names], schema=schema)
        done += len(some)


def _chunks(
    items: Iterator[Any], size: int, expected: Expected, wants: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    done = 0
    while some := list(itertools.islice(items, size)):
        yield len(some), _arrays(_dicts(some, done), expected, wants, done)
        done += len(some)
