"""What a SQL user may read of an error: one line, without paths, and without the inputs in any common spelling."""

from __future__ import annotations

import base64
import contextlib
import html
import itertools
import json
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from embedreg.support.display import plain

__all__ = ["WITHHELD", "in_one_line", "inputs_of", "without_paths"]

MAX_CHARS = 400  # of a message
WITHHELD = "the message is withheld, since it may quote inputs; see the server's log"

_READ = 2000  # characters of a message that are looked at
_SHARED = 8  # letters and digits in a row that a message may not share with an input
_SCANNED = 4096  # inputs, and
_SCANNED_CHARS = 2**20  # their characters, that a message is compared with; beyond that it is withheld
_PLAIN_PART = 0.2  # a message of which less is left is withheld

_END = r"""[^\s'"`,;()<>|\]}]*"""
_URL = re.compile(r"https?://" + _END, re.IGNORECASE)
# From the root, a drive, the home, a variable or a dot, behind a scheme or not; several steps without any of these; or
# percent-encoded. A web address, a model's "owner/name" and "1/2" are not paths.
_PATH = re.compile(
    rf"""(?xi)
    (?: (?<![\w.-]) [a-z][\w+.-]+ : )? (?: (?<![\w/.~-]) (?: ~[\w.-]* | \.{{1,2}} )? / (?=[^\s/]|/) | \\\\ ) {_END}
    | (?<![\w]) [a-z] : [\\/] {_END}
    | [$%] \{{? \w+ [}}%]? [\\/] {_END}
    | (?<![\w/]) [\w.@-]+ (?: [\\/] [\w.@-]+ ){{2,}} [\\/]?
    | [\w.:%-]* %(?:2f|5c) {_END}
    """
)
_QUOTED_PATH = re.compile(
    r"""(?xi)
    (?P<q>['"`]) (?: [a-z][\w+.-]+:/ | ~?[\w.-]*/ | \.{1,2}/ | [a-z]:[\\/] | [$%]\{?\w+[}%]?[\\/] | \\\\ )
    (?: (?!(?P=q)). )+ (?P=q)"""
)
_MODEL = re.compile(r"""['"`][\w.-]+/[\w.-]+['"`]""")
_PAIRS = (("'", "'"), ('"', '"'), ("`", "`"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb"))
_QUOTED = re.compile("|".join(f"{first}[^{last}]*{last}" for first, last in _PAIRS))
_WORD = re.compile(r"\w+")
_COMMON = frozenset(".,:;!?'\"()")  # which reveal nothing of an input


def in_one_line(text: str, inputs: Iterable[str | bytes] = ()) -> str:
    """Clean a message: one printable line of bounded length, without paths, and without the inputs that it quotes.

    Args:
        text: the message.
        inputs: what it may have quoted. Where they are more than can be compared, nothing of the message is left.
    """
    text = text[:_READ]
    values = _bounded(inputs)
    if values is None:
        return WITHHELD
    if values:
        cleaned = _without_inputs(text, values)
        left = sum(map(str.isalnum, cleaned)) / max(1, sum(map(str.isalnum, text)))
        text = cleaned if left >= _PLAIN_PART or len(text) < 4 * _SHARED else WITHHELD
    text = plain(without_paths(text)).replace("\N{REPLACEMENT CHARACTER}", "?")
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."


def without_paths(text: str) -> str:
    """Replace the paths in a text, local ones and those of storage; web addresses and names of models stay."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        kept.append(found[0])
        return f"\0{len(kept) - 1}\0"

    text = _QUOTED_PATH.sub(
        lambda found: keep(found) if _MODEL.fullmatch(found[0]) else "<path>", text.replace("\0", " ")
    )
    text = _PATH.sub("<path>", _URL.sub(keep, text))
    return re.sub(r"\0(\d+)\0", lambda found: kept[int(found[1])], text)


def inputs_of(values: Iterable[Any]) -> Iterator[str | bytes]:
    """Yield the inputs of an Arrow array one by one, for keeping them out of messages."""
    for value in values:
        with contextlib.suppress(UnicodeDecodeError):  # no message can quote it
            yield value.as_py()


def _bounded(inputs: Iterable[str | bytes]) -> list[str] | None:
    """Return the inputs as texts; None where they are too many or too long to be compared."""
    values: list[str] = []
    room = _SCANNED_CHARS
    for value in itertools.islice(inputs, _SCANNED + 1):
        room -= len(value)
        if room < 0 or len(values) == _SCANNED:
            return None
        values.append(value if isinstance(value, str) else value.decode("latin-1"))
    return values


def _letters(text: str) -> tuple[str, list[int]]:
    """Return the letters and digits of a text, in one spelling of each, and the position of each."""
    found: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        if char.isascii():
            if char.isalnum():
                found.append(char.lower())
                places.append(place)
            continue
        for each in unicodedata.normalize("NFKD", char).casefold():
            if each.isalnum():
                found.append(each)
                places.append(place)
    return "".join(found), places


def _spellings(value: str) -> Iterator[str]:
    """Yield an input's forms in a message: itself, and escaped for Python, JSON, a web address or HTML."""
    yield value
    if not value.isascii() or not value.isprintable():
        yield from (ascii(value), repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False))
    if not value.isalnum():
        yield urllib.parse.quote(value)
        yield html.escape(value)
    raw = value.encode("utf-8", "replace")
    yield raw.hex()
    yield base64.b64encode(raw).decode()


def _without_inputs(text: str, values: list[str]) -> str:
    """Replace what a text shares with inputs, including parts that were cut out of one."""
    letters, places = _letters(text)
    spelled = {_letters(each)[0] for value in values for each in _spellings(value)}
    everything = "\0".join(spelled)
    hidden = [False] * len(text)

    def hide(start: int, stop: int) -> None:
        hidden[start:stop] = [True] * (stop - start)

    for start in range(len(letters) - _SHARED + 1):
        if letters[start : start + _SHARED] in everything:
            hide(places[start], places[start + _SHARED - 1] + 1)
    for found in _QUOTED.finditer(text):  # quoted text is an input's, however short, if an input contains it
        inside = _letters(found[0])[0] or found[0][1:-1].strip()
        if inside and (inside in everything or any(inside in value for value in values)):
            hide(found.start() + 1, found.end() - 1)
    for found in _WORD.finditer(text):  # numbers that were cut out of longer ones
        word = _letters(found[0])[0]
        if word.isdigit() and len(word) >= 4 and word in everything:
            hide(found.start(), found.end())
    for short in {each for each in spelled if 0 < len(each) < _SHARED and each in letters}:  # as whole words
        at = letters.find(short)
        while at >= 0:
            first, stop = places[at], places[at + len(short) - 1] + 1
            if not text[first - 1 : first].isalnum() and not text[stop : stop + 1].isalnum():
                hide(first, stop)
            at = letters.find(short, at + 1)
    for value in {value.strip() for value in values if not _letters(value[:64])[0]}:  # of signs alone
        if value and value in text and value not in _COMMON:
            for found in re.finditer(re.escape(value), text):
                hide(found.start(), found.end())
    runs = itertools.groupby(zip(text, hidden, strict=True), key=lambda pair: pair[1])
    return "".join("..." if inside else "".join(character for character, _ in run) for inside, run in runs)
