"""A report of audits and comparisons: one HTML file that loads nothing, light and dark, printable.

Texts come from the data and are untrusted: each goes through `_text` into the page, or as JSON to the map. The page's
policy runs no script but those that carry this page's own random number.
"""

from __future__ import annotations

import html
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from embedreg._version import __version__
from embedreg.columns import report_map
from embedreg.columns.comparison import MARGIN, Comparison, Example, duration, size
from embedreg.columns.comparison import sentence as compared_in_words
from embedreg.columns.findings import CLASSES, SCANNED, VERDICTS, Audit, Evidence
from embedreg.columns.findings import sentence as audited_in_words
from embedreg.columns.report_style import CLASS_WORDS, COLOURS, STYLE
from embedreg.columns.vectors import STORAGE
from embedreg.errors import InputError
from embedreg.support.atomic import replacing, storage_errors
from embedreg.support.display import plain

__all__ = ["html_report", "write_report"]

_SHOWN = 420  # characters of a text
_NAME = 200  # of a name
_EXAMPLES = 3  # rows of each class
_BINS = 10
_TALL = 75  # percent of the drawing that the highest bar takes


def write_report(path: Path | str, found: Audit | Comparison | Iterable[Audit | Comparison]) -> None:
    """Write findings as one HTML file; an existing file is replaced atomically.

    Raises:
        StorageError: it cannot be written. InputError: there is nothing to report.
    """
    target, page = Path(path), html_report(found)
    with replacing(target) as hidden, storage_errors(target):
        hidden.write_text(page, encoding="utf-8")


def html_report(found: Audit | Comparison | Iterable[Audit | Comparison]) -> str:
    """Return findings as one self-contained HTML page.

    The map of an audit is drawn by bokeh, whose script of 1.3 MB is then in the page; without the extra [report] a note
    replaces it. Where umap-learn is installed, it lays out a second map, which takes some twenty seconds.

    Args:
        found: what `audit` or `compare` returned, one or several.
    Raises:
        InputError: there is nothing to report.
    """
    given = [found] if isinstance(found, Audit | Comparison) else list(found)
    if not given:
        raise InputError("there is nothing to report.", "html_report(audit(data))")
    nonce = secrets.token_urlsafe(16)
    maps = report_map.Maps(nonce)
    sections = "\n".join(_audited(each, maps) if isinstance(each, Audit) else _compared(each) for each in given)
    first = given[0]
    title = (
        f"{'Audit' if isinstance(first, Audit) else 'Comparison'} of {', '.join(_text(each.column) for each in given)}"
    )
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src 'nonce-{nonce}'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{sections}
</main>
<footer>embedreg {__version__}</footer>
{maps.scripts()}
</body>
</html>
"""


# -- audits ------------------------------------------------------------------------------------------------------------


def _audited(found: Audit, maps: report_map.Maps) -> str:
    facts = {
        "Column": f"{_text(found.column)}, {found.rows:,} rows",
        "Declared": "nothing" if found.function is None else f"{_text(found.function)} of {_text(found.source)}",
    }
    if found.long_compared:
        facts["Longest texts"] = f"{found.long_agree:,} of the {found.long_compared:,} longest agree; compared apart"
    if found.lowest is not None and found.median is not None:
        storage = f"; {STORAGE[found.storage]}" if found.storage else ""
        facts["Cosines"] = f"{found.lowest:.4f} at the lowest, {found.median:.4f} at the median{storage}"
    if found.nulls is not None:
        seen = [f"{count:,} {words}" for name, words in SCANNED.items() if (count := getattr(found, name))]
        facts["Scan"] = ", ".join(seen) or "nothing found"
    if found.digests is not None:
        facts["Row digests"] = (
            ", ".join(f"{count:,} {name}" for name, count in found.digests.items() if count) or "none"
        )
    if found.problem and found.compared:
        facts["Problem"] = _text(found.problem)
    notes = "".join(f"<p class='note'>{_text(note)}</p>" for note in found.notes)
    return f"""<section>
<h1><span class="verdict {found.verdict}">{found.verdict}</span> {_text(found.column)}: {VERDICTS[found.verdict]}</h1>
<p class="lead">{_text(audited_in_words(found))}</p>
{_classes(found)}
{_causes(found)}
{_table(facts)}
{notes}
{"" if found.evidence is None else maps.add(found.evidence)}
{"" if found.evidence is None else _examples(found.evidence)}
</section>"""


def _classes(found: Audit) -> str:
    """Return the bars of the rows by class: of the sample by row number, and of the longest texts."""
    evidence = found.evidence
    if evidence is None:
        return ""
    classes = [CLASSES.get(kind, "agree") for kind in evidence.kinds]
    uniform = evidence.rows.uniform
    bars = [("Rows of the sample", classes[:uniform]), ("Longest texts", classes[uniform:])]
    return "".join(_bar(heading, Counter(rows)) for heading, rows in bars if rows)


def _bar(heading: str, counts: Counter[str]) -> str:
    total, known = sum(counts.values()), [name for name in COLOURS if counts[name]]
    parts = "".join(
        f'<i style="flex:{counts[name]};background:{COLOURS[name]}" title="{name}: {counts[name]:,}"></i>'
        for name in known
    )
    legend = "".join(
        f'<li><b style="background:{COLOURS[name]}"></b>{CLASS_WORDS[name]} '
        f"<span>{counts[name]:,} ({counts[name] / total:.1%})</span></li>"
        for name in known
    )
    return f"""<figure><figcaption>{heading}</figcaption>
<div class="bar" role="img" aria-label="{_text(", ".join(f"{name} {counts[name]:,}" for name in known))}">{parts}</div>
<ul class="legend">{legend}</ul></figure>"""


def _causes(found: Audit) -> str:
    if not found.causes:
        return ""
    rows = "".join(
        f'<li><b style="background:{COLOURS[CLASSES[cause.kind]]}"></b>{_text(cause.label)} '
        f"<span>{cause.rows:,} of the sample, {cause.long_rows:,} of the longest</span></li>"
        for cause in found.causes
    )
    return f'<h2>Why rows disagree</h2><ul class="legend causes">{rows}</ul>'


def _examples(evidence: Evidence) -> str:
    shown: dict[str, list[int]] = {}
    for index, label in enumerate(evidence.labels):
        shown.setdefault(label, []).append(index)
    order = sorted(shown, key=lambda label: (evidence.kinds[shown[label][0]] == "agree", -len(shown[label])))
    groups = []
    for label in order:
        rows = shown[label]
        colour = COLOURS[CLASSES.get(evidence.kinds[rows[0]], "agree")]
        cards = "".join(
            f'<article style="border-left-color:{colour}"><p class="where">row {int(evidence.rows.numbers[index]):,}'
            f"<span>cosine {evidence.cosines[index]:.4f}</span></p>"
            f'<p dir="auto">{_text(evidence.rows.text(index), _SHOWN)}</p></article>'
            for index in rows[:_EXAMPLES]
        )
        groups.append(f"<h3>{_text(label)} <span>{len(rows):,}</span></h3><div class='cards'>{cards}</div>")
    return f"<h2>Examples</h2>{''.join(groups)}"


# -- comparisons -------------------------------------------------------------------------------------------------------


def _compared(found: Comparison) -> str:
    asked = {"rows": "rows as queries", "queries": "queries", "pairs": "queries of the pairs"}[found.asked]
    facts = {
        "Now": _text(found.now),
        "Other": _text(found.other),
        "Corpus": f"{found.corpus_rows:,} distinct sources of {found.rows:,} rows; another size gives other figures",
        f"Overlap@{found.k}": f"{found.overlap:.3f} ±{found.overlap_error:.3f}, {found.queries:,} {asked}",
        "Size": f"{found.bytes_per_row:,} bytes a row, {size(found.full_bytes)} in all",
        "Size now": f"{found.bytes_per_row_now:,} bytes a row",
    }
    if found.recall_a is not None and found.recall_b is not None:
        facts[f"Recall@{found.k}"] = f"{found.recall_a:.3f} now, {found.recall_b:.3f} then, {found.pairs:,} pairs"
    if found.missing:
        facts["Missing"] = f"{found.missing:,} of the answers are not in the data"
    if found.rows_per_s is not None and found.full_time_s is not None:
        facts["Speed"] = f"{found.rows_per_s:,.0f} rows/s here, {duration(found.full_time_s)} for all rows"
    if found.tokens is not None:
        price = "" if found.cost is None else f", {found.cost:,.2f} at the given price"
        facts["Tokens"] = f"about {found.tokens:,} for all rows{price}"
    notes = "".join(f"<p class='note'>{_text(note)}</p>" for note in found.notes)
    return f"""<section>
<h1><span class="verdict {found.verdict}">{found.verdict}</span> {_text(found.column)}:
{_text(found.now)} \N{RIGHTWARDS ARROW} {_text(found.other)}</h1>
<p class="lead">{_text(compared_in_words(found))}</p>
{_interval(found)}
{_histogram(found)}
{_table(facts)}
{notes}
{_most_different(found.examples)}
</section>"""


def _interval(found: Comparison) -> str:
    """Return the paired difference of recall with its interval and the margin that counts as none, as a drawing."""
    if found.difference is None or found.difference_error is None:
        return ""
    low, high = found.difference - found.difference_error, found.difference + found.difference_error
    reach = max(abs(low), abs(high), 2 * MARGIN) * 1.15

    def at(value: float) -> float:
        return round(300 + 280 * value / reach, 1)

    return f"""<figure><figcaption>Difference of recall@{found.k}, 95% interval; the band counts as none</figcaption>
<svg viewBox="0 0 600 70" role="img" aria-label="{found.difference:+.3f} from {low:+.3f} to {high:+.3f}">
<rect x="{at(-MARGIN)}" y="8" width="{round(at(MARGIN) - at(-MARGIN), 1)}" height="34" class="band"/>
<line x1="20" x2="580" y1="42" y2="42" class="axis"/><line x1="300" x2="300" y1="8" y2="46" class="axis"/>
<line x1="{at(low)}" x2="{at(high)}" y1="25" y2="25" class="range"/>
<circle cx="{at(found.difference)}" cy="25" r="6" class="point"/>
<text x="20" y="62">worse</text><text x="300" y="62" text-anchor="middle">0</text>
<text x="580" y="62" text-anchor="end">better</text></svg></figure>"""


def _histogram(found: Comparison) -> str:
    if found.overlaps is None or not len(found.overlaps):
        return ""
    counts = [0] * (_BINS + 1)
    for share in found.overlaps.tolist():
        counts[round(share * _BINS)] += 1
    most = max(counts)
    columns = "".join(
        f'<li><span>{count or ""}</span><i style="height:{round(_TALL * count / most)}%"></i>'
        f"<em>{place / _BINS:.0%}</em></li>"
        for place, count in enumerate(counts)
    )
    return f"""<figure><figcaption>Queries by the share of their {found.k} nearest rows that stays</figcaption>
<ol class="histogram">{columns}</ol></figure>"""


def _most_different(examples: Sequence[Example]) -> str:
    rows = []
    for each in examples:
        now, other = (
            "".join(f'<li dir="auto">{_text(text, _NAME)}</li>' for text in texts) for texts in (each.now, each.other)
        )
        rows.append(
            f'<article class="pair"><p dir="auto" class="query">{_text(each.query, _NAME)}<span>{each.overlap:.0%} stay'
            f"</span></p><div><h4>now</h4><ol>{now}</ol></div><div><h4>then</h4><ol>{other}</ol></div></article>"
        )
    return f"<h2>Queries that change most</h2>{''.join(rows)}" if rows else ""


# -- parts -------------------------------------------------------------------------------------------------------------


def _table(facts: dict[str, str]) -> str:
    """Return a table; the values are HTML already."""
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _text(value: object, limit: int = _NAME) -> str:
    """Return a value of the data as escaped HTML text: the only way into the page."""
    return "" if value is None else html.escape(plain(value, limit))
