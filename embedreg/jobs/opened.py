"""`Opened`: an open job, and its claim on the destination until it is closed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.datasets.storage import SCRATCH
from embedreg.datasets.targets import Target
from embedreg.declaration import codec, manifest
from embedreg.embedding.table import BadRow
from embedreg.errors import EmbedregError, StorageError
from embedreg.jobs import claims
from embedreg.jobs.ledger import BAD_ROWS, DONE, JOB, PLAN, RECORDS, Ledger, digest
from embedreg.jobs.lock import FOLDER as LOCK
from embedreg.jobs.lock import Lock
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.stored import Done
from embedreg.jobs.work import JobSpec
from embedreg.runtime.remote.usage import TotalUsage
from embedreg.support.atomic import remove_empty
from embedreg.support.display import plain

if TYPE_CHECKING:
    pass
__all__ = ["Claim", "Opened"]


@dataclass
class Claim:
    """The claim of one run on a destination: its lock and the files that it made.

    Attributes:
        lock: held until `release`.
        made: the first of the folders that were made for it.
        keep: whether a later run may continue from these files; else they are removed with the lock.
    """

    target: Target
    ledger: Ledger
    lock: Lock
    made: Path | None
    keep: bool = True
    released: bool = False

    def release(self) -> None:
        """Release the destination: remove lock and scratch files, and every trace if nothing was done.

        A run that has lost the destination removes nothing, unless no other run continues there.
        """
        if self.released:
            return
        root, mine, refused = self.ledger.root, self.lock.is_mine(), self.lock.held or self.lock.refused
        lost = self.lock.held and not mine
        with contextlib.suppress(EmbedregError):  # the error that led here matters more; the next run removes them too
            if mine and root.local is not None:
                root.remove_all(SCRATCH)
            if mine and not self.keep:
                self._remove()
        self.lock.release()
        if root.local is not None and (mine or not refused) and not self._is_kept():
            for folder in (SCRATCH, LOCK, manifest.FOLDER):
                root.remove_empty(folder)
            root.remove_empty()
            if self.made is not None:
                remove_empty([root.local], self.made)
        if lost:
            self._clear_late_writes()
        self.released = True

    def _clear_late_writes(self) -> None:
        """Remove what this run wrote after its last check of the lock, if the run that took over has ended meanwhile.

        Such a write is one of Lance's commits, which starts the published table again.
        """
        root = self.ledger.root
        if self.target.kind == "folder" or root.local is None or not root.local.is_dir() or self._is_kept():
            return
        again = Claim(self.target, self.ledger, Lock(root), None)
        with contextlib.suppress(EmbedregError):  # another run holds it, which clears up at its end
            try:
                again.lock.acquire()
                again.keep = self._is_kept()
            finally:
                again.release()

    def _is_kept(self) -> bool:
        with contextlib.suppress(EmbedregError):  # a link in place of one of our folders
            return self.ledger.is_begun() or self.ledger.root.exists(manifest.NAME)
        return True

    def _remove(self) -> None:
        """Remove the files of a job that did nothing, or whose file or table is published; its job record goes last."""
        root = self.ledger.root
        if self.target.kind != "folder":
            root.clear(manifest.FOLDER)
        root.remove_all(RECORDS)
        for name in (PLAN, *((BAD_ROWS,) if self.target.kind != "folder" else ()), JOB, DONE):
            root.remove(name)


@dataclass(frozen=True)
class Opened:
    """An open job.

    Attributes:
        target: its destination.
        ledger: its records.
        claim: held until `close`.
        work: everything that a process needs to run a piece.
        pieces: all of them.
        done: outcomes that are recorded and whose outputs still exist, by output.
        removed: outputs that were removed, because their inputs no longer exist.
        appeared: whether the destination was already published by a run that was stopped right after that.
        ended: the totals that such a run has recorded.
        begun_before: whether an earlier run has begun it.
    """

    target: Target
    ledger: Ledger
    claim: Claim
    work: JobSpec
    pieces: list[Piece]
    done: dict[str, Outcome]
    removed: tuple[str, ...] = ()
    appeared: bool = False
    ended: Done | None = None
    begun_before: bool = False

    def publish(
        self, outcomes: Sequence[Outcome], shown: int, counts: Mapping[str, int], usage: TotalUsage
    ) -> tuple[list[tuple[str, BadRow]], str | None]:
        """Complete the destination; return the first bad rows and the path of the full list.

        Raises:
            StorageError: it cannot be written, another run has taken over, or an input has changed.
        """
        if self.ended is not None:
            path = f"{self.target.name}.bad_rows.jsonl"
            return [], self.target.storage.shown(path) if counts["bad_rows"] else None
        self.claim.lock.check()
        self._refuse_changed()
        first, listed = self._list_bad_rows(outcomes, shown)
        if not self.appeared:
            self.work.sink.finish(self.work.schema, outcomes, lambda stamp: self._note_end(stamp, counts, usage))
        if self.target.kind == "folder":
            text = (self.work.schema.metadata or {})[codec.KEY.encode()]
            self.target.storage.write(manifest.NAME, manifest.content(text), self.claim.lock.check)
        elif self.target.path is None and (stamp := claims.stamp(self.target)) is not None:
            self._note_end(stamp, counts, usage)
        return first, listed

    def _note_end(self, stamp: list[Any], counts: Mapping[str, int], usage: TotalUsage) -> None:
        """Record what is about to be published: the next run needs it if this one is stopped while cleaning up."""
        self.ledger.end(
            self.work.schema,
            columns=list(self.work.functions),
            source=str(self.work.source.place),
            inputs=digest(self.work.source.inputs),
            stamp=stamp,
            pieces=len(self.pieces),
            counts=dict(counts),
            usage=usage.to_dict(),
        )

    def _refuse_changed(self) -> None:
        """Check the inputs again: an input that changed during the job would mix rows of two versions.

        Raises:
            StorageError: inputs have changed since the job was planned; it names them.
        """
        changed = self.work.source.changed()
        if changed:
            some = ", ".join(plain(path) for path in changed[:3]) + (", ..." if len(changed) > 3 else "")
            raise StorageError(
                f"{len(changed):,} input(s) changed while the job ran: {some}.",
                "run the same command again, once they are no longer being written: only their pieces run again",
            )

    def _list_bad_rows(self, outcomes: Sequence[Outcome], shown: int) -> tuple[list[tuple[str, BadRow]], str | None]:
        storage, name = self.target.storage, self.target.name
        path = BAD_ROWS if self.target.kind == "folder" else f"{name}.bad_rows.jsonl"
        outputs = [outcome.piece.output for outcome in outcomes if outcome.bad_rows]
        first: list[tuple[str, BadRow]] = []
        ours = self.target.kind == "folder" or claims.is_bad_rows(storage, path)
        if not outputs:
            if ours:
                storage.remove(path)
            return first, None
        if not ours:
            raise StorageError(
                f"{storage.shown(path)!r} exists and is not a list of bad rows.", "move it elsewhere, and run again"
            )
        with self.work.sink.list_bad_rows(self.target, path) as growing, growing.open("w", encoding="utf-8") as file:
            for source, bad in self.ledger.bad_rows(outputs):
                line = {"input": source, "row": bad.row, "column": bad.column, "key": bad.key, "reason": bad.reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                if len(first) < shown:
                    first.append((source, bad))
        return first, storage.shown(path)

    def close(self, *, done: bool, whole: bool) -> None:
        """Release the destination.

        Args:
            done: whether this run has recorded pieces; a later run may continue from them.
            whole: whether the destination is published: the working files of a file or table are then removed.
        """
        self.claim.keep = self.target.kind == "folder" if whole else done or self.begun_before
        self.claim.release()
