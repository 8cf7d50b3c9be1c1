"""Declarations in column comments, for databases that keep no schema metadata.

A comment may begin with text for people; the declaration follows after `embedding_functions=`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from embedreg.declaration.entries import KEY, Entry, entries
from embedreg.errors import MetadataError
from embedreg.support.strict_json import MAX_CHARACTERS

__all__ = ["comment_of", "metadata_in_comments", "one_line"]

MARK = f"{KEY}="


def comment_of(entry: Entry, words: str = "") -> str:
    """Return the comment of a vector column: its declaration in ASCII, on one line.

    Args:
        entry: the declaration as it is stored.
        words: text for people, put first.
    """
    return f"{words.partition(MARK)[0].strip()} {MARK}[{one_line(entry)}]".strip()


def one_line(entry: Entry) -> str:
    """Return the JSON of a stored declaration in ASCII on one line, to be shown to people."""
    return json.dumps(json.loads(entry.raw), separators=(",", ":"))


def metadata_in_comments(comments: Iterable[str | None]) -> dict[str, Any]:
    """Return the declarations of column comments as schema metadata; empty where there are none.

    Raises:
        MetadataError: a declaration that cannot be read, or two for one vector column.
    """
    found: list[str] = []
    length = 0
    for comment in comments:
        if comment is not None and not isinstance(comment, str):
            raise MetadataError(
                f"a column comment must be str or None, got {type(comment).__name__}.", "pass str or None"
            )
        _, mark, text = (comment or "").partition(MARK)
        if mark:
            length += len(text)
            if length > MAX_CHARACTERS:
                raise MetadataError(f"the comments declare more than {MAX_CHARACTERS} characters.", "inspect them")
            found += [entry.raw for entry in entries({KEY: text[: MAX_CHARACTERS + 1]})]
    return {KEY: f"[{', '.join(found)}]"} if found else {}
