"""The Flight server that Databend calls: databend-udf's, with what it gets wrong mended from outside.

It encrypts when it is asked to, lets in only who has the token, turns away what it cannot serve in time, tells a SQL
user what failed and nothing more, and lets calls end before it does.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow.flight as flight
from databend_udf import UDFServer
from databend_udf.udf import UserDefinedFunction, builtin_echo, builtin_healthy

from embedreg.engines.databend_call import Call, outcome, told
from embedreg.engines.databend_function import CallHeaders
from embedreg.engines.databend_metrics import Tally

__all__ = ["BUILTINS", "FlightServer", "Gate"]

log = logging.getLogger("embedreg")

BUILTINS = {function._name: function for function in (builtin_echo, builtin_healthy)}
_LEAVE_S = 1.0  # for calls that were told to end: they look every twentieth of a second
_CLOSE_S = 2.0  # for connections that were cut


class Gate:
    """Counts the calls that are open, and lets only so many in.

    Args:
        most: how many may be open at once.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.closed = self.stopping = False
        self._open = 0
        self._changed = threading.Condition()

    @property
    def open_calls(self) -> int:
        """How many calls are open."""
        return self._open

    @contextlib.contextmanager
    def admitted(self, name: str) -> Iterator[None]:
        """Let a call in, or raise FlightUnavailableError."""
        with self._changed:
            if self.closed:
                raise flight.FlightUnavailableError(f"{name}: the server is shutting down; run the query again later")
            if self._open >= self.most:
                raise flight.FlightUnavailableError(
                    f"{name}: the server is busy with {self._open} calls; run the query again later"
                )
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in from now on."""
        with self._changed:
            self.closed = True

    def empty(self, timeout_s: float) -> bool:
        """Wait until no call is open; say whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)


class _Token(flight.ServerMiddlewareFactory):  # type: ignore[misc]  # it ships no types
    """Turns away every call without the right `authorization: Bearer ...`."""

    def __init__(self, token: str, tally: Tally) -> None:
        super().__init__()
        self._expected, self._tally = f"Bearer {token}".encode(), tally

    def start_call(self, info: Any, headers: Mapping[str, list[Any]]) -> None:
        given = [value for key, values in headers.items() if key.lower() == "authorization" for value in values]
        sent = given[0] if len(given) == 1 else b""
        sent = sent.encode("utf-8", "surrogateescape") if isinstance(sent, str) else sent
        if not hmac.compare_digest(sent, self._expected):
            self._tally.add("", "unauthenticated")
            raise flight.FlightUnauthenticatedError("the embedding server wants a token: authorization: Bearer ...")


class FlightServer(UDFServer):  # type: ignore[misc]  # it ships no types
    """databend-udf's server.

    Its constructor is passed over: it serves plaintext whatever certificates it gets, and registers its metrics in
    Prometheus's global registry, where a second server fails.

    Args:
        location: "grpc://host:port" or "grpc+tls://host:port".
        functions: what is served.
        gate: who may come in.
        tally: where calls are counted.
        deadline_s: how long a call may last, in seconds.
        certificates: (certificate, key) in PEM form, for TLS.
        token: what clients must send; None lets in everybody.
    """

    def __init__(
        self,
        location: str,
        functions: Iterable[UserDefinedFunction],
        gate: Gate,
        tally: Tally,
        deadline_s: float,
        certificates: tuple[bytes, bytes] | None = None,
        token: str | None = None,
    ) -> None:
        self._location = location.partition("://")[2]
        self._functions = {**BUILTINS, **{function._name: function for function in functions}}
        self._gate, self._tally, self._deadline_s = gate, tally, deadline_s
        flight.FlightServerBase.__init__(
            self,
            location,
            tls_certificates=[certificates] if certificates else None,
            middleware={"token": _Token(token, tally)} if token else None,
        )

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        """Return the input and result types of a function."""
        self._find(descriptor)
        return super().get_flight_info(context, descriptor)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Call a function."""
        name, function = self._find(descriptor)
        call = Call(name, self._deadline_s, context.is_cancelled, lambda: self._gate.stopping)
        began = time.perf_counter()
        try:
            with self._gate.admitted(name):
                self._tally.add(name, "calls")
                self._exchange(function, CallHeaders(call, context), reader, writer)
        except BaseException as exc:  # noqa: BLE001  # pyarrow sends what is no FlightError with its traceback
            problem = self._failed(name, exc, context)
        else:
            return
        finally:
            self._tally.seconds.labels(name).observe(time.perf_counter() - began)
        raise problem  # outside the handler, so that it carries nothing of what it stands for

    @staticmethod
    def _exchange(function: UserDefinedFunction, headers: CallHeaders, reader: Any, writer: Any) -> None:
        writer.begin(function._result_schema)  # at once: Databend waits for it with a clock of its own
        for item in reader:
            if item.data is not None:
                for made in function.eval_batch(item.data, headers):
                    writer.write_batch(made)

    def _failed(self, name: str, exc: BaseException, context: Any) -> flight.FlightError:
        """Count a failed call, and return what its user reads."""
        if context.is_cancelled() and not isinstance(exc, flight.FlightTimedOutError):
            # what else failed, reading or writing, did so because there is nobody at the other end
            exc = flight.FlightCancelledError(f"{name}: the query was cancelled")
        self._tally.add(name, outcome(exc))
        return told(name, exc)

    def _find(self, descriptor: Any) -> tuple[str, UserDefinedFunction]:
        name = descriptor.path[0].decode("utf-8", "replace") if descriptor.path else ""
        if name not in self._functions:
            served = ", ".join(sorted(self._functions.keys() - BUILTINS.keys()))
            raise flight.FlightServerError(f"no function {name[:100]!r} is served here, only {served}")
        return name, self._functions[name]

    def drain(self, drain_s: float, ended: Callable[[], None]) -> None:
        """Let nobody in, wait for the calls in flight, and stop.

        Args:
            drain_s: how long to wait, in seconds; calls that are not over by then are told to end.
            ended: called when no call computes any longer.
        """
        self._gate.close()
        if not self._gate.empty(drain_s):
            log.warning(
                "%d call(s) took longer than the %g s to shut down, and were ended", self._gate.open_calls, drain_s
            )
            self._gate.stopping = True
            self._gate.empty(_LEAVE_S)
        ended()
        port = int(self.port)
        stopping = threading.Thread(target=self.shutdown, name="embedreg-stop", daemon=True)
        stopping.start()
        stopping.join(_CLOSE_S if self._gate.open_calls == 0 else 0)
        if stopping.is_alive():  # gRPC waits for clients that keep a call open and send nothing
            _cut(port)
            stopping.join(_CLOSE_S)


def _cut(port: int) -> None:
    """Close this process's connections to clients of a port that it serves."""
    folder = "/dev/fd"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        try:
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.getsockname()[1] == port and connection.getpeername():
                    connection.shutdown(socket.SHUT_RDWR)
        except (OSError, IndexError, TypeError):
            continue  # no socket, none of ours, or gone by now
