"""Row digests: which function made a vector, of which source; stored beside the vector by embedreg alone.

A digest is `"<8 hex of the function's fingerprint>:<16 hex of sha256(source)>"`, of a text as UTF-8, of an image's
bytes. A null source has a null digest. The declaration names the column, as `digest` of its reserved properties.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embedreg.core.base import EmbeddingFunction
from embedreg.declaration.fingerprint import fingerprint
from embedreg.errors import InputError, option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["SUFFIX", "column_name", "column_of", "digests", "is_stored", "prefix_of", "prefix_stored", "same", "sql"]

KEY = "digest"  # in the reserved properties
MADE_BY = "digest_fingerprint"  # after `repoint`: the fingerprint that the stored digests carry
SUFFIX = "__source_digest"
_FUNCTION = 8  # hex digits of the fingerprint
_SOURCE = 16  # hex digits of the source's hash: among 10**9 texts, two share it with a probability of 3%
_MAX_NAME = 1024
_HASH = {  # an expression per SQL dialect, null for null
    "databend": "left(sha2({column}, 256), {n})",
    "duckdb": "left(sha256({column}), {n})",
    "lance": "left(encode(sha256({column}), 'hex'), {n})",
}


def column_name(vector: str) -> str:
    """Return the name that a new digest column gets."""
    return f"{vector}{SUFFIX}"


def column_of(reserved: Mapping[str, Any]) -> str | None:
    """Return the digest column that a declaration names; None if it names none.

    A name without the suffix of such columns is ignored: a stored declaration must not overwrite other columns.
    """
    name = reserved.get(KEY)
    return name if isinstance(name, str) and name.endswith(SUFFIX) and len(SUFFIX) < len(name) <= _MAX_NAME else None


def is_stored(field: pa.Field) -> bool:
    """Return whether a column can hold digests: nullable strings."""
    import pyarrow as pa

    return field.nullable and field.type in (pa.string(), pa.large_string())


def prefix_of(function: EmbeddingFunction) -> str:
    """Return the part of a digest that names the function, with the colon.

    Raises:
        ConfigError, MissingVariableError: as `fingerprint`.
    """
    return _prefix(fingerprint(function))


def prefix_stored(reserved: Mapping[str, Any]) -> str | None:
    """Return the prefix from a stored declaration; None for one without a valid fingerprint."""
    value = reserved.get(MADE_BY, reserved.get("fingerprint"))
    if not isinstance(value, str):
        return None
    made = _prefix(value)
    return made if len(made) == _FUNCTION + 1 and all(each in "0123456789abcdef" for each in made[:-1]) else None


def _prefix(text: str) -> str:
    return f"{text.rpartition(':')[2][:_FUNCTION]}:"


def digests(source: pa.Array | pa.ChunkedArray, prefix: str) -> pa.Array:
    """Return the digests of a source column: (n,) strings, null for a null source.

    Args:
        source: texts or bytes, of any width; dictionaries of them too.
        prefix: of `prefix_of` or `prefix_stored`.
    Raises:
        InputError: a column of another type, which has no bytes to hash.
    """
    import pyarrow as pa

    return pa.array((None if each is None else f"{prefix}{_hash(each)}" for each in _bytes(source)), pa.string())


def sql(column: str, prefix: str, dialect: str) -> str:
    """Return the expression of a digest in an engine's SQL, null for a null source.

    Args:
        column: quoted as that dialect requires.
        dialect: "lance" (of DataFusion), "duckdb" or "databend".
    """
    return f"'{prefix}' || {_HASH[dialect].format(column=column, n=_SOURCE)}"


def same(one: pa.Array, other: pa.Array) -> np.ndarray:
    """Return where two columns of digests are equal: (n,) bool; two nulls are not equal."""
    import numpy as np
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(pc.equal(one, other), False))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_SOURCE]


def _bytes(source: pa.Array | pa.ChunkedArray) -> list[bytes | None]:
    import pyarrow as pa

    if isinstance(source, pa.ChunkedArray):
        source = source.combine_chunks() if source.num_chunks != 1 else source.chunk(0)
    kind = source.type
    if pa.types.is_dictionary(kind):
        source, kind = source.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        source = source.view(pa.binary())
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        source = source.view(pa.large_binary())
    elif kind in (pa.string_view(), pa.binary_view()):
        source = source.cast(pa.large_string() if kind == pa.string_view() else pa.large_binary())
        source = source.view(pa.large_binary())
    elif pa.types.is_fixed_size_binary(kind):
        source = source.cast(pa.binary())
    elif not pa.types.is_null(kind):
        raise InputError(
            f"a column of type {kind} has no digest; only texts and bytes have one.",
            option("cast it to string first, or --no-digest leaves digests out", "digest=False"),
        )
    values: list[bytes | None] = source.to_pylist()
    return values
