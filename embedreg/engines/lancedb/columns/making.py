"""Vectors and digests of sources: from earlier work where it has them, else from the function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from embedreg.columns.store import Options
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration import codec, digest, templates
from embedreg.declaration.entries import Entry
from embedreg.embedding import table as tables
from embedreg.embedding.quantizing import is_unknown
from embedreg.embedding.table import Report
from embedreg.errors import StorageError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["NO_FUNCTION", "Earlier", "Files", "Maker", "keys_of"]

NO_FUNCTION = "00000000:"  # the prefix of digests that are not stored: another client's declaration has no fingerprint
_CHUNK = 65536  # rows of a file of earlier vectors that are read at once


class Earlier(Protocol):
    """Vectors that an earlier step made or kept, by the digest of their source."""

    def find(self, keys: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Array]]:
        """Yield known vectors: indices of some keys, each once, and their vectors.

        Args:
            keys: (m,) uint64, the hash of a source each.
        """


class Maker:
    """Makes the vectors of one column.

    Args:
        config: returns the declaration; called once a vector has to be computed.
        entry: as it is, or will be, stored; its template is not used here, where sources are texts.
        field: the vector column; None for what the function makes.

    Attributes:
        field: the vector column that it makes.
        prefix: of the digests.
        report: counts of all that it embedded.
        reused: rows whose vector was taken from earlier work.
    """

    def __init__(
        self,
        config: Callable[[], EmbeddingFunctionConfig],
        entry: Entry,
        options: Options,
        field: pa.Field | None = None,
    ) -> None:
        self._made, self._entry, self._options = config, templates.plain(entry), options
        self.prefix = digest.prefix_stored(entry.reserved) or NO_FUNCTION
        self.report = Report()
        self.reused = 0
        self.earlier: list[Earlier] = []
        self.field = self._computed_field() if field is None else field

    def _computed_field(self) -> pa.Field:
        import pyarrow as pa

        none = pa.table({self._entry.source_column: pa.array([], pa.string())})
        made = tables.embed_batches(none, [self.config]).schema
        return pa.field(self._entry.vector_column, made.field(self._entry.vector_column).type)

    @functools.cached_property
    def config(self) -> EmbeddingFunctionConfig:
        """The declaration with its function, which is built on first use."""
        return codec.recorded(self._entry, self._made().function)

    @property
    def function(self) -> EmbeddingFunction:
        """The function, which is built on first use: where all vectors are known it is not needed."""
        return self.config.function

    def make(self, source: pa.Array) -> tuple[pa.Array, pa.Array]:
        """Return the vectors of sources, and their digests; a row that failed has neither, a blank one only a digest.

        Raises:
            BadRowsError: rows failed and `on_error` forbids it. EmbedregError: as `embed_batches`.
        """
        import numpy as np
        import pyarrow as pa

        stamps = digest.digests(source, self.prefix)
        if not self.earlier or not len(source):
            return self._embedded(source, stamps)
        rest = np.arange(len(source))
        keys, valid = keys_of(stamps)
        parts, order = [], []
        for place in self.earlier:
            asked = rest[valid[rest]]
            for found, vectors in place.find(keys[asked]):
                if vectors.type == self.field.type:
                    parts.append(vectors)
                    order.append(asked[found])
            rest = np.setdiff1d(rest, np.concatenate(order)) if order else rest
        self.reused += len(source) - len(rest)
        if not parts:
            return self._embedded(source, stamps)
        vectors, marks = self._embedded(source.take(pa.array(rest)), stamps.take(pa.array(rest)))
        before = np.concatenate(order)
        back = pa.array(np.argsort(np.concatenate([rest, before]), kind="stable"))
        marked = pa.concat_arrays([marks, stamps.take(pa.array(before))])
        return pa.concat_arrays([vectors, *parts]).take(back), marked.take(back)

    def _embedded(self, source: pa.Array, stamps: pa.Array) -> tuple[pa.Array, pa.Array]:
        import pyarrow as pa

        if not len(source):
            return pa.nulls(0, self.field.type), stamps
        if is_unknown(self.config):
            raise StorageError(
                f"rows were added while column {self.config.vector_column!r} had no ranges to quantise by.",
                "run the same call again: it learns them from these rows",
            )
        before, first = len(self.report.bad), self.report.rows
        name, vector = self.config.source_column, self.config.vector_column
        made = tables.embed_batches(
            pa.table({name: source}),
            [self.config],
            on_error=self._options.on_error,
            report=self.report,
            max_bad_rows=self._options.max_bad_rows,
            batch_rows=self._options.batch_rows,
        ).read_all()
        vectors = made[vector].combine_chunks() if made[vector].num_chunks != 1 else made[vector].chunk(0)
        if vectors.type != self.field.type:
            vectors = vectors.cast(self.field.type)
        if failed := {each.row - first for each in self.report.bad[before:]}:
            kept = [None if row in failed else text for row, text in enumerate(stamps.to_pylist())]
            stamps = pa.array(kept, pa.string())
        return vectors, stamps


@dataclass
class _Sorted:
    """The digests of a file, in the order of their hashes, and their rows."""

    keys: np.ndarray
    rows: np.ndarray
    path: Path


class Files:
    """Earlier vectors in files of two columns, `vector` and `digest`, as staging writes them; later files count first.

    A file that cannot be read has no vectors.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self._tables: list[_Sorted] | None = None

    def find(self, keys: np.ndarray) -> Iterator[tuple[np.ndarray, pa.Array]]:
        """Yield known vectors, as `Earlier`."""
        for found, table, places in self._places(keys):
            yield found, _taken(table.path, places)

    def holds(self, keys: np.ndarray) -> np.ndarray:
        """Return which keys have a vector, without reading these: (m,) bool."""
        import numpy as np

        made = np.zeros(len(keys), bool)
        for found, _, _ in self._places(keys):
            made[found] = True
        return made

    def _places(self, keys: np.ndarray) -> Iterator[tuple[np.ndarray, _Sorted, np.ndarray]]:
        """Yield indices of keys, the file that has their vectors, and the rows of it."""
        import numpy as np

        if self._tables is None:
            self._tables = [table for path in self._paths if (table := _read(path)) is not None]
        rest = np.arange(len(keys))
        for table in reversed(self._tables):
            places = np.searchsorted(table.keys, keys[rest])
            places[places == len(table.keys)] = 0
            hit = table.keys[places] == keys[rest]
            if hit.any():
                yield rest[hit], table, table.rows[places[hit]]
                rest = rest[~hit]


def keys_of(stamps: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes in digests: (n,) uint64, and where there is one."""
    import numpy as np

    texts = stamps.to_pylist()
    keys = np.array([0 if text is None else int(text.partition(":")[2], 16) for text in texts], np.uint64)
    return keys, np.array([text is not None for text in texts], bool)


def _read(path: Path) -> _Sorted | None:
    import numpy as np
    import pyarrow as pa
    from lance.file import LanceFileReader

    try:
        batches = LanceFileReader(str(path), columns=["digest"]).read_all(batch_size=_CHUNK).to_batches()
        stamps = pa.concat_arrays([batch.column(0) for batch in batches] or [pa.nulls(0, pa.string())])
        keys, valid = keys_of(stamps)
    except (OSError, RuntimeError, ValueError):
        return None
    rows = np.flatnonzero(valid)
    order = rows[np.argsort(keys[rows], kind="stable")]
    return _Sorted(keys[order], order, path) if len(order) else None


def _taken(path: Path, places: np.ndarray) -> pa.Array:
    """Return the vectors at some places of a file, in this order."""
    import numpy as np
    import pyarrow as pa
    from lance.file import LanceFileReader

    some, back = np.unique(places, return_inverse=True)
    batches = LanceFileReader(str(path), columns=["vector"]).take_rows(some.tolist(), batch_size=_CHUNK).to_batches()
    return pa.concat_arrays([batch.column(0) for batch in batches]).take(pa.array(back))
