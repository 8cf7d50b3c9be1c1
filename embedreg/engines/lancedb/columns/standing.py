"""The state of a migration: by the mark in the table's metadata first, then by the record beside the table."""

from __future__ import annotations

from typing import Any

from embedreg.columns.declare import differing
from embedreg.columns.results import MigrationStatus
from embedreg.declaration import codec
from embedreg.engines.lancedb.columns.declared import Mark, columns_of, mark_of, notes_on
from embedreg.engines.lancedb.columns.place import Place
from embedreg.engines.lancedb.columns.staging import Staging

__all__ = ["standing"]


def standing(place: Place) -> MigrationStatus | None:
    """Return the state of a table's migration; None if there is none.

    Raises:
        StorageError: the mark or the record is not as embedreg writes it.
    """
    dataset = place.newest()
    mark, record = mark_of(dataset.schema), place.kept.record()
    if mark is not None:
        return _switched(dataset, mark, record if record is not None and record["id"] == mark.id else {})
    return None if record is None else _staged(place, dataset, record)


def _switched(dataset: Any, mark: Mark, record: dict[str, Any]) -> MigrationStatus:
    entry = columns_of(dataset.schema).get(mark.name)
    total, fragments = int(dataset.count_rows()), len(dataset.get_fragments())
    notes: tuple[str, ...] = ("it is being rolled back",) if record.get("back") is True else ()
    if mark.name in dataset.schema.names:
        width = getattr(dataset.schema.field(mark.name).type, "list_size", None)
        notes += notes_on(mark.vector, mark.name, mark.old.field(0).type, width)
    return MigrationStatus(
        mark.id,
        "settled" if record.get("state") == "settled" else "switched",
        mark.vector,
        mark.name,
        None if entry is None else entry.entry.name,
        "" if entry is None else differing(mark.before, entry.entry),
        total,
        total,
        fragments,
        fragments,
        notes,
    )


def _staged(place: Place, dataset: Any, record: dict[str, Any]) -> MigrationStatus:
    state = record["state"]
    if state in ("switched", "settled"):  # the table has no mark: a killed run had ended it
        state = "rolled back" if record.get("back") is True else "finished"
    (entry,) = codec.entries({codec.KEY: f"[{record['entry']}]"})
    notes: tuple[str, ...] = ("a column is being added",) if record["kind"] == "add" else ()
    if record["vector"] in dataset.schema.names:
        old = dataset.schema.field(record["vector"]).type
        notes += notes_on(record["vector"], record["name"], old, entry.reserved.get("ndims"))
    counts = Staging(place, record["source"], None).counts(dataset)
    now = columns_of(dataset.schema).get(record["vector"])
    differs = "" if now is None else differing(now.entry, entry)
    return MigrationStatus(record["id"], state, record["vector"], record["name"], entry.name, differs, *counts, notes)
