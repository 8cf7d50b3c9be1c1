"""The truncation policy of local text functions, for texts that exceed the model's limit of tokens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from embedreg.errors import RowError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Truncate", "settled", "unreported"]

log = logging.getLogger("embedreg")

Truncate: TypeAlias = Literal["warn", "error", "silent"]

_reported: ContextVar[bool] = ContextVar("_reported", default=True)


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Log nothing of truncated texts: vectors that are only compared are stored nowhere."""
    token = _reported.set(False)
    try:
        yield
    finally:
        _reported.reset(token)


def settled(vectors: np.ndarray, truncated: np.ndarray, policy: Truncate, limit: int | None, name: str) -> Any:
    """Apply the policy to truncated rows: return an array, or a list with a RowError for each truncated row.

    Args:
        vectors: (n, d) float32.
        truncated: (n,) bool, the rows that exceed the model's limit of tokens.
        limit: maximum number of tokens that the model reads of a text.
        name: the model's name.
    """
    count, rows = int(truncated.sum()), len(truncated)
    if count and policy == "error":
        problem = RowError(
            f"it is longer than the {limit} tokens that the model {name!r} takes",
            "split it into passages, or truncate='warn' to embed its beginning",
        )
        return [problem if cut else row for row, cut in zip(vectors, truncated, strict=True)]
    if count and policy == "warn" and _reported.get():
        log.warning(
            "%d of %d text(s) are longer than the %s tokens that %s takes: only their beginning was embedded "
            "(truncate='error' or 'silent' changes that)",
            count,
            rows,
            limit,
            name,
        )
    return vectors
