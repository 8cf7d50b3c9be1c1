"""`Staging`: new files written beside a dataset, then published by one rename each.

A change is staged file by file in `_embedreg/column/files/`, and a record follows each file. Once all of them exist, a
list of the renames is written, and then they are made. A process that was killed leaves staged files, which the next
run uses if the file they were made of is still the same, or a list of renames, which the next run completes first.

So a reader opens either the old or the new file of each name. Between the first and the last rename, which takes
milliseconds, a dataset of several files has both; each file declares in its schema what made its own vectors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from embedreg.columns.files import records
from embedreg.columns.files.folder import DataFiles, text_of
from embedreg.columns.files.records import Begun, Done, Migrating, Publishing
from embedreg.columns.files.rows import Counts
from embedreg.datasets.storage import SCRATCH
from embedreg.declaration import codec, manifest
from embedreg.declaration.entries import Entry
from embedreg.errors import EmbedregError, StorageError
from embedreg.jobs.ledger import DONE as JOB_DONE
from embedreg.jobs.ledger import JOB, PLAN, RECORDS
from embedreg.jobs.lock import FOLDER as LOCK
from embedreg.jobs.lock import Lock

__all__ = ["Staging", "key_of"]

FOLDER = f"{manifest.FOLDER}/column"
BEGUN = f"{FOLDER}/begun.json"
DONE = f"{FOLDER}/done"
FILES = f"{FOLDER}/files"
PUBLISHING = f"{FOLDER}/publishing.json"
MIGRATION = f"{FOLDER}/migration.json"
PREVIOUS = f"{FOLDER}/previous"

Kept = TypeVar("Kept", Begun, Done, Migrating, Publishing)


def key_of(*facts: object) -> str:
    """Return a text that identifies a change."""
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:32]


class Staging:
    """The working files of one dataset; those that write are called while the lock is held."""

    def __init__(self, files: DataFiles) -> None:
        self.files, self.root = files, files.root
        self._lock: Lock | None = None

    # -- the lock ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the dataset; first complete the renames of a run that was killed among them.

        Raises:
            StorageError: another process works on it, or an embedding job on this folder is not complete.
        """
        if self._lock is not None:  # `migrate` holds it over several steps
            yield
            return
        if self.root.exists(JOB) and not (self.files.name is None and self.root.exists(manifest.NAME)):
            raise StorageError(
                f"{self.files.path} is the destination of an embedding job that is not complete.",
                "run that `embedreg embed` again first",
            )
        lock = Lock(self.root)
        try:
            lock.acquire()
            self._lock = lock
            self.root.sweep()
            self.publish()
            yield
        finally:
            self._lock = None
            with contextlib.suppress(EmbedregError):  # the next run removes them
                if lock.is_mine():
                    self.root.remove_all(SCRATCH)
            refused = lock.refused
            lock.release()
            if not refused:
                self._remove_empty()

    def _remove_empty(self) -> None:
        for folder in (DONE, FILES, PREVIOUS, SCRATCH, LOCK, FOLDER, manifest.FOLDER):
            self.root.remove_empty(folder)
        self.root.remove_empty()

    def check(self) -> None:
        """Raise `StorageError` if this run does not hold the lock."""
        assert self._lock is not None
        self._lock.check()

    # -- records -----------------------------------------------------------------------------------------------------

    def read(self, kind: type[Kept], path: str) -> Kept | None:
        """Return a record; None if it does not exist.

        Raises:
            MetadataError: it is invalid. StorageError: it is a link, or cannot be read.
        """
        data = self.root.read(path, records.MAX_BYTES)
        return None if data is None else records.read(kind, data, self.root.shown(path))

    def migrating(self) -> Migrating | None:
        """Return the facts of the migration of this dataset, if there is one.

        Raises:
            MetadataError: its record is not what embedreg writes. StorageError: it is a link, or cannot be read.
        """
        return self.read(Migrating, MIGRATION)

    def write(self, path: str, value: Begun | Done | Migrating | Publishing) -> None:
        """Write a record."""
        self.root.write(path, records.dumped(value), self.check)

    # -- staging -----------------------------------------------------------------------------------------------------

    def begin(self, key: str, entry: Entry, resume: bool) -> Entry:
        """Begin or continue a change; return the declaration that all of its files get."""
        if resume:
            with contextlib.suppress(EmbedregError):  # one that cannot be read is begun again
                begun = self.read(Begun, BEGUN)
                if begun is not None and begun.key == key:
                    return records.entry_of(begun.entry, self.root.shown(BEGUN))
        self.drop()
        self.write(BEGUN, Begun(key=key, entry=entry.raw))
        return entry

    def is_begun(self, key: str) -> bool:
        """Return whether an earlier run has begun this change."""
        begun = None
        with contextlib.suppress(EmbedregError):
            begun = self.read(Begun, BEGUN)
        return begun is not None and begun.key == key

    def done(self, name: str) -> Done | None:
        """Return the record of a staged file; None if it is not staged, or the file it was made of has changed."""
        found = None
        with contextlib.suppress(EmbedregError):
            found = self.read(Done, f"{DONE}/{name}.json")
        if found is None or found.source != self.files.stamp(name):
            return None
        return found if self._stamp(f"{FILES}/{name}") == found.staged else None

    def stage(self, name: str, source: list[int], counts: Counts, fill: Callable[[Path], object]) -> Done:
        """Make a file and record it.

        Args:
            source: the stamp of the file that is read.
            fill: writes to the path that it is given.
        """
        with self.root.publish(f"{FILES}/{name}", self.check) as growing:
            fill(growing)
        return self._record(name, source, counts)

    def stage_previous(self, name: str, source: list[int]) -> Done:
        """Stage the file that the switch replaced."""
        with self.root.publish(f"{FILES}/{name}", self.check) as growing:
            _linked(Path(self.root.uri, PREVIOUS, name), growing)
        return self._record(name, source, Counts())

    def _record(self, name: str, source: list[int], counts: Counts) -> Done:
        staged = self._stamp(f"{FILES}/{name}")
        assert staged is not None
        sums = {each: getattr(counts, each) for each in Done.model_fields if hasattr(counts, each)}
        made = Done(source=source, staged=staged, **sums)
        self.write(f"{DONE}/{name}.json", made)
        return made

    def drop(self) -> None:
        """Remove all staged files and their records."""
        self.check()
        for folder in (FILES, DONE):
            self.root.remove_all(folder)
        self.root.remove(BEGUN)

    def previous(self, name: str) -> bool:
        """Return whether the file of this name that a switch replaced is kept."""
        found = self.root.entry(f"{PREVIOUS}/{name}")
        return found is not None and found.kind == "file"

    def forget(self) -> None:
        """Remove what a rollback of a migration needs."""
        self.check()
        self.root.remove_all(PREVIOUS)
        self.root.remove(MIGRATION)

    def _stamp(self, path: str) -> list[int] | None:
        found = self.root.entry(path)
        return None if found is None or found.kind != "file" else [found.inode, found.mtime_ns, found.size]

    # -- publishing --------------------------------------------------------------------------------------------------

    def list_renames(self, key: str, entries: Sequence[Entry], *, keep: bool = False, state: str = "") -> Publishing:
        """Write the list of renames of all staged files; from then on the change will be completed."""
        files = {}
        for name in self.files.names():
            if (done := self.done(name)) is not None:
                files[name] = (done.source, done.staged)
        made = Publishing(key=key, files=files, keep=keep, entries=text_of(entries).decode(), state=state)  # type: ignore[arg-type]  # checked by the model
        self.write(PUBLISHING, made)
        return made

    def publishing(self) -> Publishing | None:
        """Return the list of renames of a run that was killed among them."""
        return self.read(Publishing, PUBLISHING)

    def publish(self) -> list[str]:
        """Make the renames that are listed; return the files that changed since they were read, which stay.

        Raises:
            StorageError: a file cannot be renamed; the next run continues.
        """
        listed = self.publishing()
        if listed is None:
            return []
        changed = []
        self._drop_job()
        for name, (source, staged) in listed.files.items():
            if self._stamp(f"{FILES}/{name}") != staged:
                continue  # published
            if self.files.stamp(name) != source:
                changed.append(name)
                continue
            if listed.keep:
                self._keep(name)
            self._replace(name)
        entries = codec.entries({codec.KEY: listed.entries})
        if self.files.name is None and (entries or self.files.manifest() is not None):
            self.files.declare(entries)
        if listed.state:
            self._advance(listed)
        self.drop()
        self.root.remove(PUBLISHING)
        return changed

    def _keep(self, name: str) -> None:
        target = f"{PREVIOUS}/{name}"
        self.root.remove(target)
        with self.root.scratch_file(self.check) as growing:
            _linked(Path(self.files.data.uri, name), growing)
            self.root.rename(growing, self.root, target, self.check)

    def _replace(self, name: str) -> None:
        """Rename a staged file to its final name."""
        self.root.move(f"{FILES}/{name}", self.files.data, name, self.check)

    def _advance(self, listed: Publishing) -> None:
        migration = self.migrating()
        if migration is None:
            return
        if listed.state == "rolled back":
            self.forget()
            return
        published = {name: staged for name, (_, staged) in listed.files.items()}
        facts = migration.model_dump() | {"state": "switched", "published": migration.published | published}
        self.write(MIGRATION, Migrating(**facts))

    def _drop_job(self) -> None:
        """Remove the records of the job that made the folder: it would make files of its own configuration again."""
        if self.files.name is None and self.root.exists(JOB):
            self.root.remove_all(RECORDS)
            for name in (PLAN, JOB_DONE, JOB):
                self.root.remove(name)


def _linked(old: Path, new: Path) -> None:
    """Give a file a second name, or copy it where the filesystem has no links."""
    try:
        os.link(old, new, follow_symlinks=False)
    except FileNotFoundError:
        raise StorageError(f"{old} is gone.", "run the same command again") from None
    except OSError:
        shutil.copyfile(old, new)
