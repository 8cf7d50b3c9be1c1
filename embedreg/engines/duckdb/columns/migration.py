"""`DuckDBMigration`: new vectors in a column beside the old one, then both renamed in one transaction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from embedreg.columns.declare import columns_of, differing, rebuilt
from embedreg.columns.migration import TIMED_ROWS, Migration, ask_before_embedding, gone, not_settled, wrong_state
from embedreg.columns.proof import SAMPLE, refuse_unproven
from embedreg.columns.results import ColumnReport, MigrationStatus
from embedreg.columns.store import Options
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration import codec, templates
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.engines.duckdb.columns import rows as by_row
from embedreg.engines.duckdb.columns.place import Place, arrow
from embedreg.engines.duckdb.columns.records import Change, commented, in_comments
from embedreg.engines.duckdb.columns.rows import Columns
from embedreg.engines.duckdb.sql import comment_statements, identifier, literal, rendered
from embedreg.errors import SchemaError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DuckDBMigration", "Steps"]

_ALL = frozenset({"stale", "foreign", "unstamped", "empty"})
_CHANGED = frozenset({"stale", "empty"})  # since the switch, of the old vectors


class Steps:
    """The steps of a change, each one transaction. Its record is the comment of the column beside the declared one."""

    def __init__(self, place: Place) -> None:
        self.place = place

    # -- names -------------------------------------------------------------------------------------------------------

    @staticmethod
    def next(change: Change) -> tuple[str, str]:
        """Return the columns where new vectors and digests are staged."""
        return f"{change.name}__next", f"{change.name}__next_source_digest"

    @staticmethod
    def kept(change: Change) -> tuple[str, str]:
        """Return the columns where the old vectors and their digests are kept."""
        return f"{change.vector}__previous", f"{change.vector}__previous_source_digest"

    def staged(self, change: Change) -> Columns:
        """Return the staged columns."""
        return Columns.of(change.entry("new"), *self.next(change))

    def now(self, change: Change) -> Columns:
        """Return the columns of the new vectors as they are named in the state of a change."""
        return self.staged(change) if change.state in ("staging", "ready") else Columns.of(change.entry("new"))

    def missing(self, con: Any, columns: Columns) -> str | None:
        """Return a column that the table lacks, since it was renamed or dropped; None if all are there."""
        names = {name.lower() for name in self.place.types(con)}
        wanted = filter(None, (columns.source, columns.vector, columns.digest))
        return next((name for name in wanted if name.lower() not in names), None)

    def refuse_missing(self, change: Change) -> None:
        """Raise `StorageError` if a column that the new vectors need was renamed or dropped."""
        with self.place.reading() as con:
            name = self.missing(con, self.now(change))
        if name is not None:
            ends = "abandon" if change.state in ("staging", "ready") else "finish or rollback"
            raise StorageError(
                f"{self.place.shown} no longer has the column {name!r}: it was renamed or dropped.",
                f"rename it back, or end the migration: {ends}",
            )

    # -- the record --------------------------------------------------------------------------------------------------

    def change(self) -> Change | None:
        """Return the change that is in progress; None if there is none.

        Raises:
            MetadataError: its record is not what embedreg writes.
        """
        with self.place.reading() as con:
            found = in_comments(self.place.comments(con))
        for column, change in found.items():
            names = self.next(change) if change.state in ("staging", "ready") else self.kept(change)
            if column == names[0]:
                return change
        return None

    def record(self, con: Any, change: Change) -> None:
        """Write the record of a change."""
        column = (self.next(change) if change.state in ("staging", "ready") else self.kept(change))[0]
        con.execute(f"COMMENT ON COLUMN {self._column(column)} IS {literal(commented(change))}")

    def _column(self, name: str) -> str:
        return f"{self.place.quoted}.{identifier(name)}"

    def _alter(self, con: Any, what: str) -> None:
        con.execute(f"ALTER TABLE {self.place.quoted} {what}")

    def _rename(self, con: Any, old: str, new: str) -> None:
        self._alter(con, f"RENAME COLUMN {identifier(old)} TO {identifier(new)}")

    def status(self, change: Change) -> MigrationStatus:
        """Return the state of a migration."""
        columns, staged = self.now(change), change.state in ("staging", "ready")
        with self.place.reading() as con:
            [total] = con.execute(f"SELECT count(*) FROM {self.place.quoted}").fetchone()
            gone = self.missing(con, columns)
            counts = dict.fromkeys(("empty", "stale"), 0) if gone else by_row.counts(con, self.place, columns)
        left = 0 if not staged else total if gone else counts["empty"] + counts["stale"]
        name = change.entry("new").name
        notes = ("it is being rolled back: the next call that changes the column continues it",)
        return MigrationStatus(
            change.id,
            change.state,
            change.vector,
            change.name,
            name,
            differing(change.entry("old"), change.entry("new")) if change.what == "migrate" else "",
            total - left,
            total,
            int(not left),
            1,
            notes if change.back else (),
        )

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _refuse_taken(self, con: Any, change: Change) -> None:
        """Raise SchemaError if the table has a column of a name that is needed, now or for the switch."""
        wanted = [*self.next(change), *columns_of(change.entry("new"))]
        if change.what == "migrate":
            old = {name.lower() for name in columns_of(change.entry("old"))}
            wanted = [name for name in wanted if name.lower() not in old]
            wanted += self.kept(change) if change.keep else ()
        names = {name.lower(): name for name in self.place.types(con)}  # DuckDB's names have no case
        if taken := next((names[name.lower()] for name in wanted if name.lower() in names), None):
            raise SchemaError(
                f"{self.place.shown} has a column {taken!r}, whose name is needed here.", "rename or drop that column"
            )

    def begin(self, change: Change) -> None:
        """Add the columns where vectors are staged.

        Raises:
            SchemaError: the table has a column of a name that is needed.
        """
        entry = change.entry("new")
        ndims = entry.reserved.get("ndims")
        assert isinstance(ndims, int)  # it was made from a function
        vector, digest = self.next(change)
        with self.place.writing() as con:
            self.place.refuse_indexed(con)
            self._refuse_taken(con, change)
            template = templates.stored(entry)
            if change.what == "add" and template is not None:
                texts = identifier(entry.source_column)
                self._alter(con, f"ADD COLUMN {texts} VARCHAR")
                con.execute(f"UPDATE {self.place.quoted} AS t SET {texts} = {rendered(template, 't.')}")
            self._alter(con, f"ADD COLUMN {identifier(vector)} {by_row.kind_of(entry, ndims)}")
            if digests.column_of(entry.reserved) is not None:
                self._alter(con, f"ADD COLUMN {identifier(digest)} VARCHAR")
            self.record(con, change)

    def stage(self, change: Change, config: Callable[[], EmbeddingFunctionConfig], options: Options) -> by_row.Counts:
        """Embed the rows that are not staged yet, or changed since."""
        self.refuse_missing(change)
        columns = self.staged(change)
        wanted = _ALL if columns.digest is not None else frozenset({"empty"})
        return by_row.fill(self.place, columns, config, wanted, options)

    def prove(self, change: Change, config: Callable[[], EmbeddingFunctionConfig]) -> None:
        """Embed a sample of the staged rows again; the change is then ready.

        Raises:
            DriftError: they have other vectors.
        """
        pairs = by_row.pairs(self.place, self.staged(change), "", SAMPLE, 0)
        if len(pairs):
            source, vector = pairs["source"].combine_chunks(), pairs["vector"].combine_chunks()
            refuse_unproven(config(), source, vector, self.place.shown)
        with self.place.writing() as con:
            self.record(con, change.model_copy(update={"state": "ready"}))

    def switch(self, change: Change) -> None:
        """Give the staged columns their names and declaration; keep the old ones, or drop them. One transaction."""
        new = change.entry("new")
        vector, digest = self.next(change)
        kept, kept_digest = self.kept(change)
        with self.place.writing() as con:
            self.place.refuse_indexed(con)
            names = self.place.types(con)
            if change.what == "migrate":
                old = change.entry("old")
                own = digests.column_of(old.reserved)
                if change.keep:
                    self._rename(con, change.vector, kept)
                    if own is not None and own in names:
                        self._rename(con, own, kept_digest)
                    else:
                        self._stamp_kept(con, change, old)
                else:
                    for name in columns_of(old):
                        if name in names:
                            self._alter(con, f"DROP COLUMN {identifier(name)}")
            self._rename(con, vector, change.name)
            if (own := digests.column_of(new.reserved)) is not None:
                self._rename(con, digest, own)
            for statement in comment_statements(str(self.place.table), [new]):
                con.execute(statement)
            if change.what == "migrate" and change.keep:
                self.record(con, change.model_copy(update={"state": "switched"}))

    def _stamp_kept(self, con: Any, change: Change, old: Entry) -> None:
        """Add digests to old vectors without them, so that a rollback finds the rows that changed since."""
        kept, digest = self.kept(change)
        self._alter(con, f"ADD COLUMN {identifier(digest)} VARCHAR")
        expected = digests.sql(
            f"t.{identifier(old.source_column)}", digests.prefix_stored(old.reserved) or "", "duckdb"
        )
        con.execute(
            f"UPDATE {self.place.quoted} AS t SET {identifier(digest)} = {expected} "
            f"WHERE t.{identifier(kept)} IS NOT NULL"
        )

    def rollback(self, change: Change, config: Callable[[], EmbeddingFunctionConfig], options: Options) -> None:
        """Restore the old columns' names and declaration; embed rows that changed since as before."""
        old, new = change.entry("old"), change.entry("new")
        kept, kept_digest = self.kept(change)
        if not change.back:
            with self.place.writing() as con:
                self.record(con, change.model_copy(update={"back": True}))
        by_row.fill(self.place, self._kept_columns(change), config, _CHANGED, options)
        with self.place.writing() as con:
            self.place.refuse_indexed(con)
            names = self.place.types(con)
            for name in columns_of(new):
                if name in names:
                    self._alter(con, f"DROP COLUMN {identifier(name)}")
            self._rename(con, kept, change.vector)
            if (own := digests.column_of(old.reserved)) is not None:
                self._rename(con, kept_digest, own)
            else:
                self._alter(con, f"DROP COLUMN {identifier(kept_digest)}")
            for statement in comment_statements(str(self.place.table), [old]):
                con.execute(statement)

    def ask(self, change: Change, config: Callable[[], EmbeddingFunctionConfig], yes: bool) -> None:
        """Raise `ConfigError` if a rollback would embed many rows without the caller's consent."""
        if yes or change.back:
            return
        columns = self._kept_columns(change)
        source = f"t.{identifier(columns.source)}"
        where = f"FROM {self.place.quoted} AS t WHERE {columns.any_of(_CHANGED)} AND {source} IS NOT NULL"
        with self.place.reading() as con:
            [rows] = con.execute(f"SELECT count(*) {where}").fetchone()

        def some() -> pa.Array:
            with self.place.reading() as con:
                made = arrow(con, f"SELECT {source} AS source {where} LIMIT {TIMED_ROWS}")
            return made["source"].combine_chunks()

        ask_before_embedding(rows, yes, "they were added or changed since the switch", config, some)

    def _kept_columns(self, change: Change) -> Columns:
        old = change.entry("old")
        return Columns(old.source_column, *self.kept(change), digests.prefix_stored(old.reserved) or "")

    def drop(self, columns: tuple[str, str]) -> None:
        """Drop the columns beside the declared ones, and the record with them."""
        with self.place.writing() as con:
            self.place.refuse_indexed(con)
            names = self.place.types(con)
            for name in columns:
                if name in names:
                    self._alter(con, f"DROP COLUMN {identifier(name)}")


class DuckDBMigration(Migration):
    """The migration of a column; a table has one at a time.

    Args:
        function: the new function, where the caller has it; else it is rebuilt from the declaration.
    """

    def __init__(
        self, steps: Steps, change: Change, options: Options, function: EmbeddingFunction | None = None
    ) -> None:
        self._steps, self._first, self._options, self._function = steps, change, options, function
        self._last: MigrationStatus | None = None

    def _change(self, *states: str) -> Change:
        """Return the record.

        Raises:
            StorageError: it is in another state, or no longer there.
        """
        found = self._steps.change()
        if found is None or found.id != self._first.id:
            raise gone()
        if found.state not in states:
            raise wrong_state(found.vector, found.state)
        return found

    @property
    def status(self) -> MigrationStatus:
        if self._last is not None:
            return self._last
        return self._steps.status(self._change("staging", "ready", "switched", "settled"))

    def _config(self, entry: Entry) -> Callable[[], EmbeddingFunctionConfig]:
        return lambda: rebuilt(entry) if self._function is None else codec.recorded(entry, self._function)

    def _run(self) -> ColumnReport:
        start, change = time.perf_counter(), self._change("staging", "ready")
        config = self._config(change.entry("new"))
        made = self._steps.stage(change, config, self._options)
        if change.state == "staging":
            self._steps.prove(change, config)
        return self._report("stage", change, made, start)

    def _switch(self) -> int:
        change = self._change("staging", "ready", "switched", "settled")
        if change.state == "staging":
            self._run()
            change = self._change("ready")
        if change.state == "ready":
            self._steps.stage(change, self._config(change.entry("new")), self._options)  # rows changed since `run`
            last = self._end("finished", change)
            self._steps.switch(change)
            if not change.keep:
                self._last = last
        return 1

    def _settle(self) -> ColumnReport:
        start, change = time.perf_counter(), self._change("switched", "settled")
        self._steps.refuse_missing(change)
        entry = change.entry("new")
        columns = Columns.of(entry)
        wanted = _ALL if columns.digest is not None else frozenset({"empty"})
        made = by_row.fill(self._steps.place, columns, self._config(entry), wanted, self._options)
        with self._steps.place.writing() as con:
            self._steps.record(con, change.model_copy(update={"state": "settled"}))
        return self._report("settle", change, made, start)

    def _finish(self) -> None:
        if self._last is not None:  # a switch that kept nothing has ended it
            return
        change = self._change("switched", "settled")
        with self._steps.place.reading() as con:  # without its columns there is nothing to settle
            lost = self._steps.missing(con, self._steps.now(change))
        if change.state != "settled" and lost is None:
            raise not_settled(change.vector, change.state)
        last = self._end("finished", change)
        self._steps.drop(self._steps.kept(change))
        self._last = last

    def _rollback(self, *, yes: bool) -> None:
        change = self._change("switched", "settled")
        last = self._end("rolled back", change)

        def config() -> EmbeddingFunctionConfig:
            return rebuilt(change.entry("old"))

        self._steps.ask(change, config, yes)
        self._steps.rollback(change, config, self._options)
        self._last = last

    def _abandon(self) -> None:
        change = self._change("staging", "ready")
        last = self._end("abandoned", change)
        self._steps.drop(self._steps.next(change))
        self._last = last

    def _end(self, state: Literal["finished", "rolled back", "abandoned"], change: Change) -> MigrationStatus:
        return dataclasses.replace(self._steps.status(change), state=state)

    def _report(self, what: str, change: Change, made: by_row.Counts, start: float) -> ColumnReport:
        return ColumnReport(
            change.name,
            what,
            self._steps.status(self._change("staging", "ready", "switched", "settled")).total_rows,
            made.written,
            made.embedded,
            made.cached,
            bad_rows=made.bad_rows,
            bad=tuple(made.bad),
            commits=1,
            seconds=time.perf_counter() - start,
        )
