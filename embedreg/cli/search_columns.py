"""Which columns a search reads and shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.errors import MissingColumnError
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["is_binary", "shown_columns", "with_source", "without_views"]


def without_views(schema: pa.Schema) -> pa.Schema:
    """Return the schema with plain strings and binaries instead of views, which Arrow can neither filter nor take."""
    import pyarrow as pa

    plain_types = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    fields = [field.with_type(plain_types.get(field.type, field.type)) for field in schema]
    return pa.schema(fields, metadata=schema.metadata)


def with_source(source: str | None, shown: list[str], schema: pa.Schema) -> list[str]:
    """Return the columns to read: those to show, and the source column if wanted and present."""
    return shown if source is None or source in shown or source not in schema.names else [*shown, source]


def shown_columns(schema: pa.Schema, wanted: list[str] | None) -> list[str]:
    """Return the columns to show: the requested ones, or all except lists of numbers, row digests and bytes."""
    import pyarrow as pa

    if wanted is None:
        plain = [field for field in schema if not (pa.types.is_nested(field.type) and _is_vector(field.type))]
        plain = [field for field in plain if not _is_digest(field.name, schema)]
        return [field.name for field in plain if not is_binary(field.type)] or [field.name for field in plain]
    for name in wanted:
        if name not in schema.names:
            hint = f"{did_you_mean(name, schema.names)}columns: {', '.join(schema.names)}"
            raise MissingColumnError(f"there is no column {name!r}.", hint)
    return wanted


def _is_digest(name: str, schema: pa.Schema) -> bool:
    from embedreg.chunks import settings
    from embedreg.declaration import digest

    if name == settings.PARENT_DIGEST and settings.KEY.encode() in (schema.metadata or {}):
        return True
    return name.endswith(digest.SUFFIX) and name.removesuffix(digest.SUFFIX) in schema.names


def _is_vector(kind: pa.DataType) -> bool:
    import pyarrow as pa

    from embedreg.core.kinds import kind_of_type

    vectors = kind_of_type(kind)
    if vectors is None:
        return False
    value = vectors.value_type(kind)
    quantized = pa.types.is_fixed_size_list(kind) and value in (pa.int8(), pa.uint8())
    return quantized or bool(pa.types.is_floating(value))


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a type is one of bytes."""
    import pyarrow as pa

    test = pa.types
    return bool(test.is_binary(kind) or test.is_large_binary(kind) or test.is_binary_view(kind))
