"""`audit`: which function made the vectors of a column, by a scan of all rows and a sample of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from embedreg.columns import bounds, sampling
from embedreg.columns import candidates as functions
from embedreg.columns.arguments import no_declarations, refuse_count, undeclared
from embedreg.columns.causes import EDITED, Search
from embedreg.columns.decoded import read_as_floats
from embedreg.columns.findings import CLASSES, Audit, Evidence, judged
from embedreg.columns.scan import Scan
from embedreg.columns.scan import scan as scan_rows
from embedreg.columns.store import ColumnStore
from embedreg.columns.tables import TableRows, readable
from embedreg.columns.vectors import SAME, cosines, refuse_type, storage_of, unit
from embedreg.core.base import EmbeddingFunction, metric_of
from embedreg.core.modality import source_modality
from embedreg.declaration import codec
from embedreg.declaration import digest as digests
from embedreg.declaration.drift import PROBE_LENGTH
from embedreg.declaration.entries import Entry
from embedreg.errors import ConfigError, EmbedregError, MissingColumnError, VectorError, option
from embedreg.registry import get_registry
from embedreg.runtime.text.truncation import unreported

if TYPE_CHECKING:
    import numpy as np

__all__ = ["audit"]

_TEXTS = ("string", "large_string")
_PAIRS = 3  # pairs of rows with equal sources and different vectors
_KEPT_LONG = 10  # percent of the sample that is taken from the longest sources


def audit(
    data: Any,
    columns: str | Iterable[str] | None = None,
    *,
    sample: int = 300,
    confidence: float = 0.95,
    candidates: Any = None,
    scan: bool = True,
    seed: int = 0,
) -> list[Audit]:
    """Find out whether the declared function made the vectors of a column, of the texts that are there now.

    Rows are compared by embedding a sample again; nothing is written. A declared function runs only as far as the trust
    rules allow, and its refusal is the `problem` of a column whose verdict is "unknown".

    Args:
        data: an Arrow table, a path, or a table object of an engine.
        columns: the vector columns; all declared ones by default.
        sample: rows by number that are compared, over the whole; a tenth as many of the longest sources are compared
            too, and reported apart.
        confidence: of the bound for the share of disagreeing rows, one-sided.
        candidates: functions that may have made rows that disagree; by default those that are installed and need no
            key, host or download.
        scan: also read the whole column for nulls, zeros, infinities, equal vectors of different texts, different
            vectors of equal texts, and row digests; no model is needed for it.
        seed: selects the rows.
    Returns:
        One `Audit` per column.
    Raises:
        MissingColumnError: a column that is not declared. ConfigError: invalid arguments.
        InputError, StorageError, MetadataError, VectorError: the data, its declarations or its vectors cannot be read.
    """
    refuse_count("sample", sample, 300)
    if not isinstance(confidence, int | float) or not 0.5 <= confidence < 1:
        raise ConfigError(f"invalid confidence={confidence!r}; expected 0.5 or more, and less than 1.", "0.95")
    given, opened = functions.checked(candidates), readable(data)
    entries = {entry.vector_column: entry for entry in opened.declared()}
    wanted = list(entries) if columns is None else [columns] if isinstance(columns, str) else list(columns)
    for name in wanted:
        if name not in entries:
            looks = option(f"embedreg column identify --vector {name}", f"columns.identify(data, {name!r})")
            raise undeclared(opened.shown, name, entries, looks)
    if not wanted:
        looks = option("embedreg column identify --vector NAME", "columns.identify(data, vector)")
        raise no_declarations(opened.shown, looks)
    others = columns is None and len(wanted) > 1  # a column that was not requested does not stop the others
    with unreported():
        return [
            _One(opened, entries[name], sample, float(confidence), given, seed).run(whole=scan, others=others)
            for name in wanted
        ]


class _One:
    """The audit of one column."""

    def __init__(
        self,
        data: ColumnStore | TableRows,
        entry: Entry,
        sample: int,
        confidence: float,
        candidates: list[EmbeddingFunction] | None,
        seed: int,
    ) -> None:
        self._entry = entry
        self._data, self._quantizer = read_as_floats(data, entry)
        self._sample, self._confidence, self._candidates, self._seed = sample, confidence, candidates, seed
        self._vector, self._source = entry.vector_column, entry.source_column
        names = data.schema.names
        for name in (self._vector, self._source):
            if name not in names:
                raise MissingColumnError(
                    f"{data.shown} has no column {name!r}, which its declaration names.", f"columns: {', '.join(names)}"
                )
        named = digests.column_of(entry.reserved)
        self._digest = named if named in names else None
        self._prefix = digests.prefix_stored(entry.reserved)
        self._notes: list[str] = []

    def run(self, *, whole: bool, others: bool) -> Audit:
        try:
            refuse_type(self._data.schema.field(self._vector).type, self._vector)
        except VectorError as exc:
            if not others:
                raise
            return Audit(**self._facts(self._entry.name, None), verdict="unknown", problem=str(exc))
        rows = max(1, self._sample * _KEPT_LONG // 100)
        found = (
            scan_rows(
                self._data,
                self._vector,
                self._source,
                long_rows=2 * rows,  # some of them are in the sample by number already
                digest=self._digest,
                prefix=self._prefix,
            )
            if whole
            else None
        )
        for one, two in found.contradicting[:_PAIRS] if found is not None else ():
            self._notes.append(f"rows {one:,} and {two:,} have equal sources and different vectors")
        function, problem = self._function()
        facts = self._facts(self._entry.name if function is None else functions.described(function), found)
        if function is not None:
            try:
                return self._compared(function, found, facts)
            except EmbedregError as exc:  # the model or service is not available: the scan still counts
                problem = str(exc)
        verdict = judged(found, "cosine", (), (), facts["digests"])
        return Audit(**facts, verdict=verdict, problem=problem, notes=tuple(self._notes))

    def _facts(self, function: str | None, found: Scan | None) -> dict[str, Any]:
        """Return the findings about the column without a comparison."""
        return {
            "column": self._vector,
            "source": self._source,
            "function": function,
            "rows": self._data.rows,
            "confidence": self._confidence,
            **_scanned(found),
        }

    def _function(self) -> tuple[EmbeddingFunction | None, str | None]:
        """Rebuild the declared function as the trust rules allow, or record why not."""
        parsed = get_registry().parse_functions({codec.KEY: f"[{self._entry.raw}]"})
        config = parsed.get(self._vector)
        if config is not None:
            return config.function, None
        problem = parsed.problems.get(self._vector)
        return None, "no function can be rebuilt from the declaration." if problem is None else str(problem)

    def _previous(self) -> EmbeddingFunction | None:
        entry = self._data.previous(self._vector)
        if entry is None:
            return None
        parsed = get_registry().parse_functions({codec.KEY: f"[{entry.raw}]"})
        if (problem := parsed.problems.get(entry.vector_column)) is not None:
            self._notes.append(f"the function before the migration was not tried: {problem}")
        config = parsed.get(entry.vector_column)
        return None if config is None else config.function

    def _compared(self, function: EmbeddingFunction, found: Scan | None, facts: dict[str, Any]) -> Audit:
        import numpy as np

        rows = sampling.draw(
            self._data,
            self._vector,
            self._source,
            sample=self._sample,
            seed=self._seed,
            digest=self._digest,
            long_rows=None if found is None else found.long_rows,
        )
        if not len(rows):
            verdict = judged(found, "cosine", (), (), facts["digests"])
            problem = f"no row has both {self._source!r} and a vector in {self._vector!r}."
            return Audit(**facts, verdict=verdict, problem=problem, notes=tuple(self._notes))
        if rows.matrix.shape[1] != function.ndims():
            why = f"its vectors have {rows.matrix.shape[1]} dimensions, the function returns {function.ndims()}."
            return Audit(**facts, verdict="other-model", problem=why, notes=tuple(self._notes))
        fresh = functions.embedded(function, rows.sources)
        if self._quantizer is not None:  # the function's vectors as they would be read back once stored
            fresh = self._quantizer.settled(fresh, self._quantizer.encode(rows.matrix))
        stored, made = unit(rows.matrix), unit(fresh)
        agreement = cosines(stored, made)
        agrees = agreement >= SAME
        if (metric := metric_of(function)) != "cosine":
            agrees &= _same_length(rows.matrix, fresh)
        kinds, labels, causes = self._explained(function, rows, stored, made, agrees)
        counts: dict[str, Any] = dict.fromkeys(("stale", "foreign", "cut", "moved", "unexplained"), 0)
        for kind in kinds[: rows.uniform]:
            if kind != "agree":
                counts[CLASSES[kind]] += 1
        wrong = sum(kind != "agree" for kind in kinds[: rows.uniform])
        population = self._data.rows - (found.nulls + found.nonfinite if found is not None else 0)
        bound = bounds.upper_bound(wrong, rows.uniform, self._confidence, max(population, rows.uniform))
        return Audit(
            **facts,
            **counts,
            compared=rows.uniform,
            agree=rows.uniform - wrong,
            long_compared=len(rows) - rows.uniform,
            long_agree=sum(kind == "agree" for kind in kinds[rows.uniform :]),
            lowest=float(agreement.min()),
            median=float(np.median(agreement)),
            bound=bound,
            bound_rows=int(bound * max(population, rows.uniform)),
            storage=(None if self._quantizer else storage_of(rows.matrix, fresh, agreement)) or self._column_type(),
            causes=causes,
            verdict=judged(found, metric, kinds, causes, facts["digests"]),
            notes=tuple(self._notes),
            evidence=Evidence(rows, stored, agreement, tuple(kinds), tuple(labels)),
        )

    def _explained(
        self, function: EmbeddingFunction, rows: sampling.Rows, stored: np.ndarray, made: np.ndarray, agrees: np.ndarray
    ) -> tuple[list[str], list[str], Any]:
        """Return the kind and the label of each row, and the causes."""
        import numpy as np

        kinds, labels = ["agree"] * len(rows), ["agrees"] * len(rows)
        wrong = np.flatnonzero(~agrees).tolist()
        if not wrong:
            return kinds, labels, ()
        search = Search(self._data, self._source, functions.Vectors(function), rows, stored, made, wrong)
        stale, foreign = self._by_digest(rows, wrong)
        search.found |= dict.fromkeys(stale, ("edited", EDITED))
        if (forms := source_modality(function).forms) is not None:
            search.run_forms(import_module(forms).forms(), self._previous(), self._candidates)
        elif str(rows.sources.type) in _TEXTS:
            search.run(self._previous(), self._candidates)
        search.settle(foreign)
        for index, (kind, label) in search.found.items():
            kinds[index], labels[index] = kind, label
        return kinds, labels, search.causes(rows.uniform)

    def _by_digest(self, rows: sampling.Rows, wrong: list[int]) -> tuple[list[int], list[int]]:
        """Return which disagreeing rows have a digest of another text, and which one of another function."""
        if rows.digests is None or self._prefix is None:
            return [], []
        now = digests.digests(rows.sources, self._prefix).to_pylist()
        then = rows.digests.to_pylist()
        own = [index for index in wrong if then[index] is not None and str(then[index]).startswith(self._prefix)]
        return (
            [index for index in own if then[index] != now[index]],
            [index for index in wrong if then[index] is not None and index not in set(own)],
        )

    def _column_type(self) -> str | None:
        if self._quantizer is not None:
            return self._quantizer.dtype
        kind = self._data.schema.field(self._vector).type.value_type
        return "float16" if str(kind) == "halffloat" else None


def _scanned(found: Scan | None) -> dict[str, Any]:
    names = ("nulls", "zeros", "nonfinite", "duplicates", "contradictions")
    if found is None:
        return {**dict.fromkeys(names), "digests": None}
    states = {name: getattr(found, name) for name in ("fresh", "stale", "foreign", "unstamped")}
    known = states["fresh"] is not None
    return {**{name: getattr(found, name) for name in names}, "digests": states if known else None}


def _same_length(stored: np.ndarray, made: np.ndarray) -> np.ndarray:
    import numpy as np

    one, other = (np.linalg.norm(each.astype(np.float64), axis=1) for each in (stored, made))
    return np.asarray(np.abs(one - other) <= PROBE_LENGTH * np.maximum(one, other))
