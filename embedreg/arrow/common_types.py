"""`common_type`: the type that holds the values of two types, if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.arrow.casting import UUID_TYPE
from embedreg.arrow.layouts import kind_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["common_type"]


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type for the values of both, or None; `cast_exactly` then checks each value."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if UUID_TYPE in (str(one), str(other)):  # a UUID is neither text nor bytes
        return None
    simple = [_without_encoding(type_) for type_ in (one, other)]
    if simple != [one, other]:
        return common_type(*simple)
    kind = kind_of(one)
    if kind != kind_of(other):
        return None
    if kind == "number":
        return _common_number(one, other)
    if kind in ("text", "bytes"):
        return pa.large_string() if kind == "text" else pa.large_binary()
    if kind == "list":
        return _common_list(one, other)
    if pa.types.is_struct(one):
        return _common_struct(one, other)
    if kind == "timestamp":
        if (one.tz is None) != (other.tz is None):
            return None
        return pa.timestamp(_finer(one, other), one.tz if one.tz == other.tz else "UTC")
    if kind == "duration":
        return pa.duration(_finer(one, other))
    if kind == "time":
        return pa.time64(unit) if (unit := _finer(one, other)) in ("us", "ns") else pa.time32(unit)
    return pa.date64() if kind == "date" else None


def _without_encoding(type_: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if isinstance(type_, pa.BaseExtensionType):
        return type_.storage_type
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        return type_.value_type
    return type_


def _finer(one: pa.DataType, other: pa.DataType) -> str:
    units = ("s", "ms", "us", "ns")
    return units[max(units.index(one.unit), units.index(other.unit))]


def _common_number(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    import pyarrow as pa

    is_ = pa.types
    both = (one, other)
    if any(map(is_.is_decimal, both)):
        if any(map(is_.is_floating, both)):
            return None
        sizes = [(type_.precision, type_.scale) if is_.is_decimal(type_) else (20, 0) for type_ in both]
        scale = max(size[1] for size in sizes)
        precision = max(size[0] - size[1] for size in sizes) + scale
        return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(min(precision, 76), scale)
    if all(map(is_.is_floating, both)):
        return max(both, key=lambda type_: type_.bit_width)
    if any(map(is_.is_floating, both)):
        return pa.float64()
    if all(map(is_.is_signed_integer, both)) or all(map(is_.is_unsigned_integer, both)):
        return max(both, key=lambda type_: type_.bit_width)
    return pa.int64()


def _common_list(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    import pyarrow as pa

    value = common_type(one.value_type, other.value_type)
    if value is None:
        return None
    if pa.types.is_fixed_size_list(one) and pa.types.is_fixed_size_list(other) and one.list_size == other.list_size:
        return pa.list_(value, one.list_size)
    return (pa.large_list if any(map(pa.types.is_large_list, (one, other))) else pa.list_)(value)


def _common_struct(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    import pyarrow as pa

    fields = {}
    for name in dict.fromkeys(field.name for type_ in (one, other) for field in type_):
        types = [type_.field(name).type for type_ in (one, other) if type_.get_field_index(name) >= 0]
        fields[name] = common_type(types[0], types[-1])
    return None if None in fields.values() else pa.struct(fields.items())
