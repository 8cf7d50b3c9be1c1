"""Embedding functions in the SQL of the real engine: the documentation's example, stored vectors, many rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import numpy as np
import pytest
from lancedb.pydantic import LanceModel, Vector

import embedreg
from embedreg import EmbeddingFunction, TextEmbeddingFunction
from embedreg.engines.databend import Server, serve
from tests.engines.databend_engine import Engine
from tests.fakes import Lengths

pytestmark = pytest.mark.skipif(find_spec("databend") is None, reason="the engine has no wheel for this machine")

ARTICLES = [
    (1, "Bread", "Sourdough needs flour, water, salt and a starter that is fed every day."),
    (2, "Neural networks", "A network learns from examples by adjusting its weights with gradient descent."),
    (3, "Untold", None),
    (4, "Rome", "The empire grew from a town on the Tiber to the whole Mediterranean."),
    (5, "Blank", "  "),
    (6, "Trees", "Oaks and beeches lose their leaves in autumn."),
]
ROWS = ", ".join(
    f"({number}, '{title}', {'NULL' if content is None else repr(content)})" for number, title, content in ARTICLES
)
# As it stands in Databend's documentation, with a model of 384 dimensions in place of one of 768.
EXAMPLE = """
SELECT
    id,
    title,
    cosine_distance(
        ai_embed_384(content),
        ai_embed_384('machine learning techniques')
    ) AS similarity
FROM articles
ORDER BY similarity ASC
LIMIT 6
"""


class CleanedProjected(TextEmbeddingFunction):
    """A user's own function of several steps: clean the text, embed it with another function, project the vectors."""

    traits: ClassVar[embedreg.Traits] = embedreg.Traits(retry=False)

    dim: int = 8

    def ndims(self) -> int:
        return self.dim

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        cleaned = [re.sub(r"<[^>]+>", " ", str(text)).lower() for text in texts]
        vectors = embedreg.get("hashing").create(dim=64).generate_embeddings(cleaned)
        projection = np.random.default_rng(7).standard_normal((64, self.dim))
        return (vectors @ projection).astype(np.float32)


def minilm_at(path: Path) -> EmbeddingFunction:
    """Return the model of the example."""
    return embedreg.get("sentence-transformers").create(name=str(path), device="cpu")


@pytest.fixture(scope="module")
def server(minilm_path: Path) -> Iterator[Server]:
    """One server of several functions, one of them a user's own."""
    functions = {
        "ai_embed_384": minilm_at(minilm_path),
        "ai_hash": embedreg.get("hashing").create(dim=16),
        "ai_project": CleanedProjected.create(),
    }
    with serve(functions, bind="127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def other() -> Iterator[Server]:
    """A second server in the same process."""
    with serve({"ai_lengths": Lengths.create()}, bind="127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def engine(server: Server, other: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that knows all functions by the SQL that the servers print, and has the articles."""
    with Engine(tmp_path_factory.mktemp("engine"), server.address, other.address) as running:
        for statement in (server.ddl() + "\n\n" + other.ddl()).split(";\n\n"):
            running.sql(statement)
        running.sql("CREATE TABLE articles (id INT, title STRING, content STRING NULL)")
        running.sql(f"INSERT INTO articles VALUES {ROWS}")
        yield running


@pytest.mark.slow  # it loads the model
def test_the_documented_example(engine: Engine, server: Server) -> None:
    """The right article comes first, those without content last; each text is embedded once, the constant too."""
    before = server.counts("ai_embed_384")
    found = engine.rows(EXAMPLE)
    assert found[0]["title"] == "Neural networks"
    assert {row["title"] for row in found[4:]} == {"Untold", "Blank"}
    assert [row["similarity"] is None for row in found] == [False] * 4 + [True] * 2
    after = server.counts("ai_embed_384")
    assert after["embedded"] - before["embedded"] == 5, "four articles and one constant"
    assert after["rows"] - before["rows"] == 12, "the engine sends the constant for each row"
    assert after["nulls"] - before["nulls"] == 2
    assert engine.rows(EXAMPLE) == found
    assert server.counts("ai_embed_384")["embedded"] == after["embedded"], "asked again, nothing is embedded"


@pytest.mark.slow
def test_the_vectors_are_those_of_a_lancedb_table(engine: Engine, minilm_path: Path, tmp_path: Path) -> None:
    """One function, two engines, the same vectors."""
    minilm = minilm_at(minilm_path)

    class Article(LanceModel):
        id: int
        text: str = minilm.SourceField()
        vector: Vector(minilm.ndims()) = minilm.VectorField()  # type: ignore[valid-type]

    told = [(number, content) for number, _, content in ARTICLES if content and content.strip()]
    table = lancedb.connect(tmp_path / "db").create_table("articles", schema=Article)
    table.add([{"id": number, "text": content} for number, content in told])
    theirs = {row["id"]: row["vector"] for row in table.to_arrow().to_pylist()}
    ours = {
        row["id"]: row["v"]
        for row in engine.rows("SELECT id, ai_embed_384(content) AS v FROM articles WHERE trim(content) != ''")
    }
    assert ours.keys() == theirs.keys()
    for number, vector in ours.items():
        np.testing.assert_allclose(vector, theirs[number], atol=1e-5)  # batches of other shapes round otherwise


@pytest.mark.slow
def test_search_over_stored_vectors(engine: Engine, server: Server) -> None:
    """CREATE TABLE AS SELECT stores vectors; a search embeds the query alone."""
    engine.sql("CREATE OR REPLACE TABLE stored AS SELECT id, title, ai_embed_384(content) AS v FROM articles")
    before = server.counts()["embedded"]
    found = engine.rows(
        "SELECT title, cosine_distance(v, ai_embed_384('how to bake a loaf')) AS d FROM stored ORDER BY d LIMIT 6"
    )
    assert found[0]["title"] == "Bread"
    assert [row["d"] is None for row in found] == [False] * 4 + [True] * 2
    assert server.counts()["embedded"] == before + 1


def test_a_hundred_thousand_rows(engine: Engine, server: Server) -> None:
    """In many batches and from several threads of the engine; every vector is its own row's."""
    before = server.counts("ai_hash")
    texts = "SELECT number AS id, if(number % 1000 = 7, NULL, concat('row number ', number::STRING)) AS text"
    engine.sql(
        f"CREATE OR REPLACE TABLE many AS SELECT id, text, ai_hash(text) AS v FROM ({texts} FROM numbers(100000))"
    )
    assert engine.rows("SELECT count(*) AS n, count_if(v IS NULL) AS nulls FROM many") == [{"n": 100_000, "nulls": 100}]
    some = engine.rows("SELECT text, v FROM many WHERE id % 997 = 3 ORDER BY id")
    wanted = embedreg.embed_column(embedreg.get("hashing").create(dim=16), [row["text"] for row in some])
    assert [row["v"] for row in some] == [
        vector if valid else None for vector, valid in zip(wanted.matrix.tolist(), wanted.valid.tolist(), strict=True)
    ]
    after = server.counts("ai_hash")
    assert after["rows"] - before["rows"] == 100_000
    assert after["embedded"] - before["embedded"] == 99_900
    assert after["calls"] - before["calls"] > 1


def test_a_users_own_function_of_several_steps(engine: Engine) -> None:
    """It is served as it is, beside the others."""
    own = CleanedProjected.create()
    (row,) = engine.rows("SELECT ai_project('<p>Hello</p>') AS a, ai_project(' hello ') AS b, ai_hash('hello') AS c")
    np.testing.assert_allclose(row["a"], own.generate_embeddings(["<p>Hello</p>"])[0], atol=1e-6)
    np.testing.assert_allclose(row["a"], row["b"], atol=1e-6)
    assert len(row["c"]) == 16


def test_two_servers_in_one_process(engine: Engine, server: Server, other: Server) -> None:
    """One statement may call both; each counts its own calls."""
    before = server.counts()["calls"], other.counts()["calls"]
    (row,) = engine.rows("SELECT ai_lengths('a few words') AS a, ai_hash('a few words') AS b")
    assert row["a"] == [11, 3, 3]
    assert (server.counts()["calls"] - before[0], other.counts()["calls"] - before[1]) == (1, 1)
    assert server.counts("ai_lengths")["calls"] == 0
