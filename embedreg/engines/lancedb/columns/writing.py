"""`Writer`: rows of a staged file, at their places in the fragment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedreg.engines.lancedb.columns.commits import lance_errors

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["CHUNK", "Writer"]

CHUNK = 8192  # rows


class Writer:
    """Writes rows to a column file."""

    def __init__(self, writer: Any, schema: pa.Schema) -> None:
        self._writer, self._schema, self._at = writer, schema, 0

    def place(self, vectors: pa.Array, digests: pa.Array, offsets: np.ndarray) -> None:
        """Write rows at their places; places in between, of deleted rows, are null."""
        import numpy as np
        import pyarrow as pa

        if not len(offsets):
            return
        stop = int(offsets[-1]) + 1
        if stop - self._at != len(offsets):
            index = np.full(stop - self._at, -1, np.int64)
            index[offsets - self._at] = np.arange(len(offsets))
            places = pa.array(index, mask=index < 0)
            vectors, digests = vectors.take(places), digests.take(places)
        self.put(vectors, digests)
        self._at = stop

    def end(self, rows: int) -> None:
        """Write nulls up to a number of rows."""
        import pyarrow as pa

        while self._at < rows:
            some = min(rows - self._at, CHUNK)
            self.put(pa.nulls(some, self._schema.field(0).type), pa.nulls(some, pa.string()))
            self._at += some

    def put(self, vectors: pa.Array, digests: pa.Array) -> None:
        """Write rows one after another."""
        import pyarrow as pa

        with lance_errors("a staged file cannot be written"):
            self._writer.write_batch(pa.RecordBatch.from_arrays([vectors, digests], schema=self._schema))
