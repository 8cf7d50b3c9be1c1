"""Worker threads of one torch thread each, shared by the whole process; the user's own thread settings stay.

Two workers that run whole batches on one core each are quicker than one that spreads each product over both: they
never wait for each other. What is too little for that runs in one thread, on all cores: never in the caller's own,
since torch's OpenMP threads belong to the thread that used them first, and a child forked from it would wait for them
for ever.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from embedreg.support import forks
from embedreg.support.threads import Threads

__all__ = ["alone", "cores", "lanes", "run"]

T = TypeVar("T")
R = TypeVar("R")

_pools: dict[int, ThreadPoolExecutor] = {}
_alone = Threads("embedreg-alone", computes=True)
_here = threading.local()  # `busy`: in a worker, the lock that a fork waits for
_lock = forks.ForkSafeLock(outer=True)  # waits for threads that take the other one
_setting = forks.ForkSafeLock()
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


def alone(work: Callable[..., R], /, *args: Any) -> R:
    """Do work that needs no workers: in one thread, with as many torch threads as the caller has.

    Called from a worker, it is done there. An interrupt ends it.
    """
    if getattr(_here, "busy", None) is not None:
        return work(*args)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else None
    done: R = _alone.call(_with_threads, threads, work, args)
    return done


def _with_threads(threads: int | None, work: Callable[..., R], args: tuple[Any, ...]) -> R:
    if threads is not None:
        _set_threads(threads)
    return work(*args)


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
            running.add(pool.submit(contextvars.copy_context().run, _busy, work, item))

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


def _busy(work: Callable[[T], R], item: T) -> R:
    with _here.busy:
        return work(item)


def _single_threaded() -> None:
    """Give this worker one torch thread."""
    _here.busy = forks.ForkSafeLock(outer=True)
    _set_threads(1)


def _set_threads(threads: int) -> None:
    """Give this thread a number of torch threads, and give back the default that other new threads take over."""
    import torch

    if torch.get_num_threads() == threads:
        return
    with _setting:
        # It sets this thread's own number, and the process's default for threads to come. Only another thread can tell
        # what that was and set it back, since whoever calls gets the number too.
        known, set_back = threading.Event(), threading.Event()

        def keep() -> None:
            default = torch.get_num_threads()
            known.set()
            set_back.wait()
            torch.set_num_threads(default)

        keeper = threading.Thread(target=keep, name="embedreg-restore", daemon=True)
        keeper.start()
        try:
            known.wait()
            torch.set_num_threads(threads)
        finally:
            set_back.set()
            keeper.join()


# a forked child has none of their threads
forks.in_child(_pools.clear)
