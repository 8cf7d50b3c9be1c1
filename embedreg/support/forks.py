"""Locks that survive a fork: a forked child has one thread, and inherits every lock in its current state.

Before a fork, embedreg's locks are acquired, within half a second in total, so that the child inherits consistent data.
Locks that could not be acquired are recreated in the child. Threads hold such a lock while they compute, so that none
is inside torch or SQLite, whose own locks cannot be recreated.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["ForkSafeLock", "in_child"]

WAIT_S = 0.5  # for all locks together; loading a model may take a minute, and a fork must not wait for it

_bootstrap = sys.modules.get("_frozen_importlib")
_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_callbacks: list[Callable[[], Any]] = []
_acquired: dict[int, list[ForkSafeLock]] = {}  # by the id of the forking thread


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, even if it was held in the parent.

    Args:
        outer: whether other locks are acquired while it is held; a fork acquires such locks first.
    """

    def __init__(self, *, outer: bool = False) -> None:
        self._lock = threading.RLock()
        self._outer = outer
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def acquire(self, timeout: float = -1) -> bool:
        """Acquire the lock within a timeout in seconds; return whether it was acquired."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def reset(self) -> None:
        """Recreate the lock, unless the calling thread holds it; for a forked child, which has no other thread."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition does
            self._lock = threading.RLock()


def in_child(callback: Callable[[], Any]) -> None:
    """Register a callback for every forked child; it runs once the locks are free there."""
    _callbacks.append(callback)


def _before() -> None:
    until = time.monotonic() + WAIT_S
    taken = _acquired[threading.get_ident()] = []
    while _importing() and time.monotonic() < until:  # a child would wait forever for a half-imported module
        time.sleep(0.001)
    for lock in sorted(_known(), key=lambda lock: not lock._outer):
        if lock.acquire(timeout=max(0.0, until - time.monotonic())):
            taken.append(lock)


def _importing() -> bool:
    """Return whether another thread is importing a module, as far as this Python version exposes its locks."""
    locks = [found for ref in list(getattr(_bootstrap, "_module_locks", {}).values()) if (found := ref()) is not None]
    return any(getattr(lock, "owner", None) not in (None, threading.get_ident()) for lock in locks)


def _known() -> list[ForkSafeLock]:
    while True:
        try:
            return list(_locks)
        except RuntimeError:  # another thread has just created one
            continue


def _in_parent() -> None:
    for lock in reversed(_acquired.pop(threading.get_ident(), [])):
        lock.release()


def _in_child() -> None:
    _in_parent()
    _acquired.clear()
    for lock in list(_locks):
        lock.reset()
    for callback in _callbacks:
        callback()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
