"""Infer the type of a CSV column: a number only if every value would be written back unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from embedreg.datasets.texts import shown_value

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Column"]

_INT = r"^(?:0|-?[1-9][0-9]*)$"
_DECIMAL = r"^-?(?:0|[1-9][0-9]*)(?:\.(?:0|[0-9]*[1-9])(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)$"
_PLAIN = r"^-?(?:0|[1-9][0-9]*)\.[0-9]+$"
# Values that look like numbers, booleans, dates or nulls: if most do and the column is text, a note gives the reason.
_LIKE = (
    r"(?i)^\s*(?:[+-]?[0-9][0-9.,'_ ]*(?:e[+-]?[0-9]+)?\s*%?|[+-]?\.[0-9]+|[+-]?inf(?:inity)?|nan|na|n/a|null|none|true"
    r"|false|[0-9]{1,4}[-/.][0-9]{1,2}[-/.][0-9]{1,4}.*)\s*$"
)
_SAFE_INT_DIGITS = 15  # such integers are exact as floats
_SAFE_CHARS = 16  # of a decimal fraction with its point: 15 digits survive a round trip


@dataclass
class Column:
    """The properties of a column's values that determine its type.

    Attributes:
        ints, floats: whether there are such values.
        large: whether an integer is too large for an exact float.
        text: (file, line, value, reason) of the first value that must stay text.
        filled, like: number of values, and of those that look like a number.
    """

    ints: bool = False
    floats: bool = False
    large: bool = False
    text: tuple[str, int, str, str] | None = None
    filled: int = 0
    like: int = 0

    @classmethod
    def of(cls, kind: pa.DataType) -> Column:
        """Return a column of a type that an earlier scan has found."""
        import pyarrow as pa

        if pa.types.is_integer(kind):
            return cls(ints=True)
        if pa.types.is_floating(kind):
            return cls(floats=True)
        return cls(text=("", 0, "", "")) if pa.types.is_string(kind) else cls()

    def merged(self, other: Column) -> Column:
        """Return what is known from both."""
        return Column(
            self.ints or other.ints,
            self.floats or other.floats,
            self.large or other.large,
            self.text or other.text,
            self.filled + other.filled,
            self.like + other.like,
        )

    def type(self) -> pa.DataType:
        """Return the type that holds all values exactly."""
        import pyarrow as pa

        if self.text or (self.large and self.floats) or not (self.ints or self.floats):
            return pa.string()
        return pa.float64() if self.floats else pa.int64()

    def note(self, name: str) -> str | None:
        """Return why a column that looks numeric stays text; None if it does not look numeric."""
        if self.text is None and self.large and self.floats:
            return f"column {name!r} stays text: its integers are too large for a float column"
        if self.text is None or self.filled == 0 or 2 * self.like < self.filled:
            return None
        path, line, value, why = self.text
        return f"column {name!r} stays text: {shown_value(value)} {why} ({path}, line {line})"

    def observe(self, values: pa.Array, quoted: np.ndarray, where: Any) -> None:
        """Take values into account.

        Args:
            values: strings without nulls.
            quoted: which of them were in quotes.
            where: `where(row)` returns the (file, line) of a value; called at most once.
        """
        import numpy as np
        import pyarrow.compute as pc

        def matching(pattern: str) -> np.ndarray:
            return np.asarray(pc.match_substring_regex(values, pattern).to_numpy(zero_copy_only=False), bool)

        lengths = pc.binary_length(values).to_numpy(zero_copy_only=False)
        filled = (lengths > 0) | quoted
        ints, decimals = matching(_INT), matching(_DECIMAL)
        doubtful = (ints & (lengths > _SAFE_INT_DIGITS)) | (
            decimals & ~(matching(_PLAIN) & (lengths <= _SAFE_CHARS)) if decimals.any() else False
        )
        for row in np.flatnonzero(doubtful).tolist():
            value = values[row].as_py()
            if ints[row]:
                ints[row] = -(2**63) <= int(value) < 2**63
                self.large |= bool(ints[row]) and int(float(value)) != int(value)
            else:
                decimals[row] = _survives(value)
        good = (ints | decimals) & ~quoted
        self.filled += int(filled.sum())
        self.like += int((matching(_LIKE) & filled).sum())
        self.ints |= bool((ints & good).any())
        self.floats |= bool((decimals & good).any())
        bad = np.flatnonzero(filled & ~good)
        if self.text is None and len(bad):
            first = int(bad[0])
            path, line = where(first)
            value = values[first].as_py()
            self.text = (path, line, value, _why(value, bool(quoted[first]), bool(ints[first] or decimals[first])))


def _survives(text: str) -> bool:
    """Return whether a decimal fraction survives a round trip through float, in the same notation."""
    again = repr(float(text))
    if "n" in again or ("e" in text.lower() and "e" not in again):  # inf; or 1e5, which may be an identifier
        return False
    return Decimal(text) == Decimal(again)


def _why(value: str, quoted: bool, number: bool) -> str:
    if quoted and number:
        return "is in quotes"
    return "would not read back the same" if value[:1].isdigit() or value[:1] in "+-." else "is not a number"
