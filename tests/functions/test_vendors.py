"""Every remote function against a real server on loopback that answers in its vendor's shape, and misbehaves."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg import EmbeddingFunction
from embedreg.errors import CallError, EmbedregError, MissingVariableError, RowError
from tests.servers import Reply
from tests.vendors import CASES, KEY, TOKEN, Case, VendorServer, vendor_server

TEXTS = ["wait for a thread", "the sine of x", "größe, 東京 🚀", "one more text"]


@pytest.fixture(scope="module")
def running() -> Iterator[VendorServer]:
    """The server of this module."""
    with vendor_server() as server:
        yield server


@pytest.fixture
def server(running: VendorServer) -> VendorServer:
    """The server, with nothing in it."""
    embedreg.get_registry().set_var("vendor_key", KEY)  # variables are unset between tests
    running.requests.clear()
    running.replies.clear()
    running.wrong = None
    return running


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    """Each function."""
    found: Case = request.param
    return found


def embedded(function: EmbeddingFunction, texts: list[str] = TEXTS) -> Any:
    """Embed texts as sources."""
    return embedreg.embed_column(function, texts)


def test_every_remote_function_is_a_case() -> None:
    """None is missing but the bridge, where its library is: it is not part of [dev]."""
    registry = embedreg.get_registry()
    ours = {name: cls for name in registry.list() if (cls := registry.get(name)).__module__.startswith("embedreg.")}
    remote = {name for name, cls in ours.items() if cls.traits.remote}
    assert "openai" in remote
    assert remote - {case.name for case in CASES} <= {"litellm", "vertex"}


# -- what is right -----------------------------------------------------------------------------------------------------


def test_vectors_come_in_order_with_their_usage(case: Case, server: VendorServer, caplog: Any) -> None:
    """Each row has its own vector, in batches of two; the log counts requests, inputs and tokens."""
    function = case.create(server, batch_size=2, concurrency=1)
    server.counted = 0
    with caplog.at_level(logging.DEBUG, "embedreg"):
        made = embedded(function)
        counted = server.counted
    assert made.matrix.shape == (4, function.ndims())
    assert made.valid.all()
    alone = [embedded(function, [text]).matrix[0] for text in TEXTS]
    assert np.array_equal(made.matrix, np.stack(alone))
    assert len({row.tobytes() for row in made.matrix}) == 4
    pattern = r"requests=(\d+), .*inputs=(\d+), billed_tokens=(\d+), estimated_tokens=(\d+)"
    used = [match.groups() for line in caplog.messages if (match := re.search(pattern, line))][:2]
    assert [(requests, inputs) for requests, inputs, *_ in used] == [("1", "2")] * 2
    silent = case.name in ("bedrock-text", "huggingface-inference", "tei")  # their responses have no count
    billed, estimated = (sum(int(each[k]) for each in used) for k in (2, 3))
    assert billed == (0 if silent else counted)
    assert (estimated > 0) is silent


def test_queries_have_their_own_form(case: Case, server: VendorServer) -> None:
    """A query is sent in the vendor's form of queries, where it has one, and `prompts` says so."""
    function = case.create(server)
    source, query = embedded(function, ["a text"]).matrix[0], embedreg.embed_query(function, "a text")
    assert np.array_equal(source, query) is not case.roles
    assert (function.vector_traits().get("prompts", "unknown") is None) is not case.roles


# -- what is wrong -----------------------------------------------------------------------------------------------------

REFUSED = [401, 403, 404, 424, 501]
CREDENTIALS = ("api_key", "ollama_client_kwargs", "aws sts", "gcloud")


@pytest.mark.parametrize("status", REFUSED)
def test_a_refusal_is_one_request_and_one_line(case: Case, server: VendorServer, status: int) -> None:
    """A wrong key, a missing model: one request, then an error with the status, the server's words and a hint."""
    server.replies.extend([Reply("error", status, "no" if case.name == "ollama" else f"no: {case.secret}")] * 9)
    with pytest.raises(CallError) as caught:
        embedded(case.create(server))
    assert len(server.asked) == 1
    assert f"HTTP {status}" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    if status in (401, 403):
        [place] = (name for name in CREDENTIALS if name in caught.value.hint)
        assert place in type(case.create(server)).model_fields or place in ("aws sts", "gcloud")
    assert case.secret not in str(caught.value)


def test_a_service_that_refuses_every_text_is_one_line(case: Case, server: VendorServer) -> None:
    """What it says is printable, and a hint says what to check."""
    server.replies.extend([Reply("error", 400, "no\x1b[31m such\r\n model\x00")] * 2)
    with pytest.raises(CallError) as caught:
        embedded(case.create(server))
    assert caught.value.message.isprintable()
    assert "such" in caught.value.message
    assert "the model's name" in caught.value.hint
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "reply", [Reply("error", 400, "bad"), Reply("error", 413, "too large"), Reply("error", 422, "no")]
)
def test_a_refused_input_costs_its_own_row(case: Case, server: VendorServer, reply: Reply) -> None:
    """A batch that is refused once is sent again in parts, and no row is lost."""
    server.replies.append(reply)
    made = embedded(case.create(server, batch_size=3, concurrency=1), TEXTS[:3])
    assert made.valid.all()


PASSING = [
    Reply("error", 429, "slow down", headers={"Retry-After": "1"}),
    Reply("error", 429, "slow down"),
    Reply("error", 500, "oops"),
    Reply("error", 503, "busy"),
    Reply("drop"),
    Reply("cut"),
    Reply("raw", 200, "{ this is not JSON"),
    Reply("raw", 200, "{}"),
]


@pytest.mark.parametrize("reply", PASSING, ids=lambda reply: f"{reply.kind}-{reply.status}-{len(reply.message)}")
def test_what_passes_is_tried_again(case: Case, server: VendorServer, reply: Reply) -> None:
    """A busy server, a lost connection, a response without vectors: the request is repeated, and no row is lost."""
    server.replies.extend([reply, reply])
    made = embedded(case.create(server), TEXTS[:2])
    assert made.valid.all()
    assert not server.replies
    assert len(server.asked) == 3


@pytest.mark.parametrize("reply", PASSING, ids=lambda reply: f"{reply.kind}-{reply.status}-{len(reply.message)}")
def test_what_stays_is_an_error_not_a_column_of_nulls(case: Case, server: VendorServer, reply: Reply) -> None:
    """What does not pass ends after max_retries with one clear line."""
    server.replies.extend([reply] * 9)
    with pytest.raises(EmbedregError) as caught:
        embedded(case.create(server, max_retries=1), TEXTS[:2])
    assert len(server.asked) == 2
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("wrong", ["{}", "count", "width", "tokens", "texts", "flags"])
def test_a_success_without_the_right_vectors_is_an_error(case: Case, server: VendorServer, wrong: str) -> None:
    """No vectors, too few, another width, a vector for each token, no numbers: a failed call, whatever the status."""
    if case.name in ("azure-openai", "litellm", "openai") and wrong == "flags":
        pytest.skip("its library has converted them to numbers")
    server.wrong = wrong
    with pytest.raises(EmbedregError) as caught:
        embedded(case.create(server, max_retries=1), TEXTS[:2])
    assert caught.value.hint
    assert not isinstance(caught.value, RowError)


def test_a_slow_server_has_its_time(case: Case, server: VendorServer) -> None:
    """A server that does not answer ends in `timeout_s`."""
    function = case.create(server, max_retries=0)
    embedded(function, ["a"])  # importing a vendor's library, and fetching a token, can take longer
    function.timeout_s = 0.3
    getattr(function, "_client", lambda: None)()
    server.replies.append(Reply("slow", delay_s=3))
    started = time.monotonic()
    with pytest.raises(CallError):
        embedded(function, ["b"])
    assert time.monotonic() - started < 2


def test_no_redirect_is_followed(case: Case, server: VendorServer) -> None:
    """A redirect to another host ends the call; that host hears nothing, above all no key."""
    with VendorServer() as other:
        place = f"http://{other.host}{'/v1/embed'}"
        server.replies.extend([Reply("error", 307, "elsewhere", headers={"Location": place})] * 9)
        with pytest.raises(CallError, match="HTTP 307"):
            embedded(case.create(server))
        assert not other.requests
    assert len(server.asked) == 1


# -- keys --------------------------------------------------------------------------------------------------------------


def test_the_key_goes_to_the_endpoint_and_nowhere_else(case: Case, server: VendorServer) -> None:
    """The key, or the token for it, is in one header of each request; never in a body or an address."""
    embedded(case.create(server))
    for request in server.asked:
        found = [value for value in request.headers.values() if KEY in value or TOKEN in value]
        assert len(found) == (0 if case.name in ("ollama", "bedrock-text") else 1)
        assert KEY not in str(request.body) + request.path + request.query


KEYED = [name for name in embedreg.get_registry().list() if hasattr(embedreg.get(name), "vendor")]


@pytest.mark.parametrize("name", [n for n in KEYED if embedreg.get(n).vendor.needs_key])
def test_a_missing_key_is_named_before_anything_is_sent(name: str, running: VendorServer) -> None:
    """Without a key, the error names the variable to set; nothing is sent, nothing repeated."""
    function = embedreg.get(name).create(**({"name": "voyage-4"} if name == "voyageai" else {}))
    with pytest.raises(MissingVariableError, match=embedreg.get(name).vendor.key_names[0]):
        function.compute_query_embeddings("a")
