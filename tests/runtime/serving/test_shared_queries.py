"""Queries of a local function that are awaited together share a forward pass."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import errors
from embedreg.runtime.serving import shared_queries
from embedreg.runtime.vectors import queries
from tests.local_functions import LIMIT, LetterMeans

passes: list[int] = []


class Counted(LetterMeans):
    """Counts the rows of its forward passes."""

    def forward(self, model: Any, batch: dict[str, Any]) -> Any:
        made = super().forward(model, batch)
        passes.append(len(made))
        return made


class OneByOne(Counted):
    """Has a query method of its own, which takes one query."""

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return self.compute_embeddings([f"query {query}"], "source")


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """Forget the vectors of recent queries."""
    queries.recent.clear()
    passes.clear()
    yield
    queries.recent.clear()


def together(function: embedreg.EmbeddingFunction, texts: list[Any]) -> list[Any]:
    """Await the queries at once; an error stands in the place of its query."""

    async def main() -> list[Any]:
        calls = (function.acompute_query_embeddings(text) for text in texts)
        return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(main())


def test_queries_that_wait_together_share_a_forward_pass() -> None:
    """The first runs at once, the others together; each has the vector that it has alone."""
    function = Counted.create()
    texts = [f"{word} text" for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"]]
    made = together(function, texts)
    assert sum(passes) == len(texts)
    assert len(passes) <= 3
    queries.recent.clear()
    for text, vector in zip(texts, made, strict=True):
        np.testing.assert_allclose(vector, function.compute_query_embeddings(text), atol=1e-6)


def test_an_invalid_query_fails_alone() -> None:
    """The others of its micro-batch get their vectors."""
    made = together(Counted.create(), ["one", None, "two", "three"])
    assert isinstance(made[1], errors.InputError)
    assert [np.shape(each) for row, each in enumerate(made) if row != 1] == [(1, 24)] * 3


def test_a_query_that_is_too_long_is_what_it_is_alone() -> None:
    """A list with one RowError, in a batch too."""
    function = Counted.create(truncate="error")
    made = together(function, ["one", "x" * (LIMIT + 50), "two"])
    assert [type(each[0]) for each in made] == [np.ndarray, errors.RowError, np.ndarray]


def test_a_query_method_of_a_subclass_is_called() -> None:
    """For each query by itself, as for a function that is not local."""
    function = OneByOne.create()
    made = together(function, ["one", "two"])
    assert passes == [1, 1]
    np.testing.assert_allclose(made[0], function.compute_query_embeddings("one"), atol=1e-6)


def test_a_cancelled_query_leaves_the_others() -> None:
    """And one whose caller is gone is not embedded at all, if it was still waiting."""
    function = Counted.create()
    function.compute_query_embeddings("load the weights")

    async def main() -> Any:
        calls = [asyncio.ensure_future(function.acompute_query_embeddings(text)) for text in ("one", "two", "three")]
        await asyncio.sleep(0)
        calls[1].cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    made = asyncio.run(main())
    assert [np.shape(made[0]), np.shape(made[2])] == [(1, 24)] * 2
    assert isinstance(made[1], asyncio.CancelledError)


def test_the_worker_ends_with_its_function() -> None:
    """Nothing keeps a function that has embedded such a query."""
    function = Counted()  # `create` would keep it for stored declarations
    together(function, ["one"])
    batcher = shared_queries._batchers[id(function)]
    weak = weakref.ref(function)
    del function
    gc.collect()
    assert weak() is None
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("two", 0.5)
