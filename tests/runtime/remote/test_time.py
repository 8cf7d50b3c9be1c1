"""A call to a service ends: however slow the server is, and however wrong its answers are."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg.errors import CallError
from embedreg.runtime.remote import RemoteTextFunction, http
from tests.servers import EmbeddingServer, Reply, alone, create, expected

pytest.importorskip("openai")
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Without OpenAI's settings of this machine, and without sleeps."""
    with alone():
        yield


@contextmanager
def slow_server(kind: str) -> Iterator[str]:
    """Serve one kind of slowness on loopback; give its base_url."""
    over = threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65_536)
            if kind == "headers":
                for byte in HEAD * 1000:
                    connection.send(bytes([byte]))
                    if over.wait(0.1):
                        return
            elif kind == "drip":
                connection.send(HEAD + b"content-length: 100000\r\n\r\n")
                while not over.wait(0.1):
                    connection.send(b" ")
            elif kind == "endless":
                connection.send(HEAD + b"\r\n")
                while not over.wait(0.001):
                    connection.send(b" " * 10_000)
            else:
                over.wait()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        over.set()
        listening.close()


@pytest.mark.parametrize("kind", ["silent", "headers", "drip", "endless"])
def test_a_slow_server_is_left(kind: str) -> None:
    """Bytes that come one by one do not lengthen a request: timeout_s and deadline_s bound it from first to last."""
    with slow_server(kind) as url:
        fn = embedreg.get("openai").create(name="m", dim=8, base_url=url, timeout_s=0.3, deadline_s=1.0, max_retries=50)
        fn._client()  # importing the SDK takes its time too
        began = time.monotonic()
        with pytest.raises(CallError, match=r"127\.0\.0\.1:\d+"):
            fn.compute_query_embeddings("a")
        assert time.monotonic() - began < 10


class Asleep(RemoteTextFunction):
    """A client library that waits for ever."""

    def ndims(self) -> int:
        return 2

    def request(self, batch: list[str]) -> Any:
        time.sleep(30)


def test_any_client_is_left() -> None:
    """A third party's `request` without a timeout of its own is bounded too, in each of several threads."""
    fn = Asleep(timeout_s=0.2, deadline_s=0.5, max_retries=1, batch_size=1)
    began = time.monotonic()
    with pytest.raises(CallError, match=r"TimeoutError.*no complete response within 0\.2 s"):
        fn.generate_embeddings(["a", "b", "c"])
    assert time.monotonic() - began < 10


WRONG = [
    "",
    "{",
    '{"object": "list", "data": [{"index": 0, "embed',
    "[]",
    "null",
    "7",
    "{}",
    '{"data": []}',
    '{"data": null}',
    '{"data": {}}',
    '{"data": [{"index": 0}]}',
    '{"data": [{"index": 0, "embedding": null}]}',
    '{"data": [{"index": 0, "embedding": []}]}',
    '{"data": [{"index": 0, "embedding": "AAA"}]}',
    '{"data": [{"index": 0, "embedding": ["x"]}]}',
    '{"data": [null]}',
    '{"error": {"message": "upstream is busy"}}',
]


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
@pytest.mark.parametrize("answer", WRONG)
def test_a_success_without_vectors_is_tried_again(answer: str, content_type: str) -> None:
    """HTTP 200 with an empty, cut or wrong body is a fault of a moment; one that stays is an error of ours."""
    reply = Reply("raw", status=200, message=answer, headers={"Content-Type": content_type})
    with EmbeddingServer() as server:
        server.replies.extend([reply, reply])
        made = create(server, max_retries=2).compute_source_embeddings(["abc"])
        assert np.array_equal(made, expected(["abc"]))
        server.replies.extend([reply, reply])
        with pytest.raises(embedreg.EmbedregError):
            create(server, max_retries=1).compute_source_embeddings(["abc"])
        assert len(server.requests) == 5


def test_a_web_page_is_no_fault_of_a_moment() -> None:
    """A page in place of an answer is an endpoint that is wrong: reported at once."""
    with EmbeddingServer() as server:
        page = Reply("raw", status=200, message="<!doctype html><p>hello", headers={"Content-Type": "text/html"})
        server.replies.append(page)
        with pytest.raises(CallError, match="web page") as caught:
            create(server).compute_source_embeddings(["abc"])
        assert "/v1" in str(caught.value.hint)
        assert len(server.requests) == 1


def test_a_column_among_random_faults_is_whole() -> None:
    """Each request fails in one way or another a few times; every row gets its own vector."""
    chance = random.Random(5)
    texts = [f"text {row} {'abc' * (row % 7)}" for row in range(60)]
    with EmbeddingServer() as server:
        for _ in range(25):
            kind = chance.choice(["raw", "error", "drop", "cut"])
            server.replies.append(Reply(kind, status=200 if kind == "raw" else 503, message=chance.choice(WRONG)))
        made = create(server, batch_size=7, max_retries=30).compute_source_embeddings(texts)
        assert np.array_equal(made, expected(texts))
        assert not server.replies


def test_an_answer_that_is_too_long_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body beyond all measure is not read to its end."""
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 1000)
    with EmbeddingServer() as server:
        server.replies.append(Reply("raw", status=200, message=json.dumps({"data": ["x" * 5000]})))
        with pytest.raises(CallError, match="longer than"):
            create(server).compute_source_embeddings(["abc"])
        assert len(server.requests) == 1


def test_a_host_is_named_and_its_password_is_not() -> None:
    """An error of the connection names the host and the port, without what stands before it."""
    embedreg.get_registry().set_var("here", "http://user:pa55word@127.0.0.1:9/v1")
    fn = embedreg.get("openai").create(name="m", dim=8, base_url="$var:here", max_retries=0)
    with pytest.raises(CallError, match=r"APIConnectionError at 127\.0\.0\.1:9") as caught:
        fn.compute_query_embeddings("a")
    assert "pa55word" not in str(caught.value)
