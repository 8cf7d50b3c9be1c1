"""Models in another form, kept on this machine's disk: converting one takes seconds, reading it a part of one.

They lie where Hugging Face's libraries keep such things (`HF_ASSETS_CACHE`, by default `assets` in `HF_HOME`), and can
be deleted at any time. One is used only as it was written: by this user, plain files in plain folders, with the digest
that lies beside it. Its user compares it with the original before its first vector is given out.
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
_FORM = re.compile(r"[0-9a-f]{16}|\.\w+")  # of a conversion, and of one that is being written
LEVELS = 3  # of folders of ours above a conversion: embedreg/openvino/<model>
KEPT = 2  # conversions of one model: as two environments with other versions of the libraries would have them


def find(identity: str, made_of: dict[str, Any]) -> Path | None:
    """Return the folder of a conversion, or None.

    Args:
        identity: of the model's files, as `integrity.weights_identity` gives it.
        made_of: what else it depends on, in JSON types.
    """
    folder = _folder(identity, made_of)
    if folder is None or not os.path.lexists(folder) or not _own_above(folder):
        return None
    try:
        recorded = (folder / _DIGEST).read_text("ascii").strip() if _is_own(folder / _DIGEST, stat.S_ISREG) else ""
        if _is_own(folder, stat.S_ISDIR) and recorded == _digest(folder):
            return folder
        log.warning("a converted model in %s is not as it was written: converting anew", folder)
    except (OSError, ValueError) as exc:
        log.warning("a converted model in %s cannot be read (%s): converting anew", folder, type(exc).__name__)
    drop(folder)
    return None


def keep(identity: str, made_of: dict[str, Any], save: Callable[[Path], None]) -> None:
    """Keep a conversion, in place of the oldest ones of this model; where that fails, nothing is kept.

    Args:
        save: writes it into a folder.
    """
    folder = _folder(identity, made_of)
    if folder is None:
        return
    unfinished = None
    try:
        for path in reversed(list(folder.parents)[:LEVELS]):
            if not path.is_symlink():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_own(path, stat.S_ISDIR):  # before anything is made below it
                log.warning("no converted model is kept in %s: %s is a link, or somebody else's", folder, path.name)
                return
        unfinished = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        save(unfinished)
        for path in unfinished.iterdir():
            path.chmod(0o600)  # whatever the umask allows others
        (unfinished / _DIGEST).write_text(_digest(unfinished), "ascii")
        (unfinished / _DIGEST).chmod(0o600)
        os.rename(unfinished, folder)  # whole or not at all; another process may have been first
    except (OSError, RuntimeError) as exc:  # RuntimeError: how OpenVINO says that it could not write
        log.debug("a converted model is not kept in %s: %s", folder, exc)
        if unfinished is not None:
            drop(unfinished)
        return
    others = {}
    for path in folder.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just dropped it
            if path != folder and _FORM.fullmatch(path.name):
                others[path] = path.lstat().st_mtime
    for path in sorted(others, key=others.__getitem__)[: max(0, len(others) + 1 - KEPT)]:
        drop(path)


def drop(folder: Path) -> None:
    """Delete a conversion; what cannot be deleted stays. Of a link, the link itself is deleted."""
    if not _own_above(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        with contextlib.suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _own_above(folder: Path) -> bool:
    """Return whether the folders of ours above a conversion are plain folders of this user."""
    return all(_is_own(path, stat.S_ISDIR) for path in list(folder.parents)[:LEVELS])


def _is_own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Return whether a path is no link, of a kind, and of this user, and nobody else can write to it."""
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
        ValueError: something else than plain files of this user lies there.
    """
    whole = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name == _DIGEST:
            continue
        if not _is_own(path, stat.S_ISREG):
            raise ValueError(f"{path.name!r} is not a plain file of this user")
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
