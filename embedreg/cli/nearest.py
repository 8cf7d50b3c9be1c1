"""Exact nearest neighbours over a stream of Arrow batches, for searches without an engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from embedreg.errors import VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["as_matrix", "distances", "nearest"]


def nearest(
    batches: Iterable[pa.RecordBatch],
    vector: str,
    query: np.ndarray[Any, Any],
    metric: str,
    limit: int,
    shown: list[str],
) -> tuple[pa.Table | None, np.ndarray[Any, Any]]:
    """Return the rows whose vectors are nearest to a query, with one batch and `limit` rows in memory.

    Args:
        batches: the rows, including the column `vector`.
        vector: the column with the stored vectors; null rows are skipped.
        query: (d,) float.
        metric: "cosine", "l2" or "dot".
        limit: how many rows.
        shown: the columns to return.
    Returns:
        (the rows, nearest first, or None without any batch; their (k,) distances).
    Raises:
        VectorError: the stored vectors have another width than the query.
    """
    import numpy as np
    import pyarrow as pa

    best: pa.Table | None = None
    scores = np.empty(0, np.float32)
    for batch in batches:
        matrix, valid = as_matrix(batch.column(vector), len(query))
        new = np.full(batch.num_rows, np.inf, np.float32)  # a null row has an infinite distance
        new[valid] = distances(matrix, query, metric)
        new[np.isnan(new)] = np.inf
        keep = np.argsort(new, kind="stable")[
            :limit
        ]  # stable: of equal rows the first wins, for any split into batches
        rows = pa.Table.from_batches([batch]).select(shown).take(pa.array(keep))
        best = rows if best is None else pa.concat_tables([best, rows])
        scores = np.concatenate([scores, new[keep]])
        order = np.argsort(scores, kind="stable")[:limit]
        best, scores = best.take(pa.array(order)).combine_chunks(), scores[order]
    if best is None:
        return None, scores
    found = int(np.isfinite(scores).sum())
    return best.slice(0, found), scores[:found]


def as_matrix(column: pa.Array, width: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the vectors of an Arrow list column.

    Args:
        column: fixed-size or plain lists of floats (other programs convert the first to the second).
        width: d, the values of each vector.
    Returns:
        ((m, d) float32 of the rows that are not null; (n,) bool validity mask).
    Raises:
        VectorError: its values are not lists of numbers, or have another length.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise VectorError(f"the vector column holds {kind}, not lists of numbers.", "name the right one with --vector")
    valid = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), bool)
    present = column.drop_null()
    lengths = pc.list_value_length(present)
    bad = pc.filter(lengths, pc.not_equal(lengths, width))
    if len(bad):
        raise VectorError(
            f"a stored vector has {bad[0].as_py()} values, the query has {width}.",
            "the column was made by another function: embedreg inspect",
        )
    values = present.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return values.reshape(len(present), width), valid


def distances(matrix: np.ndarray[Any, Any], query: np.ndarray[Any, Any], metric: str) -> np.ndarray[Any, Any]:
    """Return the distance of each row, smaller is nearer, as LanceDB computes it.

    Args:
        matrix: (m, d) float32.
        query: (d,) float.
        metric: "cosine" (1 - cosine), "l2" (squared) or "dot" (1 - dot product).
    Returns:
        (m,) float32; cosine with a zero vector is NaN.
    """
    import numpy as np

    query = np.asarray(query, np.float32)
    if metric == "l2":
        return np.asarray(np.square(matrix - query).sum(axis=1), np.float32)
    dot = matrix @ query
    if metric == "dot":
        return np.asarray(1 - dot, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - dot / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(query)), np.float32)
