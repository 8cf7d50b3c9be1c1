"""An engine that embeds the pieces of a job through batch APIs: submit, wait, collect.

A piece's inputs are gathered, recorded with the tags of the batches they will be in, and submitted. Nothing is
submitted twice: a batch whose submission was interrupted is looked up in the service's list. Batches run without us;
whoever calls again collects them.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from typing import Any, Protocol

from embedreg.errors import CallError, ConfigError, RowError, StorageError, option
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.submissions import Batch, Submission, digest_of, ranges_of
from embedreg.jobs.work import JobSpec
from embedreg.runtime.remote import batch_calls
from embedreg.runtime.remote.budget import record
from embedreg.runtime.remote.offline import Collected, Gathered, instead_of_requests
from embedreg.runtime.remote.usage import TotalUsage
from embedreg.runtime.vectors import disk

__all__ = ["engine"]

log = logging.getLogger("embedreg")

OPEN_PIECES = 16  # whose batches are at the service at a time
ATTEMPTS = 3  # to embed an input that a batch has left out
POLL_S = 5.0  # before the first look at a batch; the waits grow
_LONGEST_POLL_S = 60.0
LAG_S = 5.0  # how long a service's list may lag behind a submission

_WITHOUT = option("leave out --batch-api", "batch_api=False")


class Job(Protocol):
    """The part of `jobs.run.Job` that this module needs; `jobs.run` imports this module."""

    work: JobSpec

    def pending(self, *, submitted: bool) -> list[Piece]: ...
    def submissions(self, piece: Piece) -> dict[str, Submission]: ...
    def keep_submissions(self, piece: Piece, known: Mapping[str, Submission]) -> None: ...
    def usage_of(self, piece: Piece) -> TotalUsage: ...
    def run_here(self, piece: Piece, usage: TotalUsage) -> Outcome: ...


def engine(poll_s: float = POLL_S, lag_s: float = LAG_S) -> Callable[[Job], Generator[Outcome]]:
    """Return an engine for `embed` that submits each piece to the functions' batch APIs.

    Args:
        poll_s: the wait before batches are looked at; it grows to a minute.
        lag_s: how long a service's list of batches may lag behind a submission.
    """

    def run(job: Job) -> Generator[Outcome]:
        return _Run(job, poll_s, lag_s).outcomes()

    return run


class _Run:
    """One run of the engine on a job."""

    def __init__(self, job: Job, poll_s: float, lag_s: float) -> None:
        self.job, self.poll_s, self.lag_s = job, poll_s, lag_s
        self.columns: dict[Any, str] = {}  # function -> the first column it fills
        for column, function in job.work.functions.items():
            batch_api = getattr(function, "batch_api", None)
            if batch_api is None or batch_api() is None:
                raise ConfigError(
                    f"column {column!r} is filled by {type(function).__name__}, for which there is no batch API.",
                    _WITHOUT,
                )
            self.columns.setdefault(function, column)
        self.functions = {column: function for function, column in self.columns.items()}

    def outcomes(self) -> Generator[Outcome]:
        """Submit the pieces, and yield the outcome of each once its batches have ended."""
        left = deque(self.job.pending(submitted=True))
        waiting: list[Piece] = []
        pause_s = self.poll_s
        while left or waiting:
            while left and len(waiting) < OPEN_PIECES:
                self.submit(left[0])
                waiting.append(left.popleft())
            ready = [piece for piece in waiting if self.ended(piece)]
            for piece in ready:
                outcome = self.collect(piece)
                if outcome is not None:
                    waiting.remove(piece)
                    yield outcome
            if waiting and not ready:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, max(self.poll_s, _LONGEST_POLL_S))
            else:
                pause_s = self.poll_s

    # -- one piece ----------------------------------------------------------------------------------------------------

    def texts(self, piece: Piece, *, cached: bool) -> dict[str, dict[str, None]]:
        """Return the distinct inputs of a piece that need a vector, by the first column of their function.

        Args:
            cached: whether those that a vector cache holds are among them. With them, the same source gives the same
                inputs at any time.
        """
        gathered = Gathered()
        with instead_of_requests(gathered), disk.paused() if cached else contextlib.nullcontext():
            self.job.work.gather(piece)
        return {self.columns[function]: inputs for function, inputs in gathered.inputs.items() if inputs}

    def submit(self, piece: Piece) -> None:
        """Submit what is not submitted yet of a piece."""
        known = self.job.submissions(piece)
        texts = {column: [*inputs] for column, inputs in self.texts(piece, cached=True).items()}
        wanted: dict[str, dict[str, None]] | None = None
        for column, inputs in texts.items():
            old = known.get(column)
            if old is not None and old.is_of(inputs):
                continue
            if old is not None:
                self._give_up(old)
            if wanted is None:
                wanted = self.texts(piece, cached=False)
            places = [place for place, text in enumerate(inputs) if text in wanted.get(column, {})]
            parts = self.functions[column].batch_api().parts([inputs[place] for place in places])
            batches = [Batch(ranges_of(places[start:stop])) for start, stop in parts]
            known[column] = Submission(digest_of(inputs), len(inputs), batches)
        for column in known.keys() - texts.keys():
            self._give_up(known.pop(column))
        self.job.keep_submissions(piece, known)  # before anything is sent
        for column, submission in known.items():
            for batch in submission.batches:
                if batch.handle is None:
                    self._send(piece, known, column, batch, texts[column])

    def _give_up(self, old: Submission) -> None:
        handles = [batch.handle for batch in old.batches if batch.handle is not None]
        if handles:
            log.warning("the source has changed since batches %s were submitted: they are not used", handles)

    def _send(self, piece: Piece, known: dict[str, Submission], column: str, batch: Batch, inputs: list[str]) -> None:
        """Submit one batch; its handle is recorded as soon as it is known."""
        function, usage = self.functions[column], self.job.usage_of(piece)
        texts = [inputs[place] for place in batch.places()]
        earlier, again = batch.sent, batch.sent is not None
        tokens = sum(map(function.count_tokens, texts))

        def sending() -> None:
            nonlocal again
            batch.sent = batch.sent or time.time()
            self.job.keep_submissions(piece, known)
            record(usage, TotalUsage(1, int(again), len(texts), 0, tokens))
            again = True

        def refused() -> None:
            batch.sent = None
            self._keep_sent(piece, known)

        batch.handle = batch_calls.submit(
            function, batch.tag, texts, since=earlier, lag_s=self.lag_s, sending=sending, refused=refused
        )
        self.job.keep_submissions(piece, known)
        log.info("batch %s: %s inputs submitted to %s", batch.handle, len(texts), function.batch_api().vendor)

    def ended(self, piece: Piece) -> bool:
        """Return whether all batches of a piece have ended; ask the service about those that had not."""
        known, done, ended = self.job.submissions(piece), True, False
        for column, submission in known.items():
            for batch in submission.batches:
                if batch.ended or batch.handle is None:
                    done = done and batch.ended
                    continue
                state = batch_calls.poll(self.functions[column], batch.handle, batch.tag, batch.inputs)
                if state.status == "running":
                    done = False
                    log.info("batch %s: %s of %s inputs done", batch.handle, state.done, state.total or batch.inputs)
                    continue
                if state.status == "failed":
                    self._forget(piece, known, column, batch)
                    raise batch_calls.failed(self.functions[column], batch.handle, state)
                batch.ended = ended = True
                if state.status == "cancelled":
                    self.job.keep_submissions(piece, known)
                    raise CallError(
                        f"batch {batch.handle} was cancelled at the service.",
                        option("run the same command again to submit what is left", "call embed again"),
                    )
        if ended:
            self.job.keep_submissions(piece, known)
        return done

    def _forget(self, piece: Piece, known: dict[str, Submission], column: str, batch: Batch) -> None:
        """Record that a batch failed as a whole: its inputs are submitted in a new one by the next run."""
        batches = known[column].batches
        batches[batches.index(batch)] = Batch(batch.ranges, attempt=batch.attempt)
        self._keep_sent(piece, known)

    def _keep_sent(self, piece: Piece, known: dict[str, Submission]) -> None:
        """Record what was submitted; nothing if no batch of the piece may exist."""
        sent = any(each.sent is not None for submission in known.values() for each in submission.batches)
        self.job.keep_submissions(piece, known if sent else {})

    def collect(self, piece: Piece) -> Outcome | None:
        """Embed a piece with the results of its batches; None if some inputs had to be submitted again.

        Raises:
            StorageError: the source has changed meanwhile. CallError: inputs are still not embedded after several
                batches, or the service refused all of them.
        """
        known, texts = self.job.submissions(piece), self.texts(piece, cached=True)
        usage = self.job.usage_of(piece)
        usage.on_change = None  # tokens count once: with the record of the piece
        results: dict[Any, dict[str, Any]] = {}
        complete = True
        for column, distinct in texts.items():
            inputs = [*distinct]
            submission, function = known.get(column), self.functions[column]
            if submission is None or not submission.is_of(inputs):
                raise StorageError(
                    f"{piece.input.path} changed while its batches were running.",
                    option("run the same command again", "call embed again"),
                )
            found: dict[str, Any] = {}
            results[function] = found
            missing, why, attempt = self._read(function, submission, inputs, found, usage)
            if missing:
                complete = False
                if attempt >= ATTEMPTS:
                    raise CallError(
                        f"{len(missing):,} of {len(inputs):,} inputs of {piece.input.path} were not embedded by "
                        f"{ATTEMPTS} batches ({why}).",
                        _WITHOUT,
                    )
                log.warning("%s inputs were not embedded (%s): they are submitted again", len(missing), why)
                submission.batches.append(Batch(ranges_of(missing), attempt=attempt + 1))
        if not complete:
            self.job.keep_submissions(piece, known)
            self.submit(piece)
            return None
        with instead_of_requests(Collected(results)):
            return self.job.run_here(piece, usage)

    def _read(
        self, function: Any, submission: Submission, inputs: list[str], found: dict[str, Any], usage: TotalUsage
    ) -> tuple[list[int], str, int]:
        """Read the results of all batches of a column into `found`, input -> vector or RowError.

        Returns:
            The places of the inputs without a result, why, and the number of attempts so far.
        """
        why, attempt, submitted = "the results are incomplete", 1, set[int]()
        for batch in submission.batches:
            attempt = max(attempt, batch.attempt)
            submitted.update(batch.places())
            texts = [inputs[place] for place in batch.places()]
            assert batch.handle is not None  # all batches of the piece have ended
            state = batch_calls.poll(function, batch.handle, batch.tag, batch.inputs)
            made = batch_calls.collect(function, batch.handle, state, texts)
            why = made.missing or why
            if made.tokens is not None:
                estimate = sum(map(function.count_tokens, texts))
                usage.add(TotalUsage(billed_tokens=made.tokens, estimated_tokens=-estimate))
            for place, vector in (*made.vectors.items(), *made.failed.items()):
                found[texts[place]] = vector
        refused = [each for each in found.values() if isinstance(each, RowError)]
        if len(refused) == len(submitted) > 1:
            raise CallError(
                f"the service refused all of {len(submitted):,} inputs: {refused[0]}.",
                "check the model's name and the fields of the function",
            )
        return [place for place in sorted(submitted) if inputs[place] not in found], why, attempt
