"""The command line: `embedreg`, also `python -m embedreg`.

Nothing but `main` lives here, and typer and rich are imported when it runs: they belong to the command line only.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `embedreg --help` lists them.

    Args:
        argv: the arguments; those of the process for None.
    """
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        # SIGTERM must pass through `finally` blocks, or half-written files would stay.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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
        if exc.name not in {"typer", "rich"}:
            raise
        print(
            f"embedreg: the library {exc.name!r} is missing.\nHint: pip install --force-reinstall embedreg",
            file=sys.stderr,
        )
        return 5
    # Where an interrupt ended the `exec` of a text, as in the making of a dataclass, Python remembers it, and would end
    # by the signal instead of with our code. The next `exec` makes it forget.
    exec("")
    return code
