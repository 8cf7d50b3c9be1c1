"""Requests that arrive together share a pass: many small calls of a model become few larger ones.

Nobody waits who is alone: a request that finds the model idle starts at once. What arrives while a pass runs makes the
next one; and since the callers of a shared pass come back together, the next pass waits a few milliseconds for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Abandoned", "Coalescer", "Pass", "Ticket"]

T = TypeVar("T")
R = TypeVar("R")

POLL_S = 0.05  # how often a waiting caller looks whether it is still wanted
MAX_LOST = 4  # passes that never ended whose place another worker took; more are refused one
_CLOSED = "the coalescer is closed"


class Abandoned(BaseException):
    """Ends a pass that nobody waits for. No Exception, so that no model's own handler takes it for a failure."""


class Ticket(Generic[T, R]):
    """One request: what it brings, and later what it gets."""

    def __init__(self, owner: Coalescer[T, R], item: T, weight: float) -> None:
        self.item, self.weight = item, weight
        self.left = False
        self._owner = owner
        self._done = threading.Event()
        self._result: R | None = None
        self._error: BaseException | None = None

    @property
    def small(self) -> bool:
        """Whether it may share a pass."""
        return self.weight < 1

    def wait(self, check: Callable[[], None] | None = None) -> R:
        """Return the result of this request.

        Args:
            check: called now and then while waiting; an error that it raises ends the wait, and the others of a shared
                pass do not notice.
        Raises:
            What the pass raised, the same error to each that shared it.
        """
        try:
            while not self._done.wait(POLL_S):
                if check is not None:
                    check()
                self._owner.tend()
        except BaseException:
            self._owner.leave(self)
            raise
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set with the event

    def settle(self, result: R | None, error: BaseException | None = None) -> None:
        """Hand the result over."""
        self._result, self._error = result, error
        self._done.set()


@dataclass
class Pass(Generic[T, R]):
    """One run over the requests of some tickets."""

    tickets: list[Ticket[T, R]]
    began: float = field(default_factory=time.monotonic)
    lost: bool = False

    @property
    def small(self) -> bool:
        """Whether it is one of small requests."""
        return self.tickets[0].small

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any longer."""
        return all(ticket.left for ticket in self.tickets)

    def check(self) -> None:
        """Raise `Abandoned` if nobody waits for this pass any longer: for the work to call between its steps."""
        if self.abandoned:
            raise Abandoned


class Coalescer(Generic[T, R]):
    """Runs requests in passes, small ones together, large ones by themselves, in the order of their arrival.

    One pass of small requests runs at a time: what two of them have in common, the second can take from the first.

    Args:
        run: does one pass: from the items of its requests to as many results. Called in worker threads.
        passes: how many run at a time. With several, one place is kept for the small requests.
        window_s: how long a pass may wait for requests, in seconds, if the pass before it was shared.
        give_up_s: a pass that nobody waits for and that is older than this is taken for one that never ends, and
            another worker takes its place.
        isolate: says of an error of a shared pass whether it may be one request's fault alone; then each is run anew,
            by itself.
        name: of the threads.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T], Pass[T, R]], Sequence[R]],
        *,
        passes: int = 1,
        window_s: float = 0.003,
        give_up_s: float = 600.0,
        isolate: Callable[[BaseException], bool] = lambda exc: False,
        name: str = "embedreg-pass",
    ) -> None:
        self._run, self._isolate = run, isolate
        self.passes, self.window_s, self.give_up_s = passes, window_s, give_up_s
        self._name = name
        self._changed = threading.Condition()
        self._waiting: list[Ticket[T, R]] = []
        self._running: list[Pass[T, R]] = []
        self._lost = 0
        self._idle = self._workers = 0
        self._company = 1  # small requests that are there, or soon back from the pass before
        self._closed = False

    def submit(self, item: T, weight: float) -> Ticket[T, R]:
        """Ask for an item to be run.

        Args:
            weight: its share of what a pass should hold; from 1 on it has a pass for itself.
        Raises:
            RuntimeError: it is closed.
        """
        ticket = Ticket(self, item, weight)
        with self._changed:
            if self._closed:
                raise RuntimeError(_CLOSED)
            self._waiting.append(ticket)
            self._staff()
            self._changed.notify_all()
        return ticket

    def leave(self, ticket: Ticket[T, R]) -> None:
        """Take back a request; a pass that runs goes on for the others in it."""
        with self._changed:
            ticket.left = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def tend(self) -> None:
        """Replace the workers of passes that seem never to end, if requests wait for them."""
        with self._changed:
            if not self._waiting:
                return
            for each in self._running:
                over = time.monotonic() - each.began > self.give_up_s
                if over and not each.lost and self._lost < MAX_LOST and each.abandoned:
                    each.lost, self._lost = True, self._lost + 1
                    self._workers -= 1
            self._staff()

    def close(self) -> None:
        """Take no more requests; those that wait fail, passes that run end for themselves."""
        with self._changed:
            self._closed = True
            dropped, self._waiting = self._waiting, []
            self._changed.notify_all()
        for ticket in dropped:
            ticket.settle(None, RuntimeError(_CLOSED))

    @property
    def waiting(self) -> int:
        """How many requests wait for a pass."""
        return len(self._waiting)

    # -- the workers ------------------------------------------------------------------------------------------------

    def _staff(self) -> None:
        """Start a worker if there is work for one more."""
        if self._workers < self.passes and self._idle < len(self._waiting):
            self._workers += 1
            # a daemon: a model that never answers must not keep the process
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while (each := self._next()) is not None:
            self._settle(each)
            with self._changed:
                self._running.remove(each)
                if each.small:
                    self._company = len(each.tickets) + sum(ticket.small for ticket in self._waiting)
                self._changed.notify_all()  # a large request may have waited for its place
                if each.lost:
                    self._lost -= 1
                    return

    def _next(self) -> Pass[T, R] | None:
        """Wait for work; return the next pass, or None for the end."""
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
                    continue  # somebody else took them meanwhile
                each = Pass(self._taken())
                if each.tickets:
                    self._running.append(each)
                    return each

    def _first(self) -> Ticket[T, R] | None:
        """Return the first request that may run now."""
        running = [each.small for each in self._running if not each.lost]
        room = {True: running.count(True) < 1, False: running.count(False) < max(1, self.passes - 1)}
        return next((ticket for ticket in self._waiting if room[ticket.small]), None)

    def _gathered(self) -> bool:
        """Wait until those of the last pass are back, if it was shared; say whether there is still a request."""
        over = time.monotonic() + self.window_s
        while not self._closed:
            small = [ticket for ticket in self._waiting if ticket.small]
            left_s = over - time.monotonic()
            full = sum(ticket.weight for ticket in small) >= 1
            if not small or full or len(small) >= self._company or left_s <= 0:
                break
            self._changed.wait(left_s)
        return self._first() is not None

    def _taken(self) -> list[Ticket[T, R]]:
        """Take the requests of the next pass out of the queue."""
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

    def _settle(self, each: Pass[T, R]) -> None:
        """Run a pass and hand out what came of it."""
        try:
            results = self._run([ticket.item for ticket in each.tickets], each)
            pairs = list(zip(each.tickets, results, strict=True))
        except BaseException as exc:  # noqa: BLE001  # whatever it is, those who wait must get it
            if len(each.tickets) > 1 and not isinstance(exc, Abandoned) and self._isolate(exc):
                for ticket in each.tickets:
                    self._settle(Pass([ticket]))
                return
            for ticket in each.tickets:
                ticket.settle(None, exc)
        else:
            for ticket, result in pairs:
                ticket.settle(result)
