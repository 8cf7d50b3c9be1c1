"""`Place`: the data that a path or URI names: a Lance table, or files of one kind, in a folder or by a pattern.

Over 400 lines: one class and the rules by which a path is one kind of data or another.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote

from embedreg.core.modality import MODALITIES, files_of
from embedreg.datasets.storage import File, Storage
from embedreg.declaration import manifest
from embedreg.errors import StorageError
from embedreg.inspection.locate import is_data
from embedreg.support.imports import did_you_mean
from embedreg.support.unicode import is_valid

__all__ = ["Kind", "Place", "find", "kind_of", "partitions_of", "refuse_name"]

# "lance", "parquet", "arrow", "jsonl", "csv", or the kind of the files of a modality: "images"
Kind: TypeAlias = str

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
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
INPUTS = "files"  # a kind that callers can read: files that are one input each, of any modality
_PACKED = (".gz", ".zst")  # compressed text
_MAGIC: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow"}
_READ: dict[Kind, str] = {
    "parquet": ".parquet",
    "arrow": ".arrow",
    "jsonl": ".jsonl",
    "csv": ".csv",
}
_NAMES: dict[Kind, str] = {
    "lance": "a Lance table",
    "parquet": "Parquet",
    "arrow": "Arrow IPC",
    "jsonl": "JSON lines",
    "csv": "CSV",
}
_FIRST = "to embed it first, run: embedreg embed SRC DST.parquet -f FUNCTION"
_SAVE = "for example, cat > rows.jsonl, then embed rows.jsonl"
_WILD = re.compile(r"[*?\[]")
_WILDCARDS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True)
class Place:
    """Data: a Lance table, a file, or a folder of files of one kind.

    Attributes:
        kind: of all the files.
        text: the path or URI that names it, perhaps with a pattern.
        storage: the folder that the files' names are relative to; for a Lance table, its database.
        files: sorted by name; a Lance table has none.
        whole: whether a folder or a pattern was named, rather than one file.
        notes: the files of a folder that were left out, with their numbers.
    """

    kind: Kind
    text: str
    storage: Storage = field(compare=False)
    files: tuple[File, ...] = field(default=(), compare=False)
    whole: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def lance(cls, path: Path) -> Place:
        """Return the place of a Lance table on this machine, whether or not it exists."""
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


def find(
    text: str,
    kinds: Sequence[Kind] = ("lance", "parquet"),
    *,
    remote: bool = False,
    options: Mapping[str, Any] | None = None,
    filesystem: Any = None,
) -> Place:
    """Find the data that a path, URI or pattern names.

    Args:
        text: a path, a URI or a pattern (`*`, `?`, `[...]`, and `**` for any depth); a Lance table may be given as
            `DB_DIR/name.lance` or `DB_DIR/name`.
        kinds: the kinds that the caller can read.
        remote: whether the caller can read from other filesystems than this machine's.
        options, filesystem: as for `Storage`.
    Raises:
        StorageError: nothing exists there, nothing of those kinds, or files of several kinds.
    """
    if not text:
        raise StorageError("the path is empty.", f"give {_readable(kinds)}")
    _refuse_stream(text)
    refuse_name(text)
    storage = Storage(text.removeprefix("file://"), options or {}, filesystem)
    if storage.local is None and not remote:
        raise StorageError(
            f"{text}: only local paths are supported here.", "copy it first, or use embedreg from Python"
        )
    place = _table(storage) or _file(storage, kinds) or _folder(storage, kinds) or _matching(storage, kinds)
    if place is None:
        raise StorageError(f"{text}: there is no such file or table.", _nearby(storage, kinds))
    for file in place.files:
        refuse_name(file.path)
    files = files_of(place.kind)
    if files is not None and place.storage.local is None:
        raise StorageError(f"{text}: {place.kind} are only read from this machine.", "copy them first")
    if not _is_read(place.kind, kinds):
        noun = _NAMES[place.kind] if files is None else files.noun
        what = f"holds {noun}" if place.whole else f"is {noun}"
        raise StorageError(f"{text} {what}, which this command does not read.", f"give {_readable(kinds)}; {_FIRST}")
    return place


def _is_read(kind: Kind, kinds: Sequence[Kind]) -> bool:
    """Return whether a caller reads files of a kind."""
    return kind in kinds or (INPUTS in kinds and files_of(kind) is not None)


def _readable(kinds: Sequence[Kind]) -> str:
    """Return a description of the kinds that a caller can read."""
    *most, last = [_READ[kind] for kind in _READ if kind in kinds]
    files = f"{', '.join(most)} or {last}" if most else last
    found = [f"a {files} file", "a folder of them"]
    folders = [files.kind for each in MODALITIES.values() for files in each.kinds_of_files]
    found += [f"a folder of {' or '.join(folders)}"] if INPUTS in kinds else []
    found += ["DB_DIR/name.lance"] if "lance" in kinds else []
    return f"{', '.join(found[:-1])} or {found[-1]}"


def refuse_name(text: str) -> None:
    """Raise `StorageError` for a name with bytes that are not UTF-8, which Arrow does not accept."""
    if not is_valid(text):
        where = text.encode("utf-8", "backslashreplace").decode()
        raise StorageError(f"{where}: the name is not valid UTF-8.", "rename the file")


def _refuse_stream(text: str) -> None:
    """Raise if the data can be read only once, or may be endless.

    Raises:
        StorageError: it is a pipe, a socket or a device.
    """
    if text == "-" or re.match(r"/dev/(stdin|fd/)|/proc/(self|\d+)/fd/", text):
        raise StorageError(
            f"{text}: a pipe cannot be read twice, as an interrupted job has to.", f"save it first: {_SAVE}"
        )
    mode = 0
    with contextlib.suppress(OSError, ValueError):  # it does not exist, or is not a local path
        mode = os.stat(text).st_mode
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise StorageError(f"{text} is {_file_type(mode)}, which cannot be read twice.", f"save it first: {_SAVE}")


def _file_type(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "not a regular file")


def kind_of(name: str) -> Kind | None:
    """Return the kind of a file by its extension; text may be compressed."""
    path = PurePosixPath(name.lower())
    kind = _SUFFIXES.get(path.suffix)
    if kind is None and path.suffix in _PACKED:
        kind = _SUFFIXES.get(path.with_suffix("").suffix)
        kind = kind if kind in ("jsonl", "csv") else None
    files = files_of(suffix=path.suffix)
    return kind if files is None else files.kind


def partitions_of(path: str) -> dict[str, str | None]:
    """Return the partition values in the folders of a path, such as `year=2024/lang=de/a.parquet`."""
    found: dict[str, str | None] = {}
    for part in PurePosixPath(path).parts[:-1]:
        name, equals, value = part.partition("=")
        if name and equals:
            found[unquote(name)] = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
    return found


def _table(storage: Storage) -> Place | None:
    """Find a Lance table, which may be named without its extension."""
    from pyarrow.fs import FileType

    for uri in (storage.uri, f"{storage.uri}.lance"):
        if PurePosixPath(uri).suffix == ".lance":
            table = Storage(uri, storage.options, storage.filesystem)
            if table.info().type == FileType.Directory:
                return Place("lance", uri, table.parent())
    return None


def _file(storage: Storage, kinds: Sequence[Kind]) -> Place | None:
    from pyarrow.fs import FileType

    info = storage.info()
    if info.type != FileType.File:
        return None
    kind = kind_of(storage.uri)
    if kind is None or kind == "lance":
        with storage.open("") as file:
            magic = file.read(6)
        kind = next((kind for start, kind in _MAGIC.items() if magic.startswith(start)), None)
    if kind is None:
        raise StorageError(
            f"{storage.uri}: unknown kind of file.",
            f"known extensions: {', '.join([*_SUFFIXES])}; text also with .gz or .zst",
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
            noun = "table" if len(tables) == 1 else "tables"
            raise StorageError(f"{storage.uri} is a database of {len(tables)} {noun}.", f"name one: {some}")
    found, odd = _listed(storage)
    place = _of_one_kind(storage.uri, storage, found, odd, kinds)
    if place is None:
        what = "neither Lance tables nor Parquet files" if "jsonl" not in kinds else "no data that embedreg reads"
        first = f"; {_FIRST}" if found and "jsonl" not in kinds else ""
        raise StorageError(f"{storage.uri} holds {what}.", f"give {_readable(kinds)}{first}")
    return place


def _matching(storage: Storage, kinds: Sequence[Kind]) -> Place | None:
    """Find the files that match a pattern."""
    text = storage.uri
    wild = _WILD.search(text)
    if wild is None:
        return None
    start = text.rfind("/", 0, wild.start()) + 1
    folder = Storage(text[: start - 1] or "/" if start else ".", storage.options, storage.filesystem)
    pattern = re.compile(_expression(text[start:]))
    listed, special = _listed(folder)
    found = [file for file in listed if pattern.fullmatch(file.path)]
    odd = [each for each in special if pattern.fullmatch(each[0])]
    place = _of_one_kind(text, folder, found, odd, kinds)
    if place is None:
        if not found:
            raise StorageError(f"{text}: no file of a known kind matches.", f"give {_readable(kinds)}")
        readable = [suffix for suffix, kind in _SUFFIXES.items() if kind in kinds]
        packed = "; text also with .gz or .zst" if "jsonl" in kinds else f"; {_FIRST}"
        raise StorageError(
            f"{text}: no file of a supported kind matches.",
            f"known extensions: {', '.join(readable)}{packed}",
        )
    return place


def _listed(storage: Storage) -> tuple[list[File], list[tuple[str, str]]]:
    """List a folder: its files, and the (path, type) of every entry that is neither a file nor a folder."""
    if storage.local is None:
        return storage.files(), []
    odd = []
    for current, folders, names in os.walk(storage.local):
        for name in [*folders, *names]:
            path = Path(current, name)
            relative = path.relative_to(storage.local).as_posix()
            if name in folders:
                if path.is_symlink():  # it may lead to its own parent
                    odd.append((relative, "linked folder"))
                continue
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                if path.is_symlink():
                    odd.append((relative, "dangling link"))
                continue  # removed since it was listed
            except OSError as exc:
                raise StorageError(f"{path}: {exc.strerror}.", "check the link, or remove it") from exc
            if not stat.S_ISREG(mode):
                odd.append((relative, _file_type(mode)))
    special = {path for path, _ in odd}
    return [file for file in storage.files() if file.path not in special], odd


def _expression(pattern: str) -> str:
    """Convert a pattern to a regular expression: `*` stays within one folder, `**/` matches any number of them."""
    made, at = "", 0
    for match in re.finditer(r"\*\*/|\*\*|\*|\?|\[(!?)([^]]+)\]", pattern):
        made += re.escape(pattern[at : match.start()])
        found = match.group()
        made += _WILDCARDS.get(found) or f"[{'^' if match.group(1) else ''}{re.escape(match.group(2))}]".replace(
            r"\-", "-"
        )
        at = match.end()
    return made + re.escape(pattern[at:])


def _of_one_kind(
    text: str, storage: Storage, found: Sequence[File], odd: Sequence[tuple[str, str]], kinds: Sequence[Kind]
) -> Place | None:
    """Return the data files among some, without marker files, whose names start with "_" or "."."""
    by_kind: dict[Kind, list[File]] = {}
    markers, others = 0, list[str]()
    for file in found:
        path = PurePosixPath(file.path)
        kind = kind_of(file.path)
        if not is_data(path):
            markers += path.parts[0] != manifest.FOLDER
        elif kind is not None and kind != "lance" and _is_read(kind, kinds):
            by_kind.setdefault(kind, []).append(file)
        else:
            others.append(file.path)
    beside = [kind for kind in by_kind if files_of(kind) is not None]
    documents = [files.kind for each in MODALITIES.values() for files in each.documents if files.kind in by_kind]
    for given_way in (beside, documents):  # images beside data files are not the data, nor are documents beside images
        if len(by_kind) > len(given_way):
            others += [file.path for kind in given_way if kind in by_kind for file in by_kind.pop(kind)]
    if len(by_kind) > 1:
        names = {kind: PurePosixPath(files[0].path).suffix for kind, files in by_kind.items()}
        raise StorageError(
            f"{text} holds files of several kinds: {', '.join(names)}.",
            f"name one kind by a pattern: '{storage.shown('**/*' + next(iter(names.values())))}'",
        )
    linked = []
    for name, what in odd:
        if not is_data(PurePosixPath(name)):
            markers += 1
        elif what == "linked folder":
            linked.append(name)
        elif what == "dangling link" or kind_of(name) is not None:
            raise StorageError(
                f"{storage.shown(name)} is {_article(what)}.", "remove it, or name the files by a pattern"
            )
        else:
            others.append(name)
    if not by_kind:
        return None
    notes = []
    if others:
        notes.append(f"{text}: {len(others):,} file(s) of other kinds are left out: {_some(others)}")
    if linked:
        notes.append(f"{text}: {len(linked):,} linked folder(s) are not followed: {_some(linked)}")
    if markers:
        notes.append(f"{text}: {markers:,} file(s) are left out whose name, or folder, begins with . or _")
    kind, files = next(iter(by_kind.items()))
    return Place(kind, text, storage, tuple(files), True, tuple(notes))


def _article(what: str) -> str:
    return f"a link to a missing file ({what})" if what == "dangling link" else f"{what}, not a regular file"


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def _nearby(storage: Storage, kinds: Sequence[Kind]) -> str:
    if storage.local is None:
        return "check the URI and its permissions"
    path = storage.local
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {folder} either; paths are relative to {Path.cwd()}"
    # A table is listed under the name that the user would type.
    names = [
        child.stem if child.suffix == ".lance" else child.name
        for child in folder.iterdir()
        if not child.name.startswith(".")
    ]
    return f"{did_you_mean(path.name, names)}give {_readable(kinds)}"
