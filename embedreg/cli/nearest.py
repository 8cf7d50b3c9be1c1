"""Exact nearest neighbours over a stream of Arrow batches, for searches without an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.errors import VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from embedreg.arrow.kind import VectorKind
    from embedreg.arrow.quantized import Quantizer

__all__ = ["Asked", "as_matrix", "fused", "nearest"]

RRF = 60  # the constant of reciprocal rank fusion
DEPTH = 100  # rows of each search that count for a fusion; more if more are requested


@dataclass(frozen=True)
class Asked:
    """One vector column and what is looked for in it.

    Attributes:
        vector: the column.
        kind: of its vectors.
        query: a vector of that kind, as `embed_query` returns it.
        ndims: the width of the vectors.
        metric: "cosine", "l2" or "dot".
        quantizer: how the stored values were made; None for floats. They are compared by what they stand for.
    """

    vector: str
    kind: VectorKind
    query: Any
    ndims: int
    metric: str
    quantizer: Quantizer | None = None

    @property
    def signs(self) -> bool:
        """Whether the column holds signs, which can be compared by themselves."""
        return self.quantizer is not None and self.quantizer.bits

    def different(self, column: pa.Array) -> np.ndarray[Any, Any]:
        """Return the Hamming distance of each row's signs: (n,) float32, infinite where there is none."""
        import numpy as np

        assert self.quantizer is not None
        stored, valid = as_matrix(column, self.quantizer.width)
        offset = 128 if self.quantizer.dtype == "binary" else 0
        wanted = self.quantizer.encode(np.asarray(self.query, np.float32)[None]).astype(np.int16) + offset
        bits = (stored + offset).astype(np.uint8) ^ wanted.astype(np.uint8)
        made = np.full(len(column), np.inf, np.float32)
        made[valid] = np.unpackbits(bits, axis=1).sum(axis=1)
        return made

    def distances(self, column: pa.Array) -> np.ndarray[Any, Any]:
        """Return the distance of each row: (n,) float32, infinite where there is none."""
        import numpy as np

        if self.quantizer is not None:
            stored, valid = as_matrix(column, self.quantizer.width)
            rows = self.quantizer.decode(stored)
        elif self.kind.one_size:
            rows, valid = as_matrix(column, self.ndims)
        else:
            found = self.kind.given(column, self.ndims, self.vector)
            rows, valid = self.kind.spread(found.rows, np.flatnonzero(found.valid)), found.valid
        made = np.full(len(column), np.inf, np.float32)  # a null row has an infinite distance
        made[valid] = self.kind.distances(rows, self.query, self.metric)
        made[np.isnan(made)] = np.inf
        return made


class _Best:
    """The nearest rows so far: their columns, distances and numbers."""

    def __init__(self, limit: int) -> None:
        import numpy as np

        self._limit = limit
        self.rows: pa.Table | None = None
        self.scores, self.numbers = np.empty(0, np.float32), np.empty(0, np.int64)

    def add(self, rows: pa.Table, first: int, new: np.ndarray[Any, Any]) -> None:
        """Add the rows of a batch, from a row number on, with their distances."""
        import numpy as np
        import pyarrow as pa

        keep = np.argsort(new, kind="stable")[: self._limit]  # stable: of equal rows the first wins, for any batches
        rows = rows.take(pa.array(keep))
        every = rows if self.rows is None else pa.concat_tables([self.rows, rows])
        scores, numbers = np.concatenate([self.scores, new[keep]]), np.concatenate([self.numbers, first + keep])
        order = np.argsort(scores, kind="stable")[: self._limit]
        self.rows = every.take(pa.array(order)).combine_chunks()
        self.scores, self.numbers = scores[order], numbers[order]

    def found(self) -> int:
        """Return how many rows have a distance."""
        import numpy as np

        return int(np.isfinite(self.scores).sum())


def nearest(
    batches: Iterable[pa.RecordBatch], asked: Asked, limit: int, shown: list[str], rescore: int = 0
) -> tuple[pa.Table | None, np.ndarray[Any, Any]]:
    """Return the rows whose vectors are nearest to a query, with one batch and `limit` rows in memory.

    Where signs are stored, `rescore * limit` rows are found by their Hamming distance, then compared by what they stand
    for.

    Args:
        batches: the rows, including the column that is searched; its null rows are skipped.
        limit: how many rows.
        shown: the columns to return.
        rescore: of signs; 0 for Hamming distances alone.
    Returns:
        (the rows, nearest first, or None without any batch; their (k,) distances).
    Raises:
        VectorError: the stored vectors have another width than the query.
    """
    import numpy as np
    import pyarrow as pa

    if asked.signs:
        names = list(dict.fromkeys([*shown, asked.vector]))
        [best] = _searched(batches, [(asked.vector, asked.different)], limit * max(rescore, 1), names)
        if best.rows is None:
            return None, best.scores
        rows, scores = best.rows.slice(0, best.found()), best.scores[: best.found()]
        if rescore:
            scores = asked.distances(rows.column(asked.vector).combine_chunks())
            order = np.argsort(scores, kind="stable")
            rows, scores = rows.take(pa.array(order)), scores[order]
        return rows.slice(0, limit).select(shown), scores[:limit]
    [best] = _searched(batches, [(asked.vector, asked.distances)], limit, shown)
    return (None if best.rows is None else best.rows.slice(0, best.found())), best.scores[: best.found()]


def fused(
    batches: Iterable[pa.RecordBatch], asked: Sequence[Asked], limit: int, shown: list[str]
) -> tuple[pa.Table | None, np.ndarray[Any, Any]]:
    """Return the rows that several searches together rank first, by reciprocal rank fusion.

    A row's score is the sum over the searches of 1 / (60 + its rank in it, from 1); the first `DEPTH` of each count.

    Args:
        batches, limit, shown: as `nearest`; all columns are searched in one scan.
    Returns:
        (the rows, first ones first, or None; their (k,) negative scores).
    Source: Cormack, Clarke and Buettcher 2009, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
        Learning Methods", with its constant of 60.
    """
    import numpy as np
    import pyarrow as pa

    found = _searched(batches, [(each.vector, each.distances) for each in asked], max(limit, DEPTH), shown)
    scores: dict[int, float] = {}
    places: dict[int, tuple[int, int]] = {}
    for which, best in enumerate(found):
        for rank, number in enumerate(best.numbers[: best.found()].tolist()):
            scores[number] = scores.get(number, 0.0) + 1 / (RRF + rank + 1)
            places.setdefault(number, (which, rank))
    first = sorted(scores, key=lambda number: (-scores[number], number))[:limit]
    if found[0].rows is None:
        return None, np.empty(0)
    rows = [found[which].rows.slice(rank, 1) for which, rank in map(places.__getitem__, first)]  # type: ignore[union-attr]
    table = pa.concat_tables(rows).combine_chunks() if rows else found[0].rows.slice(0, 0)
    return table, -np.array([scores[number] for number in first])


def _searched(
    batches: Iterable[pa.RecordBatch],
    measures: Sequence[tuple[str, Callable[[pa.Array], np.ndarray[Any, Any]]]],
    limit: int,
    shown: list[str],
) -> list[_Best]:
    """Return the nearest rows by each measure of a column."""
    import pyarrow as pa

    found, first = [_Best(limit) for _ in measures], 0
    for batch in batches:
        rows = pa.Table.from_batches([batch]).select(shown)
        for (vector, measure), best in zip(measures, found, strict=True):
            best.add(rows, first, measure(batch.column(vector)))
        first += batch.num_rows
    return found


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
