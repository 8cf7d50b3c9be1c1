"""What the calls on a column return, and the classes of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from embedreg.embedding.table import BadRow

__all__ = ["ROW_CLASSES", "STATES", "ColumnReport", "ColumnStatus", "MigrationStatus"]

ROW_CLASSES = ("fresh", "stale", "foreign", "unstamped", "empty", "null_source")
"""The classes of rows; each row is in exactly one.

fresh: the digest is that of the source and the declared function. A null vector is then a blank source, or one that
the function returns no vector for. stale: the source has changed since. foreign: another function made the vector.
unstamped: a vector without a digest, so its origin is unknown. empty: a source without a vector. null_source: nothing
to embed.
"""

STATES = (
    "begun",
    "staging",
    "ready",
    "switched",
    "settled",
    "finished",
    "rolled back",
    "abandoned",
)
"""The states of a migration. Up to "ready" the table is as before; from "switched" it has the new vectors."""


@dataclass(frozen=True)
class MigrationStatus:
    """A migration of a column, as data.

    Attributes:
        id: names it in messages of commits.
        state: one of `STATES`.
        vector: the column's name before the switch.
        name: its name after the switch.
        function: the stored name of the new function.
        differs: the settings in which it differs from the old one, if both have one name: "seed=7 instead of 0".
        staged_rows, total_rows: rows whose new vectors are staged, of the rows of the table.
        staged_fragments, total_fragments: the same in fragments or files.
        notes: surprising findings.
    """

    id: str
    state: str
    vector: str
    name: str
    function: str | None = None
    differs: str = ""
    staged_rows: int = 0
    total_rows: int = 0
    staged_fragments: int = 0
    total_fragments: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColumnStatus:
    """The rows of a vector column by class, from digests alone; no model is run.

    Attributes:
        vector, source: the columns.
        function: the stored name of the declared function.
        settings: its stored settings, each as one printable line, with secrets redacted.
        fingerprint: the fingerprint that fresh rows carry; None for a declaration of another client.
        digest: the column of digests; None without one: rows are then unstamped, empty or null_source only.
        rows: all rows.
        fresh, stale, foreign, unstamped, empty, null_source: rows of each class, see `ROW_CLASSES`.
        migration: the migration of this column, if there is one.
        problem: why the rows could not be classified, or the migration not be read; None if all is well.
        notes: surprising findings.
    """

    vector: str
    source: str
    function: str | None = None
    settings: dict[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    digest: str | None = None
    rows: int = 0
    fresh: int = 0
    stale: int = 0
    foreign: int = 0
    unstamped: int = 0
    empty: int = 0
    null_source: int = 0
    migration: MigrationStatus | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def todo(self) -> int:
        """Rows that `refresh` would look at."""
        return self.stale + self.foreign + self.unstamped + self.empty


@dataclass(frozen=True)
class ColumnReport:
    """The report of a call on a column.

    Attributes:
        vector: the column.
        what: "add", "fill", "refresh", "stage", "settle", "rollback" or "embed".
        rows: rows of the table.
        written: rows whose vector was written.
        embedded: vectors of distinct inputs, computed or from the vector cache.
        cached: how many of these came from the vector cache.
        stamped: rows that got a digest without being embedded.
        changed_meanwhile: rows skipped, since their source changed meanwhile; the next run embeds them.
        bytes_written: bytes of data files written; None if not known.
        bad_rows: number of rows that failed.
        bad: the first of them.
        commits: commits made.
        retries: commits that conflicted with another writer's and were repeated.
        seconds: duration.
        dry_run: whether nothing was written; the counts are then what would be done.
        notes: surprising findings.
    """

    vector: str
    what: str
    rows: int = 0
    written: int = 0
    embedded: int = 0
    cached: int = 0
    stamped: int = 0
    changed_meanwhile: int = 0
    bytes_written: int | None = None
    bad_rows: int = 0
    bad: tuple[BadRow, ...] = ()
    commits: int = 0
    retries: int = 0
    seconds: float = 0.0
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        from dataclasses import asdict

        return asdict(self)
