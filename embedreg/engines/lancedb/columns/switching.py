"""The commits of a migration: the switch and the rollback, each one `Merge` while others write."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from embedreg.declaration import codec, digest
from embedreg.declaration.entries import Entry
from embedreg.engines.lancedb.columns.adding import LATE_ROWS, new_fields, with_entry
from embedreg.engines.lancedb.columns.commits import Attempts, Schemas, commit, field_ids, lance
from embedreg.engines.lancedb.columns.declared import (
    MARK,
    Mark,
    chosen,
    columns_of,
    kept_metadata,
    mark_of,
    marked,
)
from embedreg.engines.lancedb.columns.place import Place
from embedreg.engines.lancedb.columns.staging import Staging
from embedreg.errors import SchemaError
from embedreg.jobs.lock import Lock

__all__ = ["switched", "went_back"]

_PATIENCE = 5  # attempts that stage few late rows; after these they get nulls, which `settle` or `refresh` fills


def switched(place: Place, staging: Staging, record: dict[str, Any], entry: Entry, lock: Lock, timeout_s: float) -> Any:
    """Commit the switch while others write, and return its version."""
    import pyarrow as pa

    maker = staging.maker
    assert maker is not None
    schemas_of = Schemas(place, f"embedreg-{record['id']}")
    attempts, newest = Attempts(timeout_s), place.newest()
    first, last = int(newest.version), max((each.fragment_id for each in newest.get_fragments()), default=0)
    while True:
        dataset = place.newest()
        if (nulls := _late(place, staging, dataset, attempts)) is None:
            continue
        column = chosen(dataset.schema, record["vector"], f"table {place.name!r}")
        gone = [column.vector, *([column.digest] if column.digest is not None else [])]
        own = kept_metadata(dataset.schema.field(column.vector))
        fields = new_fields(pa.field(record["name"], maker.field.type, metadata=own), entry)
        if clash := [name for name in fields.names if name in dataset.schema.names and name not in gone]:
            raise SchemaError(f"the table has a column {clash[0]!r}.", "drop or rename it")
        ids, old = field_ids(dataset.lance_schema), [dataset.schema.field(name) for name in gone]
        mark = Mark(
            record["id"],
            column.vector,
            record["name"],
            first,
            column.entry,
            tuple(ids[name] for name in gone),
            pa.schema(old),
            record["to"],
            last,
        )
        # the same text for each attempt on a version with this schema: the schema is then made once
        changes = {codec.KEY: with_entry(dataset.schema, entry, column.vector)}
        schema = schemas_of.changed(dataset, gone, fields, {**changes, MARK: marked(mark, _now())})
        new = [field_ids(schema)[name] for name in fields.names]
        operation = lance().LanceOperation.Merge(
            staging.published(dataset, new, nulls=nulls), schema, preserves_nullability=True
        )
        lock.check()
        try:
            return commit(place, operation, dataset.version, f"migrate {record['id']}")
        except (OSError, RuntimeError, ValueError) as exc:
            newest = place.newest()
            done = mark_of(newest.schema)
            if done is not None and done.id == record["id"]:
                return newest
            attempts.failed(place, dataset.version, exc)


def went_back(place: Place, staging: Staging, mark: Mark, lock: Lock, timeout_s: float) -> Any:
    """Commit the rollback while others write, and return its version."""
    import pyarrow as pa

    fields = pa.schema([item.with_nullable(True) for item in mark.old])
    schemas_of = Schemas(place, f"embedreg-{mark.id}")
    attempts = Attempts(timeout_s)
    while True:
        dataset = place.newest()
        if (nulls := _late(place, staging, dataset, attempts)) is None:
            continue
        now = columns_of(dataset.schema).get(mark.name)
        digests = None if now is None else now.digest
        if mark.name not in dataset.schema.names:  # only the vectors were dropped
            digests = digest.column_name(mark.name)
        gone = [name for name in (mark.name, digests) if name is not None and name in dataset.schema.names]
        changes = {codec.KEY: with_entry(dataset.schema, mark.before, mark.name), MARK: None}
        schema = schemas_of.changed(dataset, gone, fields, changes)
        ids = [field_ids(schema)[name] for name in fields.names]
        fragments = staging.published(dataset, ids, nulls=nulls)
        lock.check()
        try:
            return commit(
                place,
                lance().LanceOperation.Merge(fragments, schema, preserves_nullability=True),
                dataset.version,
                f"back {mark.id}",
            )
        except (OSError, RuntimeError, ValueError) as exc:
            newest = place.newest()
            if mark_of(newest.schema) is None:
                return newest
            attempts.failed(place, dataset.version, exc)


def _late(place: Place, staging: Staging, dataset: Any, attempts: Attempts) -> bool | None:
    """Stage what came late; return whether the commit gives it nulls instead, or None to look at a newer version.

    Few rows, which others add all the time, must not delay the commit forever; many, as after a compaction, are
    always staged, mostly from files that are staged already.
    """
    missing = staging.missing(dataset)
    many = sum(each.count_rows() for each in missing) > LATE_ROWS
    if not many and attempts.tries >= _PATIENCE:
        return True
    if not staging.stage_all(dataset, missing) or many:
        attempts.tried(place)
        return None
    return False


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ")
