"""Multi-vectors and sparse vectors in LanceDB: its own search by MaxSim, and what it meets without embedreg."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.index import IvfPq
from lancedb.pydantic import LanceModel
from lancedb.pydantic import MultiVector as TheirMultiVector

import embedreg
from embedreg.core.canonical import persisted_name
from embedreg.engines.lancedb import add, create_table
from embedreg.errors import ConfigError, SchemaError
from tests.kinds import D, Letters, WordVectors, word_vectors

TEXTS = ["a quick fox", "one two", "the lazy dog sleeps long"]
ROOT = Path(__file__).resolve().parents[3]

# First without embedreg, then with it: one process.
LATER = """
import sys
import lancedb, numpy as np
db = lancedb.connect("db")
multi, sparse = db.open_table("multi"), db.open_table("sparse")
query = np.load("query.npy")
found = multi.search(query, vector_column_name="vector").limit(1).to_list()
assert [row["text"] for row in found] == ["a quick fox"], found
for table in (multi, sparse):
    search = lambda: table.search("a fox", vector_column_name="vector").to_list()
    for call in (search, lambda: table.add([{"text": "x"}])):
        try:
            call()
        except KeyError as exc:
            assert "word-vectors" in str(exc) or "alphabet-weights" in str(exc), exc
        else:
            raise AssertionError("stock LanceDB embedded it")
assert "embedreg" not in sys.modules
import embedreg, tests.kinds
db = lancedb.connect("db")
table = db.open_table("multi")
table.add([{"text": "hello fox"}])
assert table.search("hello fox").limit(1).to_list()[0]["text"] == "hello fox"
assert embedreg.check_drift(table)[0].verdict == "same"
table = db.open_table("sparse")
table.add([{"text": "abc"}])
assert table.to_arrow()["vector"].to_pylist()[-1] == {"indices": [0, 1, 2], "values": [1, 1, 1]}
"""


def test_a_multi_vector_table_from_schema_to_another_process(
    folder: Path, run_python: Callable[..., str], tmp_path: Path
) -> None:
    """Created, filled by both ways, searched by text, indexed; then opened without embedreg, and with it again."""
    words, letters = WordVectors.create(), Letters.create()

    class Multi(embedreg.Schema):
        text: str | None = words.SourceField()
        vector: embedreg.MultiVector(D) = words.VectorField()  # type: ignore[valid-type]

    class Sparse(embedreg.Schema):
        text: str = letters.SourceField()
        vector: embedreg.SparseVector(26) = letters.VectorField()  # type: ignore[valid-type]

    db = lancedb.connect(folder)
    table = create_table(db, "multi", Multi)
    table.add([{"text": text} for text in TEXTS[:2]])
    add(table, [{"text": TEXTS[2]}, {"text": None}, {"text": "none"}])
    stored = table.to_arrow()
    assert stored.schema.field("vector").type == pa.list_(pa.list_(pa.float32(), D))
    for row, text in zip(stored["vector"].to_pylist(), TEXTS, strict=False):
        assert np.allclose(row, word_vectors(text))
    assert stored["vector"].null_count == 2
    hits = table.search("a quick dog").distance_type("cosine").limit(3).to_list()
    query = word_vectors("a quick dog")
    sums = {text: (1 - (query @ word_vectors(text).T).max(axis=1)).sum() for text in TEXTS}
    assert {hit["text"]: hit["_distance"] for hit in hits} == pytest.approx(sums, abs=1e-5)
    sparse = create_table(db, "sparse", Sparse)
    sparse.add([{"text": text} for text in [*TEXTS, "123"]])
    assert sparse.to_arrow()["vector"].to_pylist()[1] == {"indices": [4, 13, 14, 19, 22], "values": [1, 1, 2, 1, 1]}
    with pytest.raises((ConfigError, RuntimeError), match="neither a distance nor an index for them"):
        sparse.search("fox", vector_column_name="vector").to_list()
    np.save(tmp_path / "query.npy", word_vectors("a quick fox"))
    run_python(LATER, path=[ROOT], cwd=tmp_path)


def test_an_index_over_multi_vectors(folder: Path) -> None:
    """LanceDB's IVF_PQ index with the cosine metric finds by text what the exact search finds."""
    words = WordVectors.create()
    texts = [f"{chr(97 + row % 26)}{'xyz'[row % 3] * (row % 7)} word{row}" for row in range(300)]
    rows = embedreg.embed_table({"text": texts}, words.bind("text", "vector"))
    table = lancedb.connect(folder).create_table("t", rows)
    exact = table.search("bx word1").distance_type("cosine").limit(5).to_arrow()["text"].to_pylist()
    table.create_index("vector", config=IvfPq(distance_type="cosine", num_partitions=1, num_sub_vectors=D))
    found = table.search("bx word1").refine_factor(20).limit(5).to_arrow()["text"].to_pylist()
    assert found[0] == exact[0]


def test_models_of_lancedb() -> None:
    """A LanceModel takes multi-vectors of either library; sparse vectors, for which it has no type, are refused."""
    words, letters = WordVectors.create(), Letters.create()
    for kind in (embedreg.MultiVector(D), TheirMultiVector(D)):

        class Multi(LanceModel):
            text: str = words.SourceField()
            vector: kind = words.VectorField()  # type: ignore[valid-type]

        db = lancedb.connect("memory://")
        table = db.create_table("t", schema=Multi)
        table.add([{"text": "a quick fox"}])
        assert np.allclose(table.to_arrow()["vector"].to_pylist()[0], word_vectors("a quick fox"))

    class Wide(LanceModel):
        text: str = words.SourceField()
        vector: embedreg.MultiVector(D + 1) = words.VectorField()  # type: ignore[valid-type]

    with pytest.raises(SchemaError, match="its function returns multi-vectors of 4 dimensions") as caught:
        lancedb.connect("memory://").create_table("t", schema=Wide)
    assert caught.value.hint == "vector: MultiVector(fn.ndims()) = fn.VectorField()"

    class Sparse(LanceModel):
        text: str = letters.SourceField()
        vector: embedreg.SparseVector(26) = letters.VectorField()  # type: ignore[valid-type]

    with pytest.raises(TypeError, match=r"unsupported type .*SparseVector\(26\)"):  # LanceDB's own error
        lancedb.connect("memory://").create_table("t", schema=Sparse)


def test_a_name_of_stock_lancedb_gets_the_prefix() -> None:
    """Stock LanceDB stores such vectors as nulls, so that it must not resolve the name to its own function."""

    class Known(WordVectors):
        __embedding_function_registry_alias__: ClassVar[str | None] = "colpali"
        traits: ClassVar[Any] = embedreg.Traits(vectors="multi", stock_fields=frozenset({"scale"}))

    assert persisted_name(Known()) == "embedreg:colpali"
