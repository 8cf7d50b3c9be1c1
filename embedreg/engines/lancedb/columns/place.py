"""The place of a Lance table: its newest version, and the folder beside it with what a run keeps."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embedreg.columns.arguments import on_object_store
from embedreg.datasets.storage import Storage
from embedreg.engines.lancedb.folders import dataset_at
from embedreg.errors import ConfigError, InputError, StorageError
from embedreg.jobs.lock import Lock
from embedreg.support import confined
from embedreg.support.strict_json import Malformed, document

__all__ = ["BACK", "FILES", "INDEX", "PIECES", "Kept", "Place", "place_of"]

FILES = "files"
RECORD = "migration.json"
PIECES = "pieces"
BACK = "pieces_back"  # of a rollback
INDEX = "index"  # built before a switch
_MAX_BYTES = 1 << 20
_FILE = re.compile(r"[0-9a-f]{32}\.lance")
_ID = re.compile(r"[0-9a-f]{12}")
BRANCH = re.compile(r"embedreg-[0-9a-f]{12}")


def place_of(data: Any) -> Place:
    """Return the place of a table object of lancedb or pylance.

    Raises:
        InputError: an asynchronous table. ConfigError: a table that is not on a local disk.
    """
    kind = type(data).__name__
    if kind.startswith("Async"):
        raise InputError(f"an asynchronous {kind} was given.", "pass the path of the table: 'DB_DIR/name.lance'")
    if kind == "RemoteTable":
        raise ConfigError(
            f"{data.name!r} is a table of LanceDB Cloud, whose columns cannot be changed here.",
            "no fragment can be reached there; use a table on a local disk",
        )
    uri = str(data.uri if kind == "LanceDataset" else data.to_lance().uri).removeprefix("file://")
    if "://" in uri:
        raise on_object_store(uri)
    if not Path(uri).is_dir():
        raise ConfigError(f"the table at {uri!r} is not on a local disk.", "copy it to one, or embed it again")
    return Place(Path(uri), None if kind == "LanceDataset" else data)


class Place:
    """A Lance table on a local disk.

    Attributes:
        path: its folder.
        name: of the table, for messages.
        beside: the hidden folder beside it, which exists while something is staged or the lock is held.
    """

    def __init__(self, path: Path, table: Any = None) -> None:
        self.path = path.absolute()
        self.name = path.name.removesuffix(".lance")
        self._table = table
        self.beside = Storage(str(self.path.parent)).inside(f".{self.path.name}.embedreg")
        self.kept = Kept(self.beside)

    def newest(self) -> Any:
        """Open the newest version as pylance's dataset.

        Raises:
            StorageError: it cannot be opened.
        """
        return dataset_at(self.path)

    def follow(self) -> None:
        """Bring the caller's table object to the newest version."""
        if self._table is not None:
            self._table.checkout_latest()

    @contextlib.contextmanager
    def locked(self) -> Iterator[Lock]:
        """Hold the lock of the table's folder for a block.

        Raises:
            StorageError: another process holds it.
        """
        try:
            with Lock(self.beside) as lock:
                self.beside.sweep()  # incomplete files of killed runs
                yield lock
        finally:
            self.tidy()

    def tidy(self) -> None:
        """Remove the folder beside the table if nothing is kept there."""
        for folder in (FILES, PIECES, BACK, "_embedreg/lock", "_embedreg/tmp", "_embedreg", ""):
            self.beside.remove_empty(folder)

    def remove_branches(self) -> None:
        """Remove branches that a killed run left, and empty folders of branches.

        Call it with the lock held: all such branches are then of runs that have ended.
        """
        dataset = self.newest()
        for name in list(dataset.branches.list()):
            if BRANCH.fullmatch(name):
                dataset.branches.delete(name)
        for inner in (("tree",), ("_refs", "branches"), ("_refs",)):
            confined.remove_empty(self.path, inner)

    # -- data files --------------------------------------------------------------------------------------------------

    def publish(self, name: str) -> None:
        """Make a staged file one of the table's data files, without effect until a commit names it.

        Raises:
            StorageError: it is not there, or is not a regular file.
        """
        source = self.staged(name)
        target = self.path / "data" / name
        if target.exists():
            return
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:  # a filesystem without hard links
            growing = target.with_suffix(f".{uuid.uuid4().hex}.partial")
            with source.open("rb") as read, growing.open("xb") as write:
                while block := read.read(8 << 20):
                    write.write(block)
                write.flush()
                os.fsync(write.fileno())
            growing.replace(target)

    def staged(self, name: str) -> Path:
        """Return the path of a staged file.

        Raises:
            StorageError: it is not there, or is not a regular file.
        """
        entry = self.beside.entry(f"{FILES}/{name}") if _FILE.fullmatch(name) else None
        if entry is None or entry.kind != "file":
            raise StorageError(f"the staged file {name[:100]!r} is missing.", "run the same command again")
        return Path(self.beside.uri, FILES, name)

    def size_of(self, names: Iterable[str]) -> int:
        """Return the size of data files, as far as they are there."""
        total = 0
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(self.path / "data" / name).st_size
        return total

    def withdraw(self, name: str) -> None:
        """Remove a published file that no version names."""
        if _FILE.fullmatch(name):
            confined.remove(self.path, ("data", name))


class Kept:
    """The files kept beside a table: the record of one operation, and of its pieces. All are untrusted input."""

    def __init__(self, root: Storage) -> None:
        self.root = root

    def record(self) -> dict[str, Any] | None:
        """Return the record of the operation that was begun; None if there is none.

        Raises:
            StorageError: it cannot be read, is a link, or is not as embedreg writes it.
        """
        data = self.root.read(RECORD, _MAX_BYTES)
        if data is None:
            return None
        try:
            found = document(data, max_bytes=_MAX_BYTES)
        except Malformed as exc:
            raise self._refused(str(exc)) from None
        texts = ("kind", "state", "vector", "name", "source", "to", "entry")
        if found.get("format") != 1 or not all(isinstance(found.get(each), str) for each in texts):
            raise self._refused("it is not as embedreg writes it")
        if not (isinstance(found.get("id"), str) and _ID.fullmatch(found["id"])):
            raise self._refused("its id is invalid")
        if found["kind"] not in ("add", "migrate", "rollback"):
            raise self._refused("its kind is unknown")
        if found["state"] not in ("begun", "staging", "ready", "switched", "settled"):
            raise self._refused("its state is unknown")
        return found

    def _refused(self, why: str) -> StorageError:
        return StorageError(
            f"{self.root.shown(RECORD)} cannot be read: {why}.", f"remove {self.root.shown()}; the table is intact"
        )

    def begin(self, **facts: Any) -> dict[str, Any]:
        """Record a new operation; return the record."""
        made = {"format": 1, "id": uuid.uuid4().hex[:12], **facts}
        self.write(made)
        return made

    def write(self, record: dict[str, Any]) -> None:
        """Replace the record."""
        self.root.write(RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())

    def pieces(self, folder: str = PIECES) -> list[dict[str, Any]]:
        """Return the readable records of staged fragments."""
        found = []
        for file in self.root.listing(folder):
            if file.size < 0 or not file.path.endswith(".json"):
                continue
            try:
                piece = document(self.root.read(file.path, _MAX_BYTES) or b"", max_bytes=_MAX_BYTES)
            except Malformed:
                continue
            if _is_piece(piece):
                found.append(piece)
        return found

    def keep(self, piece: dict[str, Any], folder: str = PIECES) -> None:
        """Record a staged fragment, once its file is on the disk."""
        name = f"{folder}/{piece['fragment']}-{piece['file'][:12]}.json"
        self.root.write(name, json.dumps(piece).encode())

    def drop(self) -> None:
        """Remove everything that is kept, except the lock; the record goes last."""
        for folder in (PIECES, BACK, INDEX):
            self.root.remove_all(folder)
        self.root.remove_all(FILES)
        self.root.remove(RECORD)


def _is_piece(piece: dict[str, Any]) -> bool:
    numbers = ("fragment", "rows", "size")
    files = (piece.get("file"), piece.get("previous"))
    return (
        all(type(piece.get(each)) is int and piece[each] >= 0 for each in numbers)
        and isinstance(piece.get("source_file"), str)
        and isinstance(files[0], str)
        and bool(_FILE.fullmatch(files[0]))
        and (files[1] is None or (isinstance(files[1], str) and bool(_FILE.fullmatch(files[1]))))
    )
