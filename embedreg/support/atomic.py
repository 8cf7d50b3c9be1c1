"""Atomic writes: a file gets its name only once it is complete, and an earlier file stays until then."""

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

__all__ = ["fill_arrow", "fill_parquet", "remove", "remove_empty", "replacing", "storage_errors"]
__all__ += ["replace_path", "sync", "write_parquet"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` at the end.

    A file is replaced in one step. A folder (a Lance table) takes two, old out and new in: if the machine stops between
    them, both still exist under hidden names.

    Raises:
        StorageError: the folder cannot be created or written, or the disk is full; `path` is unchanged.
    """
    # Hidden, and without an extension that readers of the folder search for.
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    made = next((parent for parent in reversed(path.absolute().parents) if not parent.exists()), None)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield hidden
        replace_path(hidden, path)
    except BaseException:
        remove(hidden)
        if made is not None and not path.exists():
            remove_empty([path.parent], made)
        raise


def replace_path(new: Path, path: Path) -> None:
    """Replace `path` by a completed file or folder on the same disk.

    Raises:
        StorageError: it cannot be replaced; `path` is unchanged.
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
    """Write a stream as one Parquet file with a row group per batch, including the schema metadata.

    Raises:
        StorageError: the file cannot be written; an earlier file is unchanged.
    """
    with replacing(path) as hidden:
        fill_parquet(hidden, reader.schema, reader, path)


def fill_parquet(new: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path | str) -> None:
    """Write batches to a new Parquet file, one row group per batch.

    Args:
        path: the final name, for errors.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Dictionary encoding of distinct vectors would only cost time.
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    with storage_errors(path):
        writer = pq.ParquetWriter(new, schema, use_dictionary=plain)
    _write_all(writer, batches, path)


def fill_arrow(new: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], path: Path | str) -> None:
    """Write batches to a new Arrow IPC file; arguments as `fill_parquet`."""
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
        with contextlib.suppress(OSError):  # the file is discarded
            writer.close()
        raise
    with storage_errors(path):
        writer.close()


@contextlib.contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Convert an OSError of the block to a `StorageError` that names the path.

    Use it only around writing: an OSError of the embedding function (a connection, a model) is not about this path.
    """
    try:
        yield
    except EmbedregError:
        raise
    except OSError as exc:
        raise StorageError(
            f"{path} cannot be written: {exc.strerror or exc}. An earlier file is unchanged.",
            "free some space, or choose another place",
        ) from exc


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk, so that they survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # the original error matters more
    else:
        path.unlink(missing_ok=True)


def remove_empty(folders: Iterable[Path], made: Path | None) -> None:
    """Remove empty folders, and their parents up to the first that was made for them.

    Args:
        folders: deeper ones first; they need not exist.
        made: the topmost folder that was made; None if none was.
    """
    for folder in folders:
        for each in [folder, *folder.absolute().parents]:
            if each != folder and (made is None or not each.is_relative_to(made.absolute())):
                break
            with contextlib.suppress(OSError):  # missing or not empty
                each.rmdir()
