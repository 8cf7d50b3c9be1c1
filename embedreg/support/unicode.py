"""Whether a text is valid Unicode: a `str` may hold half a surrogate pair, which UTF-8 cannot encode."""

from __future__ import annotations

__all__ = ["is_valid"]


def is_valid(text: str) -> bool:
    """Return whether UTF-8 can encode a text, so that Arrow, JSON and SQL can hold it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
