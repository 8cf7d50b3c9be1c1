"""Metrics of a server, for `Server.counts()` and over HTTP for Prometheus, and its health."""

from __future__ import annotations

import asyncio
import http
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from embedreg.engines.databend.loop import run

__all__ = ["COUNTERS", "Health", "Metrics"]

COUNTERS = {
    "calls": "calls admitted",
    "rows": "rows of these calls",
    "embedded": "inputs that reached the function",
    "cached": "different inputs of a call whose vector was in memory",
    "nulls": "rows that are NULL because their input is null or blank",
    "bad": "rows that are NULL because their input could not be embedded",
    "too_long": "inputs over max_text_bytes, which are bad rows",
    "passes": "times that the function was run",
    "shared": "requests that shared such a run with others",
    "requests": "HTTP requests to the service of a remote function",
    "retries": "how many of these repeated a failed one",
    "billed_tokens": "tokens that the service reported",
    "estimated_tokens": "an estimate for the requests whose tokens were not reported",
    "failed": "calls that failed, or were ended by a shutdown",
    "refused": "calls that were refused because of too many others, or of a shutdown",
    "cancelled": "calls whose query was cancelled",
    "expired": "calls that reached their deadline",
    "stalled": "calls whose client sent nothing, or took nothing",
    "unauthenticated": "calls without the right token",
}
MAX_CONNECTIONS = 64
MAX_HEAD_BYTES = 2**13  # of a request
ANSWER_S = 5.0  # from the connection to the end of its answer
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """Counters by SQL function, safe to add to from any thread.

    The Prometheus registry is its own: several servers live in one process.
    """

    def __init__(self, ready: Callable[[], bool], open_calls: Callable[[], int]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._gauges = {
            "ready": ("whether the models are loaded and calls are admitted", ready),
            "open_calls": ("calls under way", open_calls),
        }
        self.seconds = Histogram(
            "embedreg_databend_call_seconds",
            "how long a call took",
            ["function"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(self)

    def add(self, function: str, counter: str, count: int = 1) -> None:
        """Add to a counter of a SQL function; "" if the call has named none."""
        if count:
            with self._lock:
                self._counts[function, counter] += int(count)

    def counts(self, function: str | None = None) -> dict[str, int]:
        """Return every counter, of one function or of all together."""
        with self._lock:
            known = dict(self._counts)
        return {
            counter: sum(n for (name, what), n in known.items() if what == counter and function in (None, name))
            for counter in COUNTERS
        }

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, for Prometheus."""
        with self._lock:
            known = dict(self._counts)
        for counter, what in COUNTERS.items():
            family = CounterMetricFamily(f"embedreg_databend_{counter}", what, labels=["function"])
            for (name, other), count in sorted(known.items()):
                if other == counter:
                    family.add_metric([name], count)
            yield family
        for gauge, (what, value) in self._gauges.items():
            yield GaugeMetricFamily(f"embedreg_databend_{gauge}", what, value=float(value()))


class Health:
    """An HTTP server with /metrics, /live (the process answers) and /ready (the models are loaded, calls are admitted).

    It lives in the servers' event loop: a connection costs no thread, has a few seconds, and is closed once it is
    answered.

    Args:
        host, port: where it listens; port 0 takes a free one.
    """

    def __init__(self, host: str, port: int, metrics: Metrics, ready: Callable[[], bool]) -> None:
        self._pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry)),
            "/live": lambda: (200, "text/plain", b"live\n"),
            "/ready": lambda: (200, "text/plain", b"ready\n") if ready() else (503, "text/plain", b"not ready\n"),
        }
        self._open: dict[asyncio.StreamWriter, None] = {}  # in the order in which they came
        self.port = run(self._start(host, port))

    async def _start(self, host: str, port: int) -> int:
        self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        self._open[writer] = None
        if len(self._open) > MAX_CONNECTIONS:  # the oldest connection is closed
            next(iter(self._open)).transport.abort()
            self._open.pop(next(iter(self._open)))
        try:
            async with asyncio.timeout(ANSWER_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, kind, body = self._answer(head)
                lines = (
                    f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
                    f"Content-Type: {kind}",
                    f"Content-Length: {len(body)}",
                    "Connection: close",
                )
                writer.write("\r\n".join((*lines, "", "")).encode("latin-1"))
                writer.write(b"" if head.startswith(b"HEAD ") else body)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client has gone, or sent no request
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()

    def _answer(self, head: bytes) -> tuple[int, str, bytes]:
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b"GET\n"
        page = self._pages.get(rest.partition(" ")[0].partition("?")[0])
        return page() if page else (404, "text/plain", b"/metrics, /live or /ready\n")

    def close(self) -> None:
        """Stop listening."""
        run(self._stop())

    async def _stop(self) -> None:
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
