"""SIGINT and SIGTERM as exceptions, and what was asked for, should some library turn that exception into another."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

__all__ = ["asked", "listen"]

_codes: list[int] = []


def listen() -> None:
    """Let both signals pass through `finally` blocks, or half-written files would stay."""
    _codes.clear()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers nowhere else
        return
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # `nohup` and the like ignore it
        signal.signal(signal.SIGINT, _interrupt)


def asked() -> int | None:
    """Return the exit code of the first signal that came; None where none has.

    An exception that a signal raises while a library is imported, or runs in a callback, may come out as an error of
    that library's, or not at all.
    """
    return _codes[0] if _codes else None


def _terminate(number: int, frame: FrameType | None) -> None:
    _codes.append(128 + number)
    sys.exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _codes.append(128 + number)
    signal.default_int_handler(number, frame)
