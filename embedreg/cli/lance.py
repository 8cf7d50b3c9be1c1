"""Lance tables by path: opened as they are, and made where nobody sees them until they are whole."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.datasets.places import Place
from embedreg.errors import EmbedregError, StorageError
from embedreg.support.atomic import remove, replacing, storage_errors
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["engine_errors", "new_table", "open_untouched"]

_SOURCE = re.compile(r",? ?/[^ ]*\.rs:\d+(:\d+)?")  # where in the engine's source an error was raised


def open_untouched(place: Place) -> Any:
    """Open a table for a look at it; unlike `engines.lancedb.open_table` this never rewrites its metadata.

    Raises:
        StorageError: it cannot be opened. MissingExtraError: lancedb is not installed.
    """
    database = _connect(place.database)
    with engine_errors(str(place.path), "is the folder complete?"):
        return database.open_table(place.table)


@contextlib.contextmanager
def new_table(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Give a new, empty table; once the block has filled it, it takes the place of `path`.

    It grows in a hidden database beside `path`, where no reader of the folder sees it.

    Raises:
        StorageError: it cannot be written; what stood there before is as it was.
    """
    from embedreg.engines import lancedb

    with replacing(path) as hidden:
        growing = hidden.with_suffix(".database")
        try:
            with storage_errors(path):
                table = lancedb.create_table(_connect(growing), path.stem, schema)
            yield table
            with storage_errors(path):
                (growing / path.name).rename(hidden)
        finally:
            remove(growing)


@contextlib.contextmanager
def engine_errors(what: str, hint: str) -> Iterator[None]:
    """Turn lancedb's own errors, which are of any kind and many lines, into one line."""
    try:
        yield
    except EmbedregError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError) as exc:
        lines = str(exc).strip().splitlines() or [type(exc).__name__]
        raise StorageError(f"{what}: {_SOURCE.sub('', lines[0])}", hint) from exc


def _connect(folder: Path) -> Any:
    lancedb = attempt_import_or_raise("lancedb", extra="lancedb")
    with engine_errors(str(folder), "check the folder and its permissions"):
        return lancedb.connect(folder)
