"""Opening a job: what is to be read and written, what an earlier run has done of it, and what may not be mixed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedreg import identity, manifest, metadata
from embedreg import schema as schemas
from embedreg.base import EmbeddingFunctionConfig
from embedreg.column import ZeroVectors, zero_policy
from embedreg.errors import ConfigError, DriftError, EmbedregError, MetadataError, SchemaError, StorageError
from embedreg.jobs import claims, places
from embedreg.jobs.ledger import BAD_ROWS, JOB, PLAN, Ledger
from embedreg.jobs.lock import FOLDER as LOCK
from embedreg.jobs.lock import Lock
from embedreg.jobs.pieces import PIECE_ROWS, Outcome, Piece, cut_up, well_named
from embedreg.jobs.places import Kind, Target
from embedreg.jobs.sinks import Sink, sink_for
from embedreg.jobs.sources import Known, Source, open_source
from embedreg.jobs.storage import SCRATCH
from embedreg.jobs.work import JobSpec
from embedreg.table import BATCH_ROWS, BadRow, OnError, embed_batches
from embedreg.writing import remove_empty

__all__ = ["KINDS", "Opened", "is_begun", "open_job"]

KINDS: tuple[Kind, ...] = ("parquet", "arrow", "jsonl", "csv", "lance")
_ANEW = "write to another place; or --fresh starts anew (in Python: resume=False)"


@dataclass
class Claim:
    """The hold of one run on a destination.

    Attributes:
        lock: held until `release`.
        made: the first of the folders that were made for it.
        keep: whether what lies there is to be gone on with; else it is removed with the lock.
    """

    target: Target
    ledger: Ledger
    lock: Lock
    made: Path | None
    keep: bool = True
    released: bool = False

    def release(self) -> None:
        """Leave the destination: no lock, no scratch, and nothing at all where nothing was done."""
        if self.released:
            return
        root, mine = self.ledger.root, self.lock.held
        self.lock.release()
        with contextlib.suppress(EmbedregError):  # what brought us here is the error to show; the next run sweeps too
            if mine and not self.keep:
                root.remove_all(manifest.FOLDER if self.target.kind == "folder" else "")
            elif mine and root.local is not None:
                root.remove_all(SCRATCH)
        if root.local is not None and not (root.local / JOB).exists():
            remove_empty([root.local / each for each in (LOCK, SCRATCH, manifest.FOLDER, "")], self.made)
        self.released = True


@dataclass(frozen=True)
class Opened:
    """An open job.

    Attributes:
        target: what it writes.
        ledger: what it records.
        claim: held until `close`.
        work: what a process needs to run a piece.
        pieces: all of them.
        done: what is recorded and still there, by output.
        removed: outputs that were removed, since their inputs are gone.
        appeared: whether the destination is there already: the run that made it was stopped right behind that.
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
    begun_before: bool = False

    def publish(self, outcomes: Sequence[Outcome], shown: int) -> tuple[list[tuple[str, BadRow]], str | None]:
        """Make the destination whole; return the first bad rows, and where all of them are listed."""
        first, listed = self._list_bad_rows(outcomes, shown)
        if not self.appeared:
            self.work.sink.finish(self.work.schema, outcomes)
        if self.target.kind == "folder":
            text = (self.work.schema.metadata or {})[metadata.KEY.encode()]
            self.target.storage.write(manifest.NAME, manifest.content(text))
        return first, listed

    def _list_bad_rows(self, outcomes: Sequence[Outcome], shown: int) -> tuple[list[tuple[str, BadRow]], str | None]:
        storage, name = self.target.storage, self.target.name
        path = BAD_ROWS if self.target.kind == "folder" else f"{name}.bad_rows.jsonl"
        outputs = [outcome.piece.output for outcome in outcomes if outcome.bad_rows]
        first: list[tuple[str, BadRow]] = []
        if not outputs:
            storage.remove(path)
            return first, None
        with storage.publish(path) as growing, growing.open("w", encoding="utf-8") as file:
            for source, bad in self.ledger.bad_rows(outputs):
                line = {"input": source, "row": bad.row, "column": bad.column, "reason": bad.reason}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                if len(first) < shown:
                    first.append((source, bad))
        return first, storage.shown(path)

    def close(self, *, done: bool, whole: bool) -> None:
        """Let go of the destination.

        Args:
            done: whether this run has recorded pieces; they, and those of earlier runs, are to be gone on with.
            whole: whether the destination is made: of a file or a table, what it grew from is removed.
        """
        self.claim.keep = self.target.kind == "folder" if whole else done or self.begun_before
        self.claim.release()


def open_job(
    src: str,
    dst: str,
    declaration: Any,
    held: contextlib.ExitStack,
    *,
    storage_options: Mapping[str, Any] | None = None,
    filesystem: Any = None,
    on_error: OnError = "raise",
    batch_rows: int = BATCH_ROWS,
    piece_rows: int | None = None,
    cache: Any = None,
    zero_vectors: ZeroVectors | None = None,
    resume: bool = True,
    force: bool = False,
    prune: bool = False,
) -> Opened:
    """Begin a job, or go on with the one that was begun there; arguments and errors as `embed`.

    Args:
        held: releases the claim on the destination in the end, unless `close` has done so. It is the caller's, so that
            a signal finds no moment in which nobody would.
    """
    _check_policies(on_error, batch_rows, piece_rows)
    where: dict[str, Any] = {"options": storage_options, "filesystem": filesystem}
    place = places.find(src, KINDS, remote=True, **where)
    target = places.destination(dst, **where)
    claims.refuse_overlap(place, target)
    sink = sink_for(target)
    ledger = Ledger(sink.root)
    appeared = claims.appeared(target, ledger, resume)
    if not appeared:
        claims.refuse_existing(target, ledger, force)
    begun = ledger.job()
    anew = begun is None or not resume or (force and target.kind == "folder" and claims.finished(target))
    known, planned = (None if anew else ledger.plan()) or (None, frozenset[str]())
    source = open_source(place, known)
    configs = _declared(source, declaration)
    for config in configs:
        zero_policy(config.function, zero_vectors)
    if begun is None or anew:
        job = _begin(target, source, configs, declaration, piece_rows)
    else:
        job = begun
        _refuse_other(job, known, source, configs, target)
    pieces = cut_up(source.inputs, job["piece_rows"], full_names=job["full_names"])
    functions = {each.vector_column: each.function for each in configs}
    path = None if cache is None else str(cache)
    work = JobSpec(source, sink, job["schema"], functions, on_error, batch_rows, path, zero_vectors)
    # Nothing has been written so far. From here on the destination is this run's.
    claim = Claim(target, ledger, Lock(sink.root), _first_missing(sink.root.local))
    held.callback(claim.release)
    claim.lock.acquire()
    if ledger.job() != begun:
        raise StorageError(f"another run has begun or ended on {target} meanwhile.", "run the same command again")
    claim.keep = not anew
    ledger.root.sweep()
    if begun is not None and anew:
        _wipe(ledger, sink)
    if anew:
        ledger.begin(**job)
    sink.prepare(job["schema"])
    done, removed = _taken_up(ledger, sink, source, pieces, planned, prune, appeared)
    _refuse_other_policy(done.values(), on_error, zero_vectors)
    if known is None or not _same_plan(known, planned, source, pieces):
        ledger.keep_plan(source.schema, source.inputs, pieces)
    return Opened(target, ledger, claim, work, pieces, done, removed, appeared, not anew)


def is_begun(dst: str, storage_options: Mapping[str, Any] | None = None, filesystem: Any = None) -> bool:
    """Say whether a destination holds something to go on with."""
    with contextlib.suppress(EmbedregError):  # asked when something went wrong already
        target = places.destination(dst, options=storage_options, filesystem=filesystem)
        return sink_for(target).root.read(JOB) is not None
    return False


def _check_policies(on_error: str, batch_rows: int, piece_rows: int | None) -> None:
    if on_error not in ("raise", "null", "drop"):
        raise ConfigError(f"on_error={on_error!r} is no policy.", "on_error='raise', 'null' or 'drop'")
    for name, value in (("batch_rows", batch_rows), ("piece_rows", piece_rows)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r} is no positive number of rows.", f"{name}={BATCH_ROWS}")


# -- beginning and going on --------------------------------------------------------------------------------------------


def _declared(source: Source, declaration: Any) -> list[EmbeddingFunctionConfig]:
    """Return the declarations to work by: those that were passed, else those that the source brings."""
    if declaration is not None:
        configs = schemas.resolve(declaration)[1]
    else:
        stored = metadata.parse(source.schema.metadata)
        configs = [stored[column] for column in stored.entries]
    if not configs:
        raise MetadataError(
            f"nothing declares how {source.place} is to be embedded.",
            "embedreg.embed(src, dst, fn.bind('text', 'vector'))",
        )
    return list(configs)


def _begin(
    target: Target, source: Source, configs: Sequence[EmbeddingFunctionConfig], declaration: Any, piece_rows: int | None
) -> dict[str, Any]:
    """Settle what holds for every piece: the schema with its declarations, probes included, and the names."""
    how = declaration if declaration is not None else schemas.Resolved(None, list(configs))
    embed_batches(source.schema.empty_table(), how)  # what does not fit is told before a model is loaded
    for config in configs:
        if config.vector_column not in source.schema.names and source.rows != 0:
            identity.learn(config.function, metadata.declared_by(config))
    rows = piece_rows or PIECE_ROWS
    return {
        "schema": embed_batches(source.schema.empty_table(), how).schema,
        "columns": [config.vector_column for config in configs],
        "source": str(source.place),
        "piece_rows": rows,
        "full_names": not well_named(cut_up(source.inputs, rows)),
        "before": claims.stamp(target),
    }


def _refuse_other(
    job: Mapping[str, Any],
    known: Known | None,
    source: Source,
    configs: Sequence[EmbeddingFunctionConfig],
    target: Target,
) -> None:
    """Refuse to go on with another configuration, or with other columns, than the job was begun with.

    Raises:
        DriftError, SchemaError: naming what differs.
    """
    columns = [config.vector_column for config in configs]
    if sorted(columns) != sorted(job["columns"]):
        raise DriftError(f"{target} was begun to fill {', '.join(job['columns'])}, not {', '.join(columns)}.", _ANEW)
    entries = {entry.vector_column: entry for entry in metadata.entries(job["schema"].metadata)}
    for config in configs:
        entry = entries[config.vector_column]
        same = metadata.says_same(config, entry) or entry.reserved.get("fingerprint") == identity.fingerprint(
            config.function
        )
        if not same or config.source_column != entry.source_column:
            raise DriftError(
                f"{target} was begun with {entry.name!r} in another configuration: column {config.vector_column!r} "
                "would hold two kinds of vectors.",
                _ANEW,
            )
    if known is not None and not known.schema.equals(source.schema):
        before, now = ({f"{item.name}: {item.type}" for item in schema} for schema in (known.schema, source.schema))
        raise SchemaError(
            f"the columns of {source.place} are not those that {target} was begun with "
            f"({', '.join(sorted(before ^ now)) or 'another order'}).",
            _ANEW,
        )


def _taken_up(
    ledger: Ledger,
    sink: Sink,
    source: Source,
    pieces: Sequence[Piece],
    planned: frozenset[str],
    prune: bool,
    appeared: bool,
) -> tuple[dict[str, Outcome], tuple[str, ...]]:
    """Return the pieces that are done and still right, by output, and the outputs that were removed.

    What an earlier plan named and this one does not is removed: its input has changed, or is gone.

    Raises:
        StorageError: inputs are gone, and it was not said that their outputs are to go too.
    """
    records = ledger.records()
    files = {file.path: file for file in ledger.root.files()}
    done = {}
    for piece in pieces:
        old = records.get(piece.output)
        same = old is not None and old.piece.span == piece.span and old.piece.input.same(piece.input)
        if old is not None and same and (appeared or sink.present(old, files)):
            done[piece.output] = old
    stale = (planned | records.keys()) - {piece.output for piece in pieces}
    there = {each.path for each in source.inputs}
    gone = sorted({old.piece.input.path for name, old in records.items() if name in stale} - there)
    if gone and not prune:
        some = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
        raise StorageError(
            f"{len(gone):,} input(s) that were embedded are gone: {some}.",
            "put them back; or --prune removes what became of them (in Python: prune=True)",
        )
    for name in sorted(stale):
        sink.drop(name)
        ledger.forget(name)
    return done, tuple(sorted(name for name in stale if name in records))


def _refuse_other_policy(done: Iterable[Outcome], on_error: OnError, zero_vectors: ZeroVectors | None) -> None:
    """Refuse to keep bad rows, or vectors of zeros, in one part of the data and not in another."""
    for outcome in done:
        if outcome.zeros and outcome.zero_vectors != zero_vectors:
            option = f"--zero-vectors {outcome.zero_vectors}" if outcome.zero_vectors else "leaving --zero-vectors out"
            raise ConfigError(
                f"{outcome.piece.output} has {outcome.zeros:,} vector(s) of zeros under "
                f"zero_vectors={outcome.zero_vectors!r}, this run says {zero_vectors!r}.",
                f"{option} goes on (in Python: zero_vectors={outcome.zero_vectors!r}); {_ANEW}",
            )
        was = "drop" if outcome.written < outcome.rows else "null"
        if outcome.bad_rows and was != on_error:
            raise ConfigError(
                f"{outcome.piece.output} has {outcome.bad_rows:,} bad row(s) under on_error={was!r}, this run says "
                f"{on_error!r}.",
                f"--on-error {was} goes on (in Python: on_error={was!r}); {_ANEW}",
            )


def _same_plan(known: Known, planned: frozenset[str], source: Source, pieces: Sequence[Piece]) -> bool:
    return planned == {piece.output for piece in pieces} and list(known.inputs.values()) == list(source.inputs)


def _wipe(ledger: Ledger, sink: Sink) -> None:
    """Remove what earlier runs have done and recorded, and nothing else."""
    plan = ledger.plan()
    for name in (plan[1] if plan is not None else frozenset()) | ledger.records().keys():
        sink.drop(name)
        ledger.forget(name)
    sink.reset()
    for name in (manifest.NAME, BAD_ROWS, PLAN, JOB):
        ledger.root.remove(name)


def _first_missing(path: Path | None) -> Path | None:
    """Return the first folder that would have to be made for a path."""
    if path is None:
        return None
    return next((each for each in [*reversed(path.absolute().parents), path.absolute()] if not each.exists()), None)
