"""A DuckDB table as a `ColumnStore`."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.arrow.quantized import QUANTIZED
from embedreg.arrow.templates import refuse_type
from embedreg.columns.arguments import already_there, no_column, texts_there
from embedreg.columns.declare import columns_of, dropped_with, entry_for, rebuilt, repointed, settings_of
from embedreg.columns.migration import Migration, declared_already
from embedreg.columns.results import ROW_CLASSES, ColumnReport, ColumnStatus, MigrationStatus
from embedreg.columns.store import ColumnStore, Options, Unstamped, without_digests
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration import codec, comments, templates
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.declaration.fingerprint import fingerprint
from embedreg.declaration.quantization import is_quantized
from embedreg.embedding.table import BATCH_ROWS
from embedreg.engines.duckdb.columns import rows as by_row
from embedreg.engines.duckdb.columns.migration import DuckDBMigration, Steps
from embedreg.engines.duckdb.columns.place import Place, arrow
from embedreg.engines.duckdb.columns.records import Change, text_of
from embedreg.engines.duckdb.columns.rows import Columns
from embedreg.engines.duckdb.sql import comment_statements, identifier, refused
from embedreg.errors import (
    ConfigError,
    DriftError,
    EmbedregError,
    InputError,
    MetadataError,
    MissingColumnError,
    SchemaError,
)
from embedreg.inspection.attach import Agreement, compared, refuse_other_vectors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DuckDBColumns"]


class DuckDBColumns(ColumnStore):
    """The columns of a table in a database file."""

    def __init__(self, place: Place) -> None:
        self.place = place.named()
        self.shown = self.place.shown
        self.steps = Steps(self.place)

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        with self.place.reading() as con:
            made = arrow(con, f"SELECT * FROM {self.place.quoted} LIMIT 0").schema
        entries = self.declared()
        text = f"[{', '.join(entry.raw for entry in entries)}]".encode()
        return made.with_metadata({codec.KEY.encode(): text} if entries else {})

    @property
    def rows(self) -> int:
        with self.place.reading() as con:
            return int(con.execute(f"SELECT count(*) FROM {self.place.quoted}").fetchone()[0])

    def scan(self, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        picked = ", ".join(map(identifier, columns))
        with self.place.reading() as con:
            query = f"SELECT {picked} FROM {self.place.quoted} ORDER BY rowid"
            yield from con.sql(query).to_arrow_reader(batch_rows)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        import pyarrow as pa

        picked = ", ".join(map(identifier, columns))
        numbered = f"SELECT {picked}, row_number() OVER (ORDER BY rowid) - 1 AS embedreg_n FROM {self.place.quoted}"
        with self.place.reading() as con:
            con.register("embedreg_rows", pa.table({"n": pa.array(rows, pa.int64()), "i": range(len(rows))}))
            made = arrow(
                con,
                f"SELECT {', '.join(f't.{identifier(name)}' for name in columns)} FROM embedreg_rows JOIN "
                f"({numbered}) AS t ON embedreg_n = n ORDER BY i",
            )
            con.unregister("embedreg_rows")
            return made

    def declared(self) -> list[Entry]:
        with self.place.reading() as con:
            return codec.entries(comments.metadata_in_comments(self.place.comments(con).values()))

    def previous(self, vector: str) -> Entry | None:
        change = self.steps.change()
        ours = change is not None and change.state in ("switched", "settled") and vector in (change.vector, change.name)
        return change.entry("old") if change is not None and ours else None

    def status(self) -> list[ColumnStatus]:
        migration: MigrationStatus | None = None
        problem = None
        try:
            change = self.steps.change()
            migration = None if change is None or change.what == "add" else self.steps.status(change)
        except EmbedregError as exc:
            problem = exc.message
        return [self._status(entry, migration, problem) for entry in self.declared()]

    def _status(self, entry: Entry, migration: MigrationStatus | None, problem: str | None) -> ColumnStatus:
        counts: dict[str, Any] = dict.fromkeys(ROW_CLASSES, 0)
        try:
            self._refuse_absent(entry)
            with self.place.reading() as con:
                counts = by_row.counts(con, self.place, Columns.of(entry))
        except EmbedregError as exc:
            problem = exc.message
        stored = entry.reserved.get("fingerprint")
        ours = migration is not None and entry.vector_column in (migration.vector, migration.name)
        return ColumnStatus(
            vector=entry.vector_column,
            source=entry.source_column,
            function=entry.name,
            settings=settings_of(entry),
            fingerprint=stored if isinstance(stored, str) else None,
            digest=digests.column_of(entry.reserved),
            rows=sum(counts.values()),
            migration=migration if ours else None,
            problem=problem,
            **counts,
        )

    def _refuse_absent(self, entry: Entry) -> None:
        with self.place.reading() as con:
            names = {name.casefold(): kind for name, kind in self.place.types(con).items()}
        template = templates.stored(entry)
        for name in (entry.source_column, *columns_of(entry), *(() if template is None else template.columns)):
            if name.casefold() not in names:
                raise MissingColumnError(
                    f"{self.shown} has no column {name!r}, which {entry.vector_column!r} declares."
                )
        digest = digests.column_of(entry.reserved)
        others = [each for each in self.declared() if each.vector_column != entry.vector_column]
        used = {entry.source_column, entry.vector_column}
        used |= {name for each in others for name in (each.source_column, *columns_of(each))}
        taken = {name.casefold() for name in used}
        if digest is not None and (digest.casefold() in taken or names[digest.casefold()] != "VARCHAR"):
            raise MetadataError(
                f"column {digest!r} cannot hold the digests of {entry.vector_column!r}: it has another use.",
                "declare the function again",
            )

    # -- writing -----------------------------------------------------------------------------------------------------

    def _change(self, options: Options | None = None) -> Change | None:
        """Return the change in progress; a rollback that was stopped is completed first, as it was asked for."""
        change = self.steps.change()
        if change is None or not change.back:
            return change
        DuckDBMigration(self.steps, change, options or Options()).rollback(yes=True)
        return None

    def add(self, declaration: EmbeddingFunctionConfig, options: Options) -> ColumnReport:
        start = time.perf_counter()
        vector = declaration.vector_column
        change = self._change(options)
        if change is None:
            with self.place.reading() as con:
                names = list(self.place.types(con))
            self._refuse_source(declaration, names, options.digest)
            if vector in names:
                raise already_there(self.shown, vector)
            if declaration.value_type in QUANTIZED:
                raise refused(vector, declaration.value_type)
            entry = entry_for(declaration, digest=options.digest)
            change = self._begin("add", vector, vector, None, entry, True)
        elif change.what != "add" or not codec.says_same(declaration, change.entry("new")) or change.name != vector:
            raise self._busy(change)
        entry = change.entry("new")
        made = self.steps.stage(change, lambda: codec.recorded(entry, declaration.function), options)
        self.steps.switch(change)
        return self._report("add", vector, made, start)

    def _refuse_source(self, declaration: EmbeddingFunctionConfig, names: list[str], digest: bool) -> None:
        """Raise if what is to be embedded is missing, has no digests, or texts of a template that have no place."""
        source, template = declaration.source_column, templates.of(declaration)
        if template is None:
            if source not in names:
                raise no_column(self.shown, source, names)
            if digest:
                with self.place.reading() as con:
                    digests.digests(arrow(con, f"SELECT {identifier(source)} FROM {self.place.quoted} LIMIT 0")[0], "")
            return
        template.refuse_missing(names, declaration.vector_column)
        with self.place.reading() as con:
            kinds = arrow(con, f"SELECT * FROM {self.place.quoted} LIMIT 0").schema
        for name in template.columns:
            refuse_type(name, kinds.field(name).type)
        if source.casefold() in {name.casefold() for name in names}:
            raise texts_there(self.shown, source, declaration.vector_column)

    def fill(self, vector: str, options: Options) -> ColumnReport:
        self._change(options)
        return self._fill("fill", self.entry(vector), frozenset({"missing"}), options)

    def refresh(
        self, vector: str, options: Options, *, unstamped: Unstamped, sample: int, dry_run: bool
    ) -> ColumnReport:
        if not dry_run:
            self._change(options)
        entry = self.entry(vector)
        self._refuse_absent(entry)
        columns = Columns.of(entry)
        if columns.digest is None:
            wanted, notes = without_digests(unstamped, templated=columns.template is not None)
            made = self._fill("refresh", entry, wanted, options, dry_run)
            return dataclasses.replace(made, notes=notes)
        wanted = frozenset({"stale", "foreign", "empty"})
        stamped = 0
        if unstamped == "recompute":
            wanted |= {"unstamped"}
        elif dry_run:
            with self.place.reading() as con:
                stamped = by_row.counts(con, self.place, columns)["unstamped"]
        elif unstamped == "verify" and not self._verified(entry, columns, sample):
            wanted |= {"unstamped"}
        else:
            with self.place.writing() as con:
                digest = identifier(columns.digest)
                stamp = f"UPDATE {self.place.quoted} AS t SET {digest} = {columns.expected} WHERE "
                stamped = con.execute(f"{stamp}{columns.where('unstamped')}").fetchone()[0]
        return dataclasses.replace(self._fill("refresh", entry, wanted, options, dry_run), stamped=stamped)

    def _fill(
        self, what: str, entry: Entry, wanted: frozenset[str], options: Options, dry_run: bool = False
    ) -> ColumnReport:
        start, columns = time.perf_counter(), Columns.of(entry)
        self._refuse_absent(entry)
        with self.place.reading() as con:
            where = columns.any_of(wanted)
            todo = con.execute(f"SELECT count(*) FROM {self.place.quoted} AS t WHERE {where}").fetchone()[0]
        if dry_run or not todo:
            report = ColumnReport(entry.vector_column, what, self.rows, todo, todo, dry_run=dry_run)
            return dataclasses.replace(report, seconds=time.perf_counter() - start)
        if is_quantized(entry.reserved):
            raise refused(entry.vector_column, str(entry.reserved["dtype"]))
        made = by_row.fill(self.place, columns, lambda: rebuilt(entry), wanted, options)
        return self._report(what, entry.vector_column, made, start)

    def _report(self, what: str, vector: str, made: by_row.Counts, start: float) -> ColumnReport:
        return ColumnReport(
            vector,
            what,
            self.rows,
            made.written,
            made.embedded,
            made.cached,
            bad_rows=made.bad_rows,
            bad=tuple(made.bad),
            commits=1,
            seconds=time.perf_counter() - start,
        )

    def _verified(self, entry: Entry, columns: Columns, sample: int) -> bool:
        """Return whether a sample of the unstamped rows agrees with the declared function; True if there are none."""
        pairs = by_row.pairs(self.place, columns, f"{columns.where('unstamped')} AND", sample, 0)
        if not len(pairs):
            with self.place.reading() as con:
                return not by_row.counts(con, self.place, columns)["unstamped"]
        config = rebuilt(entry)
        found = compared(config, pairs["source"].combine_chunks(), pairs["vector"].combine_chunks())
        try:
            refuse_other_vectors(*found, config)
        except DriftError:
            return False
        return len(found[0]) > 0

    # -- migrating ---------------------------------------------------------------------------------------------------

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
        change = self._change(options)
        if change is None:
            old = self.entry(vector)
            self._refuse_absent(old)
            if name in (None, vector) and old.reserved.get("fingerprint") == fingerprint(function):
                raise declared_already(vector)
            with self.place.reading() as con:
                names = list(self.place.types(con))
            if name is not None and name != vector and name in names:
                raise SchemaError(f"{self.shown} has a column {name!r} already.", "choose another name")
            template = templates.stored(old)
            text = None if template is None else template.text
            like = function.bind(old.source_column, name or vector, template=text)
            new = entry_for(like, digest=options.digest)
            change = self._begin("migrate", vector, name or vector, old, new, keep)
        elif (
            change.what != "migrate"
            or vector not in (change.vector, change.name)
            or name not in (None, change.name)
            or not codec.says_same(function.bind(change.entry("new").source_column, change.name), change.entry("new"))
        ):
            raise self._busy(change)
        made = DuckDBMigration(self.steps, change, options, function)
        if change.state in ("staging", "ready"):
            made.run()
            if switch:
                made.switch()
        if switch and made.state != "finished":
            made.settle()
        return made

    def _begin(self, what: Any, vector: str, name: str, old: Entry | None, new: Entry, keep: bool) -> Change:
        facts = (vector, name, old and old.raw, new.reserved.get("fingerprint"), self.shown)
        change = Change(
            id=hashlib.sha256(repr(facts).encode()).hexdigest()[:12],
            what=what,
            vector=vector,
            name=name,
            state="staging",
            keep=keep,
            old="" if old is None else text_of(old),
            new=text_of(new),
        )
        self.steps.begin(change)
        return change

    def _busy(self, change: Change) -> ConfigError:
        doing = "added" if change.what == "add" else f"migrated to {change.entry('new').name!r}"
        return ConfigError(
            f"column {change.vector!r} of {self.shown} is being {doing} already ({change.state}).",
            "continue that call, finish it, or undo it first",
        ).for_shell(f"embedreg column finish, rollback or abandon {self.shown} first")

    def migrations(self, options: Options) -> list[Migration]:
        change = self.steps.change()
        return [] if change is None else [DuckDBMigration(self.steps, change, options)]

    # -- declarations ------------------------------------------------------------------------------------------------

    def repoint(self, vector: str, function: EmbeddingFunction, *, sample: int, seed: int, dry_run: bool) -> Agreement:
        import numpy as np

        if not dry_run:
            self._change()
        old = self.entry(vector)
        config = function.bind(old.source_column, vector)
        pairs = by_row.pairs(self.place, Columns.of(old), "", sample, seed)
        if not len(pairs):
            raise InputError(f"no row of {self.shown} has both {old.source_column!r} and {vector!r}.", "fill it first")
        cosines, lengths = compared(config, pairs["source"].combine_chunks(), pairs["vector"].combine_chunks())
        refuse_other_vectors(cosines, lengths, config)
        if not dry_run:
            [statement] = comment_statements(str(self.place.table), [repointed(old, function)])
            with self.place.writing() as con:
                con.execute(statement)
        written = None if dry_run else Path(self.shown)
        return Agreement(self.rows, len(cosines), float(cosines.min()), float(np.median(cosines)), written)

    def detach(self, vector: str, *, drop: bool) -> None:
        change = self._change()
        entry = self.entry(vector)
        if change is not None and vector in (change.vector, change.name):
            raise self._busy(change)
        with self.place.writing() as con:
            names = self.place.types(con)
            if not drop:
                con.execute(f"COMMENT ON COLUMN {self.place.quoted}.{identifier(vector)} IS NULL")
                return
            self.place.refuse_indexed(con)
            for name in dropped_with(entry):
                if name in names:
                    con.execute(f"ALTER TABLE {self.place.quoted} DROP COLUMN {identifier(name)}")
