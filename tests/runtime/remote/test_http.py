"""Responses are bounded as they are after unpacking, by the shared client and by the client of `openai`."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import embedreg
from embedreg.errors import CallError, EmbedregError
from embedreg.runtime.remote import http

ANSWER = {"data": [{"index": 0, "embedding": [1.0, 2.0]}], "usage": {"total_tokens": 1}}
BODIES: dict[str, tuple[str, bytes]] = {
    "plain": ("identity", json.dumps(ANSWER).encode()),
    "gzip": ("gzip", gzip.compress(json.dumps(ANSWER).encode())),
    "cut": ("gzip", gzip.compress(json.dumps(ANSWER).encode())[:20]),
    "no gzip": ("gzip", b"no gzip"),
    "br": ("br", b"anything"),
    "digits": ("identity", b'{"data": %s}' % (b"1" * 5000)),
    "bomb": ("gzip", gzip.compress(b"[" + b" " * (8 << 20))),
}


class _Handler(BaseHTTPRequestHandler):
    asked: list[str | None] = []  # noqa: RUF012  # of all requests of this file
    status = 200

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.headers["Accept-Encoding"])
        packing, body = BODIES[self.path.split("/")[1].replace("%20", " ")]
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Encoding", packing)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server whose path chooses the response."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def ask(server: str, kind: str) -> Any:
    """Send a request by the shared client."""
    return http.exchange(f"{server}/{kind}", {"a": 1}, headers={}, timeout_s=20)


def by_openai(server: str, kind: str) -> Any:
    """Send a request by OpenAI's client."""
    function = embedreg.get("openai").create(
        name="m", dim=2, base_url=f"{server}/{kind}/v1", encoding_format="float", max_retries=0
    )
    return function.compute_source_embeddings(["a"]).tolist()


@pytest.mark.parametrize("kind", ["plain", "gzip"])
def test_a_response_is_the_same_packed_or_not(server: str, kind: str) -> None:
    """Only gzip is asked for, and unpacked."""
    assert ask(server, kind) == ANSWER
    assert by_openai(server, kind) == [[1.0, 2.0]]
    assert set(_Handler.asked) == {"gzip"}


@pytest.mark.parametrize("send", [ask, by_openai])
def test_a_response_is_bounded_after_unpacking(server: str, monkeypatch: pytest.MonkeyPatch, send: Any) -> None:
    """Eight kilobytes that unpack to eight megabytes are refused where four are allowed."""
    assert len(BODIES["bomb"][1]) < 10_000
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 4 << 20)
    with pytest.raises(CallError, match="longer than 4 MiB"):
        send(server, "bomb")


@pytest.mark.parametrize(
    ("kind", "message"), [("no%20gzip", "not valid gzip"), ("br", "compressed in a way that was not requested")]
)
def test_other_packings_are_refused(server: str, kind: str, message: str) -> None:
    """What cannot be unpacked within bounds is named."""
    for send in (ask, by_openai):
        with pytest.raises(CallError, match=message):
            send(server, kind)


def test_a_cut_gzip_is_no_vector(server: str) -> None:
    """Half a response is not JSON."""
    with pytest.raises(json.JSONDecodeError):
        ask(server, "cut")


@pytest.mark.parametrize("kind", ["no%20gzip", "br", "bomb"])
def test_an_error_is_known_by_its_status_whatever_its_content(
    server: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A busy server before which a proxy packs its page is one: the request is repeated."""
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 4 << 20)
    monkeypatch.setattr(_Handler, "status", 503)
    with pytest.raises(http.HttpError) as caught:
        ask(server, kind)
    assert caught.value.status_code == 503


def test_a_number_that_python_does_not_read_is_not_json(server: str) -> None:
    """Thousands of digits: a fault of the response, not an error of Python's."""
    with pytest.raises(json.JSONDecodeError, match="too long"):
        ask(server, "digits")
    with pytest.raises(EmbedregError, match="digits"):
        by_openai(server, "digits")


def test_a_long_message_is_cut() -> None:
    """Looking through megabytes of it would take minutes."""
    assert len(http.message_of({"message": "a b" * 10**6})) == 10_000
