"""Many queries are as few calls as the batch size of a function with a method for batches asks for, in every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg import RowError, TextEmbeddingFunction, Traits

QUERIES = [f"query {number}" for number in range(1000)]
BATCH = 250


class Batched(TextEmbeddingFunction):
    """Embeds a text as (its length, its number, 1 for a query), and records each call; "bad" and "zero" are so."""

    traits: ClassVar[Traits] = Traits(window=BATCH, concurrency=2, metric="cosine")
    calls: ClassVar[list[tuple[str, int]]] = []
    max_retries: int = 0

    def ndims(self) -> int:
        return 3

    def model_identity(self) -> str | None:
        return "first"

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        self.calls.append((role, len(inputs)))
        return [self.vector(text, role) for text in inputs]

    def vector(self, text: str, role: str) -> Any:
        """Return the vector of a text, or why it has none."""
        number = int(text.split()[-1]) if text[-1].isdigit() else -1
        special = {"bad": RowError("refused"), "zero": [0, 0, 0]}
        return special.get(text, [len(text), number, role == "query"])


EXPECTED = np.array([[len(text), number, 1] for number, text in enumerate(QUERIES)], np.float32)


@pytest.fixture(autouse=True)
def uncalled() -> None:
    """Forget the calls of other tests."""
    Batched.calls.clear()


def column(texts: list[Any]) -> Any:
    """Embed queries as the library does."""
    made = embedreg.embed_column(Batched.create(), texts, "query")  # type: ignore[abstract]
    return [row.tolist() if valid else None for row, valid in zip(made.matrix, made.valid, strict=True)]


def duckdb(texts: list[Any]) -> Any:
    """Embed queries in DuckDB's SQL."""
    library = pytest.importorskip("duckdb")
    from embedreg.engines.duckdb import install

    with library.connect() as con:
        install(con, Batched.create(), name="f")  # type: ignore[abstract]
        given = pa.table({"place": range(len(texts)), "text": pa.array(texts, pa.string())})  # noqa: F841 (in the SQL)
        rows = con.sql("SELECT f_query(text) FROM given ORDER BY place").fetchall()
    return [None if row is None else list(row) for (row,) in rows]


def databend(texts: list[Any]) -> Any:
    """Embed queries as a Databend server's function."""
    pytest.importorskip("grpc")
    from embedreg.engines.databend import Served, serve
    from tests.engines.databend_flight import Client

    served = [Served("f", Batched.create(), role="query")]  # type: ignore[abstract]
    with serve(served, bind="127.0.0.1:0") as server:
        Batched.calls.clear()  # without what it was warmed up with
        return Client(server.address).call("f", pa.array(texts, pa.string())).to_pylist()


ENGINES: list[Callable[[list[Any]], Any]] = [column, duckdb, databend]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
def test_a_thousand_queries_are_four_calls(engine: Callable[[list[Any]], Any]) -> None:
    """Of a function that takes 250 at a time; each has its own vector."""
    assert np.array_equal(np.array(engine(QUERIES), np.float32), EXPECTED)
    assert Batched.calls == [("query", BATCH)] * 4


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
def test_nulls_repeats_bad_rows_and_zeros_follow_the_rules_of_sources(engine: Callable[[list[Any]], Any]) -> None:
    """A null, a blank, a refused query and one of zeros are null, each alone; equal queries reach the function once."""
    texts = ["query 1", None, " ", "bad", "query 2", "query 1", "zero"]
    one, two = [7.0, 1.0, 1.0], [7.0, 2.0, 1.0]
    assert engine(texts) == [one, None, None, None, two, one, None]
    assert Batched.calls == [("query", 4)]


def test_the_vector_cache_knows_queries_by_their_role(tmp_path: Path) -> None:
    """A second run computes no query again, and no source comes from a query's vector."""
    with embedreg.vector_cache(tmp_path / "vectors.cache") as cache:
        first = column(QUERIES)
        assert column(QUERIES[::-1]) == first[::-1]
        assert Batched.calls == [("query", BATCH)] * 4
        assert (cache.hits, cache.misses) == (1000, 1000)
        sources = embedreg.embed_column(Batched.create(), QUERIES)  # type: ignore[abstract]
        assert sources.matrix[:, 2].tolist() == [0] * 1000


@pytest.fixture
def kept() -> Iterator[Any]:
    """The recent queries of this process, empty before and after."""
    from embedreg.runtime.vectors import queries

    queries.recent.clear()
    yield queries.recent
    queries.recent.clear()


def test_recent_queries_are_looked_up_in_a_batch(kept: Any) -> None:
    """Those that are kept are not computed again, cut ones are not kept, and the order is the batch's."""
    from embedreg.runtime.vectors import queries

    asked: list[list[str]] = []

    def through(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        found = kept.look_up("key", texts)
        new = [*found.missing_keys()]
        if not new:
            return queries.known(found)
        asked.append(new)
        made = np.array([[len(text)] for text in new], np.float32)
        return queries.joined(found, made, np.array([text == "long" for text in new]))

    batches = [(["a", "bb"], ["a", "bb"]), (["bb", "ccc", "a"], ["ccc"]), (["a", "bb"], []), (["long"], ["long"])]
    for texts, new in batches:
        vectors, cut = through(texts)
        assert vectors.tolist() == [[len(text)] for text in texts]
        assert cut.tolist() == [text == "long" for text in texts]
        assert (asked.pop() if asked else []) == new
    vectors, cut = through(["long", "a"])
    assert (vectors.tolist(), cut.tolist(), asked) == ([[4], [1]], [True, False], [["long"]])
    vectors[:] = 0
    assert through(["a"])[0].tolist() == [[1]]
