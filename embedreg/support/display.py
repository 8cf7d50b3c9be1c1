"""Make untrusted text printable for a terminal, a log, an SQL error or a page.

Column names, headings, file names, reasons and stored values are untrusted. Printed unchanged, escape sequences would
control a terminal, and direction marks would make a text look like another one.
"""

from __future__ import annotations

import re

__all__ = ["escaped_json", "first_line", "plain", "printable"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_JOINERS = frozenset("\u200c\u200d")  # parts of words in Persian and Indic scripts, and of emoji; harmless
_ASCII = re.compile(r"[\x20-\x7e]*")


def printable(text: str) -> str:
    """Replace characters that are not printable; line breaks and joiners stay, a tab becomes a space."""
    if _ASCII.fullmatch(text):
        return text
    return "".join(
        char if char.isprintable() or char == "\n" or char in _JOINERS else " " if char.isspace() else _REPLACEMENT
        for char in text.replace("\r\n", "\n")
    )


def plain(value: object, limit: int | None = None) -> str:
    """Return a value as one line of printable text.

    Args:
        value: anything; white space is collapsed.
        limit: the maximum number of characters, the last of them an ellipsis if the text was cut.
    """
    text = str(value)
    if limit is not None and len(text) > 16 * limit:  # bounds the cost for a long value
        text = text[: 16 * limit]
    text = printable(" ".join(text.split()))
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's message; engines append their traces."""
    return str(exc).strip().partition("\n")[0]


def escaped_json(text: str, *, ascii_only: bool = False) -> str:
    r"""Escape characters that are not printable in JSON text as `\uXXXX`; programs read the same values.

    Args:
        text: JSON, in which such characters occur inside strings only.
        ascii_only: escape all non-ASCII characters, for a stream in another encoding than UTF-8.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(char if _stays(char, ascii_only) else _escape(char) for char in text)


def _stays(char: str, ascii_only: bool) -> bool:
    if char.isascii():
        return char != "\x7f"  # other control characters were escaped when the JSON was written
    return not ascii_only and (char.isprintable() or char in _JOINERS)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
