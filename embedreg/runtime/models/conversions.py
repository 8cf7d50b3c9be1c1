"""A disk cache of converted models: a conversion takes seconds, reading a stored one a fraction of a second.

They are in the assets cache of Hugging Face's libraries (`HF_ASSETS_CACHE`, by default `assets` in `HF_HOME`), and can
be deleted at any time. A conversion is used only if it is unchanged: regular files of this user, no links, and the
digest that is stored with it matches. The caller compares its vectors with the original model's before using it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["drop", "find", "keep"]

log = logging.getLogger("embedreg")

_DIGEST = "sha256"  # the file that holds the digest of the others
_FORM = re.compile(r"[0-9a-f]{16}|\.\w+")  # folder name of a conversion, and of one that is being written
LEVELS = 3  # embedreg's own folders above a conversion: embedreg/openvino/<model>
KEPT = 2  # conversions of one model, enough for two environments with different library versions


def find(identity: str, made_of: dict[str, Any]) -> Path | None:
    """Return the folder of a conversion, or None.

    Args:
        identity: of the model's files, as `integrity.weights_identity` returns it.
        made_of: everything else that it depends on, in JSON types.
    """
    folder = _folder(identity, made_of)
    if folder is None or not os.path.lexists(folder) or not _own_above(folder):
        return None
    try:
        recorded = (folder / _DIGEST).read_text("ascii").strip() if _is_own(folder / _DIGEST, stat.S_ISREG) else ""
        if _is_own(folder, stat.S_ISDIR) and recorded == _digest(folder):
            return folder
        log.warning("a converted model in %s was changed after it was written: converting again", folder)
    except (OSError, ValueError) as exc:
        log.warning("a converted model in %s cannot be read (%s): converting again", folder, type(exc).__name__)
    drop(folder)
    return None


def keep(identity: str, made_of: dict[str, Any], save: Callable[[Path], None]) -> None:
    """Store a conversion and delete the oldest ones of this model; on failure nothing is stored.

    Args:
        save: writes the conversion to a folder.
    """
    folder = _folder(identity, made_of)
    if folder is None:
        return
    unfinished = None
    try:
        for path in reversed(list(folder.parents)[:LEVELS]):
            if not path.is_symlink():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_own(path, stat.S_ISDIR):  # before anything is created below it
                log.warning(
                    "no converted model is stored in %s: %s is a link or belongs to another user", folder, path.name
                )
                return
        unfinished = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        save(unfinished)
        for path in unfinished.iterdir():
            path.chmod(0o600)  # independent of the umask
        (unfinished / _DIGEST).write_text(_digest(unfinished), "ascii")
        (unfinished / _DIGEST).chmod(0o600)
        os.rename(unfinished, folder)  # atomic; fails if another process was first
    except (OSError, RuntimeError) as exc:  # RuntimeError: OpenVINO's error for a failed write
        log.debug("a converted model is not stored in %s: %s", folder, exc)
        if unfinished is not None:
            drop(unfinished)
        return
    others = {}
    for path in folder.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
            if path != folder and _FORM.fullmatch(path.name):
                others[path] = path.lstat().st_mtime
    for path in sorted(others, key=others.__getitem__)[: max(0, len(others) + 1 - KEPT)]:
        drop(path)


def drop(folder: Path) -> None:
    """Delete a conversion; ignore files that cannot be deleted. If the folder is a link, only the link is deleted."""
    if not _own_above(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        with contextlib.suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _own_above(folder: Path) -> bool:
    """Return whether embedreg's folders above a conversion are plain folders of this user."""
    return all(_is_own(path, stat.S_ISDIR) for path in list(folder.parents)[:LEVELS])


def _is_own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Return whether a path has the expected type, belongs to this user and is not writable by others; links do not."""
    try:
        found = path.lstat()
    except OSError:
        return False
    if os.name == "nt":
        return kind(found.st_mode)
    return kind(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _digest(folder: Path) -> str:
    """Return a digest of the names and contents of a conversion's files.

    Raises:
        ValueError: the folder contains something other than regular files of this user.
    """
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == _DIGEST:
            continue
        if not _is_own(path, stat.S_ISREG):
            raise ValueError(f"{path.name!r} is not a regular file of this user")
        with path.open("rb") as file:
            whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _folder(identity: str, made_of: dict[str, Any]) -> Path | None:
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        return None
    model = identity.rpartition(":")[2][:32]
    form = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return Path(constants.HF_ASSETS_CACHE) / "embedreg" / "openvino" / model / form
