"""Which process is meant, and whether it still runs: a number alone is given out again, and means another one in each
container.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from embedreg.support.display import plain

__all__ = ["is_alive", "is_dead", "is_dead_tag", "myself", "name_of", "tag"]


def myself() -> dict[str, Any]:
    """Return what tells this process from every other, in JSON types."""
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "boot": _boot(), "started": _started(pid)}


def is_dead(told: dict[str, Any]) -> bool:
    """Return whether what `myself` described was a process of this machine's and is gone; False where nobody knows."""
    return is_alive(told) is False


def is_alive(told: dict[str, Any]) -> bool | None:
    """Return whether what `myself` described runs on this machine; None where nobody here can know."""
    pid, boot = told.get("pid"), told.get("boot")
    if boot is None or boot != _boot() or type(pid) is not int:
        return None
    started = _started(pid)
    return started is not None and told.get("started") == started


def tag() -> str:
    """Return a short name for this process that can stand in a file's name."""
    me = myself()
    boot = hashlib.sha256(str(me["boot"]).encode()).hexdigest()[:8]
    return f"{me['pid']}.{me['started']}.{boot}"


def is_dead_tag(tag: str) -> bool:
    """Say whether the process that `tag` named was one of this machine's and is gone."""
    pid, _, rest = tag.partition(".")
    started, _, boot = rest.partition(".")
    ours = boot == hashlib.sha256(str(_boot()).encode()).hexdigest()[:8]
    return ours and pid.isdecimal() and is_dead({"pid": int(pid), "boot": _boot(), "started": started})


def name_of(told: dict[str, Any]) -> str | None:
    """Return a process's description for a person; None for one that says nothing of itself."""
    pid, host = told.get("pid"), told.get("host")
    return f"process {pid} on {plain(host, 64)}" if type(pid) is int and isinstance(host, str) else None


@functools.cache
def _boot() -> str | None:
    """Return what numbers of processes hold for: one start of the machine, one container; None where it is not told."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process started; None where there is none, or what is left of it waits for its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
