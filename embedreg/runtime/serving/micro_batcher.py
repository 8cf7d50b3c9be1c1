"""The micro-batcher: joins small requests that arrive together into one batch of the model.

A request that finds the model idle starts at once. Requests that arrive while a micro-batch runs form the next one. The
callers of a shared micro-batch send their next requests at about the same time, so the next one waits a few
milliseconds for them, if a micro-batch takes longer than that: a shorter one is repeated in less time than the wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Abandoned", "MicroBatch", "MicroBatcher", "Ticket"]

T = TypeVar("T")
R = TypeVar("R")

POLL_S = 0.05  # interval at which a waiting caller checks whether its result is still needed
MAX_LOST = 4  # maximum number of hung micro-batches whose workers are replaced
_TIMED = 8  # the last micro-batches of small requests, of which the shortest shows whether a wait pays off
_CLOSED = "the micro-batcher is closed"


class Abandoned(BaseException):
    """Ends a micro-batch that no caller waits for. A BaseException, so that a model's handlers do not catch it."""


class Ticket(Generic[T, R]):
    """One request: its item, and later its result."""

    def __init__(
        self,
        owner: MicroBatcher[T, R],
        item: T,
        weight: float,
        on_done: Callable[[Ticket[T, R]], None] | None = None,
    ) -> None:
        self.item, self.weight = item, weight
        self.left = False
        self._on_done = on_done
        self._owner = owner
        self._done = threading.Event()
        self._result: R | None = None
        self._error: BaseException | None = None

    @property
    def small(self) -> bool:
        """Whether it may share a micro-batch."""
        return self.weight < 1

    def wait(self, check: Callable[[], None] | None = None) -> R:
        """Return the result of this request.

        Args:
            check: called periodically while waiting; an error that it raises ends the wait of this request only.
        Raises:
            The error of the micro-batch, the same for each request in it.
        """
        try:
            while not self._done.wait(POLL_S):
                if check is not None:
                    check()
                self._owner.supervise()
        except BaseException:
            self._owner.leave(self)
            raise
        return self.result()

    def result(self) -> R:
        """Return the result of a request that is done, or raise its error."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set with the event

    def settle(self, result: R | None, error: BaseException | None = None) -> None:
        """Set the result or the error, and wake the caller."""
        self._result, self._error = result, error
        self._done.set()
        if self._on_done is not None:
            self._on_done(self)


@dataclass
class MicroBatch(Generic[T, R]):
    """The tickets whose requests run together."""

    tickets: list[Ticket[T, R]]
    began: float = field(default_factory=time.monotonic)
    lost: bool = False

    @property
    def small(self) -> bool:
        """Whether its requests are small."""
        return self.tickets[0].small

    @property
    def abandoned(self) -> bool:
        """Whether no caller waits for it."""
        return all(ticket.left for ticket in self.tickets)

    def check(self) -> None:
        """Raise `Abandoned` if no caller waits for this micro-batch; the work calls it between its steps."""
        if self.abandoned:
            raise Abandoned


class MicroBatcher(Generic[T, R]):
    """Runs requests in micro-batches, small ones together, each large one separately, in order of arrival.

    Only one micro-batch of small requests runs at a time, so that the next one can use the vectors that it cached.

    Args:
        run: runs one micro-batch: returns one result for each item. Called in worker threads.
        max_workers: maximum number of micro-batches that run in parallel. With several, one worker is reserved for
            small requests.
        window_s: maximum time that a micro-batch waits for requests, in seconds, if the previous one was shared. If a
            micro-batch took less than this lately, there is no wait.
        give_up_s: a micro-batch that no caller waits for counts as hung after this time, and its worker is replaced.
        isolate: returns whether an error of a shared micro-batch may be caused by one request; each request then runs
            again, separately.
        name: of the threads.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T], MicroBatch[T, R]], Sequence[R]],
        *,
        max_workers: int = 1,
        window_s: float = 0.003,
        give_up_s: float = 600.0,
        isolate: Callable[[BaseException], bool] = lambda exc: False,
        name: str = "embedreg-batch",
    ) -> None:
        self._run, self._isolate = run, isolate
        self.max_workers, self.window_s, self.give_up_s = max_workers, window_s, give_up_s
        self._name = name
        self._changed = threading.Condition()
        self._waiting: list[Ticket[T, R]] = []
        self._running: list[MicroBatch[T, R]] = []
        self._lost = 0
        self._idle = self._workers = 0
        self._expected_callers = 1  # small requests that wait, or are likely to follow the previous micro-batch
        self._took_s: deque[float] = deque(maxlen=_TIMED)
        self._closed = False

    def submit(self, item: T, weight: float, on_done: Callable[[Ticket[T, R]], None] | None = None) -> Ticket[T, R]:
        """Add a request to the queue.

        Args:
            weight: its share of a full micro-batch; a request of 1 or more runs separately.
            on_done: called with the ticket in a worker thread once it has its result, for callers that do not `wait`.
        Raises:
            RuntimeError: the micro-batcher is closed.
        """
        ticket = Ticket(self, item, weight, on_done)
        with self._changed:
            if self._closed:
                raise RuntimeError(_CLOSED)
            self._waiting.append(ticket)
            self._start_worker()
            self._changed.notify_all()
        return ticket

    def leave(self, ticket: Ticket[T, R]) -> None:
        """Cancel a request; a running micro-batch continues for its other requests."""
        with self._changed:
            ticket.left = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def supervise(self) -> None:
        """Replace the workers of hung micro-batches, if requests wait for a worker."""
        with self._changed:
            if not self._waiting:
                return
            for each in self._running:
                expired = time.monotonic() - each.began > self.give_up_s
                if expired and not each.lost and self._lost < MAX_LOST and each.abandoned:
                    each.lost, self._lost = True, self._lost + 1
                    self._workers -= 1
            self._start_worker()

    def close(self) -> None:
        """Refuse new requests and fail the waiting ones; running micro-batches finish."""
        with self._changed:
            self._closed = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify_all()
        for ticket in dropped:
            ticket.settle(None, RuntimeError(_CLOSED))

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._waiting)

    # -- the workers ------------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        """Start a worker if requests wait and no worker is idle."""
        if self._workers < self.max_workers and self._idle < len(self._waiting):
            self._workers += 1
            # a daemon: a model that hangs must not keep the process alive
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while (each := self._next()) is not None:
            self._settle(each)
            with self._changed:
                self._running.remove(each)
                if each.small:
                    self._took_s.append(time.monotonic() - each.began)
                    self._expected_callers = len(each.tickets) + sum(ticket.small for ticket in self._waiting)
                self._changed.notify_all()  # a large request may have waited for this worker
                if each.lost:
                    self._lost -= 1
                    return

    def _next(self) -> MicroBatch[T, R] | None:
        """Wait for requests; return the next micro-batch, or None once the micro-batcher is closed."""
        with self._changed:
            while True:
                first = self._first()
                if first is None:
                    if self._closed:
                        return None
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                    continue
                if first.small and not self._gathered():
                    continue  # another worker has taken them meanwhile
                each = MicroBatch(self._taken())
                if each.tickets:
                    self._running.append(each)
                    return each

    def _first(self) -> Ticket[T, R] | None:
        """Return the first request that may run now."""
        running = [each.small for each in self._running if not each.lost]
        room = {True: running.count(True) < 1, False: running.count(False) < max(1, self.max_workers - 1)}
        return next((ticket for ticket in self._waiting if room[ticket.small]), None)

    def _gathered(self) -> bool:
        """Wait for the callers of the last micro-batch if it was shared; return whether there is still a request."""
        pays = min(self._took_s, default=0.0) > self.window_s
        deadline = time.monotonic() + (self.window_s if pays else 0.0)
        while not self._closed:
            small = [ticket for ticket in self._waiting if ticket.small]
            left_s = deadline - time.monotonic()
            full = sum(ticket.weight for ticket in small) >= 1
            if not small or full or len(small) >= self._expected_callers or left_s <= 0:
                break
            self._changed.wait(left_s)
        return self._first() is not None

    def _taken(self) -> list[Ticket[T, R]]:
        """Take the requests of the next micro-batch out of the queue."""
        first = self._first()
        if first is None:
            return []
        taken, weight = [first], first.weight
        if first.small:
            for ticket in self._waiting:
                if ticket.small and ticket is not first and weight + ticket.weight <= 1:
                    taken.append(ticket)
                    weight += ticket.weight
        for ticket in taken:
            self._waiting.remove(ticket)
        return taken

    def _settle(self, each: MicroBatch[T, R]) -> None:
        """Run a micro-batch and pass the results to the callers."""
        try:
            results = self._run([ticket.item for ticket in each.tickets], each)
            pairs = list(zip(each.tickets, results, strict=True))
        except BaseException as exc:  # noqa: BLE001  # every error must reach the waiting callers
            if len(each.tickets) > 1 and not isinstance(exc, Abandoned) and self._isolate(exc):
                for ticket in each.tickets:
                    self._settle(MicroBatch([ticket]))
                return
            for ticket in each.tickets:
                ticket.settle(None, exc)
        else:
            for ticket, result in pairs:
                ticket.settle(result)
