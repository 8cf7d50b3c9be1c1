"""Parquet and Arrow IPC files as a `ColumnStore`: changed files are rewritten and replace the old ones by a rename."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.columns.arguments import already_there, texts_there
from embedreg.columns.declare import bound_like, calibrated, entry_for, rebuilt, repointed, settings_of
from embedreg.columns.files import declarations
from embedreg.columns.files import rows as by_row
from embedreg.columns.files.changes import Change, classified, stage
from embedreg.columns.files.folder import DataFiles, find, with_entries
from embedreg.columns.files.migration import FilesMigration
from embedreg.columns.files.records import Migrating
from embedreg.columns.files.staging import MIGRATION, Staging, key_of
from embedreg.columns.migration import Migration, declared_already
from embedreg.columns.results import ROW_CLASSES, ColumnReport, ColumnStatus
from embedreg.columns.rows import plain_rows
from embedreg.columns.sources import Source
from embedreg.columns.store import ColumnStore, Options, Unstamped, without_digests
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.datasets.schemas import conformed, unified
from embedreg.declaration import codec, templates
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.declaration.fingerprint import fingerprint
from embedreg.declaration.quantization import is_quantized
from embedreg.embedding.table import BATCH_ROWS
from embedreg.errors import (
    ConfigError,
    DriftError,
    EmbedregError,
    InputError,
    SchemaError,
)
from embedreg.inspection.attach import Agreement, compared, refuse_other_vectors

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FilesStore", "open_files"]


def open_files(path: Path) -> FilesStore | None:
    """Open a data file, or a folder of them; None if the path is neither."""
    found = find(path)
    return None if found is None else FilesStore(found)


class FilesStore(ColumnStore):
    """A file or a dataset folder."""

    rows_of_any_size = True

    def __init__(self, files: DataFiles) -> None:
        self.files = files
        self.shown = str(files.path)
        self.staging = Staging(files)

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        made = unified([(name, self.files.schema(name)) for name in self.files.names()])
        return with_entries(made, self.files.declared())

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self._counted())

    def _counted(self) -> list[tuple[str, int]]:
        """Return the files with the number of their rows."""
        return [(name, sum(unit.rows or 0 for unit in self.files.scan(name).units)) for name in self.files.names()]

    def scan(self, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = self.schema
        wanted = pa.schema([schema.field(name) for name in columns])
        for name in self.files.names():
            for batch in self.files.batches(name, columns, batch_rows):
                yield conformed(batch, wanted, name)

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        schema = self.schema
        wanted = pa.schema([schema.field(name) for name in columns])
        numbers = np.asarray(rows, np.int64)
        order = np.argsort(numbers, kind="stable")
        sought, parts, start, at = numbers[order], [], 0, 0
        for name, count in self._counted():
            stop = start + count
            if at < len(sought) and sought[at] < stop:
                for batch in self.files.batches(name, columns, BATCH_ROWS):
                    end = int(np.searchsorted(sought, start + batch.num_rows))
                    if end > at:
                        some = plain_rows(conformed(batch, wanted, name))
                        parts.append(some.take(pa.array(sought[at:end] - start)))
                    start, at = start + batch.num_rows, end
            start = stop
        table = pa.Table.from_batches(parts) if parts else wanted.empty_table()
        return table.take(pa.array(np.argsort(order, kind="stable")))

    def declared(self) -> list[Entry]:
        return self.files.declared()

    def previous(self, vector: str) -> Entry | None:
        found = self.staging.migrating()
        if found is None or found.state not in ("switched", "settled") or vector not in (found.name, found.vector):
            return None
        return next(iter(codec.entries({codec.KEY: f"[{found.old}]"})), None)

    def status(self) -> list[ColumnStatus]:
        try:
            listed = {each.status.name: each.status for each in self.migrations(Options())}
            listed |= {each.vector: each for each in listed.values() if each.state in ("begun", "staging", "ready")}
            problem = None
        except EmbedregError as exc:
            listed, problem = {}, exc.message
        return [self._status(entry, listed.get(entry.vector_column), problem) for entry in self.declared()]

    def _status(self, entry: Entry, migration: Any, problem: str | None) -> ColumnStatus:
        counts: dict[str, Any] = dict.fromkeys(ROW_CLASSES, 0)
        try:
            for name in self.files.names():
                for found, _ in classified(self.files, name, entry, BATCH_ROWS):
                    for each, number in by_row.count(found).items():
                        counts[each] += number
        except EmbedregError as exc:
            problem, counts = exc.message, dict.fromkeys(ROW_CLASSES, 0)
        stored = entry.reserved.get("fingerprint")
        return ColumnStatus(
            vector=entry.vector_column,
            source=entry.source_column,
            function=entry.name,
            settings=settings_of(entry),
            fingerprint=stored if isinstance(stored, str) else None,
            digest=digests.column_of(entry.reserved),
            rows=sum(counts.values()),
            **counts,
            migration=migration,
            problem=problem,
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    def add(self, declaration: EmbeddingFunctionConfig, options: Options) -> ColumnReport:
        vector, source = declaration.vector_column, declaration.source_column
        with self.staging.held():
            self._refuse_staged()
            taken = {name for file in self.files.names() for name in self.files.schema(file).names}
            if vector in taken:
                raise already_there(self.shown, vector)
            if declaration.template is not None and source in taken:
                raise texts_there(self.shown, source, vector)
            inputs = self._inputs(Source(source, templates.of(declaration)))
            entry = entry_for(declaration, digest=options.digest, sources=inputs)
            change = self._anew("add", entry, declaration.function)
            return self._publish(change, options)

    def fill(self, vector: str, options: Options) -> ColumnReport:
        return self._kept("fill", vector, options, frozenset({"missing"}), frozenset())

    def refresh(
        self, vector: str, options: Options, *, unstamped: Unstamped, sample: int, dry_run: bool
    ) -> ColumnReport:
        entry = self.entry(vector)
        wanted, stamp, notes = {"stale", "foreign", "empty"}, set[str](), tuple[str, ...]()
        if digests.column_of(entry.reserved) is None:
            some, notes = without_digests(unstamped, templated=templates.stored(entry) is not None)
            wanted = set(some)
        elif unstamped == "recompute" or (unstamped == "verify" and not dry_run and not self._verified(entry, sample)):
            wanted.add("unstamped")
        else:
            stamp.add("unstamped")
        if dry_run:
            return self._dry(entry, wanted, stamp, notes)
        made = self._kept("refresh", vector, options, frozenset(wanted), frozenset(stamp))
        return dataclasses.replace(made, notes=(*notes, *made.notes))

    def _dry(self, entry: Entry, wanted: set[str], stamp: set[str], notes: tuple[str, ...]) -> ColumnReport:
        found = self._status(entry, None, None)
        todo, stamped = (sum(getattr(found, each) for each in some) for some in (wanted, stamp))
        return ColumnReport(
            entry.vector_column, "refresh", found.rows, todo, todo, stamped=stamped, dry_run=True, notes=notes
        )

    def _kept(
        self, what: str, vector: str, options: Options, wanted: frozenset[str], stamp: frozenset[str]
    ) -> ColumnReport:
        """Rewrite the files that have rows to embed."""
        with self.staging.held():
            self._refuse_staged()
            entry = calibrated(self.entry(vector), self._inputs(Source.of(self.entry(vector))))
            key = key_of(what, entry.raw, sorted(wanted), sorted(stamp))
            change = Change(what, key, entry, lambda: rebuilt(entry), wanted=wanted, stamp=stamp)
            return self._publish(change, options)

    def _publish(self, change: Change, options: Options) -> ColumnReport:
        report, entries = stage(self.staging, change, options)
        if not self.staging.list_renames(change.key, entries).files and change.what != "add":
            self.staging.publish()
            return report
        changed = self.staging.publish()
        notes = [f"{name} was written by others meanwhile: it is as they left it" for name in changed]
        return dataclasses.replace(report, commits=1, notes=(*report.notes, *notes))

    def _anew(self, what: str, entry: Entry, function: EmbeddingFunction) -> Change:
        facts: tuple[Any, ...] = entry.source_column, entry.vector_column, entry.reserved.get("fingerprint")
        facts += (entry.reserved.get(templates.KEY),) if templates.KEY in entry.reserved else ()
        facts += (entry.reserved["dtype"],) if is_quantized(entry.reserved) else ()
        key = key_of(what, *facts, digests.column_of(entry.reserved))
        return Change(what, key, entry, lambda: codec.recorded(entry, function), anew=True)

    def _inputs(self, source: Source) -> Iterator[Any]:
        """Yield what a column is embedded from, in parts."""
        return (source.values(batch) for batch in self.scan(source.columns))

    def _refuse_staged(self) -> None:
        """Raise `ConfigError` if the files of a migration are staged, which another change would drop."""
        found = self.staging.migrating()
        if found is not None and found.state in ("staging", "ready"):
            raise ConfigError(
                f"column {found.vector!r} of {self.shown} is being migrated ({found.state}).",
                f"embedreg.columns.migrations({self.shown!r})[0].switch() or .abandon() first",
            ).for_shell(f"embedreg column switch {self.shown}, or embedreg column abandon {self.shown}")

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
        with self.staging.held():
            found = self.staging.migrating()
            if found is None:
                found = self._begin(vector, function, options, name or vector, keep)
            else:
                self._refuse_other(found, vector, function, name)
            made = FilesMigration(self.staging, options, function)
            if found.state in ("staging", "ready"):
                made.run()
                if switch:
                    made.switch()
            if switch:
                made.settle()
            return made

    def _begin(self, vector: str, function: EmbeddingFunction, options: Options, name: str, keep: bool) -> Migrating:
        old = self.entry(vector)
        if name == vector and old.reserved.get("fingerprint") == fingerprint(function):
            raise declared_already(vector)
        taken = {column for file in self.files.names() for column in self.files.schema(file).names}
        if name != vector and name in taken:
            raise SchemaError(f"{self.shown} has a column {name!r} already.", "choose another name")
        like = bound_like(old, function, name)
        new = entry_for(like, digest=options.digest, sources=self._inputs(Source.of(old)))
        facts = (old.raw, new.reserved.get("fingerprint"), name)
        found = Migrating(
            id=key_of(*facts)[:12], vector=vector, name=name, state="staging", old=old.raw, new=new.raw, keep=keep
        )
        self.staging.drop()
        self.staging.write(MIGRATION, found)
        return found

    def _refuse_other(self, found: Migrating, vector: str, function: EmbeddingFunction, name: str | None) -> None:
        """Raise `ConfigError` if another migration is not finished."""
        [new] = codec.entries({codec.KEY: f"[{found.new}]"})
        same = codec.says_same(function.bind(new.source_column, found.name), new)
        if vector in (found.vector, found.name) and name in (None, found.name) and same:
            return
        raise ConfigError(
            f"column {found.vector!r} of {self.shown} is being migrated to {new.name!r} already ({found.state}).",
            "finish, roll back or abandon that migration first",
        ).for_shell("embedreg column finish, rollback or abandon first")

    def migrations(self, options: Options) -> list[Migration]:
        return [] if self.staging.migrating() is None else [FilesMigration(self.staging, options)]

    # -- declarations ------------------------------------------------------------------------------------------------

    def repoint(self, vector: str, function: EmbeddingFunction, *, sample: int, seed: int, dry_run: bool) -> Agreement:
        import numpy as np

        with self.staging.held():
            self._refuse_staged()
            old = self.entry(vector)
            config = bound_like(old, function)
            numbers = sorted(random.Random(seed).sample(range(self.rows), min(sample, self.rows)))
            source, stored = self._pairs(numbers, old)
            cosines, lengths = compared(config, source, stored)
            if not len(cosines):
                raise InputError(
                    f"no row of the sample of {self.shown} has both {old.source_column!r} and {vector!r}.",
                    "a larger sample may have",
                )
            refuse_other_vectors(cosines, lengths, config)
            if not dry_run:
                declarations.declare(self.staging, vector, repointed(old, function))
        written = None if dry_run else self.files.path
        return Agreement(self.rows, len(cosines), float(cosines.min()), float(np.median(cosines)), written)

    def _pairs(self, numbers: Sequence[int], entry: Entry) -> tuple[pa.Array, pa.Array]:
        """Return the sources and vectors of the rows that have both."""
        import pyarrow.compute as pc

        rows = self.take(numbers, [entry.source_column, entry.vector_column])
        source, vector = (rows.column(n).combine_chunks() for n in range(2))
        both = pc.and_(source.is_valid(), vector.is_valid())
        return source.filter(both), vector.filter(both)

    def detach(self, vector: str, *, drop: bool) -> None:
        with self.staging.held():
            self._refuse_staged()
            entry = self.entry(vector)
            found = self.staging.migrating()
            if found is not None and vector in (found.vector, found.name):
                raise ConfigError(
                    f"column {vector!r} of {self.shown} has a migration that is not finished ({found.state}).",
                    "finish it, or roll it back, first",
                ).for_shell("embedreg column finish, or embedreg column rollback, first")
            if drop:
                declarations.drop(self.staging, entry)
            else:
                declarations.declare(self.staging, vector, None)

    # -- samples -----------------------------------------------------------------------------------------------------

    def _verified(self, entry: Entry, sample: int) -> bool:
        """Return whether a sample of the unstamped rows agrees with the declared function; True if there are none."""
        import numpy as np

        rows, start = list[int](), 0
        for name in self.files.names():
            for found, _ in classified(self.files, name, entry, BATCH_ROWS):
                rows += (np.flatnonzero(found["unstamped"]) + start).tolist()
                start += len(found["unstamped"])
        if not rows:
            return True
        config = rebuilt(entry)
        source, vector = self._pairs(sorted(random.Random(0).sample(rows, min(sample, len(rows)))), entry)
        cosines, lengths = compared(config, source, vector)
        try:
            refuse_other_vectors(cosines, lengths, config)
        except DriftError:
            return False
        return len(cosines) > 0
