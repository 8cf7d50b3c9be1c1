"""Admission control: how many calls are open, and how much memory they take together."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["READ_BYTES", "AdmissionControl", "Budget", "Memory", "Reads"]

_SMALL = 2**18  # bytes that are not counted: small calls do not wait for large ones
_POLL_S = 0.05  # between two checks whether a waiting call is still wanted
READ_BYTES = 2**21  # reserved for a read until the size of its message is known


class AdmissionControl:
    """Counts the open calls that brought work, and limits their number.

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

    def enter(self) -> bool:
        """Admit a call; return False if there are too many, or admission is closed."""
        with self._changed:
            if self.closed or self._open >= self.most:
                return False
            self._open += 1
            return True

    def leave(self) -> None:
        """Count a call as over."""
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Admit no calls from now on."""
        with self._changed:
            self.closed = True

    def empty(self, timeout_s: float) -> bool:
        """Wait until no call is open; return False if the time is up first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout_s)


class Budget:
    """Bytes that threads reserve and release, first come, first served.

    Args:
        most: how many may be taken at once. What is larger waits until nothing else is taken.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def take(self, count: int, check: Callable[[], None]) -> int:
        """Reserve bytes once they are free; return how many: 0 for a small amount, which is not counted.

        Args:
            check: called now and then while waiting; an error that it raises ends the wait.
        """
        if count <= _SMALL:
            return 0
        with self._changed:
            place = object()
            self._queue.append(place)
            try:
                while self._queue[0] is not place or (self._taken and self._taken + count > self.most):
                    self._changed.wait(_POLL_S)
                    check()
                self._taken += count
            finally:
                self._queue.remove(place)
                self._changed.notify_all()
        return count

    def give(self, count: int) -> None:
        """Release bytes."""
        if count:
            with self._changed:
                self._taken -= count
                self._changed.notify_all()

    @contextlib.contextmanager
    def held(self, count: int, check: Callable[[], None]) -> Iterator[None]:
        """Hold bytes for a block."""
        taken = self.take(count, check)
        try:
            yield
        finally:
            self.give(taken)


class Reads:
    """Bytes of messages that were read and are not done with; for one event loop.

    Args:
        most: how many there may be before reads wait. The messages of reads in progress may exceed it.
    """

    def __init__(self, most: int) -> None:
        self.most = max(most, READ_BYTES)
        self._taken = 0
        self._queue: list[asyncio.Future[None]] = []

    @property
    def waiting(self) -> int:
        """How many reads wait."""
        return len(self._queue)

    async def take(self, have: int) -> int:
        """Wait until a message may be read; return what is then reserved for a call. The last to wait is served first,
        so that many silent clients delay only each other.

        Args:
            have: what is reserved for it already.
        """
        if have >= READ_BYTES:
            return have
        while self._taken + READ_BYTES > self.most:
            place = asyncio.get_running_loop().create_future()
            self._queue.append(place)
            try:
                await place
            finally:
                if place in self._queue:
                    self._queue.remove(place)
        self._taken += READ_BYTES - have
        return READ_BYTES

    def change(self, taken: int, wanted: int) -> int:
        """Change a reservation to another number of bytes; return it."""
        self._taken += wanted - taken
        room = self.most - self._taken
        while self._queue and room >= READ_BYTES:
            room -= READ_BYTES
            place = self._queue.pop()
            if not place.done():
                place.set_result(None)
        return wanted


@dataclass(frozen=True)
class Memory:
    """The memory that the batches of all calls may take together; small ones are not counted.

    Attributes:
        reads: messages.
        decoding: batches in all forms that looking at them takes.
        kept: vectors that later rows of a batch need again.
        vectors: vectors that are computed and sent.
    """

    reads: Reads
    decoding: Budget
    kept: Budget
    vectors: Budget

    @classmethod
    def of(cls, count: int) -> Memory:
        """Divide a number of bytes between the four."""
        return cls(Reads(count // 2), Budget(count // 6), Budget(count // 6), Budget(count // 6))

    @property
    def short(self) -> bool:
        """Whether a call waits for memory."""
        return bool(self.reads.waiting or self.decoding.waiting or self.kept.waiting or self.vectors.waiting)
