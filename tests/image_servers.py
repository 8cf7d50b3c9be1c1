"""A real HTTP server on loopback that serves a picture, and misbehaves by path as image servers do."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.servers import Loopback


class ImageServer(Loopback):
    """The server, as a context manager.

    Args:
        picture: what `/picture.png` gives.
        tls: wraps each connection; None for plain HTTP.
    Attributes:
        asked: the paths that were asked for, in order.
        headers: those of the last request, in lower case.
    """

    def __init__(self, picture: bytes, tls: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.picture, self.tls = picture, tls
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "picture.png") -> str:
        """The address of something on it."""
        return f"{'http' if self.tls is None else 'https'}://{self.host}/{path}"


class _Handler(BaseHTTPRequestHandler):
    owner: ImageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Say nothing on stderr."""

    def do_GET(self) -> None:
        """Answer by path."""
        parts = urlsplit(self.path)
        self.owner.asked.append(self.path)
        self.owner.headers = {name.lower(): value for name, value in self.headers.items()}
        self.close_connection = True
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        answer: Callable[[Mapping[str, str]], None] | None = getattr(
            self, f"on_{parts.path.strip('/').split('.')[0]}", None
        )
        try:
            if answer is None:
                self.reply(404, b"nothing here", "text/plain")
            else:
                answer(query)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):  # the client has seen enough
            pass

    def reply(self, status: int, content: bytes, kind: str | None = "image/png", **headers: str) -> None:
        """Send an answer; underscores in the names of headers stand for hyphens."""
        self.send_response(status)
        if kind is not None:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def on_picture(self, query: Mapping[str, str]) -> None:
        kind = query.get("kind", "image/png")
        self.reply(200, self.owner.picture, kind or None, **({"Content_Encoding": "gzip"} if "gzip" in query else {}))

    def on_to(self, query: Mapping[str, str]) -> None:
        self.reply(int(query.get("status", 302)), b"", None, **({"Location": query["url"]} if "url" in query else {}))

    def on_loop(self, query: Mapping[str, str]) -> None:
        self.reply(302, b"", None, Location=f"/loop?n={int(query.get('n', 0)) + 1}")

    def on_status(self, query: Mapping[str, str]) -> None:
        """Fail `times` times with a status, then give the picture."""
        failed = sum(path == self.path for path in self.owner.asked)
        if failed <= int(query.get("times", 99)):
            self.reply(
                int(query["code"]), b"no", "text/plain", **({"Retry_After": query["after"]} if "after" in query else {})
            )
        else:
            self.on_picture({})

    def on_cut(self, query: Mapping[str, str]) -> None:
        """End the connection in the middle, `times` times."""
        if sum(path == self.path for path in self.owner.asked) > int(query.get("times", 99)):
            self.on_picture({})
            return
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(self.owner.picture)))
        self.end_headers()
        self.wfile.write(self.owner.picture[:10])

    def on_claims(self, query: Mapping[str, str]) -> None:
        """Announce more than there is, and send nothing."""
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", query["bytes"])
        self.end_headers()

    def on_endless(self, query: Mapping[str, str]) -> None:
        """Never stop sending, in chunks of an unknown number."""
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.owner.closing.is_set():
            self.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    def on_silent(self, query: Mapping[str, str]) -> None:
        self.owner.closing.wait(30)

    def on_drip(self, query: Mapping[str, str]) -> None:
        """Send a byte of the body now and then."""
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        while not self.owner.closing.wait(0.05):
            self.wfile.write(b"x")

    def on_headers(self, query: Mapping[str, str]) -> None:
        """Send a byte of the headers now and then."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nX-Slow: ")
        while not self.owner.closing.wait(0.05):
            self.wfile.write(b"x")

    def on_nonsense(self, query: Mapping[str, str]) -> None:
        self.wfile.write(b"this is no HTTP\r\n\r\n")


ImageServer.handler = _Handler
