"""What the runtime tells of its work, to whoever watches in this context.

One `Step` a batch; and for what a first use has to do before any batch, such as a download, a `Stage`.
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
    """One piece of work that is done.

    Attributes:
        rows: inputs that have their vectors now.
        tokens: their tokens.
        padded: the tokens that the model computed, padding included.
        tokenize_s: seconds of tokenizing.
        model_s: seconds in the model, in one lane.
        lanes: how many lanes worked side by side.
        prepare_s: seconds of opening and preparing pictures, over all threads.
    """

    rows: int = 0
    tokens: int = 0
    padded: int = 0
    tokenize_s: float = 0.0
    model_s: float = 0.0
    lanes: int = 1
    prepare_s: float = 0.0


@dataclass(frozen=True)
class Stage:
    """How far something is that has to be done once: a download, loading a model, compiling it.

    Attributes:
        what: in words: "loading all-MiniLM-L6-v2".
        done: bytes so far; 0 where it does not tell.
        total: bytes in all; None where they are not known.
        over: whether it has ended, or failed.
    """

    what: str
    done: int = 0
    total: int | None = None
    over: bool = False


_watchers: ContextVar[tuple[Callable[[Step], None], ...]] = ContextVar("embedreg_watchers", default=())


@contextlib.contextmanager
def watch(callback: Callable[[Step], None]) -> Iterator[None]:
    """Call back for each step of the embedding that goes on inside, always in the thread that asked for it.

    Watchers nest: each hears of everything inside.
    """
    token = _watchers.set((*_watchers.get(), callback))
    try:
        yield
    finally:
        _watchers.reset(token)


def report(step: Step) -> None:
    """Tell the watchers."""
    for callback in _watchers.get():
        callback(step)


_stage_watchers: ContextVar[tuple[Callable[[Stage], None], ...]] = ContextVar("embedreg_stage_watchers", default=())


@contextlib.contextmanager
def watch_stages(callback: Callable[[Stage], None]) -> Iterator[None]:
    """Call back as stages begin, move and end, in any thread."""
    token = _stage_watchers.set((*_stage_watchers.get(), callback))
    try:
        yield
    finally:
        _stage_watchers.reset(token)


@contextlib.contextmanager
def stage(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """Tell the watchers, and the log `embedreg` at INFO, that something goes on which takes a while.

    Args:
        what: in words, without inputs or secrets.
    Yields:
        A callable (bytes done, bytes in all or None) to say how far it is, from any thread.
    """
    watchers = _stage_watchers.get()
    last = Stage(what)

    def show(stage: Stage) -> None:
        for callback in watchers:
            callback(stage)

    def tell(done: int, total: int | None) -> None:
        nonlocal last
        last = Stage(what, done, total)
        show(last)

    log.info("%s", what)
    began = time.perf_counter()
    show(last)
    try:
        yield tell
    finally:
        show(replace(last, over=True))
        log.info("%s: over after %.1f s", what, time.perf_counter() - began)
