"""The lock that allows one run at a time on a destination, on any filesystem.

A run writes its own file into `_embedreg/lock/` and lists the folder. If it finds the file of another live run, it
withdraws. Of two runs that start at once, at least the later one sees the other: both may withdraw, but never do both
continue. A live run renews its file, so a file that is no longer renewed belongs to a run that died. A live process of
this machine is never considered dead, however old its file is.

The file is the lock. A run checks that its file still exists before it writes, records or removes anything. A run that
takes over removes that file, and nothing restores it.
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
STALE_S = 120.0  # by the clock of the filesystem, which sets all of these times
_RENEW_S = 20.0
_MAX_BYTES = 1 << 16
_RETRY_S = 0.2
_INSTEAD = "instead_of"  # the key that names the files of runs that were taken over
_held: set[str] = set()  # this process's locks; a lock file of this process that is not listed could not be removed


@dataclass(frozen=True)
class Held:
    """A run's right to write to a destination; any process can check it.

    Attributes:
        root: the folder that holds `_embedreg/`.
        name: the name of the run's own file.
    """

    root: Storage
    name: str

    def check(self) -> None:
        """Check that the run's file still exists.

        Raises:
            StorageError: another run considered this one dead and took over, or the file cannot be read.
        """
        if not self.is_there():
            raise StorageError(
                f"another run took over {self.root.shown()}: this one did not renew its lock for {STALE_S:.0f} s.",
                "let that run finish",
            )

    def is_there(self) -> bool:
        """Return whether the destination is still this run's."""
        if _read(self.root, self.name) is None:
            return False
        # on an object store a renewal may have restored the file: the run that took over records the name
        return self.root.local is not None or not any(
            self.name in _names(_content_of(self.root, file).get(_INSTEAD)) for file in _files(self.root)
        )


class Lock:
    """The lock of one run on a destination.

    Attributes:
        held: whether it was acquired and not released; `is_mine` checks whether it still belongs to this run.
        refused: whether another run holds it.
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
        """Acquire the lock.

        Raises:
            StorageError: another run holds it.
        """
        _held.add(self._name)
        try:
            self._root.write(self._name, self._content())
            for other, is_dead in self._others():
                if not is_dead:
                    self.refused = True
                    who = processes.name_of(_content_of(self._root, other))
                    raise StorageError(
                        f"another run is writing to {self._root.shown()}{f' ({who})' if who else ''}.",
                        f"wait for it to end; if it no longer runs, remove {self._root.shown(other.path)}",
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
        """Release the lock, if it was acquired."""
        self.held = False
        self._stopped.set()
        if self._renewing.is_alive():
            self._renewing.join()
        _held.discard(self._name)
        with contextlib.suppress(EmbedregError):  # an unremoved file goes stale
            self._root.remove(self._name)

    def check(self) -> None:
        """Check that the lock is still held; raises as `Held.check`."""
        if self._lost:
            Held(self._root, f"{FOLDER}/lost").check()
        self.right.check()

    def is_mine(self) -> bool:
        """Return whether this run holds the lock now."""
        with contextlib.suppress(EmbedregError):  # a run that cannot check must not write
            return self.held and not self._lost and self.right.is_there()
        return False

    def _content(self) -> bytes:
        return json.dumps({**processes.this_process(), **({_INSTEAD: self._dead} if self._dead else {})}).encode()

    def _renew(self) -> None:
        while not self._stopped.wait(_RENEW_S):
            try:
                before = _clocks()
                if not self._root.renew(self._name, self._content()):
                    self._lost = True
                    return
                if self._root.local is None and _since(before) > STALE_S / 2:
                    # suspended between check and write: another run may have taken over and ended in between
                    self._lost = True
                    self._root.remove(self._name)
                    return
            except EmbedregError as exc:  # the network may recover before another run takes over
                log.warning("the lock could not be renewed: %s", exc.message)

    def _others(self) -> Iterator[tuple[File, bool]]:
        """Yield each other run's file and whether that run is dead."""
        listed = {file.path: file for file in _files(self._root)}
        mine = listed.get(self._name)
        for path, file in listed.items():
            if path != self._name:
                yield file, self._is_dead(file, mine)

    def _is_dead(self, file: File, mine: File | None) -> bool:
        owner = _content_of(self._root, file)
        if {name: owner.get(name) for name in processes.this_process()} == processes.this_process():
            return file.path not in _held
        alive = processes.is_alive(owner)
        if alive is not None:
            return not alive
        ages = mine is not None and mine.mtime_ns is not None and file.mtime_ns is not None
        return ages and ((mine.mtime_ns or 0) - (file.mtime_ns or 0)) / 1e9 > STALE_S  # type: ignore[union-attr]


def _files(root: Storage) -> list[File]:
    """List the lock files of all runs.

    Raises:
        StorageError: one of them is a link or not a regular file.
    """
    found = root.listing(FOLDER)
    for file in found:
        if file.size < 0:
            raise StorageError(f"{root.shown(file.path)!r} is a link or not a regular file.", "remove it")
    return [file for file in found if file.path.endswith(".json")]


def _read(root: Storage, name: str) -> bytes | None:
    """Read a run's file; an object that is being rewritten may need a second attempt."""
    for left in (2, 1, 0):
        try:
            return root.read(name, _MAX_BYTES)
        except StorageError:
            if root.local is not None or not left:
                raise
            time.sleep(_RETRY_S)
    return None


def _content_of(root: Storage, file: File) -> dict[str, Any]:
    """Return the content of a run's file; empty if it is being written or was removed."""
    try:
        return document(_read(root, file.path) or b"{}", max_bytes=_MAX_BYTES)
    except Malformed:
        return {}


def _names(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _clocks() -> tuple[float, float]:
    """Return two clocks that continue while this machine sleeps; the second cannot be set."""
    return time.time(), time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _since(before: tuple[float, float]) -> float:
    return max(now - then for then, now in zip(before, _clocks(), strict=True))
