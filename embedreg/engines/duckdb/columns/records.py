"""The record of a change, in the comment of the column that it makes or keeps; what is read is untrusted."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedreg.declaration import codec
from embedreg.declaration.entries import Entry
from embedreg.errors import EmbedregError, MetadataError
from embedreg.support.strict_json import MAX_CHARACTERS, Malformed, document

__all__ = ["Change", "commented", "in_comments"]

_MARK = "embedreg_change="
Column = Annotated[str, Field(min_length=1, max_length=1024)]
Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class Change(BaseModel):
    """A column that is being added or migrated.

    Attributes:
        id: identifies it.
        what: whether there is an old column.
        vector, name: the column before and after the switch; for a new column both are its name.
        state: of the migration.
        keep: whether the old vectors are kept for a rollback.
        back: whether a rollback has begun.
        old, new: the declarations, as base64; `old` is empty for a new column.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    format: Literal[1] = 1
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    what: Literal["add", "migrate"]
    vector: Column
    name: Column
    state: Literal["staging", "ready", "switched", "settled"]
    keep: bool
    back: bool = False
    old: Text
    new: Text

    def entry(self, which: Literal["old", "new"]) -> Entry:
        """Return a declaration.

        Raises:
            MetadataError: it is not one declaration.
        """
        try:
            text = base64.b64decode(getattr(self, which), validate=True).decode()
            [entry] = codec.entries({codec.KEY: f"[{text}]"})
        except (ValueError, EmbedregError) as exc:
            raise _invalid(f"its declaration is invalid ({type(exc).__name__})") from None
        return entry


def text_of(entry: Entry) -> str:
    """Return a declaration as a record holds it."""
    return base64.b64encode(entry.raw.encode()).decode()


def commented(change: Change) -> str:
    """Return the comment that records a change."""
    return f"embedreg: do not use this column. {_MARK}{change.model_dump_json()}"


def in_comments(comments: dict[str, str | None]) -> dict[str, Change]:
    """Return the records in the comments of a table: column -> change.

    Raises:
        MetadataError: one is not what embedreg writes.
    """
    found = {}
    for column, comment in comments.items():
        _, mark, text = (comment or "").partition(_MARK)
        if mark:
            try:
                document(text.encode(), max_bytes=4 * MAX_CHARACTERS, max_text=MAX_CHARACTERS)
                found[column] = Change.model_validate_json(text)
            except Malformed as exc:
                raise _invalid(str(exc)) from None
            except ValidationError as exc:
                first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
                raise _invalid(f"a value is invalid ({first['type']})") from None
            _check_columns(found[column])
    return found


def _check_columns(change: Change) -> None:
    """Refuse a record whose declarations are of other columns than it names: the old column is dropped at the end."""
    named = {"new": change.name} | ({"old": change.vector} if change.what == "migrate" else {})
    for which, column in named.items():
        if change.entry(which).vector_column != column:  # type: ignore[arg-type]  # the keys are these two
            raise _invalid(f"its {which} declaration is of another column")


def _invalid(why: str) -> MetadataError:
    return MetadataError(
        f"the comment that records a change of a column is not what embedreg writes: {why}.",
        "COMMENT ON COLUMN ... IS NULL removes it, if no process works on the table",
    )
