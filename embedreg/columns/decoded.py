"""Data whose quantised column is read as the vectors that its values stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow.quantized import Quantizer
from embedreg.arrow.vectors import Embedded, given_vectors
from embedreg.columns.store import ColumnStore
from embedreg.columns.tables import TableRows
from embedreg.declaration.entries import Entry
from embedreg.declaration.quantization import quantizer_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Decoded", "as_floats", "declaration_of", "read_as_floats"]


class Decoded:
    """The reading part of a `ColumnStore`, with one column of floats instead of quantised values."""

    def __init__(self, data: ColumnStore | TableRows, vector: str, quantizer: Quantizer) -> None:
        self._data, self._vector, self._quantizer = data, vector, quantizer
        self.shown = data.shown

    @property
    def schema(self) -> pa.Schema:
        """The schema, with the type of the decoded vectors."""
        import pyarrow as pa

        schema = self._data.schema
        place = schema.get_field_index(self._vector)
        kind = pa.list_(pa.float32(), self._quantizer.ndims)
        return schema.set(place, schema.field(place).with_type(kind)) if place >= 0 else schema

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self._data.rows

    def scan(self, columns: Sequence[str], batch_rows: int = 8192) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows."""
        import pyarrow as pa

        for batch in self._data.scan(columns, batch_rows):
            arrays = [self._read(name, batch.column(name)) for name in columns]
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Return some columns of some rows, in this order."""
        import pyarrow as pa

        table = self._data.take(rows, columns)
        return pa.table({name: self._read(name, table.column(name)) for name in columns})

    def declared(self) -> list[Entry]:
        """Return the declarations."""
        return self._data.declared()

    def previous(self, vector: str) -> Entry | None:
        """Return the declaration before a migration."""
        return self._data.previous(vector)

    def _read(self, name: str, column: Any) -> Any:
        return column if name != self._vector else as_floats(column, self._quantizer, name)


def as_floats(column: Any, quantizer: Quantizer, name: str) -> pa.Array:
    """Return quantised values as the vectors that they stand for, null where they are."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    given, _ = given_vectors(array, quantizer.width, name)
    return Embedded(quantizer.decode(given.matrix), given.valid).to_arrow()


def declaration_of(data: ColumnStore | TableRows, vector: str) -> Entry | None:
    """Return the declaration of a column; None if it is not declared."""
    return next((entry for entry in data.declared() if entry.vector_column == vector), None)


def read_as_floats(
    data: ColumnStore | TableRows, entry: Entry | None
) -> tuple[ColumnStore | TableRows | Decoded, Quantizer | None]:
    """Return data whose declared column is read as floats, and how its values were quantised; None for floats.

    The data is returned as it is if the ranges are not known, or nothing is declared.
    """
    quantizer = None if entry is None else quantizer_of(entry.reserved)
    if entry is None or quantizer is None or not quantizer.known:
        return data, quantizer
    return Decoded(data, entry.vector_column, quantizer), quantizer
