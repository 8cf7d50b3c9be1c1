"""One stored entry makes LanceDB's function and embedreg's send the same, for sources and for queries."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

import embedreg
from tests.fixtures.stock_requests import ENTRIES, QUERY, SOURCES
from tests.servers import alone
from tests.vendors import AWS, VendorServer

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "tests" / "fixtures" / "stock_requests.json"
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
LIBRARIES = ["boto3", "cohere", "google.genai", "ollama", "voyageai"]


def is_there(module: str) -> bool:
    """Whether a module is installed."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[VendorServer]:
    """The server, which the functions take for their vendors'."""
    with alone(), pytest.MonkeyPatch.context() as patch, VendorServer() as running:
        url = f"http://{running.host}"
        for name, value in AWS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", url)
        for name in ("COHERE_API_KEY", "GOOGLE_API_KEY", "JINA_API_KEY", "VOYAGE_API_KEY"):
            patch.setenv(name, "key")
        for name in {name for name, _ in ENTRIES} - {"bedrock-text", "ollama"}:
            cls: Any = embedreg.get(name)
            path = "/v1" if cls.vendor.url.endswith("/v1") else ""
            patch.setattr(cls, "vendor", dataclasses.replace(cls.vendor, url=url + path))
        yield running


def sent(server: VendorServer, since: int) -> list[dict[str, Any]]:
    """Return the requests from a number on, as the record has them."""
    return [{"path": request.path, "body": request.body} for request in server.requests[since:]]


@pytest.mark.parametrize("entry", RECORDED, ids=lambda entry: f"{entry['name']}-{len(str(entry['model']))}")
def test_a_stored_entry_is_sent_as_lancedb_sends_it(entry: dict[str, Any], server: VendorServer) -> None:
    """The bodies are equal for sources and for a query; only Cohere's models on Bedrock get more texts at a time."""
    model = {k: f"http://{server.host}" if v == "HOST" else v for k, v in entry["model"].items()}
    stored = [{"name": entry["name"], "model": model, "source_column": "text", "vector_column": "vector"}]
    needed = embedreg.functions_in({"embedding_functions": json.dumps(stored)}).needed
    with embedreg.trust(needed or None):
        function = embedreg.functions_in({"embedding_functions": json.dumps(stored)})["vector"].function
        for record in entry["sources"] + entry["query"]:
            record["path"] = unquote(record["path"])
        server.widths |= dict.fromkeys((function.name, quote(function.name, safe="")), function.ndims())
        since = len(server.requests)
        one_at_a_time = entry["name"] == "bedrock-text" and "cohere" in function.name
        for texts in [[text] for text in SOURCES] if one_at_a_time else [SOURCES]:
            function.compute_source_embeddings(texts)
        assert sorted(sent(server, since), key=str) == sorted(entry["sources"], key=str)
        since = len(server.requests)
        function.compute_query_embeddings(QUERY)
        assert sent(server, since) == entry["query"]


@pytest.mark.skipif(not all(map(is_there, LIBRARIES)), reason=f"needs {', '.join(LIBRARIES)}")
@pytest.mark.skipif(
    is_there("google.genai") and int(importlib.metadata.version("google-genai").split(".")[0]) < 3,
    reason="the record is of google-genai 3 or later, which needs a newer pydantic than the oldest",
)
def test_the_record_is_what_lancedb_sends_today(tmp_path: Path) -> None:
    """LanceDB's own functions, with their vendors' libraries, send what is recorded."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    line = [sys.executable, str(ROOT / "tests" / "fixtures" / "stock_requests.py")]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(RECORD.read_text(encoding="utf-8"))
