"""Search hits as a value, as JSON, and as a table on the terminal."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.cli import terminal
from embedreg.support.display import plain

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from embedreg.core.modality import Modality

__all__ = ["Hits", "as_records", "score_of", "show"]

_BY_WORDS = ("bm25", "rrf")


@dataclass(frozen=True)
class Hits:
    """The rows found by a search.

    Attributes:
        rows: nearest first, without their vectors.
        distances: (k,) one per row, smaller is nearer.
        metric: "cosine" (1 - cosine), "l2" (squared) or "dot" (1 - dot product); "maxsim", the sum of the cosine
            distances of a query's vectors to the nearest vectors of a row. For text search "bm25", and for several
            rankings "rrf" (reciprocal rank fusion), with the negative score in `distances`.
        source: the column that was embedded.
        values: the values of that column for these rows, if requested.
        media: their modality, if a page can show or play them; None for others.
    """

    rows: pa.Table
    distances: np.ndarray[Any, Any]
    metric: str
    source: str
    values: tuple[Any, ...] = ()
    media: Modality | None = None


def as_records(hits: Hits) -> list[dict[str, Any]]:
    """Return the hits as JSON objects: the row's columns, `_distance`, and for cosine `_score`, at most 1.

    Bytes are encoded as base64.
    """
    records = hits.rows.to_pylist()
    for record in records:
        found = {name: value for name, value in record.items() if isinstance(value, bytes)}
        record.update({name: base64.b64encode(value).decode("ascii") for name, value in found.items()})
    for record, distance in zip(records, hits.distances.tolist(), strict=True):
        if hits.metric in _BY_WORDS:
            record["_score"] = -distance
            continue
        record["_distance"] = distance
        if hits.metric == "cosine":
            record["_score"] = 1 - distance
    return list(records)


def show(hits: Hits, title: str | None = None, *, in_order: bool = False) -> None:
    """Print the hits as a table: the score (or distance), and each column on one line.

    Args:
        in_order: whether to keep the order of the columns, as given by the user.
    """
    names = hits.rows.column_names
    if not in_order:  # the embedded text is the longest: it comes last and is cut to fit
        names = [name for name in names if name != hits.source] + [name for name in names if name == hits.source]
    rows = [
        [f"{score_of(hits.metric, distance)[1]:.3f}", *(_cell(record[name]) for name in names)]
        for record, distance in zip(hits.rows.to_pylist(), hits.distances.tolist(), strict=True)
    ]
    wide = names.index(hits.source) + 1 if hits.source in names else -1
    terminal.print_table([score_of(hits.metric, 0)[0], *names], rows, title=title, wide=wide)


def score_of(metric: str, distance: float) -> tuple[str, float]:
    """Return the name and the value to show for a distance."""
    if metric in _BY_WORDS:
        return "score", -distance
    return ("score", 1 - distance) if metric == "cosine" else ("distance", distance)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else plain(value, 400)
