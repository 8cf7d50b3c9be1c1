"""Lance tables by path: opened unchanged, and created atomically."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.datasets.places import Place
from embedreg.errors import EmbedregError, MissingExtraError, StorageError
from embedreg.support.atomic import remove, replacing, storage_errors
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["engine_errors", "filtered", "new_table", "open_untouched", "unindexed"]

_SOURCE = re.compile(r",? ?/[^ ]*\.rs:\d+(:\d+)?")  # the position of an error in the engine's source code


def open_untouched(place: Place) -> Any:
    """Open a table for reading; unlike `engines.lancedb.open_table` this never rewrites its metadata.

    Raises:
        StorageError: it cannot be opened. MissingExtraError: lancedb is not installed.
    """
    database = _connect(place.database)
    with engine_errors(str(place.path), "is the folder complete?"):
        return database.open_table(place.table)


def unindexed(place: Place, column: str) -> Any:
    """Open a table as pylance's dataset if that can search a column as lancedb would: without an index, row by row.

    It is imported in a fifth of the time of lancedb, most of which is a client of remote databases.

    Returns:
        The dataset; None if it is not a table, if pylance is not installed, or if the table has an index of vectors.
    """
    from embedreg.engines.lancedb.folders import dataset_at

    try:
        dataset = dataset_at(place.path)
    except (StorageError, MissingExtraError):
        return None  # lancedb reports what is wrong
    indices = dataset.describe_indices()
    return None if any(column in index.field_names for index in indices) else dataset


def filtered(place: Place, names: list[str], where: str) -> Iterator[pa.RecordBatch]:
    """Yield columns of the rows that meet a condition, as the engine finds them.

    Raises:
        InputError: the condition is invalid. StorageError: it cannot be computed.
    """
    from embedreg.cli.where import lance_where
    from embedreg.engines.lancedb.folders import dataset_at

    dataset = dataset_at(place.path)
    condition = lance_where(where, dataset.schema)
    with engine_errors(f"{place.path} cannot be searched", "check --where"):
        yield from dataset.scanner(columns=names, filter=condition).to_batches()


@contextlib.contextmanager
def new_table(path: Path, schema: pa.Schema) -> Iterator[Any]:
    """Yield a new, empty table, which replaces `path` after the block.

    It is filled in a hidden database beside `path`, invisible to readers of the folder.

    Raises:
        StorageError: it cannot be written; an existing table is unchanged then.
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
    """Convert lancedb's errors, of any type and many lines, to one line."""
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
