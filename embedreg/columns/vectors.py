"""Stored vectors as matrices: how they agree with new ones, and in which number type they once were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedreg.arrow.vectors import given_vectors
from embedreg.core.kinds import kind_of_type
from embedreg.errors import VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["SAME", "STORAGE", "cosines", "matrix_of", "refuse_type", "storage_of", "unit", "width_of"]

SAME = 0.999  # the cosine from which two vectors count as one; see docs/benchmarks.md
STORAGE = {
    "float16": "stored after rounding to float16",
    "bfloat16": "stored after rounding to bfloat16",
    "int8": "stored after quantising to int8",
    "uint8": "stored after quantising to uint8",
    "binary": "stored as its signs, packed into int8",
    "ubinary": "stored as its signs, packed into uint8",
    "reduced": "computed in a number type coarser than float32, as bfloat16",
}
"""The number types that `storage_of` distinguishes, in words."""

_ROUNDING = 0.9998  # the cosine from which a difference is rounding alone: int8 stays above 0.9999
_ROUNDED = 2e-5  # the largest difference of unit vectors that float32 alone explains, in any back end
_LEVELS = 256  # of int8
_OFF_GRID = 0.05  # of a level: what float32 rounds
_FEW_NUMBERS = 8  # of a vector, too few to infer a number type
_ROWS_A_DIMENSION = 64  # rows that determine the levels of a dimension


def refuse_type(kind: pa.DataType, name: str) -> None:
    """Raise `VectorError` for a column that does not hold one vector a row.

    Args:
        kind: its Arrow type.
        name: its name, for the message.
    """
    import pyarrow as pa

    vectors = kind_of_type(kind)
    if vectors is not None and not vectors.one_size:
        raise VectorError(
            f"column {name!r} holds {vectors.plural}; audit, compare and identify read one vector a row.",
            "embedreg.check_drift(data) compares the probe, columns.repoint(data, vector, function) a sample of rows",
        ).for_shell("embedreg inspect --check compares the probe, embedreg column repoint a sample of rows")
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise VectorError(f"column {name!r} is {kind} and holds no vectors.", "name a column of lists of floats")


def width_of(column: Any, name: str) -> int | None:
    """Return the width of the vectors in an Arrow column: of its type, else of its first vector; None without one."""
    import pyarrow as pa

    refuse_type(column.type, name)
    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    first = next((value for value in column if value.is_valid), None)
    return None if first is None else len(first.values)


def matrix_of(column: Any, name: str, width: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a vector column.

    Args:
        column: an Arrow array, chunked or not.
        name: the column's name, for messages.
        width: the width that the vectors must have; by default that of the column.
    Returns:
        (n, d) float32, rows without a finite vector are zeros; (n,) the rows that have a vector; (n,) those of them
        that are not finite.
    Raises:
        VectorError: the column holds no vectors, or vectors of several widths.
    """
    import numpy as np
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    found = width_of(column, name)
    width = found if width is None else width
    if width is None:
        empty = np.zeros(len(column), bool)
        return np.zeros((len(column), 0), np.float32), empty, empty.copy()
    given, broken = given_vectors(column, width, name)
    nonfinite = np.zeros(len(column), bool)
    nonfinite[list(broken)] = True
    return given.matrix, given.valid | nonfinite, nonfinite


def unit(matrix: np.ndarray) -> np.ndarray:
    """Return rows scaled to length 1 as float64; rows of zeros stay."""
    import numpy as np

    wide = matrix.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths > 0, lengths, 1))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of two matrices of unit rows or zeros: (n,); two rows of zeros agree."""
    import numpy as np

    made = (one * other).sum(axis=1)
    return np.asarray(np.where(one.any(axis=1) | other.any(axis=1), made, 1.0))


def storage_of(stored: np.ndarray, made: np.ndarray, agreement: np.ndarray) -> str | None:
    """Return the number type that stored vectors went through, if the function's own vectors do not have it.

    Args:
        stored: (n, d) float32, as stored.
        made: (n, d) float32, the function's vectors of the same rows.
        agreement: (n,) their cosines.
    Returns:
        "float16", "bfloat16" or "int8", whose numbers the stored ones all are; "reduced" for a difference that float32
        does not explain, as of a model that computed in bfloat16; None for none, or if few rows agree.
    """
    import numpy as np

    kept = stored.any(axis=1) & made.any(axis=1) & (agreement >= _ROUNDING)
    if stored.shape[1] < _FEW_NUMBERS or kept.sum() * 2 < len(stored) or not kept.any():
        return None
    stored, made = stored[kept], made[kept]
    for name, holds in (("int8", _is_int8), ("float16", _is_float16), ("bfloat16", _is_bfloat16)):
        if holds(stored):
            return None if holds(made) else name
    return "reduced" if float(np.abs(unit(stored) - unit(made)).max()) > _ROUNDED else None


def _is_float16(rows: np.ndarray) -> bool:
    import numpy as np

    with np.errstate(over="ignore"):
        return bool((rows.astype(np.float16).astype(np.float32) == rows).all())


def _is_bfloat16(rows: np.ndarray) -> bool:
    import numpy as np

    return not (np.ascontiguousarray(rows, np.float32).view(np.uint32) & 0xFFFF).any()


def _is_int8(rows: np.ndarray) -> bool:
    """Return whether the numbers of each row, or of each dimension, are evenly spaced and at most 256."""
    return all(map(_even, rows)) or (len(rows) >= _ROWS_A_DIMENSION and all(map(_even, rows.T)))


def _even(numbers: np.ndarray) -> bool:
    import numpy as np

    levels = np.unique(numbers.astype(np.float64))
    if len(levels) == len(numbers) or not 2 < len(levels) <= _LEVELS:
        return len(levels) == 2
    span = float(levels[-1] - levels[0])
    steps = round(span / float(np.min(np.diff(levels))))
    if steps > _LEVELS:
        return False
    places = (levels - levels[0]) / span * steps
    return bool(np.abs(places - np.round(places)).max() < _OFF_GRID)
