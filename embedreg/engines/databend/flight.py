"""The Flight server that Databend calls, on gRPC's own Python library.

Databend-udf's server decodes a message before Python sees it, gives each call a thread and sends tracebacks. This one
reads messages as bytes and looks at their headers first; a call has a thread only while its batch is worked on; a SQL
user reads what failed and nothing more. The functions are on databend-udf's contract and run in its server too.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import pyarrow as pa
import pyarrow.flight as flight
from databend_udf.udf import UserDefinedFunction, builtin_echo, builtin_healthy

from embedreg.engines.databend.admission import READ_BYTES, Gate, Memory
from embedreg.engines.databend.call import Call, EndedError, StalledError, outcome, told
from embedreg.engines.databend.exchange import CallHeaders, SqlFunction
from embedreg.engines.databend.loop import run
from embedreg.engines.databend.malloc import settle, trim
from embedreg.engines.databend.metrics import Tally
from embedreg.engines.databend.wire import Incoming, frames, path_of
from embedreg.support.display import plain

if TYPE_CHECKING:
    from embedreg.engines.databend.spec import Limits

__all__ = ["BUILTINS", "FlightServer", "Gate"]

log = logging.getLogger("embedreg")

BUILTINS = {function._name: function for function in (builtin_echo, builtin_healthy)}
MAX_IDLE_CALLS = 512  # that have brought nothing yet
_SERVICE = "/arrow.flight.protocol.FlightService/"
_LEAVE_S = 1.0  # for calls that were told to end: they look every twentieth of a second
_CLOSE_S = 2.0  # for connections that were cut
_LOOK_S = 0.1  # between two looks of the watchdog
TRIM_BYTES = 2**25  # of batches, after which free memory is given back,
_TRIM_S = 0.25  # but not more often than this
_PATIENCE_S = 2.0  # what a client that does nothing has where others wait for its place,
_PATIENCE_UNKNOWN_S = 0.5  # and one that has not even said what it calls
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
# stream that nobody reads fill a window that it enlarges by itself.
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.max_metadata_size", 2**14),
    ("grpc.absolute_max_metadata_size", 2**14),
    ("grpc.server_handshake_timeout_ms", 10_000),
]


class _Exchange:
    """An open call, as the watchdog sees it.

    Attributes:
        name: of the SQL function, once it is known.
        client: the address that it comes from.
        taken: bytes that are set aside for its messages.
        kept: those of its dictionaries.
        since: when the wait for its client began; None while the server works.
        waits: what its client does next, "sends" or "takes".
        problem: why it was ended from outside.
    """

    def __init__(self, client: str, limits: Limits, stopping: Callable[[], bool], memory: Memory) -> None:
        self.name, self.client, self.gone = "", client, False
        self.taken = self.kept = 0
        self.admitted = False
        self.since: float | None = None
        self.waits = "sends"
        self.problem: flight.FlightError | None = None
        self.task = asyncio.current_task()
        self.call = Call("the call", limits.call_deadline_s, lambda: self.gone, stopping, memory)

    def named(self, name: str) -> None:
        """Take the name of the function."""
        self.name = self.call.name = name

    def is_cancelled(self) -> bool:
        """Return whether nobody waits for it: what databend-udf asks of a call's context."""
        return self.gone

    @property
    def patience_s(self) -> float:
        """How long its client may do nothing where others wait for its place, in seconds."""
        if self.waits == "room":
            return math.inf
        return _PATIENCE_S if self.name else _PATIENCE_UNKNOWN_S

    def end(self, problem: flight.FlightError) -> None:
        """End its wait with an error."""
        if self.problem is None and self.task is not None:
            self.problem = problem
            self.task.cancel()


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
        gate: how many calls may be open.
        tally: where calls are counted.
        limits: what a call may bring and take.
        certificates: (certificate, key) in PEM form, for TLS.
        token: what clients must send; None lets in everybody.
    Raises:
        RuntimeError: the address cannot be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        functions: Iterable[UserDefinedFunction],
        gate: Gate,
        tally: Tally,
        limits: Limits,
        certificates: tuple[bytes, bytes] | None = None,
        token: str | None = None,
    ) -> None:
        settle()
        self._functions = {**BUILTINS, **{function._name: function for function in functions}}
        self._gate, self._tally, self._limits = gate, tally, limits
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._memory = Memory.of(limits.memory_bytes)
        self._worked = 0  # bytes since free memory was given back
        self._open: set[_Exchange] = set()
        self._clients: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(gate.most + 1, "embedreg-call")
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
        """Return what answers a call; every method is a stream, so that nothing is read before it is let in."""
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

    async def _unauthenticated(self, call: _Exchange, context: Any) -> None:
        self._tally.add("", "unauthenticated")
        raise flight.FlightUnauthenticatedError("the embedding server wants a token: authorization: Bearer ...")

    async def _unknown(self, call: _Exchange, context: Any) -> None:
        raise NotImplementedError

    async def _handle(self, answer: Callable[[_Exchange, Any], Awaitable[None]], context: Any) -> None:
        """Answer a call; whatever fails it leaves as one status of gRPC."""
        open_ = _Exchange(_client(context.peer()), self._limits, lambda: self._gate.stopping, self._memory)
        began = time.perf_counter()
        code, detail, message = grpc.StatusCode.OK, "", ""
        self._open.add(open_)
        self._clients[open_.client] += 1
        try:
            try:
                self._refuse_crowd(open_)
                await answer(open_, context)
            finally:
                open_.gone = True
                self._open.discard(open_)
                self._clients[open_.client] -= 1
                self._clients += Counter()  # without those that have none
                open_.taken = self._memory.reads.change(open_.taken, 0)
                if open_.admitted:
                    self._gate.leave()
        except asyncio.CancelledError:
            problem = open_.problem
            if problem is None and self._gate.stopping and open_.admitted:
                problem = EndedError(f"{open_.name}: the server is shutting down; run the query again later")
            if problem is None:
                self._tally.add(open_.name, "cancelled")
                raise
            code, detail, message = self._failed(open_, problem)
        except NotImplementedError:
            code, message = grpc.StatusCode.UNIMPLEMENTED, "this server answers DoExchange and GetFlightInfo only"
        except BaseException as exc:  # noqa: BLE001  # gRPC sends what is raised with its text
            code, detail, message = self._failed(open_, exc)
        finally:
            if open_.name in self._functions:
                self._tally.seconds.labels(open_.name).observe(time.perf_counter() - began)
        if code is not grpc.StatusCode.OK:
            # as pyarrow's own server words it, so that its clients read the message alone
            trailers = () if not detail else (
                ("x-arrow-status", _IO_ERROR),
                ("x-arrow-status-detail-bin", detail.encode()),
                ("x-arrow-status-message-bin", message.encode()),
            )  # fmt: skip
            await context.abort(code, f"{message}. Detail: {detail}" if detail else message, trailers)

    def _refuse_crowd(self, open_: _Exchange) -> None:
        """Refuse a call where its client, or all of them, have too many that bring no work."""
        many = self._clients[open_.client]
        if many > self._limits.calls_per_client:
            raise flight.FlightUnavailableError(
                f"the server is busy with {many - 1} calls of this client; try again later"
            )
        if len(self._open) - self._gate.open_calls > MAX_IDLE_CALLS:
            self._press(8)
            raise flight.FlightUnavailableError(f"the server is busy with {len(self._open) - 1} calls; try again later")

    def _failed(self, open_: _Exchange, exc: BaseException) -> tuple[Any, str, str]:
        """Count a failed call; return its status, the Flight name of that, and what its user reads."""
        if not isinstance(exc, flight.FlightUnauthenticatedError):
            self._tally.add(open_.name, outcome(exc))
        problem = told(open_.name or "the call", exc)
        code, detail = next(
            (known for kind, known in _CODES.items() if isinstance(problem, kind)), _CODES[flight.FlightServerError]
        )
        return code, detail, str(problem.args[0] if problem.args else problem)

    async def _info(self, open_: _Exchange, context: Any) -> None:
        """Answer GetFlightInfo: the input and result types of a function."""
        message = await self._read(open_, context)
        if message is grpc.aio.EOF:
            return
        name, function = self._find(path_of(message))
        inputs = list(function._input_schema)
        schema = pa.schema([*inputs, *function._result_schema], {_INPUT_COUNT: str(len(inputs)).encode()})
        info = flight.FlightInfo(schema, flight.FlightDescriptor.for_path(name), [], len(schema), 0)
        await self._write(open_, context, [info.serialize()])

    async def _exchange(self, open_: _Exchange, context: Any) -> None:
        """Answer DoExchange: call a function."""
        incoming = Incoming(self._limits)
        function: UserDefinedFunction | None = None
        while (message := await self._read(open_, context)) is not grpc.aio.EOF:
            seen = incoming.look(message)
            if function is None:
                name, function = self._find(seen.path or "")
                open_.named(name)
                if self._gate.closed:
                    raise flight.FlightUnavailableError(
                        f"{name}: the server is shutting down; run the query again later"
                    )
                # at once: Databend waits for it with a clock of its own
                await self._write(open_, context, frames(function._result_schema))
            if seen.kind == "schema" and isinstance(function, SqlFunction):
                function.check(incoming.schema)
            if seen.kind == "batch":
                self._admit(open_)
                if not self._memory.reads.waiting:  # else it keeps its place for the next message
                    open_.taken = self._memory.reads.change(open_.taken, incoming.kept + len(message))
                self._worked += seen.cost + 4 * _width(function) * seen.rows
                await self._answer(open_, context, self._work(open_, function, incoming, message, seen.cost))
            message = b""
            open_.kept = incoming.kept
            open_.taken = self._memory.reads.change(open_.taken, max(open_.kept, min(open_.taken, READ_BYTES)))

    def _admit(self, open_: _Exchange) -> None:
        """Let a call in that brings work, or raise FlightUnavailableError."""
        if open_.admitted:
            return
        if not self._gate.enter():
            why = "shutting down" if self._gate.closed else f"busy with {self._gate.open_calls} calls"
            self._press(8)
            raise flight.FlightUnavailableError(f"{open_.name}: the server is {why}; run the query again later")
        open_.admitted = True
        self._tally.add(open_.name, "calls")

    async def _answer(self, open_: _Exchange, context: Any, work: Iterator[_Chunk]) -> None:
        """Send what a batch becomes; the next chunk is computed while one is sent."""
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
            if step is not None:  # it is still under way, and has to see that nobody waits for it
                open_.gone = True
                step.add_done_callback(lambda done: self._leave(done, work))

    def _leave(self, step: asyncio.Future[_Chunk], work: Any) -> None:
        """Give back what a step that nobody waits for holds."""
        if not step.cancelled() and step.exception() is None:
            self._memory.vectors.give(step.result().held)
            self._pool.submit(work.close)  # in a thread, since there may be more to do

    async def _read(self, open_: _Exchange, context: Any) -> Any:
        """Return the next message of a call, once there is room for it."""
        open_.since, open_.waits = time.monotonic(), "room"
        open_.taken = await self._memory.reads.take(open_.taken)
        open_.since, open_.waits = time.monotonic(), "sends"
        message = await context.read()
        open_.since = None
        size = 0 if message is grpc.aio.EOF else len(message)
        open_.taken = self._memory.reads.change(open_.taken, max(open_.taken, open_.kept + size))
        return message

    async def _write(self, open_: _Exchange, context: Any, messages: Iterable[bytes]) -> None:
        for message in messages:
            open_.since, open_.waits = time.monotonic(), "takes"
            await context.write(message)
            open_.since = None

    def _find(self, name: str) -> tuple[str, UserDefinedFunction]:
        if name not in self._functions:
            served = ", ".join(sorted(self._functions.keys() - BUILTINS.keys()))
            raise flight.FlightServerError(f"no function {plain(repr(name), 100)} is served here, only {served}")
        return name, self._functions[name]

    # -- the watchdog ------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """End calls whose client does nothing for too long, or whose time is over."""
        trimmed = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                now = time.monotonic()
                for each in list(self._open):
                    if each.since is None:
                        continue  # it is being worked on, and looks at the time itself
                    if each.call.overdue:
                        each.end(each.call.late())
                    elif each.waits != "room" and now - each.since > self._limits.stall_s:
                        each.end(self._stalled(each, f"nothing for {self._limits.stall_s:g} s"))
                if self._memory.short:
                    self._press(max(1, self._memory.reads.waiting))
                if self._worked > TRIM_BYTES and now - trimmed > _TRIM_S:
                    self._worked, trimmed = 0, now
                    await asyncio.get_running_loop().run_in_executor(self._pool, trim)
            except Exception as exc:  # noqa: BLE001  # it has to go on looking
                log.warning("the watchdog of calls failed with %s", type(exc).__name__)

    def _press(self, places: int) -> None:
        """End calls whose clients keep others waiting, those first that did nothing for longest."""
        now = time.monotonic()
        idle = [
            each
            for each in self._open
            if each.since is not None and each.problem is None and now - each.since > each.patience_s
        ]
        for each in sorted(idle, key=lambda each: each.since or 0.0)[:places]:
            each.end(self._stalled(each, "nothing while others waited for its place"))

    def _stalled(self, each: _Exchange, what: str) -> StalledError:
        did = "sent" if each.waits == "sends" else "took"
        return StalledError(f"{each.name or 'the call'}: the client {did} {what}")

    # -- the end -----------------------------------------------------------------------------------------------------

    def drain(self, drain_s: float, ended: Callable[[], None]) -> None:
        """Let nobody in, wait for the calls in flight, and stop.

        Args:
            drain_s: how long to wait, in seconds; calls that are not over by then are ended, and count as failed.
            ended: called when no call computes any longer.
        """
        self._gate.close()
        if not self._gate.empty(drain_s):
            log.warning(
                "%d call(s) took longer than the %g s to shut down, and were ended", self._gate.open_calls, drain_s
            )
            self._gate.stopping = True
            run(self._end_idle())
            self._gate.empty(_LEAVE_S)
        self._gate.stopping = True
        ended()
        run(self._stop())
        self._pool.shutdown(wait=False)

    async def _end_idle(self) -> None:
        """End the calls that wait for their clients; those that are worked on see it themselves."""
        for each in list(self._open):
            if each.since is not None:
                each.end(
                    EndedError(f"{each.name or 'the call'}: the server is shutting down; run the query again later")
                )

    async def _stop(self) -> None:
        self._watchdog.cancel()
        await self._end_idle()
        await self._grpc.stop(_CLOSE_S if self._open and self._gate.open_calls == 0 else 0.05)

    # -- a batch, in a thread -----------------------------------------------------------------------------------------

    def _work(
        self, open_: _Exchange, function: UserDefinedFunction, incoming: Incoming, message: bytes, cost: int
    ) -> Iterator[_Chunk]:
        """Yield what a batch becomes, a chunk at a time."""
        call, rows = open_.call, 0
        try:
            with self._memory.decoding.held(cost, call.check):
                batch = incoming.batch(message)
                for made in function.eval_batch(batch, CallHeaders(call, open_)):
                    rows += made.num_rows
                    chunk = _Chunk(made, call.handed(), rows >= batch.num_rows)
                    del made
                    yield chunk
                    if chunk.last:
                        return
                yield _Chunk(None, call.handed(), last=True)
        finally:
            self._memory.vectors.give(call.handed())


def _width(function: UserDefinedFunction) -> int:
    """Return how many floats a row of an answer has."""
    return function.lane.ndims if isinstance(function, SqlFunction) else 0


def _client(peer: str) -> str:
    """Return the address of a client without its port."""
    return peer.rpartition(":")[0]
