"""Exact nearest neighbours over Arrow batches."""

import numpy as np
import pyarrow as pa
import pytest

from embedreg.arrow.vectors import DENSE
from embedreg.cli.nearest import Asked, fused, nearest
from embedreg.errors import VectorError

N, D = 500, 8
MATRIX = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
QUERY = np.random.default_rng(1).normal(size=D).astype(np.float32)


def table(matrix: np.ndarray, kind: str = "fixed") -> pa.Table:
    """Rows with an id and a vector, in one of Arrow's list types."""
    flat = pa.array(matrix.reshape(-1))
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(flat, D)
    else:
        offsets = pa.array(range(0, len(flat) + 1, D), pa.int64() if kind == "large" else pa.int32())
        column = (pa.LargeListArray if kind == "large" else pa.ListArray).from_arrays(offsets, flat)
    return pa.table({"id": range(len(matrix)), "vector": column})


def asked(metric: str, query: np.ndarray = QUERY, vector: str = "vector") -> Asked:
    """What is looked for in a column of vectors."""
    return Asked(vector, DENSE, query, len(query), metric)


def expected(metric: str) -> np.ndarray:
    """All distances at once, by the definitions."""
    if metric == "l2":
        return ((MATRIX - QUERY) ** 2).sum(1)
    dot = MATRIX @ QUERY
    return 1 - (dot if metric == "dot" else dot / np.linalg.norm(MATRIX, axis=1) / np.linalg.norm(QUERY))


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
@pytest.mark.parametrize("batch_rows", [1, 7, N])
def test_the_nearest_rows_do_not_depend_on_the_batches(metric: str, batch_rows: int, kind: str) -> None:
    """Whatever the batches and the list type, the result is that of one sort of all distances."""
    rows, distances = nearest(table(MATRIX, kind).to_batches(batch_rows), asked(metric), 10, ["id"])
    best = np.argsort(expected(metric))[:10]
    assert rows is not None
    assert rows.column("id").to_pylist() == best.tolist()
    np.testing.assert_allclose(distances, expected(metric)[best], rtol=1e-4, atol=1e-5)


def test_null_zero_and_nan_vectors_are_never_found() -> None:
    """A row without a direction has no cosine: it is passed over, and the others are found."""
    vectors = [None, [0.0, 0.0], [float("nan"), 1.0], [1.0, 0.0], None]
    data = pa.table({"id": range(5), "vector": pa.array(vectors, pa.list_(pa.float32(), 2))})
    rows, distances = nearest(data.to_batches(2), asked("cosine", np.array([1.0, 0.0])), 5, ["id"])
    assert rows is not None
    assert (rows.column("id").to_pylist(), distances.tolist()) == ([3], [0.0])


def test_sliced_batches_keep_their_rows_and_vectors_together() -> None:
    """A slice of a fixed-size list shares its parent's values; each row keeps its own."""
    sliced = table(MATRIX).slice(100, 50)
    rows, distances = nearest(sliced.to_batches(), asked("l2", MATRIX[120]), 1, ["id"])
    assert rows is not None
    assert (rows.column("id").to_pylist(), distances.tolist()) == ([120], [0.0])


def test_float16_vectors_are_compared_in_float32() -> None:
    """Half-precision columns are searched too."""
    half = pa.table({"id": range(N), "vector": pa.array(list(MATRIX.astype(np.float16)), pa.list_(pa.float16(), D))})
    rows, distances = nearest(half.to_batches(), asked("cosine", MATRIX[3]), 1, ["id"])
    assert rows is not None
    assert rows.column("id").to_pylist() == [3]
    assert distances.dtype == np.float32
    assert distances[0] < 1e-3


@pytest.mark.parametrize("column", [pa.array([[1.0, 2.0]]), pa.array(["text"]), pa.array([["a"]])])
def test_vectors_of_another_width_or_kind_are_refused(column: pa.Array) -> None:
    """A column that the query cannot be compared with is an error, not an empty answer."""
    with pytest.raises(VectorError, match="Hint"):
        nearest(pa.table({"vector": column}).to_batches(), asked("cosine"), 1, [])


def test_no_batches_give_no_rows() -> None:
    """An empty file is searched without complaint."""
    rows, distances = nearest([], asked("cosine"), 3, ["id"])
    assert rows is None
    assert distances.shape == (0,)


def test_rankings_are_fused_by_reciprocal_ranks() -> None:
    """By hand: the sum of 1 / (60 + rank), whatever the batches; a row that one search does not find counts once."""
    one = [[1.0, 0], [0.9, 0.1], [0, 1], [-1, 0]]
    two = [[0, 1.0], [1, 0], None, [0.9, 0.1]]
    kind = pa.list_(pa.float32(), 2)
    data = pa.table({"id": range(4), "a": pa.array(one, kind), "b": pa.array(two, kind)})
    query = np.array([1.0, 0.0])
    wanted = [asked("cosine", query, "a"), asked("cosine", query, "b")]
    for batch_rows in (1, 4):
        rows, scores = fused(data.to_batches(batch_rows), wanted, 3, ["id"])
        assert rows is not None
        assert rows["id"].to_pylist() == [1, 0, 3]
        assert (-scores).tolist() == pytest.approx([1 / 62 + 1 / 61, 1 / 61 + 1 / 63, 1 / 64 + 1 / 62])
    assert fused([], wanted, 3, ["id"])[0] is None
