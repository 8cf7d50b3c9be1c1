"""Vectors between what functions return, numpy and Arrow. No vector becomes a Python list here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.errors import RowError, VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Embedded", "as_matrix", "complete_and_finite", "given_vectors", "to_arrow"]


@dataclass
class Embedded:
    """The vectors of one column.

    Attributes:
        matrix: (n, d) float32; rows that are not valid are zeros.
        valid: (n,) bool.
        reasons: row -> why it failed; a null or blank input is neither valid nor here.
        distinct: how many different inputs there were.
        cached: how many of these the vector cache knew; the others reached the function.
    """

    matrix: np.ndarray
    valid: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    distinct: int = 0
    cached: int = 0

    @classmethod
    def empty(cls, n: int, d: int) -> Embedded:
        """Make n rows without vectors."""
        import numpy as np

        return cls(np.zeros((n, d), np.float32), np.zeros(n, bool))

    def laid_out(self, index: np.ndarray) -> Embedded:
        """Return the vectors of n rows, where these are of m distinct inputs; without a copy if all are different.

        Args:
            index: (n,) the place of each row among the distinct inputs, -1 for none.
        """
        import numpy as np

        n, m = len(index), len(self.valid)
        if n == m and not self.reasons and self.valid.all() and np.array_equal(index, np.arange(n)):
            return self
        rows = np.flatnonzero(index >= 0)
        places = index[rows]
        good = self.valid[places]
        made = Embedded.empty(n, self.matrix.shape[1])
        made.distinct, made.cached = self.distinct, self.cached
        made.matrix[rows[good]] = self.matrix[places[good]]
        made.valid[rows[good]] = True
        if self.reasons:
            pairs = zip(rows.tolist(), places.tolist(), strict=True)
            made.reasons = {row: self.reasons[place] for row, place in pairs if place in self.reasons}
        return made

    def to_arrow(self, value_type: Any = None) -> pa.Array:
        """Return the column as a FixedSizeListArray, without a copy for float32."""
        import pyarrow as pa

        return to_arrow(self.matrix, self.valid, pa.list_(value_type or pa.float32(), self.matrix.shape[1]))


def as_matrix(result: Any, n: int, d: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Check what a function returned for n inputs.

    Args:
        result: an (n, d) array of any kind (numpy, torch, Arrow), or n vectors with None or a RowError for a row that
            failed.
    Returns:
        (n, d) float32, (n,) which rows are valid, and row -> why it is not.
    Raises:
        VectorError: another number of rows, no row of the right width, or not numbers.
    """
    import numpy as np

    result = _to_numpy(result)
    if isinstance(result, np.ndarray) and result.dtype != object:
        if result.ndim == 1 and n == 1 and result.shape == (d,):
            result = result[None, :]  # LanceDB-style functions squeeze the answer for one input
        if result.ndim != 2 or result.shape != (n, d):
            raise _wrong_shape(n, d, result.shape)
        matrix = _floats(result)
        valid = np.ones(n, bool)
    else:
        matrix, valid, reasons = _from_rows(list(result), n, d)
        return matrix, *_finite(matrix, valid, reasons)
    return matrix, *_finite(matrix, valid, {})


def _to_numpy(result: Any) -> Any:
    if hasattr(result, "detach"):  # a torch tensor, on any device; bfloat16 has no numpy dtype
        result = result.detach().float().cpu().numpy()
    elif hasattr(result, "combine_chunks") or (hasattr(result, "flatten") and hasattr(result, "null_count")):
        array = result.combine_chunks() if hasattr(result, "combine_chunks") else result
        size = getattr(array.type, "list_size", None)
        if size is not None and not array.null_count:
            return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), size)
        result = array.to_pylist()
    return result


def _floats(array: np.ndarray) -> np.ndarray:
    import numpy as np

    if array.dtype.kind not in "fiu":
        raise VectorError(f"the function returned vectors of {array.dtype}.", "return an (n, d) array of floats")
    return np.ascontiguousarray(array, np.float32)


def _from_rows(rows: list[Any], n: int, d: int) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    import numpy as np

    if len(rows) != n:
        raise _wrong_shape(n, d, (len(rows), "?"))
    matrix, valid, reasons = np.zeros((n, d), np.float32), np.zeros(n, bool), {}
    widths = set()
    for index, row in enumerate(rows):
        if row is None:
            reasons[index] = "the function returned no vector"
        elif isinstance(row, RowError):
            reasons[index] = row.message
        else:
            try:
                vector = np.asarray(_to_numpy(row), np.float32)
            except (TypeError, ValueError):
                raise VectorError(
                    "the function returned vectors that are not numbers.", "return lists of floats"
                ) from None
            widths.add(vector.shape)
            if vector.shape == (d,):
                matrix[index], valid[index] = vector, True
            else:
                reasons[index] = f"the function returned {vector.size} dimensions for it instead of {d}"
    if widths and (d,) not in widths:
        raise _wrong_shape(n, d, (n, *next(iter(widths))))
    return matrix, valid, reasons


def _finite(matrix: np.ndarray, valid: np.ndarray, reasons: dict[int, str]) -> tuple[np.ndarray, dict[int, str]]:
    """Mark the rows that hold NaN or infinity."""
    import numpy as np

    if not _all_finite(matrix):
        broken = valid & ~np.isfinite(matrix).all(axis=1)
        reasons |= {int(row): "its vector is not finite" for row in np.flatnonzero(broken)}
        valid = valid & ~broken
        matrix[broken] = 0
    return valid, reasons


def _all_finite(values: np.ndarray) -> bool:
    """Say whether no float is NaN or infinite; without memory for an answer a float, as the extremes tell."""
    import numpy as np

    return not values.size or bool(np.isfinite(values.max()) and np.isfinite(values.min()))


def _wrong_shape(n: int, d: int, shape: tuple[Any, ...]) -> VectorError:
    return VectorError(
        f"the function returned vectors of shape {shape} for {n} inputs; ({n}, {d}) was expected.",
        "return one vector of ndims() numbers for each input",
    )


def complete_and_finite(column: pa.Array) -> bool:
    """Say whether a FixedSizeListArray has a vector in every row, all of finite floats; without a copy."""
    if column.null_count:
        return False
    values = column.flatten()
    if values.null_count:
        return False
    return _all_finite(values.to_numpy(zero_copy_only=False))


def given_vectors(column: pa.Array, d: int, name: str) -> tuple[Embedded, dict[int, str]]:
    """Read a vector column that the data brought.

    Returns:
        Its vectors, valid where there is one, and row -> why a given vector cannot stay (not finite).
    Raises:
        VectorError: a vector of another width, or a column of another kind.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise VectorError(
            f"column {name!r} is {kind}, not a list of floats.", "drop or rename it, or cast it to list<float>"
        )
    present = np.asarray(column.is_valid())
    vectors = column.filter(pa.array(present))
    widths = (
        {kind.list_size}
        if pa.types.is_fixed_size_list(kind)
        else set(pc.list_value_length(vectors).unique().to_pylist())
    )
    if widths - {d}:
        other = ", ".join(map(str, sorted(widths - {d})))
        raise VectorError(
            f"column {name!r} holds vectors of {other} dimensions, its function gives {d}.",
            "drop the column to embed it anew, or declare the function that made it",
        )
    values = vectors.flatten()
    number = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    if not number and values.null_count < len(values):
        raise VectorError(f"column {name!r} holds vectors that are not numbers.", "drop the column to embed it anew")
    given = Embedded.empty(len(column), d)
    if values.null_count:
        values = values.cast(pa.float64()).fill_null(float("nan"))  # a null among its numbers spoils its own row only
    with np.errstate(over="ignore"):  # what float32 does not hold is infinite, hence not finite below
        given.matrix[present] = values.to_numpy(zero_copy_only=False).reshape(-1, d)
    given.valid, reasons = _finite(given.matrix, present, {})
    return given, dict.fromkeys(reasons, "its given vector is not finite")


def to_arrow(matrix: np.ndarray, valid: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Turn (n, d) vectors into a FixedSizeListArray, zero-copy for float32; rows that are not valid become null."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(kind) or kind.list_size != matrix.shape[1]:
        raise VectorError(
            f"{matrix.shape[1]}-dimensional vectors do not fit a column of {kind}.", "declare Vector(fn.ndims())"
        )
    wanted = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float64}.get(kind.value_type)
    if wanted is None:
        raise VectorError(f"a vector column cannot hold {kind.value_type}.", "use float32 or float16")
    flat = pa.array(np.ascontiguousarray(matrix, wanted).reshape(-1))
    mask = None if valid.all() else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)
