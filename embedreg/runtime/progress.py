"""Progress reports of the runtime, delivered to the callbacks that are registered in the current context.

A `Step` reports one batch. A `Stage` reports work that precedes the first batch, such as a download.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

__all__ = ["Stage", "Step", "report", "stage", "watch", "watch_stages"]

log = logging.getLogger("embedreg")


@dataclass(frozen=True)
class Step:
    """One finished piece of work.

    Attributes:
        rows: inputs that were embedded.
        tokens: their tokens.
        padded: the tokens that the model computed, padding included.
        tokenize_s: seconds of tokenizing.
        model_s: seconds in the model, in one worker.
        workers: how many workers ran in parallel.
        prepare_s: seconds of opening and preparing images, summed over all threads.
    """

    rows: int = 0
    tokens: int = 0
    padded: int = 0
    tokenize_s: float = 0.0
    model_s: float = 0.0
    workers: int = 1
    prepare_s: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Progress of a one-time task: a download, loading a model, compiling it.

    Attributes:
        what: description: "loading all-MiniLM-L6-v2".
        done: bytes so far; 0 if unknown.
        total: total bytes; None if unknown.
        over: whether it has ended, or failed.
    """

    what: str
    done: int = 0
    total: int | None = None
    over: bool = False


_watchers: ContextVar[tuple[Callable[[Step], None], ...]] = ContextVar("embedreg_watchers", default=())


@contextlib.contextmanager
def watch(callback: Callable[[Step], None]) -> Iterator[None]:
    """Call back for each step of the embedding inside the block, in the thread that called the function.

    Blocks nest: each callback receives every step inside its block.
    """
    token = _watchers.set((*_watchers.get(), callback))
    try:
        yield
    finally:
        _watchers.reset(token)


def report(step: Step) -> None:
    """Pass a step to the callbacks of this context."""
    for callback in _watchers.get():
        callback(step)


_stage_watchers: ContextVar[tuple[Callable[[Stage], None], ...]] = ContextVar("embedreg_stage_watchers", default=())


@contextlib.contextmanager
def watch_stages(callback: Callable[[Stage], None]) -> Iterator[None]:
    """Call back when a stage begins, progresses or ends, in any thread."""
    token = _stage_watchers.set((*_stage_watchers.get(), callback))
    try:
        yield
    finally:
        _stage_watchers.reset(token)


@contextlib.contextmanager
def stage(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Report a one-time task to the callbacks, and to the log `embedreg` at INFO.

    Args:
        what: description, without inputs or secrets.
    Yields:
        A callable (bytes done, total bytes or None) that reports progress, from any thread.
    """
    watchers = _stage_watchers.get()
    last = Stage(what)

    def notify(stage: Stage) -> None:
        for callback in watchers:
            callback(stage)

    def update(done: int, total: int | None) -> None:
        nonlocal last
        last = Stage(what, done, total)
        notify(last)

    log.info("%s", what)
    began = time.perf_counter()
    notify(last)
    try:
        yield update
    finally:
        notify(replace(last, over=True))
        log.info("%s: over after %.1f s", what, time.perf_counter() - began)
