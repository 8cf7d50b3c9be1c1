"""Recent queries, and queries that do not block."""

import asyncio
import contextvars
import threading
from typing import Any

import numpy as np
import stamina

from embedreg import TextEmbeddingFunction
from embedreg.runtime.vectors import queries

word: contextvars.ContextVar[str] = contextvars.ContextVar("word", default="none")


def test_recent_queries_are_kept_by_configuration_and_text() -> None:
    """A vector is given back for its own key and text only, as a copy, until newer queries push it out."""
    cache = queries.QueryCache(2)
    cache.put("a", "x", np.ones((1, 3), np.float32))
    known = cache.get("a", "x")
    assert known is not None
    known[:] = 5
    again = cache.get("a", "x")
    assert again is not None
    assert again.tolist() == [[1, 1, 1]]
    assert cache.get("b", "x") is None
    assert cache.get("a", "y") is None
    cache.put("a", "y", np.ones((1, 3), np.float32))
    cache.put("a", "z", np.ones((1, 3), np.float32))
    assert cache.get("a", "x") is None
    assert len(cache) == 2


def test_a_long_text_is_not_kept() -> None:
    """A document passed as a query would be kept whole for nothing."""
    cache = queries.QueryCache()
    cache.put("a", "x" * 5000, np.ones((1, 3), np.float32))
    assert len(cache) == 0


class Waits(TextEmbeddingFunction):
    """Waits until two queries are under way at once."""

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        barrier.wait(timeout=30)
        seen.append((threading.current_thread().name, word.get()))
        return [[float(len(text))] for text in texts]


barrier = threading.Barrier(2)
seen: list[tuple[str, str]] = []


def test_async_queries_run_beside_each_other_and_the_loop() -> None:
    """Two queries that wait for each other both finish, off the loop's thread, in their caller's context."""

    async def main() -> list[Any]:
        word.set("mine")
        function = Waits.create()
        return list(await asyncio.gather(*map(function.acompute_query_embeddings, ("abc", "de"))))

    assert asyncio.run(main()) == [[[3.0]], [[2.0]]]
    assert {name.partition("_")[0] for name, _ in seen} == {"embedreg-query"}
    assert {found for _, found in seen} == {"mine"}


def test_every_function_can_be_awaited() -> None:
    """The base has the method, retries apply, and the loop goes on meanwhile."""
    tries: list[str] = []
    ticked = threading.Event()

    class Flaky(TextEmbeddingFunction):
        def ndims(self) -> int:
            return 1

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            assert ticked.wait(30)  # only the loop sets it: a call that blocked the loop would never end
            tries.append(threading.current_thread().name)
            if len(tries) == 1:
                raise ConnectionResetError
            return [[1.0]]

    async def main() -> Any:
        asyncio.get_running_loop().call_later(0.01, ticked.set)
        return await Flaky.create(max_retries=1).acompute_query_embeddings("a")

    with stamina.set_testing(True, attempts=100, cap=True):
        assert asyncio.run(main()) == [[1.0]]
    assert len(tries) == 2
    assert threading.current_thread().name not in tries
