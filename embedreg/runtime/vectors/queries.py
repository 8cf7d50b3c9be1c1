"""A cache of the vectors of recent queries."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from cachetools import LRUCache

from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QueryCache", "QueryLookup", "recent"]

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

    def look_up(self, key: Hashable, texts: list[str]) -> QueryLookup:
        """Look up the vectors of a batch of queries."""
        return QueryLookup(self, key, texts)

    def clear(self) -> None:
        """Remove all vectors."""
        with self._lock:
            self._vectors.clear()

    def __len__(self) -> int:
        return len(self._vectors)


class QueryLookup:
    """The hits and misses of a batch of queries.

    Attributes:
        missing: the texts that are misses.
    """

    def __init__(self, cache: QueryCache, key: Hashable, texts: list[str]) -> None:
        self._cache, self._key, self._n = cache, key, len(texts)
        self._known = {row: vector for row, text in enumerate(texts) if (vector := cache.get(key, text)) is not None}
        self._rows = [row for row in range(len(texts)) if row not in self._known]
        self.missing = [texts[row] for row in self._rows]

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (n, d) vectors and (n,) bool, all False: no cached text was cut. Only if there is no miss."""
        import numpy as np

        return np.concatenate(list(self._known.values())), np.zeros(self._n, bool)

    def joined(self, vectors: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Store the vectors of the misses, and return the vectors of all texts.

        Args:
            vectors: (m, d), of the misses.
            cut: (m,) bool, which of them were cut: these are not stored.
        Returns:
            (n, d), and (n,) bool, which texts were cut.
        """
        import numpy as np

        for text, vector, lost in zip(self.missing, vectors, cut.tolist(), strict=True):
            if not lost:
                self._cache.put(self._key, text, vector[None])
        if not self._known:
            return vectors, cut
        every, lost_rows = np.empty((self._n, vectors.shape[1]), np.float32), np.zeros(self._n, bool)
        every[list(self._known)] = np.concatenate(list(self._known.values()))
        every[self._rows], lost_rows[self._rows] = vectors, cut
        return every, lost_rows


recent = QueryCache()
