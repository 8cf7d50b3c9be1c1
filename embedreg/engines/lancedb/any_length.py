"""The width that lancedb is given for vectors whose rows differ in size."""

from __future__ import annotations

__all__ = ["AnyLength"]


class AnyLength(int):
    """The width of vectors whose rows differ in size, for lancedb's check that each value has as many items.

    It replaces values of another length by nulls, where the items of a value are whole vectors here.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int)

    __hash__ = int.__hash__
