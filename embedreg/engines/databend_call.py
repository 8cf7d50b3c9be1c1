"""One call of a SQL function: how long it may last, whether it is still wanted, and what its user reads when it fails.

A SQL user sees one line with the function's name: no traceback, no path, no input, no secret.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
import traceback
from collections.abc import Callable, Iterable

import pyarrow.flight as flight

from embedreg.errors import EmbedregError

__all__ = ["Call", "in_one_line", "outcome", "told"]

log = logging.getLogger("embedreg")

MAX_CHARS = 400  # of a message
_QUOTED = 16  # characters; where a message shares as many with an input, they are taken out
_WHOLE = 6  # characters of an input that is so short, if it is there as a whole
_SCANNED = 4096  # inputs that a message is compared with
_READ = 2000  # characters of a message that are compared

# From the root, a drive or the home, wherever it begins a word; a URL's "//" and a model's "owner/name" do neither.
_PATH = re.compile(r"""(?x) (?<![\w:/.~-]) (?: ~?/ | [A-Za-z]:[\\/] | \\\\ ) (?: [^\s'",;:()<>|]+ )""")
_QUOTED_PATH = re.compile(r"""(?x) (?P<q>['"]) (?: ~?/ | [A-Za-z]:[\\/] | \\\\ ) (?: (?!(?P=q)). )+ (?P=q)""")

_COUNTED = {
    flight.FlightCancelledError: "cancelled",
    flight.FlightTimedOutError: "expired",
    flight.FlightUnavailableError: "refused",
}


class Call:
    """A call under way.

    Args:
        name: of the SQL function.
        deadline_s: how long it may last, in seconds.
        cancelled: says whether its query is over.
        stopping: says whether the server will wait for it no longer.
    """

    def __init__(
        self,
        name: str,
        deadline_s: float,
        cancelled: Callable[[], bool],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name, self.deadline_s = name, deadline_s
        self._cancelled, self._stopping = cancelled, stopping
        self._over = time.monotonic() + deadline_s

    def check(self) -> None:
        """Raise a FlightError if nobody waits for this call, or nobody should."""
        if self._cancelled():
            raise flight.FlightCancelledError(f"{self.name}: the query was cancelled")
        if self._stopping():
            raise flight.FlightUnavailableError(f"{self.name}: the server is shutting down; run the query again later")
        if time.monotonic() > self._over:
            raise flight.FlightTimedOutError(
                f"{self.name}: the call took longer than the {self.deadline_s:g} s that the server allows"
            )


def told(name: str, exc: BaseException) -> flight.FlightError:
    """Turn whatever failed a call into what its SQL user may read.

    Args:
        name: of the SQL function.
        exc: the failure. Errors of embedreg say what was wrong, and by now quote no input; of any other kind only the
            type is safe to show.
    """
    if isinstance(exc, flight.FlightError):
        return exc
    if isinstance(exc, EmbedregError):
        message = in_one_line(exc.message)
        log.warning("%s failed: %s%s", name, message, f" Hint: {in_one_line(exc.hint)}" if exc.hint else "")
    else:
        kind = type(exc).__name__
        message = f"the function failed with {kind}; the server's log says where"
        frames = traceback.extract_tb(exc.__traceback__)
        where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        log.warning("%s failed with %s%s", name, kind, where)
    # the frames alone: messages may quote inputs, or secrets that nobody has declared
    log.debug("%s failed in\n%s", name, "".join(traceback.format_tb(exc.__traceback__)))
    return flight.FlightServerError(f"{name}: {message.rstrip('.')}")


def outcome(exc: BaseException) -> str:
    """Return the counter of a call that ended with an error."""
    return next((counter for kind, counter in _COUNTED.items() if isinstance(exc, kind)), "failed")


def in_one_line(text: str, inputs: Iterable[str] = ()) -> str:
    """Clean a message: one line of bounded length, without paths, and without the inputs where it quotes them."""
    text = _without_inputs(text[:_READ], inputs)
    text = _PATH.sub("<path>", _QUOTED_PATH.sub("<path>", text))
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."


def _without_inputs(text: str, inputs: Iterable[str]) -> str:
    """Replace what a text shares with inputs, be it a part that was cut out of one."""
    values = list(itertools.islice(inputs, _SCANNED))
    everything = "\0".join(values)
    quoted = [False] * len(text)
    for start in range(len(text) - _QUOTED + 1):
        if text[start : start + _QUOTED] in everything:
            quoted[start : start + _QUOTED] = [True] * _QUOTED
    for value in {value for value in values if _WHOLE <= len(value) < _QUOTED and value in text}:
        for found in re.finditer(re.escape(value), text):
            quoted[found.start() : found.end()] = [True] * len(value)
    runs = itertools.groupby(zip(text, quoted, strict=True), key=lambda pair: pair[1])
    return "".join("..." if inside else "".join(character for character, _ in run) for inside, run in runs)
