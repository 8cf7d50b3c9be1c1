"""The bridge follows no redirect, whichever client a provider's requests go through."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import embedreg
from embedreg.errors import CallError
from embedreg.functions.litellm import _unredirected
from tests.servers import Reply
from tests.vendors import KEY, VendorServer, vendor_server

# A provider of each way in which litellm makes its client; "gemini" alone sent its key along with a redirect.
PROVIDERS = {
    "jina_ai": "/v1/embeddings",
    "cohere": "/v1/embed",
    "gemini": "",
    "ollama": "",
    "azure_ai": "/v1",
    "together_ai": "/v1",
    "openrouter": "/v1",
}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[VendorServer, VendorServer]]:
    """A server that redirects, and the one that it names."""
    with vendor_server() as first, VendorServer() as other:
        yield first, other


@pytest.fixture
def redirecting(servers: tuple[VendorServer, VendorServer]) -> tuple[VendorServer, VendorServer]:
    """Both, with nothing in them but redirects."""
    first, other = servers
    for server in servers:
        server.requests.clear()
        server.replies.clear()
    place = f"http://{other.host}/v1/embeddings"
    first.replies.extend([Reply("error", 307, "elsewhere", headers={"Location": place})] * 9)
    return servers


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_no_client_follows_a_redirect_inside_the_block(library: str, redirecting: Any) -> None:
    """Synchronous and asynchronous clients; a client in another thread does what it was made for."""
    first, other = redirecting
    http: Any = pytest.importorskip(library)
    request = {"url": f"http://{first.host}/v1/embeddings", "json": {"input": ["a"], "model": "m"}}

    async def ask() -> int:
        async with http.AsyncClient(follow_redirects=True) as client:
            return int((await client.post(**request)).status_code)

    with http.Client(follow_redirects=True) as client:
        with _unredirected() as found:
            assert client.post(**request).status_code == 307
            assert asyncio.run(ask()) == 307
            assert found == [307, 307]
            assert not other.requests
            outside: list[int] = []
            thread = threading.Thread(target=lambda: outside.append(client.post(**request).status_code))
            thread.start()
            thread.join()
        assert [*outside, client.post(**request).status_code] == [200, 200]
    assert len(found) == 2


@pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="needs litellm, which is not part of [dev]")
@pytest.mark.parametrize("provider", list(PROVIDERS))
def test_no_provider_sends_texts_or_keys_to_another_host(provider: str, redirecting: Any) -> None:
    """One request, one error with the status and what to do; the other host hears nothing."""
    first, other = redirecting
    embedreg.get_registry().set_var("vendor_key", KEY)
    function = embedreg.get("litellm").create(
        name=f"{provider}/m", api_base=f"http://{first.host}{PROVIDERS[provider]}", api_key="$var:vendor_key", dim=20
    )
    with pytest.raises(CallError, match="HTTP 307") as caught:
        embedreg.embed_column(function, ["a text"])
    assert "final address" in caught.value.hint
    assert len(first.requests) == 1
    assert not other.requests
