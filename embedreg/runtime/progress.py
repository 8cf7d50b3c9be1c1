"""What the runtime tells of its work: one `Step` a batch, to whoever watches in this context."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["Step", "report", "watch"]


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
    """

    rows: int = 0
    tokens: int = 0
    padded: int = 0
    tokenize_s: float = 0.0
    model_s: float = 0.0
    lanes: int = 1


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
