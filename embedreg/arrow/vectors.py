"""Convert vectors between functions' results, numpy and Arrow, without creating Python lists.

Over 400 lines: the vectors of a column, and their usual kind (`DENSE`) with the checks that the other kinds share.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.arrow.kind import Agreement, Read, VectorKind
from embedreg.errors import RowError, VectorError, reason_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = [
    "DENSE",
    "Embedded",
    "as_matrix",
    "as_numbers",
    "complete_and_finite",
    "distance_of",
    "given_vectors",
    "listed_rows",
    "named",
    "numbers_in",
    "numbers_of",
    "numeric",
    "refuse_outage",
    "to_arrow",
    "zero_rows",
]

MAX_NDIMS = 65_536
"""The largest width of a dense vector: memory is allocated for it, and the configuration may be untrusted."""

_CACHED = 2**16  # floats
_FEW = 8  # if more vectors than these are returned and none is finite, the function has failed
_NOT_FINITE = "its vector is not finite"
_MACHINE_LEARNING = frozenset(
    {"bfloat16", "float8_e4m3", "float8_e4m3fn", "float8_e5m2"}
)  # dtypes of ml_dtypes, used by JAX


@dataclass
class Embedded:
    """The vectors of one column.

    Attributes:
        vectors: the rows, as their kind has them; rows that are not valid are zeros, or have no numbers. Dense vectors
            are an (n, d) float32 matrix, multi-vectors `multi.MultiVectors`, sparse ones `sparse.SparseVectors`.
        valid: (n,) bool.
        reasons: row -> why it failed; a null or blank input is not valid and has no reason.
        distinct: number of distinct inputs.
        cached: number of vector cache hits among these; the others were computed.
        zeros: (n,) bool, the rows for which the function returned a vector of zeros, under any policy; None for no row.
        kind: the kind of the vectors.
    """

    vectors: Any
    valid: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    distinct: int = 0
    cached: int = 0
    zeros: np.ndarray | None = None
    kind: VectorKind = field(default_factory=lambda: _dense())

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {"kind": _dense(), **state}  # pickles of earlier versions have a matrix
        if (matrix := self.__dict__.pop("matrix", None)) is not None:
            self.vectors = matrix

    @classmethod
    def empty(cls, n: int, d: int, kind: VectorKind | None = None) -> Embedded:
        """Return n rows without vectors; dense ones by default."""
        import numpy as np

        kind = _dense() if kind is None else kind
        return cls(kind.empty(n, d), np.zeros(n, bool), kind=kind)

    @property
    def matrix(self) -> np.ndarray:
        """The (n, d) float32 matrix of dense vectors.

        Raises:
            VectorError: the vectors are of another kind.
        """
        if not self.kind.one_size:
            raise VectorError(
                f"{self.kind.plural} are not one matrix, since their rows differ in size.", "Embedded.vectors"
            )
        matrix: np.ndarray = self.vectors
        return matrix

    @matrix.setter
    def matrix(self, matrix: np.ndarray) -> None:
        self.vectors = matrix

    def laid_out(self, index: np.ndarray) -> Embedded:
        """Return the vectors of n rows from those of m distinct inputs; without a copy if all inputs are distinct.

        Args:
            index: (n,) the index of each row's input among the distinct inputs, -1 for none.
        """
        import numpy as np

        n, m = len(index), len(self.valid)
        if n == m and not self.reasons and self.valid.all() and np.array_equal(index, np.arange(n)):
            return self
        rows = np.flatnonzero(index >= 0)
        places = index[rows]
        good = self.valid[places]
        kept = np.full(n, -1, np.int64)
        kept[rows[good]] = places[good]
        made = Embedded(self.kind.spread(self.vectors, kept), kept >= 0, kind=self.kind)
        made.distinct, made.cached = self.distinct, self.cached
        if self.zeros is not None:
            made.zeros = np.zeros(n, bool)
            made.zeros[rows] = self.zeros[places]
        if self.reasons:
            pairs = zip(rows.tolist(), places.tolist(), strict=True)
            made.reasons = {row: self.reasons[place] for row, place in pairs if place in self.reasons}
        return made

    def to_arrow(self, value_type: Any = None) -> pa.Array:
        """Return the column in its kind's Arrow type, without a copy for dense float32."""
        return self.kind.to_arrow(self.vectors, self.valid, self.kind.arrow_type(self.ndims, value_type))

    @property
    def ndims(self) -> int:
        """The width of the vectors."""
        return self.kind.width(self.vectors)


def as_matrix(
    result: Any, n: int, d: int, control: Callable[[], bool] | None = None
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Check a function's result for n inputs. It is never modified: the function may keep it.

    Args:
        result: an (n, d) array of any kind (numpy, torch, Arrow), or n vectors with None or a RowError for a failed
            row.
        control: returns whether the function returns a finite vector for an input that is known to be good.
    Returns:
        (n, d) float32, (n,) the valid rows, and row -> why it is not valid. The matrix may be the function's own
        memory: copy it before anything is called again.
    Raises:
        VectorError: the call failed: another number of rows, no row of the right width, no numbers, or several vectors
            of which none is finite. See docs/writing-a-function.md.
    """
    import numpy as np

    array = _to_numpy(result)
    if isinstance(array, np.ndarray) and array.dtype != object:
        if array.ndim == 1 and n == 1 and array.shape == (d,):
            array = array[None, :]  # LanceDB-style functions squeeze the answer for one input
        if array.ndim != 2 or array.shape != (n, d):
            raise _wrong_shape(n, d, array.shape)
        matrix, broken = _cleared(_floats(array))
        if len(broken) == n:
            refuse_outage(n, control)
        valid = np.ones(n, bool)
        valid[broken] = False
        return matrix, valid, dict.fromkeys(broken, _NOT_FINITE)
    return _from_rows(listed_rows(array, n, f"an array of shape ({n}, {d})", d), n, d, control)


def _to_numpy(result: Any) -> Any:
    """Convert an array of any library to numpy; return anything else unchanged."""
    import numpy as np

    if isinstance(result, np.ma.MaskedArray):  # masked entries hold arbitrary numbers
        numbers = result.dtype.kind in "fiu"
        return np.ma.filled(result.astype(np.float32), np.nan) if numbers else np.ma.filled(result)
    if isinstance(result, np.ndarray | list | tuple):
        return result
    if hasattr(result, "detach"):  # a torch tensor, on any device
        tensor = result.detach().cpu()
        try:
            return tensor.numpy()
        except TypeError:  # bfloat16 and the like have no numpy dtype, and sparse layouts are not arrays
            return (tensor.to_dense() if hasattr(tensor, "to_dense") else tensor).float().numpy()
    if type(result).__module__.partition(".")[0] == "pyarrow":
        if hasattr(result, "as_py"):
            return result.as_py()
        if hasattr(result, "num_rows"):
            return result  # a table has columns, not vectors
        array = result.combine_chunks() if hasattr(result, "combine_chunks") else result
        array = getattr(array, "storage", array)  # for an extension type
        size = getattr(array.type, "list_size", None)
        if size is not None and not array.null_count:
            return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), size)
        return array.to_pylist()
    return np.asarray(result) if hasattr(result, "__array__") else result


def _floats(array: np.ndarray) -> np.ndarray:
    """Convert numbers to float32; numbers that are too large become infinite."""
    import numpy as np

    if array.dtype == np.float32:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "fiu" and array.dtype.name not in _MACHINE_LEARNING:
        raise VectorError(f"the function returned vectors of {array.dtype}.", "return an (n, d) array of floats")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def listed_rows(result: Any, n: int, expected: str, d: Any = "?") -> list[Any]:
    """Return the rows of a result that is not an array; at most n + 1 of a stream.

    Args:
        expected: what was expected, for messages.
        d: the width, for messages.
    Raises:
        VectorError: it has no rows, or another number of them.
    """
    import numpy as np

    if inspect.iscoroutine(result):
        result.close()  # otherwise Python warns that it was never awaited
    unordered = isinstance(result, str | bytes | bytearray | Mapping | Set)
    if unordered or hasattr(result, "num_rows") or not hasattr(result, "__iter__") or getattr(result, "ndim", 1) == 0:
        hint = "return one vector of ndims() numbers for each input, in their order"
        if inspect.isawaitable(result) or hasattr(result, "__aiter__"):
            hint = "define the method with def, and await inside it: asyncio.run(...)"
        raise VectorError(f"the function returned {named(result)} for {n} inputs; {expected} was expected.", hint)
    rows = list(itertools.islice(result, n + 1)) if isinstance(result, Iterator) else list(result)
    if len(rows) != n:
        many = f"{len(rows)} or more" if isinstance(result, Iterator) and len(rows) > n else len(rows)
        raise _wrong_shape(n, d, (many, *np.shape(rows[0])[:1]) if _is_vector(rows) else (many, "?"))
    return rows


def _is_vector(rows: list[Any]) -> bool:
    return bool(rows) and getattr(rows[0], "ndim", 0) == 1


def _from_rows(
    rows: list[Any], n: int, d: int, control: Callable[[], bool] | None
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Read vectors one by one: an invalid row among valid ones fails alone."""
    import numpy as np

    matrix, valid, reasons = np.zeros((n, d), np.float32), np.zeros(n, bool), {}
    given, wrong = 0, dict[str, Any]()  # number of rows with a value; an example of each kind of invalid value
    for index, row in enumerate(rows):
        if row is None:
            reasons[index] = "the function returned no vector"
            continue
        if isinstance(row, RowError):
            reasons[index] = reason_of(row)
            continue
        given += 1
        vector = as_numbers(row)
        if vector is None:
            wrong["numbers"] = row
            reasons[index] = f"the function returned {named(row)} for it that is not a vector of numbers"
        elif vector.shape == (d,):
            matrix[index], valid[index] = vector, True
        elif vector.size == 0:
            wrong["empty"] = vector
            reasons[index] = "the function returned an empty vector"
        else:
            wrong["width"] = vector
            size = f"{vector.size} dimensions" if vector.ndim == 1 else f"an array of shape {vector.shape}"
            reasons[index] = f"the function returned {size} for it instead of {d}"
    matrix, broken = _cleared(matrix)
    valid[broken] = False
    reasons |= dict.fromkeys(broken, _NOT_FINITE)
    if given and not valid.any():
        if "width" in wrong or (given > 1 and "empty" in wrong):
            raise _wrong_shape(n, d, (n, *(wrong["width"] if "width" in wrong else wrong["empty"]).shape))
        if "numbers" in wrong:
            raise VectorError(
                f"the function returned vectors that are not numbers, but {named(wrong['numbers'])}.",
                "return lists of floats",
            )
        refuse_outage(given, control)
    return matrix, valid, reasons


def as_numbers(row: Any) -> np.ndarray | None:
    """Convert a function's result for one row to a float32 array of any shape; None if it is not numeric."""
    import numpy as np

    if isinstance(row, str | bytes | Mapping | Set):
        return None
    try:
        array = np.asarray(_to_numpy(row))
        if not array.ndim:
            return None
        if array.dtype == object and not any(isinstance(item, str | bytes) for item in array.flat):
            array = array.astype(np.float64)  # None in a vector becomes NaN, Decimal a float
        return _floats(array) if array.size else np.empty(0, np.float32)
    except (OverflowError, TypeError, ValueError):
        return None
    except RuntimeError:
        if not isinstance(row, list | tuple):
            raise  # a device that failed while copying its numbers
        return None


def named(value: Any) -> str:
    """Return the type of a value for messages: "a list"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}" if value is not None else "None"


def _cleared(matrix: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return a matrix (a copy if needed) with zeros in the rows that contain NaN or infinity, and these rows."""
    import numpy as np

    if _all_finite(matrix):
        return matrix, []
    broken = ~np.isfinite(matrix).all(axis=1)
    return np.where(broken[:, None], matrix.dtype.type(0), matrix), np.flatnonzero(broken).tolist()


def refuse_outage(n: int, control: Callable[[], bool] | None) -> None:
    """Raise if none of n vectors is finite, unless the inputs may be the cause: an outage must not look like bad rows.

    A single vector may be a bad row; a few may be, if the function still returns a finite vector for a good input.
    """
    if n <= 1 or (n <= _FEW and control is not None and control()):
        return
    raise VectorError(
        f"none of the {n} vectors that the function returned is finite: they contain NaN or infinity.",
        "check the model and its precision; for a bad row return None or a RowError",
    )


def zero_rows(matrix: np.ndarray) -> np.ndarray:
    """Return the indices of the rows of a matrix that are all zeros, (k,)."""
    import numpy as np

    if not matrix.shape[1]:
        return np.zeros(0, np.int64)
    zero = np.flatnonzero(matrix[:, 0] == 0)
    return zero[~matrix[zero].any(axis=1)] if len(zero) else zero


def _all_finite(values: np.ndarray) -> bool:
    """Return whether all floats are finite, a part at a time, so that temporary arrays stay in the caches."""
    import numpy as np

    flat = values.reshape(-1) if values.flags.c_contiguous else values
    return all(np.isfinite(flat[start : start + _CACHED]).all() for start in range(0, len(flat), _CACHED))


def _wrong_shape(n: int, d: int, shape: tuple[Any, ...]) -> VectorError:
    return VectorError(
        f"the function returned vectors of shape {shape} for {n} inputs; ({n}, {d}) was expected.",
        "return one vector of ndims() numbers for each input",
    )


def numbers_of(column: pa.Array) -> np.ndarray:
    """Return the numbers of a FixedSizeListArray without nulls as (n, d), without a copy."""
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def numeric(values: pa.Array) -> bool:
    """Return whether an array holds numbers, or only nulls."""
    import pyarrow as pa

    number = pa.types.is_floating(values.type) or pa.types.is_integer(values.type)
    return bool(number) or values.null_count == len(values)


def numbers_in(values: pa.Array) -> np.ndarray:
    """Return the numbers of a flat array; a null becomes NaN, which invalidates only its row."""
    import pyarrow as pa

    if values.null_count:
        values = values.cast(pa.float64()).fill_null(float("nan"))
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False)
    return numbers


def complete_and_finite(column: pa.Array) -> bool:
    """Return whether a FixedSizeListArray has a finite vector in every row, without a copy."""
    if column.null_count:
        return False
    values = column.flatten()
    if values.null_count:
        return False
    return _all_finite(values.to_numpy(zero_copy_only=False))


def given_vectors(column: pa.Array, d: int, name: str, kind: Any = None) -> tuple[Embedded, dict[int, str]]:
    """Read a vector column of the data.

    Args:
        kind: the value type of the destination column; the numbers of a float64 column are kept exactly.
    Returns:
        Its vectors, valid in rows that have one, and row -> why a given vector is invalid (not finite).
    Raises:
        VectorError: a vector has another width, or the column another type.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    own = column.type
    if not (pa.types.is_fixed_size_list(own) or pa.types.is_list(own) or pa.types.is_large_list(own)):
        raise VectorError(
            f"column {name!r} is {own}, not a list of floats.", "drop or rename it, or cast it to list<float>"
        )
    present = np.asarray(column.is_valid())
    widths = np.full(len(column), getattr(own, "list_size", -1))
    if not pa.types.is_fixed_size_list(own):
        widths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
    if other := sorted({*np.unique(widths[present]).tolist()} - {d}):
        raise VectorError(
            f"column {name!r} holds vectors of {', '.join(map(str, other))} dimensions, its function returns {d}.",
            "drop the column to embed it again, or declare the function that made it",
        ).for_shell("--vector NAME writes to another column; embedreg attach declares the function that made this one")
    values = column.filter(pa.array(present)).flatten()
    if not numeric(values):
        raise VectorError(f"column {name!r} holds vectors that are not numbers.", "drop the column to embed it again")
    given = Embedded.empty(len(column), d)
    if kind == pa.float64():
        given.matrix = np.zeros((len(column), d), np.float64)
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite, and are rejected below
        given.matrix[present] = numbers_in(values).reshape(-1, d)
    given.matrix, broken = _cleared(given.matrix)
    given.valid = present.copy()
    given.valid[broken] = False
    reasons = dict.fromkeys(broken, "its given vector is not finite")
    if kind == pa.float16():
        with np.errstate(over="ignore"):
            large = given.valid & ~np.isfinite(given.matrix.astype(np.float16)).all(axis=1)
        given.matrix[large], given.valid[large] = 0, False
        why = "its given vector contains numbers too large for float16"
        reasons |= dict.fromkeys(np.flatnonzero(large).tolist(), why)
    return given, reasons


def to_arrow(matrix: np.ndarray, valid: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Convert (n, d) vectors to a FixedSizeListArray, zero-copy for float32; invalid rows become null.

    Vectors of an int8 or uint8 column are of that dtype already.
    """
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(kind) or kind.list_size != matrix.shape[1]:
        raise VectorError(
            f"{matrix.shape[1]}-dimensional vectors do not fit a column of {kind}.", "declare Vector(fn.ndims())"
        )
    wanted: Any = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float64}.get(kind.value_type)
    if wanted is None and kind.value_type in (pa.int8(), pa.uint8()) and matrix.dtype.name == str(kind.value_type):
        wanted = matrix.dtype  # quantised already
    if wanted is None:
        raise VectorError(f"a vector column cannot hold {kind.value_type}.", "use float32 or float16")
    flat = pa.array(np.ascontiguousarray(matrix, wanted).reshape(-1))
    mask = None if valid.all() else pa.array(~valid)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)


def distance_of(one: np.ndarray, other: np.ndarray) -> float:
    """Return the distance of two arrays over the length of the longer one; infinite if their shapes differ."""
    import numpy as np

    if one.shape != other.shape:
        return float("inf")
    wide = one.astype(np.float64), other.astype(np.float64)
    longest = max(float(np.linalg.norm(each)) for each in wide)
    return float(np.linalg.norm(wide[0] - wide[1])) / longest if longest else 0.0


def _dense() -> VectorKind:
    return DENSE


class DenseKind(VectorKind):
    """Rows of one vector each: (n, d) matrices."""

    name: ClassVar[str] = "dense"
    plural: ClassVar[str] = "vectors"
    one_size: ClassVar[bool] = True
    stock_lancedb: ClassVar[bool] = True
    max_ndims: ClassVar[int] = MAX_NDIMS
    value_types: ClassVar[tuple[str, ...]] = ("float32", "float16", "float64")
    type_hint: ClassVar[str] = "Vector({d})"
    no_direction: ClassVar[str] = "its vector is all zeros"
    sql: ClassVar[Mapping[str, str]] = {"duckdb": "FLOAT[{d}]", "databend": "VECTOR({d})"}

    def empty(self, n: int, d: int) -> np.ndarray:
        import numpy as np

        return np.zeros((n, d), np.float32)

    def width(self, rows: Any) -> int:
        return int(rows.shape[1])

    def joined(self, parts: Sequence[Any], d: int) -> np.ndarray:
        import numpy as np

        return parts[0] if len(parts) == 1 else np.concatenate([self.empty(0, d), *parts])

    def spread(self, rows: Any, index: np.ndarray) -> np.ndarray:
        import numpy as np

        made = np.zeros((len(index), rows.shape[1]), rows.dtype)
        places = np.flatnonzero(index >= 0)
        made[places] = rows[index[places]]
        return made

    def put(self, rows: Any, places: Any, new: Any) -> np.ndarray:
        rows[places] = new
        return rows  # type: ignore[no-any-return]

    def one(self, rows: Any, row: int) -> np.ndarray:
        import numpy as np

        return np.array(rows[row], np.float32)

    def zeros(self, rows: Any) -> np.ndarray:
        return zero_rows(rows)

    def distances(self, rows: Any, query: Any, metric: str) -> np.ndarray:
        import numpy as np

        query = np.asarray(query, np.float32)
        if metric == "l2":
            return np.asarray(np.square(rows - query).sum(axis=1), np.float32)
        dot = rows @ query
        if metric == "dot":
            return np.asarray(1 - dot, np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(1 - dot / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query)), np.float32)

    def in_half(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        with np.errstate(over="ignore"):
            half = rows.astype(np.float16)
        return ~np.isfinite(half).all(axis=1), zero_rows(half)

    def read(self, result: Any, n: int, d: int, control: Callable[[], bool] | None = None) -> Read:
        return Read(*as_matrix(result, n, d, control))

    def arrow_type(self, d: int, value_type: pa.DataType | None = None) -> pa.DataType:
        import pyarrow as pa

        return pa.list_(value_type or pa.float32(), d)

    def holds(self, kind: pa.DataType) -> bool:
        import pyarrow as pa

        lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return bool(lists and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))

    def of_fixed_width(self, kind: pa.DataType) -> bool:
        import pyarrow as pa

        return bool(pa.types.is_fixed_size_list(kind))

    def fits(self, kind: pa.DataType, d: int) -> bool:
        return self.of_fixed_width(kind) and kind.list_size == d

    def arrow_name(self, d: int) -> str:
        return f"fixed_size_list<float>[{d}]"

    def value_type(self, kind: pa.DataType) -> pa.DataType:
        return kind.value_type

    def to_arrow(self, rows: Any, valid: np.ndarray, kind: pa.DataType) -> pa.Array:
        return to_arrow(rows, valid, kind)

    def given(self, column: pa.Array, d: int, name: str, kind: Any = None) -> Read:
        given, reasons = given_vectors(column, d, name, kind)
        return Read(given.vectors, given.valid, reasons)

    def complete(self, column: pa.Array, d: int) -> bool:
        return complete_and_finite(column)

    def width_of(self, kind: pa.DataType) -> int | None:
        return getattr(kind, "list_size", None)

    def to_objects(self, rows: Any, value_type: str | None) -> list[Any]:
        # a list of float32 rows is what lancedb reads fastest (docs/lancedb.md); Python's floats fit any float type
        return rows.tolist() if value_type is None else list(rows.astype(value_type, copy=False))

    def zeros_in(self, column: pa.Array, d: int) -> int:
        return len(zero_rows(numbers_of(column)))

    def described(self, d: int) -> str:
        return f"{d} dimensions"

    def packed(self, rows: Any) -> list[bytes]:
        return [row.tobytes() for row in rows.astype("<f4", copy=False)]

    def sizes(self, d: int) -> tuple[int, int]:
        return 4 * d, 0

    def unpacked(self, parts: Sequence[bytes], d: int) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        rows = np.frombuffer(b"".join(parts), "<f4").reshape(-1, d)
        return rows, np.isfinite(rows).all(axis=1)

    def probe_bytes(self, vector: Any) -> bytes:
        return vector.astype("<f4").tobytes()  # type: ignore[no-any-return]

    def probe_read(self, data: bytes, d: int | None) -> np.ndarray | None:
        import numpy as np

        if not data or len(data) % 4:
            return None
        vector = np.frombuffer(data, "<f4")
        return vector if bool(np.isfinite(vector).all()) else None

    def agreement(self, now: Any, stored: Any) -> Agreement:
        import numpy as np

        if now.shape != stored.shape:
            return Agreement(None, why=f"{now.size} dimensions, stored {stored.size}")
        one, other = now.astype(np.float64), stored.astype(np.float64)
        lengths = float(np.linalg.norm(other)), float(np.linalg.norm(one))
        norms = lengths[0] * lengths[1]
        return Agreement(float(one @ other) / norms if norms else float(np.array_equal(one, other)), lengths)

    def apart(self, one: Any, other: Any) -> float:
        return distance_of(one, other)

    def agreements(self, now: Any, stored: Any) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        import numpy as np

        one, other = stored.astype(np.float64), now.astype(np.float64)
        lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
        products = lengths[0] * lengths[1]
        alike = (one * other).sum(axis=1) / np.where(products > 0, products, 1)
        return np.where(products > 0, alike, np.maximum(*lengths) == 0), lengths

    def numbers(self, vector: Any) -> np.ndarray:
        return vector  # type: ignore[no-any-return]


DENSE = DenseKind()
