"""What is kept beside a dataset while a column changes: validated, bounded, with names confined to the dataset."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from embedreg.declaration import codec
from embedreg.declaration.entries import Entry
from embedreg.errors import EmbedregError, MetadataError
from embedreg.inspection.locate import is_data
from embedreg.support import confined
from embedreg.support.strict_json import Malformed, document

__all__ = ["Begun", "Done", "Migrating", "Publishing", "dumped", "entry_of", "read"]

MAX_BYTES = 64 << 20
_MAX_TEXT = 4 << 20


def _name(name: str) -> str:
    if not confined.is_plain(name) or not is_data(PurePosixPath(name)):
        raise ValueError("not the name of a data file")
    return name


Name = Annotated[str, AfterValidator(_name)]
Column = Annotated[str, Field(min_length=1, max_length=1024)]
Stamp = Annotated[list[Annotated[int, Field(ge=0, lt=2**64)]], Field(min_length=3, max_length=3)]
Count = Annotated[int, Field(ge=0, lt=2**62)]
Kept = TypeVar("Kept", bound="_Stored")


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    format: Literal[1] = 1


class Begun(_Stored):
    """The change whose files are being staged.

    Attributes:
        key: identifies the change, so that another one does not use its files.
        entry: the declaration that the files get.
    """

    key: Annotated[str, Field(max_length=64)]
    entry: Annotated[str, Field(max_length=_MAX_TEXT)]


class Done(_Stored):
    """A staged file.

    Attributes:
        source: the stamp of the file that was read.
        staged: the stamp of the staged file, which it keeps when it is published.
    """

    source: Stamp
    staged: Stamp
    rows: Count
    written: Count
    embedded: Count
    cached: Count
    stamped: Count
    bad_rows: Count


class Publishing(_Stored):
    """The files that are being renamed.

    Attributes:
        key: as in `Begun`.
        files: name -> (the stamp of the file to replace, the stamp of its new file).
        keep: whether the old files are kept, for a rollback.
        entries: the declarations of the manifest afterwards.
        state: the state of the migration afterwards; "" for no change of it.
    """

    key: Annotated[str, Field(max_length=64)]
    files: dict[Name, tuple[Stamp, Stamp]]
    keep: bool
    entries: Annotated[str, Field(max_length=_MAX_TEXT)]
    state: Literal["", "switched", "rolled back"]


class Migrating(_Stored):
    """A migration.

    Attributes:
        vector, name: the column, before and after the switch.
        old, new: the declarations.
        published: name -> the stamp of the file that the switch published; `previous/` holds the one before.
    """

    id: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9a-f]+$")]
    vector: Column
    name: Column
    state: Literal["staging", "ready", "switched", "settled"]
    old: Annotated[str, Field(max_length=_MAX_TEXT)]
    new: Annotated[str, Field(max_length=_MAX_TEXT)]
    keep: bool
    published: dict[Name, Stamp] = {}


def read(kind: type[Kept], data: bytes, where: str) -> Kept:
    """Parse and validate a file.

    Raises:
        MetadataError: it is invalid; the message quotes none of its values.
    """
    try:
        document(data, max_bytes=MAX_BYTES, max_text=_MAX_TEXT, max_values=MAX_BYTES)
        return kind.model_validate_json(data)
    except Malformed as exc:
        why = str(exc)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        known = [str(part) for part in first["loc"] if part in kind.model_fields]
        why = f"{known[0] if known else 'a value'} is invalid ({first['type']})"
    raise MetadataError(f"{where} is not what embedreg writes: {why}.", "remove it, if no process works on the data")


def dumped(value: _Stored) -> bytes:
    """Return the content of a file."""
    return json.dumps(value.model_dump(), indent=1, ensure_ascii=False).encode()


def entry_of(text: str, where: str) -> Entry:
    """Parse a stored declaration.

    Raises:
        MetadataError: it is not one declaration.
    """
    try:
        found: list[Any] = codec.entries({codec.KEY: f"[{text}]"})
    except EmbedregError as exc:
        raise MetadataError(f"{where}: {exc.message}", exc.hint) from None
    if len(found) != 1:
        raise MetadataError(f"{where} holds {len(found)} declarations, not one.", "remove it")
    return found[0]  # type: ignore[no-any-return]  # an Entry
