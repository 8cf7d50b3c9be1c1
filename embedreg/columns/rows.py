"""The part of a store that is read by number or from end to end, and the lengths of its sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Readable", "lengths_of", "plain_rows", "without_views"]


class Readable(Protocol):
    """The part of a `ColumnStore` that is read here."""

    shown: str

    @property
    def schema(self) -> pa.Schema:
        """The schema."""

    @property
    def rows(self) -> int:
        """The number of rows."""

    def scan(self, columns: Any, batch_rows: int = ...) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows."""

    def take(self, rows: Any, columns: Any) -> pa.Table:
        """Return some columns of some rows, in this order."""


def lengths_of(column: Any) -> np.ndarray:
    """Return the lengths of sources in bytes, (n,); 0 for nulls, and for values that have no bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind) or kind in (pa.string_view(), pa.binary_view()):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        column = column.cast(pa.large_binary())
    known = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(), pa.binary_view())
    if kind not in known:
        return np.zeros(len(column), np.int64)
    return np.asarray(pc.fill_null(pc.binary_length(column), 0)).astype(np.int64)


def plain_rows(rows: Any) -> Any:
    """Return a table or batch whose columns have no views."""
    return type(rows).from_arrays([without_views(column) for column in rows.columns], names=rows.schema.names)


def without_views(column: Any) -> Any:
    """Return an Arrow column with views as plain texts or bytes: Arrow cannot take rows of views."""
    import pyarrow as pa

    plain = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}.get(column.type)
    return column if plain is None else column.cast(plain)
