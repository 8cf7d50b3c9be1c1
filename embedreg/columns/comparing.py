"""`compare`: two functions on the rows of one column, before one replaces the other."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow.quantized import Quantizer, Ranges
from embedreg.columns import bounds, sampling
from embedreg.columns.arguments import a_function, no_column, one_vector, refuse_count, undeclared
from embedreg.columns.candidates import described
from embedreg.columns.comparison import MARGIN, Comparison, Example, difference_of, judged
from embedreg.columns.declare import rebuilt
from embedreg.columns.decoded import Decoded, declaration_of, read_as_floats
from embedreg.columns.pairs import Pair, found_rows, read_pairs
from embedreg.columns.search import Ranking, nearest, overlap, recall
from embedreg.columns.store import ColumnStore
from embedreg.columns.tables import TableRows, readable
from embedreg.columns.vectors import refuse_type
from embedreg.core.base import EmbeddingFunction, metric_of
from embedreg.core.lancedb_hooks import unwrap
from embedreg.declaration.entries import Entry
from embedreg.embedding.column import embed_column
from embedreg.errors import InputError, VectorError, option

if TYPE_CHECKING:
    import numpy as np

__all__ = ["compare"]

_COUNTED = 500  # sources whose tokens are counted
_EXAMPLES = 8  # queries that are kept for a report
_FOUND = 3  # texts of each


def compare(
    data: Any,
    vector: str,
    other: Any,
    *,
    function: Any = None,
    source: str | None = None,
    pairs: Any = None,
    key: str | None = None,
    queries: Sequence[str] | None = None,
    k: int = 10,
    corpus: int = 20_000,
    sample: int = 200,
    price_per_million_tokens: float | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare what two functions find in the same rows, before one replaces the other; nothing is written.

    A part of the rows is embedded with `other`, which may cost money with a remote service; the stored vectors are
    those of the function now. Vectors of an open `vector_cache` are used and kept, so that a migration does not compute
    them again.

    Args:
        data: an Arrow table, a path, or a table object of an engine.
        vector: the vector column.
        other: the function that may replace it.
        function: the function whose vectors are stored; by default the declared one, as the trust rules allow.
        source: the column of the sources; by default the declared one.
        pairs: queries with their answers: a file of JSON lines `{"query": "...", "answers": [...]}`, a list of such
            mappings or of (query, answers). The rows of the answers are always in the corpus.
        key: the column whose values the answers are; by default they are values of the source column.
        queries: texts for the overlap; by default those of the pairs, else sources of the corpus.
        k: how many nearest rows count.
        corpus: how many rows are searched, by number over the whole; all if there are fewer.
        sample: how many sources serve as queries where none are given.
        price_per_million_tokens: of `other`, for `cost`.
        seed: selects the rows.
    Returns:
        The comparison.
    Raises:
        MissingColumnError: there is no such column, or nothing declares what made it. UntrustedError: the declared
            function has not been granted. InputError: invalid pairs, or nothing to compare. ConfigError: invalid
            arguments. VectorError: the stored vectors have another width than the function's. CallError: a function
            failed.
    """
    for name, value in {"k": k, "corpus": corpus, "sample": sample}.items():
        refuse_count(name, value, 10)
    new = one_vector(a_function(other), "compare needs")
    raw = readable(data)
    entry = declaration_of(raw, vector)
    opened, small = read_as_floats(raw, entry)
    made_by, of = _declared(opened, entry, vector, unwrap(function), source)
    refuse_type(raw.schema.field(vector).type, vector)
    stored = None if small is None else Quantizer(small.dtype, new.ndims())  # as a migration stores them
    asked = [] if pairs is None else read_pairs(pairs)
    if queries is not None and any(not isinstance(each, str) or not each.strip() for each in queries):
        raise InputError("queries are texts that are not blank.", "queries=['...']")
    rows_of = found_rows(opened, key or of, asked) if asked else {}
    rows, places = _corpus(opened, vector, of, corpus, seed, sorted(set(rows_of.values())))
    if len(rows) < 2:
        raise InputError(f"column {vector!r} has fewer than two rows to compare.", "fill it first")
    if rows.matrix.shape[1] != made_by.ndims():
        raise VectorError(
            f"column {vector!r} holds vectors of {rows.matrix.shape[1]} dimensions, its function returns "
            f"{made_by.ndims()}.",
            "function=... names the function that made them",
        )
    search = _Search(made_by, new, rows, min(k, len(rows) - 1), stored)
    size = _row_size(raw, vector, new.ndims() if stored is None else stored.width)
    texts = list(queries) if queries is not None else [pair.query for pair in asked]
    kind = "queries" if queries is not None else "pairs" if asked else "rows"
    found = search.overlaps(texts, sample, seed)
    known, missing = _answers(asked, rows_of, places)
    recalls = search.recalls(known)
    mean = bounds.mean_interval(found)
    differences = recalls[1] - recalls[0]
    verdict = judged(differences)
    apart = difference_of(differences) if len(known) else None
    tokens = _tokens(search.other, rows, opened.rows)
    return Comparison(
        column=vector,
        now=described(made_by),
        other=described(search.other),
        rows=opened.rows,
        corpus_rows=len(rows),
        k=search.k,
        queries=len(found),
        asked=kind,
        overlap=mean.value,
        overlap_error=mean.error,
        verdict=verdict,
        pairs=len(known),
        missing=missing,
        recall_a=float(recalls[0].mean()) if len(known) else None,
        recall_b=float(recalls[1].mean()) if len(known) else None,
        difference=None if apart is None else apart.value,
        difference_error=None if apart is None else apart.error,
        pairs_needed=bounds.pairs_needed(differences, MARGIN) if verdict == "too-few-pairs" else None,
        rows_per_s=search.rows_per_s,
        bytes_per_row=size,
        bytes_per_row_now=_row_size(raw, vector, rows.matrix.shape[1] if small is None else small.width),
        tokens=tokens,
        cost=None if tokens is None or price_per_million_tokens is None else tokens * price_per_million_tokens / 1e6,
        full_time_s=None if search.rows_per_s is None else opened.rows / search.rows_per_s,
        full_bytes=size * opened.rows,
        notes=tuple(search.notes),
        examples=tuple(search.examples),
        overlaps=found,
        differences=differences,
    )


class _Search:
    """Both functions' vectors of one corpus.

    Attributes:
        rows_per_s: the speed of the other function.
        examples: the queries of `overlaps` on which both differ most.
    """

    def __init__(
        self,
        now: EmbeddingFunction,
        other: EmbeddingFunction,
        rows: sampling.Rows,
        k: int,
        stored: Quantizer | None,
    ) -> None:
        self.now, self.other, self.k = now, other, k
        self.notes: list[str] = []
        self.examples: list[Example] = []
        self._rows = rows
        embed_column(other, rows.sources.slice(0, 1), zero_vectors="keep")  # loads the model
        start = time.perf_counter()
        made = embed_column(other, rows.sources, zero_vectors="keep")
        took, computed = time.perf_counter() - start, made.distinct - made.cached
        self.rows_per_s = computed / took if computed and took > 0 else None
        if made.reasons:
            self.notes.append(f"{len(made.reasons):,} rows have no vector of the other function")
        self._stored, self._made = rows.matrix, made.matrix
        if stored is not None:
            ranges = None if stored.bits else Ranges.learnt(made.matrix)
            stored = dataclasses.replace(stored, ranges=ranges)
            self._made = stored.decode(stored.encode(made.matrix))
            self.notes.append(
                f"its vectors are compared as a migration of this column would store them, in {stored.dtype}"
            )

    def overlaps(self, texts: list[str], sample: int, seed: int) -> np.ndarray:
        """Return the overlap of each query; rows of the corpus are the queries if no texts are given."""
        import numpy as np

        if texts:
            vectors = self._embedded(texts)
            without = np.full(len(texts), -1)
            shown = texts
        else:
            without = np.random.default_rng(seed).choice(len(self._rows), min(sample, len(self._rows)), replace=False)
            vectors = (self._stored[without], self._made[without])
            shown = [self._rows.text(int(place)) for place in without]
        made, kept = np.zeros(len(without)), list[tuple[float, int, np.ndarray, np.ndarray]]()
        for index, (one, two) in enumerate(zip(*self._rankings(vectors, without), strict=True)):
            made[index] = overlap(one, two, self.k)
            few = min(self.k, _FOUND)
            kept.append((made[index], index, nearest(one, few), nearest(two, few)))
        for share, index, mine, theirs in sorted(kept, key=lambda each: each[:2])[:_EXAMPLES]:
            both = (tuple(self._rows.text(int(place)) for place in places) for places in (mine, theirs))
            self.examples.append(Example(shown[index], float(share), *both))
        return made

    def recalls(self, known: list[tuple[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the recall of each pair, of both functions: two (n,)."""
        import numpy as np

        found = np.zeros(len(known)), np.zeros(len(known))
        if known:
            vectors = self._embedded([query for query, _ in known])
            for side, ranking in enumerate(self._rankings(vectors, np.full(len(known), -1))):
                for index, (scores, (_, answers)) in enumerate(zip(ranking, known, strict=True)):
                    found[side][index] = recall(scores, answers, self.k)
        return found

    def _embedded(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        one, two = (embed_column(each, texts, "query", zero_vectors="keep").matrix for each in (self.now, self.other))
        return one, two

    def _rankings(self, vectors: tuple[np.ndarray, np.ndarray], without: np.ndarray) -> tuple[Ranking, Ranking]:
        return (
            Ranking(self._stored, vectors[0], metric_of(self.now), without),
            Ranking(self._made, vectors[1], metric_of(self.other), without),
        )


def _declared(
    data: ColumnStore | TableRows | Decoded, entry: Entry | None, vector: str, function: Any, source: str | None
) -> tuple[EmbeddingFunction, str]:
    """Return the function whose vectors are stored, and the source column."""
    names = data.schema.names
    for name in (vector, source):
        if name is not None and name not in names:
            raise no_column(data.shown, name, names)
    if entry is None and (function is None or source is None):
        names_it = option("embedreg attach declares it", "function=..., source='...' name it")
        raise undeclared(data.shown, vector, (), names_it)
    if function is None and entry is not None:
        function = rebuilt(entry).function
    return a_function(function), source if source is not None else "" if entry is None else entry.source_column


def _corpus(
    data: ColumnStore | TableRows | Decoded, vector: str, source: str, corpus: int, seed: int, answers: list[int]
) -> tuple[sampling.Rows, dict[int, int]]:
    """Draw rows to search, without repeated sources; those of the answers are among them.

    Returns:
        The rows; and row number -> its place among them, also of rows whose source another one has.
    """
    import numpy as np
    import pyarrow as pa

    drawn = np.random.default_rng(seed).choice(data.rows, min(corpus, data.rows), replace=False)
    rows = sampling.read(data, vector, source, np.unique(np.concatenate([drawn, np.asarray(answers, np.int64)])))
    first: dict[Any, int] = {}
    # images may come as mappings, which have no hash
    values = [value if isinstance(value, str | bytes) else repr(value) for value in rows.sources.to_pylist()]
    for place, value in enumerate(values):
        first.setdefault(value, place)
    kept = np.fromiter(first.values(), np.int64, len(first))
    order = {value: place for place, value in enumerate(first)}
    places = {int(number): order[value] for number, value in zip(rows.numbers, values, strict=True)}
    return sampling.Rows(rows.numbers[kept], rows.sources.take(pa.array(kept)), rows.matrix[kept]), places


def _answers(
    pairs: list[Pair], rows_of: dict[Any, int], places: dict[int, int]
) -> tuple[list[tuple[str, np.ndarray]], int]:
    """Return queries with the places of their answers in the corpus, and how many answers have none."""
    import numpy as np

    known, missing = [], 0
    for pair in pairs:
        found = {places.get(rows_of.get(answer, -1)) for answer in pair.answers}
        missing += sum(places.get(rows_of.get(answer, -1)) is None for answer in pair.answers)
        if answers := sorted(place for place in found if place is not None):
            known.append((pair.query, np.asarray(answers, np.int64)))
    return known, missing


def _tokens(function: EmbeddingFunction, rows: sampling.Rows, total: int) -> int | None:
    """Estimate the tokens of all rows from some of the corpus, which is in no order; None if they are not counted."""
    count = getattr(function, "count_tokens", None)
    if count is None:
        return None
    step = max(1, len(rows) // _COUNTED)
    texts = [rows.text(place) for place in range(0, len(rows), step)]
    return round(sum(int(count(text)) for text in texts) / len(texts) * total)


def _row_size(data: ColumnStore | TableRows, vector: str, width: int) -> int:
    """Return the bytes of a vector of some values, each as those of the column."""
    return width * int(data.schema.field(vector).type.value_type.bit_width) // 8
