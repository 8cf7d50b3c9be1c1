"""The calls that are open, and which of them are ended because their clients do nothing."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow.flight as flight

from embedreg.engines.databend.call import Call, EndedError, StalledError

if TYPE_CHECKING:
    from embedreg.engines.databend.admission import AdmissionControl, Memory
    from embedreg.engines.databend.spec import Limits

__all__ = ["OpenCall", "OpenCalls"]

MAX_IDLE_CALLS = 512  # that have brought nothing yet
_PATIENCE_S = 2.0  # what a client that does nothing has where others wait for its place,
_PATIENCE_UNKNOWN_S = 0.5  # and one that has not even named a function


class OpenCall:
    """An open call: what its client and the server are doing.

    Attributes:
        name: of the SQL function, once it is known.
        client: the address that it comes from.
        taken: bytes that are reserved for its messages.
        kept: those of its dictionaries.
        since: when the wait for its client began; None while the server works.
        waits: for its client to "sends" or "takes" a message, or for "room" in memory.
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
        """Set the name of the function."""
        self.name = self.call.name = name

    def is_cancelled(self) -> bool:
        """Return whether the call is over; databend-udf asks this of a call's context."""
        return self.gone

    @property
    def patience_s(self) -> float:
        """The seconds that its client may be idle while others wait for its place."""
        if self.waits == "room":
            return math.inf
        return _PATIENCE_S if self.name else _PATIENCE_UNKNOWN_S

    def end(self, problem: flight.FlightError) -> None:
        """End its wait with an error."""
        if self.problem is None and self.task is not None:
            self.problem = problem
            self.task.cancel()


class OpenCalls:
    """The open calls of a server; used in its event loop only.

    Args:
        limits: of the server.
        memory: of all calls together.
        admission: counts the calls that brought work.
    """

    def __init__(self, limits: Limits, memory: Memory, admission: AdmissionControl) -> None:
        self._limits, self._memory, self._admission = limits, memory, admission
        self._open: set[OpenCall] = set()
        self._clients: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def start(self, client: str) -> OpenCall:
        """Return a new call of a client, in the task that serves it."""
        call = OpenCall(client, self._limits, lambda: self._admission.stopping, self._memory)
        self._open.add(call)
        self._clients[client] += 1
        return call

    def finish(self, call: OpenCall) -> None:
        """Release everything that a call holds."""
        call.gone = True
        self._open.discard(call)
        self._clients[call.client] -= 1
        self._clients += Counter()  # without those that have none
        call.taken = self._memory.reads.change(call.taken, 0)
        if call.admitted:
            self._admission.leave()

    def refuse_too_many(self, call: OpenCall) -> None:
        """Refuse a call where its client, or all of them, have too many that bring no work.

        Raises:
            FlightUnavailableError: they have.
        """
        many = self._clients[call.client]
        if many > self._limits.calls_per_client:
            raise flight.FlightUnavailableError(
                f"the server is busy with {many - 1} calls of this client; try again later"
            )
        if len(self._open) - self._admission.open_calls > MAX_IDLE_CALLS:
            self.end_idle(8)
            raise flight.FlightUnavailableError(f"the server is busy with {len(self._open) - 1} calls; try again later")

    def end_overdue(self) -> None:
        """End the calls that wait for their clients past the deadline, or for longer than `stall_s`."""
        now = time.monotonic()
        for each in list(self._open):
            if each.since is None:
                continue  # it is being worked on, and checks the time itself
            if each.call.overdue:
                each.end(each.call.late())
            elif each.waits != "room" and now - each.since > self._limits.stall_s:
                each.end(_stalled(each, f"nothing for {self._limits.stall_s:g} s"))

    def end_idle(self, places: int) -> None:
        """End calls whose clients do nothing while others wait, at most `places`, those first that waited longest."""
        now = time.monotonic()
        idle = [
            each
            for each in self._open
            if each.since is not None and each.problem is None and now - each.since > each.patience_s
        ]
        for each in sorted(idle, key=lambda each: each.since or 0.0)[:places]:
            each.end(_stalled(each, "nothing while others waited for its place"))

    def end_waiting(self) -> None:
        """End the calls that wait for their clients, for a shutdown; those that are worked on see it themselves."""
        for each in list(self._open):
            if each.since is not None:
                each.end(
                    EndedError(f"{each.name or 'the call'}: the server is shutting down; run the query again later")
                )


def _stalled(each: OpenCall, what: str) -> StalledError:
    did = "sent" if each.waits == "sends" else "took"
    return StalledError(f"{each.name or 'the call'}: the client {did} {what}")
