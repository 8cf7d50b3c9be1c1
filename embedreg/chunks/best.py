"""Searches of chunks: the parents that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from embedreg.errors import MissingColumnError

__all__ = ["best_chunks"]


def best_chunks(rows: Iterable[Mapping[str, Any]], key: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Return the best chunk of each parent, in the order of a search.

    Args:
        rows: the search's rows, nearest first, such as `table.search("text").limit(100).to_list()`.
        key: the column that identifies parents.
        limit: how many parents at most.
    Raises:
        MissingColumnError: a row has no such column.
    """
    found: dict[Any, dict[str, Any]] = {}
    for row in rows:
        if key not in row:
            raise MissingColumnError(f"the rows have no column {key!r}.", f"columns: {', '.join(map(str, row))}")
        if limit is not None and len(found) >= limit and row[key] not in found:
            break
        found.setdefault(row[key], dict(row))
    return list(found.values())
