"""`Migration`: the change of a column's model, as a handle whose methods each engine implements."""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from embedreg.columns.results import ColumnReport, MigrationStatus
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.embedding.column import embed_column
from embedreg.errors import ConfigError, StorageError, option
from embedreg.runtime.vectors import disk

if TYPE_CHECKING:
    import pyarrow as pa


__all__ = [
    "FEW_ROWS",
    "Migration",
    "ask_before_embedding",
    "declared_already",
    "gone",
    "not_settled",
    "using_cache",
    "wrong_state",
]

FEW_ROWS = 100  # that a rollback embeds without asking: seconds, or a part of a cent
TIMED_ROWS = 32  # that are embedded to estimate the time for more


class Migration(ABC):
    """One migration of a vector column, begun by `migrate` or found by `migrations`.

    Its state is read again by each access. A crash at any point leaves the data readable; the same call continues.
    """

    _options: Any  # `columns.store.Options`, which imports this module
    _ended: str | None = None  # the state in which this handle has ended it

    @property
    @abstractmethod
    def status(self) -> MigrationStatus:
        """The state; nothing is changed or embedded."""

    @property
    def id(self) -> str:
        """The identifier."""
        return self.status.id

    @property
    def state(self) -> str:
        """The state, one of `results.STATES`."""
        return self.status.state

    @property
    def vector(self) -> str:
        """The vector column."""
        return self.status.vector

    @property
    def notes(self) -> tuple[str, ...]:
        """Findings that the user may not expect."""
        return self.status.notes

    def run(self) -> ColumnReport:
        """Stage new vectors for all rows, until the state is "ready"; the data is as before.

        Raises:
            StorageError: another process works on it, it cannot be written, or it has ended. EmbedregError: as `add`.
        """
        with self._at_work():
            return self._run()

    @abstractmethod
    def _run(self) -> ColumnReport:
        """Stage, where the migration has not ended."""

    def switch(self) -> int:
        """Replace vectors, name and declaration in one commit; return the version of the data.

        Raises:
            StorageError: not all rows are staged, other writers left no quiet moment, or it has ended.
        """
        with self._at_work():
            return self._switch()

    @abstractmethod
    def _switch(self) -> int:
        """Switch, where the migration has not ended."""

    def settle(self, *, grace_s: float = 0.0) -> ColumnReport:
        """Embed what other writers changed since it was staged: rows that are stale, foreign or without a vector.

        Args:
            grace_s: check again after this many seconds, for writers that opened the data before the switch and still
                use the old function; 0 checks only once.
        Returns:
            What was done, both times together.
        Raises:
            ConfigError: `grace_s` is negative. StorageError: nothing was switched. EmbedregError: as `add`.
        """
        if not isinstance(grace_s, int | float) or not 0 <= grace_s < float("inf"):
            raise ConfigError(f"invalid grace_s={grace_s!r}; expected 0 or more.", "grace_s=60")
        with self._at_work():
            report = self._settle()
            if not grace_s:
                return report
            time.sleep(grace_s)
            return _sum(report, self._settle())

    @abstractmethod
    def _settle(self) -> ColumnReport:
        """Embed once what other writers changed."""

    def finish(self) -> None:
        """Remove what a rollback needs; the state is then "finished".

        Raises:
            StorageError: it is not settled, or has ended otherwise.
        """
        if self._ended == "finished":
            return
        with self._at_work():
            self._finish()
            self._ended = self.state

    @abstractmethod
    def _finish(self) -> None:
        """Finish, where the migration has not ended."""

    def rollback(self, *, yes: bool = False) -> None:
        """Restore the old vectors and the old declaration, also for rows that were added since.

        Args:
            yes: embed rows whose old vectors are not kept, however many; else more than 100 are refused.
        Raises:
            ConfigError: more rows would be embedded than that. StorageError: nothing was switched, or it was finished.
        """
        if self._ended == "rolled back":
            return
        with self._at_work():
            self._rollback(yes=yes)
            self._ended = self.state

    @abstractmethod
    def _rollback(self, *, yes: bool) -> None:
        """Go back, where the migration has not ended."""

    def abandon(self) -> None:
        """Remove what was staged, before a switch; the data is as before.

        Raises:
            StorageError: it was switched, or has ended otherwise.
        """
        if self._ended == "abandoned":
            return
        with self._at_work():
            self._abandon()
            self._ended = self.state

    @abstractmethod
    def _abandon(self) -> None:
        """Abandon, where the migration has not ended."""

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Use the cache of the options.

        Raises:
            StorageError: this handle has ended the migration; what it would change may be another one's by now.
        """
        if self._ended is not None:
            raise StorageError(
                f"the migration of column {self.vector!r} has ended: it was {self._ended}.",
                option("`embedreg column status` shows what is there", "embedreg.columns.status(data)"),
            )
        with using_cache(self._options.cache):
            yield


@contextlib.contextmanager
def using_cache(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Use a file of vectors, unless none is named or one is in use."""
    if path is None or disk.current() is not None:
        yield
        return
    with disk.use(path):
        yield


def wrong_state(vector: str, state: str) -> StorageError:
    """Return the error for a call that needs the switch before it, or comes before the switch after it."""
    if state in ("switched", "settled"):
        return StorageError(
            f"the migration of column {vector!r} is {state}: its new vectors are in place.",
            option("`embedreg column rollback` restores the old ones", "Migration.rollback() restores the old ones"),
        )
    return StorageError(
        f"the migration of column {vector!r} is not switched yet: it is {state}.",
        option(
            "`embedreg column switch` continues, `embedreg column abandon` drops it",
            "Migration.switch() continues, .abandon() drops it",
        ),
    )


def not_settled(vector: str, state: str) -> StorageError:
    """Return the error for a `finish` before `settle`."""
    return StorageError(
        f"the migration of column {vector!r} is {state}, not settled: some rows may have no vector of the new model.",
        option("`embedreg column settle` first", "Migration.settle() first"),
    )


def declared_already(vector: str) -> ConfigError:
    """Return the error for a migration to the function that a column has."""
    return ConfigError(
        f"column {vector!r} is declared with this function already.",
        option("`embedreg column refresh` embeds what is not up to date", "columns.refresh(data)"),
    )


def gone() -> StorageError:
    """Return the error for a handle whose migration another process has ended."""
    return StorageError(
        "the migration is no longer there: another process has finished it, rolled it back or abandoned it.",
        option("`embedreg column status` shows what is there", "embedreg.columns.status(data)"),
    )


def ask_before_embedding(
    rows: int, yes: bool, why: str, config: Callable[[], EmbeddingFunctionConfig], some: Callable[[], pa.Array]
) -> None:
    """Raise if a rollback would embed many rows and the caller has not agreed to it.

    Args:
        rows: how many.
        yes: whether the caller has agreed.
        why: in a few words, why they have no old vector.
        config: returns the old declaration.
        some: returns at most `TIMED_ROWS` of the sources, from which the time is estimated.
    Raises:
        ConfigError: there are more than `FEW_ROWS`. EmbedregError: the old function cannot be used.
    """
    if yes or rows <= FEW_ROWS:
        return
    function, sources = config().function, some()
    embed_column(function, sources.slice(0, 1))  # loads the model
    start = time.perf_counter()
    made = embed_column(function, sources)
    computed = made.distinct - made.cached
    took = rows * (time.perf_counter() - start) / computed if computed > 0 else None
    about = "" if took is None else f" (about {_duration(took)})"
    raise ConfigError(
        f"{rows:,} rows have no old vector ({why}): going back embeds them{about}.", option("pass --yes", "yes=True")
    )


def _duration(seconds: float) -> str:
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 else "a second"


def _sum(first: ColumnReport, second: ColumnReport) -> ColumnReport:
    """Return the report of two runs, one after the other, with the counts of both."""
    names = ("written", "embedded", "cached", "stamped", "changed_meanwhile", "commits", "retries", "seconds")
    both = {name: getattr(first, name) + getattr(second, name) for name in names}
    known = first.bytes_written is not None and second.bytes_written is not None
    size = (first.bytes_written or 0) + (second.bytes_written or 0) if known else None
    notes = tuple(dict.fromkeys((*first.notes, *second.notes)))
    return replace(second, **both, bytes_written=size, notes=notes)
