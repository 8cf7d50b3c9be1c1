"""Convert Python values to Arrow arrays: each value is kept exactly, or an error names it.

A declared type takes precedence. Otherwise all values together determine the type, never only the first ones: integers
and floats become floats if that is exact, and dicts become structs of all their keys.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from embedreg.arrow.casting import ConversionError, cast_exactly, list_of, shown
from embedreg.arrow.layouts import kind_of
from embedreg.arrow.objects import KINDS, kind_of_value, simplified
from embedreg.arrow.plain_columns import plain_column
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["NO_DEFAULTS", "Defaults", "array_of", "items_of", "keys_of", "numpy_array"]


class Defaults(NamedTuple):
    """The defaults for keys that a dict lacks.

    Attributes:
        made: key -> a function of the dict that returns the value.
        inner: key -> the defaults of the dicts in its value, or in its list.
    """

    made: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    inner: Mapping[str, Defaults]


NO_DEFAULTS = Defaults({}, {})


def array_of(values: list[Any], want: pa.DataType | None = None, defaults: Defaults = NO_DEFAULTS) -> pa.Array:
    """Convert Python values to an Arrow array.

    Args:
        values: n values; None is a null, NaN is a float.
        want: the declared type; None for the type that holds all values.
        defaults: for keys that dicts among the values lack.
    Raises:
        ConversionError: a value has no Arrow counterpart, is of another kind than others, or not of the declared type.
    """
    import pyarrow as pa

    found = set(map(type, values)) - {types.NoneType}
    if len(found) == 1 and next(iter(found)).__module__ == "numpy" and (made := _arrays(values, want)) is not None:
        return made
    if not found <= KINDS.keys():
        values = simplified(values, found)
        found = set(map(type, values)) - {types.NoneType}
    if not found:
        return pa.nulls(len(values), want if want is not None else pa.null())
    kinds = {KINDS.get(kind, kind_of_value(kind)) for kind in found}
    if want is not None and pa.types.is_map(want) and kinds <= {"struct", "list"}:
        return _map(values, want)
    if kinds == {"list"}:
        return _list(values, want, defaults)
    if kinds == {"struct"}:
        return _struct(values, want, defaults)
    made = plain_column(values, kinds, want)
    if want is None or made.type == want:
        return made
    if {kind_of(made.type), kind_of(_within(want))} == {"text", "bytes"}:
        row = next(row for row, value in enumerate(values) if value is not None)
        raise ConversionError(row, f"{shown(values[row])} is not {want}")
    return cast_exactly(made, want)


def _within(type_: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if isinstance(type_, pa.BaseExtensionType):
        return _within(type_.storage_type)
    return _within(type_.value_type) if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_) else type_


# -- lists, structs, maps ----------------------------------------------------------------------------------------------


def _list(values: list[Any], want: pa.DataType | None, defaults: Defaults) -> pa.Array:
    import numpy as np

    inner = _within(want) if want is not None else None
    if inner is not None and kind_of(inner) != "list":
        row = next(row for row, value in enumerate(values) if value is not None)
        raise ConversionError(row, f"{shown(values[row])} is not {want}")
    if (made := _simple_lists(values)) is not None:
        return made if want is None else cast_exactly(made, want)
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    flat = list(itertools.chain.from_iterable(value for value in values if value is not None))
    try:
        items = array_of(flat, inner.value_type if inner is not None else None, defaults)
    except ConversionError as exc:
        raise exc.inside(int(np.searchsorted(np.cumsum(lengths), exc.row, side="right")), "[]") from None
    missing = np.fromiter((value is None for value in values), bool, len(values))
    made = list_of(lengths, items, missing, inner)
    if inner is not None and items.null_count and not inner.value_field.nullable:
        row = int(np.argmax(np.asarray(items.is_null())))
        raise ConversionError(
            int(np.searchsorted(np.cumsum(lengths), row, side="right")), f"null is not allowed in {want}", "[]"
        )
    return made if want is None or made.type == want else cast_exactly(made, want)


def _simple_lists(values: list[Any]) -> pa.Array | None:
    """Convert lists of floats, texts or booleans by Arrow's own conversion, which is exact for these; else None."""
    import pyarrow as pa

    found = set(map(type, itertools.chain.from_iterable(value for value in values if value is not None)))
    found.discard(types.NoneType)
    if len(found) != 1 or (kind := found.pop()) not in (float, str, bool):
        return None
    try:
        made = pa.array(values, pa.list_({float: pa.float64(), str: pa.string(), bool: pa.bool_()}[kind]))
    except UnicodeEncodeError:
        return None
    return made if isinstance(made, pa.Array) else None  # several chunks: over 2 GiB


def _struct(values: list[Any], want: pa.DataType | None, defaults: Defaults) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    inner = _within(want) if want is not None else None
    if inner is not None and not pa.types.is_struct(inner):
        row = next(row for row, value in enumerate(values) if value is not None)
        raise ConversionError(row, f"{shown(values[row])} is not {want}")
    names = keys_of([value for value in values if value is not None])
    if odd := [name for name in names if type(name) is not str]:
        renamed = {name: str.__str__(name) for name in odd if isinstance(name, str)}
        if len(renamed) < len(odd):
            name = next(name for name in odd if name not in renamed)
            row = next(row for row, value in enumerate(values) if value is not None and name in value)
            raise ConversionError(row, f"its key {shown(name)} is {type(name).__name__}, not str")
        values = [v if v is None else {renamed.get(key, key): item for key, item in v.items()} for v in values]
        names = dict.fromkeys(renamed.get(name, name) for name in names)
    fields = {field.name: field for field in inner} if inner is not None else {}
    if inner is not None:
        for name in names.keys() - fields.keys():
            for row, value in enumerate(values):
                if value is not None and value.get(name) is not None:
                    raise ConversionError(row, f"it is not a field of {want}", f".{plain(name, 60)}")
        names = dict.fromkeys(fields)
    missing = [value is None for value in values]
    lacking = any(missing)
    if not names:
        return pa.array(values, pa.struct([]) if inner is None else inner)
    children = []
    for name in names:
        make = defaults.made.get(name)
        if not lacking:
            column = items_of(values, name, make)
        else:
            column = [None if value is None else items_of([value], name, make)[0] for value in values]
        try:
            child = array_of(column, fields[name].type if fields else None, defaults.inner.get(name, NO_DEFAULTS))
        except ConversionError as exc:
            raise exc.inside(exc.row, f".{plain(name, 60)}") from None
        if fields and not fields[name].nullable and child.null_count:
            absent = np.asarray(child.is_null()) & ~np.array(missing)
            if absent.any():
                raise ConversionError(int(np.argmax(absent)), "it is missing, but required", f".{plain(name, 60)}")
        children.append(child)
    made = pa.StructArray.from_arrays(
        children,
        fields=list(inner)
        if inner is not None
        else [pa.field(n, c.type) for n, c in zip(names, children, strict=True)],
        mask=pa.array(missing) if lacking else None,
    )
    return made if want is None or made.type == want else cast_exactly(made, want)


def keys_of(dicts: list[Any]) -> dict[Any, None]:
    """Return the keys of all dicts, in the order in which they first appear."""
    first = dict.fromkeys(dicts[0]) if dicts else {}
    # usually all dicts have the same keys, and comparing sets is fastest
    return first if set().union(*dicts) == first.keys() else dict.fromkeys(itertools.chain.from_iterable(dicts))


def items_of(dicts: list[Any], key: Any, make: Callable[[Mapping[str, Any]], Any] | None = None) -> list[Any]:
    """Return the values of a key; for dicts that lack it, `make(dict)` or None."""
    if make is None:
        return [one.get(key) for one in dicts]
    return [one[key] if key in one else make(one) for one in dicts]


def _map(values: list[Any], want: pa.DataType) -> pa.Array:
    import pyarrow as pa

    pairs = pa.struct([pa.field("key", want.key_type, nullable=False), pa.field("value", want.item_type)])
    values = [list(value.items()) if isinstance(value, dict) else value for value in values]
    for row, value in enumerate(values):
        if value is not None and not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
            raise ConversionError(row, f"{shown(value)} is not {want}")
    dicts = [None if value is None else [{"key": key, "value": item} for key, item in value] for value in values]
    made = _list(dicts, pa.list_(pairs), NO_DEFAULTS)
    starts = [
        None if null else int(at)
        for at, null in zip(made.offsets.to_pylist()[:-1], made.is_null().to_pylist(), strict=True)
    ]
    offsets = pa.array([*starts, made.offsets.to_pylist()[-1]], pa.int32())
    return pa.MapArray.from_arrays(offsets, *made.values.flatten(), type=want)


def _arrays(values: list[Any], want: pa.DataType | None) -> pa.Array | None:
    """Convert 1-d numpy arrays of one dtype to lists without creating Python numbers; None for anything else."""
    import numpy as np

    present = [value for value in values if value is not None]
    inner = _within(want) if want is not None else None
    if not all(type(value) is np.ndarray and value.ndim == 1 for value in present):
        return None
    dtype = present[0].dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or any(value.dtype != dtype for value in present):
        return None
    if inner is not None and kind_of(inner) != "list":
        return None
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    items = numpy_array(np.concatenate(present))
    missing = np.fromiter((value is None for value in values), bool, len(values))
    made = list_of(lengths, items, missing, None)
    return made if want is None else cast_exactly(made, want)


def numpy_array(array: Any) -> pa.Array:
    """Convert a 1-d numpy array to Arrow; NaN stays NaN, NaT and masked values become null.

    Raises:
        ConversionError: its values have no Arrow counterpart.
    """
    import numpy as np
    import pyarrow as pa

    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    data = np.ma.getdata(array) if mask is not None else np.asarray(array)
    kind = data.dtype.kind
    if kind in "biuf" and data.dtype.itemsize <= 8:
        return pa.array(data.astype(data.dtype.newbyteorder("="), copy=False), mask=mask, from_pandas=False)
    if kind in "mM" and np.datetime_data(data.dtype) in (("s", 1), ("ms", 1), ("us", 1), ("ns", 1)):
        return pa.array(data.astype(data.dtype.newbyteorder("="), copy=False), mask=mask)
    values = list(data) if kind in "mMfcV" else data.tolist()
    if mask is not None:
        values = [None if hidden else value for value, hidden in zip(values, mask.tolist(), strict=True)]
    return array_of(values)
