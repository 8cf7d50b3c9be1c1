"""`ColumnStore`: what an engine implements so that the calls of `embedreg.columns` work on its data.

An engine returns one from `Engine.columns(data)`, for a path or an object of its own. The classes here do not depend on
any engine. Each operation raises `ConfigError` where an engine does not support it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from embedreg.columns.arguments import undeclared
from embedreg.columns.migration import Migration
from embedreg.columns.results import ColumnReport, ColumnStatus
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration.entries import Entry
from embedreg.embedding.table import BATCH_ROWS, OnError, Progress
from embedreg.errors import ConfigError, option

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.inspection.attach import Agreement

__all__ = ["ColumnStore", "Options", "Unstamped", "without_digests"]

Unstamped = Literal["verify", "recompute", "trust"]
NO_DIGESTS = option(
    "the column has no row digests, so only missing vectors can be found; `--unstamped recompute` embeds every row, "
    "and `embedreg column detach --drop`, then `embedreg column add`, writes digests too",
    "unstamped='recompute'; columns.detach(data, vector, drop=True), then columns.add",
)
STILL_NO_DIGESTS = option(
    "the column has no row digests, so every row was embedded, and changed sources cannot be found later either; to "
    "write digests: `embedreg column detach --drop`, then `embedreg column add`",
    "columns.detach(data, vector, drop=True), then columns.add",
)


def without_digests(unstamped: Unstamped, *, templated: bool = False) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return what `refresh` does to a column without row digests: the classes of rows to embed, and notes.

    Args:
        templated: whether its sources are rendered: a text that changed differs from the stored one.
    """
    found = frozenset({"empty", "stale"} if templated else {"empty"})
    if unstamped == "recompute":
        return found | {"unstamped"}, (STILL_NO_DIGESTS,)
    return found, () if templated else (NO_DIGESTS,)


@dataclass(frozen=True)
class Options:
    """The arguments that most calls take.

    Attributes:
        on_error, max_bad_rows, batch_rows, progress: as in `embed_batches`.
        cache: a file that keeps vectors over runs; see `embedreg.vector_cache`.
        resume: False drops what an earlier, interrupted run of this call staged.
        digest: whether a new column gets row digests.
        key: the column that identifies rows, for engines that merge by one.
        switch_timeout_s: how long a commit is tried again while other writers commit.
        yes: proceed where the call would refuse and ask.
    """

    on_error: OnError = "null"
    max_bad_rows: int | None = None
    batch_rows: int = BATCH_ROWS
    cache: str | os.PathLike[str] | None = None
    progress: Progress | None = None
    resume: bool = True
    digest: bool = True
    key: str | None = None
    switch_timeout_s: float = 60.0
    yes: bool = False


class ColumnStore(ABC):
    """A table or dataset whose vector columns can be read, and changed where the engine allows it.

    Attributes:
        shown: its name in messages.
        rows_of_any_size: whether its columns may hold vectors whose rows differ in size, multi-vectors and sparse ones.
    """

    shown: str = "the data"
    rows_of_any_size: bool = False

    # -- reading: what `status`, `audit`, `identify` and `compare` need ----------------------------------------------

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The schema of the newest version, declarations included."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """The number of rows of that version."""

    @abstractmethod
    def scan(self, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield some columns of all rows, in the order of `take`'s numbers."""

    @abstractmethod
    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Return some columns of the rows with these numbers, 0 to `rows` - 1, in this order."""

    @abstractmethod
    def declared(self) -> list[Entry]:
        """Return the stored declarations."""

    def entry(self, vector: str) -> Entry:
        """Return the declaration of a column.

        Raises:
            MissingColumnError: there is none.
        """
        found = {each.vector_column: each for each in self.declared()}
        if vector not in found:
            raise undeclared(self.shown, vector, found)
        return found[vector]

    def previous(self, vector: str) -> Entry | None:
        """Return the declaration that a migration replaced, while it can still be rolled back; else None."""
        return None

    @abstractmethod
    def status(self) -> list[ColumnStatus]:
        """Classify the rows of each declared column, without running a model."""

    # -- writing -----------------------------------------------------------------------------------------------------

    def add(self, declaration: EmbeddingFunctionConfig, options: Options) -> ColumnReport:
        """Add a vector column for all rows."""
        raise self._unsupported("add a vector column")

    def fill(self, vector: str, options: Options) -> ColumnReport:
        """Embed the rows that have a source and no vector."""
        raise self._unsupported("fill a vector column")

    def refresh(
        self, vector: str, options: Options, *, unstamped: Unstamped, sample: int, dry_run: bool
    ) -> ColumnReport:
        """Embed the rows that are not fresh."""
        raise self._unsupported("refresh a vector column")

    def migrate(
        self,
        vector: str,
        function: EmbeddingFunction,
        options: Options,
        *,
        name: str | None,
        switch: bool,
        index: str,
        keep: bool,
    ) -> Migration:
        """Change the model of a column, or continue a change."""
        raise self._unsupported("change the model of a column")

    def migrations(self, options: Options) -> list[Migration]:
        """Return the migrations that are not finished; what they embed, they embed with these options."""
        return []

    def repoint(self, vector: str, function: EmbeddingFunction, *, sample: int, seed: int, dry_run: bool) -> Agreement:
        """Replace a column's declaration by one of the same vectors; with `dry_run` compare the sample only."""
        raise self._unsupported("change a declaration")

    def detach(self, vector: str, *, drop: bool) -> None:
        """Remove a column's declaration, and with `drop` the column."""
        raise self._unsupported("remove a declaration")

    def _unsupported(self, what: str) -> ConfigError:
        return ConfigError(
            f"{self.shown} cannot {what} here.", "open the data with an engine that can: a LanceDB table"
        )
