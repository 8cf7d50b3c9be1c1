"""The vectors of recent queries."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from cachetools import LRUCache

from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QueryCache", "recent"]

MAX_QUERIES = 1024  # with 1024 dimensions, 4 MiB
MAX_KEY_CHARS = 4096  # a longer text is no query that comes again, and would be kept whole


class QueryCache:
    """Vectors of queries by configuration and text, least recently used out first; not for functions with secrets."""

    def __init__(self, max_queries: int = MAX_QUERIES) -> None:
        self._lock = ForkSafeLock()
        self._vectors: LRUCache[Hashable, np.ndarray] = LRUCache(max_queries)

    def get(self, key: Hashable, text: str) -> np.ndarray | None:
        """Return a copy of a query's vector, (1, d), or None."""
        with self._lock:
            known = self._vectors.get((key, text))
        return None if known is None else known.copy()

    def put(self, key: Hashable, text: str, vector: np.ndarray) -> None:
        """Keep a query's vector."""
        if len(text) <= MAX_KEY_CHARS:
            with self._lock:
                self._vectors[key, text] = vector.copy()

    def through(
        self, key: Hashable, texts: list[str], compute: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of a batch of queries: those that are kept, and the others computed in one call.

        Args:
            compute: gives the (m, d) vectors of m texts, and (m,) bool, which texts were cut: these are not kept.
        Returns:
            (n, d), and (n,) bool, which texts were cut.
        """
        import numpy as np

        known = {row: vector for row, text in enumerate(texts) if (vector := self.get(key, text)) is not None}
        missing = [row for row in range(len(texts)) if row not in known]
        if not missing:
            return np.concatenate(list(known.values())), np.zeros(len(texts), bool)
        vectors, cut = compute([texts[row] for row in missing])
        for row, vector, lost in zip(missing, vectors, cut.tolist(), strict=True):
            if not lost:
                self.put(key, texts[row], vector[None])
        if not known:
            return vectors, cut
        every, lost_rows = np.empty((len(texts), vectors.shape[1]), np.float32), np.zeros(len(texts), bool)
        every[list(known)] = np.concatenate(list(known.values()))
        every[missing], lost_rows[missing] = vectors, cut
        return every, lost_rows

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._vectors.clear()

    def __len__(self) -> int:
        return len(self._vectors)


recent = QueryCache()
