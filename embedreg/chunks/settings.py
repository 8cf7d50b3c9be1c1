"""The schema metadata `embedreg.chunks`: which parents a child's chunks were cut from, and how; untrusted input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedreg.errors import MetadataError
from embedreg.support import strict_json
from embedreg.support.strict_json import Malformed

__all__ = ["CHUNK", "END", "KEY", "PARENT_DIGEST", "START", "Settings", "digest_of", "read"]

KEY = "embedreg.chunks"
CHUNK, START, END, PARENT_DIGEST = "chunk", "start", "end", "parent_digest"  # columns of a child
_MAX_BYTES = 1 << 16

Text = Annotated[str, Field(min_length=1, max_length=4096)]


class Settings(BaseModel):
    """The settings that a child was cut with.

    Attributes:
        parent: the path of the parents, relative to the child's folder where both are on this machine.
        key: the column that identifies parents, in both tables.
        source: the parents' column of texts.
        vector: the child's vector column, whose declaration names the column of texts.
        splitter, version: as in `splitters.Splitter`.
        size, overlap: in tokens of the function.
        counted_by: the first 8 hex of the fingerprint of the function that counted them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal[1] = 1
    parent: Text
    key: Text
    source: Text
    vector: Text
    splitter: Text
    version: Annotated[str, Field(max_length=100)] = ""
    size: Annotated[int, Field(ge=1, le=10**7)]
    overlap: Annotated[int, Field(ge=0, le=10**7)]
    counted_by: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]

    @property
    def encoded(self) -> str:
        """The value of the schema metadata."""
        return json.dumps(self.model_dump())

    @property
    def prefix(self) -> str:
        """The part of a parent's digest that names how it was cut, with the colon."""
        facts = [self.source, self.splitter, self.version, self.size, self.overlap, self.counted_by]
        return f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}:"


def digest_of(text: str, prefix: str) -> str:
    """Return the digest of a parent's text: as a row digest, with the way of cutting instead of the function."""
    return f"{prefix}{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read(metadata: Mapping[Any, Any] | None, shown: str) -> Settings | None:
    """Return the settings in schema metadata; None if it has none.

    Raises:
        MetadataError: they are not as embedreg writes them.
    """
    value = (metadata or {}).get(KEY.encode(), (metadata or {}).get(KEY))
    if value is None:
        return None
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
    try:
        return Settings.model_validate(strict_json.document(data, max_bytes=_MAX_BYTES))
    except Malformed as exc:
        why = str(exc)
    except ValidationError as exc:
        why = f"{'.'.join(map(str, exc.errors()[0]['loc'])) or 'it'} is not as embedreg writes it"
    raise MetadataError(
        f"the metadata {KEY!r} of {shown} cannot be read: {why}.", "cut the parents again, into another table"
    )
