"""Where a text is cut: spans of characters, each no longer than a number of tokens.

A text is split at boundaries (sentences, words, ...), and neighbours are joined as long as they fit. A part that does
not fit by itself is split further, down to characters. A sum of tokens is an estimate, since a tokenizer may join
characters across a boundary; so each span is counted as a whole before it is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ["LEVELS", "Measure", "Span", "cut", "fitted", "sections", "trimmed"]

Span: TypeAlias = tuple[int, int]
"""A range of characters of a text: the first, and the one after the last."""

_CLOSING = "\"'\u201d\u2019)\\]"  # quotes and brackets that belong to the sentence before them
_SENTENCE = re.compile(
    rf"(?<=[.!?\u2026])[{_CLOSING}]*\s+"
    # Chinese and Japanese: full stops, quotes and brackets of full width, with no white space after them
    r"|(?<=[\u3002\uff01\uff1f])[\u201d\u2019\u300d\u300f\uff09]*\s*"
    r"|\n\s*\n\s*"
)
_PARAGRAPH = re.compile(r"\n\s*\n\s*")
_WORD = re.compile(r"\s+")
_HEADING = re.compile(r" {0,3}#{1,6}(?:\s|$)")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_LONGEST = 16  # characters per token: only shorter texts are tried as a whole
_FINE = 64  # characters of the parts of a text without words, such as Chinese
_REMEMBERED = 200  # characters of parts whose tokens are kept, since words repeat


@dataclass
class Measure:
    """Counts tokens as a function does.

    Attributes:
        count: returns the tokens of a text, special tokens and prompt included.
        exact: whether they are the function's own, rather than an estimate.
    """

    count: Callable[[str], int]
    exact: bool
    _own: int | None = None
    _known: dict[str, int] = field(default_factory=dict)

    @property
    def own(self) -> int:
        """The tokens of an empty text: special tokens, and a prompt."""
        if self._own is None:
            self._own = self.count("")
        return self._own

    def cost(self, text: str) -> int:
        """Return the approximate number of tokens that a part adds to a text."""
        if len(text) > _REMEMBERED:
            return max(self.count(text) - self.own, 0)
        if text not in self._known:
            self._known[text] = max(self.count(text) - self.own, 0)
        return self._known[text]


def _parted(boundary: re.Pattern[str], text: str, span: Span) -> list[Span]:
    """Return the parts of a span between boundaries; each boundary belongs to the part before it."""
    start, stop = span
    ends = [found.end() for found in boundary.finditer(text, start, stop) if start < found.end() < stop]
    return list(zip([start, *ends], [*ends, stop], strict=True))


def _sentences(text: str, span: Span) -> list[Span]:
    return _parted(_SENTENCE, text, span)


def _paragraphs(text: str, span: Span) -> list[Span]:
    return _parted(_PARAGRAPH, text, span)


def _words(text: str, span: Span) -> list[Span]:
    return _parted(_WORD, text, span)


def _characters(text: str, span: Span) -> list[Span]:
    start, stop = span
    step = max(1, min(_FINE, (stop - start) // 2))
    return [(at, min(at + step, stop)) for at in range(start, stop, step)]


LEVELS: dict[str, tuple[Callable[[str, Span], list[Span]], ...]] = {
    "markdown": (_paragraphs, _sentences, _words, _characters),
    "sentences": (_sentences, _words, _characters),
    "tokens": (_words, _characters),
}


def sections(text: str) -> list[Span]:
    """Return the sections of a Markdown text: from each ATX heading to the next, ignoring fenced code."""
    starts, fence, at = [0], "", 0
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            if found is not None and found[1].startswith(fence) and not line[found.end() :].strip():
                fence = ""
        elif found is not None:
            fence = found[1]
        elif _HEADING.match(line) and at:
            starts.append(at)
        at += len(line)
    return [(start, stop) for start, stop in zip(starts, [*starts[1:], len(text)], strict=True) if start < stop]


def trimmed(text: str, span: Span) -> Span:
    """Return a span without the white space at its ends; an empty one if there is nothing else."""
    part = text[span[0] : span[1]]
    left = len(part) - len(part.lstrip())
    return span[0] + left, max(span[0] + left, span[1] - (len(part) - len(part.rstrip())))


def cut(
    text: str,
    span: Span,
    measure: Measure,
    size: int,
    overlap: int,
    levels: Sequence[Callable[[str, Span], list[Span]]],
) -> Iterator[Span]:
    """Yield spans of at most `size` tokens that cover a span; neighbours share parts of at most `overlap` tokens.

    Args:
        levels: ways to split a text, from coarse to fine; the last splits anything that has two characters.
    """
    start, stop = trimmed(text, span)
    if stop - start <= _LONGEST * size and measure.count(text[start:stop]) <= size:
        yield span  # the sum of its parts may differ
        return
    parts = levels[0](text, span)
    if len(parts) == 1 and len(levels) > 1:
        yield from cut(text, span, measure, size, overlap, levels[1:])
        return
    costs = [measure.cost(text[start:stop]) for start, stop in parts]
    room = size - measure.own
    first, ended = 0, 0  # the next part, and the parts that are covered
    while first < len(parts):
        last = _fitting(text, parts, costs, first, measure, size, room)
        if last <= ended:  # nothing new beside the overlap
            first = ended
            last = _fitting(text, parts, costs, first, measure, size, room)
        if last == first:  # a part that does not fit by itself
            yield from _finer(text, parts[first], measure, size, overlap, levels)
            first = ended = first + 1
            continue
        yield parts[first][0], parts[last - 1][1]
        ended = last
        if last == len(parts):
            return
        first, shared = last, 0
        while shared + costs[first - 1] <= min(overlap, room - costs[last]):
            first -= 1
            shared += costs[first]
            if first == 0:
                break


def _fitting(
    text: str, parts: Sequence[Span], costs: Sequence[int], first: int, measure: Measure, size: int, room: int
) -> int:
    """Return the index after the last part that fits together with those from the first on; `first` if none does."""
    last, total = first, 0
    while last < len(parts) and total + costs[last] <= room:
        total += costs[last]
        last += 1
    while last > first:
        start, stop = trimmed(text, (parts[first][0], parts[last - 1][1]))
        if start == stop or (tokens := measure.count(text[start:stop])) <= size:
            return last
        last = min(last - 1, first + (last - first) * size // tokens)
    return first


def _finer(
    text: str,
    part: Span,
    measure: Measure,
    size: int,
    overlap: int,
    levels: Sequence[Callable[[str, Span], list[Span]]],
) -> Iterator[Span]:
    start, stop = trimmed(text, part)
    if stop - start <= 1 or measure.count(text[start:stop]) <= size:
        yield part  # one character is what a tokenizer takes at least
    else:
        yield from cut(text, part, measure, size, overlap, levels[1:] or levels)


def fitted(text: str, spans: Iterable[Span], measure: Measure, size: int) -> Iterator[Span]:
    """Yield spans without white space at their ends and without blank ones; those that are too long are cut."""
    for span in spans:
        start, stop = trimmed(text, span)
        if start == stop:
            continue
        if stop - start == 1 or measure.count(text[start:stop]) <= size:
            yield start, stop
            continue
        for each in cut(text, (start, stop), measure, size, 0, LEVELS["tokens"]):
            found = trimmed(text, each)
            if found[0] < found[1]:
                yield found
