"""Which rows go through the model together."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedreg.runtime.text.plan import MIN_BUDGET, padded_tokens, plan, share

lengths_of = st.lists(st.integers(0, 600), max_size=300).map(lambda values: np.array(values, np.int64))


starts = st.integers(0, 200) | st.none()


@given(lengths_of, st.integers(1, 4096), st.integers(1, 50) | st.none(), st.integers(1, 8), starts)
def test_every_row_is_planned_once_within_the_bounds(
    lengths: np.ndarray, budget: int, max_rows: int | None, workers: int, start_cost: int | None
) -> None:
    """Whatever the lengths and bounds, each row is in one batch, and no batch of several rows is over a bound."""
    batches = plan(lengths, budget, max_rows=max_rows, workers=workers, start_cost=start_cost)
    rows = np.concatenate([*batches, np.zeros(0, np.int64)]).astype(np.int64)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= (max_rows or len(lengths))
        assert len(batch) == 1 or len(batch) * max(int(lengths[batch].max()), 1) <= budget


def test_longest_rows_come_first() -> None:
    """The batch that needs the most memory runs first, and rows of equal length keep their order."""
    batches = plan(np.array([3, 9, 9, 1]), 9)
    assert [batch.tolist() for batch in batches] == [[1], [2], [0, 3]]


def test_little_is_left_of_padding_over_a_few_thousand_rows() -> None:
    """Lengths as texts have them, planned 4,000 at a time, cost 3% of padding; as they come, more than 100%."""
    lengths = np.random.default_rng(0).lognormal(3.7, 0.8, 4000).astype(np.int64).clip(3, 256)
    tokens = int(lengths.sum())
    assert padded_tokens(lengths, plan(lengths, 1024)) < 1.03 * tokens
    assert padded_tokens(lengths, np.array_split(np.arange(4000), 125)) > 2 * tokens


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 200), st.integers(0, 60))
def test_no_other_cut_is_cheaper(values: list[int], budget: int, start_cost: int) -> None:
    """With `start_cost`, no way to cut the sorted rows within the budget costs less in padded tokens and starts."""
    lengths = np.array(values, np.int64)
    batches = plan(lengths, budget, start_cost=start_cost, least=budget)
    rows = sorted(values, reverse=True)
    costs = []
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        ends = [at + 1 for at, cut in enumerate(cuts) if cut]
        parts = [rows[start:stop] for start, stop in itertools.pairwise([0, *ends, len(rows)])]
        if all(len(part) == 1 or len(part) * part[0] <= budget for part in parts):
            costs.append(sum(len(part) * part[0] + start_cost for part in parts))
    assert padded_tokens(lengths, batches) + start_cost * len(batches) == min(costs)


def test_a_small_call_is_cut_where_lengths_change() -> None:
    """Two hundred rows of mixed lengths have a third of padding in full batches, and a tenth where starts are cheap."""
    lengths = np.random.default_rng(0).lognormal(2.6, 0.8, 200).astype(np.int64).clip(3, 256)
    tokens = int(lengths.sum())
    assert padded_tokens(lengths, plan(lengths, 1024)) > 1.25 * tokens
    batches = plan(lengths, 1024, start_cost=32)
    assert padded_tokens(lengths, batches) + 32 * len(batches) < 1.2 * tokens


def test_no_worker_is_left_over_at_the_end() -> None:
    """Rows of one length make a number of batches that the workers share evenly, and not one more."""
    for n in (40, 100, 200, 333, 1000):
        for start_cost in (None, 32):
            batches = plan(np.full(n, 33), 1024, workers=2, start_cost=start_cost)
            loads = [padded_tokens(np.full(n, 33), part) for part in share(np.full(n, 33), batches, 2)]
            assert max(loads) < 1.03 * sum(loads) / 2 + 33


def test_few_rows_are_shared_among_the_workers() -> None:
    """Less than a budget for each worker is cut finer, down to batches that would be too small."""
    assert len(plan(np.full(16, 64), 1024, workers=2)) == 2
    assert len(plan(np.full(4, 8), 1024, workers=8)) == 1
    assert len(plan(np.full(4, MIN_BUDGET), 1024, workers=8)) == 4


def test_no_rows_need_no_batch() -> None:
    """Nothing in, nothing out."""
    assert plan(np.zeros(0, np.int64), 1024) == []
    assert padded_tokens(np.zeros(0, np.int64), []) == 0


@given(lengths_of, st.integers(1, 4096), st.integers(1, 8))
def test_every_batch_is_assigned_to_one_worker_and_none_has_much_more(
    lengths: np.ndarray, budget: int, workers: int
) -> None:
    """Workers get all batches between them, and the fullest is over the emptiest by no more than one batch."""
    batches = plan(lengths, budget, workers=workers)
    dealt = share(lengths, batches, workers)
    assert len(dealt) == workers
    assert sorted(id(rows) for part in dealt for rows in part) == sorted(map(id, batches))
    loads = [padded_tokens(lengths, part) for part in dealt]
    assert max(loads) - min(loads) <= max((padded_tokens(lengths, [rows]) for rows in batches), default=0)


def test_workers_that_cost_more_than_they_save_are_not_used() -> None:
    """With `least`, few rows are not cut into crumbs for the sake of more workers."""
    assert len(plan(np.full(40, 50), 32_768, workers=8, least=1000)) == 2
