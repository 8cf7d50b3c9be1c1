"""Sparse vectors: the indices and the weights of the dimensions that are not zero.

In Arrow they are `struct<indices: list<int32>, values: list<float32>>`, indices ascending and distinct, no zero
weight: the two lists that Qdrant and Pinecone take, of types that Parquet, Lance and DuckDB store. The number of
dimensions is in the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from embedreg.arrow.kind import Agreement, Read, VectorKind
from embedreg.arrow.matrices import flat_matrix, flat_row
from embedreg.arrow.ragged import Ragged, offsets_of, read_rows
from embedreg.arrow.vectors import distance_of, listed_rows, numbers_in, numeric, refuse_outage
from embedreg.errors import VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["SPARSE", "SparseEmbedding", "SparseVectors"]

MAX_NDIMS = 2**31 - 1  # of int32 indices; no memory is allocated for the width
PROBE_WEIGHTS = 1024  # that a declaration keeps of the fixed input, the largest
_IDENTIFYING = 2**-10  # of the largest weight: smaller ones depend on the processor
_HINT = "return a CSR matrix of n rows, or n pairs (indices, weights)"
_PAIRS = "return pairs (indices, weights) of equal length, indices whole numbers"


class SparseEmbedding(NamedTuple):
    """One sparse vector, as `embed_query` returns it.

    Attributes:
        indices: (m,) int32, ascending and distinct.
        values: (m,) float32, none of them zero.
    """

    indices: np.ndarray
    values: np.ndarray


class SparseVectors(Ragged):
    """The sparse vectors of n rows; row i is `[offsets[i] : offsets[i + 1]]` of `indices` and `values`.

    Attributes:
        indices: (total,) int32, ascending and distinct in each row.
        values: (total,) float32.
        offsets: (n + 1,) int64, ascending from 0 to total.
        ndims: the number of dimensions.
    """

    __slots__ = ("ndims",)

    def __init__(self, indices: np.ndarray, values: np.ndarray, offsets: np.ndarray, ndims: int) -> None:
        import numpy as np

        super().__init__((indices, values), np.asarray(offsets, np.int64))
        self.ndims = ndims

    @property
    def indices(self) -> np.ndarray:
        """The indices of all rows: (total,) int32."""
        return self.arrays[0]

    @property
    def values(self) -> np.ndarray:
        """The weights of all rows: (total,) float32."""
        return self.arrays[1]

    def __getitem__(self, row: int) -> SparseEmbedding:
        """Return a row; views."""
        row = range(len(self))[row]
        start, stop = self.offsets[row], self.offsets[row + 1]
        return SparseEmbedding(self.indices[start:stop], self.values[start:stop])


class SparseKind(VectorKind):
    """Rows of a few weights each."""

    name: ClassVar[str] = "sparse"
    plural: ClassVar[str] = "sparse vectors"
    one_size: ClassVar[bool] = False
    unsearchable_in_lancedb: ClassVar[str | None] = "it has neither a distance nor an index for them"
    max_ndims: ClassVar[int] = MAX_NDIMS
    value_types: ClassVar[tuple[str, ...]] = ("float32",)
    type_hint: ClassVar[str] = "SparseVector({d})"
    no_direction: ClassVar[str] = "it has no weights"
    sql: ClassVar[Mapping[str, str]] = {"duckdb": "STRUCT(indices INTEGER[], values FLOAT[])"}
    sql_score: ClassVar[Mapping[str, str]] = {
        "duckdb": "list_sum(list_transform(list_zip({v}.indices, {v}.values),\n"
        "    lambda p: p[2] * coalesce({q}.values[list_position({q}.indices, p[1])], 0)))"
    }

    # -- rows in memory ---------------------------------------------------------------------------------------------

    def empty(self, n: int, d: int) -> SparseVectors:
        import numpy as np

        return SparseVectors(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(n + 1, np.int64), d)

    def width(self, rows: Any) -> int:
        return int(rows.ndims)

    def joined(self, parts: Sequence[Any], d: int) -> SparseVectors:
        return parts[0] if len(parts) == 1 else self.empty(0, d).joined(parts)

    def spread(self, rows: Any, index: np.ndarray) -> Any:
        return rows.spread(index)

    def put(self, rows: Any, places: Any, new: Any) -> Any:
        return rows.put(places, new)

    def one(self, rows: Any, row: int) -> SparseEmbedding:
        found = rows[row]
        return SparseEmbedding(found.indices.copy(), found.values.copy())

    def zeros(self, rows: Any) -> np.ndarray:
        import numpy as np

        return np.flatnonzero(rows.lengths == 0)

    def distances(self, rows: Any, query: Any, metric: str) -> np.ndarray:
        """Return the distances; infinite for a row that shares no dimension with the query: that is not a match."""
        import numpy as np

        if metric not in ("cosine", "dot"):
            raise VectorError(f"sparse vectors have no distance {metric!r}.", "metric='dot' or 'cosine'")
        weights = _weights_at(query, rows.indices)
        dot: np.ndarray = np.bincount(rows.owners, rows.values * weights, len(rows))
        shared = np.bincount(rows.owners, weights != 0, len(rows)) > 0
        if metric == "cosine":
            lengths = np.sqrt(np.bincount(rows.owners, rows.values.astype(np.float64) ** 2, len(rows)))
            dot = dot / np.where(shared, lengths * np.linalg.norm(query.values), 1)
        return np.where(shared, 1 - dot, np.inf).astype(np.float32)

    def in_half(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        raise VectorError("sparse vectors are stored as float32.", "SparseVector(n)")

    # -- a function's results ---------------------------------------------------------------------------------------

    def read(self, result: Any, n: int, d: int, control: Callable[[], bool] | None = None) -> Read:
        """Check a function's result for n inputs; weights of zero are left out.

        Args:
            result: `SparseVectors`; a CSR matrix as SciPy's (`indptr`, `indices`, `data`) or one with `tocsr()`; a
                sparse tensor of torch; an (n, d) array; or n pairs (indices, weights), dicts {index: weight} or sparse
                tensors of one axis, with None or a RowError for a failed row.
        """
        import numpy as np

        valid, reasons = np.ones(n, bool), dict[int, str]()
        own = isinstance(result, SparseVectors)
        found = (*result.arrays, result.offsets, (len(result), result.ndims)) if own else flat_matrix(result)
        if found is not None:
            indices, values, offsets, shape = found
            if shape != (n, d):
                raise VectorError(
                    f"the function returned sparse vectors of shape {shape} for {n} inputs; ({n}, {d}) was expected.",
                    _HINT,
                )
        else:
            listed = listed_rows(result, n, f"a CSR matrix of shape ({n}, {d})")
            none = np.empty(0, np.int64), np.empty(0, np.float32)
            (indices, values), offsets, valid, reasons = read_rows(listed, flat_row, none, _PAIRS)
        rows, broken, _ = _checked(indices, values, offsets, d)
        if broken:
            given = int(valid.sum())
            valid[list(broken)] = False
            reasons |= {row: f"the function returned {why}" for row, why in broken.items()}
            if not valid.any():
                if any(why != _NOT_FINITE for why in broken.values()):
                    raise VectorError(f"the function returned {next(iter(broken.values()))}.", _HINT)
                refuse_outage(given, control)
        return Read(rows, valid, reasons)

    # -- Arrow ------------------------------------------------------------------------------------------------------

    def arrow_type(self, d: int, value_type: pa.DataType | None = None) -> pa.DataType:
        import pyarrow as pa

        return pa.struct({"indices": pa.list_(pa.int32()), "values": pa.list_(value_type or pa.float32())})

    def holds(self, kind: pa.DataType) -> bool:
        import pyarrow as pa

        if not pa.types.is_struct(kind) or [field.name for field in kind] != ["indices", "values"]:
            return False
        parts = [field.type for field in kind]
        lists = all(pa.types.is_list(each) or pa.types.is_large_list(each) for each in parts)
        return bool(lists and pa.types.is_integer(parts[0].value_type) and pa.types.is_floating(parts[1].value_type))

    def fits(self, kind: pa.DataType, d: int) -> bool:
        return bool(self.arrow_type(d) == kind)

    def of_fixed_width(self, kind: pa.DataType) -> bool:
        return bool(self.arrow_type(0) == kind)

    def value_type(self, kind: pa.DataType) -> pa.DataType:
        return kind.field("values").type.value_type

    def to_arrow(self, rows: Any, valid: np.ndarray, kind: pa.DataType) -> pa.Array:
        import numpy as np
        import pyarrow as pa

        if not self.fits(kind, rows.ndims):
            raise VectorError(f"sparse vectors do not fit a column of {kind}.", f"SparseVector({rows.ndims})")
        rows = rows.without(~valid)
        if len(rows.values) > MAX_NDIMS:
            raise VectorError(f"{len(rows.values):,} weights do not fit one column.", "batch_rows=8192 bounds a batch")
        offsets = pa.array(rows.offsets.astype(np.int32))
        lists = [
            pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(each, number)), type=field.type)
            for each, number, field in zip(rows.arrays, (np.int32, np.float32), kind, strict=True)
        ]
        return pa.StructArray.from_arrays(lists, fields=list(kind), mask=None if valid.all() else pa.array(~valid))

    def given(self, column: pa.Array, d: int, name: str, kind: Any = None) -> Read:
        import numpy as np

        valid = np.asarray(column.is_valid())
        rows, broken, _ = self._stored(column, d, name)
        reasons = {row: f"its given vector has {why}" for row, why in broken.items() if valid[row]}
        valid[list(reasons)] = False
        return Read(rows, valid, reasons)

    def _stored(self, column: pa.Array, d: int, name: str) -> tuple[SparseVectors, dict[int, str], bool]:
        """Return the rows of a column, why some are invalid, and whether the others are as `to_arrow` writes them."""
        import numpy as np
        import pyarrow.compute as pc

        if not self.holds(column.type):
            raise VectorError(
                f"column {name!r} is {column.type}, not sparse vectors.",
                f"drop or rename it, or cast it to {self.arrow_type(d)}",
            )
        lists = column.flatten()
        sizes = [pc.list_value_length(each).fill_null(0).to_numpy(zero_copy_only=False) for each in lists]
        numbers = [each.flatten() for each in lists]
        if not all(map(numeric, numbers)):
            raise VectorError(f"column {name!r} holds weights that are not numbers.", "drop the column")
        indices, values = map(numbers_in, numbers)
        uneven = sizes[0] != sizes[1]
        if uneven.any():
            owners = [np.repeat(uneven, size) for size in sizes]
            indices, values = indices[~owners[0]], values[~owners[1]]
        if indices.dtype.kind == "f":  # a null among them
            indices = np.nan_to_num(indices, nan=-1).astype(np.int64)
        offsets = offsets_of(np.where(uneven, 0, sizes[0]))
        with np.errstate(over="ignore"):
            rows, broken, as_stored = _checked(indices, values.astype(np.float32, copy=False), offsets, d)
        broken |= dict.fromkeys(np.flatnonzero(uneven).tolist(), "not as many indices as weights")
        return rows, broken, as_stored

    def complete(self, column: pa.Array, d: int) -> bool:
        if column.null_count:
            return False
        _, broken, as_stored = self._stored(column, d, "vector")
        return as_stored and not broken

    def width_of(self, kind: pa.DataType) -> int | None:
        return None

    def to_objects(self, rows: Any, value_type: str | None) -> list[Any]:
        return [rows[row]._asdict() for row in range(len(rows))]

    def zeros_in(self, column: pa.Array, d: int) -> int:
        return len(self.zeros(self._stored(column, d, "vector")[0]))

    # -- bytes and the probe ----------------------------------------------------------------------------------------

    def packed(self, rows: Any) -> list[bytes]:
        return [_packed(rows[row]) for row in range(len(rows))]

    def sizes(self, d: int) -> tuple[int, int]:
        return 0, 8

    def unpacked(self, parts: Sequence[bytes], d: int) -> tuple[SparseVectors, np.ndarray]:
        import numpy as np

        lengths = np.fromiter((len(part) // 8 for part in parts), np.int64, len(parts))
        halves = [(part[: len(part) // 2], part[len(part) // 2 :]) for part in parts]
        indices = np.frombuffer(b"".join(half for half, _ in halves), "<i4").astype(np.int64)
        values = np.frombuffer(b"".join(half for _, half in halves), "<f4").astype(np.float32)
        rows, broken, as_stored = _checked(indices, values, offsets_of(lengths), d)
        good = np.full(len(parts), as_stored)
        good[list(broken)] = False
        return rows, good

    def probe_bytes(self, vector: Any) -> bytes:
        return _packed(_largest(vector))

    def probe_read(self, data: bytes, d: int | None) -> SparseEmbedding | None:
        if d is None or not data or len(data) % 8 or len(data) > 8 * PROBE_WEIGHTS:
            return None
        rows, good = self.unpacked([data], d)
        return self.one(rows, 0) if good[0] else None

    def agreement(self, now: Any, stored: Any) -> Agreement:
        import numpy as np

        now, stored = _largest(now), _largest(stored)
        _, mine, theirs = np.intersect1d(now.indices, stored.indices, assume_unique=True, return_indices=True)
        one, other = now.values.astype(np.float64), stored.values.astype(np.float64)
        lengths = float(np.linalg.norm(other)), float(np.linalg.norm(one))
        norms = lengths[0] * lengths[1]
        product = float(one[mine] @ other[theirs])
        return Agreement(product / norms if norms else float(len(one) == len(other)), lengths)

    def apart(self, one: Any, other: Any) -> float:
        import numpy as np

        indices = np.union1d(one.indices, other.indices)
        return distance_of(_weights_at(one, indices), _weights_at(other, indices))

    def numbers(self, vector: Any) -> np.ndarray:
        import numpy as np

        sizes = np.abs(vector.values)
        kept = sizes >= _IDENTIFYING * sizes.max(initial=0)
        return np.concatenate([vector.indices[kept].astype(np.float64), vector.values[kept].astype(np.float64)])


_NOT_FINITE = "weights that are not finite"


def _checked(
    indices: np.ndarray, values: np.ndarray, offsets: np.ndarray, d: int
) -> tuple[SparseVectors, dict[int, str], bool]:
    """Return rows with ascending indices and without zeros, and why some of them are invalid; those are emptied.

    Returns:
        The rows; row -> what is wrong with it; and whether the valid ones were in that form already.
    """
    import numpy as np

    n = len(offsets) - 1
    owners = np.repeat(np.arange(n), np.diff(offsets))
    broken: dict[int, str] = {}
    outside = (indices < 0) | (indices >= d)
    if outside.any():
        first = int(indices[outside][0])
        broken |= dict.fromkeys(np.unique(owners[outside]).tolist(), f"the index {first}, which is not in 0..{d - 1}")
    infinite = ~np.isfinite(values)
    if infinite.any():
        broken |= dict.fromkeys(np.unique(owners[infinite]).tolist(), _NOT_FINITE)
    step = np.diff(indices) > 0
    starts = offsets[1:-1]
    step[starts[(starts > 0) & (starts < len(indices))] - 1] = True  # between two rows
    as_stored = bool(step.all())
    if not as_stored:
        order = np.lexsort((indices, owners))
        indices, values = indices[order], values[order]
        twice = (np.diff(indices) == 0) & (np.diff(owners) == 0)
        if twice.any():
            broken |= dict.fromkeys(np.unique(owners[1:][twice]).tolist(), "an index twice")
    rows = SparseVectors(indices, values, offsets, d)
    if broken:
        emptied = np.zeros(n, bool)
        emptied[list(broken)] = True
        rows = rows.without(emptied)
    nonzero = rows.values != 0
    as_stored = as_stored and bool(nonzero.all())
    rows = rows.kept(nonzero)
    kept = rows.indices.astype(np.int32), rows.values.astype(np.float32)
    return SparseVectors(*kept, rows.offsets, d), broken, as_stored


def _weights_at(query: SparseEmbedding, indices: np.ndarray) -> np.ndarray:
    """Return a query's weight for each of some indices, 0 where it has none: (total,) float64."""
    import numpy as np

    if not len(query.indices):
        return np.zeros(len(indices))
    places = np.searchsorted(query.indices, indices).clip(max=len(query.indices) - 1)
    return np.where(query.indices[places] == indices, query.values[places], 0.0)


def _largest(vector: SparseEmbedding) -> SparseEmbedding:
    """Return at most `PROBE_WEIGHTS` of the weights of a vector, the largest."""
    import numpy as np

    if len(vector.values) <= PROBE_WEIGHTS:
        return vector
    kept = np.sort(np.argsort(-np.abs(vector.values), kind="stable")[:PROBE_WEIGHTS])
    return SparseEmbedding(vector.indices[kept], vector.values[kept])


def _packed(vector: SparseEmbedding) -> bytes:
    indices: bytes = vector.indices.astype("<i4").tobytes()
    values: bytes = vector.values.astype("<f4").tobytes()
    return indices + values


SPARSE = SparseKind()
