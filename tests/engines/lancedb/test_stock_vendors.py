"""Tables of remote functions, written by stock LanceDB and read here, and the reverse, against one server on loopback.

LanceDB runs its functions with their vendors' libraries, in a process without embedreg.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from pydantic import create_model

import embedreg
from embedreg.engines.lancedb import create_table
from embedreg.errors import UntrustedError
from tests.engines import lancedb_stock
from tests.engines.lancedb_stock import DECLARED, IMAGE_TABLES, TEXT_TABLES, TEXTS, WIDTHS, config_of, pictures
from tests.functions.test_lancedb_names import LANCEDB
from tests.servers import alone
from tests.vendors import AWS, VendorServer, is_there

TABLES = TEXT_TABLES | IMAGE_TABLES
LIBRARIES = ["boto3", "cohere", "google.genai", "ollama", "openai", "voyageai"]
# Functions whose tables are shared in other files: of sentence-transformers, `test_stock.py`; of open-clip,
# `test_open_clip.py`; the others, `test_stock_functions.py`.
ELSEWHERE = {"colbert", "gte-text", "huggingface", "open-clip", "sentence-transformers"}
# What LanceDB's function needs, and has not here; embedreg's is run on the declaration that LanceDB stores.
NOT_RUN = {
    "colpali": ("colpali_engine", "needs torch below 2.14"),
    "imagebind": ("imagebind", "needs torch 1.13"),
    "instructor": ("InstructorEmbedding", "fails with sentence-transformers 6"),
    "siglip": (None, "takes the output of transformers 5 for a tensor"),
    "watsonx": ("ibm_watsonx_ai", "is not installed: pandas and more for one request"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[VendorServer]:
    """The server, which the functions take for their vendors'."""
    with alone(), pytest.MonkeyPatch.context() as patch, VendorServer() as running:
        running.widths, running.backwards = WIDTHS, False
        url = f"http://{running.host}"
        for name, value in {**AWS, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": url, "WATSONX_PROJECT_ID": "p"}.items():
            patch.setenv(name, value)
        for name in ("COHERE", "GOOGLE", "JINA", "VOYAGE", "WATSONX"):
            patch.setenv(f"{name}_API_KEY", "key")
        for name in ("cohere", "gemini-text", "jina", "voyageai", "watsonx"):
            cls: Any = embedreg.get(name)
            path = "/v1" if cls.vendor.url.endswith("/v1") else ""
            patch.setattr(cls, "vendor", dataclasses.replace(cls.vendor, url=url + path))
        patch.setattr("embedreg.functions.watsonx.IDENTITY", url)
        yield running


@pytest.fixture(autouse=True)
def keys() -> None:
    """The keys that declarations refer to."""
    for name in ("key", "jina_key"):
        embedreg.get_registry().set_var(name, "sk-loopback")


def rows_of(table: str) -> list[Any]:
    """Return the sources of a table."""
    return pictures() if table in IMAGE_TABLES else TEXTS


@pytest.fixture(scope="module")
def shared(server: VendorServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A database with a table of each function by embedreg, extended by stock LanceDB, and one by stock LanceDB.

    What stock LanceDB has found and counted comes with it. Six vendors' libraries are imported, which takes seconds.
    """
    if missing := [name for name in LIBRARIES if not is_there(name)]:
        pytest.skip(f"LanceDB's own functions need {', '.join(missing)}, which [dev] installs")
    folder = tmp_path_factory.mktemp("shared")
    db, url = lancedb.connect(folder), f"http://{server.host}"
    registry = embedreg.get_registry()
    for name in ("key", "jina_key"):
        registry.set_var(name, "sk-loopback")
    for table, (name, config) in TABLES.items():
        fn = embedreg.get(name).create(**config_of(config, url))
        kind = bytes if table in IMAGE_TABLES else str
        vector = (embedreg.Vector(fn.ndims()), fn.VectorField())
        made: Any = create_model("Rows", __base__=embedreg.Schema, source=(kind, fn.SourceField()), vector=vector)
        create_table(db, f"ours-{table}", made).add([{"source": row} for row in rows_of(table)])
    line = [sys.executable, lancedb_stock.__file__, str(folder), url]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads(done.stdout)


def vectors(table: Any) -> dict[Any, set[tuple[float, ...]]]:
    """Return the different vectors of each source."""
    found: dict[Any, set[tuple[float, ...]]] = {}
    for row in table.to_arrow().to_pylist():
        found.setdefault(row["source"], set()).add(tuple(row["vector"]))
    return found


def test_every_function_of_lancedb_is_shared_or_named() -> None:
    """No function is left out in silence, and what is said not to run here does not."""
    run = {name for name, _ in TABLES.values()} | ELSEWHERE
    assert run | NOT_RUN.keys() == LANCEDB
    assert not run & NOT_RUN.keys()
    assert not [module for module, _ in NOT_RUN.values() if module and importlib.util.find_spec(module)]


@pytest.mark.parametrize("table", list(TABLES))
def test_a_table_of_stock_lancedb_is_searched_and_extended(
    table: str, server: VendorServer, shared: tuple[Path, Any]
) -> None:
    """It opens, is searched by text, and new rows have the vectors that LanceDB stored."""
    name, config = TABLES[table]
    embedreg.get_registry().reset()
    theirs = lancedb.connect(shared[0]).open_table(f"theirs-{table}")
    declared, found = theirs.schema.metadata, embedreg.functions_in(theirs)
    assert json.loads(declared[b"embedding_functions"])[0]["name"] == name
    assert isinstance(found.problems.get("vector"), UntrustedError) is ("URL" in str(config))
    with embedreg.trust(found.needed):
        function = embedreg.functions_in(theirs)["vector"].function
        assert function == embedreg.get(name).create(**config_of(config, f"http://{server.host}"))
        best = theirs.search("sine x").limit(1).to_list()[0]["source"]
        assert best == TEXTS[1] or table in IMAGE_TABLES
        theirs.add([{"source": row} for row in rows_of(table)])
    assert theirs.schema.metadata == declared
    made = vectors(theirs)
    assert {source: len(each) for source, each in made.items()} == dict.fromkeys(rows_of(table), 1)
    assert len({vector for each in made.values() for vector in each}) == 2


@pytest.mark.parametrize("table", list(TABLES))
def test_stock_lancedb_reads_and_extends_a_table_of_embedreg(table: str, shared: tuple[Path, Any]) -> None:
    """The reverse: its own function reads what embedreg declared, and gives the stored vectors."""
    folder, found = shared
    best, rows = found[f"ours-{table}"]
    assert rows == 4
    assert best == found[f"theirs-{table}"][0]
    ours = lancedb.connect(folder).open_table(f"ours-{table}")
    assert {source: len(each) for source, each in vectors(ours).items()} == dict.fromkeys(rows_of(table), 1)


@pytest.mark.parametrize("table", list(DECLARED))
def test_what_stock_lancedb_only_declares_is_filled(table: str, server: VendorServer, shared: tuple[Path, Any]) -> None:
    """Its function does not run here, its declaration does: the table is filled and searched."""
    theirs = lancedb.connect(shared[0]).open_table(f"theirs-{table}")
    theirs.add([{"source": text} for text in TEXTS])
    assert theirs.search("sine x").limit(1).to_list()[0]["source"] == TEXTS[1]
    function = embedreg.functions_in(theirs)["vector"].function
    assert np.shape(theirs.to_arrow()["vector"].to_pylist()) == (2, function.ndims())


def test_an_address_in_a_table_of_images_is_an_image(server: VendorServer, shared: tuple[Path, Any]) -> None:
    """Where LanceDB fetches an address, embedreg does under the image policy, and embeds no address as a text."""
    for table in IMAGE_TABLES:
        function = embedreg.functions_in(lancedb.connect(shared[0]).open_table(f"theirs-{table}"))["vector"].function
        made = embedreg.embed_column(function, ["https://example.com/a.png", "see https://example.com/a.png"])
        assert made.valid.tolist() == [False, True]
        assert "allow_images" in made.reasons[0]
        assert embedreg.embed_column(function, [pictures()[0], None, b"no image"]).valid.tolist() == [
            True,
            False,
            False,
        ]


@pytest.mark.parametrize(("width", "model"), [(768, "embed-multilingual-v2.0"), (1024, "embed-multilingual-v3.0")])
def test_a_default_that_lancedb_left_out_follows_the_column(
    width: int, model: str, server: VendorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In LanceDB's own search and add, too: the model is the one whose vectors the column can hold."""
    cohere: Any = embedreg.get("cohere")
    monkeypatch.setenv("COHERE_API_KEY", "key")
    monkeypatch.setattr(cohere, "vendor", dataclasses.replace(cohere.vendor, url=f"http://{server.host}"))
    monkeypatch.setattr(server, "widths", {model: width})
    entry = {"name": "cohere", "model": {}, "source_column": "text", "vector_column": "vector"}
    fields = [pa.field("text", pa.string()), pa.field("vector", pa.list_(pa.float32(), width))]
    schema = pa.schema(fields, metadata={"embedding_functions": json.dumps([entry])})
    table = lancedb.connect(tmp_path).create_table("t", schema=schema)
    server.requests.clear()
    table.add([{"text": text} for text in TEXTS])
    assert table.search("the sine").limit(1).to_list()[0]["text"] == TEXTS[1]
    assert {request.body["model"] for request in server.requests} == {model}
    assert embedreg.functions_in(tmp_path / "t.lance")["vector"].function.name == model
    assert json.loads(table.schema.metadata[b"embedding_functions"])[0] == entry
