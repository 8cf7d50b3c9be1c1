"""Checks of a destination before anything is written: never the source, never files of others, never unasked."""

from __future__ import annotations

import os
from typing import Any

from embedreg.datasets.places import Place
from embedreg.datasets.storage import Storage, is_uri
from embedreg.datasets.targets import Target
from embedreg.declaration import manifest
from embedreg.errors import StorageError, option
from embedreg.jobs.ledger import Ledger
from embedreg.jobs.stored import Done
from embedreg.support.display import plain
from embedreg.support.strict_json import Malformed, document

__all__ = [
    "appeared",
    "ended",
    "exists",
    "finished",
    "is_bad_rows",
    "refuse_existing",
    "refuse_link",
    "refuse_overlap",
    "stamp",
]

_LINE_BYTES = 1 << 20  # the first line of a list of bad rows


def refuse_overlap(place: Place, target: Target) -> None:
    """Raise if the destination is the source or is inside it."""
    if _filesystem(place.storage) != _filesystem(target.storage):
        return
    out = _real(target.storage, target.name)
    names = [file.path for file in place.files] or [f"{place.table}.lance"]
    if any(f"{_real(place.storage, name)}/".startswith(f"{out}/") for name in names):
        raise StorageError(f"{target} is what is being read.", "write to another name")
    if place.whole and place.text == place.storage.uri and out.startswith(f"{_real(place.storage)}/"):
        raise StorageError(f"{target} is in the folder that is being read.", "write beside it, or read by a pattern")


def _filesystem(storage: Storage) -> str:
    return storage.uri.partition("://")[0] if is_uri(storage.uri) else ""


def _real(storage: Storage, path: str = "") -> str:
    full = storage.full(path)
    return full if storage.local is None else os.path.realpath(full)


def refuse_link(target: Target) -> None:
    """Raise if the name of a file or table to be written is a link, a pipe or a device.

    The write would replace the link or its target, and its owner expects neither.
    """
    if target.kind == "folder" or target.path is None:
        return
    found = target.storage.entry(target.name)
    if found is not None and found.kind == "link":
        raise StorageError(f"{target} is a link.", f"write to its target: {os.path.realpath(target.path)}")
    if found is not None and found.kind == "other":
        raise StorageError(f"{target} is not a regular file.", "choose another name")


def appeared(target: Target, ledger: Ledger) -> bool:
    """Return whether a run that was stopped at its very end has already published the file or table.

    On this machine the run records the file's identity beforehand. An object has no identity before it exists: if all
    pieces are recorded and the object did not exist before, it is assumed.
    """
    if target.kind == "folder" or target.path is not None:
        return False
    begun = ledger.job()
    planned = ledger.plan() if begun is not None else None
    if begun is None or planned is None or stamp(target) in (None, begun["before"]):
        return False
    return planned[1] <= ledger.records().keys()


def ended(target: Target, ledger: Ledger) -> Done | None:
    """Return the totals of a job whose file or table exists but whose working files remain; else None."""
    if target.kind == "folder":
        return None
    done = ledger.done()
    return done if done is not None and done.stamp == stamp(target) else None


def exists(target: Target) -> StorageError:
    """Return the error for a file or table that already exists."""
    return StorageError(f"{target} exists.", option("--force replaces it", "force=True"))


def refuse_existing(target: Target, ledger: Ledger, force: bool) -> None:
    """Raise if writing would replace what no earlier run of this job has written.

    Raises:
        StorageError: a file or table exists, or a folder holds anything but a dataset of embedreg.
    """
    if target.kind != "folder":
        if stamp(target) is not None and not force:
            raise exists(target)
        return
    if not ledger.is_begun():
        foreign = [file.path for file in target.storage.listing() if not file.path.startswith(f"{manifest.FOLDER}/")]
        if foreign:
            raise StorageError(
                f"{target} holds {len(foreign):,} other file(s), such as {plain(foreign[0])}.",
                "choose a folder that is new or empty",
            )


def stamp(target: Target) -> list[Any] | None:
    """Return a value that changes when a file or table is replaced; None if it does not exist."""
    from pyarrow.fs import FileType

    if target.kind == "folder":
        return None
    if target.path is not None:
        found = target.storage.entry(target.name)
        if found is None:
            return None
        return [found.inode] if target.kind == "lance" else [found.inode, found.mtime_ns, found.size]
    if target.kind == "lance":
        return sorted(file.path for file in target.storage.files(f"{target.name}/_versions")) or None
    info = target.storage.info(target.name)
    if info.type == FileType.NotFound:
        return None
    return [info.size, info.mtime_ns, target.storage.etag(target.name)]


def is_bad_rows(storage: Storage, path: str) -> bool:
    """Return whether a path is free or a list of bad rows: another program may have written a file there."""
    data = storage.read(path, _LINE_BYTES)
    if not data:
        return True
    try:
        found = document(data.partition(b"\n")[0])
    except Malformed:
        return False
    return found.keys() == {"input", "row", "column", "reason"}


def finished(target: Target) -> bool:
    """Return whether a dataset folder was completed by an earlier run."""
    return target.storage.exists(manifest.NAME)
