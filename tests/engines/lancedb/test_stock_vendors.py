"""Tables of remote functions, written by stock LanceDB and read here, and the reverse, against one server on loopback.

The functions are those that LanceDB runs without another vendor's library: `jina` and `bedrock-text`.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest

import embedreg
from embedreg.engines.lancedb import create_table
from tests.servers import alone
from tests.vendors import AWS, VendorServer

MODELS = {"jina": "jina-clip-v1", "bedrock-text": "cohere.embed-english-v3"}
WIDTHS = {"jina-clip-v1": 768, "cohere.embed-english-v3": 1024}
TEXTS = ["wait for a thread", "the sine of x"]
# What runs without embedreg: argv is the folder, the server's address and what to do.
STOCK = """
import json, os, sys
import lancedb
from lancedb.embeddings import get_registry, jinaai
from lancedb.pydantic import LanceModel, Vector

folder, url, models, write = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4] == "write"
jinaai.API_URL = url + "/v1/embeddings"
db = lancedb.connect(folder)
for name, model in models.items():
    if write:
        function = get_registry().get(name).create(name=model)
        class Rows(LanceModel):
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()
        table = db.create_table(name, schema=Rows)
    else:
        table = db.open_table(name)
    table.add([{"text": text} for text in ("wait for a thread", "the sine of x")])
    print(table.search("sine x").limit(1).to_list()[0]["text"], table.count_rows())
assert "embedreg" not in sys.modules
"""


@pytest.fixture(scope="module")
def server() -> Iterator[VendorServer]:
    """The server, which the functions take for their vendors'."""
    jina: Any = embedreg.get("jina")
    with alone(), pytest.MonkeyPatch.context() as patch, VendorServer() as running:
        running.widths = WIDTHS
        for name, value in {**AWS, "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"http://{running.host}"}.items():
            patch.setenv(name, value)
        patch.setenv("JINA_API_KEY", "key")
        patch.setattr(jina, "vendor", dataclasses.replace(jina.vendor, url=f"http://{running.host}/v1"))
        yield running


def stock(folder: Path, server: VendorServer, what: str) -> list[str]:
    """Run stock LanceDB in a process of its own and return its lines."""
    line = [sys.executable, "-c", STOCK, str(folder), f"http://{server.host}", json.dumps(MODELS), what]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def vectors(table: Any) -> dict[str, set[tuple[float, ...]]]:
    """Return the different vectors of each text."""
    found: dict[str, set[tuple[float, ...]]] = {}
    for row in table.to_arrow().to_pylist():
        found.setdefault(row["text"], set()).add(tuple(row["vector"]))
    return found


def test_tables_of_stock_lancedb_are_searched_and_extended(server: VendorServer, tmp_path: Path) -> None:
    """LanceDB wrote the tables: here they open, are searched by text, and new rows have the vectors that it stored."""
    assert stock(tmp_path, server, "write") == ["the sine of x 2"] * 2
    db = lancedb.connect(tmp_path)
    for name in MODELS:
        table = db.open_table(name)
        assert embedreg.functions_in(table)["vector"].function == embedreg.get(name).create(name=MODELS[name])
        assert table.search("a thread waits").limit(1).to_list()[0]["text"] == TEXTS[0]
        table.add([{"text": text} for text in TEXTS])
        found = vectors(table)
        assert {text: len(each) for text, each in found.items()} == dict.fromkeys(TEXTS, 1)


def test_stock_lancedb_reads_and_extends_tables_of_embedreg(server: VendorServer, tmp_path: Path) -> None:
    """The reverse: its own functions read what embedreg declared, and give the stored vectors."""
    db = lancedb.connect(tmp_path)
    for name, model in MODELS.items():
        fn = embedreg.get(name).create(name=model)

        class Rows(embedreg.Schema):
            text: str = fn.SourceField()
            vector: embedreg.Vector(fn.ndims()) = fn.VectorField()  # type: ignore[valid-type]

        create_table(db, name, Rows).add([{"text": text} for text in TEXTS])
    assert stock(tmp_path, server, "read") == ["the sine of x 4"] * 2
    for name in MODELS:
        assert {text: len(each) for text, each in vectors(db.open_table(name)).items()} == dict.fromkeys(TEXTS, 1)


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
