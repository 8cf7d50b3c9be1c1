"""The Flight server that Databend calls, on gRPC's own Python library.

Databend-udf's server decodes a message before Python sees it, gives each call a thread and sends tracebacks. This one
reads messages as bytes and looks at their headers first; a call has a thread only while its batch is worked on; a SQL
user reads one line about what failed. The functions are on databend-udf's contract and run in its server too.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pyarrow as pa
import pyarrow.flight as flight
from databend_udf.udf import UserDefinedFunction, builtin_echo, builtin_healthy

from embedreg.engines.databend.admission import READ_BYTES, AdmissionControl, Memory
from embedreg.engines.databend.call import EndedError, as_flight_error, counter_of
from embedreg.engines.databend.exchange import CallHeaders, SqlFunction
from embedreg.engines.databend.frames import frames
from embedreg.engines.databend.loop import run
from embedreg.engines.databend.malloc import limit_heaps, trim
from embedreg.engines.databend.metrics import Metrics
from embedreg.engines.databend.open_calls import OpenCall, OpenCalls
from embedreg.engines.databend.wire import Incoming, path_of
from embedreg.support.display import plain

if TYPE_CHECKING:
    from embedreg.engines.databend.spec import Limits

__all__ = ["BUILTINS", "FlightServer"]

log = logging.getLogger("embedreg")

BUILTINS = {function._name: function for function in (builtin_echo, builtin_healthy)}
_SERVICE = "/arrow.flight.protocol.FlightService/"
_LEAVE_S = 1.0  # for calls to end: they check every twentieth of a second
_CLOSE_S = 2.0  # for connections that were cut
_WATCH_S = 0.1  # between two rounds of the watchdog
TRIM_BYTES = 2**25  # of batches, after which free memory is returned to the system,
_TRIM_S = 0.25  # but not more often than this
_INPUT_COUNT = b"input_count"  # databend-udf's key in the schema of get_flight_info

_CODES = {
    flight.FlightUnauthenticatedError: (grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated"),
    flight.FlightCancelledError: (grpc.StatusCode.CANCELLED, "Cancelled"),
    flight.FlightTimedOutError: (grpc.StatusCode.DEADLINE_EXCEEDED, "TimedOut"),
    flight.FlightUnavailableError: (grpc.StatusCode.UNAVAILABLE, "Unavailable"),
    flight.FlightServerError: (grpc.StatusCode.UNKNOWN, "Failed"),
    flight.FlightInternalError: (grpc.StatusCode.INTERNAL, "Internal"),
}
_IO_ERROR = "5"  # Arrow's status code of all of these

# gRPC's options. It would open messages that are compressed before it compares their size with the limit, and let a
# unread stream fill a buffer that it enlarges by itself.
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.max_ping_strikes", 0),  # Databend's client pings while it reads; three pings would end a connection
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.max_metadata_size", 2**14),
    ("grpc.absolute_max_metadata_size", 2**14),
    ("grpc.server_handshake_timeout_ms", 10_000),
]


class _UnknownMethodError(Exception):
    """A method of Flight that this server does not implement."""


@dataclass
class _Chunk:
    """Part of an answer.

    Attributes:
        made: the rows.
        held: the bytes of memory that are taken for them.
        last: whether it is the batch's last.
    """

    made: pa.RecordBatch | None
    held: int
    last: bool


class FlightServer(grpc.GenericRpcHandler):  # type: ignore[misc]  # it ships no types
    """Answers DoExchange and GetFlightInfo, which is all that Databend calls.

    Args:
        host, port: where it listens; port 0 takes a free one.
        functions: what is served.
        admission: how many calls may be open.
        metrics: where calls are counted.
        limits: of what a call may send and use.
        certificates: (certificate, key) in PEM form, for TLS.
        token: what clients must send; None for no authentication.
    Raises:
        RuntimeError: the address cannot be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        functions: Iterable[UserDefinedFunction],
        admission: AdmissionControl,
        metrics: Metrics,
        limits: Limits,
        certificates: tuple[bytes, bytes] | None = None,
        token: str | None = None,
    ) -> None:
        limit_heaps()
        self._functions = {**BUILTINS, **{function._name: function for function in functions}}
        self._schemas = {name: [*frames(function._result_schema)] for name, function in self._functions.items()}
        self._admission, self._metrics, self._limits = admission, metrics, limits
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._memory = Memory.of(limits.memory_bytes)
        self._worked = 0  # bytes since free memory was returned
        self._calls = OpenCalls(limits, self._memory, admission)
        self._pool = ThreadPoolExecutor(admission.most + 1, "embedreg-call")
        self.port = run(self._start(f"{host}:{port}", certificates))

    async def _start(self, place: str, certificates: tuple[bytes, bytes] | None) -> int:
        options = [
            *_OPTIONS,
            ("grpc.max_receive_message_length", self._limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
        ]
        self._grpc = grpc.aio.server(handlers=[self], options=options)
        if certificates is None:
            port = self._grpc.add_insecure_port(place)
        else:
            certificate, key = certificates
            port = self._grpc.add_secure_port(place, grpc.ssl_server_credentials([(key, certificate)]))
        await self._grpc.start()
        self._watchdog = asyncio.create_task(self._watch())
        return int(port)

    # -- calls, in the event loop -------------------------------------------------------------------------------------

    def service(self, handler_call_details: Any) -> Any:
        """Return what answers a call; every method is a stream, so that nothing is read before the checks."""
        method = handler_call_details.method.removeprefix(_SERVICE)
        answers = {"DoExchange": self._exchange, "GetFlightInfo": self._info}
        allowed = self._has_token(handler_call_details.invocation_metadata)
        answer = answers.get(method, self._unknown) if allowed else self._unauthenticated

        async def handle(_: Any, context: Any) -> None:
            await self._handle(answer, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    def _has_token(self, metadata: Any) -> bool:
        if self._expected is None:
            return True
        given = [value for key, value in metadata if key.lower() == "authorization"]
        sent = given[0] if len(given) == 1 else b""
        sent = sent.encode("utf-8", "surrogateescape") if isinstance(sent, str) else sent
        return hmac.compare_digest(sent, self._expected)

    async def _unauthenticated(self, call: OpenCall, context: Any) -> None:
        self._metrics.add("", "unauthenticated")
        raise flight.FlightUnauthenticatedError("the embedding server requires a token: authorization: Bearer ...")

    async def _unknown(self, call: OpenCall, context: Any) -> None:
        raise _UnknownMethodError

    async def _handle(self, answer: Callable[[OpenCall, Any], Awaitable[None]], context: Any) -> None:
        """Answer a call; any failure becomes one status of gRPC."""
        open_ = self._calls.start(_client(context.peer()))
        began = time.perf_counter()
        code, detail, message = grpc.StatusCode.OK, "", ""
        try:
            try:
                self._calls.refuse_too_many(open_)
                await answer(open_, context)
            finally:
                self._calls.finish(open_)
        except asyncio.CancelledError:
            problem = open_.problem
            if problem is None and self._admission.stopping and open_.admitted:
                problem = EndedError(f"{open_.name}: the server is shutting down; run the query again later")
            if problem is None:
                self._metrics.add(open_.name, "cancelled")
                raise
            code, detail, message = self._failed(open_, problem)
        except _UnknownMethodError:
            code, message = grpc.StatusCode.UNIMPLEMENTED, "this server answers DoExchange and GetFlightInfo only"
        except BaseException as exc:  # noqa: BLE001  # gRPC sends what is raised with its text
            code, detail, message = self._failed(open_, exc)
        finally:
            if open_.name in self._functions:
                self._metrics.seconds.labels(open_.name).observe(time.perf_counter() - began)
        if code is not grpc.StatusCode.OK:
            # as pyarrow's own server words it, so that its clients read the message alone
            trailers = () if not detail else (
                ("x-arrow-status", _IO_ERROR),
                ("x-arrow-status-detail-bin", detail.encode()),
                ("x-arrow-status-message-bin", message.encode()),
            )  # fmt: skip
            await context.abort(code, f"{message}. Detail: {detail}" if detail else message, trailers)

    def _failed(self, open_: OpenCall, exc: BaseException) -> tuple[Any, str, str]:
        """Count a failed call; return its status, the Flight name of that, and what its user reads."""
        if not isinstance(exc, flight.FlightUnauthenticatedError):
            self._metrics.add(open_.name, counter_of(exc))
        problem = as_flight_error(open_.name or "the call", exc)
        code, detail = next(
            (known for kind, known in _CODES.items() if isinstance(problem, kind)), _CODES[flight.FlightServerError]
        )
        return code, detail, str(problem.args[0] if problem.args else problem)

    async def _info(self, open_: OpenCall, context: Any) -> None:
        """Answer GetFlightInfo: the input and result types of a function."""
        message = await self._read(open_, context)
        if message is grpc.aio.EOF:
            return
        name, function = self._find(path_of(message))
        inputs = list(function._input_schema)
        schema = pa.schema([*inputs, *function._result_schema], {_INPUT_COUNT: str(len(inputs)).encode()})
        info = flight.FlightInfo(schema, flight.FlightDescriptor.for_path(name), [], len(schema), 0)
        await self._write(open_, context, [info.serialize()])

    async def _exchange(self, open_: OpenCall, context: Any) -> None:
        """Answer DoExchange: call a function."""
        incoming = Incoming(self._limits)
        function: UserDefinedFunction | None = None
        while (message := await self._read(open_, context)) is not grpc.aio.EOF:
            seen = incoming.check(message)
            if function is None:
                name, function = self._find(seen.path or "")
                open_.named(name)
                if self._admission.closed:
                    raise flight.FlightUnavailableError(
                        f"{name}: the server is shutting down; run the query again later"
                    )
                # at once: Databend waits for it with a timeout of its own
                await self._write(open_, context, self._schemas[name])
            if seen.kind == "schema" and isinstance(function, SqlFunction):
                function.check(incoming.schema)
            if seen.kind == "batch":
                self._admit(open_)
                if not self._memory.reads.waiting:  # else its reservation stays for the next message
                    open_.taken = self._memory.reads.change(open_.taken, incoming.kept + len(message))
                self._worked += seen.cost + 4 * _width(function) * seen.rows
                await self._answer(open_, context, self._work(open_, function, incoming, message, seen.cost))
            message = b""
            open_.kept = incoming.kept
            open_.taken = self._memory.reads.change(open_.taken, max(open_.kept, min(open_.taken, READ_BYTES)))

    def _admit(self, open_: OpenCall) -> None:
        """Admit a call that brings work, or raise FlightUnavailableError."""
        if open_.admitted:
            return
        if not self._admission.enter():
            why = "shutting down" if self._admission.closed else f"busy with {self._admission.open_calls} calls"
            self._calls.end_idle(8)
            raise flight.FlightUnavailableError(f"{open_.name}: the server is {why}; run the query again later")
        open_.admitted = True
        self._metrics.add(open_.name, "calls")

    async def _answer(self, open_: OpenCall, context: Any, work: Iterator[_Chunk]) -> None:
        """Send the answer to a batch; the next chunk is computed while one is sent."""
        loop = asyncio.get_running_loop()
        step: asyncio.Future[_Chunk] | None = loop.run_in_executor(self._pool, next, work)
        try:
            while step is not None:
                chunk = await asyncio.shield(step)
                step = None if chunk.last else loop.run_in_executor(self._pool, next, work)
                try:
                    if chunk.made is not None:
                        await self._write(open_, context, frames(chunk.made))
                finally:
                    self._memory.vectors.give(chunk.held)
        finally:
            if step is not None:  # it still runs, and has to see that the call is over
                open_.gone = True
                step.add_done_callback(lambda done: self._leave(done, work))

    def _leave(self, step: asyncio.Future[_Chunk], work: Any) -> None:
        """Release the memory of a step whose call is over."""
        if not step.cancelled() and step.exception() is None:
            self._memory.vectors.give(step.result().held)
            self._pool.submit(work.close)  # in a thread, since there may be more to do

    async def _read(self, open_: OpenCall, context: Any) -> Any:
        """Return the next message of a call, once there is memory for it."""
        open_.since, open_.waits = time.monotonic(), "room"
        open_.taken = await self._memory.reads.take(open_.taken)
        open_.since, open_.waits = time.monotonic(), "sends"
        message = await context.read()
        open_.since = None
        size = 0 if message is grpc.aio.EOF else len(message)
        open_.taken = self._memory.reads.change(open_.taken, max(open_.taken, open_.kept + size))
        return message

    async def _write(self, open_: OpenCall, context: Any, messages: Iterable[bytes]) -> None:
        for message in messages:
            open_.since, open_.waits = time.monotonic(), "takes"
            await context.write(message)
            open_.since = None

    def _find(self, name: str) -> tuple[str, UserDefinedFunction]:
        if name not in self._functions:
            served = ", ".join(sorted(self._functions.keys() - BUILTINS.keys()))
            raise flight.FlightServerError(f"unknown function {plain(repr(name), 100)}; this server has {served}")
        return name, self._functions[name]

    # -- the watchdog ------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """End calls whose client does nothing for too long, or whose time is over."""
        trimmed = time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                now = time.monotonic()
                self._calls.end_overdue()
                if self._memory.short:
                    self._calls.end_idle(max(1, self._memory.reads.waiting))
                if self._worked > TRIM_BYTES and now - trimmed > _TRIM_S:
                    self._worked, trimmed = 0, now
                    await asyncio.get_running_loop().run_in_executor(self._pool, trim)
            except Exception as exc:  # noqa: BLE001  # the watchdog must continue
                log.warning("the watchdog of calls failed with %s", type(exc).__name__)

    # -- the end -----------------------------------------------------------------------------------------------------

    def drain(self, drain_s: float, ended: Callable[[], None]) -> None:
        """Admit no more calls, wait for those in flight, and stop.

        Args:
            drain_s: how long to wait, in seconds; calls that are not over by then are ended, and count as failed.
            ended: called when no call computes any longer.
        """
        self._admission.close()
        if not self._admission.empty(drain_s):
            log.warning(
                "%d call(s) took longer than the %g s to shut down, and were ended", self._admission.open_calls, drain_s
            )
            self._admission.stopping = True
            run(self._end_waiting())
            self._admission.empty(_LEAVE_S)
        self._admission.stopping = True
        ended()
        run(self._stop())
        self._pool.shutdown(wait=False)

    async def _end_waiting(self) -> None:
        self._calls.end_waiting()

    async def _stop(self) -> None:
        self._watchdog.cancel()
        self._calls.end_waiting()
        await self._grpc.stop(_CLOSE_S if len(self._calls) and self._admission.open_calls == 0 else 0.05)

    # -- a batch, in a thread -----------------------------------------------------------------------------------------

    def _work(
        self, open_: OpenCall, function: UserDefinedFunction, incoming: Incoming, message: bytes, cost: int
    ) -> Iterator[_Chunk]:
        """Yield the answer to a batch, a chunk at a time."""
        call, rows = open_.call, 0
        try:
            with self._memory.decoding.held(cost, call.check):
                batch = incoming.batch(message)
                for made in function.eval_batch(batch, CallHeaders(call, open_)):
                    rows += made.num_rows
                    chunk = _Chunk(made, call.pop_held(), rows >= batch.num_rows)
                    del made
                    yield chunk
                    if chunk.last:
                        return
                yield _Chunk(None, call.pop_held(), last=True)
        finally:
            self._memory.vectors.give(call.pop_held())


def _width(function: UserDefinedFunction) -> int:
    """Return how many floats a row of an answer has."""
    return function.worker.ndims if isinstance(function, SqlFunction) else 0


def _client(peer: str) -> str:
    """Return the address of a client without its port."""
    return peer.rpartition(":")[0]
