"""A model hub on loopback, as far as the hub's client asks; it can refuse, answer nonsense, and break off."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PART = 100_000  # bytes of a file that come before it breaks off


class Hub:
    """A running hub.

    Attributes:
        address: where it is.
        asked: the paths that were asked for.
        answer: the status and body that everything gets instead; None to serve.
        cuts: how many more times a file longer than PART breaks off after PART bytes.
        held: set it to go on with a file that stops after PART bytes without an end; None for no such stop.
        stopped: set when a file has stopped so.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.address = ""
        self.asked: list[str] = []
        self.answer: tuple[int, bytes] | None = None
        self.cuts = 0
        self.held: threading.Event | None = None
        self.stopped = threading.Event()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(path)
        if self.hub.answer is not None:
            return self._send(*self.hub.answer)
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        folder = self.hub.root / repository
        if not folder.is_dir():
            return self._send(404, b"{}", X_Error_Code="RepoNotFound")
        files = {item.relative_to(folder).as_posix(): item for item in sorted(folder.rglob("*")) if item.is_file()}
        if api and "tree" in parts:
            return self._send_json(
                [
                    {"type": "file", "path": name, "size": each.stat().st_size, "oid": "0"}
                    for name, each in files.items()
                ]
            )
        if api:
            siblings = [{"rfilename": name, "size": item.stat().st_size} for name, item in files.items()]
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
            return self._send_json(info)
        item = files.get("/".join(parts[4:]))
        if item is None:
            return self._send(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        return self._send_file(item.read_bytes())

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _send_file(self, body: bytes) -> None:
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Repo_Commit": COMMIT}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        long = len(body) > PART and self.command == "GET"
        stops = PART if long and (self.hub.cuts or self.hub.held is not None) else None
        self._send(206 if start else 200, body[start:], stops, **headers)

    def _send(self, status: int, body: bytes, stops: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body[:stops])
            if stops is None:
                return
            self.wfile.flush()
            if self.hub.cuts:
                self.hub.cuts -= 1
                return
            self.hub.stopped.set()
            assert self.hub.held is not None
            self.hub.held.wait(60)
            self.wfile.write(body[stops:])
        except (BrokenPipeError, ConnectionResetError):  # a client that was killed
            self.close_connection = True


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """Serve the folders `owner/name` under a root as model repositories."""
    running = Hub(root)
    handler = type("Handler", (_Handler,), {"hub": running})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield running
    finally:
        if running.held is not None:
            running.held.set()
        server.shutdown()
        server.server_close()
        thread.join()
