"""The one door for text that data brings to a terminal, a log, an SQL error or a page.

Names of columns, headings, file names, reasons and stored values come from strangers. Printed as they are, escape
sequences would steer a terminal, and marks of direction would show another text than the one that is there.
"""

from __future__ import annotations

import re

__all__ = ["escaped_json", "first_line", "plain", "printable"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_JOINERS = frozenset("\u200c\u200d")  # parts of words in Persian and Indic scripts, and of emoji; they steer nothing
_ASCII = re.compile(r"[\x20-\x7e]*")


def printable(text: str) -> str:
    """Return text whose every character is printable; line breaks and joiners stay, a tab becomes a space."""
    if _ASCII.fullmatch(text):
        return text
    return "".join(
        char if char.isprintable() or char == "\n" or char in _JOINERS else " " if char.isspace() else _REPLACEMENT
        for char in text.replace("\r\n", "\n")
    )


def plain(value: object, limit: int | None = None) -> str:
    """Return a value as one line of printable text.

    Args:
        value: anything; white space is run together.
        limit: cut to this many characters, the last of them an ellipsis.
    """
    text = str(value)
    if limit is not None and len(text) > 16 * limit:  # a long value costs no more than what is shown of it
        text = text[: 16 * limit]
    text = printable(" ".join(text.split()))
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's message; engines add their traces below."""
    return str(exc).strip().partition("\n")[0]


def escaped_json(text: str, *, ascii_only: bool = False) -> str:
    r"""Escape what is not printable in JSON text as `\uXXXX`; a program reads the same values.

    Args:
        text: JSON, in which such characters stand inside strings only.
        ascii_only: escape all that is not ASCII, for a stream in another encoding than UTF-8.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(char if _stays(char, ascii_only) else _escape(char) for char in text)


def _stays(char: str, ascii_only: bool) -> bool:
    if char.isascii():
        return char != "\x7f"  # the other control characters were escaped when the JSON was made
    return not ascii_only and (char.isprintable() or char in _JOINERS)


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
