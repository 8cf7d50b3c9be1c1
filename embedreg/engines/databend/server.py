"""Databend: registered functions as SQL functions, served over Arrow Flight.

    with serve({"ai_embed_384": function}) as server:
        print(server.ddl())
        server.wait()

Databend calls the server for each block of rows. Null, blank and bad rows become NULL; a call that fails (model,
memory, network, key) fails the query, in one line that names the SQL function.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from embedreg.core.base import EmbeddingFunction
from embedreg.core.role import Role
from embedreg.declaration import drift
from embedreg.embedding.column import ZeroVectors
from embedreg.engines.databend.spec import DEFAULT_BIND, Input, Limits, Served
from embedreg.engines.databend.worker import FunctionWorker, queries_differ
from embedreg.errors import ConfigError, StorageError, Words
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    from typing import Self

    from embedreg.engines.databend.flight import FlightServer
    from embedreg.engines.databend.metrics import Health, Metrics

__all__ = ["Server", "serve"]

log = logging.getLogger("embedreg")

_POLL_S = 0.05  # of `wait`


class Server:
    """A running server, as a context manager; `serve` makes it.

    Attributes:
        functions: what it serves.
        limits: what it takes on.
    """

    def __init__(
        self,
        functions: tuple[Served, ...],
        limits: Limits,
        url: tuple[str, str],
        token: bool,
        flight: FlightServer,
        workers: Iterable[FunctionWorker],
        metrics: Metrics,
        health: Health | None,
    ) -> None:
        self.functions, self.limits = functions, limits
        self._url, self._token = url, token
        self._flight, self._workers, self._metrics, self._health = flight, tuple(workers), metrics, health
        self._port = int(flight.port)
        self._stopping = threading.Lock()
        self._over = threading.Event()

    @property
    def port(self) -> int:
        """The port that it listens on, also if 0 was requested."""
        return self._port

    @property
    def metrics_port(self) -> int | None:
        """The port of /metrics, /live and /ready; None where they are not served."""
        return self._health.port if self._health is not None else None

    @property
    def address(self) -> str:
        """The address in `CREATE FUNCTION ... ADDRESS`, such as "http://127.0.0.1:8815"."""
        scheme, host = self._url
        return f"{scheme}://{host}:{self.port}"

    def ddl(self, *, version: str = "1.2.453", replace: bool = True) -> str:
        """Return the SQL that makes these functions known to Databend; see `databend_sql.create_function`.

        Args:
            version: "1.2.453", or "current" for newer servers.
            replace: whether functions of these names are replaced.
        """
        from embedreg.engines.databend.sql import create_functions

        return create_functions(self.functions, self.address, version=version, replace=replace, token=self._token)

    def counts(self, function: str | None = None) -> dict[str, int]:
        """Return what was done so far, as /metrics shows it: calls, rows, embedded, cached, nulls, bad and more.

        Args:
            function: a SQL name; None for all together.
        """
        return self._metrics.counts(function)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server is shut down, or until a timeout; return whether it is shut down."""
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        # Polled, for a signal may arrive in a thread of gRPC's, and Python handles it when this thread runs again. Not
        # by `Event.wait`: an interrupt between its steps could leave the event's lock taken, and `shutdown` would hang.
        while not self._over.is_set():
            left = until - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(_POLL_S, left))
        return True

    def shutdown(self, drain_s: float | None = None) -> None:
        """Refuse new calls, let those in flight finish, and stop; a second call waits for the first.

        Args:
            drain_s: how long they may take, in seconds; None for that of the limits. Calls that are not over by then
                are ended with an error.
        """

        def ended() -> None:
            for worker in self._workers:
                worker.close()

        with self._stopping:
            if self._over.is_set():
                return
            self._flight.drain(self.limits.drain_s if drain_s is None else drain_s, ended)
            if self._health is not None:
                self._health.close()
            self._over.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()


def serve(
    functions: Mapping[str, EmbeddingFunction] | Iterable[Served],
    *,
    bind: str = DEFAULT_BIND,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
    auth_token: str | None = None,
    insecure: bool = False,
    limits: Limits | None = None,
    metrics_bind: str | None = None,
    on_error: Literal["null", "raise"] = "null",
    zero_vectors: ZeroVectors | None = None,
    warm: bool = True,
) -> Server:
    """Serve embedding functions to Databend, until the server is shut down or its `with` block ends.

    Args:
        functions: SQL name to function; or `Served`, where the role, the input or the result is another.
        bind: "host:port"; port 0 takes a free one.
        tls_cert, tls_key: PEM files of the certificate chain and its key; with them the address is https.
        auth_token: what clients have to send as `authorization: Bearer ...`.
        insecure: accept calls from other machines without a token.
        limits: see `Limits`.
        metrics_bind: "host:port" for /metrics, /live and /ready over HTTP, which need no token; None for none.
        on_error: what a bad row becomes: a "null", or it "raise"s and fails the query. A failed call always does.
        zero_vectors: what a vector of zeros becomes: "null", "keep", or "error", a bad row; as in `embed_batches`.
        warm: run each function on this machine before returning, so that the first query need not load a model.
    Raises:
        ConfigError: an address, a certificate, a limit or a function that cannot be served.
        StorageError: the address is taken, or a file cannot be read.
        MissingExtraError: databend-udf is not installed.
        CallError and other errors of a function that cannot be run.
    """
    attempt_import_or_raise("prometheus_client", "prometheus-client", extra="databend")
    attempt_import_or_raise("databend_udf.udf", "databend-udf", extra="databend")
    attempt_import_or_raise("grpc", "grpcio", extra="databend")
    from embedreg.engines.databend.admission import AdmissionControl
    from embedreg.engines.databend.exchange import SqlFunction
    from embedreg.engines.databend.flight import BUILTINS, FlightServer
    from embedreg.engines.databend.metrics import Health, Metrics

    served, limits = _served(functions, BUILTINS), limits or Limits()
    if on_error not in ("null", "raise"):
        raise ConfigError(f"invalid on_error={on_error!r}; expected 'null' or 'raise'.", "on_error='null'")
    if auth_token is not None and (not auth_token.isascii() or not auth_token.isprintable() or not auth_token.strip()):
        raise ConfigError("the token is empty, or has characters that a header cannot carry.", "use letters and digits")
    host, port = _address(bind, "bind")
    _require_token(host, bind, auth_token, insecure)
    certificates = _certificates(tls_cert, tls_key)
    state = {"ready": False}
    admission = AdmissionControl(limits.queue)
    metrics = Metrics(lambda: state["ready"] and not admission.closed, lambda: admission.open_calls)
    with contextlib.ExitStack() as undo:
        health = None
        if metrics_bind is not None:
            place = _address(metrics_bind, "metrics_bind")
            _refuse_taken(*place)
            health = Health(*place, metrics, lambda: state["ready"] and not admission.closed)
            undo.callback(health.close)
        keys = [_shared_by(item) for item in served]
        part = limits.cache_bytes // len(set(keys))
        workers = {key: FunctionWorker(key[0], key[1], limits, part, metrics, zero_vectors) for key in set(keys)}
        admission.most += sum(worker.batcher.max_workers for worker in workers.values())
        made = [SqlFunction(item, workers[key], on_error) for item, key in zip(served, keys, strict=True)]
        _refuse_taken(host, port)
        flight = FlightServer(_bracketed(host), port, made, admission, metrics, limits, certificates, auth_token)
        url = ("https" if certificates else "http", _reachable(host))
        server = Server(served, limits, url, auth_token is not None, flight, workers.values(), metrics, health)
        undo.enter_context(server)
        if warm:
            for item in served:
                drift.verify_once(item.function)  # equal functions share a worker, but each may carry a column's probe
            for key, worker in workers.items():
                worker.warm(key[2])
        state["ready"] = True
        undo.pop_all()
    return server


def _served(functions: Mapping[str, EmbeddingFunction] | Iterable[Served], taken: Iterable[str]) -> tuple[Served, ...]:
    if isinstance(functions, Mapping):
        functions = [Served(name, function) for name, function in functions.items()]
    served = tuple(functions)
    if not served:
        raise ConfigError("there is no function to serve.", "serve({'ai_embed_384': function})")
    if odd := [type(item).__name__ for item in served if not isinstance(item, Served)]:
        raise ConfigError(f"expected Served, got a {odd[0]} without a SQL name.", "serve({'ai_embed_384': function})")
    names = [*taken, *(item.name for item in served)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"the name {twice[0]!r} is used twice.", "give each function a name of its own")
    return served


def _shared_by(item: Served) -> tuple[EmbeddingFunction, Role, Input]:
    """Return the key of the worker; SQL functions with one key share its vectors and batches."""
    role = item.role if queries_differ(item.function) else "source"
    return item.function, role, item.input


def _address(bind: str, name: str) -> tuple[str, int]:
    """Split "host:port"; an IPv6 address is in brackets."""
    host, _, port = bind.rpartition(":") if isinstance(bind, str) else ("", "", "")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or int(port) > 65_535 or (":" in host and f"[{host}]" not in bind):
        raise ConfigError(f"invalid {name}={bind!r}; expected host:port.", f"{name}='{DEFAULT_BIND}'")
    return host, int(port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _require_token(host: str, bind: str, token: str | None, insecure: bool) -> None:
    """Refuse to accept calls from other machines without a token."""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    if not here and token is None and not insecure:
        raise ConfigError(
            f"bind={bind!r} accepts calls from other machines, and there is no token.",
            Words(
                "auth_token=os.environ['EMBEDREG_TOKEN'], or insecure=True if the network itself is protected",
                "--auth-token-env EMBEDREG_TOKEN, or --insecure if the network itself is protected",
            ),
        )


def _refuse_taken(host: str, port: int) -> None:
    """Refuse an address that is in use: gRPC would share it, and each server would get some of the calls."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as exc:
        raise StorageError(
            f"{_bracketed(host)}:{port} cannot be listened on: {exc.strerror or exc}.", "take another port, or 0"
        ) from None


def _reachable(host: str) -> str:
    """Return the name of a host for callers on other machines."""
    everywhere = host in ("0.0.0.0", "::")
    return socket.gethostname() if everywhere else _bracketed(host)


def _certificates(cert: Any, key: Any) -> tuple[bytes, bytes] | None:
    """Read a certificate chain and its key, after checking that they match."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError(
            "TLS needs a certificate and its key.",
            Words("tls_cert='server.pem', tls_key='server.key'", "--tls-cert server.pem, --tls-key server.key"),
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
        return Path(cert).read_bytes(), Path(key).read_bytes()
    except ssl.SSLError as exc:
        why = exc.reason or type(exc).__name__
        raise ConfigError(
            f"{os.fspath(cert)!r} and {os.fspath(key)!r} are not a certificate and its key: {why}.",
            "PEM files, the key without a passphrase",
        ) from None
    except OSError as exc:
        raise StorageError(
            f"{exc.filename or os.fspath(cert)!r} cannot be read: {exc.strerror}.", "check the path"
        ) from None
