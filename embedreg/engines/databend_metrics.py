"""What a server did: counted once, shown by `Server.counts()` and over HTTP to Prometheus, with its health."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["COUNTERS", "Health", "Tally"]

COUNTERS = {
    "calls": "calls that were let in",
    "rows": "rows of these calls",
    "embedded": "inputs that reached the function",
    "cached": "different inputs of a call whose vector was in memory",
    "nulls": "rows that are NULL because their input is null or blank",
    "bad": "rows that are NULL by their own input's fault",
    "passes": "times that the function was run",
    "shared": "requests that shared such a run with others",
    "failed": "calls that failed",
    "refused": "calls that were refused because of too many others, or of a shutdown",
    "cancelled": "calls whose query was cancelled",
    "expired": "calls that reached their deadline",
    "unauthenticated": "calls without the right token",
}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Tally:
    """Counters by SQL function, safe to add to from any thread.

    The Prometheus registry is its own: several servers live in one process.
    """

    def __init__(self, ready: Callable[[], bool], open_calls: Callable[[], int]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._gauges = {
            "ready": ("whether the models are loaded and calls are let in", ready),
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
        """Count for a SQL function; "" where there is none."""
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
    """An HTTP server with /metrics, /live (the process answers) and /ready (the models are loaded, calls are let in).

    Args:
        host, port: where it listens; port 0 takes a free one.
    """

    def __init__(self, host: str, port: int, tally: Tally, ready: Callable[[], bool]) -> None:
        pages: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": lambda: (200, CONTENT_TYPE_LATEST, generate_latest(tally.registry)),
            "/live": lambda: (200, "text/plain", b"live\n"),
            "/ready": lambda: (200, "text/plain", b"ready\n") if ready() else (503, "text/plain", b"not ready\n"),
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                status, kind, body = page() if page else (404, "text/plain", b"/metrics, /live or /ready\n")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's own name
                """Keep a probe a second out of the log."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._http = Server((host, port), Handler)
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, name="embedreg-health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
