"""What an audit found, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.columns.causes import OTHER_FUNCTION, OTHER_TEXT, Cause
from embedreg.columns.sampling import Rows
from embedreg.columns.scan import Scan
from embedreg.columns.vectors import STORAGE
from embedreg.support.display import plain

if TYPE_CHECKING:
    import numpy as np

__all__ = ["CLASSES", "SCANNED", "VERDICTS", "Audit", "Evidence", "judged", "sentence"]

VERDICTS = {
    "sound": "the declared function made the vectors, of the texts as they are",
    "stale": "the declared function made the vectors, some of them of other texts than are there now",
    "mixed": "another function made some of the vectors",
    "other-model": "another function than the declared one made the vectors",
    "broken": "there are vectors that no function returns for these texts",
    "unknown": "nothing could be compared",
}
_SHOWN = 400  # characters of a message
SCANNED = {
    "nulls": "without a vector",
    "zeros": "of zeros only",
    "nonfinite": "not finite",
    "duplicates": "whose vector another text has too",
    "contradictions": "texts with two different vectors",
}
ALL = 0.95  # share of the compared rows from which a cause is that of the column
_ONE_VECTOR = 0.5  # share of rows that share a vector with another text, from which the column is broken


@dataclass(frozen=True)
class Evidence:
    """The compared rows, for a report.

    Attributes:
        rows: the sample.
        stored: (n, d) stored vectors of length 1.
        cosines: (n,) cosines with the function's vectors now.
        kinds, labels: n kinds of `causes.KINDS`, or "agree", and what exactly.
    """

    rows: Rows
    stored: np.ndarray
    cosines: np.ndarray
    kinds: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """The findings about a vector column. `str()` describes them in words.

    Attributes:
        column, source: the vector column and the column that it was made of; None for an undeclared source.
        function: the declared function; None if none is declared.
        rows: all rows.
        nulls, zeros, nonfinite, duplicates, contradictions: of the scan, see `scan.Scan`; None without a scan.
        digests: rows with a vector by their digest: fresh, stale, foreign, unstamped; None without digests.
        compared: rows of the sample by row number.
        agree, stale, foreign, cut, moved, unexplained: of these, rows by class. stale: the declared function's vector
            of another text; foreign: another function's; cut: of the text's beginning; moved: of another row's text.
        long_compared, long_agree: the same for the longest sources, which are compared apart.
        lowest, median: cosines of all compared rows; None without any.
        confidence: of the bound.
        bound: at most this share of the rows disagrees, by the sample by row number alone; None without one.
        bound_rows: the same in rows.
        storage: the number type that the vectors went through; None for their own.
        causes: why rows disagree, most rows first.
        verdict: a key of `VERDICTS`.
        problem: why nothing could be compared.
        notes: surprising findings.
        evidence: the compared rows, for a report; no part of `as_dict`.
    """

    column: str
    source: str | None
    function: str | None
    rows: int
    verdict: str
    nulls: int | None = None
    zeros: int | None = None
    nonfinite: int | None = None
    duplicates: int | None = None
    contradictions: int | None = None
    digests: dict[str, int] | None = None
    compared: int = 0
    agree: int = 0
    stale: int = 0
    foreign: int = 0
    cut: int = 0
    moved: int = 0
    unexplained: int = 0
    long_compared: int = 0
    long_agree: int = 0
    lowest: float | None = None
    median: float | None = None
    confidence: float = 0.95
    bound: float | None = None
    bound_rows: int | None = None
    storage: str | None = None
    causes: tuple[Cause, ...] = ()
    problem: str | None = None
    notes: tuple[str, ...] = ()
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def cause(self) -> Cause | None:
        """The one cause that explains the disagreeing rows; None if there is none or several are needed."""
        return next((cause for cause in self.causes if cause.named), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the findings in JSON types."""
        made = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "evidence"}
        return {
            **made,
            "causes": [asdict(cause) for cause in self.causes],
            "notes": list(self.notes),
            "sentence": sentence(self),
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


CLASSES = {
    "edited": "stale",
    "near": "stale",
    "text": "stale",
    "form": "stale",
    "cut": "cut",
    "moved": "moved",
    "prompt": "foreign",
    "previous": "foreign",
    "candidate": "foreign",
    "foreign": "foreign",
    "unexplained": "unexplained",
}
"""Kind of cause -> the class that a row is counted in."""


def judged(
    scan: Scan | None, metric: str, kinds: Sequence[str], causes: Sequence[Cause], digests: dict[str, int] | None
) -> str:
    """Return the verdict.

    Args:
        scan: what the scan found.
        metric: the declared function's; vectors of zeros have no cosine.
        kinds: the kind of each compared row, long ones included, or "agree".
        causes: what was found of those that disagree.
        digests: rows by their digest.
    """
    if scan is not None:
        vectors = scan.rows - scan.nulls
        if scan.nonfinite or (scan.zeros and metric == "cosine") or scan.duplicates > _ONE_VECTOR * max(vectors, 1):
            return "broken"
    wrong = [kind for kind in kinds if kind != "agree"]
    if any(cause.kind == "moved" and cause.named for cause in causes):
        return "broken"
    if not kinds:
        return "mixed" if scan is not None and scan.contradictions else "unknown"
    functions = sum(kind in OTHER_FUNCTION for kind in wrong)
    if len(wrong) >= ALL * len(kinds):
        unknown_variant = sum(kind == "near" for kind in wrong)
        if functions + unknown_variant >= ALL * len(wrong):
            return "other-model"
    known = digests or {}
    if functions or any(kind == "moved" for kind in wrong) or known.get("foreign"):
        return "mixed"
    if scan is not None and scan.contradictions:
        return "mixed"
    if any(kind in OTHER_TEXT for kind in wrong) or known.get("stale"):
        return "stale"
    return "sound"


def sentence(audit: Audit) -> str:
    """Return what the sample implies for the whole, in one sentence."""
    if not audit.compared:
        return audit.problem or "no row could be compared."
    wrong = audit.compared - audit.agree
    counted = f"{audit.compared:,} of {audit.rows:,} rows compared, {wrong:,} disagree{'s' if wrong == 1 else ''}"
    if audit.bound is None or audit.bound_rows is None:
        return f"{counted}."
    if audit.compared >= audit.rows:
        return f"{counted}: that is all of them."
    share = f"{audit.bound:.2%}" if audit.bound < 0.1 else f"{audit.bound:.1%}"
    return f"{counted}: at {audit.confidence:.0%} confidence at most {share} ({audit.bound_rows:,} rows) do."


def _lines(audit: Audit) -> list[str]:
    """Return an audit as lines: the verdict first, then the evidence."""
    of = "" if audit.function is None else f", declared as {plain(audit.function, _SHOWN)} of {plain(audit.source, 80)}"
    lines = [
        f"{plain(audit.column, 80)}: {audit.verdict}: {VERDICTS[audit.verdict]}",
        f"  column   {audit.rows:,} rows{of}",
        f"  sample   {plain(sentence(audit), _SHOWN)}",
    ]
    if audit.problem and audit.compared:
        lines.append(f"  problem  {plain(audit.problem, _SHOWN)}")
    if audit.long_compared:
        lines.append(f"  longest  {audit.long_agree:,} of the {audit.long_compared:,} longest texts agree")
    if audit.median is not None and audit.lowest is not None:
        storage = f"; {STORAGE[audit.storage]}" if audit.storage else ""
        lines.append(f"  cosine   {audit.lowest:.4f} at the lowest, {audit.median:.4f} at the median{storage}")
    lines += [f"  cause    {_cause(cause)}" for cause in audit.causes]
    if audit.nulls is not None:
        found = [f"{value:,} {words}" for name, words in SCANNED.items() if (value := getattr(audit, name))]
        lines.append(f"  scan     {', '.join(found) or 'nothing found'}")
    if audit.digests is not None:
        counts = ", ".join(f"{count:,} {name}" for name, count in audit.digests.items() if count)
        lines.append(f"  digests  {counts or 'none'}")
    return [*lines, *(f"  note     {plain(note, _SHOWN)}" for note in audit.notes)]


def _cause(cause: Cause) -> str:
    rows = f"{cause.rows:,} {'row' if cause.rows == 1 else 'rows'} of the sample"
    long_rows = f" and {cause.long_rows:,} of the longest" if cause.long_rows else ""
    return f"{plain(cause.label, _SHOWN)}: {rows}{long_rows}{', all that disagree' if cause.share == 1 else ''}"
