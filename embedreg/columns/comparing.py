"""`compare`: two functions on the rows of one column, before one replaces the other."""

from __future__ import annotations

from typing import Any

from embedreg.columns.opening import opened
from embedreg.errors import ConfigError

__all__ = ["compare"]


def compare(
    data: Any,
    vector: str,
    other: Any,
    *,
    function: Any = None,
    pairs: Any = None,
    queries: Any = None,
    k: int = 10,
    corpus: int = 20_000,
    sample: int = 200,
    seed: int = 0,
) -> Any:
    """Compare what two functions find on the same rows."""
    raise ConfigError(f"{opened(data).shown} cannot be compared by this version.", "embedreg.check_drift(data)")
