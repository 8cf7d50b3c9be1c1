"""A migration of a column of a Lance table: staged beside it, switched by one commit, settled, and undone if wanted.

The table's own metadata decides whether the switch has happened: after a crash between the commit and its record, the
record is out of date, never the table.

Over 400 lines: the states of one migration, which lead into each other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from embedreg.columns.declare import bound_like, entry_for, rebuilt
from embedreg.columns.migration import (
    TIMED_ROWS,
    Migration,
    ask_before_embedding,
    declared_already,
    gone,
    not_settled,
    wrong_state,
)
from embedreg.columns.results import ColumnReport, MigrationStatus
from embedreg.columns.sources import Source
from embedreg.columns.store import Options, Unstamped
from embedreg.core.base import EmbeddingFunction
from embedreg.declaration import codec, digest
from embedreg.declaration.entries import Entry
from embedreg.declaration.fingerprint import fingerprint
from embedreg.declaration.quantization import is_quantized
from embedreg.engines.lancedb.columns import refreshing
from embedreg.engines.lancedb.columns.adding import reported, resumed, sources_of, typed
from embedreg.engines.lancedb.columns.commits import write_metadata
from embedreg.engines.lancedb.columns.comparing import agrees
from embedreg.engines.lancedb.columns.declared import (
    MARK,
    Mark,
    chosen,
    columns_of,
    counts_of,
    mark_of,
    refuse_legacy,
    vector_columns,
)
from embedreg.engines.lancedb.columns.indexing import built, join, replaced, settings_of
from embedreg.engines.lancedb.columns.making import Files, Maker
from embedreg.engines.lancedb.columns.place import BACK, Place
from embedreg.engines.lancedb.columns.settling import repair
from embedreg.engines.lancedb.columns.staging import Staging, data_files
from embedreg.engines.lancedb.columns.standing import standing
from embedreg.engines.lancedb.columns.switching import switched, went_back
from embedreg.engines.lancedb.names import refuse_name
from embedreg.errors import DriftError, SchemaError, StorageError, option
from embedreg.jobs.lock import Lock

__all__ = ["LanceMigration", "found", "migrate"]

PROVEN = 100  # staged vectors that are compared with the function before a switch


def migrate(
    place: Place,
    vector: str,
    function: EmbeddingFunction,
    options: Options,
    *,
    name: str | None,
    switch: bool,
    index: str,
    keep: bool,
) -> LanceMigration:
    """Begin or continue a migration; arguments and errors as `embedreg.columns.migrate`."""
    made = LanceMigration(place, options)
    made.begin(vector, function, name=name or vector, index=index, keep=keep)
    if made.state in ("begun", "staging"):
        made.run()
    if switch:
        if made.state == "ready":
            made.switch()
        if made.state == "switched":
            made.settle()
    return made


def found(place: Place, options: Options) -> LanceMigration | None:
    """Return what is unfinished on a table; None if nothing is.

    Raises:
        StorageError: the mark in the metadata, or the record beside the table, is not as embedreg writes it.
    """
    return None if standing(place) is None else LanceMigration(place, options)


class LanceMigration(Migration):
    """The migration of a Lance table; it is found by the table alone, since a table has one at most."""

    def __init__(self, place: Place, options: Options) -> None:
        self._place, self._options = place, options
        self._function: EmbeddingFunction | None = None
        self._last: MigrationStatus | None = None  # of one that has ended

    # -- its state ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> MigrationStatus:
        found = standing(self._place)
        if found is None and self._last is None:
            raise StorageError(
                f"table {self._place.name!r} has no migration.",
                option("embedreg column migrate begins one", "columns.migrate(...)"),
            )
        self._last = found or self._last
        assert self._last is not None
        return self._last

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Lock]:
        with self._place.locked() as lock:
            self._place.remove_branches()
            yield lock
        self._place.follow()

    def _recorded(self) -> tuple[Mark | None, dict[str, Any] | None]:
        """Return the table's mark and the record beside it; a record whose migration has ended is removed.

        Call it with the lock held.
        """
        mark, record = mark_of(self._place.newest().schema), self._place.kept.record()
        ended = record is not None and record["kind"] == "migrate" and record["state"] in ("switched", "settled")
        if mark is None and ended and record is not None:
            self._last = standing(self._place)  # a killed run had ended it
            if record.get("back") is True:
                replaced(self._place, record.get("like"), record["vector"])
            self._place.kept.drop()
            record = None
        if mark is not None and record is not None and record["id"] != mark.id:
            raise StorageError(
                f"{self._place.beside.shown()} belongs to another table than {self._place.name!r}.",
                "remove that folder; the table is intact",
            )
        if mark is not None and (record is None or record["state"] not in ("switched", "settled")):
            entry = columns_of(self._place.newest().schema)[mark.name].entry
            record = {
                "format": 1,
                "id": mark.id,
                "kind": "migrate",
                "vector": mark.vector,
                "name": mark.name,
                "source": entry.source_column,
                "to": mark.to,
                "entry": entry.raw,
                **(record or {}),
                "state": "switched",
            }
            self._place.kept.write(record)
        return mark, record

    # -- staging -----------------------------------------------------------------------------------------------------

    def begin(self, vector: str, function: EmbeddingFunction, *, name: str, index: str, keep: bool) -> None:
        """Record a new migration, or find the one that is unfinished.

        Raises:
            StorageError: another one is unfinished. Otherwise as `embedreg.columns.migrate`.
        """
        self._function = function
        with self._locked():
            mark, record = self._recorded()
            to = fingerprint(function)
            if mark is not None:
                if (mark.vector, mark.name, mark.to) != (vector, name, to):
                    raise StorageError(
                        f"column {mark.name!r} of table {self._place.name!r} is being migrated.",
                        option("`embedreg column finish` or `rollback` first", "Migration.finish() or .rollback()"),
                    )
                return
            dataset = self._place.newest()
            schema = dataset.schema
            refuse_legacy(dataset, f"table {self._place.name!r}")
            column = chosen(schema, vector, f"table {self._place.name!r}")
            if column.entry.reserved.get("fingerprint") == to and name == vector:
                raise declared_already(vector)
            if name != vector:
                refuse_name(name)
                if name in schema.names:
                    raise SchemaError(
                        f"the new column cannot be named {name!r}: it exists already.", "choose another name"
                    )
            like = bound_like(column.entry, function, name)
            inputs = sources_of(dataset, Source.of(column.entry))
            entry = entry_for(like, digest=self._options.digest, sources=inputs)
            digests = digest.column_of(entry.reserved)
            if digests in schema.names and digests != column.digest:
                raise SchemaError(f"the table has a column {digests!r} of another origin.", "drop or rename it")
            resumed(
                self._place,
                record,
                self._options,
                kind="migrate",
                vector=vector,
                name=name,
                source=column.source,
                entry=entry,
                keep=keep,
                index=index,
            )

    def _work(self, record: dict[str, Any], lock: Lock) -> tuple[Maker, Staging, Entry]:
        """Return what stages the new vectors; the function is the caller's, or a granted one of the record."""
        options, name = self._options, record["name"]
        if self._function is None:
            (entry,) = codec.entries({codec.KEY: f"[{record['entry']}]"})
            if (entry.source_column, entry.vector_column) != (record["source"], name):
                raise StorageError("the record of the migration does not fit its declaration.", "abandon it")
            self._function = rebuilt(entry).function
        if fingerprint(self._function) != record["to"]:
            raise StorageError("the migration was begun with another function.", "abandon it, or pass that one")
        (begun,) = codec.entries({codec.KEY: f"[{record['entry']}]"})
        config = bound_like(begun, self._function)
        entry = begun if is_quantized(begun.reserved) else entry_for(config, digest=digest.KEY in begun.reserved)
        maker = Maker(lambda: config, entry, options)
        entry = typed(entry, maker.field)
        keep = None
        if record.get("keep") is True:
            keep = chosen(self._place.newest().schema, record["vector"], f"table {self._place.name!r}")
        staging = Staging(
            self._place,
            record["source"],
            maker,
            keep=keep,
            progress=options.progress,
            batch_rows=options.batch_rows,
            check=lock.check,
        )
        return maker, staging, entry

    def _run(self) -> ColumnReport:
        started = time.perf_counter()
        with self._locked() as lock:
            mark, record = self._recorded()
            if mark is not None or record is None or record["kind"] != "migrate":
                raise gone() if mark is None else wrong_state(mark.vector, self.state)
            maker, staging, _ = self._work(record, lock)
            dataset = staging.run()
            self._prove(maker, staging, dataset)
            self._place.kept.write({**record, "state": "ready"})
            report = reported(record["vector"], "stage", maker, dataset, started)
            written = sum(path.stat().st_size for path in staging.files())
        return replace(report, written=maker.report.rows, bytes_written=written)

    def _prove(self, maker: Maker, staging: Staging, dataset: Any) -> None:
        """Compare staged vectors with the function.

        Raises:
            DriftError: they differ: the model has changed since they were staged.
        """
        for source, vectors in staging.sampled(dataset, PROVEN):
            good, rows = agrees(maker, source, vectors)
            if good < rows:
                raise DriftError(
                    f"{good} of {rows} staged vectors of a fragment are what the function returns now.",
                    option("`embedreg column abandon`, and begin again", "Migration.abandon(), then migrate again"),
                )

    # -- the switch --------------------------------------------------------------------------------------------------

    def _switch(self) -> int:
        with self._locked() as lock:
            mark, record = self._recorded()
            if mark is not None:
                return int(self._place.newest().version)
            if record is None or record["kind"] != "migrate" or record["state"] != "ready":
                if record is None:
                    raise gone()
                raise StorageError(
                    f"the migration of column {record['vector']!r} is {self.state}: not all rows are staged.",
                    option("run `embedreg column migrate` again: it continues", "Migration.run() stages them"),
                )
            maker, staging, entry = self._work(record, lock)
            like = settings_of(self._place.newest(), record["vector"]) if record.get("index") == "like" else None
            self._place.kept.write(record := {**record, "like": like})
            field = maker.field.with_name(record["name"])
            with built(self._place, staging, field, like, f"embedreg-{record['id']}") as index:
                made = switched(self._place, staging, record, entry, lock, self._options.switch_timeout_s)
                staging.republish(made)
                self._place.kept.write({**record, "state": "switched"})
                join(self._place, index, record["name"])
            self._place.remove_branches()
            return int(made.version)

    def _settle(self) -> ColumnReport:
        started = time.perf_counter()
        with self._locked():
            mark, record = self._recorded()
            if mark is None or record is None:
                raise gone() if record is None else wrong_state(record["vector"], self.state)
            repaired = repair(self._place, mark, self._options)
            column = chosen(self._place.newest().schema, mark.name, f"table {self._place.name!r}")
            # without digests only rows without a vector are known to need one
            policy: Unstamped = "trust" if column.digest is None else "recompute"
            reports = [
                refreshing.refresh(self._place, mark.name, self._options, unstamped=policy, sample=1) for _ in range(2)
            ]
            replaced(self._place, record.get("like"), mark.name)
            counts = counts_of(self._place.newest(), column)
            failed = reports[-1].bad_rows
            if counts["stale"] + counts["foreign"] == 0 and counts["empty"] <= failed:
                self._place.kept.write({**record, "state": "settled"})
        written = repaired + sum(each.written for each in reports)
        notes = (
            (
                f"{written:,} rows were written by others since they were staged; settled. A writer that opened the "
                "table before the switch keeps using the old model until it opens it again",
            )
            if written
            else ()
        )
        return replace(
            reports[-1],
            what="settle",
            written=written,
            embedded=sum(each.embedded for each in reports),
            cached=sum(each.cached for each in reports),
            commits=sum(each.commits for each in reports),
            retries=sum(each.retries for each in reports),
            bytes_written=sum(each.bytes_written or 0 for each in reports),
            seconds=time.perf_counter() - started,
            notes=notes,
        )

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        with self._locked():
            mark, record = self._recorded()
            if mark is None:
                if record is not None:
                    raise wrong_state(record["vector"], self.state)
                if self._last is not None and self._last.state in ("switched", "settled"):
                    raise gone()
                return
            last = self.status
            lost = mark.name not in self._place.newest().schema.names  # by others: there is nothing to settle
            if not lost and (record is None or record["state"] != "settled"):
                raise not_settled(mark.name, self.state)
            write_metadata(self._place, lambda dataset: _unmarked(dataset, mark.id))
            self._place.kept.drop()
            self._last = replace(last, state="finished")

    def _abandon(self) -> None:
        with self._locked():
            mark, record = self._recorded()
            if mark is not None:
                raise wrong_state(mark.vector, self.state)
            if record is None:
                return
            last = self.status
            Staging(self._place, record["source"], None).withdraw(data_files(self._place.newest()))
            self._place.kept.drop()
            self._last = replace(last, state="abandoned")

    def _rollback(self, *, yes: bool) -> None:
        with self._locked() as lock:
            mark, record = self._recorded()
            if mark is None and self._last is not None and self._last.state == "rolled back":
                return
            if mark is None or record is None:
                raise gone() if record is None else wrong_state(record["vector"], self.state)
            last = self.status
            names = vector_columns(schema := self._place.newest().schema)
            if mark.name not in schema.names and names:
                raise StorageError(
                    f"column {mark.name!r} is not in table {self._place.name!r}: it was renamed or dropped.",
                    option(
                        f"rename {names[0]!r} back; `embedreg column finish` keeps the table as it is",
                        f"rename {names[0]!r} back; Migration.finish() keeps the table as it is",
                    ),
                )
            maker = Maker(
                lambda: rebuilt(mark.before), mark.before, self._options, mark.old.field(0).with_nullable(True)
            )
            before = Staging(self._place, mark.before.source_column, None).previous()
            kept = Files(before) if before else None
            maker.earlier = [] if kept is None else [kept]
            staging = Staging(
                self._place,
                mark.before.source_column,
                maker,
                old_fields=mark.fields,
                last_old=mark.last,
                progress=self._options.progress,
                batch_rows=self._options.batch_rows,
                check=lock.check,
                folder=BACK,
            )
            if not yes and record.get("back") is not True:
                rows, some = staging.unknown(kept, TIMED_ROWS)
                why = "no copy was kept" if kept is None else "they were added or changed since the switch"
                ask_before_embedding(rows, yes, why, lambda: maker.config, lambda: some)
            record = {**record, "back": True}
            self._place.kept.write(record)
            staging.run()
            like = settings_of(self._place.newest(), mark.name)
            self._place.kept.write({**record, "like": like})
            field = mark.old.field(0)
            with built(self._place, staging, field, like, f"embedreg-{mark.id}") as index:
                made = went_back(self._place, staging, mark, lock, self._options.switch_timeout_s)
                staging.republish(made)
                join(self._place, index, mark.vector)
            self._place.kept.drop()
            self._place.remove_branches()
            self._last = replace(last, state="rolled back")


def _unmarked(dataset: Any, mark_id: str) -> dict[str, None] | None:
    mark = mark_of(dataset.schema)
    return {MARK: None} if mark is not None and mark.id == mark_id else None
