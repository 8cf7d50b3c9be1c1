"""SQL types of the columns that data has beside its source and its vectors."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["sql_columns"]

_PLAIN = {
    "bool": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INT",
    "int64": "BIGINT",
    "uint8": "TINYINT UNSIGNED",
    "uint16": "SMALLINT UNSIGNED",
    "uint32": "INT UNSIGNED",
    "uint64": "BIGINT UNSIGNED",
    "halffloat": "FLOAT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "date32[day]": "DATE",
    "date64[ms]": "DATE",
}


def sql_columns(schema: pa.Schema, without: Collection[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the columns of data with their SQL types in Databend, and the names of those that it has no type for.

    Args:
        schema: of the data.
        without: columns to leave out. Lists of floats, which are vectors, are left out too.
    """
    found: list[tuple[str, str]] = []
    lacking: list[str] = []
    for each in schema:
        if each.name in without or _is_vectors(each.type):
            continue
        kind = _sql_type(each.type)
        if kind is None:
            lacking.append(each.name)
        else:
            found.append((each.name, kind))
    return found, lacking


def _is_vectors(type_: pa.DataType) -> bool:
    import pyarrow as pa

    listed = pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    return bool(listed and pa.types.is_floating(type_.value_type))


def _sql_type(type_: pa.DataType) -> str | None:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(type_):
        return _sql_type(type_.value_type)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "STRING"
    if types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_):
        return "BINARY"
    if types.is_timestamp(type_):
        return "TIMESTAMP"
    if types.is_decimal128(type_) or types.is_decimal256(type_):
        return f"DECIMAL({type_.precision}, {type_.scale})" if 0 <= type_.scale <= type_.precision else None
    if types.is_list(type_) or types.is_large_list(type_):
        items = _sql_type(type_.value_type)
        return None if items is None else f"ARRAY({items})"
    return _PLAIN.get(str(type_))
