"""The manifest of a dataset folder, `_embedreg/manifest.json`: declarations for files that lost theirs.

polars, pandas and DuckDB's `COPY` drop schema metadata when they write Parquet; the manifest stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedreg.declaration.entries import KEY, Entry, entries
from embedreg.errors import EmbedregError, MetadataError, StorageError
from embedreg.support import confined
from embedreg.support.atomic import storage_errors
from embedreg.support.strict_json import MAX_CHARACTERS, Malformed, document

__all__ = ["FOLDER", "MAX_BYTES", "NAME", "content", "declaration", "read", "write"]

FOLDER = "_embedreg"
NAME = f"{FOLDER}/manifest.json"
MAX_BYTES = 2 * MAX_CHARACTERS
FORMAT = 1
_FIRST = re.compile(rf'\s*\{{\s*"{KEY}"\s*:\s*')


def content(text: bytes) -> bytes:
    """Return a manifest's content for the value of the schema metadata key `embedding_functions`.

    The list is included byte for byte, followed by the format version and the fingerprint of each vector column.
    """
    found = entries({KEY: text})
    rest = {"format": FORMAT, "fingerprints": _fingerprints(found)}
    return b'{\n"%s": %s,\n%s\n' % (KEY.encode(), text, json.dumps(rest, indent=2).encode()[2:])


def declaration(data: bytes) -> bytes:
    """Return the declarations in a manifest's content, in the form of the schema metadata.

    Raises:
        MetadataError: it is not a manifest, or a later format whose list cannot be found.
    """
    try:
        found = document(data, max_bytes=MAX_BYTES)
    except Malformed as exc:
        raise _corrupt(str(exc)) from None
    if not isinstance(found.get(KEY), list):
        raise _corrupt(f"it has no list {KEY!r}")
    text = data.decode()
    start = _FIRST.match(text)
    if start is None:  # another writer, another order of keys
        return json.dumps(found[KEY], indent=2).encode()
    _, stop = json.JSONDecoder().raw_decode(text, start.end())
    return text[start.end() : stop].encode()


def write(folder: Path, text: bytes) -> Path:
    """Write the manifest of a local dataset folder.

    Args:
        folder: the dataset folder.
        text: the declarations, the value of the schema metadata key `embedding_functions`.
    Returns:
        The path of the manifest.
    Raises:
        StorageError: it cannot be written. MetadataError: the text is not a list of declarations.
    """
    path = folder / NAME
    made = content(text)
    with storage_errors(path):
        confined.write(folder, (FOLDER, "manifest.json"), made)
    return path


def read(folder: Path) -> bytes | None:
    """Return the declarations in the manifest of a local dataset folder; None if there is no manifest.

    Raises:
        StorageError: it cannot be read. MetadataError: it is not a manifest.
    """
    path = folder / NAME
    try:
        data = confined.read(folder, (FOLDER, "manifest.json"), MAX_BYTES)
    except EmbedregError:
        raise
    except NotADirectoryError:
        return None
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}.", "check the file and its permissions") from exc
    return None if data is None else declaration(data)


def _fingerprints(found: Iterable[Entry]) -> dict[str, Any]:
    return {entry.vector_column: entry.reserved.get("fingerprint") for entry in found}


def _corrupt(why: str) -> MetadataError:
    return MetadataError(
        f"the manifest {NAME} cannot be read: {why}.",
        "the data itself is intact; remove the file, or write it again: embedreg attach",
    )
