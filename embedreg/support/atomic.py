"""Writing without halves: a file appears under its name only when it is whole, and what was there stays until then."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.errors import EmbedregError, StorageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["fill_arrow", "fill_parquet", "in_place_of", "remove", "remove_empty", "storage_errors"]
__all__ += ["sync", "take_place", "write_parquet"]


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
        take_place(hidden, path)
    except BaseException:
        remove(hidden)
        if made is not None and not path.exists():
            remove_empty([path.parent], made)
        raise


def take_place(new: Path, path: Path) -> None:
    """Let what was written whole take the place of `path`, on the same disk.

    Raises:
        StorageError: it cannot; `path` is as it was.
    """
    with storage_errors(path):
        for each in [*new.rglob("*"), new] if new.is_dir() else [new]:
            sync(each)
        if new.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            path.rename(old)
            new.rename(path)
            remove(old)
        else:
            os.replace(new, path)
        sync(path.parent)


def write_parquet(reader: pa.RecordBatchReader, path: Path) -> None:
    """Write a stream as one Parquet file, a row group per batch, its schema metadata included.

    Raises:
        StorageError: the file cannot be written; what stood there before is as it was.
    """
    with in_place_of(path) as hidden:
        fill_parquet(hidden, reader.schema, reader, path)


def fill_parquet(new: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path | str) -> None:
    """Write batches into a new Parquet file, a row group each.

    Args:
        path: what it is going to be, for errors.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A dictionary of vectors, each of them different, would only cost time.
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    with storage_errors(path):
        writer = pq.ParquetWriter(new, schema, use_dictionary=plain)
    _write_all(writer, batches, path)


def fill_arrow(new: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path | str) -> None:
    """Write batches into a new Arrow IPC file; as `fill_parquet`."""
    import pyarrow as pa

    with storage_errors(path):
        writer = pa.ipc.new_file(str(new), schema)
    _write_all(writer, batches, path)


def _write_all(writer: Any, batches: Iterable[pa.RecordBatch], path: Path | str) -> None:
    try:
        for batch in batches:
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
def storage_errors(path: Path | str) -> Iterator[None]:
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


def sync(path: Path) -> None:
    """Push a file, or the names in a folder, from the cache to the disk, so that a power cut cannot take them."""
    handle = os.open(path, os.O_RDONLY)
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


def remove_empty(folders: Iterable[Path], made: Path | None) -> None:
    """Remove folders that are empty, and those above them up to the first that was made for them.

    Args:
        folders: the deeper ones first; they may not be there.
        made: None where none above them was made.
    """
    for folder in folders:
        for each in [folder, *folder.absolute().parents]:
            if each != folder and (made is None or not each.is_relative_to(made.absolute())):
                break
            with contextlib.suppress(OSError):  # not there, or not empty
                each.rmdir()
