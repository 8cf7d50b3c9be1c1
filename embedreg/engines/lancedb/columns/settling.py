"""Vectors of the old function that a digest does not show: written after a switch by a handle that had not seen it.

Such a handle's `merge_insert` writes its own vectors, by the column's name, and leaves the digest of a row whose text
stays as it is. But the rows are then in another data file, and for their texts the staged files have the right vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.columns.store import Options
from embedreg.declaration import digest, drift
from embedreg.engines.lancedb.columns import refreshing
from embedreg.engines.lancedb.columns.commits import field_ids, lance_errors
from embedreg.engines.lancedb.columns.declared import Mark, chosen
from embedreg.engines.lancedb.columns.making import NO_FUNCTION, Files, keys_of
from embedreg.engines.lancedb.columns.place import Place
from embedreg.engines.lancedb.columns.staging import Staging, file_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["repair"]


def repair(place: Place, mark: Mark, options: Options) -> int:
    """Embed rows that were written since a switch with another function than the new one; return how many.

    Only rows whose text was staged can be compared, without a model; another text shows by its digest.
    """
    import numpy as np
    import pyarrow as pa

    shown = f"table {place.name!r}"
    dataset = place.newest()
    column = chosen(dataset.schema, mark.name, shown)
    paths = Staging(place, column.source, None).files()
    staged, names = Files(paths), {path.name for path in paths}
    vector_id = field_ids(dataset.lance_schema)[column.vector]
    wrong: list[pa.Array] = []
    for fragment in dataset.get_fragments():
        if file_of(fragment.metadata, vector_id)[0] in names:
            continue  # its vectors are those that were staged
        with lance_errors(f"{shown} cannot be read"):
            batches = list(dataset.scanner(columns=[column.source, column.vector], fragments=[fragment]).to_batches())
        for batch in batches:
            source, vectors = batch.column(column.source), batch.column(column.vector)
            keys, valid = keys_of(digest.digests(source, column.prefix or NO_FUNCTION))
            asked = np.flatnonzero(valid & np.asarray(vectors.is_valid()))
            for found, right in staged.find(keys[asked]):
                if len(other := asked[found][_differ(vectors.take(pa.array(asked[found])), right)]):
                    wrong.append(source.take(pa.array(other)))
    if not wrong:
        return 0
    return refreshing.rewrite(place, mark.name, options, pa.table({column.source: pa.chunked_array(wrong)}))


def _differ(stored: pa.Array, right: pa.Array) -> np.ndarray:
    """Return where vectors point elsewhere: (n,) bool; a null on the right side cannot be compared with."""
    import numpy as np
    import pyarrow as pa

    valid = np.asarray(right.is_valid())
    differ = np.zeros(len(stored), bool)
    if stored.type != right.type or not valid.any():
        return differ
    one, other = (
        each.filter(pa.array(valid))
        .flatten()
        .to_numpy(zero_copy_only=False)
        .astype(np.float64)
        .reshape(valid.sum(), -1)
        for each in (stored, right)
    )
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.where(norms > 0, (one * other).sum(axis=1) / np.where(norms > 0, norms, 1), (one == other).all(axis=1))
    differ[valid] = cosines < drift.PROBE_COSINE
    return differ
