"""Plans batches: rows are sorted by their number of tokens and cut by a budget of padded tokens.

The cost of a batch is its padded tokens, so rows of similar length are batched together, and a batch of short rows
holds more rows than one of long rows. With a few thousand rows there is almost no padding.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["padded_tokens", "plan", "share"]

# Padded tokens; the matrix products of smaller batches are slow, so cutting a small call finer gains nothing.
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
    """Cut rows into batches, longest rows first, so that running out of memory shows in the first batch.

    Args:
        lengths: (n,) tokens of each row.
        budget: maximum padded tokens (rows times the longest row) of a batch; a longer row is a batch of its own.
        max_rows: maximum rows of a batch; None for no limit.
        workers: number of batches that run in parallel; batches are cut so that no worker is idle at the end.
        least: padded tokens; no batch is made smaller than this to keep the workers busy.
        start_cost: fixed cost of a batch, in tokens: batches are then cut to minimise this cost plus the padding.
            None: they are filled up to the budget, which is faster to plan.
    Returns:
        The row numbers of each batch; each row is in exactly one batch.
    """
    import numpy as np

    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    sizes = np.maximum(lengths[order], 1)
    part = -(-int(sizes.sum()) // max(workers, 1))
    rounds = -(-part // budget)
    even = -(-part // rounds) + int(sizes[-1]) - 1  # a row that exceeds the even size slightly still fits
    budget = min(budget, max(even, least))
    most = len(order) if max_rows is None else max_rows
    cuts = _filled(sizes, budget, most) if start_cost is None else _cheapest(sizes, budget, most, start_cost)
    return [order[start:stop] for start, stop in itertools.pairwise(cuts)]


def _filled(sizes: np.ndarray, budget: int, most: int) -> list[int]:
    """Return the starts of the batches, and the end: each batch has as many rows as fit into the budget."""
    cuts = [0]
    while cuts[-1] < len(sizes):
        cuts.append(min(cuts[-1] + min(max(1, budget // int(sizes[cuts[-1]])), most), len(sizes)))
    return cuts


def _cheapest(sizes: np.ndarray, budget: int, most: int, start_cost: int) -> list[int]:
    """Return the starts of the batches, and the end, that minimise padded tokens plus start costs.

    Source: dynamic programming over the last cut; sizes decrease, so the first row of a batch is its longest.
    """
    import numpy as np

    n, long = len(sizes), sizes.tolist()
    cost = np.zeros(n + 1, np.int64)
    came = np.zeros(n + 1, np.int64)
    counts = np.arange(n, 0, -1)  # rows from each start to the end; its tail counts rows up to any stop
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
    """Assign batches to workers of equal speed, each batch to the worker with the fewest padded tokens so far.

    The assignment is static, since a worker that queues its work on a device is always free to take more.

    Returns:
        The batches of each worker, in order; a worker may have none.
    Source: Graham 1969, "Bounds on multiprocessing timing anomalies" (longest processing time first).
    """
    assigned: list[list[np.ndarray]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for rows in batches:
        worker = loads.index(min(loads))
        assigned[worker].append(rows)
        loads[worker] += padded_tokens(lengths, [rows])
    return assigned


def padded_tokens(lengths: np.ndarray, batches: list[np.ndarray]) -> int:
    """Return the number of tokens of the batches when each is padded to its longest row."""
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches)
