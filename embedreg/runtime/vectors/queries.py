"""A cache of the vectors of recent queries."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from cachetools import LRUCache

from embedreg.arrow.vectors import Embedded
from embedreg.runtime.vectors.memory import Lookup
from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QueryCache", "joined", "known", "recent"]

MAX_QUERIES = 1024  # with 1024 dimensions, 4 MiB
MAX_KEY_CHARS = 4096  # a longer text is unlikely to be repeated, and its key would hold all of it


class QueryCache:
    """Vectors of queries by configuration and text; the least recently used are evicted first."""

    def __init__(self, max_queries: int = MAX_QUERIES) -> None:
        self._lock = ForkSafeLock()
        self._vectors: LRUCache[Hashable, np.ndarray] = LRUCache(max_queries)

    def get(self, key: Hashable, text: str) -> np.ndarray | None:
        """Return a copy of a query's vector, (1, d), or None."""
        with self._lock:
            known = self._vectors.get((key, text))
        return None if known is None else known.copy()

    def put(self, key: Hashable, text: str, vector: np.ndarray) -> None:
        """Store a query's vector."""
        if len(text) <= MAX_KEY_CHARS:
            with self._lock:
                self._vectors[key, text] = vector.copy()

    def look_up(self, key: Hashable, texts: list[str]) -> Lookup:
        """Look up the vectors of a batch of queries."""
        import numpy as np

        def put(some: Sequence[str], vectors: np.ndarray) -> None:
            for row, text in enumerate(some):
                self.put(key, text, vectors[row : row + 1])

        found = [self.get(key, text) for text in texts]
        hits = [vector for vector in found if vector is not None]
        vectors = np.concatenate(hits) if hits else np.empty((0, 0), np.float32)
        return Lookup(put, texts, vectors, np.array([vector is not None for vector in found]))

    def clear(self) -> None:
        """Remove all vectors."""
        with self._lock:
            self._vectors.clear()

    def __len__(self) -> int:
        return len(self._vectors)


def known(found: Lookup) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors of n queries that are all hits, (n, d), and (n,) bool, all False: no cached query was cut."""
    import numpy as np

    return found.joined(None).matrix, np.zeros(len(found), bool)


def joined(found: Lookup, vectors: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Store the vectors of the misses, and return the vectors of all n queries.

    Args:
        found: what `QueryCache.look_up` returned.
        vectors: (m, d) float32, of the misses.
        cut: (m,) bool, which of them were cut: these are not stored.
    Returns:
        (n, d) float32, and (n,) bool, which queries were cut.
    """
    import numpy as np

    every = np.zeros(len(found), bool)
    every[found.missing] = cut
    return found.joined(Embedded(vectors, np.ones(len(vectors), bool)), keep=~cut).matrix, every


recent = QueryCache()
