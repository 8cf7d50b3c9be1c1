"""Which rows go through the model together: sorted by token count, cut by a budget of padded tokens.

A batch costs what its padded tokens cost, so rows of about one length belong together, and a batch of short rows may
hold more of them than one of long rows. Over a few thousand rows next to no padding is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["padded_tokens", "plan"]

# Below this a batch is too small for its matrix products to be quick, and cutting a small call finer gains nothing.
MIN_BUDGET = 128


def plan(lengths: np.ndarray, budget: int, *, max_rows: int | None = None, lanes: int = 1) -> list[np.ndarray]:
    """Cut rows into batches, longest rows first: what needs most memory fails at once or never.

    Args:
        lengths: (n,) tokens of each row.
        budget: the most padded tokens (rows times the longest of them) of a batch; a longer row is a batch by itself.
        max_rows: the most rows of a batch; None for no bound.
        lanes: how many batches run side by side; few rows are cut finer, so that each lane has some.
    Returns:
        The row numbers of each batch; each row is in exactly one.
    """
    import numpy as np

    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    sizes = np.maximum(lengths[order], 1)
    share = -(-int(sizes.sum()) // max(lanes, 1))
    budget = min(budget, max(share, MIN_BUDGET))
    batches = []
    start = 0
    while start < len(order):
        rows = max(1, budget // int(sizes[start]))
        stop = start + (rows if max_rows is None else min(rows, max_rows))
        batches.append(order[start:stop])
        start = stop
    return batches


def padded_tokens(lengths: np.ndarray, batches: list[np.ndarray]) -> int:
    """Return how many tokens the batches hold once each is padded to its longest row."""
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches)
