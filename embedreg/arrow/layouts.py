"""Kinds and layouts of Arrow types: dictionaries, views, runs and extensions, and their plain counterparts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["WITHOUT_VIEWS", "kept_rows", "kind_of", "plain_array", "storable_type", "taken"]

WITHOUT_VIEWS = {"string_view": "large_string", "binary_view": "large_binary"}


@functools.cache
def kind_of(type_: pa.DataType) -> str:
    """Return the kind of a type's values, regardless of width: "text", "number", "list" and so on."""
    import pyarrow as pa

    is_ = pa.types
    kinds: dict[str, tuple[Callable[[Any], bool], ...]] = {
        "text": (is_.is_string, is_.is_large_string, is_.is_string_view),
        "number": (is_.is_integer, is_.is_floating, is_.is_decimal),
        "bytes": (is_.is_binary, is_.is_large_binary, is_.is_binary_view, is_.is_fixed_size_binary),
        "list": (is_.is_list, is_.is_large_list, is_.is_fixed_size_list, is_.is_list_view, is_.is_large_list_view),
        "date": (is_.is_date,),
        "timestamp": (is_.is_timestamp,),
        "time": (is_.is_time,),
        "duration": (is_.is_duration,),
    }
    return next((kind for kind, tests in kinds.items() if any(test(type_) for test in tests)), type_.__class__.__name__)


def plain_array(array: pa.Array) -> pa.Array:
    """Return an array without dictionary, run-end or extension encoding."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.ExtensionArray):
        return plain_array(array.storage)
    if isinstance(array, pa.DictionaryArray):
        values = plain_array(array.dictionary)
        if (wide := WITHOUT_VIEWS.get(str(values.type))) is not None:  # `take` does not support views (pyarrow 26)
            values = values.cast(wide)
        return values.take(array.indices)
    if isinstance(array, pa.RunEndEncodedArray):
        return plain_array(pc.run_end_decode(array))
    return array


def kept_rows(batch: pa.RecordBatch, keep: np.ndarray) -> pa.RecordBatch:
    """Return some rows of a batch of any types: Arrow's own `filter` does not support views or dictionaries of them.

    Args:
        keep: (n,) bool.
    """
    import numpy as np
    import pyarrow as pa

    try:
        return batch.filter(pa.array(keep))
    except pa.ArrowNotImplementedError:  # Arrow filters no run-end encoded columns, list views or unions
        edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
        runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        columns = [pa.concat_arrays([column[start:stop] for start, stop in runs] or [column[:0]]) for column in batch]
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def taken(array: pa.Array, rows: np.ndarray) -> pa.Array:
    """Return some rows of an array of texts or bytes, without dictionary or views."""
    import pyarrow as pa

    simple = plain_array(array)
    wide = WITHOUT_VIEWS.get(str(simple.type))
    return (simple if wide is None else simple.cast(wide)).take(pa.array(rows))


def storable_type(type_: pa.DataType) -> pa.DataType:
    """Return a type with dictionaries of plain texts or bytes instead of dictionaries of views."""
    import pyarrow as pa

    if pa.types.is_dictionary(type_) and (wide := WITHOUT_VIEWS.get(str(type_.value_type))) is not None:
        narrow = pa.type_for_alias(wide.removeprefix("large_"))
        return pa.dictionary(type_.index_type, narrow, ordered=type_.ordered)
    if pa.types.is_struct(type_):
        return pa.struct([item.with_type(storable_type(item.type)) for item in type_])
    if kind_of(type_) == "list":
        inner = type_.value_field.with_type(storable_type(type_.value_type))
        if inner.type == type_.value_type:
            return type_
        if pa.types.is_fixed_size_list(type_):
            return pa.list_(inner, type_.list_size)
        return (pa.large_list if "large" in str(type_) else pa.list_)(inner)
    return type_
