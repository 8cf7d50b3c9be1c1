"""Worker threads of one torch thread each, shared by the whole process; the user's own thread settings stay.

Two workers that run whole batches on one core each are quicker than one that spreads each product over both: they
never wait for each other.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["cores", "lanes", "run"]

T = TypeVar("T")
R = TypeVar("R")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()
_setting = threading.Lock()
_QUEUED = 2  # batches a lane: one that runs and one that waits, so that another caller's batches come soon


def cores() -> int:
    """Return how many cores this process may use."""
    if sys.platform == "linux":  # containers and job schedulers bind processes to some of the cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def lanes() -> int:
    """Return how many worker threads suit this process: one per core that torch may use."""
    import torch

    # torch's own number is what the user, or a scheduler through OMP_NUM_THREADS, leaves us
    return max(1, min(cores(), torch.get_num_threads()))


def run(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Do work on each item in the worker threads, and yield what comes of it as it comes, in no order.

    The workers see the caller's context variables. The first error comes out here, as itself; what has not begun by
    then never begins, and what runs is waited for. The same goes for an interrupt, and for a caller that stops early.

    Args:
        work: called with an item, in any worker.
        items: taken in this thread, a few ahead of the work, so that they may be made one after the other.
        threads: how many worker threads.
    """
    pool = _pool(threads)
    left = iter(items)
    running: set[Future[R]] = set()

    def fill() -> None:
        while len(running) < _QUEUED * threads:
            try:
                item = next(left)
            except StopIteration:
                return
            running.add(pool.submit(contextvars.copy_context().run, work, item))

    try:
        fill()
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            running -= done
            fill()
            for future in done:
                yield future.result()
    finally:
        for future in running:
            future.cancel()
        wait(running)


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            pool = ThreadPoolExecutor(threads, "embedreg", initializer=_single_threaded)
            # All threads start now, before any work: one that started later would change the default for a moment
            # under the user's hands.
            together = threading.Barrier(threads)
            for started in [pool.submit(together.wait) for _ in range(threads)]:
                started.result()
            _pools[threads] = pool
        return _pools[threads]


def _single_threaded() -> None:
    """Give this thread one torch thread, and give back the default that other new threads take over."""
    import torch

    with _setting:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        # It sets this thread's own number, and the process's default for threads to come. Only another thread can set
        # the default back, since whoever calls gets the number too.
        restore = threading.Thread(target=torch.set_num_threads, args=(before,), name="embedreg-restore")
        restore.start()
        restore.join()


def _in_child() -> None:
    """Forget the pools: a forked child has none of their threads."""
    global _lock, _setting
    _lock, _setting = threading.Lock(), threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_in_child)
