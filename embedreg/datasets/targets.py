"""`Target`: the destination that a path or URI names: a folder of Parquet files, one file, or a Lance table."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from embedreg.datasets.places import refuse_name
from embedreg.datasets.storage import Storage
from embedreg.errors import StorageError

__all__ = ["Target", "destination"]

_WRITTEN: dict[str, Literal["parquet", "arrow", "lance"]] = {
    ".lance": "lance",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_WRITABLE = "end it in .parquet for a file, in / for a folder, or use DB_DIR/name.lance for a LanceDB table"
MAX_NAME_BYTES = 240  # file systems allow 255, and a job's own folder adds `.` and `.embedreg` to the name
_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Target:
    """A destination of data.

    Attributes:
        kind: "folder" for a dataset of Parquet files, "parquet" or "arrow" for one file, "lance" for a table.
        storage: the folder itself; for a file or a table, the folder that holds it.
        name: of the file or the table's folder; "" for a folder.
    """

    kind: Literal["folder", "parquet", "arrow", "lance"]
    storage: Storage
    name: str = ""

    def __str__(self) -> str:
        return self.storage.shown(self.name)

    @property
    def path(self) -> Path | None:
        """The path on this machine; None on an object store."""
        return None if self.storage.local is None else self.storage.local / self.name


def destination(text: str, *, options: Mapping[str, Any] | None = None, filesystem: Any = None) -> Target:
    """Return the destination that a path names, by its extension; a path without one, or with a "/", is a folder.

    Raises:
        StorageError: the extension is unknown, or a parent folder is a file.
    """
    if not text:
        raise StorageError("the path of the output is empty.", _WRITABLE)
    refuse_name(text)
    if text in ("-", "/dev/stdout", "/dev/stderr"):
        raise StorageError(f"{text}: vectors cannot be written to a pipe.", _WRITABLE)
    if PurePosixPath(text).name.lower() == ".lance":
        _refuse_table_name(text, PurePosixPath(text).name)
    if text.endswith("/") and PurePosixPath(text).suffix.lower() == ".lance":
        text = text.rstrip("/")  # a shell completes the name of a table with "/"
    storage = Storage(text.removeprefix("file://"), options or {}, filesystem)
    suffix = PurePosixPath(text).suffix.lower()
    kind = _WRITTEN.get(suffix)
    here = storage.local
    if text.endswith("/") or (not suffix and kind is None) or (here is not None and here.is_dir() and kind is None):
        target = Target("folder", storage)
    elif kind is not None:
        target = Target(kind, storage.parent(), PurePosixPath(text).name)
        if kind == "lance":
            _refuse_table_name(text, target.name)
    else:
        raise StorageError(f"{text}: unknown format of output.", _WRITABLE)
    if len(target.name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES:
        raise StorageError(
            f"the name of the output has {len(target.name.encode('utf-8', 'surrogateescape'))} bytes, over "
            f"{MAX_NAME_BYTES}: {target.name[:20]}...",
            f"give it a shorter name: {text[: len(text) - len(PurePosixPath(text).name)]}embedded{suffix}",
        )
    if here is not None:
        if target.kind in ("parquet", "arrow") and here.is_dir():
            raise StorageError(f"{text} is a folder.", f"give a file: {here / 'embedded.parquet'}")
        if target.kind == "folder" and here.is_file():
            raise StorageError(f"{text} is a file.", _WRITABLE)
        for parent in here.absolute().parents:
            if parent.exists():
                if not parent.is_dir():
                    raise StorageError(f"{parent} is a file, so {text} cannot be created.", "choose another folder")
                break
    return target


def _refuse_table_name(text: str, name: str) -> None:
    """Raise if LanceDB, which finds tables by their folders, could not open a table of this name.

    Raises:
        StorageError: its hint is a valid name.
    """
    stem = name[: -len(".lance")]
    if _TABLE_NAME.fullmatch(stem) and stem not in (".", "..") and name.endswith(".lance"):
        return
    plain = unicodedata.normalize("NFKD", stem.replace("\u00df", "ss")).encode("ascii", "ignore").decode()
    works = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).strip(".") or "table"
    raise StorageError(
        f"{text}: LanceDB cannot open a table of that name: it allows ASCII letters, digits, '_', '-' and '.'.",
        f"{text[: len(text) - len(name)]}{works}.lance",
    )
