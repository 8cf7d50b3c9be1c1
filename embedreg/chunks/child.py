"""`Child`: what holds the chunks: a file, or an engine's table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Child"]


class Child(ABC):
    """A child table. What writes is called while it is `locked`; `key` is its first column.

    A parent is written whole: no reader sees chunks of two versions of it.

    Attributes:
        shown: its name in messages.
        folder: where it lies, which the stored path of the parents is relative to.
    """

    shown: str
    folder: str

    @abstractmethod
    def schema(self) -> pa.Schema | None:
        """Return its schema, metadata included; None if it does not exist."""

    @abstractmethod
    def locked(self, *, resume: bool) -> AbstractContextManager[None]:
        """Hold it for a block; without `resume`, what an interrupted run has left is dropped."""

    @abstractmethod
    def begin(self, schema: pa.Schema) -> None:
        """Create it without rows, or give an existing one this metadata."""

    @abstractmethod
    def parents(self, key: str) -> dict[Any, str | None]:
        """Return the digests of the parents whose chunks it holds; None for one whose chunks disagree."""

    @abstractmethod
    def rows(self, key: str, keys: Sequence[Any], columns: Sequence[str]) -> pa.Table:
        """Return columns of the chunks of some parents."""

    @abstractmethod
    def write(self, key: str, keys: Sequence[Any], made: pa.Table, *, known: bool) -> None:
        """Replace the chunks of some parents.

        Args:
            made: their chunks, in the child's schema.
            known: whether it has chunks of one of them.
        """

    @abstractmethod
    def remove(self, key: str, keys: Sequence[Any]) -> None:
        """Remove the chunks of parents that are gone."""

    @abstractmethod
    def finish(self) -> None:
        """Publish what was written."""

    @abstractmethod
    def count(self) -> int:
        """Return the number of chunks."""
