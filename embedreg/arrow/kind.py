"""The interface of a kind of vectors: what depends on whether a row has one vector, several, or a sparse one.

`core.kinds` holds the table of them. The rows of a column are one value per kind: a matrix, `multi.MultiVectors` or
`sparse.SparseVectors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from embedreg.errors import SchemaError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Agreement", "Read", "VectorKind"]


class Read(NamedTuple):
    """A function's result for n inputs, or a given column: the rows, (n,) which are valid, and row -> why it is not."""

    rows: Any
    valid: np.ndarray
    reasons: dict[int, str]


class Agreement(NamedTuple):
    """The agreement of two vectors of one input.

    Attributes:
        cosine: the lowest, -1 to 1; None if they cannot be compared.
        lengths: the Euclidean norm of all numbers of each.
        why: why they cannot be compared, for messages.
    """

    cosine: float | None
    lengths: tuple[float, float] = (0.0, 0.0)
    why: str = ""


class VectorKind(ABC):
    """One kind of vectors: a row of the table in `core.kinds`.

    Attributes:
        name: the name in `Traits(vectors=...)`, and in stored declarations.
        plural: in messages.
        one_size: whether n rows are one (n, d) matrix.
        unsearchable_in_lancedb: why LanceDB cannot search such a column; None if it can.
        stock_lancedb: whether LanceDB without embedreg stores such vectors right.
        max_ndims: the largest width that is accepted, since a configuration may be untrusted.
        value_types: the types of stored numbers, the usual one first.
        type_hint: the field type in a `Schema`, with `{d}` for the width.
        no_direction: the reason for a row without a vector: all zeros, or none at all.
        sql: the SQL type of a column by engine name, with `{d}` for the width; other engines refuse the kind.
        sql_score: by engine name, the SQL for a row's score, larger is nearer, with `{v}` for the row's column, `{q}`
            for the query and `{similarity}` for a function of two vectors; dense vectors have the engine's distances.
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    one_size: ClassVar[bool]
    stock_lancedb: ClassVar[bool] = False
    unsearchable_in_lancedb: ClassVar[str | None] = None
    max_ndims: ClassVar[int]
    value_types: ClassVar[tuple[str, ...]]
    type_hint: ClassVar[str]
    no_direction: ClassVar[str]
    sql: ClassVar[Mapping[str, str]]
    sql_score: ClassVar[Mapping[str, str]] = {}

    def __repr__(self) -> str:
        return f"<vectors {self.name!r}>"

    def __reduce__(self) -> Any:
        return _by_module, (type(self).__module__, self.name.upper())

    # -- rows in memory ---------------------------------------------------------------------------------------------

    @abstractmethod
    def empty(self, n: int, d: int) -> Any:
        """Return n rows without vectors."""

    @abstractmethod
    def width(self, rows: Any) -> int:
        """Return d."""

    @abstractmethod
    def joined(self, parts: Sequence[Any], d: int) -> Any:
        """Return the rows of several parts, one after another."""

    @abstractmethod
    def spread(self, rows: Any, index: np.ndarray) -> Any:
        """Return a new value whose row i is row `index[i]` of the given ones; none where that is -1."""

    @abstractmethod
    def put(self, rows: Any, places: Any, new: Any) -> Any:
        """Return the rows with those at `places` replaced by new ones; a matrix is changed in place."""

    @abstractmethod
    def one(self, rows: Any, row: int) -> Any:
        """Return a copy of one row, as `embed_query` returns it."""

    @abstractmethod
    def zeros(self, rows: Any) -> np.ndarray:
        """Return the indices of rows without a direction: those that are all zeros or have no numbers, (k,)."""

    @abstractmethod
    def distances(self, rows: Any, query: Any, metric: str) -> np.ndarray:
        """Return the distance of each row to a query, smaller is nearer, as LanceDB computes it: (n,) float32.

        Args:
            query: a vector as `one` returns it.
            metric: "cosine", "l2" or "dot". Rows without a direction may have a distance that is not finite.
        Raises:
            VectorError: the kind has no such distance.
        """

    def shown_metric(self, metric: str) -> str:
        """Return the display name of a distance."""
        return metric

    @abstractmethod
    def in_half(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) bool each: rows with numbers too large for float16, and rows that it rounds to all zeros."""

    # -- a function's results ---------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, result: Any, n: int, d: int, control: Callable[[], bool] | None = None) -> Read:
        """Check a function's result for n inputs; see `vectors.as_matrix`.

        Raises:
            VectorError: the call failed.
        """

    # -- Arrow ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def arrow_type(self, d: int, value_type: pa.DataType | None = None) -> pa.DataType:
        """Return the type of a column; with the usual type of numbers by default."""

    @abstractmethod
    def holds(self, kind: pa.DataType) -> bool:
        """Return whether a column of an Arrow type, perhaps of another writer, can be read as vectors of this kind."""

    @abstractmethod
    def value_type(self, kind: pa.DataType) -> pa.DataType:
        """Return the type of the numbers in a column that `holds`."""

    @abstractmethod
    def to_arrow(self, rows: Any, valid: np.ndarray, kind: pa.DataType) -> pa.Array:
        """Convert n rows to a column; invalid ones become null.

        Raises:
            VectorError: the type is of another kind or width.
        """

    @abstractmethod
    def given(self, column: pa.Array, d: int, name: str, kind: Any = None) -> Read:
        """Read a column of the data.

        Args:
            kind: the type of numbers of the destination column.
        Returns:
            Its vectors, valid in rows that have one, and row -> why a given vector is invalid; other rows have none.
        Raises:
            VectorError: the column has another type or width.
        """

    @abstractmethod
    def complete(self, column: pa.Array, d: int) -> bool:
        """Return whether every row of a column has a valid vector in stored form, so that it can stay as it is."""

    @abstractmethod
    def width_of(self, kind: pa.DataType) -> int | None:
        """Return the width that the type of a column states; None if it states none."""

    @abstractmethod
    def to_objects(self, rows: Any, value_type: str | None) -> list[Any]:
        """Return n values that Arrow converts to a column, for engines that take no Arrow.

        Args:
            value_type: the numpy name of the column's numbers; None if it is not known.
        """

    @abstractmethod
    def zeros_in(self, column: pa.Array, d: int) -> int:
        """Return how many rows of a column that is `complete` have no direction."""

    def fits(self, kind: pa.DataType, d: int) -> bool:
        """Return whether a column of an Arrow type is a stored form of d dimensions."""
        return self.holds(kind) and self.arrow_type(d, self.value_type(kind)) == kind

    def arrow_name(self, d: int) -> str:
        """Return the usual type of a column, for messages."""
        return str(self.arrow_type(d))

    def of_fixed_width(self, kind: pa.DataType) -> bool:
        """Return whether a type that `holds` states the width, so that a column of the data can stay of its type."""
        return self.holds(kind)

    def refuse_misfit(self, column: str, kind: pa.DataType, d: int) -> None:
        """Raise SchemaError unless a column's type is a stored form of d dimensions."""
        if not self.fits(kind, d):
            raise SchemaError(
                f"column {column!r} is declared as {kind}, its function returns {self.described(d)}.",
                f"declare it as {self.arrow_name(d)}, or choose another vector column",
            )

    def described(self, d: int) -> str:
        """Return a description of what a function returns."""
        return f"{self.plural} of {d} dimensions"

    # -- bytes ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def packed(self, rows: Any) -> list[bytes]:
        """Return the bytes of each row, little-endian; `unpacked` reads them."""

    @abstractmethod
    def sizes(self, d: int) -> tuple[int, int]:
        """Return the lowest and the step of a packed row's size; a step of 0 means that all have the lowest."""

    @abstractmethod
    def unpacked(self, parts: Sequence[bytes], d: int) -> tuple[Any, np.ndarray]:
        """Return rows from their bytes, which have a size of `sizes`, and (n,) bool, which of them are valid."""

    # -- the probe --------------------------------------------------------------------------------------------------

    @abstractmethod
    def probe_bytes(self, vector: Any) -> bytes:
        """Return what a declaration stores of the vector of the fixed input."""

    @abstractmethod
    def probe_read(self, data: bytes, d: int | None) -> Any | None:
        """Return the vector that `probe_bytes` stored, or None for anything else.

        Args:
            d: the width that the declaration records; None if it records none.
        """

    @abstractmethod
    def agreement(self, now: Any, stored: Any) -> Agreement:
        """Compare a function's vector of the fixed input with the stored one."""

    @abstractmethod
    def apart(self, one: Any, other: Any) -> float:
        """Return the distance of two vectors over the length of the longer one; infinite if their sizes differ."""

    def agreements(self, now: Any, stored: Any) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """Compare n rows: (n,) cosines, -1 where they cannot be compared, and the lengths of both, (n,) each."""
        import numpy as np

        found = [self.agreement(self.one(now, row), self.one(stored, row)) for row in range(len(now))]
        cosines = np.array([-1.0 if each.cosine is None else each.cosine for each in found])
        return cosines, tuple(np.array([each.lengths[side] for each in found]) for side in (0, 1))  # type: ignore[return-value]

    @abstractmethod
    def numbers(self, vector: Any) -> np.ndarray:
        """Return the numbers of one vector, which identify the function that made it: (m,)."""


def _by_module(module: str, name: str) -> VectorKind:
    import importlib

    found: VectorKind = getattr(importlib.import_module(module), name)
    return found
