"""Replace or remove the declaration of a column in the files of a dataset and its manifest; or remove the column."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedreg.columns.declare import dropped_with
from embedreg.columns.files.folder import DataFiles, text_of, with_entries
from embedreg.columns.files.rows import Counts
from embedreg.columns.files.staging import Staging, key_of
from embedreg.datasets.schemas import conformed
from embedreg.declaration import codec, parquet_footer
from embedreg.declaration.entries import Entry
from embedreg.embedding.table import BATCH_ROWS
from embedreg.errors import StorageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["declare", "drop"]


def declare(staging: Staging, vector: str, entry: Entry | None) -> None:
    """Replace a declaration, or remove it, in each file that has it and in the manifest; a second call continues."""

    def changed(entries: Sequence[Entry]) -> list[Entry]:
        kept = [entry if each.vector_column == vector else each for each in entries]
        return [each for each in kept if each is not None]

    files = staging.files
    for name in files.names():
        own = files.own_entries(name)
        if any(each.vector_column == vector for each in own):
            staging.check()
            _write_metadata(staging, name, changed(own))
    if (beside := files.manifest()) is not None:
        files.declare(changed(beside))


def _write_metadata(staging: Staging, name: str, entries: Sequence[Entry]) -> None:
    files = staging.files
    if files.kind(name) == "parquet":
        path = files.path if files.name is not None else files.path / name
        parquet_footer.write_metadata(path, {codec.KEY.encode(): text_of(entries)})
        return
    schema = with_entries(files.schema(name), entries)
    stamp = files.stamp(name)
    with files.root.scratch_file(staging.check) as growing:
        batches = files.batches(name, None, BATCH_ROWS)
        files.fill(growing, name, schema, (each.replace_schema_metadata(schema.metadata) for each in batches))
        if files.stamp(name) != stamp:
            raise StorageError(f"{files.data.shown(name)} was written by others meanwhile.", "run it again")
        files.root.rename(growing, files.data, name, staging.check)


def drop(staging: Staging, entry: Entry) -> None:
    """Write all files without a column, its digests and its declaration, then publish them."""
    import pyarrow as pa

    files, gone, key = staging.files, set(dropped_with(entry)), key_of("drop", entry.raw)
    staging.begin(key, entry, True)
    for name in files.names():
        stamp = files.stamp(name)
        if stamp is None or staging.done(name) is not None:
            continue
        own = files.schema(name)
        schema = pa.schema([field for field in own if field.name not in gone], own.metadata)
        schema = with_entries(schema, [each for each in files.own_entries(name) if each.vector_column not in gone])
        staging.stage(name, stamp, Counts(), functools.partial(_without, files, name, schema))
    staging.list_renames(key, [each for each in files.declared() if each.vector_column not in gone])
    staging.publish()


def _without(files: DataFiles, name: str, schema: pa.Schema, new: Path) -> None:
    files.fill(new, name, schema, (conformed(batch, schema, name) for batch in files.batches(name, None, BATCH_ROWS)))
