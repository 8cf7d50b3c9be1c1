"""The result of comparing two functions, and a verdict that claims no more than the pairs support."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.columns import bounds
from embedreg.columns.bounds import Interval
from embedreg.support.display import plain

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MARGIN", "Comparison", "Example", "difference_of", "duration", "judged", "size"]

MARGIN = 0.02  # a difference of recall that counts as none
_SHOWN = 200  # characters of a name


@dataclass(frozen=True)
class Example:
    """A query and the texts that both functions find for it.

    Attributes:
        query: the query.
        overlap: share of the k nearest rows in common.
        now, other: the texts that are found, nearest first.
    """

    query: str
    overlap: float
    now: tuple[str, ...]
    other: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two functions on one corpus. `str()` describes it in words.

    Attributes:
        column: the vector column.
        now, other: the function whose vectors are stored, and the one that may replace it.
        rows: rows of the data.
        corpus_rows: distinct sources that were searched; figures of another corpus size are not comparable.
        k: how many nearest rows count.
        queries: how many queries the overlap is the mean of.
        asked: what they are: "rows" (sources of the corpus, each without itself), "queries" or "pairs".
        overlap, overlap_error: mean share of the k nearest rows in common, and half of its 95% interval. It shows how
            different the functions are, not which is better.
        pairs: pairs of a query and answers with an answer in the data.
        missing: answers that are not in the data.
        recall_a, recall_b: mean share of a query's answers among its k nearest, of `now` and of `other`.
        difference, difference_error: recall_b - recall_a, and half of the 95% interval of the paired difference.
        verdict: "better" or "worse" (of `other`) where that interval does not contain 0, "no-difference" where it lies
            within +-0.02, "too-few-pairs", or "no-pairs" without pairs.
        pairs_needed: for "too-few-pairs", about how many would decide if further ones were like these.
        rows_per_s: speed of `other` on this corpus; None if all its vectors came from the vector cache.
        bytes_per_row, bytes_per_row_now: of a vector of `other` in the column's number type, and of a stored one.
        tokens: of all rows, estimated from a part of the corpus; None if `other` does not count them.
        cost: of all rows at the given price for a million tokens; None without a price.
        full_time_s, full_bytes: to embed all rows with `other`, and the size of its column.
        notes: surprising findings.
        examples: the queries on which both differ most.
        overlaps, differences: (queries,) and (pairs,) single values, for reports; no part of `as_dict`.
    """

    column: str
    now: str
    other: str
    rows: int
    corpus_rows: int
    k: int
    queries: int
    asked: str
    overlap: float
    overlap_error: float
    verdict: str
    pairs: int = 0
    missing: int = 0
    recall_a: float | None = None
    recall_b: float | None = None
    difference: float | None = None
    difference_error: float | None = None
    pairs_needed: int | None = None
    rows_per_s: float | None = None
    bytes_per_row: int = 0
    bytes_per_row_now: int = 0
    tokens: int | None = None
    cost: float | None = None
    full_time_s: float | None = None
    full_bytes: int = 0
    notes: tuple[str, ...] = ()
    examples: tuple[Example, ...] = field(default=(), repr=False, compare=False)
    overlaps: np.ndarray | None = field(default=None, repr=False, compare=False)
    differences: np.ndarray | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the findings in JSON types."""
        left_out = ("examples", "overlaps", "differences")
        made = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        return {**made, "notes": list(self.notes), "sentence": sentence(self)}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def difference_of(differences: np.ndarray) -> Interval:
    """Return the mean difference of recall, and half of its 95% interval.

    It contains the whole adjusted interval, and a continuity correction of one pair (Edwards 1948): differences come in
    steps, and without it equal functions would be called different in 5% of all trials, or a little more.
    """
    mean = float(differences.mean())
    adjusted = bounds.paired_interval(differences)
    return Interval(mean, adjusted.error + abs(mean - adjusted.value) + 1 / len(differences))


def judged(differences: np.ndarray) -> str:
    """Return the verdict of paired differences of recall (n,), of `other` less `now`."""
    if not len(differences):
        return "no-pairs"
    found = difference_of(differences)
    if found.low > 0:
        return "better"
    if found.high < 0:
        return "worse"
    return "no-difference" if max(-found.low, found.high) <= MARGIN else "too-few-pairs"


def sentence(found: Comparison) -> str:
    """Return the verdict in one or two sentences."""
    if found.verdict == "no-pairs" or found.difference is None or found.difference_error is None:
        return (
            f"{found.overlap:.1%} (±{found.overlap_error:.1%}) of the {found.k} nearest rows stay; which function is "
            f"better cannot be decided without pairs of queries and answers."
        )
    pairs = f"{found.pairs:,} {'pair' if found.pairs == 1 else 'pairs'}"
    measured = f"recall@{found.k} {found.recall_a:.3f} now and {found.recall_b:.3f} then"
    apart = f"a difference of {found.difference:+.3f} ±{found.difference_error:.3f} by {pairs}"
    if found.verdict == "too-few-pairs":
        return f"{measured}: {apart}, which is too few to decide; about {found.pairs_needed:,} like these would decide."
    words = {
        "better": "the other function is better",
        "worse": "the other function is worse",
        "no-difference": f"no difference beyond ±{MARGIN:.2f}",
    }
    return f"{measured}: {apart}: {words[found.verdict]} on these pairs."


def _lines(found: Comparison) -> list[str]:
    asked = {"rows": "rows as queries", "queries": "queries", "pairs": "queries of the pairs"}[found.asked]
    speed = "not measured" if found.rows_per_s is None else f"{found.rows_per_s:,.0f} rows/s"
    whole = "" if found.full_time_s is None else f", {duration(found.full_time_s)} for all {found.rows:,} rows"
    error, whole_size = f"±{found.overlap_error:.3f}", size(found.full_bytes)
    lines = [
        f"{plain(found.column, 80)}: {found.verdict}: {sentence(found)}",
        f"  now      {plain(found.now, _SHOWN)}",
        f"  other    {plain(found.other, _SHOWN)}",
        f"  corpus   {found.corpus_rows:,} distinct sources of {found.rows:,} rows; another size gives other figures",
        f"  overlap  {found.overlap:.3f} {error} of the {found.k} nearest, {found.queries:,} {asked}",
        f"  speed    {speed}{whole}",
        f"  size     {found.bytes_per_row:,} bytes a row, {whole_size} in all; now {found.bytes_per_row_now:,} a row",
    ]
    if found.missing:
        lines.append(f"  missing  {found.missing:,} of the answers are not in the data")
    if found.tokens is not None:
        cost = "" if found.cost is None else f", {found.cost:,.2f} at the given price"
        lines.append(f"  tokens   about {found.tokens:,} for all rows{cost}")
    return [*lines, *(f"  note     {plain(note, 400)}" for note in found.notes)]


def duration(seconds: float) -> str:
    """Return a duration in words."""
    for unit, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(count: int) -> str:
    """Return a number of bytes in words."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,} bytes"
