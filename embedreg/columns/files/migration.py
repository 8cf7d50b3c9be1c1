"""`FilesMigration`: another model for the column of a dataset, and the rollback."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow import layouts
from embedreg.columns.declare import columns_of, differing, rebuilt
from embedreg.columns.files import rows as by_row
from embedreg.columns.files.changes import Change, stage
from embedreg.columns.files.records import Migrating, entry_of
from embedreg.columns.files.staging import FILES, MIGRATION, PREVIOUS, Staging, key_of
from embedreg.columns.migration import TIMED_ROWS, Migration, ask_before_embedding, gone, not_settled, wrong_state
from embedreg.columns.proof import SAMPLE, refuse_unproven
from embedreg.columns.results import ColumnReport, MigrationStatus
from embedreg.columns.rows import plain_rows, without_views
from embedreg.columns.store import Options
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration import codec
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.embedding.table import BATCH_ROWS
from embedreg.errors import StorageError, option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from embedreg.columns.files.changes import Known
    from embedreg.columns.files.folder import DataFiles

__all__ = ["FilesMigration"]

_PLACES = 16  # row groups that the sample of a check comes from


class FilesMigration(Migration):
    """The migration of a dataset's column; a dataset has one at a time.

    Args:
        function: the new function, where the caller has it; else it is rebuilt from the declaration.
    """

    def __init__(self, staging: Staging, options: Options, function: EmbeddingFunction | None = None) -> None:
        self._staging, self._files, self._options, self._function = staging, staging.files, options, function
        self._id = self._facts().id
        self._last: MigrationStatus | None = None

    def _facts(self) -> Migrating:
        found = self._staging.migrating()
        if found is None:
            raise gone()
        return found

    @property
    def status(self) -> MigrationStatus:
        found = self._staging.migrating()
        if found is None and self._last is not None:
            return self._last
        return self._status(self._facts())

    def _status(self, facts: Migrating) -> MigrationStatus:
        files = self._files
        counted = [(name, sum(unit.rows or 0 for unit in files.scan(name).units)) for name in files.names()]
        listed = self._staging.publishing()
        renamed = {} if listed is None else listed.files
        staged = [each for each in counted if each[0] in renamed or self._staged(facts, each[0])]
        notes = []
        if listed is not None:
            left = sum(1 for name in listed.files if self._staging.done(name) is not None)
            notes.append(
                f"interrupted among its renames, {left:,} of {len(listed.files):,} files are left: the next call that "
                "changes the column completes them"
            )
        return MigrationStatus(
            facts.id,
            facts.state,
            facts.vector,
            facts.name,
            self._new(facts).name,
            differing(self._old(facts), self._new(facts)),
            sum(rows for _, rows in staged),
            sum(rows for _, rows in counted),
            len(staged),
            len(counted),
            tuple(notes),
        )

    def _staged(self, facts: Migrating, name: str) -> bool:
        if facts.state in ("switched", "settled"):
            return name in facts.published
        return self._staging.done(name) is not None

    def _new(self, facts: Migrating) -> Entry:
        return entry_of(facts.new, "the record of the migration")

    def _old(self, facts: Migrating) -> Entry:
        return entry_of(facts.old, "the record of the migration")

    def _config(self, entry: Entry) -> EmbeddingFunctionConfig:
        if self._function is not None:
            return codec.recorded(entry, self._function)
        return rebuilt(entry)

    def _forward(self, facts: Migrating) -> Change:
        old, new = self._old(facts), self._new(facts)
        return Change(
            "stage",
            key_of("migrate", facts.id),
            new,
            lambda: self._config(new),
            leave_out=columns_of(old),
            anew=True,
        )

    # -- forward -----------------------------------------------------------------------------------------------------

    def _run(self) -> ColumnReport:
        with self._staging.held():
            facts = self._facts()
            if facts.state not in ("staging", "ready"):
                raise wrong_state(facts.vector, facts.state)
            change = self._forward(facts)
            report, _ = stage(self._staging, change, self._options)
            if facts.state == "staging":
                self._prove(change)
            self._to(facts, "ready")
            return report

    def _prove(self, change: Change) -> None:
        """Embed a sample of the staged rows again.

        Raises:
            DriftError: they have other vectors. StorageError: a staged file has other rows than its source.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        files, chance = self._files, random.Random(change.key)
        staged = dataclasses.replace(files, data=self._staging.root.inside(FILES))
        entry, parts, places = change.entry, [], []
        for name in files.names():
            if self._staging.done(name) is not None:
                units = staged.scan(name).units
                if sum(unit.rows or 0 for unit in units) != sum(unit.rows or 0 for unit in files.scan(name).units):
                    raise StorageError(
                        f"what was staged for {name} has other rows.",
                        option(
                            "`embedreg column abandon`, and migrate again", "Migration.abandon(), and migrate again"
                        ),
                    )
                places += [(name, unit) for unit in units if unit.rows]
        for name, unit in chance.sample(places, min(_PLACES, len(places))):
            columns = [entry.source_column, entry.vector_column]
            table = pa.Table.from_batches(list(staged.batches(name, columns, BATCH_ROWS, unit)))
            table = plain_rows(table).filter(pc.and_(table[0].is_valid(), table[1].is_valid()))
            rows = sorted(chance.sample(range(len(table)), min(-(-SAMPLE // min(_PLACES, len(places))), len(table))))
            parts.append(table.take(pa.array(rows, pa.int64())).select(columns))
        if parts:
            rows = pa.concat_tables(parts, promote_options="permissive").combine_chunks()
            source, vector = (rows.column(n).combine_chunks() for n in range(2))
            refuse_unproven(change.config(), source, vector, str(files.path))

    def _switch(self) -> int:
        with self._staging.held():
            facts = self._facts()
            if facts.state in ("switched", "settled"):
                return len(facts.published)
            if facts.state == "staging":
                self._run()
                facts = self._facts()
            change = self._forward(facts)
            _, entries = stage(self._staging, change, self._options)  # what is new or has changed since `run`
            self._staging.list_renames(change.key, entries, keep=facts.keep, state="switched")
            self._staging.publish()
            return len(self._facts().published)

    def _settle(self) -> ColumnReport:
        with self._staging.held():
            facts = self._facts()
            if facts.state not in ("switched", "settled"):
                raise wrong_state(facts.vector, facts.state)
            new = self._new(facts)
            wanted = frozenset(
                {"stale", "foreign", "empty", "unstamped"} if digests.column_of(new.reserved) else {"empty"}
            )
            change = Change("settle", key_of("settle", facts.id), new, lambda: self._config(new), wanted=wanted)
            change = dataclasses.replace(
                change, leave_out=tuple(set(columns_of(self._old(facts))) - set(columns_of(new)))
            )
            report, entries = stage(self._staging, change, self._options)
            self._staging.list_renames(change.key, entries)
            changed = self._staging.publish()
            if not changed:
                self._to(self._facts(), "settled")
            return dataclasses.replace(report, commits=1)

    def _finish(self) -> None:
        with self._staging.held():
            facts = self._facts()
            if facts.state != "settled":
                raise (not_settled if facts.state == "switched" else wrong_state)(facts.vector, facts.state)
            last = dataclasses.replace(self._status(facts), state="finished")
            self._staging.forget()
            self._last = last

    def _to(self, facts: Migrating, state: str) -> None:
        self._staging.write(MIGRATION, Migrating(**facts.model_dump() | {"state": state}))

    # -- back --------------------------------------------------------------------------------------------------------

    def _abandon(self) -> None:
        with self._staging.held():
            facts = self._facts()
            if facts.state not in ("staging", "ready"):
                raise wrong_state(facts.vector, facts.state)
            last = dataclasses.replace(self._status(facts), state="abandoned")
            self._staging.drop()
            self._staging.forget()
            self._last = last

    def _rollback(self, *, yes: bool) -> None:
        before = dataclasses.replace(self.status, state="rolled back")
        interrupted = self._staging.publishing() is not None
        with self._staging.held():
            facts = self._staging.migrating()
            if facts is None:
                if not interrupted:
                    raise gone()
                self._last = before  # the renames of an interrupted rollback were completed just now
                return
            if facts.state not in ("switched", "settled"):
                raise wrong_state(facts.vector, facts.state)
            old, new = self._old(facts), self._new(facts)
            last = dataclasses.replace(self._status(facts), state="rolled back")

            before_switch = self._before_switch()

            def untouched(name: str) -> bool:
                if self._files.stamp(name) != facts.published.get(name) or not self._staging.previous(name):
                    return False
                # a file that came while the others were staged never had the old vectors
                return set(columns_of(old)) <= set(before_switch.schema(name).names)

            key, known = key_of("rollback", facts.id), self._known(old)
            if not self._staging.is_begun(key):  # else it was asked for
                names = [name for name in self._files.names() if not untouched(name)]
                rows, some = self._unknown(names, old, known)
                why = "they were added or changed since the switch" if facts.keep else "no copy was kept"
                ask_before_embedding(rows, yes, why, lambda: rebuilt(old), lambda: some)
            change = Change(
                "rollback",
                key,
                old,
                lambda: rebuilt(old),
                leave_out=columns_of(new),
                anew=True,
                known=known,
                previous=untouched,
            )
            _, entries = stage(self._staging, change, self._options)
            self._staging.list_renames(change.key, entries, state="rolled back")
            self._staging.publish()
            self._last = last

    def _before_switch(self) -> DataFiles:
        """Return the files that the switch replaced, by their names."""
        return dataclasses.replace(self._files, data=self._staging.root.inside(PREVIOUS))

    def _unknown(self, names: Sequence[str], old: Entry, known: Known) -> tuple[int, pa.Array]:
        """Return how many rows of some files have a source and no known vector, and the sources of some of them."""
        import numpy as np
        import pyarrow as pa

        total, some = 0, pa.nulls(0, pa.string())
        for name in names:
            for batch in self._files.batches(name, [old.source_column], BATCH_ROWS):
                source = batch.column(0)
                _, _, have = known(source)
                rows = np.flatnonzero(np.asarray(source.is_valid()) & ~have)
                if not len(some):
                    some = layouts.taken(source, rows[:TIMED_ROWS])
                total += len(rows)
        return total, some

    def _known(self, old: Entry) -> Known:
        """Return a look-up of the vectors in the files that the switch replaced; they are read when first needed."""
        found: list[_Kept] = []

        def known(source: pa.Array) -> tuple[pa.Array, pa.Array, np.ndarray]:
            if not found:
                found.append(_Kept(self._before_switch(), self._staging, old))
            return found[0].look_up(source)

        return known


class _Kept:
    """The vectors of the files that a switch replaced, by the digests of their sources."""

    def __init__(self, kept: DataFiles, staging: Staging, old: Entry) -> None:
        import pyarrow as pa

        self.prefix = digests.prefix_stored(old.reserved) or ":"
        names = [file.path.removeprefix(f"{PREVIOUS}/") for file in staging.root.listing(PREVIOUS)]
        vectors: list[Any] = []
        stored: list[Any] = []
        keys: list[str | None] = []
        digest = digests.column_of(old.reserved)
        for name in names:
            columns = [old.source_column, *columns_of(old)]
            if old.vector_column not in kept.schema(name).names:
                continue
            for batch in kept.batches(name, columns, BATCH_ROWS):
                source, vector = batch.column(old.source_column), batch.column(old.vector_column)
                has = digest is not None and digest in batch.schema.names
                stamps = batch.column(digest) if has else pa.nulls(len(source), pa.string())
                classes = by_row.classes(source, vector, stamps, self.prefix)
                good = pa.array(classes["fresh"] | classes["unstamped"])
                vectors.append(vector.filter(good))
                stored.append(stamps.cast(pa.string()).filter(good))
                keys += digests.digests(without_views(source).filter(good), self.prefix).to_pylist()
        self.places = {key: place for place, key in enumerate(keys) if key is not None}
        self.vectors = pa.chunked_array(vectors) if vectors else None
        self.stored = pa.chunked_array(stored, pa.string())

    def look_up(self, source: pa.Array) -> tuple[pa.Array, pa.Array, np.ndarray]:
        """Return (n,) vectors, (n,) digests, and (n,) bool, whether each is known."""
        import numpy as np
        import pyarrow as pa

        places = [self.places.get(key or "") for key in digests.digests(source, self.prefix).to_pylist()]
        rows = pa.array(places, pa.int64())
        if self.vectors is None:
            return None, pa.nulls(len(source), pa.string()), np.zeros(len(source), bool)
        taken = self.vectors.take(rows).combine_chunks()
        stamps = self.stored.take(rows).combine_chunks()
        return taken, stamps, np.asarray(rows.is_valid())
