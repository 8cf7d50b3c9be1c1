"""SIGINT and SIGTERM as exceptions, with a record of the signal in case a library replaces the exception."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

__all__ = ["asked", "listen"]

_codes: list[int] = []


def listen() -> None:
    """Convert both signals to exceptions, so that `finally` blocks remove partial files."""
    _codes.clear()
    if threading.current_thread() is not threading.main_thread():  # handlers can be set only in the main thread
        return
    signal.signal(signal.SIGTERM, _terminate)
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # keep a handler set by others: `nohup` and the like ignore the signal
        signal.signal(signal.SIGINT, _interrupt)


def asked() -> int | None:
    """Return the exit code of the first signal received; None if there was none.

    An exception raised by a signal during the import of a library, or in its callback, may be replaced by an error of
    that library, or lost.
    """
    return _codes[0] if _codes else None


def _terminate(number: int, frame: FrameType | None) -> None:
    _codes.append(128 + number)
    sys.exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _codes.append(128 + number)
    signal.default_int_handler(number, frame)
