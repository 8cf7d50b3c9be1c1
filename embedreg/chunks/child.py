"""`Child`: what holds the chunks: a file, or an engine's table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from embedreg.chunks.settings import CHUNK, PARENT_DIGEST

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Child", "digests_of"]

_KEY, _MARK, _NUMBER = "key", "mark", "number"


class Child(ABC):
    """A child table. Methods that write are called while it is `locked`; `key` is its first column.

    A parent is written whole: no reader sees chunks of two versions of it.

    Attributes:
        shown: its name in messages.
        folder: its folder; the stored path of the parents is relative to it.
    """

    shown: str
    folder: str

    @abstractmethod
    def schema(self) -> pa.Schema | None:
        """Return its schema, metadata included; None if it does not exist."""

    @abstractmethod
    def locked(self, *, resume: bool) -> AbstractContextManager[None]:
        """Lock it for a block; without `resume`, discard what an interrupted run left."""

    @abstractmethod
    def begin(self, schema: pa.Schema) -> None:
        """Create it without rows, or give an existing one this metadata."""

    @abstractmethod
    def parents(self, key: str) -> dict[Any, str | None]:
        """Return the digests of the parents whose chunks it holds; None for one whose chunks are not of one text."""

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


def digests_of(chunks: pa.Table, key: str) -> dict[Any, str | None]:
    """Return parent -> digest; None where digests differ, or the chunks are not numbered from 0, each once.

    Args:
        chunks: the columns `key`, `CHUNK` and `PARENT_DIGEST` of whole parents, in any order.
    """
    import pyarrow as pa

    marks = chunks[PARENT_DIGEST].combine_chunks().dictionary_encode()
    texts = [*marks.dictionary.to_pylist(), None]
    numbered = pa.table([chunks[key], marks.indices, chunks[CHUNK]], [_KEY, _MARK, _NUMBER])
    wanted: list[tuple[Any, str]] = [
        (_MARK, "min"),
        (_MARK, "max"),
        (_MARK, "count"),
        (_NUMBER, "min"),
        (_NUMBER, "max"),
    ]
    wanted += [(_NUMBER, "count_distinct"), ([], "count_all")]
    found = numbered.group_by(_KEY).aggregate(wanted)
    names = [_KEY, *("_".join(each) if each[0] else each[1] for each in wanted)]
    return {
        parent: texts[mark] if (mark, rows, 0, rows - 1, rows) == (last, marked, first, highest, distinct) else None
        for parent, mark, last, marked, first, highest, distinct, rows in zip(
            *(found[name].to_pylist() for name in names), strict=True
        )
    }
