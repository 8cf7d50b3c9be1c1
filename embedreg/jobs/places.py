"""What a path or an address means: a Lance table, or files of one kind, by themselves, in a folder or by a pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from embedreg.errors import StorageError
from embedreg.imports import did_you_mean
from embedreg.jobs.storage import File, Storage
from embedreg.locate import is_data

__all__ = ["Kind", "Place", "Target", "destination", "find"]

Kind = Literal["lance", "parquet", "arrow", "jsonl", "csv"]

_SUFFIXES: dict[str, Kind] = {
    ".lance": "lance",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
}
_WRITTEN: dict[str, Literal["parquet", "arrow", "lance"]] = {
    ".lance": "lance",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_MAGIC: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow"}
_WRITABLE = "end it in .parquet for a file, in / for a folder, or use DB_DIR/name.lance for a LanceDB table"
_READABLE = "a .lance folder, DB_DIR/name, a .parquet file or a folder of them"
_WILD = re.compile(r"[*?\[]")
_WILDCARDS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Place:
    """Data: a Lance table, a file, or a folder of files of one kind.

    Attributes:
        kind: of all the files.
        text: what names it: a path or an address, perhaps a pattern.
        storage: the folder that the files' names are relative to; for a Lance table, its database.
        files: sorted by name; a Lance table has none.
        whole: whether a folder or a pattern was named, and not one file.
    """

    kind: Kind
    text: str
    storage: Storage = field(compare=False)
    files: tuple[File, ...] = field(default=(), compare=False)
    whole: bool = False

    @classmethod
    def lance(cls, path: Path) -> Place:
        """Return the place of a Lance table on this machine, whether or not it is there."""
        return cls("lance", str(path), Storage(str(path.parent)))

    @property
    def path(self) -> Path:
        """The path of a place on this machine."""
        return Path(self.text)

    @property
    def database(self) -> Path:
        """The LanceDB database that holds the table."""
        return self.path.parent

    @property
    def table(self) -> str:
        """The name of the Lance table in its database."""
        return self.path.stem

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Target:
    """Where data is to be written.

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
        """Where it lies on this machine; None elsewhere."""
        return None if self.storage.local is None else self.storage.local / self.name


def find(
    text: str,
    kinds: Sequence[Kind] = ("lance", "parquet"),
    *,
    remote: bool = False,
    options: Mapping[str, Any] | None = None,
    filesystem: Any = None,
) -> Place:
    """Find the data that an argument names.

    Args:
        text: a path, an address or a pattern (`*`, `?`, `[...]`, and `**` for any depth); a Lance table may be given as
            `DB_DIR/name.lance` or `DB_DIR/name`.
        kinds: what the caller can read.
        remote: whether it can read from other filesystems than this machine's.
        options, filesystem: as `Storage` has them.
    Raises:
        StorageError: there is nothing, nothing of those kinds, or files of several kinds.
    """
    if not text:
        raise StorageError("the path is empty.", f"give {_READABLE}")
    storage = Storage(text.removeprefix("file://"), options or {}, filesystem)
    if storage.local is None and not remote:
        raise StorageError(f"{text}: only local paths are read here.", "copy it first, or use embedreg from Python")
    place = _table(storage) or _file(storage) or _folder(storage, kinds) or _matching(storage, kinds)
    if place is None:
        raise StorageError(f"{text}: there is no such file or table.", _nearby(storage))
    if place.kind not in kinds:
        raise StorageError(f"{text} is {place.kind}, which this command does not read.", f"it reads {', '.join(kinds)}")
    return place


def _table(storage: Storage) -> Place | None:
    """Find a Lance table, which may have been named without its ending."""
    from pyarrow.fs import FileType

    for uri in (storage.uri, f"{storage.uri}.lance"):
        if PurePosixPath(uri).suffix == ".lance":
            table = Storage(uri, storage.options, storage.filesystem)
            if table.info().type == FileType.Directory:
                return Place("lance", uri, table.parent())
    return None


def _file(storage: Storage) -> Place | None:
    from pyarrow.fs import FileType

    info = storage.info()
    if info.type != FileType.File:
        return None
    kind = _SUFFIXES.get(PurePosixPath(storage.uri).suffix.lower())
    if kind is None or kind == "lance":
        with storage.open("") as file:
            magic = file.read(6)
        kind = next((kind for start, kind in _MAGIC.items() if magic.startswith(start)), None)
    if kind is None:
        raise StorageError(
            f"{storage.uri}: cannot tell what kind of file this is.", f"known endings: {', '.join(_SUFFIXES)}"
        )
    name = PurePosixPath(storage.uri).name
    return Place(kind, storage.uri, storage.parent(), (File(name, info.size, info.mtime_ns),))


def _folder(storage: Storage, kinds: Sequence[Kind]) -> Place | None:
    from pyarrow.fs import FileType

    if storage.info().type != FileType.Directory:
        return None
    if storage.local is not None:
        tables = sorted(child.stem for child in storage.local.glob("*.lance") if child.is_dir())
        if tables:
            some = ", ".join(str(storage.local / table) for table in tables[:5])
            raise StorageError(f"{storage.uri} is a database of {len(tables)} table(s).", f"name one: {some}")
    place = _of_one_kind(storage.uri, storage, storage.files(), kinds)
    if place is None:
        raise StorageError(f"{storage.uri} holds neither Lance tables nor Parquet files.", f"give {_READABLE}")
    return place


def _matching(storage: Storage, kinds: Sequence[Kind]) -> Place | None:
    """Find the files that a pattern names."""
    text = storage.uri
    wild = _WILD.search(text)
    if wild is None:
        return None
    start = text.rfind("/", 0, wild.start()) + 1
    folder = Storage(text[: start - 1] or "/" if start else ".", storage.options, storage.filesystem)
    pattern = re.compile(_expression(text[start:]))
    found = [file for file in folder.files() if pattern.fullmatch(file.path)]
    place = _of_one_kind(text, folder, found, kinds)
    if place is None:
        raise StorageError(f"{text}: no file of a known kind has such a name.", f"known: {', '.join(_SUFFIXES)}")
    return place


def _expression(pattern: str) -> str:
    """Turn a pattern into a regular expression: `*` stays within one folder, `**/` is any number of them."""
    made, at = "", 0
    for match in re.finditer(r"\*\*/|\*\*|\*|\?|\[(!?)([^]]+)\]", pattern):
        made += re.escape(pattern[at : match.start()])
        found = match.group()
        made += _WILDCARDS.get(found) or f"[{'^' if match.group(1) else ''}{re.escape(match.group(2))}]".replace(
            r"\-", "-"
        )
        at = match.end()
    return made + re.escape(pattern[at:])


def _of_one_kind(text: str, storage: Storage, found: Sequence[File], kinds: Sequence[Kind]) -> Place | None:
    """Return the data files among some, without markers: names that start with "_" or "."."""
    by_kind: dict[Kind, list[File]] = {}
    for file in found:
        path = PurePosixPath(file.path)
        kind = _SUFFIXES.get(path.suffix.lower())
        if kind in kinds and kind is not None and kind != "lance" and is_data(path):
            by_kind.setdefault(kind, []).append(file)
    if len(by_kind) > 1:
        names = {kind: PurePosixPath(files[0].path).suffix for kind, files in by_kind.items()}
        raise StorageError(
            f"{text} holds files of several kinds: {', '.join(names)}.",
            f"name one kind by a pattern: '{storage.shown('**/*' + next(iter(names.values())))}'",
        )
    return next((Place(kind, text, storage, tuple(files), True) for kind, files in by_kind.items()), None)


def _nearby(storage: Storage) -> str:
    if storage.local is None:
        return "check the address and who may read it"
    path = storage.local
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either; paths are taken from {Path.cwd()}"
    # A table is listed under the name that the user would type.
    names = [
        child.stem if child.suffix == ".lance" else child.name
        for child in folder.iterdir()
        if not child.name.startswith(".")
    ]
    return f"{did_you_mean(path.name, names)}give {_READABLE}"


def destination(text: str, *, options: Mapping[str, Any] | None = None, filesystem: Any = None) -> Target:
    """Say what is to be written at a path, by its ending; none, or a "/", is a folder.

    Raises:
        StorageError: an ending that is not known, or its folder is a file.
    """
    if not text:
        raise StorageError("the path of the output is empty.", _WRITABLE)
    storage = Storage(text.removeprefix("file://"), options or {}, filesystem)
    suffix = PurePosixPath(text).suffix.lower()
    kind = _WRITTEN.get(suffix)
    here = storage.local
    if text.endswith("/") or (not suffix and kind is None) or (here is not None and here.is_dir() and kind is None):
        target = Target("folder", storage)
    elif kind is not None:
        target = Target(kind, storage.parent(), PurePosixPath(text).name)
    else:
        raise StorageError(f"{text}: cannot tell what to write there.", _WRITABLE)
    if here is not None:
        if target.kind in ("parquet", "arrow") and here.is_dir():
            raise StorageError(f"{text} is a folder.", f"give a file: {here / 'embedded.parquet'}")
        if target.kind == "folder" and here.is_file():
            raise StorageError(f"{text} is a file.", _WRITABLE)
        for parent in here.absolute().parents:
            if parent.exists():
                if not parent.is_dir():
                    raise StorageError(f"{parent} is a file, so {text} cannot be made.", "choose another folder")
                break
    return target
