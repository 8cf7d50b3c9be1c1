"""What may be written where: nothing that is read, nothing that is somebody else's, nothing that is there unasked."""

from __future__ import annotations

import os
from typing import Any

from embedreg import manifest
from embedreg.errors import StorageError
from embedreg.jobs.ledger import JOB, Ledger
from embedreg.jobs.places import Place, Target
from embedreg.jobs.storage import Storage, is_uri

__all__ = ["appeared", "finished", "refuse_existing", "refuse_overlap", "stamp"]


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


def appeared(target: Target, ledger: Ledger, resume: bool) -> bool:
    """Say whether a run that was stopped right at its end has already made the file or table."""
    begun = ledger.job() if resume and target.kind != "folder" else None
    planned = ledger.plan() if begun is not None else None
    if begun is None or planned is None or stamp(target) in (None, begun["before"]):
        return False
    return planned[1] <= ledger.records().keys()


def refuse_existing(target: Target, ledger: Ledger, force: bool) -> None:
    """Refuse to write over what no earlier run of this job has written.

    Raises:
        StorageError: a file or table exists, or a folder holds something else than a dataset of embedreg's.
    """
    if target.kind != "folder":
        if stamp(target) is not None and not force:
            raise StorageError(f"{target} exists.", "--force replaces it (in Python: force=True)")
        return
    if ledger.root.read(JOB) is None:
        foreign = [file.path for file in target.storage.files() if not file.path.startswith(f"{manifest.FOLDER}/")]
        if foreign:
            raise StorageError(
                f"{target} holds {len(foreign):,} other file(s), such as {foreign[0]}.",
                "choose a folder that is new or empty",
            )


def stamp(target: Target) -> list[Any] | None:
    """Return what tells a file or table from one that takes its place; None where there is none."""
    from pyarrow.fs import FileType

    if target.kind == "folder":
        return None
    if target.path is not None:
        try:
            stat = target.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return [stat.st_ino] if target.kind == "lance" else [stat.st_ino, stat.st_mtime_ns, stat.st_size]
    if target.kind == "lance":
        return sorted(file.path for file in target.storage.files(f"{target.name}/_versions")) or None
    info = target.storage.info(target.name)
    if info.type == FileType.NotFound:
        return None
    return [info.size, info.mtime_ns, target.storage.etag(target.name)]


def finished(target: Target) -> bool:
    """Say whether a dataset folder was whole once."""
    return target.storage.read(manifest.NAME) is not None
