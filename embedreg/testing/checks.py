"""Helpers of the contract's tests: messages, a strict reader of results, a comparison, kinds of input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embedreg.arrow.vectors import _to_numpy
from embedreg.core.base import EmbeddingFunction
from embedreg.core.modality import TEXT, source_modality
from embedreg.errors import RowError

__all__ = ["FORMS", "Agreement", "embed", "flaw", "has_text", "read", "require"]


def flaw(what: str, hint: str) -> BaseException:
    """Return a test failure that states what is wrong and how to fix it, without a traceback through the suite."""
    # Not an assert: python -O removes those, and pytest explains them only in test files.
    return pytest.fail.Exception(f"{what}\nHint: {hint}", pytrace=False)


def require(condition: Any, what: str, hint: str) -> None:
    """Fail the test unless the condition holds."""
    if not condition:
        raise flaw(what, hint)


def has_text(function: EmbeddingFunction) -> bool:
    """Return whether the source rows of a function are texts."""
    return source_modality(function) is TEXT


def embed(function: EmbeddingFunction, rows: Any, n: int | None = None) -> np.ndarray:
    """Embed source rows as an engine does, and read the result strictly: (n, d) float64."""
    return read(function.compute_source_embeddings(rows), len(rows) if n is None else n, function.ndims())


def read(result: Any, n: int, d: int) -> np.ndarray:
    """Read a function's result for n rows that can all be embedded.

    `embed_column` accepts more, but what only it accepts costs other callers an error or a copy.

    Returns:
        (n, d) float64, a copy.
    """
    array = _to_numpy(result)
    if isinstance(array, np.ndarray) and array.dtype != object:
        require(
            array.shape == (n, d),
            f"{n} row(s) gave an array of shape {array.shape}, expected ({n}, {d}).",
            "return one vector of ndims() numbers per row, with two axes even for one row or none: "
            "np.empty((len(texts), self.ndims()), np.float32), and no squeeze()",
        )
        return array.astype(np.float64)
    require(
        hasattr(array, "__iter__"),
        f"{n} row(s) gave a {type(result).__name__}.",
        "return an (n, d) array, or a list of n vectors",
    )
    rows = list(array)
    require(
        len(rows) == n, f"{n} row(s) gave {len(rows)} vectors.", "return one vector per row, in the order of the rows"
    )
    out = np.empty((n, d))
    for number, row in enumerate(rows):
        if row is None or isinstance(row, RowError):
            why = "None" if row is None else f"RowError({row.message!r})"
            raise flaw(
                f"row {number} of the inputs gave {why} instead of a vector.",
                "override the fixture `inputs` with rows that the function can embed",
            )
        try:
            vector = np.asarray(_to_numpy(row), np.float64)
        except (TypeError, ValueError):
            raise flaw(
                f"row {number} gave a value that is not a vector of numbers.", "return lists of floats"
            ) from None
        require(
            vector.shape == (d,),
            f"row {number} gave a vector of shape {vector.shape}, but ndims() returns {d}.",
            "return the actual width from ndims()",
        )
        out[number] = vector
    return out


@dataclass(frozen=True)
class Agreement:
    """Compares vectors that should be the same.

    Attributes:
        tolerance: the maximum distance of two vectors, over the length of the longer one.
        deterministic: whether such a comparison is meaningful.
    """

    tolerance: float
    deterministic: bool

    def __call__(self, got: np.ndarray, expected: np.ndarray, what: str, hint: str) -> None:
        """Fail the test if a row of (n, d) `got` differs from that of (n, d) `expected`."""
        if not self.deterministic:
            pytest.skip("the fixture `deterministic` is False, so two equal calls may differ: nothing to compare")
        length = np.maximum(np.linalg.norm(got, axis=1), np.linalg.norm(expected, axis=1))
        apart = np.linalg.norm(got - expected, axis=1) / np.where(length == 0, 1.0, length)
        bad = np.flatnonzero(~(apart <= self.tolerance))  # NaN is bad too
        if not len(bad):
            return
        worst = int(bad[np.argmax(np.nan_to_num(apart[bad], nan=np.inf))])
        raise flaw(
            f"{what}: {len(bad)} of {len(got)} row(s) differ, row {worst} by {apart[worst]:.2g} of its length "
            f"(tolerance {self.tolerance:.2g}).",
            hint,
        )


def _chunked(values: list[Any]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values[:1]), pa.array(values[1:])])


def _sliced(values: list[Any]) -> pa.Array:
    """Return an Arrow array that starts in the middle of its buffers, like a batch of a larger table."""
    return pa.array([values[-1], *values, values[0]]).slice(1, len(values))


def _large(values: list[Any]) -> pa.Array:
    array = pa.array(values)
    return array.cast(pa.large_string() if pa.types.is_string(array.type) else pa.large_binary())


def _objects(values: list[Any]) -> np.ndarray:
    made = np.empty(len(values), object)
    made[:] = values
    return made


FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "arrow": pa.array,
    "arrow-large": _large,  # pandas 3 and polars
    "arrow-sliced": _sliced,
    "arrow-dictionary": lambda values: pa.array(values).dictionary_encode(),
    "arrow-chunked": _chunked,
    "numpy-objects": _objects,
    "numpy": np.array,  # texts become numpy strings, a subclass of str
}
"""The kinds of column that an engine or a user may pass, by name."""
