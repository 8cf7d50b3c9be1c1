"""Multi-vectors, of late interaction: k vectors of d dimensions in each row, where k differs from row to row.

In Arrow they are `list<fixed_size_list<float32 | float16, d>>`, the type of LanceDB's multi-vector columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.arrow.kind import Agreement, Read, VectorKind
from embedreg.arrow.ragged import Ragged, Row, offsets_of, read_rows
from embedreg.arrow.vectors import (
    MAX_NDIMS,
    as_numbers,
    distance_of,
    listed_rows,
    named,
    numbers_in,
    refuse_outage,
    zero_rows,
)
from embedreg.errors import VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["MULTI", "MultiVectors"]

PROBE_VECTORS = 32  # that a declaration keeps of the fixed input, evenly spaced: a page image has a thousand
MAX_TOKENS = 2**31 - 1  # vectors of one column, whose Arrow offsets are int32
_HINT = "return one (k, ndims()) array for each input, in a list, without padding"


class MultiVectors(Ragged):
    """The multi-vectors of n rows; row i has the vectors `values[offsets[i] : offsets[i + 1]]`.

    A function may return them, for n inputs, instead of a list of n arrays.

    Attributes:
        values: (total, d) float32.
        offsets: (n + 1,) int64, ascending from 0 to total.
    """

    __slots__ = ()

    def __init__(self, values: np.ndarray, offsets: np.ndarray) -> None:
        import numpy as np

        super().__init__((values,), np.asarray(offsets, np.int64))

    @property
    def values(self) -> np.ndarray:
        """The vectors of all rows: (total, d) float32."""
        return self.arrays[0]

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the vectors of a row: (k, d) float32, a view."""
        row = range(len(self))[row]
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class MultiKind(VectorKind):
    """Rows of several vectors."""

    name: ClassVar[str] = "multi"
    plural: ClassVar[str] = "multi-vectors"
    one_size: ClassVar[bool] = False
    max_ndims: ClassVar[int] = MAX_NDIMS
    value_types: ClassVar[tuple[str, ...]] = ("float32", "float16")
    type_hint: ClassVar[str] = "MultiVector({d})"
    no_direction: ClassVar[str] = "it has no vectors, or only vectors of zeros"
    sql: ClassVar[Mapping[str, str]] = {"duckdb": "FLOAT[{d}][]"}
    sql_score: ClassVar[Mapping[str, str]] = {
        "duckdb": "list_sum(list_transform({q}, lambda x: list_max(list_transform({v}, lambda y: {similarity}(x, y)))))"
    }

    # -- rows in memory ---------------------------------------------------------------------------------------------

    def empty(self, n: int, d: int) -> MultiVectors:
        import numpy as np

        return MultiVectors(np.zeros((0, d), np.float32), np.zeros(n + 1, np.int64))

    def width(self, rows: Any) -> int:
        return int(rows.values.shape[1])

    def joined(self, parts: Sequence[Any], d: int) -> MultiVectors:
        return parts[0] if len(parts) == 1 else self.empty(0, d).joined(parts)

    def spread(self, rows: Any, index: np.ndarray) -> Any:
        return rows.spread(index)

    def put(self, rows: Any, places: Any, new: Any) -> Any:
        return rows.put(places, new)

    def one(self, rows: Any, row: int) -> np.ndarray:
        return rows[row].copy()  # type: ignore[no-any-return]

    def zeros(self, rows: Any) -> np.ndarray:
        import numpy as np

        return np.flatnonzero(_sizes(rows.values, rows) == 0)

    def distances(self, rows: Any, query: Any, metric: str) -> np.ndarray:
        """Return the sum over the query's vectors of their distance to the nearest vector of each row (MaxSim).

        Source: Khattab and Zaharia 2020, "ColBERT", section 3.1; computed on distances, as in LanceDB.
        """
        import numpy as np

        values, query = rows.values, np.asarray(query, np.float32)
        if metric == "cosine":
            values, query = (_unit(each) for each in (values, query))
        found = np.full(len(rows), np.inf, np.float32)
        full = np.flatnonzero(rows.lengths)
        if len(full):
            away = 1 - values @ query.T
            if metric == "l2":
                away = np.square(values).sum(axis=1, keepdims=True) + np.square(query).sum(axis=1) + 2 * (away - 1)
            found[full] = np.minimum.reduceat(away, rows.offsets[full]).sum(axis=1)
        return found

    def shown_metric(self, metric: str) -> str:
        return "maxsim" if metric == "cosine" else metric

    def in_half(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        with np.errstate(over="ignore"):
            half = rows.values.astype(np.float16)
        lost = np.zeros(len(rows), bool)
        lost[rows.owners[~np.isfinite(half).all(axis=1)]] = True
        return lost, np.flatnonzero(_sizes(half, rows) == 0)

    # -- a function's results ---------------------------------------------------------------------------------------

    def read(self, result: Any, n: int, d: int, control: Callable[[], bool] | None = None) -> Read:
        """Check a function's result for n inputs; vectors of zeros are padding, and left out.

        Args:
            result: `MultiVectors`, or n arrays of shape (k, d) with None or a RowError for a failed row. An array of
                three axes is refused, since it is not known which of its vectors are padding.
        """
        import numpy as np

        if isinstance(result, MultiVectors):
            if len(result) != n or result.values.ndim != 2 or result.values.shape[1] != d:
                raise VectorError(
                    f"the function returned {len(result)} rows of {result.values.shape[1:]} for {n} inputs; "
                    f"{n} rows of vectors of {d} dimensions were expected.",
                    _HINT,
                )
            offsets, total = result.offsets, len(result.values)
            if offsets[0] or offsets[-1] != total or (np.diff(offsets) < 0).any():
                raise VectorError("the function returned rows whose offsets are not ascending from 0 to the end.")
            rows, valid = MultiVectors(np.ascontiguousarray(result.values, np.float32), offsets), np.ones(n, bool)
            reasons: dict[int, str] = {}
        else:
            nested = bool(getattr(result, "is_nested", False))
            if getattr(result, "ndim", 0) == 3 and not nested:
                raise VectorError(
                    f"the function returned an array of shape {tuple(result.shape)} for {n} inputs, in which padding "
                    "cannot be recognised.",
                    "return a list of (k, ndims()) arrays without padding; list(array) where no row has any",
                )
            result = result.unbind() if nested else result
            listed = listed_rows(result, n, f"a list of {n} arrays of shape (k, {d})")

            def convert(value: Any) -> Row:
                return _converted(value, n, d)

            arrays, offsets, valid, reasons = read_rows(listed, convert, (np.empty((0, d), np.float32),), _HINT)
            rows = MultiVectors(arrays[0], offsets)
        finite = np.isfinite(rows.values).all(axis=1) if len(rows.values) else np.zeros(0, bool)
        if not finite.all():
            broken = np.zeros(n, bool)
            broken[rows.owners[~finite]] = True
            given = int(valid.sum())
            rows, valid = rows.without(broken), valid & ~broken
            reasons |= dict.fromkeys(np.flatnonzero(broken).tolist(), "its vectors are not finite")
            if not valid.any():
                refuse_outage(given, control)
        zero = zero_rows(rows.values)
        if len(zero):
            kept = np.ones(len(rows.values), bool)
            kept[zero] = False
            rows = rows.kept(kept)
        return Read(rows, valid, reasons)

    # -- Arrow ------------------------------------------------------------------------------------------------------

    def arrow_type(self, d: int, value_type: pa.DataType | None = None) -> pa.DataType:
        import pyarrow as pa

        return pa.list_(pa.list_(value_type or pa.float32(), d))

    def holds(self, kind: pa.DataType) -> bool:
        import pyarrow as pa

        plain = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return bool(plain and _is_list(kind.value_type) and pa.types.is_floating(kind.value_type.value_type))

    def of_fixed_width(self, kind: pa.DataType) -> bool:
        import pyarrow as pa

        return bool(pa.types.is_list(kind) and pa.types.is_fixed_size_list(kind.value_type) and self.holds(kind))

    def value_type(self, kind: pa.DataType) -> pa.DataType:
        return kind.value_type.value_type

    def to_arrow(self, rows: Any, valid: np.ndarray, kind: pa.DataType) -> pa.Array:
        import numpy as np
        import pyarrow as pa

        d = rows.values.shape[1]
        if not self.fits(kind, d):
            raise VectorError(f"multi-vectors of {d} dimensions do not fit a column of {kind}.", "MultiVector(d)")
        wanted = {pa.float16(): np.float16, pa.float32(): np.float32}.get(self.value_type(kind))
        if wanted is None:
            raise VectorError(f"a multi-vector column cannot hold {self.value_type(kind)}.", "use float32 or float16")
        rows = rows.without(~valid)
        if len(rows.values) > MAX_TOKENS:
            raise VectorError(f"{len(rows.values):,} vectors do not fit one column.", "batch_rows=8192 bounds a batch")
        flat = pa.array(np.ascontiguousarray(rows.values, wanted).reshape(-1))
        inner = pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type)
        mask = None if valid.all() else pa.array(~valid)
        return pa.ListArray.from_arrays(pa.array(rows.offsets.astype(np.int32)), inner, type=kind, mask=mask)

    def given(self, column: pa.Array, d: int, name: str, kind: Any = None) -> Read:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self.holds(column.type):
            raise VectorError(
                f"column {name!r} is {column.type}, not a list of vectors.",
                f"drop or rename it, or cast it to {self.arrow_type(d)}",
            )
        valid = np.asarray(column.is_valid())
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        vectors, offsets = column.flatten(), offsets_of(lengths)
        present = np.asarray(vectors.is_valid())
        widths = np.full(len(vectors), getattr(vectors.type, "list_size", -1))
        if not pa.types.is_fixed_size_list(vectors.type):
            widths = pc.list_value_length(vectors).fill_null(-1).to_numpy(zero_copy_only=False)
        if other := sorted({*np.unique(widths[present]).tolist()} - {d}):
            raise VectorError(
                f"column {name!r} holds vectors of {', '.join(map(str, other))} dimensions, its function returns {d}.",
                "drop the column to embed it again, or declare the function that made it",
            ).for_shell("--vector NAME writes to another column; embedreg attach declares the function that made this")
        values = np.full((len(vectors), d), np.nan, np.float32)
        values[present] = numbers_in(vectors.drop_null().flatten()).reshape(-1, d)
        rows = MultiVectors(values, offsets)
        reasons = self._without_broken(rows, np.isfinite(values).all(axis=1), "its given vectors are not finite")
        if kind == pa.float16():
            with np.errstate(over="ignore"):
                fits = np.isfinite(values.astype(np.float16)).all(axis=1)
            large = self._without_broken(rows, fits, "its given vectors contain numbers too large for float16")
            reasons = large | reasons
        broken = np.zeros(len(column), bool)
        broken[list(reasons)] = True
        return Read(rows.without(broken), valid & ~broken, reasons)

    @staticmethod
    def _without_broken(rows: MultiVectors, good: Any, why: str) -> dict[int, str]:
        return {} if good.all() else dict.fromkeys(sorted({*rows.owners[~good].tolist()}), why)

    def complete(self, column: pa.Array, d: int) -> bool:
        return not column.null_count and bool(self.given(column, d, "vector").valid.all())

    def width_of(self, kind: pa.DataType) -> int | None:
        return getattr(getattr(kind, "value_type", None), "list_size", None)

    def to_objects(self, rows: Any, value_type: str | None) -> list[Any]:
        return [
            rows[row].tolist() if value_type is None else list(rows[row].astype(value_type, copy=False))
            for row in range(len(rows))
        ]

    def zeros_in(self, column: pa.Array, d: int) -> int:
        return len(self.zeros(self.given(column, d, "vector").rows))

    # -- bytes and the probe ----------------------------------------------------------------------------------------

    def packed(self, rows: Any) -> list[bytes]:
        values = rows.values.astype("<f4", copy=False)
        return [values[rows.offsets[row] : rows.offsets[row + 1]].tobytes() for row in range(len(rows))]

    def sizes(self, d: int) -> tuple[int, int]:
        return 0, 4 * d

    def unpacked(self, parts: Sequence[bytes], d: int) -> tuple[MultiVectors, np.ndarray]:
        import numpy as np

        lengths = np.fromiter((len(part) // (4 * d) for part in parts), np.int64, len(parts))
        values = np.frombuffer(b"".join(parts), "<f4").reshape(-1, d).astype(np.float32)
        rows = MultiVectors(values, offsets_of(lengths))
        good = np.ones(len(parts), bool)
        good[rows.owners[~np.isfinite(values).all(axis=1)]] = False
        return rows, good

    def probe_bytes(self, vector: Any) -> bytes:
        return _sample(vector).astype("<f4").tobytes()

    def probe_read(self, data: bytes, d: int | None) -> np.ndarray | None:
        import numpy as np

        if d is None or not data or len(data) % (4 * d) or len(data) // (4 * d) > PROBE_VECTORS:
            return None
        found = np.frombuffer(data, "<f4").reshape(-1, d).astype(np.float32)
        return found if np.isfinite(found).all() and not len(zero_rows(found)) else None

    def agreement(self, now: Any, stored: Any) -> Agreement:
        import numpy as np

        now, stored = _sample(now), _sample(stored)
        if now.shape != stored.shape:
            return Agreement(None, why=f"{_shape(now)}, stored {_shape(stored)}")
        one, other = now.astype(np.float64), stored.astype(np.float64)
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines = np.divide((one * other).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)
        return Agreement(float(cosines.min(initial=1)), (float(np.linalg.norm(other)), float(np.linalg.norm(one))))

    def apart(self, one: Any, other: Any) -> float:
        return distance_of(one, other)

    def numbers(self, vector: Any) -> np.ndarray:
        return _sample(vector).reshape(-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _sizes(values: np.ndarray, rows: MultiVectors) -> np.ndarray:
    """Return how many vectors of each row are not zeros: (n,)."""
    import numpy as np

    zero = zero_rows(values)
    return rows.lengths - np.bincount(rows.owners[zero], minlength=len(rows)) if len(zero) else rows.lengths


def _converted(value: Any, n: int, d: int) -> Row:
    import numpy as np

    array = as_numbers(value)
    if array is None:
        why = f"the function returned {named(value)} for it that is not an array of numbers"
        return Row(None, why, f"the function returned rows that are not arrays of numbers, but {named(value)}.")
    if not array.size:
        return Row((np.empty((0, d), np.float32),))
    if array.ndim != 2 or array.shape[1] != d:
        why = f"the function returned an array of shape {array.shape} for it instead of (k, {d})"
        return Row(None, why, f"the function returned arrays of shape {array.shape} for {n} inputs; (k, {d}) expected.")
    return Row((array,))


def _sample(vectors: np.ndarray) -> np.ndarray:
    """Return at most `PROBE_VECTORS` of some vectors, evenly spaced, the first and the last among them."""
    import numpy as np

    k = len(vectors)
    return vectors if k <= PROBE_VECTORS else vectors[np.linspace(0, k - 1, PROBE_VECTORS).round().astype(int)]


def _shape(vectors: np.ndarray) -> str:
    return f"{vectors.shape[0]} vectors of {vectors.shape[1]} dimensions"


MULTI = MultiKind()
