"""One run on a destination at a time, on any filesystem.

A run puts a file of its own into `_embedreg/lock/` and lists the folder: who finds another living one withdraws. Of two
that start at once, at least the later one sees the other; both may withdraw, never both go on. The file is renewed
while the run lives, so that one which is not renewed any more is of a run that died.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from embedreg import manifest
from embedreg.errors import EmbedregError, StorageError
from embedreg.jobs import processes
from embedreg.jobs.storage import File, Storage

__all__ = ["STALE_S", "Lock"]

log = logging.getLogger("embedreg")

FOLDER = f"{manifest.FOLDER}/lock"
STALE_S = 120.0  # by the clock of the filesystem, which writes all of these times
_RENEW_S = 20.0
_held: set[str] = set()  # the names of this process's locks; one of its own that is not here could not be removed


class Lock:
    """The right to write to a destination.

    Attributes:
        held: whether it is this run's.
    """

    def __init__(self, root: Storage) -> None:
        self._root = root
        self._name = f"{FOLDER}/{uuid.uuid4().hex}.json"
        self._stopped = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="embedreg-lock", daemon=True)
        self._lost = self.held = False

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the destination.

        Raises:
            StorageError: another run has it.
        """
        _held.add(self._name)
        try:
            self._root.write(self._name, self._content())
            for other, dead in self._others():
                if not dead:
                    who = processes.name_of(self._told(other))
                    raise StorageError(
                        f"another run is writing to {self._root.shown()}{f' ({who})' if who else ''}.",
                        f"wait for it to end; if it is gone, remove {self._root.shown(other.path)}",
                    )
                self._root.remove(other.path)
        except BaseException:
            self.release()
            raise
        self.held = True
        self._renewing.start()

    def release(self) -> None:
        """Give it back; nothing happens where it was not taken."""
        self.held = False
        self._stopped.set()
        if self._renewing.is_alive():
            self._renewing.join()
        _held.discard(self._name)
        with contextlib.suppress(EmbedregError):  # it goes stale by itself
            self._root.remove(self._name)

    def check(self) -> None:
        """Raise `StorageError` where another run took this one for dead and went on in its place."""
        if self._lost:
            raise StorageError(
                f"another run took over {self._root.shown()}: this one had not been heard of for {STALE_S:.0f} s.",
                "let that run finish",
            )

    @staticmethod
    def _content() -> bytes:
        return json.dumps(processes.myself()).encode()

    def _renew(self) -> None:
        while not self._stopped.wait(_RENEW_S):
            try:
                if not self._root.renew(self._name, self._content()):
                    self._lost = True
                    return
            except EmbedregError as exc:  # the network may come back before anybody takes over
                log.warning("the lock could not be renewed: %s", exc.message)

    def _others(self) -> Iterator[tuple[File, bool]]:
        """Yield the other runs' files, and whether the run is dead."""
        listed = {file.path: file for file in self._root.files(FOLDER)}
        mine = listed.get(self._name)
        for path, file in listed.items():
            if path != self._name and path.endswith(".json"):
                ages = mine is not None and mine.mtime_ns is not None and file.mtime_ns is not None
                age_s = ((mine.mtime_ns or 0) - (file.mtime_ns or 0)) / 1e9 if ages and mine is not None else 0.0
                yield file, age_s > STALE_S or self._is_of_nobody(file)

    def _is_of_nobody(self, file: File) -> bool:
        told = self._told(file)
        return processes.is_dead(told) or (told == processes.myself() and file.path not in _held)

    def _told(self, file: File) -> dict[str, Any]:
        try:
            found = json.loads(self._root.read(file.path) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}
