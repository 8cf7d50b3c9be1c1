"""Worker threads with one torch thread each, shared by the whole process; the user's thread settings are not changed.

Without torch they are plain threads; torch is never imported here. Pools from before and after its import are separate.

Two workers that run whole batches on one core each are faster than one that spreads each product over both, since they
never wait for each other. Smaller work runs in one thread, on all cores if nothing else is running. It never runs in
the caller's thread: torch's OpenMP threads belong to the thread that used them first, and a child forked from that
thread would wait for them forever.

A query that comes while batches run needs the cores that they hold. For some seconds after it batches run in workers of
lower priority, so that the system takes the cores from them at once. A thread's priority cannot be raised again without
privileges: hence two pools.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from embedreg.support import forks
from embedreg.support.threads import Threads

__all__ = ["alone", "cores", "physical_cores", "run", "worker_threads"]

T = TypeVar("T")
R = TypeVar("R")

# by number of threads, whether torch is imported, and whether they yield to queries
_pools: dict[tuple[int, bool, bool], ThreadPoolExecutor] = {}
_alone = Threads("embedreg-alone", computes=True)
_running: list[None] = []  # one for each call that computes now
_local = threading.local()  # `busy`: in a worker, the lock that a fork waits for
_lock = forks.ForkSafeLock(outer=True)  # its holder waits for threads that take `_setting`
_setting = forks.ForkSafeLock()
_QUEUED = 2  # batches per worker: one runs and one waits, so that another caller's batches start soon
_YIELD_S = 10.0  # how long batches yield after a query that came while batches ran
_NICENESS = 10  # of workers that yield: a tenth of a core's time if another thread wants all of it
_yielding = [0.0]  # until when batches yield, by the monotonic clock


def cores() -> int:
    """Return the number of cores that this process may use."""
    if sys.platform == "linux":  # containers and job schedulers bind processes to some of the cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_threads() -> int:
    """Return the default number of worker threads: one per core that torch may use, or would if it were imported."""
    if (torch := _torch()) is not None:
        # torch's number reflects what the user, or a scheduler through OMP_NUM_THREADS, has set
        return max(1, min(cores(), int(torch.get_num_threads())))
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, min(cores(), int(given))) if given.isdecimal() else physical_cores()


def physical_cores() -> int:
    """Return the number of cores that this process may use, counting threads of one core once, as torch does."""
    return _physical_of(frozenset(os.sched_getaffinity(0))) if sys.platform == "linux" else cores()


@functools.cache
def _physical_of(cpus: frozenset[int]) -> int:
    found = set()
    for number in cpus:
        try:
            path = f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
            found.add(Path(path).read_text("ascii").strip())
        except OSError:
            return len(cpus)
    return len(found)


def alone(work: Callable[..., R], /, *args: Any) -> R:
    """Run work that needs no workers in one thread, with as many torch threads as the caller has.

    While other work is running, here or on a machine without an idle core, it has one torch thread. With several, each
    product waits for the slowest of them, and one that the system has taken off its core for another thread holds up
    all: a query took ten times as long.

    A call from a worker, or from such work, runs in its thread. A KeyboardInterrupt ends it.
    """
    if getattr(_local, "busy", None) is not None or getattr(_alone.here, "thread", None) is not None:
        return work(*args)
    threads = None
    if _running:
        _yielding[0] = time.monotonic() + _YIELD_S
    if (torch := _torch()) is not None:
        threads = 1 if _running or _is_overloaded() else torch.get_num_threads()
    with _counted():
        done: R = _alone.call(_with_threads, threads, work, args)
    return done


def _is_overloaded() -> bool:
    """Return whether more threads than the machine has cores want to run, on average over the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)


@contextlib.contextmanager
def _counted() -> Generator[None]:
    """Count the calls that compute; list operations are atomic."""
    _running.append(None)
    try:
        yield
    finally:
        del _running[-1:]  # a forked child may have cleared it meanwhile


def _with_threads(threads: int | None, work: Callable[..., R], args: tuple[Any, ...]) -> R:
    if threads is not None:
        _set_threads(threads)
    return work(*args)


def run(work: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Run work on each item in the worker threads, and yield the results as they complete, in any order.

    The workers see the caller's context variables. The first error is raised here unchanged; pending items are then
    cancelled, and running ones are waited for. The same happens on an interrupt, and when the caller closes the
    generator early.

    Args:
        work: called with an item, in any worker.
        items: iterated in this thread, a few items ahead of the work.
        threads: number of worker threads.
    """
    left = iter(items)
    running: set[Future[R]] = set()

    def fill() -> None:
        while len(running) < _QUEUED * threads:
            try:
                item = next(left)
            except StopIteration:
                return
            pool = _pool(threads, time.monotonic() < _yielding[0])
            running.add(pool.submit(contextvars.copy_context().run, _busy, work, item))

    try:
        with _counted():
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


def _torch() -> Any:
    """Return torch if it is imported; None if not, or if another thread is importing it."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "get_num_threads") else None


def _pool(threads: int, yielding: bool) -> ThreadPoolExecutor:
    key = threads, _torch() is not None, yielding
    with _lock:
        if key not in _pools:
            pool = ThreadPoolExecutor(threads, "embedreg", initializer=_single_threaded, initargs=(yielding,))
            # All threads start now, before any work: a thread that started later would briefly change torch's default
            # number of threads while the user's code runs.
            barrier = threading.Barrier(threads)
            for started in [pool.submit(barrier.wait) for _ in range(threads)]:
                started.result()
            _pools[key] = pool
        return _pools[key]


def _busy(work: Callable[[T], R], item: T) -> R:
    with _local.busy:
        return work(item)


def _single_threaded(yielding: bool) -> None:
    """Set up this worker with one torch thread, and a lower priority if it yields."""
    _local.busy = forks.ForkSafeLock(outer=True)
    if yielding and sys.platform == "linux":  # elsewhere a priority is that of the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, min(19, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS))
    if _torch() is not None:
        _set_threads(1)


def _set_threads(threads: int) -> None:
    """Set the number of torch threads of this thread, and restore the default for new threads."""
    import torch

    if torch.get_num_threads() == threads:
        return
    with _setting:
        # torch.set_num_threads sets the calling thread's number and the process's default for new threads. Only
        # another thread can read and restore that default.
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


# a forked child does not have their threads
forks.in_child(_pools.clear)
forks.in_child(_running.clear)
