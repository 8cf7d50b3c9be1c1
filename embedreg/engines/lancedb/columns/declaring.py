"""`repoint` and `detach`: changes of a declaration alone, in one commit."""

from __future__ import annotations

import contextlib
from typing import Any

from embedreg.columns.arguments import undeclared
from embedreg.columns.declare import bound_like, repointed
from embedreg.core.base import EmbeddingFunction
from embedreg.declaration import codec, templates
from embedreg.engines.lancedb.columns.adding import with_entry
from embedreg.engines.lancedb.columns.commits import Attempts, Schemas, commit, lance, write_metadata
from embedreg.engines.lancedb.columns.declared import Column, chosen, columns_of, mark_of
from embedreg.engines.lancedb.columns.place import Place
from embedreg.errors import EmbedregError, InputError, StorageError, option
from embedreg.inspection.attach import Agreement, compared, refuse_other_vectors

__all__ = ["detach", "repoint"]


def repoint(
    place: Place, vector: str, function: EmbeddingFunction, *, sample: int, seed: int, dry_run: bool
) -> Agreement:
    """Replace a column's declaration; arguments and errors as `embedreg.columns.repoint`."""
    import numpy as np
    import pyarrow.compute as pc

    dataset = place.newest()
    column = chosen(dataset.schema, vector, f"table {place.name!r}")
    config = bound_like(column.entry, function)
    entry = repointed(column.entry, function)
    total = int(dataset.count_rows())
    places = np.sort(np.random.default_rng(seed).permutation(total)[: 4 * sample])  # some may have no vector
    rows = dataset.take(places.tolist(), columns=[column.source, vector])
    rows = rows.filter(pc.and_(rows[column.source].is_valid(), rows[vector].is_valid())).slice(0, sample)
    if not len(rows):
        raise InputError(f"no row of table {place.name!r} has both {column.source!r} and {vector!r}.", "fill it first")
    cosines, lengths = compared(config, rows[column.source].combine_chunks(), rows[vector].combine_chunks())
    refuse_other_vectors(cosines, lengths, config)

    def change(newest: Any) -> dict[str, str] | None:
        now = chosen(newest.schema, vector, f"table {place.name!r}")
        if now.entry.raw != column.entry.raw:
            raise StorageError(f"the declaration of {vector!r} was changed meanwhile.", "run it again")
        return {codec.KEY: with_entry(newest.schema, entry)}

    if not dry_run:
        write_metadata(place, change)
    written = None if dry_run else place.path
    return Agreement(total, len(cosines), float(cosines.min()), float(np.median(cosines)), written)


def detach(place: Place, vector: str, *, drop: bool) -> None:
    """Remove a declaration, and with `drop` its columns; errors as `embedreg.columns.detach`."""
    _refuse_staged(place, vector)
    if not drop:

        def change(dataset: Any) -> dict[str, str | None]:
            _found(place, dataset, vector)
            return _without(dataset, vector)

        write_metadata(place, change)
        return
    with place.locked() as lock:
        place.remove_branches()
        attempts, schemas = Attempts(60.0), Schemas(place, f"embedreg-{lock.right.name[-17:-5]}")
        while True:
            dataset = place.newest()
            column = _found(place, dataset, vector)
            texts = column.source if templates.KEY in column.entry.reserved and column.problem is None else None
            named = [name for name in (vector, column.digest, texts) if name is not None]
            gone = [name for name in named if name in dataset.schema.names]
            if not gone:
                detach(place, vector, drop=False)
                return
            schema = schemas.changed(dataset, gone, None, _without(dataset, vector))
            lock.check()
            try:
                commit(
                    place, lance().LanceOperation.Project(schema, preserves_nullability=True), dataset.version, "detach"
                )
            except (OSError, RuntimeError, ValueError) as exc:
                attempts.failed(place, dataset.version, exc)
            else:
                place.remove_branches()
                return


def _refuse_staged(place: Place, vector: str) -> None:
    """Raise StorageError while new vectors of the column are staged: its declaration says what they are made from."""
    record = None
    with contextlib.suppress(EmbedregError):  # what cannot be read holds nothing up
        record = place.kept.record()
    if record is None or record["kind"] != "migrate" or record["vector"] != vector:
        return
    if record["state"] not in ("switched", "settled"):
        raise StorageError(
            f"column {vector!r} of table {place.name!r} is being migrated ({record['state']}).",
            option("`embedreg column switch` or `abandon` first", "Migration.switch() or .abandon() first"),
        )


def _found(place: Place, dataset: Any, vector: str) -> Column:
    found = columns_of(dataset.schema)
    if vector not in found:
        raise undeclared(f"table {place.name!r}", vector, found)
    mark = None
    with contextlib.suppress(EmbedregError):  # a record that cannot be read blocks nothing
        mark = mark_of(dataset.schema)
    if mark is not None and mark.name == vector:
        raise StorageError(
            f"column {vector!r} is being migrated.",
            option("`embedreg column finish` or `rollback` first", "Migration.finish() or .rollback()"),
        )
    return found[vector]


def _without(dataset: Any, vector: str) -> dict[str, str | None]:
    left = [each.raw for each in codec.entries(dataset.schema.metadata) if each.vector_column != vector]
    return {codec.KEY: f"[{', '.join(left)}]" if left else None}
