"""One run on a destination at a time, on any filesystem.

A run puts a file of its own into `_embedreg/lock/` and lists the folder: who finds another living one withdraws. Of two
that start at once, at least the later one sees the other; both may withdraw, never both go on. The file is renewed
while the run lives, so that one which is not renewed any more is of a run that died. A process of this machine that
lives is never taken for dead, however old its file.

The file is the lock. Before each thing that a run writes, records or removes it looks whether its file is still there:
who takes over removes it, and nothing brings it back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from embedreg.datasets.storage import File, Storage
from embedreg.declaration import manifest
from embedreg.errors import EmbedregError, StorageError
from embedreg.support import processes
from embedreg.support.strict_json import Malformed, document

__all__ = ["STALE_S", "Held", "Lock"]

log = logging.getLogger("embedreg")

FOLDER = f"{manifest.FOLDER}/lock"
STALE_S = 120.0  # by the clock of the filesystem, which writes all of these times
_RENEW_S = 20.0
_MAX_BYTES = 1 << 16
_AGAIN_S = 0.2
_INSTEAD = "instead_of"  # the key that names the files of runs that were taken over
_held: set[str] = set()  # the names of this process's locks; one of its own that is not here could not be removed


@dataclass(frozen=True)
class Held:
    """A run's right to write to a destination, as any process can check it.

    Attributes:
        root: the folder that holds `_embedreg/`.
        name: of the run's own file.
    """

    root: Storage
    name: str

    def check(self) -> None:
        """Look at the file.

        Raises:
            StorageError: another run took this one for dead and went on in its place, or nobody can see.
        """
        if not self.is_there():
            raise StorageError(
                f"another run took over {self.root.shown()}: this one had not been heard of for {STALE_S:.0f} s.",
                "let that run finish",
            )

    def is_there(self) -> bool:
        """Return whether the destination is still this run's."""
        if _read(self.root, self.name) is None:
            return False
        # on an object store a renewal may have brought the file back: who took over says so
        return self.root.local is not None or not any(
            self.name in _names(_told(self.root, file).get(_INSTEAD)) for file in _files(self.root)
        )


class Lock:
    """The right to write to a destination.

    Attributes:
        held: whether it was taken, and not given back; whether it still is this run's, `is_mine` looks up.
        refused: whether another run has it.
    """

    def __init__(self, root: Storage) -> None:
        self._root = root
        self._name = f"{FOLDER}/{uuid.uuid4().hex}.json"
        self.right = Held(root, self._name)
        self._stopped = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="embedreg-lock", daemon=True)
        self._lost = self.held = self.refused = False
        self._dead: list[str] = []

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
            for other, is_dead in self._others():
                if not is_dead:
                    self.refused = True
                    who = processes.name_of(_told(self._root, other))
                    raise StorageError(
                        f"another run is writing to {self._root.shown()}{f' ({who})' if who else ''}.",
                        f"wait for it to end; if it is gone, remove {self._root.shown(other.path)}",
                    )
                self._dead.append(other.path)
            if self._dead and self._root.local is None:
                self._root.write(self._name, self._content())
            for path in self._dead:
                self._root.remove(path)
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
        """Look at the lock's file; raises as `Held.check`."""
        if self._lost:
            Held(self._root, f"{FOLDER}/lost").check()
        self.right.check()

    def is_mine(self) -> bool:
        """Return whether the destination is this run's now."""
        with contextlib.suppress(EmbedregError):  # who cannot look must not touch
            return self.held and not self._lost and self.right.is_there()
        return False

    def _content(self) -> bytes:
        return json.dumps({**processes.myself(), **({_INSTEAD: self._dead} if self._dead else {})}).encode()

    def _renew(self) -> None:
        while not self._stopped.wait(_RENEW_S):
            try:
                before = _clocks()
                if not self._root.renew(self._name, self._content()):
                    self._lost = True
                    return
                if self._root.local is None and _since(before) > STALE_S / 2:
                    # stopped between looking and writing: somebody may have taken over, and been done, in between
                    self._lost = True
                    self._root.remove(self._name)
                    return
            except EmbedregError as exc:  # the network may come back before anybody takes over
                log.warning("the lock could not be renewed: %s", exc.message)

    def _others(self) -> Iterator[tuple[File, bool]]:
        """Yield the other runs' files, and whether the run is dead."""
        listed = {file.path: file for file in _files(self._root)}
        mine = listed.get(self._name)
        for path, file in listed.items():
            if path != self._name:
                yield file, self._is_dead(file, mine)

    def _is_dead(self, file: File, mine: File | None) -> bool:
        told = _told(self._root, file)
        if {name: told.get(name) for name in processes.myself()} == processes.myself():
            return file.path not in _held
        alive = processes.is_alive(told)
        if alive is not None:
            return not alive
        ages = mine is not None and mine.mtime_ns is not None and file.mtime_ns is not None
        return ages and ((mine.mtime_ns or 0) - (file.mtime_ns or 0)) / 1e9 > STALE_S  # type: ignore[union-attr]


def _files(root: Storage) -> list[File]:
    """List the files of all runs.

    Raises:
        StorageError: one of them is a link, or no regular file.
    """
    found = root.listing(FOLDER)
    for file in found:
        if file.size < 0:
            raise StorageError(f"{root.shown(file.path)!r} is a link or no regular file.", "remove it")
    return [file for file in found if file.path.endswith(".json")]


def _read(root: Storage, name: str) -> bytes | None:
    """Read a run's file; an object that is written anew meanwhile may need a second try."""
    for left in (2, 1, 0):
        try:
            return root.read(name, _MAX_BYTES)
        except StorageError:
            if root.local is not None or not left:
                raise
            time.sleep(_AGAIN_S)
    return None


def _told(root: Storage, file: File) -> dict[str, Any]:
    """Return what a run's file says; nothing where it is being written, or is gone."""
    try:
        return document(_read(root, file.path) or b"{}", max_bytes=_MAX_BYTES)
    except Malformed:
        return {}


def _names(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _clocks() -> tuple[float, float]:
    """Return two clocks that go on while this machine sleeps; one of them cannot be set."""
    return time.time(), time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _since(before: tuple[float, float]) -> float:
    return max(now - then for then, now in zip(before, _clocks(), strict=True))
