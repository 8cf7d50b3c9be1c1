"""One call of a SQL function: how long it may last, whether it is still wanted, and the error that its user reads.

A SQL user sees one line with the function's name: no traceback, no path, no input, no secret.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow.flight as flight

from embedreg.engines.databend.message import in_one_line
from embedreg.errors import EmbedregError
from embedreg.support.display import plain

if TYPE_CHECKING:
    from embedreg.engines.databend.admission import Memory

__all__ = ["Call", "EndedError", "StalledError", "as_flight_error", "counter_of", "in_one_line"]

log = logging.getLogger("embedreg")


class EndedError(flight.FlightUnavailableError):  # type: ignore[misc]  # it ships no types
    """A call that was admitted, and ended by a shutdown."""


class StalledError(flight.FlightTimedOutError):  # type: ignore[misc]  # it ships no types
    """A call whose client sent nothing, or took nothing."""


# The first match counts: the more specific errors come first.
_COUNTED = {
    EndedError: "failed",
    StalledError: "stalled",
    flight.FlightCancelledError: "cancelled",
    flight.FlightTimedOutError: "expired",
    flight.FlightUnavailableError: "refused",
}


class Call:
    """A call under way.

    Args:
        name: of the SQL function.
        deadline_s: how long it may last, in seconds.
        cancelled: returns whether its query is over.
        stopping: returns whether the server has stopped waiting for it.
        memory: what its vectors may take; None for no limit.
    """

    def __init__(
        self,
        name: str,
        deadline_s: float,
        cancelled: Callable[[], bool],
        stopping: Callable[[], bool] = lambda: False,
        memory: Memory | None = None,
    ) -> None:
        self.name, self.deadline_s = name, deadline_s
        self._cancelled, self._stopping, self._memory = cancelled, stopping, memory
        self._over = time.monotonic() + deadline_s
        self._held = 0

    def check(self) -> None:
        """Raise a FlightError if the call was cancelled, is overdue, or the server is shutting down."""
        if self._cancelled():
            raise flight.FlightCancelledError(f"{self.name}: the query was cancelled")
        if self._stopping():
            raise EndedError(f"{self.name}: the server is shutting down; run the query again later")
        if self.overdue:
            raise self.late()

    @property
    def overdue(self) -> bool:
        """Whether its deadline has passed."""
        return time.monotonic() > self._over

    def late(self) -> flight.FlightTimedOutError:
        """Return the error of a call whose deadline has passed."""
        return flight.FlightTimedOutError(
            f"{self.name}: the call took longer than the {self.deadline_s:g} s that the server allows"
        )

    def keeping(self, count: int) -> contextlib.AbstractContextManager[None]:
        """Hold memory for vectors that later rows of a batch need again."""
        return contextlib.nullcontext() if self._memory is None else self._memory.kept.held(count, self.check)

    def take(self, count: int) -> None:
        """Reserve memory for the vectors of a chunk; the sender releases it."""
        if self._memory is not None:
            self._held += self._memory.vectors.take(count, self.check)

    def keep(self, count: int) -> None:
        """Release what is reserved beyond a number of bytes."""
        if self._memory is not None and self._held > count:
            self._memory.vectors.give(self._held - count)
            self._held = count

    def pop_held(self) -> int:
        """Return the bytes reserved since the last time; from now on the caller releases them."""
        held, self._held = self._held, 0
        return held


def as_flight_error(name: str, exc: BaseException) -> flight.FlightError:
    """Return the error that the SQL user may read, for whatever failed a call.

    Args:
        name: of the SQL function.
        exc: the failure. Errors of embedreg name what was wrong, and by now quote no input; of any other kind only the
            type is safe to show.
    """
    if isinstance(exc, flight.FlightError):
        return exc
    if isinstance(exc, EmbedregError):
        message = in_one_line(exc.message)
        log.warning("%s failed: %s%s", name, message, f" Hint: {in_one_line(exc.hint)}" if exc.hint else "")
    else:
        kind = plain(type(exc).__name__, 60)
        message = f"the function failed with {kind}; see the server's log"
        frames = traceback.extract_tb(exc.__traceback__)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        log.warning("%s failed with %s%s", name, kind, where)
    # the frames alone: messages may quote inputs, or undeclared secrets
    log.debug("%s failed in\n%s", name, "".join(traceback.format_tb(exc.__traceback__)))
    return flight.FlightServerError(f"{name}: {message.rstrip('.')}")


def counter_of(exc: BaseException) -> str:
    """Return the counter of a call that ended with an error."""
    return next((counter for kind, counter in _COUNTED.items() if isinstance(exc, kind)), "failed")
