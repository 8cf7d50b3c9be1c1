"""No channel shows a remote function's key.

The channels: errors, logs, texts, dumps, pickles, declarations, usage, the ledger of a job, the metrics of a server.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import pickle
import pprint
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.engines.databend import serve
from embedreg.errors import EmbedregError
from tests.engines.databend_flight import Client
from tests.secret_holders import everything_about, forms
from tests.servers import Reply
from tests.vendors import CASES, KEY, TOKEN, Case, VendorServer, vendor_server

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def server() -> Iterator[VendorServer]:
    """The server of this module."""
    with vendor_server() as running:
        yield running


def assert_clean(text: object) -> None:
    """Neither the key nor the token for it is in a text."""
    for secret in (KEY, TOKEN):
        for form in [secret, *forms(secret)[2:]]:
            assert form not in str(text)


def names_of(case: Case) -> tuple[str, ...]:
    """Return the environment variables that a function reads a key from."""
    cls: Any = embedreg.get(case.name)
    own = {"azure-openai": ("AZURE_OPENAI_API_KEY",), "openai": ("OPENAI_API_KEY",)}
    return own.get(case.name) or cls.vendor.key_names


@pytest.mark.parametrize(
    ("case", "variable"),
    [(case, name) for case in CASES for name in (None, *names_of(case)[:1])],
    ids=lambda value: value.name if isinstance(value, Case) else value or "reference",
)
def test_no_channel_shows_a_key(
    case: Case,
    variable: str | None,
    server: VendorServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server repeats the key in every kind of failure, and everything that can be printed is looked through."""
    embedreg.get_registry().set_var("vendor_key", KEY)
    shown: list[Any] = []
    given: dict[str, Any] = {"max_retries": 1}
    if variable is None:
        function = case.create(server, **given)
    else:
        monkeypatch.setenv(variable, KEY)
        config = {k: v for k, v in case.config(f"http://{server.host}").items() if k != "api_key"}
        function = embedreg.get(case.name).create(**config, **given)
    repeated = "" if case.name == "ollama" else f"{case.secret} {TOKEN if case.name == 'watsonx' else ''}"
    # a client library's own debugging may show whole responses; its other levels must not
    with caplog.at_level(logging.INFO), caplog.at_level(logging.DEBUG, "embedreg"):
        table = embedreg.embed_table(pa.table({"text": ["a", "b"]}), function.bind("text", "vector"))
        for reply in [
            *(Reply("error", status, f"no {repeated}") for status in (400, 401, 403, 404, 429, 500)),
            Reply("error", 307, f"at {repeated}", headers={"Location": f"http://127.0.0.1:9/{repeated.strip()}"}),
            Reply("raw", 200, f"<html>{repeated}"),
            Reply("raw", 200, json.dumps({"error": repeated})),
            Reply("drop"),
        ]:
            server.replies.clear()
            server.replies.extend([reply] * 9)
            with pytest.raises(EmbedregError) as caught:
                function.compute_query_embeddings("a text")
            shown.append(everything_about(caught.value))
        server.replies.clear()
        with contextlib.suppress(EmbedregError):
            logging.getLogger("anybody").info("made %s and %r", function, [function])
    shown += [
        repr(function),
        str(function),
        pprint.pformat(vars(function)),
        function.model_dump(),
        function.safe_model_dump(),
    ]
    shown += [
        pickle.dumps(function),
        table.schema.metadata,
        embedreg.inspect(table),
        embedreg.get_registry().describe(case.name),
    ]
    shown += [caplog.text]
    for text in shown:
        assert_clean(text)
    assert "TotalUsage(requests=" in caplog.text


def test_neither_metrics_nor_a_ledger_shows_a_key(server: VendorServer, tmp_path: Path) -> None:
    """A running server of every function, after calls that passed and failed; and jobs."""
    embedreg.get_registry().set_var("vendor_key", KEY)
    server.replies.clear()
    functions = {case.name.replace("-", "_"): case.create(server, max_retries=0) for case in CASES}
    shown: list[Any] = []
    with serve(functions, bind="127.0.0.1:0", metrics_bind="127.0.0.1:0") as running:
        client = Client(running.address)
        for case in CASES:
            name = case.name.replace("-", "_")
            client.call(name, ["a", "b"])
            server.replies.append(Reply("error", 401, "" if case.name == "ollama" else f"no {case.secret}"))
            with pytest.raises(Exception, match="HTTP 401") as caught:
                client.call(name, ["c"])
            shown.append(str(caught.value))
            server.replies.clear()
        with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=30) as page:
            metrics = page.read().decode()
    for name in functions:
        assert f'embedreg_databend_calls_total{{function="{name}"}} 2.0' in metrics
        assert f'embedreg_databend_requests_total{{function="{name}"}}' in metrics
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "texts.parquet")
    for name in ("bedrock_text", "cohere", "openai", "watsonx"):  # each kind of client and of key
        function = functions[name]
        report = embedreg.embed(tmp_path / "texts.parquet", tmp_path / name, function.bind("text", "vector"))
        assert report.usage.requests == 2  # with the probe
        shown += [repr(report), embedreg.inspect(tmp_path / name)]
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        assert {"job.json", "texts.parquet.json"} <= {path.name for path in files}  # its settings, and a piece of it
        shown += [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in files]
    for text in [metrics, *shown]:
        assert_clean(text)
