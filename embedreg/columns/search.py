"""Exact search of queries in a corpus of vectors, and how two of them agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from embedreg.core.base import Metric

__all__ = ["Ranking", "overlap"]

_QUERIES = 256  # at a time: 20 MB of scores for 20,000 rows
_TIE = 1e-5  # scores of vectors of equal texts differ by less, in any back end


class Ranking:
    """The scores of a corpus for queries, higher is nearer; ties are distinguished from rounding.

    Args:
        corpus: (n, d) vectors.
        queries: (q, d) vectors.
        metric: "cosine", "dot" or "l2".
        without: (q,) for each query a row that is left out, or -1.
    """

    def __init__(self, corpus: np.ndarray, queries: np.ndarray, metric: Metric, without: np.ndarray) -> None:
        import numpy as np

        from embedreg.columns.vectors import unit

        self._without, self._metric = without, metric
        prepared = [unit(each) if metric == "cosine" else each for each in (corpus, queries)]
        self._corpus, self._queries = (np.ascontiguousarray(each, np.float32) for each in prepared)
        self._squares = (self._corpus * self._corpus).sum(axis=1)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the (n,) scores of each query."""
        import numpy as np

        for start in range(0, len(self._queries), _QUERIES):
            scores = self._queries[start : start + _QUERIES] @ self._corpus.T
            if self._metric == "l2":
                scores = scores - self._squares / 2  # in the order of distances
            left_out = self._without[start : start + _QUERIES]
            rows = np.flatnonzero(left_out >= 0)
            scores[rows, left_out[rows]] = -np.inf
            yield from scores


def nearest(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest rows, nearest first: (k,)."""
    import numpy as np

    some = np.argpartition(-scores, k - 1)[:k]
    return np.asarray(some[np.argsort(-scores[some], kind="stable")])


def overlap(one: np.ndarray, other: np.ndarray, k: int) -> float:
    """Return the share of the k nearest rows that two rankings of one corpus have in common; ties count for both."""
    share = 0
    for scores, theirs in ((one, nearest(other, k)), (other, nearest(one, k))):
        least = scores[nearest(scores, k)[-1]]
        share += int((scores[theirs] >= least - _tie(scores)).sum())
    return share / (2 * k)


def recall(scores: np.ndarray, answers: np.ndarray, k: int) -> float:
    """Return the share of some rows that is among the k nearest."""
    least = scores[nearest(scores, k)[-1]]
    return float((scores[answers] >= least - _tie(scores)).mean())


def _tie(scores: np.ndarray) -> float:
    import numpy as np

    finite = scores[np.isfinite(scores)]
    return _TIE * max(1.0, float(np.abs(finite).max(initial=0.0)))
