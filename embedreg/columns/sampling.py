"""A sample of a column's rows: by row number over the whole, and some of the longest sources apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.columns.rows import Readable, lengths_of, without_views
from embedreg.columns.vectors import matrix_of
from embedreg.embedding.column import broken_texts, readable

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Rows", "draw", "read", "sources_of"]

_SEARCHED = 10  # without a scan, the longest sources are those of so many times the sample


@dataclass
class Rows:
    """Rows with a source and a finite vector.

    Attributes:
        numbers: (n,) row numbers.
        sources: n sources, an Arrow array.
        matrix: (n, d) float32, the stored vectors.
        digests: n row digests, an Arrow array; None without a column of them.
        uniform: the first so many rows are a simple random sample; the others have the longest sources.
    """

    numbers: np.ndarray
    sources: Any
    matrix: np.ndarray
    digests: Any = None
    uniform: int = field(default=0)

    def __len__(self) -> int:
        return len(self.numbers)

    def value(self, index: int) -> Any:
        """Return a source; of an image that is stored as a mapping its bytes, or else its path."""
        value = self.sources[index].as_py()
        return (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value

    def text(self, index: int) -> str:
        """Return a source as text."""
        value = self.sources[index].as_py()
        return value if isinstance(value, str) else f"{len(value):,} bytes" if isinstance(value, bytes) else repr(value)


def draw(
    data: Readable,
    vector: str,
    source: str,
    *,
    sample: int,
    seed: int,
    digest: str | None = None,
    long_rows: Sequence[int] | None = None,
) -> Rows:
    """Draw rows for a comparison.

    Args:
        sample: how many rows by number, each with the same probability; all if there are fewer.
        seed: selects the rows.
        long_rows: numbers of the rows with the longest sources; None looks for long ones among further rows.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    drawn = min(data.rows, 2 * sample)
    while True:
        # without repetition and in random order: any first part is a random sample too
        numbers = generator.choice(data.rows, drawn, replace=False) if drawn else np.zeros(0, np.int64)
        found = read(data, vector, source, numbers, digest)
        if len(found) >= sample or drawn == data.rows:
            break
        drawn = min(data.rows, 4 * drawn)
    chosen = np.arange(min(sample, len(found)))
    rest = max(1, sample // 10)
    if long_rows is not None:
        more = [row for row in long_rows if row not in set(found.numbers[chosen].tolist())][:rest]
        return _joined(found, chosen, read(data, vector, source, np.asarray(more, np.int64), digest))
    further = generator.choice(data.rows, min(data.rows, _SEARCHED * sample), replace=False)
    further = further[~np.isin(further, found.numbers[chosen])]
    if not len(further):
        return _joined(found, chosen, read(data, vector, source, further, digest))
    texts = data.take(further.tolist(), [source]).column(source)
    lengths = lengths_of(texts)
    more = further[np.argsort(-lengths, kind="stable")[:rest]].tolist()
    return _joined(found, chosen, read(data, vector, source, np.asarray(more, np.int64), digest))


def read(data: Readable, vector: str, source: str, numbers: Any, digest: str | None = None) -> Rows:
    """Read rows by number; those without a source or a finite vector are left out."""
    import numpy as np
    import pyarrow as pa

    numbers = np.asarray(numbers, np.int64)
    columns = [source, vector, *([digest] if digest else [])]
    if not len(numbers):
        table: pa.Table = data.schema.empty_table().select(columns)
    else:
        order = np.argsort(numbers, kind="stable")  # engines read rows in their order faster
        table = data.take(numbers[order].tolist(), columns)
        table = table.take(pa.array(np.argsort(order, kind="stable"), pa.int64()))
    matrix, valid, nonfinite = matrix_of(table.column(vector), vector)
    sources = sources_of(table.column(source))
    kept = np.flatnonzero(valid & ~nonfinite & ~_blank(sources))
    index = pa.array(kept, pa.int64())
    found = _combined(table.column(digest)).take(index) if digest else None
    return Rows(numbers[kept], sources.take(index), matrix[kept], found)


def _joined(found: Rows, chosen: np.ndarray, more: Rows) -> Rows:
    import numpy as np
    import pyarrow as pa

    index = pa.array(chosen, pa.int64())
    digests = None if found.digests is None else pa.concat_arrays([found.digests.take(index), more.digests])
    matrix = np.concatenate([found.matrix[chosen], more.matrix]) if len(more) else found.matrix[chosen]
    return Rows(
        np.concatenate([found.numbers[chosen], more.numbers]),
        pa.concat_arrays([found.sources.take(index), more.sources]),
        matrix,
        digests,
        len(chosen),
    )


def _combined(column: Any) -> Any:
    import pyarrow as pa

    made = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return made.chunk(0) if isinstance(made, pa.ChunkedArray) else made


def sources_of(column: Any) -> Any:
    """Return a column as one array; texts of any Arrow type as strings, with invalid Unicode replaced."""
    import pyarrow as pa

    sources = without_views(_combined(column))
    kind = sources.type.value_type if pa.types.is_dictionary(sources.type) else sources.type
    if kind in (pa.string(), pa.large_string()):
        sources = sources.cast(kind)
        return sources if broken_texts(sources) is None else readable(sources)
    return sources.cast(kind) if pa.types.is_dictionary(sources.type) else sources


def _blank(sources: Any) -> np.ndarray:
    """Return which sources are not passed to a function: nulls, and texts of white space only."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    blank = np.asarray(sources.is_null())
    if pa.types.is_string(sources.type) or pa.types.is_large_string(sources.type):
        blank = blank | np.asarray(pc.fill_null(pc.equal(pc.binary_length(pc.utf8_trim_whitespace(sources)), 0), True))
    return blank
