"""A scan of a vector column without a model: what cannot be right, whatever function made it."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.columns.rows import Readable, lengths_of, without_views
from embedreg.columns.vectors import SAME, cosines, matrix_of, unit
from embedreg.declaration import digest as digests

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Scan", "scan"]

KEPT = 1 << 24  # rows whose hashes are compared; of more rows, those whose text's hash falls into a fixed share
COMPARED = 20_000  # rows with an equal text whose vectors are read again
_READ = 2048  # rows read at a time by number


@dataclass(frozen=True)
class Scan:
    """The findings of a scan of all rows.

    Attributes:
        rows: all rows.
        nulls: rows without a vector.
        empty: of these, rows with a source.
        zeros: vectors of zeros only.
        nonfinite: vectors with an infinity, a NaN or a null in them.
        duplicates: rows whose vector is, bit for bit, also that of another text.
        contradictions: texts that have two different vectors (cosine below 0.999): two makers, or one that is not
            deterministic.
        contradicting: some of those rows, as (row, row) with an equal text.
        shortest, longest: Euclidean lengths of finite vectors.
        zero_share: share of exact zeros among all numbers; 0.77 for hashed features, 0 for most models.
        fresh, stale, foreign, unstamped: rows with a vector by their digest; all None without a digest column.
        long_rows: numbers of the rows with the longest sources, the longest first.
    """

    rows: int
    nulls: int
    empty: int
    zeros: int
    nonfinite: int
    duplicates: int
    contradictions: int
    contradicting: tuple[tuple[int, int], ...]
    shortest: float
    longest: float
    zero_share: float
    fresh: int | None
    stale: int | None
    foreign: int | None
    unstamped: int | None
    long_rows: tuple[int, ...]


def scan(
    data: Readable,
    vector: str,
    source: str | None,
    *,
    long_rows: int = 0,
    digest: str | None = None,
    prefix: str | None = None,
) -> Scan:
    """Read a vector column once, and rows with equal texts a second time; no model is run.

    Args:
        data: rows by number.
        vector, source: the columns; without a source, texts are not compared.
        long_rows: how many rows with the longest sources are listed.
        digest: the column of row digests.
        prefix: the part of a digest that names the declared function.
    Raises:
        MissingColumnError, VectorError: a column is missing, or holds no vectors.
    """
    counted = _Counts()
    texts = _Hashes(data.rows)
    longest: list[tuple[int, int]] = []
    made = dict.fromkeys(("fresh", "stale", "foreign", "unstamped"), 0)
    columns = [vector, *filter(None, [source, digest])]
    start, width = 0, None
    for batch in data.scan(columns):
        matrix, valid, nonfinite = matrix_of(batch.column(vector), vector, width)
        width = matrix.shape[1] or width
        finite = valid & ~nonfinite
        counted.add(matrix, valid, finite)
        if source is not None:
            values = without_views(batch.column(source))
            counted.empty += int((~valid & _filled(values)).sum())
            texts.add(start, values, matrix, finite)
            if long_rows:
                _keep_longest(longest, long_rows, start, values, finite)
            if digest is not None:
                for name, count in _states(batch.column(digest), values, valid, prefix).items():
                    made[name] += count
        start += batch.num_rows
    duplicates, pairs = texts.found()
    contradictions = _contradictions(data, vector, pairs)
    known = digest is not None and source is not None
    return Scan(
        rows=start,
        nulls=counted.nulls,
        empty=counted.empty,
        zeros=counted.zeros,
        nonfinite=counted.nonfinite,
        duplicates=duplicates,
        contradictions=len(contradictions),
        contradicting=tuple(contradictions[:10]),
        shortest=counted.shortest if counted.vectors else 0.0,
        longest=counted.longest,
        zero_share=counted.zero_numbers / max(counted.numbers, 1),
        fresh=made["fresh"] if known else None,
        stale=made["stale"] if known else None,
        foreign=made["foreign"] if known else None,
        unstamped=made["unstamped"] if known else None,
        long_rows=tuple(row for _, row in sorted(longest, reverse=True)),
    )


class _Counts:
    """Sums over the batches of vectors."""

    def __init__(self) -> None:
        self.nulls = self.zeros = self.nonfinite = self.empty = self.vectors = 0
        self.numbers = self.zero_numbers = 0
        self.shortest, self.longest = float("inf"), 0.0

    def add(self, matrix: np.ndarray, valid: np.ndarray, finite: np.ndarray) -> None:
        """Count a batch: (n, d) vectors, which rows have one, and which of these are finite."""
        import numpy as np

        self.nulls += int((~valid).sum())
        self.nonfinite += int((valid & ~finite).sum())
        rows = matrix[finite]
        if len(rows):
            lengths = np.linalg.norm(rows, axis=1)
            self.zeros += int((~rows.any(axis=1)).sum())
            self.shortest = min(self.shortest, float(lengths.min()))
            self.longest = max(self.longest, float(lengths.max()))
            self.numbers += rows.size
            self.zero_numbers += int(rows.size - np.count_nonzero(rows))
            self.vectors += len(rows)


class _Hashes:
    """Hashes of the rows' texts and vectors: 24 bytes a row.

    They are Python's own, of 64 bits and salted in each process, so that two texts of one hash cannot be prepared.
    """

    def __init__(self, rows: int) -> None:
        self._every = -(-rows // KEPT)  # of texts, one in so many is kept
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, start: int, values: Any, matrix: np.ndarray, usable: np.ndarray) -> None:
        import numpy as np

        rows = np.flatnonzero(usable & _filled(values))
        if not len(rows):
            return
        chosen = _raw(values.take(_indices(rows)))
        texts = np.fromiter((hash(_content(value)) for value in chosen), np.int64, len(rows))
        if self._every > 1:
            kept = texts.view(np.uint64) % self._every == 0
            rows, texts = rows[kept], texts[kept]
        exact = np.ascontiguousarray(matrix[rows] + 0.0)  # -0.0 and 0.0 are one number
        raw = exact.view(np.dtype((np.void, exact.shape[1] * exact.itemsize))).ravel().tolist()
        self._parts.append((rows + start, texts, np.fromiter(map(hash, raw), np.int64, len(raw))))

    def found(self) -> tuple[int, list[tuple[int, int]]]:
        """Return the number of rows whose vector another text has too, and pairs of rows with an equal text."""
        import numpy as np

        if not self._parts:
            return 0, []
        rows, texts, vectors = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        order = np.lexsort((texts, vectors))
        by_vector, by_text = vectors[order], texts[order]
        edges = np.flatnonzero(np.r_[True, by_vector[1:] != by_vector[:-1]])
        sizes = np.diff(np.r_[edges, len(order)])
        several = by_text[edges] != by_text[np.r_[edges[1:], len(order)] - 1]  # sorted: the first and last text differ
        duplicates = int(sizes[several].sum()) * self._every
        order = np.lexsort((rows, texts))
        same = np.flatnonzero(texts[order][1:] == texts[order][:-1])
        differ = same[vectors[order][same] != vectors[order][same + 1]][: COMPARED // 2]
        return duplicates, list(zip(rows[order][differ].tolist(), rows[order][differ + 1].tolist(), strict=True))


def _contradictions(data: Readable, vector: str, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the pairs of rows whose vectors differ by more than rounding, one for each text."""
    found = []
    for start in range(0, len(pairs), _READ // 2):
        some = pairs[start : start + _READ // 2]
        numbers = sorted({row for pair in some for row in pair})
        matrix = unit(matrix_of(data.take(numbers, [vector]).column(vector), vector)[0])
        place = {row: index for index, row in enumerate(numbers)}
        one, other = (matrix[[place[pair[side]] for pair in some]] for side in (0, 1))
        different = cosines(one, other) < SAME
        found += [pair for pair, differs in zip(some, different.tolist(), strict=True) if differs]
    ends, distinct = set[int](), []
    for pair in found:  # a text of three rows gives two pairs, the second starting where the first ends
        if pair[0] not in ends:
            distinct.append(pair)
        ends.add(pair[1])
    return distinct


def _states(stored: Any, values: Any, valid: np.ndarray, prefix: str | None) -> dict[str, int]:
    """Count rows with a vector by their digest."""
    import numpy as np
    import pyarrow.compute as pc

    null = np.asarray(pc.is_null(stored))
    if prefix is None:
        return {"unstamped": int((valid & null).sum())}
    own = np.asarray(pc.fill_null(pc.starts_with(stored.cast("string"), prefix), False))
    same = digests.same(stored.cast("string"), digests.digests(values, prefix))
    return {
        "fresh": int((valid & same).sum()),
        "stale": int((valid & own & ~same).sum()),
        "foreign": int((valid & ~own & ~null).sum()),
        "unstamped": int((valid & null).sum()),
    }


def _keep_longest(heap: list[tuple[int, int]], count: int, start: int, values: Any, usable: np.ndarray) -> None:
    import numpy as np

    lengths = lengths_of(values)
    least = heap[0][0] if len(heap) == count else 0
    for row in np.flatnonzero(usable & (lengths > least)).tolist():
        entry = (int(lengths[row]), start + row)
        if len(heap) < count:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)


def _filled(values: Any) -> np.ndarray:
    import numpy as np

    return np.asarray(values.is_valid())


def _raw(values: Any) -> list[Any]:
    """Return values for hashing: texts as bytes, since they may hold invalid Unicode."""
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if kind in (pa.string(), pa.large_string(), pa.string_view()):
        values = values.cast(pa.large_string()).view(pa.large_binary())
    found: list[Any] = values.to_pylist()
    return found


def _content(value: Any) -> Any:
    return value if isinstance(value, str | bytes) else repr(value)


def _indices(rows: Any) -> Any:
    import pyarrow as pa

    return pa.array(rows, pa.int64())
