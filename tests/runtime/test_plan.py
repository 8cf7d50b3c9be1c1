"""Which rows go through the model together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedreg.runtime.plan import MIN_BUDGET, padded_tokens, plan

lengths_of = st.lists(st.integers(0, 600), max_size=300).map(lambda values: np.array(values, np.int64))


@given(lengths_of, st.integers(1, 4096), st.integers(1, 50) | st.none(), st.integers(1, 8))
def test_every_row_is_planned_once_within_the_bounds(
    lengths: np.ndarray, budget: int, max_rows: int | None, lanes: int
) -> None:
    """Whatever the lengths and bounds, each row is in one batch, and no batch of several rows is over a bound."""
    batches = plan(lengths, budget, max_rows=max_rows, lanes=lanes)
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


def test_few_rows_are_shared_among_the_lanes() -> None:
    """Less than a budget for each lane is cut finer, down to batches that would be too small."""
    assert len(plan(np.full(16, 64), 1024, lanes=2)) == 2
    assert len(plan(np.full(4, 8), 1024, lanes=8)) == 1
    assert len(plan(np.full(4, MIN_BUDGET), 1024, lanes=8)) == 4


def test_no_rows_need_no_batch() -> None:
    """Nothing in, nothing out."""
    assert plan(np.zeros(0, np.int64), 1024) == []
    assert padded_tokens(np.zeros(0, np.int64), []) == 0
