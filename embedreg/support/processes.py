"""Identify a process, and check whether it still runs: process ids are reused, and differ between containers."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

from embedreg.support.display import plain

__all__ = ["is_alive", "is_dead", "is_dead_tag", "name_of", "tag", "this_process"]


def this_process() -> dict[str, Any]:
    """Return facts that identify this process uniquely, in JSON types."""
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "boot": _boot(), "started": _started(pid)}


def is_dead(facts: dict[str, Any]) -> bool:
    """Return whether a process of this machine has ended; False if that is unknown."""
    return is_alive(facts) is False


def is_alive(facts: dict[str, Any]) -> bool | None:
    """Return whether a process, as `this_process` described it, runs on this machine; None if that is unknown."""
    pid, boot = facts.get("pid"), facts.get("boot")
    if boot is None or boot != _boot() or type(pid) is not int:
        return None
    started = _started(pid)
    return started is not None and facts.get("started") == started


def tag() -> str:
    """Return a short name of this process for use in file names."""
    me = this_process()
    boot = hashlib.sha256(str(me["boot"]).encode()).hexdigest()[:8]
    return f"{me['pid']}.{me['started']}.{boot}"


def is_dead_tag(tag: str) -> bool:
    """Return whether the process of a `tag` was of this machine and has ended."""
    pid, _, rest = tag.partition(".")
    started, _, boot = rest.partition(".")
    ours = boot == hashlib.sha256(str(_boot()).encode()).hexdigest()[:8]
    return ours and pid.isdecimal() and is_dead({"pid": int(pid), "boot": _boot(), "started": started})


def name_of(facts: dict[str, Any]) -> str | None:
    """Return a description of a process for messages; None if the facts are incomplete."""
    pid, host = facts.get("pid"), facts.get("host")
    return f"process {pid} on {plain(host, 64)}" if type(pid) is int and isinstance(host, str) else None


@functools.cache
def _boot() -> str | None:
    """Return the id of this boot and container, within which process ids are unique; None if it is not available."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process started; None if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
