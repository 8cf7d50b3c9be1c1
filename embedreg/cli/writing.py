"""Writing without halves: a file appears under its name only when it is whole, and what was there stays until then."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from embedreg.errors import EmbedregError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["in_place_of", "remove", "storage_errors", "write_parquet"]


@contextlib.contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; what is written there takes the place of `path` at the end.

    A file takes its place in one step. A folder (a Lance table) takes two, old out and new in: should the machine stop
    between them, both are still there under hidden names.

    Raises:
        StorageError: the folder cannot be made or written to, or the disk is full; `path` is as it was.
    """
    # Hidden, and without an ending that a reader of the folder would look for.
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    made = next((parent for parent in reversed(path.absolute().parents) if not parent.exists()), None)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield hidden
        with storage_errors(path):
            _sync(hidden)
            if hidden.is_dir() and path.exists():
                old = hidden.with_suffix(".old")
                path.rename(old)
                hidden.rename(path)
                remove(old)
            else:
                os.replace(hidden, path)
            _sync(path.parent)
    except BaseException:
        remove(hidden)
        if made is not None and not path.exists():
            _remove_empty(path.parent, made)
        raise


def write_parquet(reader: pa.RecordBatchReader, path: Path) -> None:
    """Write a stream as one Parquet file, a row group per batch, its schema metadata included.

    Raises:
        StorageError: the file cannot be written; what stood there before is as it was.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A dictionary of vectors, each of them different, would only cost time.
    plain = [field.name for field in reader.schema if not pa.types.is_nested(field.type)]
    with in_place_of(path) as hidden:
        with storage_errors(path):
            writer = pq.ParquetWriter(hidden, reader.schema, use_dictionary=plain)
        try:
            for batch in reader:
                if batch.num_rows:
                    with storage_errors(path):
                        writer.write_batch(batch)
        except BaseException:
            with contextlib.suppress(OSError):  # the footer of a file that is thrown away
                writer.close()
            raise
        with storage_errors(path):
            writer.close()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a `StorageError` that names what was to be written.

    Only around writing: an OSError of the function that embeds (a connection, a model's file) is not about this path.
    """
    try:
        yield
    except EmbedregError:
        raise
    except OSError as exc:
        raise StorageError(
            f"{path} cannot be written: {exc.strerror or exc}. What was there before is as it was.",
            "free some space, or choose another place",
        ) from exc


def _sync(path: Path) -> None:
    """Push what is cached to the disk, so that the name never points to data that a power cut could take."""
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # the error that brought us here is the one to show
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folder: Path, last: Path) -> None:
    """Remove the empty folders that were made for an output that did not come to be."""
    folder, last = folder.absolute(), last.absolute()
    while folder.is_relative_to(last):
        try:
            folder.rmdir()
        except OSError:
            return  # somebody put something there meanwhile
        folder = folder.parent
