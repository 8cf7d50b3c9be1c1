"""Models in another form, kept on this machine's disk: converting one takes seconds, reading it a part of one.

They lie where Hugging Face's libraries keep such things (`HF_ASSETS_CACHE`, by default `assets` in `HF_HOME`), and can
be deleted at any time. The user of one compares it with the original before its first vector is given out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["drop", "find", "keep"]

log = logging.getLogger("embedreg")

KEPT = 2  # conversions of one model: as two environments with other versions of the libraries would have them


def find(identity: str, made_of: dict[str, Any]) -> Path | None:
    """Return the folder of a conversion, or None.

    Args:
        identity: of the model's files, as `integrity.weights_identity` gives it.
        made_of: what else it depends on, in JSON types.
    """
    folder = _folder(identity, made_of)
    return folder if folder is not None and folder.is_dir() else None


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
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        save(unfinished)
        os.rename(unfinished, folder)  # whole or not at all; another process may have been first
    except (OSError, RuntimeError) as exc:  # RuntimeError: how OpenVINO says that it could not write
        log.debug("a converted model is not kept in %s: %s", folder, exc)
        if unfinished is not None:
            drop(unfinished)
        return
    others = sorted((path for path in folder.parent.iterdir() if path != folder), key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) + 1 - KEPT)]:
        drop(path)


def drop(folder: Path) -> None:
    """Delete a conversion; what cannot be deleted stays."""
    shutil.rmtree(folder, ignore_errors=True)


def _folder(identity: str, made_of: dict[str, Any]) -> Path | None:
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        return None
    model = identity.rpartition(":")[2][:32]
    form = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return Path(constants.HF_ASSETS_CACHE) / "embedreg" / "openvino" / model / form
