"""Calls without requests: the inputs of a call are gathered for a vendor's batch API, or its results are returned.

A job reads a piece twice. The first time, each function's inputs are gathered and no row gets a vector; the second
time, the vectors that the service has computed meanwhile are returned. So nulls, duplicates, caches and policies are
those of any other run.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from embedreg.core.role import Role
from embedreg.errors import RowError

__all__ = ["Collected", "Gathered", "Instead", "instead", "instead_of_requests"]

_PENDING = RowError("it is not embedded yet")


class Instead(Protocol):
    """Handles inputs instead of a request."""

    def take(self, function: Any, inputs: Sequence[Any], role: Role) -> list[Any]:
        """Return a vector or a RowError for each input, or None for one that is to be sent after all."""


class Gathered:
    """Gathers the inputs of calls.

    Attributes:
        inputs: function -> its distinct inputs, in the order of the rows.
    """

    def __init__(self) -> None:
        self.inputs: dict[Any, dict[Any, None]] = {}

    def take(self, function: Any, inputs: Sequence[Any], role: Role) -> list[Any]:
        if role != "source":
            return [None] * len(inputs)
        self.inputs.setdefault(function, {}).update(dict.fromkeys(inputs))
        return [_PENDING] * len(inputs)


class Collected:
    """Returns vectors that are known already.

    Args:
        results: function -> input -> (d,) float32, or a RowError.
    """

    def __init__(self, results: Mapping[Any, Mapping[Any, Any]]) -> None:
        self.results = results

    def take(self, function: Any, inputs: Sequence[Any], role: Role) -> list[Any]:
        known = self.results.get(function, {}) if role == "source" else {}
        return [known.get(each) for each in inputs]


_instead: contextvars.ContextVar[Instead | None] = contextvars.ContextVar("embedreg_instead", default=None)


def instead() -> Instead | None:
    """Return what takes the place of requests in this context; None for nothing."""
    return _instead.get()


@contextmanager
def instead_of_requests(given: Instead) -> Iterator[None]:
    """Take the inputs of remote functions in this block instead of sending them."""
    token = _instead.set(given)
    try:
        yield
    finally:
        _instead.reset(token)
