"""What calls of remote functions cost: requests, tokens and waiting, added up over a call, a run or a process."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["TotalUsage", "collect", "collectors"]


@dataclass
class TotalUsage:
    """The cost of calls to remote functions; all zero for local ones. Any thread may add to it.

    Attributes:
        requests: HTTP requests sent, failed ones included.
        retries: how many of them repeated a failed one.
        inputs: inputs that were sent, in every request that contained them.
        billed_tokens: tokens that services reported.
        estimated_tokens: an estimate for the requests whose tokens were not reported.
        waited_s: seconds that requests waited for a budget, added over all of them.
    """

    requests: int = 0
    retries: int = 0
    inputs: int = 0
    billed_tokens: int = 0
    estimated_tokens: int = 0
    waited_s: float = 0.0

    def __post_init__(self) -> None:
        self.on_change: Callable[[TotalUsage], object] | None = None
        self._lock = threading.Lock()

    def add(self, other: TotalUsage) -> None:
        """Add what other calls cost, and call `on_change`, if it is set, one call at a time."""
        with self._lock:
            for name, value in other.to_dict().items():
                setattr(self, name, getattr(self, name) + value)
            if self.on_change is not None:
                self.on_change(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def __bool__(self) -> bool:
        return any(self.to_dict().values())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self.to_dict().values())  # a lock cannot be pickled


_collectors: contextvars.ContextVar[tuple[TotalUsage, ...]] = contextvars.ContextVar("embedreg_totals", default=())


def collectors() -> tuple[TotalUsage, ...]:
    """Return the totals that calls in this context add to."""
    return _collectors.get()


@contextmanager
def collect(total: TotalUsage) -> Iterator[TotalUsage]:
    """Add to a total what the calls inside of this block cost, and those of threads that get a copy of its context."""
    token = _collectors.set((*_collectors.get(), total))
    try:
        yield total
    finally:
        _collectors.reset(token)
