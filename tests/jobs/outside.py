"""Record writes, renames and removals outside of a folder, by Python's audit events."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["snapshot", "touched_outside"]

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_inside: list[Path] = []
_found: list[str] = []
_NAMES: dict[str, tuple[tuple[int, int | None], ...]] = {  # event -> which arguments are a path, and its folder
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
    "shutil.rmtree": ((0, 1),),
}


def _full(path: Any, folder: Any = None) -> Path:
    if isinstance(path, int):
        return Path(os.readlink(f"/proc/self/fd/{path}"))
    start = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) and folder >= 0 else os.getcwd()
    head, name = os.path.split(os.path.join(start, os.fsdecode(path)))
    return Path(os.path.realpath(head), name)  # of a link that is removed, the link itself


def _note(event: str, path: Path) -> None:
    if "__pycache__" not in path.parts and path != Path(os.devnull) and not any(map(path.is_relative_to, _inside)):
        _found.append(f"{event} {path}")


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event == "open":
        path, mode, flags = args
        if isinstance(path, str | bytes) and (flags & _WRITING or (mode and set(mode) & set("wax+"))):
            _note(event, Path(os.path.realpath(_full(path))))
    elif event in _NAMES:
        for at, folder in _NAMES[event]:
            _note(event, _full(args[at], args[folder] if folder is not None and folder < len(args) else None))


sys.addaudithook(_hook)  # for as long as the process lives; it does nothing outside of the blocks below


@contextlib.contextmanager
def touched_outside(*folders: Path) -> Iterator[list[str]]:
    """Collect the changes of a block outside of the given folders."""
    _found.clear()
    _inside[:] = [Path(os.path.realpath(folder)) for folder in folders]
    try:
        yield _found
    finally:
        _inside.clear()


def snapshot(folder: Path) -> dict[str, Any]:
    """Return everything below a folder: changes by native libraries are visible only here."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (stat.st_ino, stat.st_mode, stat.st_size, content)
    return found
