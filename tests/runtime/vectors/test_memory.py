"""Vectors of recent inputs: bounded, exact, and never one input's for another."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from embedreg.runtime.vectors.memory import KEY_BYTES, RecentVectors, keys_of


def rows(*numbers: float) -> np.ndarray:
    """Return a vector of two dimensions for each number."""
    return np.array([[number, number + 0.5] for number in numbers], np.float32)


def test_what_was_put_is_found() -> None:
    """A vector comes back as it was; an input that is not known is reported as unknown."""
    recent = RecentVectors(2, max_rows=10, max_bytes=10**6)
    recent.put(["a", "b"], rows(1, 2))
    vectors, known = recent.get(["b", "x", "a"])
    assert known.tolist() == [True, False, True]
    assert vectors.tolist() == rows(2, 1).tolist()
    vectors[:] = 0
    assert recent.get(["a"])[0].tolist() == rows(1).tolist(), "what is given out is the caller's own"


def test_what_was_not_used_for_longest_goes_first() -> None:
    """Full, it makes room; what was read lately stays."""
    recent = RecentVectors(2, max_rows=3, max_bytes=10**6)
    recent.put(["a", "b", "c"], rows(1, 2, 3))
    recent.get(["a"])
    recent.put(["d"], rows(4))
    assert recent.get(["a", "b", "c", "d"])[1].sum() == 3
    assert recent.get(["a", "d"])[1].all()


@pytest.mark.parametrize(
    ("max_rows", "max_bytes", "capacity"), [(5, 10**6, 5), (10**6, 4 * (8 + KEY_BYTES), 4), (0, 10**6, 0), (9, 0, 0)]
)
def test_the_bounds_hold(max_rows: int, max_bytes: int, capacity: int) -> None:
    """Rows and bytes both bound it; with room for none it keeps none."""
    recent = RecentVectors(2, max_rows=max_rows, max_bytes=max_bytes)
    recent.put([str(k) for k in range(20)], rows(*range(20)))
    assert len(recent) == capacity
    vectors, known = recent.get([str(k) for k in range(20)])
    assert vectors.tolist() == rows(*np.flatnonzero(known)).tolist()
    assert known[20 - capacity :].all(), "of more than there is room for, the last stay"


def test_it_is_right_whatever_comes_and_goes() -> None:
    """Against a plain dict, under thousands of puts and evictions from several threads."""
    recent = RecentVectors(2, max_rows=37, max_bytes=10**6)
    wrong: list[int] = []

    def work(seed: int) -> None:
        numbers = np.random.default_rng(seed)
        for _ in range(300):
            put = numbers.integers(0, 90, numbers.integers(1, 60)).tolist()
            recent.put(put, rows(*put))
            asked = numbers.integers(0, 90, 20)
            vectors, known = recent.get(asked.tolist())
            wrong.extend(np.flatnonzero(vectors[:, 0] != asked[known]).tolist())
            if len(recent) > 37:
                wrong.append(-1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()], ids=str)
def test_a_key_is_of_one_input_only(kind: pa.DataType) -> None:
    """Short and long inputs, and those that are other inputs' digests, all have keys of their own."""
    long = "x" * 5000
    (digest,) = keys_of(pa.array([long.encode()], pa.binary()))
    values = ["a", "b", "", long, long + "y"] + (
        [] if "string" in str(kind) else [digest, keys_of(pa.array([digest]))[0]]
    )
    keys = keys_of(pa.array(values, kind))
    assert len(set(keys)) == len(values)
    assert keys == keys_of(pa.array(values, kind))
    assert max(len(key) for key in keys) <= 64


def test_a_slice_has_the_keys_of_its_own_rows() -> None:
    """Arrow slices share buffers with what they were cut from."""
    values = pa.array([f"text {k}" for k in range(10)], pa.large_string())
    assert keys_of(values.slice(3, 4)) == keys_of(values)[3:7]
