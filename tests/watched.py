"""An eye on what this process opens, connects to and starts, by Python's audit events."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FORBIDDEN = (
    *(
        "socket.",
        "subprocess.",
        "os.system",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.spawn",
        "os.remove",
        "os.rename",
    ),
    *(
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
        "shutil.",
        "ctypes.dlopen",
        "pty.",
        "urllib.",
    ),
    *("pickle.find_class", "marshal.", "code.__new__", "tempfile."),
)
_MODULES = (".py", ".pyc", ".so", "METADATA", "entry_points.txt", "top_level.txt", "RECORD")  # what an import opens

_seen: list[str] = []
_state: dict[str, Any] = {"on": False, "files": frozenset(), "below": None}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _state["on"]:
        return
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(args[0]))
        if _state["below"] is not None:
            path = os.path.realpath(path)
            if path.startswith(f"{_state['below']}{os.sep}"):
                return
        if path in _state["files"] or path.endswith(_MODULES) or path in sys.path:
            return
        found = f"open {path}"
    elif event.startswith(_FORBIDDEN):
        found = f"{event} {args!r}"
    else:
        return
    if not sys._getframe(1).f_globals.get("__name__", "").startswith("importlib"):  # which also writes bytecode
        _seen.append(found)


sys.addaudithook(_hook)


@contextlib.contextmanager
def nothing_touched(*files: Path, below: Path | None = None) -> Iterator[None]:
    """Fail if the block opens a file but these (and modules), makes a socket, starts a process, removes or renames.

    Args:
        below: a folder whose files may be opened; what counts is where links lead.
    """
    _seen.clear()
    _state.update(on=True, files=frozenset(str(path.absolute()) for path in files), below=below and below.resolve())
    try:
        yield
    finally:
        _state["on"] = False
    assert not _seen, _seen[:3]
