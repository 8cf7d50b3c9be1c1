"""The command line: `embedreg`, also `python -m embedreg`.

Nothing but `main` lives here, and typer and rich are imported when it runs: they belong to the command line only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from embedreg.cli import signals

__all__ = ["main"]


def _open_streams() -> None:
    """Open what was closed before the start, as by `>&-`: else the next file that is opened would be stdout."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_WRONLY)
            while handle < number:
                handle = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, open(handle, "w", encoding="utf-8"))  # noqa: SIM115  # for the rest of the process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `embedreg --help` lists them.

    Args:
        argv: the arguments; those of the process for None.
    """
    signals.listen()
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a Latin-1 terminal shows what it can
    try:
        from embedreg.cli.app import app

        code = app(argv)
    except KeyboardInterrupt:  # outside the seams of `app`: while it was imported, or was already ending
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
    code = signals.asked() or code  # whatever has become of the exception that the signal raised
    # Where an interrupt ended the `exec` of a text, as in the making of a dataclass, Python remembers it, and would end
    # by the signal instead of with our code. The next `exec` makes it forget.
    exec("")
    return code
