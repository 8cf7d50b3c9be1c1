"""An Arrow table as rows to audit, identify or compare; anything else is opened by its engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.columns.opening import opened
from embedreg.columns.rows import without_views
from embedreg.columns.store import ColumnStore
from embedreg.declaration.entries import Entry, entries

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TableRows", "readable"]


class TableRows:
    """An Arrow table with the reading part of a `ColumnStore`."""

    shown = "the table"

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def schema(self) -> pa.Schema:
        """The table's schema."""
        return self._table.schema

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self._table.num_rows)

    def scan(self, columns: Sequence[str], batch_rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows."""
        yield from self._table.select(list(columns)).to_batches(batch_rows)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Return some columns of some rows, in this order."""
        import pyarrow as pa

        taken = [without_views(self._table.column(name)).take(pa.array(rows, pa.int64())) for name in columns]
        return pa.table(dict(zip(columns, taken, strict=True)))

    def declared(self) -> list[Entry]:
        """Return the declarations in the schema's metadata."""
        return entries(self._table.schema.metadata)

    def previous(self, vector: str) -> Entry | None:
        """Return None: a table in memory is not migrated."""
        return None


def readable(data: Any) -> ColumnStore | TableRows:
    """Open data for reading: an Arrow table, a path, or an object of an engine.

    Raises:
        As `opened`.
    """
    import pyarrow as pa

    return TableRows(data) if isinstance(data, pa.Table) else opened(data)
