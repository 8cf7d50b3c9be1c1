"""Rows of different sizes in flat arrays: what multi-vectors and sparse vectors have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from embedreg.errors import RowError, VectorError, reason_of

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

__all__ = ["Ragged", "Row", "offsets_of", "read_rows"]


class Ragged:
    """n rows of different sizes; row i is `[offsets[i] : offsets[i + 1]]` of each array.

    Attributes:
        arrays: equally long arrays.
        offsets: (n + 1,) int64, ascending from 0.
    """

    __slots__ = ("arrays", "offsets")

    def __init__(self, arrays: tuple[np.ndarray, ...], offsets: np.ndarray) -> None:
        self.arrays, self.offsets = arrays, offsets

    def like(self, arrays: tuple[np.ndarray, ...], offsets: np.ndarray) -> Self:
        """Return other rows of the same class and width."""
        made = type(self).__new__(type(self))
        for base in type(self).__mro__:
            for name in getattr(base, "__slots__", ()):
                setattr(made, name, getattr(self, name))
        made.arrays, made.offsets = arrays, offsets
        return made

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The size of each row: (n,) int64."""
        import numpy as np

        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The row of each entry of the arrays: (total,) int64."""
        import numpy as np

        return np.repeat(np.arange(len(self)), self.lengths)

    def spread(self, index: np.ndarray) -> Self:
        """Return rows whose row i is row `index[i]` of these; empty where that is -1."""
        import numpy as np

        index = np.asarray(index, np.int64)
        if not len(self):
            return self.like(tuple(each[:0] for each in self.arrays), np.zeros(len(index) + 1, np.int64))
        lengths = np.where(index >= 0, self.lengths[index], 0)
        offsets = offsets_of(lengths)
        starts = np.where(index >= 0, self.offsets[index], 0) - offsets[:-1]
        places = np.repeat(starts, lengths) + np.arange(offsets[-1])
        return self.like(tuple(each[places] for each in self.arrays), offsets)

    def joined(self, parts: Sequence[Ragged]) -> Self:
        """Return these rows and those of other parts, one after another."""
        import numpy as np

        every: list[Ragged] = [self, *parts]
        arrays = tuple(np.concatenate(each) for each in zip(*(part.arrays for part in every), strict=True))
        return self.like(arrays, offsets_of(np.concatenate([part.lengths for part in every])))

    def put(self, places: Any, new: Ragged) -> Self:
        """Return these rows with those at `places` replaced by new ones."""
        import numpy as np

        index = np.arange(len(self))
        index[places] = len(self) + np.arange(len(new))
        return self.joined([new]).spread(index)

    def kept(self, entries: np.ndarray) -> Self:
        """Return the rows with a part of their entries, (total,) bool."""
        import numpy as np

        if entries.all():
            return self
        lengths = np.bincount(self.owners[entries], minlength=len(self))
        return self.like(tuple(each[entries] for each in self.arrays), offsets_of(lengths))

    def without(self, rows: np.ndarray) -> Self:
        """Return the rows with some of them, (n,) bool, emptied."""
        import numpy as np

        return self.spread(np.where(rows, -1, np.arange(len(self)))) if rows.any() else self


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Return the offsets of n rows of given lengths: (n + 1,) int64."""
    import numpy as np

    made = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=made[1:])
    return made


class Row(NamedTuple):
    """A function's result for one input: its arrays, or why there are none.

    Attributes:
        arrays: None for an invalid row.
        why: the reason for an invalid one.
        whole: the message if no row of the call is valid; the call has then failed.
    """

    arrays: tuple[np.ndarray, ...] | None
    why: str = ""
    whole: str = ""


def read_rows(
    listed: list[Any], convert: Callable[[Any], Row], empty: tuple[np.ndarray, ...], hint: str
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, dict[int, str]]:
    """Read a function's result row by row: an invalid row among valid ones fails alone.

    Args:
        listed: n values, with None or a RowError for a failed row.
        convert: converts another value.
        empty: the arrays of an empty row.
        hint: for a call of which no row is valid.
    Returns:
        The arrays, (n + 1,) offsets, (n,) the valid rows, and row -> why it is not valid.
    Raises:
        VectorError: no row is valid, and the fault is the function's.
    """
    import numpy as np

    parts, valid, reasons = [empty] * len(listed), np.zeros(len(listed), bool), dict[int, str]()
    wrong = ""
    for index, value in enumerate(listed):
        if value is None:
            reasons[index] = "the function returned no vector"
            continue
        if isinstance(value, RowError):
            reasons[index] = reason_of(value)
            continue
        row = convert(value)
        if row.arrays is None:
            wrong, reasons[index] = wrong or row.whole, row.why
        else:
            parts[index], valid[index] = row.arrays, True
    if wrong and not valid.any():
        raise VectorError(wrong, hint)
    arrays = tuple(np.concatenate(each) for each in zip(*parts, strict=True)) if parts else empty
    return arrays, offsets_of(np.fromiter((len(each[0]) for each in parts), np.int64, len(parts))), valid, reasons
