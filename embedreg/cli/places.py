"""What a path on the command line means: a Lance table, Parquet, JSON lines or CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embedreg.errors import StorageError
from embedreg.imports import did_you_mean

__all__ = ["Kind", "Place", "destination", "find", "parquet_files"]

Kind = Literal["lance", "parquet", "jsonl", "csv"]

_SUFFIXES: dict[str, Kind] = {
    ".lance": "lance",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
}
_READABLE = "a .lance folder, DB_DIR/name, a .parquet file or a folder of them"


@dataclass(frozen=True)
class Place:
    """Data at a path; for a folder of Parquet files `path` is the folder."""

    kind: Kind
    path: Path

    @property
    def database(self) -> Path:
        """The LanceDB database that holds the table."""
        return self.path.parent

    @property
    def table(self) -> str:
        """The name of the Lance table in its database."""
        return self.path.stem


def find(text: str, kinds: tuple[Kind, ...] = ("lance", "parquet")) -> Place:
    """Find the data that an argument names.

    Args:
        text: a path; a Lance table may be given as `DB_DIR/name.lance` or `DB_DIR/name`.
        kinds: what the command can read.
    Raises:
        StorageError: there is nothing, or nothing of those kinds.
    """
    if "://" in text:
        raise StorageError(f"{text}: only local paths are read here.", "copy it first, or use embedreg from Python")
    if not text:
        raise StorageError("the path is empty.", f"give {_READABLE}")
    path = Path(text)
    lance = path if path.suffix == ".lance" else path.with_name(path.name + ".lance") if path.name else path
    if lance.is_dir() and lance.suffix == ".lance":
        place = Place("lance", lance)
    elif path.is_dir():
        place = _folder(path)
    elif path.is_file():
        place = Place(_kind_of_file(path), path)
    else:
        raise StorageError(f"{text}: there is no such file or table.", _nearby(path))
    if place.kind not in kinds:
        raise StorageError(f"{text} is {place.kind}, which this command does not read.", f"it reads {', '.join(kinds)}")
    return place


def destination(text: str) -> Place:
    """Say what is to be written at a path, by its ending.

    Raises:
        StorageError: the ending is neither .parquet nor .lance, or its folder is a file.
    """
    path = Path(text)
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind not in ("lance", "parquet") or "://" in text:
        raise StorageError(
            f"{text}: cannot tell what to write there.",
            "end it in .parquet for a file, or use DB_DIR/name.lance for a LanceDB table",
        )
    if kind == "parquet" and path.is_dir():
        raise StorageError(f"{text} is a folder.", f"give a file: {path / 'embedded.parquet'}")
    for parent in path.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise StorageError(f"{parent} is a file, so {text} cannot be made.", "choose another folder")
            break
    return Place(kind, path)


def parquet_files(folder: Path) -> list[Path]:
    """List a folder's Parquet files at any depth, sorted, without those whose names start with "_" or "." (markers)."""
    found = (path for path in folder.rglob("*.parquet") if path.is_file())
    return sorted(path for path in found if not any(part[0] in "_." for part in path.relative_to(folder).parts))


def _folder(path: Path) -> Place:
    tables = sorted(child.stem for child in path.glob("*.lance") if child.is_dir())
    if tables:
        raise StorageError(
            f"{path} is a database of {len(tables)} table(s).",
            f"name one: {', '.join(str(path / t) for t in tables[:5])}",
        )
    if parquet_files(path):
        return Place("parquet", path)
    raise StorageError(f"{path} holds neither Lance tables nor Parquet files.", f"give {_READABLE}")


def _kind_of_file(path: Path) -> Kind:
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is not None and kind != "lance":
        return kind
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            return "parquet"
    raise StorageError(f"{path}: cannot tell what kind of file this is.", f"known endings: {', '.join(_SUFFIXES)}")


def _nearby(path: Path) -> str:
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
