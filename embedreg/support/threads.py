"""Threads that run single calls: work that must not run in the caller's thread, or needs a timeout.

A call is passed to an idle thread or a new one, with an overhead of some microseconds. The threads are daemons, so that
no process waits for them at exit.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

from embedreg.support import forks

__all__ = ["Threads", "off_the_loop"]

T = TypeVar("T")

QUERY_THREADS = 4  # queries at a time; more would only compete for the same cores
KEPT = 8  # idle threads; more end when their call does


class _Interrupted(BaseException):
    """Raised in a thread whose caller was interrupted."""


class _Call:
    """A call and its result."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.failure: BaseException | None = None
        self.over = threading.Lock()
        self.over.acquire()

    def end(self) -> None:
        """Wake the caller; further calls do nothing."""
        if self.over.locked():
            self.over.release()


class _Thread(threading.Thread):
    """A worker that runs one call after another."""

    def __init__(self, home: Threads) -> None:
        super().__init__(name=home.name, daemon=True)
        self.home = home
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        # A fork waits for this lock: the child must not inherit torch in the middle of an operation.
        self.busy = forks.ForkSafeLock(outer=True) if home.computes else contextlib.nullcontext()
        self.leaving = False

    def run(self) -> None:
        self.home.here.thread = self
        call: _Call | None = None
        try:
            while not self.leaving:
                call = self.calls.get()
                self._do(call)
                call = None  # its data may be as large as a model
        except _Interrupted:
            pass
        finally:  # also if the interrupt arrived late, between a call and its end
            if call is not None:
                call.end()

    def _do(self, call: _Call) -> None:
        try:
            with self.busy:
                call.result = call.work()
        except BaseException as exc:  # noqa: BLE001 (every error belongs to the caller)
            call.failure = exc
        self.home.release(self)
        call.end()


class Threads:
    """A pool of threads that wait for calls.

    Args:
        name: the name of each thread.
        computes: whether calls compute. If so, a fork waits a moment for running calls, and an interrupted caller waits
            for its own. Calls that wait for a network are not waited for.
    """

    def __init__(self, name: str, *, computes: bool) -> None:
        self.name, self.computes = name, computes
        self.here = threading.local()
        self._lock = threading.Lock()
        self._idle: list[_Thread] = []
        forks.in_child(self._forget)

    def call(self, work: Callable[..., Any], /, *args: Any, timeout_s: float | None = None) -> Any:
        """Call a function in a thread, with the caller's context variables; return its result, or raise its error.

        From one of these threads it is called directly. An interrupt of the caller interrupts a thread that computes.

        Args:
            timeout_s: the maximum wait in seconds; None for no limit.
        Raises:
            TimeoutError: it took longer. The thread runs until its work ends: an interrupt could arrive in the middle
                of an import, and leave a half-imported module behind.
        """
        if getattr(self.here, "thread", None) is not None:
            return work(*args)
        context = contextvars.copy_context()
        call = _Call(lambda: context.run(work, *args))
        thread = self._one()
        thread.calls.put(call)
        try:
            ended = call.over.acquire(timeout=-1 if timeout_s is None else timeout_s)
        except BaseException:
            if self.computes and self._interrupt(thread, call):
                call.over.acquire()
            raise
        if not ended:
            raise TimeoutError(f"timed out: no complete response within {timeout_s:.3g} s")
        if call.failure is not None:
            try:
                raise call.failure
            finally:
                del call, context  # the traceback references this frame: avoid a cycle
        return call.result

    def release(self, thread: _Thread) -> None:
        """Keep a thread whose call has ended for the next call, unless it should end."""
        with self._lock:
            thread.leaving = thread.leaving or len(self._idle) >= KEPT
            if not thread.leaving:
                self._idle.append(thread)

    def _one(self) -> _Thread:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        thread = _Thread(self)
        thread.start()
        return thread

    def _interrupt(self, thread: _Thread, call: _Call) -> bool:
        """Raise `_Interrupted` in a thread at its next step; return False if its call has already ended."""
        with self._lock:
            if not call.over.locked() or thread in self._idle or thread.leaving:
                return False
            thread.leaving = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Interrupted)
            )
            return True

    def _forget(self) -> None:
        """Reset in a forked child, which has none of the threads."""
        self.here = threading.local()
        self._lock = threading.Lock()
        self._idle = []


@functools.cache
def _query_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(QUERY_THREADS, "embedreg-query")


forks.in_child(_query_threads.cache_clear)  # a forked child has none of the threads


async def off_the_loop(call: Callable[..., T], *args: Any) -> T:
    """Run a call without blocking the event loop, in threads that are used for nothing else."""
    import asyncio

    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_query_threads(), context.run, call, *args)
