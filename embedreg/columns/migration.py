"""`Migration`: the change of a column's model, as a handle whose methods each engine implements."""

from __future__ import annotations

from abc import ABC, abstractmethod

from embedreg.columns.results import ColumnReport, MigrationStatus

__all__ = ["Migration"]


class Migration(ABC):
    """One migration of a vector column, begun by `migrate` or found by `migrations`.

    Its state is read anew by each access. A crash at any point leaves the data readable; the same call goes on.
    """

    @property
    @abstractmethod
    def status(self) -> MigrationStatus:
        """Where it stands; nothing is changed or embedded."""

    @property
    def id(self) -> str:
        """Its identifier."""
        return self.status.id

    @property
    def state(self) -> str:
        """One of `results.STATES`."""
        return self.status.state

    @property
    def vector(self) -> str:
        """The vector column."""
        return self.status.vector

    @property
    def notes(self) -> tuple[str, ...]:
        """Surprising findings."""
        return self.status.notes

    @abstractmethod
    def run(self) -> ColumnReport:
        """Stage new vectors for all rows, until the state is "ready"; the data is as before.

        Raises:
            StorageError: another process works on it, or it cannot be written. EmbedregError: as `add`.
        """

    @abstractmethod
    def switch(self) -> int:
        """Replace vectors, name and declaration in one commit; return the version of the data.

        Raises:
            StorageError: not all rows are staged, or other writers left no quiet moment.
        """

    @abstractmethod
    def settle(self) -> ColumnReport:
        """Embed what other writers changed since it was staged: rows that are stale, foreign or without a vector."""

    @abstractmethod
    def finish(self) -> None:
        """Remove what the way back needs; the state is then "finished".

        Raises:
            StorageError: it is not settled.
        """

    @abstractmethod
    def rollback(self) -> None:
        """Give the old vectors and the old declaration back, also for rows that were added since."""

    @abstractmethod
    def abandon(self) -> None:
        """Remove what was staged, before a switch; the data is as before."""
