"""The rows of a file: classified by their digests, and their vectors kept or computed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.arrow import layouts
from embedreg.arrow.vectors import Embedded
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.core.kinds import kind_of
from embedreg.declaration import codec
from embedreg.declaration import digest as digests
from embedreg.embedding.column import embed_column, fit_float16
from embedreg.embedding.quantizing import given_values
from embedreg.embedding.table import BadRow

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Counts", "Made", "classes", "count", "made", "needs"]

SHOWN_BAD_ROWS = 100  # in a report


@dataclass
class Counts:
    """Counts of the changes to the rows of a file, or of all files."""

    rows: int = 0
    written: int = 0
    embedded: int = 0
    cached: int = 0
    stamped: int = 0
    bad_rows: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Add the counts of another file."""
        for name in ("rows", "written", "embedded", "cached", "stamped", "bad_rows"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bad = [*self.bad, *other.bad][:SHOWN_BAD_ROWS]


def classes(
    source: pa.Array,
    vector: pa.Array | None,
    stored: pa.Array | None,
    prefix: str | None,
    changed: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the rows of each class of `results.ROW_CLASSES`: name -> (n,) bool.

    Args:
        source: (n,) inputs.
        vector: (n,) vectors; None if the file has no such column.
        stored: (n,) digests; None if the file has no such column.
        prefix: the part of a digest that names the declared function; None if that is not known.
        changed: (n,) bool, rows of a template whose stored text is not what it renders now; None for none.
    """
    import numpy as np
    import pyarrow.compute as pc

    n = len(source)
    has_source = np.asarray(source.is_valid())
    has_vector = np.zeros(n, bool) if vector is None else np.asarray(vector.is_valid())
    fresh = ours = stamped = np.zeros(n, bool)
    if stored is not None and prefix is not None:
        stamped = np.asarray(stored.is_valid())
        ours = np.asarray(pc.fill_null(pc.starts_with(stored, prefix), False))
        fresh = stamped & digests.same(stored, digests.digests(source, prefix))
    if changed is None:
        changed = np.zeros(n, bool)
    fresh = fresh & ~changed
    rest = ~fresh & (has_source | has_vector)
    other = rest & ~stamped & has_vector
    return {
        "fresh": fresh,
        "stale": (rest & stamped & ours) | (other & changed),
        "foreign": rest & stamped & ~ours,
        "unstamped": other & ~changed,
        "empty": rest & ~stamped & ~has_vector,
        "null_source": ~fresh & ~has_source & ~has_vector,
    }


def count(found: dict[str, Any]) -> dict[str, int]:
    """Return how many rows each class has."""
    return {name: int(rows.sum()) for name, rows in found.items()}


def needs(found: dict[str, Any], vector: pa.Array | None, wanted: frozenset[str]) -> np.ndarray:
    """Return the rows whose vector has to be computed again: (n,) bool.

    Args:
        wanted: classes; "missing" stands for rows of any class but "fresh" that have a source and no vector.
    """
    import numpy as np

    n = len(found["fresh"])
    rows = np.zeros(n, bool)
    for name in wanted - {"missing"}:
        rows |= found[name]
    if "missing" in wanted:
        has_vector = np.zeros(n, bool) if vector is None else np.asarray(vector.is_valid())
        rows |= ~found["fresh"] & ~found["null_source"] & ~has_vector
    return rows


@dataclass(frozen=True)
class Made:
    """The new columns of a batch: vectors, and digests if there is a column for them."""

    vector: pa.Array
    digest: pa.Array | None


def made(
    config: Callable[[], EmbeddingFunctionConfig],
    kind: pa.DataType,
    source: pa.Array,
    vector: pa.Array | None,
    stored: pa.Array | None,
    todo: np.ndarray,
    stamp: np.ndarray,
    prefix: str | None,
    counts: Counts,
    first_row: int,
    on_window: Callable[[int], None] | None = None,
) -> Made:
    """Embed some rows of a batch; the others keep their vectors and digests.

    Args:
        config: returns the declaration, as recorded; called if a row is embedded.
        kind: of the vector column.
        source, vector, stored: as in `classes`.
        todo: (n,) bool, the rows to embed.
        stamp: (n,) bool, rows that get a digest without being embedded.
        prefix: of the new digests; None for no digests.
        counts: what was done is added.
        first_row: the number of the first row in its file.
    Raises:
        EmbedregError: as `embed_column`.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    n = len(source)
    counts.rows += n
    if not todo.any():
        out = pa.nulls(n, kind) if vector is None else vector
    else:
        out = _embedded(config(), kind, source, vector, np.flatnonzero(todo), counts, first_row, on_window)
    if prefix is None:
        return Made(out, stored)
    anew = todo | stamp
    counts.stamped += int((stamp & ~todo).sum())
    before = pa.nulls(n, pa.string()) if stored is None else stored.cast(pa.string())
    return Made(out, pc.if_else(pa.array(anew), digests.digests(source, prefix), before))


def _embedded(
    config: EmbeddingFunctionConfig,
    kind: pa.DataType,
    source: pa.Array,
    vector: pa.Array | None,
    rows: np.ndarray,
    counts: Counts,
    first_row: int,
    on_window: Callable[[int], None] | None,
) -> pa.Array:
    """Return the vectors of a batch, with those of some rows computed."""
    import pyarrow as pa

    vectors, quantizer = kind_of(config.function), codec.quantizer(config)
    value_type, lists = vectors.value_type(kind), not vectors.of_fixed_width(kind)  # as pandas and polars write vectors
    ndims = vectors.width_of(kind) or (config.function.ndims() if quantizer is None else quantizer.width)
    made = Embedded.empty(len(source), ndims, vectors)
    if quantizer is not None:
        given = pa.nulls(len(source), quantizer.type()) if vector is None else vector
        made, _, _ = given_values(given, quantizer, config.vector_column)
    elif vector is not None:
        made.vectors, made.valid, _ = vectors.given(vector, ndims, config.vector_column, value_type)
    inputs = layouts.taken(source, rows)
    new = embed_column(config.function, inputs, on_window=on_window, declared=codec.declared_by(config))
    if quantizer is not None:
        new.matrix = quantizer.encode(new.matrix)
    elif pa.types.is_float16(value_type):
        fit_float16(config.function, new, None)
    made.vectors = vectors.put(made.vectors, rows, new.vectors)
    made.valid[rows] = new.valid
    counts.written += len(rows)
    counts.embedded += new.distinct
    counts.cached += new.cached
    counts.bad_rows += len(new.reasons)
    for row, reason in sorted(new.reasons.items())[: SHOWN_BAD_ROWS - len(counts.bad)]:
        counts.bad.append(BadRow(first_row + int(rows[row]), config.source_column, str(reason)))
    if lists:
        return vectors.to_arrow(made.vectors, made.valid, vectors.arrow_type(ndims, value_type)).cast(kind)
    return vectors.to_arrow(made.vectors, made.valid, kind)
