"""A real HTTP server on loopback that speaks the protocol of OpenAI's embeddings, and fails on demand."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import numpy as np
import stamina

import embedreg
from embedreg.runtime import remote

if TYPE_CHECKING:
    from embedreg.functions.openai import OpenAIEmbeddings

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def vector_of(text: str, ndims: int) -> list[float]:
    """Return the vector this server gives a text: its length, then how often it has a, b, c ... (and again from a)."""
    counts = [float(text.count(letter)) for letter in LETTERS]
    return [float(len(text)), *(counts[k % len(LETTERS)] for k in range(ndims - 1))]


@dataclass
class Reply:
    """One scripted answer, given instead of embedding.

    Attributes:
        kind: "error", an HTTP error; "drop", the connection ends without an answer; "cut", in the middle of one;
            "slow", a right answer that comes late; "raw", the text as it is.
        delay_s: of "slow".
    """

    kind: Literal["error", "drop", "cut", "slow", "raw"] = "error"
    status: int = 500
    message: str = "the server had an error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0


@dataclass
class Received:
    """One request as it arrived; header names in lower case."""

    path: str
    query: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[str]:
        """The inputs."""
        return list(self.body["input"])


class Loopback:
    """An HTTP server on loopback, as a context manager.

    Attributes:
        closing: set when the server ends; what waits, waits for it.
        tls: wraps each connection; None for plain HTTP.
    """

    handler: type[BaseHTTPRequestHandler]
    tls: ssl.SSLContext | None = None

    def __init__(self) -> None:
        self.closing = threading.Event()

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        handler = type("Handler", (self.handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True  # a kept-alive connection must not keep the tests alive
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves early
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class EmbeddingServer(Loopback):
    """The server, as a context manager.

    Args:
        ndims: the width of its vectors, where the request does not ask for another.
        key: the key it wants, or None for any or none.
        max_words: a text of more words is refused as OpenAI refuses a text over the context length.
        max_inputs: a request of more texts is refused.
        refused: texts that are refused without a word on why.
        base64: whether it knows `encoding_format="base64"`; if not, it answers with numbers as some servers do.
        shortens: whether it knows `dimensions`; if not, it ignores it.
        backwards: whether it answers in reverse order, `index` telling.
        gathers: how many requests it lets come together, once, before it answers any (five seconds at the most).
    Attributes:
        requests: what arrived, in order.
        replies: answers to give first, one a request.
    """

    def __init__(
        self,
        ndims: int = 8,
        *,
        key: str | None = None,
        max_words: int = 1000,
        max_inputs: int = 2048,
        refused: frozenset[str] = frozenset(),
        base64: bool = True,
        shortens: bool = True,
        backwards: bool = False,
        gathers: int = 1,
    ) -> None:
        super().__init__()
        self.ndims, self.key = ndims, key
        self.max_words, self.max_inputs, self.refused = max_words, max_inputs, refused
        self.base64, self.shortens, self.backwards = base64, shortens, backwards
        self.requests: list[Received] = []
        self.replies: deque[Reply] = deque()
        self.under_way = self.most_under_way = 0
        self.gathers, self.gathered = gathers, threading.Event()
        self.lock = threading.Lock()

    @property
    def inputs(self) -> int:
        """How many texts have arrived, in all requests."""
        return sum(len(request.texts) for request in self.requests)

    @property
    def url(self) -> str:
        """The endpoint, as `base_url` wants it."""
        return f"http://{self.host}/v1"


class _Handler(BaseHTTPRequestHandler):
    owner: EmbeddingServer
    protocol_version = "HTTP/1.1"  # connections are kept, as a real service keeps them
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Say nothing on stderr."""

    def do_POST(self) -> None:
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = urlsplit(self.path)
        with self.owner.lock:
            self.owner.requests.append(
                Received(parts.path, parts.query, {k.lower(): v for k, v in self.headers.items()}, body)
            )
            self.owner.under_way += 1
            self.owner.most_under_way = max(self.owner.most_under_way, self.owner.under_way)
            if self.owner.under_way >= self.owner.gathers:
                self.owner.gathered.set()
            reply = self.owner.replies.popleft() if self.owner.replies else None
        self.owner.gathered.wait(5)
        try:
            self._answer(parts.path, body, reply)
        finally:
            with self.owner.lock:
                self.owner.under_way -= 1

    def _answer(self, path: str, body: dict[str, Any], reply: Reply | None) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ") or self.headers.get("api-key", "")
        if reply is not None and reply.kind == "slow":
            self.owner.closing.wait(reply.delay_s)
        elif reply is not None and reply.kind != "error":
            self._misbehave(reply)
            return
        elif reply is not None:
            self._refuse(reply.status, reply.message, reply.code, reply.param, reply.headers)
            return
        texts, limit = body["input"], self.owner.max_words
        if not path.endswith("/embeddings"):
            self._refuse(404, f"no such place: {path}")
        elif self.owner.key is not None and given != self.owner.key:
            self._refuse(401, f"Incorrect API key provided: {given}.", "invalid_api_key")  # careless servers repeat it
        elif len(texts) > self.owner.max_inputs:
            self._refuse(422, f"batch size {len(texts)} is over the maximum of {self.owner.max_inputs}")
        elif longest := [len(text.split()) for text in texts if len(text.split()) > limit]:
            words = f"This model's maximum context length is {limit} tokens, however you requested {longest[0]} tokens"
            self._refuse(400, f"{words}. Please reduce your prompt.", None, None)
        elif self.owner.refused.intersection(texts):
            self._refuse(400, "'$.input' is invalid.")
        elif not all(text.strip() for text in texts):
            self._refuse(400, "'$.input' holds an empty string.")
        else:
            self._embed(body, texts)

    def _embed(self, body: dict[str, Any], texts: list[str]) -> None:
        ndims = body.get("dimensions") if self.owner.shortens else None
        data = []
        for index, text in enumerate(texts):
            vector: Any = vector_of(text, ndims or self.owner.ndims)
            if body.get("encoding_format") == "base64" and self.owner.base64:
                vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        if self.owner.backwards:
            data.reverse()
        tokens = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._send(200, json.dumps({"object": "list", "data": data, "model": body["model"], "usage": usage}))

    def _refuse(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        error = {"message": message, "type": "invalid_request_error", "code": code, "param": param}
        self._send(status, json.dumps({"error": error}), headers or {})

    def _send(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # the client has given up waiting, as a slow answer provokes
            self.close_connection = True

    def _misbehave(self, reply: Reply) -> None:
        if reply.kind == "raw":
            self._send(reply.status, reply.message, reply.headers)
            return
        if reply.kind == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"object": "list", "da')
            self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


EmbeddingServer.handler = _Handler


# -- the `openai` function against it ----------------------------------------------------------------------------------


def create(server: EmbeddingServer, **config: Any) -> OpenAIEmbeddings:
    """Return the function on a server, as a user makes it."""
    fn: OpenAIEmbeddings = embedreg.get("openai").create(
        **{"name": "letters", "dim": 8, "base_url": server.url, **config}
    )
    return fn


def expected(texts: list[str], ndims: int = 8) -> np.ndarray:
    """Return what the server gives some texts: (n, ndims)."""
    return np.array([vector_of(text, ndims) for text in texts], np.float32)


@contextmanager
def alone() -> Iterator[None]:
    """Take OpenAI's settings out of the environment, leave out the sleeps between attempts, close what was opened."""
    settings = {name: os.environ[name] for name in list(os.environ) if name.startswith(("OPENAI_", "AZURE_OPENAI_"))}
    for name in settings:
        del os.environ[name]
    try:
        with stamina.set_testing(True, attempts=100, cap=True):
            yield
    finally:
        remote.release()
        os.environ.update(settings)
