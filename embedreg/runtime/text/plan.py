"""Which rows go through the model together: sorted by token count, cut by a budget of padded tokens.

A batch costs what its padded tokens cost, so rows of about one length belong together, and a batch of short rows may
hold more of them than one of long rows. Over a few thousand rows next to no padding is left.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["padded_tokens", "plan", "share"]

# Below this a batch is too small for its matrix products to be quick, and cutting a small call finer gains nothing.
MIN_BUDGET = 128


def plan(
    lengths: np.ndarray,
    budget: int,
    *,
    max_rows: int | None = None,
    workers: int = 1,
    least: int = MIN_BUDGET,
    start_cost: int | None = None,
) -> list[np.ndarray]:
    """Cut rows into batches, longest rows first: what needs most memory fails at once or never.

    Args:
        lengths: (n,) tokens of each row.
        budget: the most padded tokens (rows times the longest of them) of a batch; a longer row is a batch by itself.
        max_rows: the most rows of a batch; None for no bound.
        workers: how many batches run side by side; the batches are cut so that no worker is idle at the end.
        least: padded tokens; no batch is cut finer than this to keep the workers busy.
        start_cost: what a batch costs beside its padded tokens, in tokens: batches are then cut where that and the
            padding together are least. None: they are filled up to the budget, which is quicker to plan.
    Returns:
        The row numbers of each batch; each row is in exactly one.
    """
    import numpy as np

    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    sizes = np.maximum(lengths[order], 1)
    part = -(-int(sizes.sum()) // max(workers, 1))
    rounds = -(-part // budget)
    even = -(-part // rounds) + int(sizes[-1]) - 1  # room for a row that would just not fit
    budget = min(budget, max(even, least))
    most = len(order) if max_rows is None else max_rows
    cuts = _filled(sizes, budget, most) if start_cost is None else _cheapest(sizes, budget, most, start_cost)
    return [order[start:stop] for start, stop in itertools.pairwise(cuts)]


def _filled(sizes: np.ndarray, budget: int, most: int) -> list[int]:
    """Return where batches begin, and the end: each takes as many rows as the budget has room for."""
    cuts = [0]
    while cuts[-1] < len(sizes):
        cuts.append(min(cuts[-1] + min(max(1, budget // int(sizes[cuts[-1]])), most), len(sizes)))
    return cuts


def _cheapest(sizes: np.ndarray, budget: int, most: int, start_cost: int) -> list[int]:
    """Return where batches begin, and the end, so that padded tokens and starts cost least in all.

    Source: dynamic programming over the last cut; sizes fall, so the first row of a batch is its longest.
    """
    import numpy as np

    n, long = len(sizes), sizes.tolist()
    cost = np.zeros(n + 1, np.int64)
    came = np.zeros(n + 1, np.int64)
    counts = np.arange(n, 0, -1)  # of rows, from each start to the end; its tail is that from a start to any stop
    first = 0
    for stop in range(1, n + 1):
        while stop - first > 1 and (stop - first > most or (stop - first) * long[first] > budget):
            first += 1
        costs = cost[first:stop] + counts[n - stop + first :] * sizes[first:stop]
        best = int(costs.argmin())
        came[stop], cost[stop] = first + best, costs[best] + start_cost
    cuts = [n]
    while cuts[-1]:
        cuts.append(int(came[cuts[-1]]))
    return cuts[::-1]


def share(lengths: np.ndarray, batches: list[np.ndarray], workers: int) -> list[list[np.ndarray]]:
    """Deal batches out to workers that are equally fast, each next one to the worker with the fewest padded tokens.

    Dealt out beforehand, and not taken as workers get free: one that queues its work on a device is free at once.

    Returns:
        The batches of each worker, in their order; a worker may get none.
    Source: Graham 1969, "Bounds on multiprocessing timing anomalies" (longest processing time first).
    """
    dealt: list[list[np.ndarray]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for rows in batches:
        worker = loads.index(min(loads))
        dealt[worker].append(rows)
        loads[worker] += padded_tokens(lengths, [rows])
    return dealt


def padded_tokens(lengths: np.ndarray, batches: list[np.ndarray]) -> int:
    """Return how many tokens the batches hold once each is padded to its longest row."""
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches)
