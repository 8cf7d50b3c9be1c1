"""Stored vectors compared with those that a function returns now for the same sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.core.base import metric_of
from embedreg.declaration import drift
from embedreg.engines.lancedb.columns.making import Maker
from embedreg.errors import VectorError
from embedreg.inspection.attach import compared

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["agrees"]


def agrees(maker: Maker, source: pa.ChunkedArray | pa.Array, stored: pa.ChunkedArray | pa.Array) -> tuple[int, int]:
    """Return how many stored vectors of some sources are those of a maker's function, and of how many.

    Rows without a source or a vector are left out.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = pa.table({"source": source, "vector": stored})
    rows = rows.filter(pc.and_(rows["source"].is_valid(), rows["vector"].is_valid())).combine_chunks()
    if not len(rows):
        return 0, 0
    try:
        cosines, lengths = compared(maker.config, rows["source"].combine_chunks(), rows["vector"].combine_chunks())
    except VectorError:  # another width
        return 0, len(rows)
    good = cosines >= drift.PROBE_COSINE
    if metric_of(maker.function) != "cosine":
        good &= lengths <= drift.PROBE_LENGTH
    return int(good.sum()), len(good)
