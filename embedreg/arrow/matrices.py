"""Sparse matrices and rows of any library as flat arrays, without an import of that library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from embedreg.arrow.ragged import Row, offsets_of
from embedreg.arrow.vectors import as_numbers, named
from embedreg.errors import VectorError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["flat_matrix", "flat_row"]


def flat_matrix(result: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]] | None:
    """Return the indices, weights, offsets and shape of a matrix of any library; None for anything else."""
    import numpy as np

    if _is_tensor(result) and result.ndim == 2:
        result = result.detach()
        if "sparse_csr" in str(result.layout):
            parts = result.col_indices(), result.values(), result.crow_indices()
        else:
            result = (result.to_sparse() if _is_dense(result) else result).coalesce()
            rows, columns = result.indices()
            parts = columns, result.values(), offsets_of(np.bincount(rows.cpu().numpy(), minlength=result.shape[0]))
        indices, values, offsets = (_array(each) for each in parts)
        return indices, _weights(values), offsets, tuple(result.shape)
    if hasattr(result, "tocsr") and getattr(result, "ndim", 2) == 2:
        result = result.tocsr()
        return result.indices, _weights(result.data), np.asarray(result.indptr, np.int64), tuple(result.shape)
    if isinstance(result, np.ndarray) and result.dtype != object and result.ndim == 2:
        rows, columns = np.nonzero(result)
        offsets = offsets_of(np.bincount(rows, minlength=len(result)))
        return columns, _weights(result[rows, columns]), offsets, result.shape
    return None


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "layout")


def _is_dense(tensor: Any) -> bool:
    """Return whether a tensor is not sparse, without an import of torch."""
    return "strided" in str(tensor.layout)


def _array(value: Any) -> np.ndarray:
    import numpy as np

    if hasattr(value, "cpu"):
        value = value.cpu()
        value = value.float() if value.is_floating_point() else value  # bfloat16 has no numpy dtype
        return value.numpy()  # type: ignore[no-any-return]
    return np.asarray(value)


def _weights(values: Any) -> np.ndarray:
    """Return numbers as float32; those that are too large become infinite."""
    numbers = as_numbers(values) if len(values) else as_numbers([0.0])[:0]  # type: ignore[index]
    if numbers is None:
        raise VectorError(f"the function returned weights of {values.dtype}.", "return floats")
    return numbers


def flat_row(value: Any) -> Row:
    """Convert one row: a pair, a dict, or a sparse tensor of one axis."""
    import numpy as np

    if _is_tensor(value) and value.ndim == 1 and not _is_dense(value):
        value = value.detach().coalesce()
        value = _array(value.indices()[0]), _array(value.values())
    elif isinstance(value, Mapping):
        value = list(value), list(value.values())
    if not isinstance(value, list | tuple) or len(value) != 2:
        why = f"the function returned {named(value)} for it that is not a pair (indices, weights)"
        return Row(None, why, f"the function returned rows that are not pairs (indices, weights), but {named(value)}.")
    try:
        indices = np.asarray(_array(value[0]))
    except (TypeError, ValueError):
        indices = np.empty((0, 0))
    weights = as_numbers(value[1]) if np.shape(value[1]) != (0,) else np.empty(0, np.float32)
    if not indices.size and indices.ndim == 1:
        indices = indices.astype(np.int64)
    if weights is None or indices.ndim != 1 or indices.shape != weights.shape or indices.dtype.kind not in "iu":
        why = "the function returned indices and weights for it that are not two lists of one length"
        return Row(None, why, "the function returned pairs that are not indices and weights of one length.")
    return Row((indices.astype(np.int64), weights))
