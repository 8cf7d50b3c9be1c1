"""The `openai` function, through the real SDK, against a real HTTP server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import stamina

import embedreg
from embedreg.declaration import codec
from embedreg.errors import (
    CallError,
    ConfigError,
    RowError,
    VectorError,
)
from embedreg.functions import openai as ours
from embedreg.functions.openai import OpenAIEmbeddings
from embedreg.runtime import remote
from tests.servers import EmbeddingServer, Reply, alone, create, expected

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


TEXTS = [f"text number {i} of many {'z' * (i % 13)}" for i in range(300)]


# -- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding_format", ["base64", "float"])
@pytest.mark.parametrize("knows_base64", [True, False])
@pytest.mark.parametrize("backwards", [True, False])
def test_vectors_are_the_servers_in_order(encoding_format: str, knows_base64: bool, backwards: bool) -> None:
    """(n, d) float32 in the order of the texts, whatever order and encoding the server answers in."""
    with EmbeddingServer(base64=knows_base64, backwards=backwards) as server:
        made = create(server, encoding_format=encoding_format).compute_source_embeddings(["bad cab", "add"])
        assert made.dtype == np.float32
        assert np.array_equal(made, expected(["bad cab", "add"]))
        assert made[0].tolist() == [7.0, 2.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.0]
        assert server.requests[0].body["encoding_format"] == encoding_format


def test_a_query_is_one_request(server: EmbeddingServer) -> None:
    """A query gives a list that holds one vector, for one request of one text."""
    made = create(server).compute_query_embeddings("a query")
    assert np.array_equal(made[0], expected(["a query"])[0])
    assert [request.texts for request in server.requests] == [["a query"]]


def test_queries_go_out_in_batches(server: EmbeddingServer) -> None:
    """1,000 distinct queries are two requests of the batch size, not 1,000, with the vectors that each has alone."""
    queries = [f"query {number}" for number in range(1000)]
    made = embedreg.embed_column(create(server), queries, "query")
    assert np.array_equal(made.matrix, expected(queries))
    assert sorted(len(request.texts) for request in server.requests) == [488, 512]
    assert create(server).vector_traits()["prompts"] is None


def test_many_rows_come_back_in_order() -> None:
    """300 texts in 43 requests, four at a time over shared connections, come back in order."""
    with EmbeddingServer(gathers=4) as server:
        made = create(server, batch_size=7).compute_source_embeddings(TEXTS)
        assert np.array_equal(made, expected(TEXTS))
        assert len(server.requests) == 43
        assert server.inputs == 300
        assert server.most_under_way == 4


def test_batches_are_cut_by_tokens(server: EmbeddingServer) -> None:
    """A request holds no more tokens than max_batch_tokens, by the estimate for a model that tiktoken does not know."""
    create(server, max_batch_tokens=100, concurrency=1).compute_source_embeddings(
        ["a" * 60, "b" * 60, "c" * 60, "d" * 60]
    )
    assert [len(request.texts) for request in server.requests] == [3, 1]


def test_null_and_blank_rows_are_skipped(server: EmbeddingServer) -> None:
    """Null and blank rows have no vector and are not sent; the server would refuse the whole batch for them."""
    made = create(server).compute_source_embeddings(pa.array(["a", None, "", "  \n", "b"]))
    assert [row is None for row in made] == [False, True, True, True, False]
    assert [request.texts for request in server.requests] == [["a", "b"]]


def test_equal_configurations_share_one_client(server: EmbeddingServer) -> None:
    """Threads and equal instances use one client, another timeout another; released, it is made anew."""
    remote.release()
    first = create(server)
    threads = [threading.Thread(target=create(server).compute_query_embeddings, args=["a"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert first._client() is create(server, batch_size=3)._client()
    assert first._client() is not create(server, timeout_s=3)._client()
    before = first._client()
    assert remote.release() == 2
    assert first._client() is not before


# -- the width --------------------------------------------------------------------------------------------------------


def test_known_models_need_no_server() -> None:
    """The widths of OpenAI's models and of an explicit `dim` come without a key or a request."""
    assert OpenAIEmbeddings.create().ndims() == 1536
    assert OpenAIEmbeddings.create(name="text-embedding-3-large").ndims() == 3072
    assert OpenAIEmbeddings.create(name="text-embedding-3-large", dim=256).ndims() == 256
    assert OpenAIEmbeddings.create(name="other", base_url="http://127.0.0.1:1/v1", dim=5).ndims() == 5
    assert sorted(OpenAIEmbeddings.model_names()) == sorted(ours.NDIMS)


def test_an_unknown_model_is_asked_once(server: EmbeddingServer) -> None:
    """Without `dim`, the server is asked with one request, and not again."""
    fn = create(server, dim=None)
    assert (fn.ndims(), fn.ndims()) == (8, 8)
    assert server.inputs == 1
    fresh = create(server, dim=None)
    fresh.compute_source_embeddings(["a"])
    assert (fresh.ndims(), server.inputs) == (8, 2)


def test_a_server_that_cannot_be_asked_says_so() -> None:
    """The error names the model, what failed, and the field that makes asking unnecessary."""
    fn = OpenAIEmbeddings.create(name="letters", base_url="http://127.0.0.1:9/v1", max_retries=0)
    with pytest.raises(CallError, match="the width of 'letters' is unknown, and querying the server") as caught:
        fn.ndims()
    assert "create(..., dim=...)" in str(caught.value)


def test_dim_asks_for_shorter_vectors(server: EmbeddingServer) -> None:
    """`dim` is sent as `dimensions`; a model's own width is not."""
    made = create(server, dim=3).compute_source_embeddings(["abc"])
    assert np.array_equal(made, expected(["abc"], 3))
    assert server.requests[0].body["dimensions"] == 3
    server.ndims = 1536
    create(server, dim=1536, name="text-embedding-3-small").compute_source_embeddings(["abc"])
    assert "dimensions" not in server.requests[1].body


def test_a_server_that_ignores_dim_is_found_out() -> None:
    """Vectors of another width than asked for are refused, and never stored."""
    with EmbeddingServer(shortens=False) as server, pytest.raises(VectorError, match="8 dimensions, expected 3"):
        create(server, dim=3).compute_source_embeddings(["abc"])


@pytest.mark.parametrize(
    "config",
    [
        {"dim": 512},
        {"name": "text-embedding-3-small", "dim": 1537},
        {"dim": 0},
        {"base_url": "localhost:11434"},
        {"batch_size": 4096},
        {"encoding_format": "hex"},
        {"nmae": "x"},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_work_is_refused(config: dict[str, Any]) -> None:
    """Widths that a model cannot have, an endpoint that is not a URL and more are refused when the function is made."""
    with pytest.raises(ConfigError):
        OpenAIEmbeddings.create(**config)


# -- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explained", [True, False])
def test_a_row_that_is_too_long_costs_only_itself(server: EmbeddingServer, explained: bool) -> None:
    """One refused row among 100, with or without the server saying why: 99 vectors and one error with the reason."""
    texts = list(TEXTS[:100])
    texts[37] = "word " * 2000
    if not explained:
        server.max_words, server.refused = 10_000, frozenset(texts[37:38])
    made = create(server).compute_source_embeddings(texts)
    assert [row for row, vector in enumerate(made) if isinstance(vector, RowError)] == [37]
    assert ("maximum context length is 1000" in str(made[37])) is explained
    assert np.array_equal(np.stack(made[:37] + made[38:]), expected(texts[:37] + texts[38:]))
    assert len(server.requests) <= 1 + 2 * 7 + 1


def test_a_long_row_in_a_table_is_reported(server: EmbeddingServer) -> None:
    """embed_table: the long row is null and in the report, by its row; the rest of the table is embedded."""
    report = embedreg.Report()
    table = pa.table({"text": ["a", "word " * 2000, None, "b"]})
    done = embedreg.embed_table(table, create(server).bind("text", "vector"), on_error="null", report=report)
    assert done["vector"].is_valid().to_pylist() == [True, False, False, True]
    assert [bad.row for bad in report.bad] == [1]


def test_a_token_table_at_hand_refuses_long_rows_unsent(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tiktoken's table, a row over the model's limit is refused without a request, and batches are cut exactly."""
    tiktoken = pytest.importorskip("tiktoken")
    table = tiktoken.Encoding(  # a table small enough to write down: a token is one of the 256 bytes
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", table)
    ours._tokenizer.cache_clear()
    try:
        server.ndims = 1536
        fn = create(server, name="text-embedding-3-small", dim=None, max_batch_tokens=1000, concurrency=1)
        made = fn.compute_source_embeddings(["a" * 9000, "b" * 400, "c" * 400, "d" * 400])
        assert str(made[0]) == "the text has 9000 tokens, text-embedding-3-small takes 8192"
        assert [len(request.texts) for request in server.requests] == [2, 1]
        assert fn.row_problem("a" * 8192) is None
        assert "1000000 tokens" in str(fn.row_problem("a" * 1_000_000))
    finally:
        ours._tokenizer.cache_clear()


def test_without_a_token_table_the_estimate_does(server: EmbeddingServer) -> None:
    """Where tiktoken's table is not available (no network here), tokens are estimated and nothing fails."""
    ours._tokenizer.cache_clear()
    server.ndims = 1536
    fn = create(server, name="text-embedding-3-small", dim=None)
    assert fn.count_tokens("a" * 1000) == 501
    assert fn.max_tokens() == 8192
    assert create(server).max_tokens() is None  # an unknown model
    assert fn.compute_source_embeddings(["a" * 9000]).shape == (1, 1536)
    ours._tokenizer.cache_clear()


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=429, headers={"Retry-After": "1"}),
        Reply(status=408),
        Reply(status=500),
        Reply(status=503),
        Reply("drop"),
        Reply("cut"),
    ],
    ids=lambda reply: f"{reply.kind}-{reply.status}",
)
def test_what_passes_is_tried_again(server: EmbeddingServer, reply: Reply) -> None:
    """Two failures that may pass, busy servers and dropped connections alike, and then the vectors: three requests."""
    server.replies += [reply, reply]
    assert np.array_equal(create(server).compute_source_embeddings(["a"]), expected(["a"]))
    assert len(server.requests) == 3


def test_what_passes_is_tried_again_with_a_key_and_in_threads(server: EmbeddingServer) -> None:
    """A function that holds a secret, with several requests under way, sees busy answers for what they are."""
    embedreg.get_registry().set_var("k", SECRET)
    server.replies += [Reply(status=503), Reply(status=429), Reply("drop")]
    texts = TEXTS[:20]
    made = create(server, api_key="$var:k", batch_size=2).compute_source_embeddings(texts)
    assert np.array_equal(made, expected(texts))
    assert len(server.requests) == 13


def test_retry_after_is_waited_for(server: EmbeddingServer) -> None:
    """The server says a fifth of a second: the second request comes after that."""
    server.replies.append(Reply(status=429, headers={"Retry-After": "0.2"}))
    with stamina.set_testing(False):
        began = time.monotonic()
        create(server).compute_source_embeddings(["a"])
        assert 0.2 <= time.monotonic() - began < 5


@pytest.mark.parametrize("max_retries", [0, 2])
def test_retries_are_bounded(server: EmbeddingServer, max_retries: int) -> None:
    """1 + max_retries requests by the server's count, the SDK's own included, then an error with rows and hint."""
    server.replies += [Reply(status=429, message="Rate limit reached", headers={"Retry-After": "1"})] * 20
    with pytest.raises(CallError, match=r"rows 0-1 of this call .* HTTP 429\): Rate limit reached") as caught:
        create(server, max_retries=max_retries).compute_source_embeddings(["a", "b"])
    assert "rate limit" in str(caught.value.hint)
    assert len(server.requests) == 1 + max_retries


def test_the_deadline_holds(server: EmbeddingServer) -> None:
    """A server that asks for more patience than deadline_s gets none."""
    server.replies += [Reply(status=429, headers={"Retry-After": "60"})] * 3
    with pytest.raises(CallError):
        create(server, deadline_s=5).compute_source_embeddings(["a"])
    assert len(server.requests) == 1


def test_a_slow_server_times_out(server: EmbeddingServer) -> None:
    """timeout_s bounds each request; a late answer is a failure that is tried again."""
    server.replies += [Reply("slow", delay_s=5)] * 2
    began = time.monotonic()
    with pytest.raises(CallError, match="timed out"):
        create(server, timeout_s=0.2, max_retries=1).compute_source_embeddings(["a"])
    assert time.monotonic() - began < 4
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "hint"),
    [
        (Reply(status=401, message="Incorrect API key"), "bind_env"),
        (Reply(status=403, message="Country not supported"), "may not use"),
        (Reply(status=404, message="The model does not exist"), "the model's name"),
        (Reply(status=429, message="You exceeded your quota", code="insufficient_quota"), "billing"),
        (Reply(status=400, message="unsupported", param="encoding_format"), "encoding_format='float'"),
        (Reply(status=400, message="unsupported", param="dimensions"), "leave dim out"),
        (
            Reply(status=307, message="elsewhere", headers={"Location": "http://127.0.0.1:9/"}),
            "redirects are not followed",
        ),
    ],
    ids=lambda value: value.code or f"{value.status}-{value.param}" if isinstance(value, Reply) else None,
)
def test_what_does_not_pass_is_not_repeated(server: EmbeddingServer, reply: Reply, hint: str) -> None:
    """A refused key, a missing model, an empty account: one request, then an error with a hint."""
    server.replies.append(reply)
    with pytest.raises(CallError) as caught:
        create(server).compute_source_embeddings(["a", "b"])
    assert reply.message in str(caught.value) or reply.status == 307
    assert hint in str(caught.value.hint)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    ["<html>a proxy's page</html>", "[]", "null", '{"data": []}', '{"data": null}', '{"data": [{"index": 7}]}'],
)
def test_an_answer_that_is_no_answer_is_an_error(server: EmbeddingServer, answer: str) -> None:
    """HTML, an empty list and rows that were not asked for become errors of embedreg, and no vectors."""
    server.replies.append(Reply("raw", status=200, message=answer, headers={"Content-Type": "application/json"}))
    with pytest.raises(embedreg.EmbedregError):
        create(server, max_retries=0).compute_source_embeddings(["a"])


def test_no_server_at_all_is_an_error_with_a_hint() -> None:
    """A refused connection is reported with the fields that help."""
    fn = OpenAIEmbeddings.create(name="letters", dim=8, base_url="http://127.0.0.1:9/v1", max_retries=1)
    with pytest.raises(CallError, match="APIConnectionError") as caught:
        fn.compute_source_embeddings(["a"])
    assert "endpoint" in str(caught.value.hint)


def test_prompts_stand_before_queries_and_sources(server: EmbeddingServer, caplog: pytest.LogCaptureFixture) -> None:
    """They are stored, and a model that is known to need them is named where there are none."""
    fn = create(server, query_prompt="query: ", document_prompt="passage: ")
    embedreg.embed_column(fn, ["a"])
    embedreg.embed_query(fn, "a")
    assert [request.texts for request in server.requests] == [["passage: a"], ["query: a"]]
    assert fn.vector_traits()["prompts"] == {"query": "query: ", "document": "passage: "}
    entry = embedreg.get_registry().function_to_metadata(fn.bind("text", "vector"))
    assert (entry["name"], entry["model"]["query_prompt"]) == ("embedreg:openai", "query: ")
    for _ in range(2):
        embedreg.embed_query(create(server, name="intfloat/e5-base-v2", query_prompt=None, document_prompt=None), "a")
    assert sum("e5-base-v2" in message and "query: " in message for message in caplog.messages) == 1


def test_prompts_that_a_model_is_known_to_need_are_the_default(server: EmbeddingServer) -> None:
    """Of a server that is named, in code; a declaration without them, such as LanceDB's, means none."""
    fn = create(server, name="intfloat/e5-base-v2", dim=8)
    assert (fn.query_prompt, fn.document_prompt) == ("query: ", "passage: ")
    assert create(server, name="intfloat/e5-base-v2", query_prompt="q: ").query_prompt == "q: "
    assert create(server, name="letters").query_prompt is None
    registry = embedreg.get_registry()
    entry = registry.function_to_metadata(fn.bind("text", "vector"))
    assert (entry["name"], entry["model"]["document_prompt"]) == ("embedreg:openai", "passage: ")
    of_stock = {"name": "openai", "model": {"name": fn.name, "base_url": fn.base_url, "dim": 8}}
    stored = json.dumps([{**of_stock, "source_column": "text", "vector_column": "vector"}])
    with embedreg.trust(hosts=[server.url.split("/")[2]]):
        found = registry.parse_functions({codec.KEY: stored})["vector"].function
    assert (found.query_prompt, found.document_prompt) == (None, None)
