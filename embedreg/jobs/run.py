"""`embed` and `Job`: a dataset embedded piece by piece, each piece exactly once, also after interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

from embedreg.core.modality import files_of
from embedreg.embedding.column import ZeroVectors
from embedreg.embedding.table import BATCH_ROWS, BadRow, OnError, Progress
from embedreg.errors import BadRowsError, ConfigError, InputError, StorageError, option
from embedreg.jobs import opening, stored
from embedreg.jobs.ledger import OPENING, RECORDS
from embedreg.jobs.opened import Opened
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.submissions import Submission
from embedreg.media.allowances import allow_images
from embedreg.runtime.remote.usage import TotalUsage, collect
from embedreg.runtime.vectors import disk

__all__ = ["Engine", "Job", "JobReport", "embed"]

_COUNTS = ("rows", "written", "embedded", "cached", "given", "nulls", "zeros", "clipped", "bad_rows")
SHOWN_BAD_ROWS = 1000  # in a report; the file beside the destination lists all

Engine: TypeAlias = "Callable[[Job], Generator[Outcome]]"
"""Runs `job.work.run(piece)` for every piece of `job.pending()`, and yields the outcomes."""


@dataclass
class JobReport:
    """The result of a job, over all of its runs.

    Attributes:
        path: the destination.
        rows: rows read.
        written: rows written; fewer where bad rows were dropped.
        embedded, cached, given, nulls, zeros, clipped: as in `Report`.
        bad_rows: number of rows that failed.
        bad: the first of them, each as (input, `BadRow`).
        bad_rows_path: the file that lists them all; None if there are none.
        pieces: number of pieces.
        reused: number of pieces that an earlier run had done.
        reused_rows: number of rows of these.
        removed: outputs of inputs that no longer exist.
        seconds: duration of this run.
        usage: what remote functions cost, over all runs.
        notes: parts of the source that were left out, and surprising findings of this run.
    """

    path: str
    rows: int = 0
    written: int = 0
    embedded: int = 0
    cached: int = 0
    given: int = 0
    nulls: int = 0
    zeros: int = 0
    bad_rows: int = 0
    bad: list[tuple[str, BadRow]] = field(default_factory=list)
    bad_rows_path: str | None = None
    pieces: int = 0
    reused: int = 0
    removed: tuple[str, ...] = ()
    seconds: float = 0.0
    reused_rows: int = 0
    notes: tuple[str, ...] = ()
    usage: TotalUsage = field(default_factory=TotalUsage)
    clipped: int = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {"usage": TotalUsage(), "clipped": 0} | state  # pickles of earlier versions have none

    @property
    def nothing_to_do(self) -> bool:
        """Whether earlier runs had done everything, so that this one embedded and removed nothing."""
        return self.reused == self.pieces and not self.removed


def embed(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    declaration: Any = None,
    *,
    on_error: OnError = "raise",
    max_bad_rows: int | None = None,
    batch_rows: int = BATCH_ROWS,
    piece_rows: int | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
    filesystem: Any = None,
    cache: str | os.PathLike[str] | None = None,
    zero_vectors: ZeroVectors | None = None,
    resume: bool = True,
    force: bool = False,
    prune: bool = False,
    engine: Engine | None = None,
    types: Mapping[str, str] | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    batch_api: bool = False,
) -> JobReport:
    """Embed a dataset piece by piece; after an interruption the same call continues where it stopped.

    Args:
        src: a Parquet, Arrow IPC, JSON lines or CSV file, a folder or glob pattern of them, or a Lance table; a path or
            a URI such as `s3://bucket/folder`. A folder of images has the columns `path` and `name`, and its images may
            be read.
        dst: a folder, for a dataset of Parquet files with the names of those in `src`; one `.parquet` or `.arrow` file;
            or `DB_DIR/name.lance`. A file or table is published once it is complete.
        declaration: `fn.bind(source, vector)`, a list of such, or a Schema; None for the declarations of `src`.
        on_error, zero_vectors, max_bad_rows, batch_rows, progress: as in `embed_batches`; the bad rows of all runs are
            counted.
        piece_rows: about how many rows are published at a time; an interrupted run loses no more than that. A job keeps
            the number it was begun with.
        storage_options: for the filesystem of a URI; secrets as `$var:` references.
        filesystem: a pyarrow or fsspec filesystem that holds both paths.
        cache: a file that keeps vectors over runs and jobs; see `embedreg.vector_cache`.
        resume: False drops the work of earlier runs on `dst`.
        force: replace an existing file or table, or the dataset of an earlier job.
        prune: remove the outputs of inputs that no longer exist, instead of raising an error.
        engine: runs the pieces elsewhere, such as `engines.ray`; None for this process.
        types: of columns of text files, such as {"id": "text", "day": "date"}. The type of any other column is inferred
            from all of its values; it is text if another type would change one of them.
        encoding: of text files; None for UTF-8, or the encoding of their byte order mark.
        delimiter: of CSV files; None for a comma, or a tab in `.tsv`.
        batch_api: submit the pieces to the functions' batch APIs, at their lower price, and wait for the results, which
            takes up to a day. An interruption leaves the batches running; the same call collects them.
    Returns:
        The report, over all runs.
    Raises:
        StorageError: something cannot be read or written, or another run is writing to `dst`.
        DriftError: `dst` was begun with another configuration, or the function now returns other vectors.
        BadRowsError: rows failed under "raise", or too many.
    """
    for name, given in (("src", src), ("dst", dst)):
        if not isinstance(given, str | os.PathLike):
            raise InputError(
                f"{name} is a {type(given).__name__}; embed reads and writes files.",
                "embed_table(data, declaration) embeds data in memory",
            )
    if batch_api:
        if engine is not None:
            raise ConfigError("batch_api=True and engine= exclude each other.", "leave out engine=")
        from embedreg.jobs import batches

        engine = batches.engine()
    with contextlib.ExitStack() as stack:
        if cache is not None:
            stack.enter_context(disk.use(cache))
        job = Job.open(
            src,
            dst,
            declaration,
            on_error=on_error,
            max_bad_rows=max_bad_rows,
            batch_rows=batch_rows,
            piece_rows=piece_rows,
            progress=progress,
            storage_options=storage_options,
            filesystem=filesystem,
            cache=cache,
            zero_vectors=zero_vectors,
            resume=resume,
            force=force,
            prune=prune,
            types=types,
            encoding=encoding,
            delimiter=delimiter,
            held=stack,
        )
        stack.enter_context(job)
        if files_of(job.work.source.place.kind) is not None:  # naming a folder of images is the permission to read it
            stack.enter_context(allow_images(dirs=[job.work.source.place.storage.full("")]))
        # closed here, not by the garbage collector: a pool of workers must not outlive a failed run
        for outcome in stack.enter_context(contextlib.closing((engine or here)(job))):
            job.record(outcome)
        return job.finish()


def here(job: Job) -> Generator[Outcome]:
    """Run the pieces of a job one after another in this process."""
    for piece in job.pending():
        yield job.run_here(piece, job.usage_of(piece))


class Job:
    """One job on one destination, locked by one process at a time; `embed` and the engines drive it.

    Use as a context manager. `work.run(piece)` may be called in any process, for each piece of `pending()` and in any
    order; `record` and `finish` are called in this process.

    Attributes:
        pieces: all of them, in the order of the rows.
        work: everything that a process needs to run one; it can be pickled.
        max_bad_rows: as in `embed_batches`, for the whole job.
    """

    def __init__(self, opened: Opened, max_bad_rows: int | None = None, progress: Progress | None = None) -> None:
        self._opened, self._progress = opened, progress
        self.pieces, self.work, self.max_bad_rows = opened.pieces, opened.work, max_bad_rows
        self._done = dict(opened.done)
        done, ended = self._done.values(), opened.ended
        self._sums: dict[str, int] = {name: sum(getattr(each, name) for each in done) for name in _COUNTS}
        if ended is not None:
            self._sums = {name: ended.counts.get(name, 0) for name in _COUNTS}
        self._usage = self._opened.ledger.used(OPENING) if ended is None else stored.usage_of(ended)
        for each in done:
            self._usage.add(each.usage)
        self._rows_before = self._sums["rows"]
        self._reused, self._start, self._whole = len(self._done), time.perf_counter(), False
        if ended is not None:
            self._reused = ended.pieces
        self._kept = bool(self._done) or ended is not None  # whether a later run can continue from here
        totals = [piece.rows for piece in self.pieces]
        self._total = None if None in totals else sum(filter(None, totals))
        self._shown = 0
        self.advance(0)

    @classmethod
    def open(
        cls,
        src: str | os.PathLike[str],
        dst: str | os.PathLike[str],
        declaration: Any = None,
        *,
        max_bad_rows: int | None = None,
        progress: Progress | None = None,
        held: contextlib.ExitStack | None = None,
        **options: Any,
    ) -> Job:
        """Begin a job, or continue the one on `dst`; arguments and errors as `embed`.

        Args:
            held: releases the destination when it ends, unless the job has done so. Without one, a signal between this
                call and the `with` statement would leave the files of an empty job behind.
        """
        with contextlib.ExitStack() as own:
            with collect(TotalUsage()) as used:  # of probes
                opened = opening.open_job(os.fspath(src), os.fspath(dst), declaration, held or own, **options)
            if used:
                used.add(opened.ledger.used(OPENING))
                opened.ledger.keep_used(OPENING, used)
            job = cls(opened, max_bad_rows, progress)
            own.pop_all()
        return job

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the destination; if no piece was done, nothing is left there."""
        self._opened.close(done=self._kept, whole=self._whole)

    def pending(self, *, submitted: bool = False) -> list[Piece]:
        """Return the pieces that are not done yet.

        Args:
            submitted: whether the caller collects what was submitted to batch APIs.
        Raises:
            ConfigError: it does not, and something was: embedding it in another way would be paid for twice.
        """
        pending = [piece for piece in self.pieces if piece.output not in self._done]
        there = set() if submitted or not pending else set(self._opened.ledger.submitted())
        if number := sum(piece.output in there for piece in pending):
            raise ConfigError(
                f"{number:,} pieces of {self._opened.target} have been submitted to a batch API.",
                option("--batch-api collects them, --fresh drops them", "batch_api=True, or resume=False"),
            )
        return pending

    def run_here(self, piece: Piece, usage: TotalUsage) -> Outcome:
        """Run a piece in this process.

        Args:
            usage: what was spent on it so far, which this run is added to.
        Raises:
            BadRowsError: rows failed under "raise", or too many rows of the job.
        """
        try:
            return self.work.run(piece, self.advance, max_bad_rows=self.bad_rows_left, usage=usage)
        except BadRowsError as exc:
            if self.work.on_error == "raise":
                raise
            raise self.too_many_bad_rows(self.bad_rows + len(exc.rows)) from exc

    def submissions(self, piece: Piece) -> dict[str, Submission]:
        """Return what was submitted to batch APIs for a piece, by column."""
        return self._opened.ledger.submissions(piece.output)

    def keep_submissions(self, piece: Piece, known: Mapping[str, Submission]) -> None:
        """Record what is about to be submitted for a piece, or what has become of it."""
        self._opened.claim.lock.check()
        self._kept = self._kept or bool(known)  # a later run continues from here
        self._opened.ledger.keep_submissions(piece.output, known)

    @property
    def bad_rows(self) -> int:
        """The number of rows that have failed so far."""
        return self._sums["bad_rows"]

    @property
    def bad_rows_left(self) -> int | None:
        """The number of rows that may still fail; None for any number."""
        return None if self.max_bad_rows is None else max(self.max_bad_rows - self.bad_rows, 0)

    def advance(self, rows: int) -> None:
        """Report progress: `rows` of the running pieces are done, besides the recorded ones.

        It never goes back: of pieces that run at once the first record leaves the others out, and one may run again.
        """
        self._shown = max(self._shown, self._sums["rows"] + rows)
        if self._progress is not None:
            self._progress(self._shown, self._total)

    def record(self, outcome: Outcome) -> None:
        """Record the outcome of a piece.

        Raises:
            BadRowsError: too many rows of the job have failed. StorageError: it cannot be recorded.
        """
        self._opened.claim.lock.check()
        self._kept = True  # set first: an interruption right after the record must not drop it
        self._opened.ledger.record(outcome)
        self._opened.ledger.keep_submissions(outcome.piece.output, {})
        if outcome.usage:
            self._opened.ledger.forget_used(outcome.piece.output)
            self._usage.add(outcome.usage)
        self._done[outcome.piece.output] = dataclasses.replace(outcome, bad=())
        for name in _COUNTS:
            self._sums[name] += getattr(outcome, name)
        self.advance(0)
        if self.max_bad_rows is not None and self.bad_rows > self.max_bad_rows:
            raise self.too_many_bad_rows(self.bad_rows)

    def usage_of(self, piece: Piece) -> TotalUsage:
        """Return what was spent on a piece so far, as `Ledger.recorded_usage`."""
        return self._opened.ledger.recorded_usage(piece.output)

    def too_many_bad_rows(self, found: int) -> BadRowsError:
        """Return the error for a job with too many bad rows."""
        return BadRowsError(
            f"{found:,} rows of the job have failed so far, max_bad_rows={self.max_bad_rows:,} allows no more.",
            f"{self._opened.ledger.root.shown(RECORDS)} lists them; a higher max_bad_rows continues from here",
        )

    def finish(self) -> JobReport:
        """Complete the destination and return the report.

        Raises:
            StorageError: pieces are missing, an input has changed, another run has taken over, or the destination
                cannot be written.
        """
        if missing := len(self.pending()):
            raise StorageError(f"{missing:,} pieces are missing.", "run the same command again")
        outcomes = [self._done[piece.output] for piece in self.pieces]
        ended = self._opened.ended
        pieces = len(outcomes) if ended is None else ended.pieces
        report = JobReport(str(self._opened.target), pieces=pieces, reused=self._reused)
        report.reused_rows = self._rows_before
        report.removed, report.notes = self._opened.removed, self.work.source.notes
        for name in _COUNTS:
            setattr(report, name, self._sums[name])
        report.usage = self._usage
        report.bad, report.bad_rows_path = self._opened.publish(outcomes, SHOWN_BAD_ROWS, self._sums, self._usage)
        self._whole = True
        report.seconds = time.perf_counter() - self._start
        return report
