"""The vectors of recent queries."""

from __future__ import annotations

from collections.abc import Hashable
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

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._vectors.clear()

    def __len__(self) -> int:
        return len(self._vectors)


recent = QueryCache()
