"""What the `openai` function sends where: keys, environment, stored metadata, Azure; on a real server on loopback."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg.errors import (
    CallError,
    ConfigError,
    HardcodedSecretError,
    MissingExtraError,
    MissingVariableError,
    RowError,
    UntrustedError,
)
from embedreg.functions import openai as ours
from embedreg.functions.openai import OpenAIEmbeddings
from embedreg.runtime import remote
from tests.servers import EmbeddingServer, Reply, alone, create

pytest.importorskip("openai")

SECRET = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def undisturbed() -> Iterator[None]:
    """No settings of this machine, no sleeps, no connection left over."""
    with alone():
        yield


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    """A server of 8-dimensional vectors."""
    with EmbeddingServer() as running:
        yield running


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_from_a_variable_is_sent_and_nowhere_else(server: EmbeddingServer) -> None:
    """The server gets the key behind `$var:`; repr, dumps, pickle and metadata hold the reference only."""
    server.key = SECRET
    embedreg.get_registry().set_var("k", SECRET)
    fn = create(server, api_key="$var:k")
    assert fn.compute_source_embeddings(["a"]).shape == (1, 8)
    config = fn.bind("text", "vector")
    metadata = embedreg.get_registry().get_table_metadata([config])
    for text in (repr(fn), str(fn), fn.model_dump(), fn.safe_model_dump(), metadata, pickle.dumps(fn), vars(fn)):
        assert SECRET not in str(text)
    assert SECRET not in str(remote.clients.keys())
    assert "$var:k" in str(metadata)
    with pytest.raises(HardcodedSecretError):
        create(server, api_key=SECRET)
    with pytest.raises(HardcodedSecretError):
        create(server, default_headers={"Authorization": SECRET})


@pytest.mark.parametrize("where", ["variable", "environment", "header"])
def test_no_error_shows_the_key(
    server: EmbeddingServer, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that repeats the refused key in its answer: it is in no error, cause, traceback or log of ours."""
    server.key = "another"
    config: dict[str, Any] = {}
    embedreg.get_registry().set_var("k", SECRET)
    if where == "variable":
        config["api_key"] = "$var:k"
    elif where == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    else:
        config["default_headers"] = {"Authorization": "$var:k"}
    fn = create(server, **config)
    calls: list[Callable[[], Any]] = [
        lambda: fn.compute_source_embeddings(["a"]),
        lambda: fn.compute_source_embeddings_with_retry(["a"]),
        lambda: fn.compute_query_embeddings_with_retry("a"),
        lambda: fn.generate_embeddings(["a"]),
        create(server, dim=None, **config).ndims,
    ]
    caplog.set_level(logging.DEBUG, logger="embedreg")
    for call in calls:
        with pytest.raises(CallError, match="HTTP 401") as caught:
            call()
        shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.__dict__)
        assert SECRET not in shown
        assert "***" in shown
    assert len(server.requests) == len(calls)  # a refused key is not tried again
    assert SECRET not in "".join(record.getMessage() for record in caplog.records if record.name == "embedreg")


def test_no_row_error_shows_the_key(server: EmbeddingServer) -> None:
    """A server that repeats the key in what it says about one row: the row's error is clean."""
    embedreg.get_registry().set_var("k", SECRET)
    server.replies += [Reply(status=400, message=f"context length: {SECRET}")]
    (made,) = create(server, api_key="$var:k").compute_source_embeddings(["a"])
    assert isinstance(made, RowError)
    assert SECRET not in str(made)


def test_without_any_key(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI itself needs a key, and the error explains how to give one; a server of the user's own may need none."""
    with pytest.raises(MissingVariableError, match="no key for OpenAI"):
        OpenAIEmbeddings.create().compute_source_embeddings(["a"])
    create(server).compute_source_embeddings(["a"])
    assert server.requests[-1].headers["authorization"] == f"Bearer {ours.NO_KEY}"
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment")
    create(server, base_url=None).compute_source_embeddings(["a"])
    assert server.requests[-1].headers["authorization"] == "Bearer from-the-environment"


def test_a_changed_variable_is_used_at_once(server: EmbeddingServer) -> None:
    """Another key in the same variable, in a block of code or for good, is what the next request carries."""
    registry = embedreg.get_registry()
    registry.set_var("k", "first")
    fn = create(server, api_key="$var:k", batch_size=1)
    fn.compute_source_embeddings(["a"])
    with registry.variables(k="second"):
        fn.compute_source_embeddings(["a", "b", "c"])
    registry.set_var("k", "third")
    fn.compute_source_embeddings(["a"])
    sent = [request.headers["authorization"].removeprefix("Bearer ") for request in server.requests]
    assert sent == ["first", "second", "second", "second", "third"]


def test_pickle_and_copy_carry_no_client(server: EmbeddingServer, run_python: Callable[..., str]) -> None:
    """A copy in this process and one in another embed alike; the other resolves its own variable."""
    server.key = SECRET
    embedreg.get_registry().bind_env("k", "TEST_KEY")
    os.environ["TEST_KEY"] = SECRET
    try:
        fn = create(server, api_key="$var:k", dim=None)
        made = fn.compute_source_embeddings(["a"])
        for twin in (copy.copy(fn), copy.deepcopy(fn), pickle.loads(pickle.dumps(fn))):
            assert twin == fn
            assert np.array_equal(twin.compute_source_embeddings(["a"]), made)
        code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).generate_embeddings(['a']).tolist())"
        other = run_python(code, pickle.dumps(fn).hex(), env={"TEST_KEY": SECRET})
        assert other.strip() == str(made.tolist())
    finally:
        del os.environ["TEST_KEY"]


# -- stored metadata --------------------------------------------------------------------------------------------------


def stored(**model: Any) -> Any:
    """The function that stored metadata declares, in a process that has not created it."""
    import json

    entry = {"name": "openai", "model": model, "source_column": "text", "vector_column": "vector"}
    return embedreg.get_registry().parse_functions({b"embedding_functions": json.dumps([entry]).encode()})


def test_an_endpoint_from_metadata_needs_a_grant(server: EmbeddingServer) -> None:
    """Endpoint, headers and Azure are refused in stored metadata until the reader grants them."""
    for model in ({"base_url": server.url}, {"default_headers": {"x": "y"}}, {"use_azure": True}):
        with pytest.raises(UntrustedError):
            _ = stored(name="letters", dim=8, **model)["vector"].function
    assert not server.requests


def test_a_granted_endpoint_gets_no_key_of_this_environment(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is granted gets the texts, but not OPENAI_API_KEY, the organization or the project."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-mine")
    with embedreg.trust(hosts=[server.host]):
        fn = stored(name="letters", dim=8, base_url=server.url)["vector"].function
    assert fn.from_metadata
    assert fn.compute_source_embeddings(["a"]).shape == (1, 8)
    assert "mine" not in str(server.requests)
    assert SECRET not in str(server.requests)
    server.key = "wanted"
    with pytest.raises(CallError, match="HTTP 401") as caught:
        fn.compute_source_embeddings(["a"])
    assert "keys of this environment are not sent" in str(caught.value.hint)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"x-mine: {SECRET}")
    sent = len(server.requests)
    with pytest.raises(UntrustedError, match="OPENAI_CUSTOM_HEADERS"):
        fn.compute_source_embeddings(["a"])
    assert len(server.requests) == sent


def test_a_function_created_here_keeps_its_key_when_read_back(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's own code created the same function: metadata that says the same is that function, key and all."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server.key = SECRET
    fn = create(server)
    assert stored(name="letters", dim=8, base_url=server.url)["vector"].function is fn
    fn.compute_source_embeddings(["a"])


def test_stock_metadata_is_read() -> None:
    """What LanceDB's Python and JavaScript clients store is understood, and opens without a key or a request."""
    assert stored(name="text-embedding-3-small", max_retries=3)["vector"].function.ndims() == 1536
    fn = stored(model="text-embedding-3-large", apiKey="$var:openai_api_key")["vector"].function
    assert (fn.name, fn.ndims()) == ("text-embedding-3-large", 3072)
    assert stored()["vector"].function.name == "text-embedding-ada-002"


def test_a_stored_width_saves_the_question(server: EmbeddingServer) -> None:
    """What embedreg recorded of an unknown model's width is used on reading; an invalid width is not."""
    with embedreg.trust(hosts=[server.host]):
        fn = stored(name="letters", base_url=server.url, embedreg={"ndims": 8})["vector"].function
        assert fn.ndims() == 8
        assert not server.requests
        odd = stored(name="letters", base_url=server.url, embedreg={"ndims": 10**12})["vector"].function
        assert odd.ndims() == 8
        assert len(server.requests) == 1


# -- the SDK ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["field", "environment"])
def test_azure(server: EmbeddingServer, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's paths, version and key header are the SDK's own; without a version the error states what to set."""
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
    config: dict[str, Any] = {"use_azure": True, "base_url": f"http://{server.host}/openai"}
    if version == "field":
        config["api_version"] = "2024-10-21"
    else:
        with pytest.raises(ConfigError, match="api_version"):
            create(server, **config).compute_source_embeddings(["a"])
        monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    assert create(server, **config).compute_source_embeddings(["a"]).shape == (1, 8)
    (request,) = server.requests
    assert request.path == "/openai/deployments/letters/embeddings"
    assert request.query == "api-version=2024-10-21"
    assert request.headers["api-key"] == "azure-key"


def test_headers_and_organization_are_sent(server: EmbeddingServer) -> None:
    """default_headers, with secrets by reference, and organization reach the server."""
    embedreg.get_registry().set_var("token", SECRET)
    create(
        server, organization="org-1", default_headers={"x-team": "search", "x-api-key": "$var:token"}
    ).compute_source_embeddings(["a"])
    headers = server.requests[0].headers
    assert (headers["openai-organization"], headers["x-team"], headers["x-api-key"]) == ("org-1", "search", SECRET)


def test_the_sdk_is_imported_when_it_is_used(run_python: Callable[..., str]) -> None:
    """Creating the function and asking for its width imports no SDK; using it without one states what to install."""
    code = """
        import sys
        sys.modules["openai"] = None  # as if it were not installed
        import embedreg
        fn = embedreg.get("openai").create(base_url="http://127.0.0.1:9/v1")
        print(fn.ndims())
        try:
            fn.compute_source_embeddings(["a"])
        except embedreg.EmbedregError as exc:
            print(type(exc).__name__, exc.hint)
        else:
            raise SystemExit("it worked")
    """
    import textwrap

    out = run_python(textwrap.dedent(code))
    assert out.splitlines() == ["1536", f"{MissingExtraError.__name__} pip install 'embedreg[openai]'"]
