"""Queries: the vectors of recent ones, and callers that must not block."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from embedreg.support import forks
from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    import numpy as np

__all__ = ["QueryCache", "acompute", "recent"]

MAX_QUERIES = 1024  # with 1024 dimensions, 4 MiB
MAX_KEY_CHARS = 4096  # a longer text is no query that comes again, and would be kept whole
_THREADS = 4  # queries at a time; more would only fight for the same cores


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


@functools.cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "embedreg-query")


forks.in_child(_executor.cache_clear)  # a forked child has none of the threads


async def acompute(function: Any, query: Any) -> Any:
    """Embed a query without blocking the event loop, in threads that no other work fills.

    Args:
        function: an embedding function; its retries apply.
    """
    import asyncio

    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_executor(), context.run, _compute, function, query)


def _compute(function: Any, query: Any) -> Any:
    from embedreg.declaration import identity

    identity.verify_once(function)
    return function.compute_query_embeddings_with_retry(query)
