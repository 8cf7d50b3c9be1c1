"""What may be written where: nothing that is read, nothing that is somebody else's, nothing that is there unasked."""

from __future__ import annotations

import os
from typing import Any

from embedreg.datasets.places import Place, Target
from embedreg.datasets.storage import Storage, is_uri
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
    """Refuse a destination that is what is read, or lies in it."""
    if _filesystem(place.storage) != _filesystem(target.storage):
        return
    out = _real(target.storage, target.name)
    names = [file.path for file in place.files] or [f"{place.table}.lance"]
    if any(f"{_real(place.storage, name)}/".startswith(f"{out}/") for name in names):
        raise StorageError(f"{target} is what is being read.", "write to another name")
    if place.whole and place.text == place.storage.uri and out.startswith(f"{_real(place.storage)}/"):
        raise StorageError(f"{target} lies in the folder that is being read.", "write beside it, or read by a pattern")


def _filesystem(storage: Storage) -> str:
    return storage.uri.partition("://")[0] if is_uri(storage.uri) else ""


def _real(storage: Storage, path: str = "") -> str:
    full = storage.full(path)
    return full if storage.local is None else os.path.realpath(full)


def refuse_link(target: Target) -> None:
    """Refuse to write a file or a table under a name that is a link, a pipe or a device.

    A link would be replaced, or what it leads to: neither is what its owner expects.
    """
    if target.kind == "folder" or target.path is None:
        return
    found = target.storage.look(target.name)
    if found is not None and found.kind == "link":
        raise StorageError(f"{target} is a link.", f"name what it leads to: {os.path.realpath(target.path)}")
    if found is not None and found.kind == "other":
        raise StorageError(f"{target} is not a regular file.", "choose another name")


def appeared(target: Target, ledger: Ledger) -> bool:
    """Return whether a run that was stopped right at its end has already made the file or table.

    On this machine the run records beforehand which one it is going to be. An object has no such mark before it is
    there: of one that all pieces are recorded for, and that was not there before, it is assumed.
    """
    if target.kind == "folder" or target.path is not None:
        return False
    begun = ledger.job()
    planned = ledger.plan() if begun is not None else None
    if begun is None or planned is None or stamp(target) in (None, begun["before"]):
        return False
    return planned[1] <= ledger.records().keys()


def ended(target: Target, ledger: Ledger) -> Done | None:
    """Return what a job came to whose file or table is there, and whose remains are not all removed; else None."""
    if target.kind == "folder":
        return None
    done = ledger.done()
    return done if done is not None and done.stamp == stamp(target) else None


def exists(target: Target) -> StorageError:
    """Return the error for a file or a table that is there."""
    return StorageError(f"{target} exists.", option("--force replaces it", "force=True"))


def refuse_existing(target: Target, ledger: Ledger, force: bool) -> None:
    """Refuse to write over what no earlier run of this job has written.

    Raises:
        StorageError: a file or table exists, or a folder holds something else than a dataset of embedreg's.
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
    """Return what tells a file or table from one that takes its place; None where there is none."""
    from pyarrow.fs import FileType

    if target.kind == "folder":
        return None
    if target.path is not None:
        found = target.storage.look(target.name)
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
    """Return whether nothing has a name, or a list of bad rows: beside a file somebody else may have put one."""
    data = storage.read(path, _LINE_BYTES)
    if not data:
        return True
    try:
        found = document(data.partition(b"\n")[0])
    except Malformed:
        return False
    return found.keys() == {"input", "row", "column", "reason"}


def finished(target: Target) -> bool:
    """Return whether a dataset folder was whole once."""
    return target.storage.exists(manifest.NAME)
