"""No channel shows a remote function's key: not its errors, logs, texts, dumps, pickles, declarations or usage."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import pprint
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

import embedreg
from embedreg.errors import EmbedregError
from tests.secret_holders import everything_about, forms
from tests.servers import Reply
from tests.vendors import CASES, KEY, TOKEN, Case, VendorServer, vendor_server


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
    return ("AZURE_OPENAI_API_KEY",) if case.name == "azure-openai" else cls.vendor.key_names


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
