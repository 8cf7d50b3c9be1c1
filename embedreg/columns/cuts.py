"""Where texts were cut before they were embedded: found on a few rows, then tried on the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.columns.vectors import SAME

if TYPE_CHECKING:
    import numpy as np

    from embedreg.columns.candidates import Vectors

__all__ = ["Cut", "found_in", "token_cuts"]

_WORD = re.compile(r"\S+")
_COARSE = 12  # prefixes of a text that are tried before those around the best
_CHARACTERS = 48  # ends inside words that are tried around the best
_SHARES = (2, 4)  # parts of a model's limit that texts are tried to have been cut at


@dataclass(frozen=True)
class Cut:
    """A length that longer texts were cut at.

    Attributes:
        unit: "words", "characters" or "tokens".
        length: how many of them were kept.
        count: counts the tokens of a text, for that unit.
    """

    unit: str
    length: int
    count: Callable[[str], int] | None = None

    def applied(self, text: str) -> str | None:
        """Return the beginning of a text; None if it is not longer."""
        if self.unit == "characters":
            return text[: self.length] if len(text) > self.length else None
        if self.unit == "words":
            return _words(text, self.length)
        assert self.count is not None
        return _tokens(text, self.length, self.count)

    def __str__(self) -> str:
        return f"texts cut at {self.length:,} {self.unit}"


def token_cuts(function: Any) -> Iterator[Cut]:
    """Yield cuts at parts of the number of tokens that a function's model reads, if it counts tokens."""
    count, limit = getattr(function, "count_tokens", None), getattr(function, "max_tokens", lambda: None)()
    if count is not None and limit is not None:
        for share in _SHARES:
            yield Cut("tokens", limit // share, count)


def found_in(text: str, stored: np.ndarray, vectors: Vectors) -> list[Cut]:
    """Return the cuts of one text that reproduce its stored vector.

    Args:
        stored: (d,) the stored vector, of length 1.
    """
    ends = [match.end() for match in _WORD.finditer(text)]
    if len(ends) < 2:
        return []
    known: dict[int, float] = {}

    def measure(places: list[int]) -> None:
        new = [place for place in dict.fromkeys(places) if place not in known]
        rows = vectors.of([text[:place] for place in new])
        known.update(zip(new, (rows @ stored).tolist(), strict=True))

    step = max(1, len(ends) // _COARSE)
    measure(ends[:-1:step])
    best = ends.index(max(known, key=known.__getitem__))
    around = range(max(0, best - step), min(len(ends) - 1, best + step + 1))
    measure([ends[index] for index in around])
    best = max((index for index in around), key=lambda index: known[ends[index]])
    # the last words of a long prefix may lie past what the model reads: the shortest of equal ones is the cut
    exact = [index for index in around if known[ends[index]] >= SAME]
    if exact:
        place = max(exact, key=lambda index: known[ends[index]])
        return [Cut("words", place + 1), Cut("characters", ends[place])]
    low = ends[best - 1] if best else 0
    inside = list(range(low + 1, ends[min(best + 1, len(ends) - 1)]))[:_CHARACTERS]
    measure(inside)
    place = max(inside, key=known.__getitem__, default=0)
    return [Cut("characters", place)] if inside and known[place] >= SAME else []


def _words(text: str, length: int) -> str | None:
    for index, match in enumerate(_WORD.finditer(text), 1):
        if index == length:
            end = match.end()
            return text[:end] if text[end:].strip() else None
    return None


def _tokens(text: str, length: int, count: Callable[[str], int]) -> str | None:
    """Return the longest beginning of at most so many tokens, which may end inside a word."""
    if count(text) <= length:
        return None
    ends = [0, *(match.end() for match in _WORD.finditer(text))]
    low, high = 0, len(ends) - 1  # the first fits, the last does not
    while high - low > 1:
        middle = (low + high) // 2
        if count(text[: ends[middle]]) <= length:
            low = middle
        else:
            high = middle
    inside = range(ends[high] - 1, ends[low], -1)
    end = next((end for end in inside if count(text[:end]) <= length), ends[low])
    return text[:end] or None
