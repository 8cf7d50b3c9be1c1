"""What a fork does to threads and locks: a child has one thread, and every lock as it was at that moment.

Before a fork, the locks of embedreg are waited for, for half a second in all, so that nothing that they guard is half
done in the child. What nobody could wait for is renewed there. Threads that compute hold such a lock while they do, so
that none is inside torch or SQLite, whose own locks nobody can renew.
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

WAIT_S = 0.5  # for all locks together; a model may load for a minute, and a fork must not take as long

_bootstrap = sys.modules.get("_frozen_importlib")
_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()
_callbacks: list[Callable[[], Any]] = []
_taken: dict[int, list[ForkSafeLock]] = {}  # by the thread that forks


class ForkSafeLock:
    """A reentrant lock that is free in a forked child, whoever held it in the parent.

    Args:
        outer: whether other locks are taken while it is held; a fork waits for such a lock first.
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
        """Take the lock, waiting for at most so many seconds; say whether it was had."""
        return self._lock.acquire(timeout=timeout)

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def reset(self) -> None:
        """Forget who holds it, but for the thread that calls; only for a forked child, where no other is left."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]  # as threading.Condition asks
            self._lock = threading.RLock()


def in_child(callback: Callable[[], Any]) -> None:
    """Have something called in every forked child, after the locks are free there."""
    _callbacks.append(callback)


def _before() -> None:
    until = time.monotonic() + WAIT_S
    taken = _taken[threading.get_ident()] = []
    while _importing() and time.monotonic() < until:  # a child would wait for ever for a module that is half imported
        time.sleep(0.001)
    for lock in sorted(_known(), key=lambda lock: not lock._outer):
        if lock.acquire(timeout=max(0.0, until - time.monotonic())):
            taken.append(lock)


def _importing() -> bool:
    """Say whether another thread is importing a module; of use where this Python has the lock where it was."""
    locks = [found for ref in list(getattr(_bootstrap, "_module_locks", {}).values()) if (found := ref()) is not None]
    return any(getattr(lock, "owner", None) not in (None, threading.get_ident()) for lock in locks)


def _known() -> list[ForkSafeLock]:
    while True:
        try:
            return list(_locks)
        except RuntimeError:  # another thread has just made one
            continue


def _in_parent() -> None:
    for lock in reversed(_taken.pop(threading.get_ident(), [])):
        lock.release()


def _in_child() -> None:
    _in_parent()
    _taken.clear()
    for lock in list(_locks):
        lock.reset()
    for callback in _callbacks:
        callback()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
