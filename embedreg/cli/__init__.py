"""The command line: `embedreg`, also `python -m embedreg`.

This module defines only `main`, which imports typer and rich when it runs: only the command line needs them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from embedreg.cli import signals

__all__ = ["main"]


def _open_streams() -> None:
    """Open standard streams that were closed at start, as by `>&-`: otherwise the next opened file becomes stdout."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_WRONLY)
            while handle < number:
                handle = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, open(handle, "w", encoding="utf-8"))  # noqa: SIM115  # stays open for the process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `embedreg --help` lists them.

    Args:
        argv: the arguments; None for those of the process.
    """
    signals.listen()
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a Latin-1 terminal gets escapes for other characters
    try:
        from embedreg.cli.app import app

        code = app(argv)
    except KeyboardInterrupt:  # not handled by `app`: raised during its import or exit
        print("embedreg: stopped.", file=sys.stderr)
        code = 130
    except ModuleNotFoundError as exc:
        if signals.asked() is None and exc.name not in {"typer", "rich"}:
            raise
        code = 5
        if signals.asked() is None:
            print(
                f"embedreg: the library {exc.name!r} is missing.\nHint: pip install --force-reinstall embedreg",
                file=sys.stderr,
            )
    except BaseException:
        if signals.asked() is None:
            raise
        code = 0
    code = signals.asked() or code  # even if the exception raised by the signal was replaced or lost
    # If an interrupt ended the `exec` of a text, as in creating a dataclass, Python records it and exits by the signal
    # instead of with our code. The next `exec` clears the record.
    exec("")
    return code
