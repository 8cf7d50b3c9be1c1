"""Opening a job: what is to be read and written, what an earlier run has done of it, and what may not be mixed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.core import modality
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.datasets import places
from embedreg.datasets.places import INPUTS, Kind, Place, Target
from embedreg.datasets.reading import Reading
from embedreg.datasets.sources import Known, Source, open_source
from embedreg.datasets.storage import SCRATCH
from embedreg.declaration import codec, drift, manifest
from embedreg.declaration.fingerprint import fingerprint
from embedreg.embedding import schema as schemas
from embedreg.embedding.column import ZeroVectors, zero_policy
from embedreg.embedding.table import BATCH_ROWS, BadRow, OnError, embed_batches
from embedreg.errors import (
    ConfigError,
    DriftError,
    EmbedregError,
    InputError,
    MetadataError,
    SchemaError,
    StorageError,
    Words,
    option,
)
from embedreg.jobs import claims
from embedreg.jobs.ledger import BAD_ROWS, DONE, JOB, PLAN, RECORDS, Ledger, digest
from embedreg.jobs.lock import FOLDER as LOCK
from embedreg.jobs.lock import Lock
from embedreg.jobs.pieces import PIECE_ROWS, Outcome, Piece, cut_up, well_named
from embedreg.jobs.sinks import Sink, sink_for
from embedreg.jobs.stored import Done, is_output, refused, schema_of
from embedreg.jobs.work import JobSpec
from embedreg.registry import get_registry
from embedreg.support.atomic import remove_empty
from embedreg.support.display import plain
from embedreg.support.strict_json import Malformed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KINDS", "Opened", "kept_rows", "open_job"]

KINDS: tuple[Kind, ...] = ("parquet", "arrow", "jsonl", "csv", "lance", INPUTS)
_ANEW = option("write to another place; or --fresh starts anew", "resume=False")


def _or_anew(said: str, call: str) -> Words:
    """Return a hint that names an option, or beginning anew."""
    return option(said, call, "; ") + _ANEW


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
        """Leave the destination: no lock, no scratch, and nothing at all where nothing was done.

        A run that has lost the destination touches nothing.
        """
        if self.released:
            return
        root, mine, refused = self.ledger.root, self.lock.is_mine(), self.lock.held or self.lock.refused
        with contextlib.suppress(EmbedregError):  # what brought us here is the error to show; the next run sweeps too
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
        self.released = True

    def _is_kept(self) -> bool:
        with contextlib.suppress(EmbedregError):  # links in the place of our folders
            return self.ledger.is_begun() or self.ledger.root.exists(manifest.NAME)
        return True

    def _remove(self) -> None:
        """Remove the work of a job that did nothing, or whose file or table is made; what tells so goes last."""
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
        target: what it writes.
        ledger: what it records.
        claim: held until `close`.
        work: what a process needs to run a piece.
        pieces: all of them.
        done: what is recorded and still there, by output.
        removed: outputs that were removed, since their inputs are gone.
        appeared: whether the destination is there already: the run that made it was stopped right behind that.
        ended: what it came to, where that run has said so.
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
        self, outcomes: Sequence[Outcome], shown: int, counts: Mapping[str, int]
    ) -> tuple[list[tuple[str, BadRow]], str | None]:
        """Make the destination whole; return the first bad rows, and where all of them are listed.

        Raises:
            StorageError: it cannot be made, another run has taken over, or an input is not what it was.
        """
        if self.ended is not None:
            path = f"{self.target.name}.bad_rows.jsonl"
            return [], self.target.storage.shown(path) if counts["bad_rows"] else None
        self.claim.lock.check()
        self._refuse_changed()
        first, listed = self._list_bad_rows(outcomes, shown)
        if not self.appeared:
            self.work.sink.finish(self.work.schema, outcomes, lambda stamp: self._note_end(stamp, counts))
        if self.target.kind == "folder":
            text = (self.work.schema.metadata or {})[codec.KEY.encode()]
            self.target.storage.write(manifest.NAME, manifest.content(text), self.claim.lock.check)
        elif self.target.path is None and (stamp := claims.stamp(self.target)) is not None:
            self._note_end(stamp, counts)
        return first, listed

    def _note_end(self, stamp: list[Any], counts: Mapping[str, int]) -> None:
        """Record what is about to appear: the next run knows it, should this one be stopped while it clears up."""
        self.ledger.end(
            self.work.schema,
            columns=list(self.work.functions),
            source=str(self.work.source.place),
            inputs=digest(self.work.source.inputs),
            stamp=stamp,
            pieces=len(self.pieces),
            counts=dict(counts),
        )

    def _refuse_changed(self) -> None:
        """Look at the inputs again: a change behind the back of a job would give rows of two contents.

        Raises:
            StorageError: naming those that are not what they were when the job was planned.
        """
        changed = self.work.source.changed()
        if changed:
            some = ", ".join(plain(path) for path in changed[:3]) + (", ..." if len(changed) > 3 else "")
            raise StorageError(
                f"{len(changed):,} input(s) changed while the job ran: {some}.",
                "run the same command again, once nobody writes to them: only their pieces are done anew",
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
                f"{storage.shown(path)!r} is there and is not a list of bad rows.", "move it elsewhere, and run again"
            )
        with self.work.sink.list_bad_rows(self.target, path) as growing, growing.open("w", encoding="utf-8") as file:
            for source, bad in self.ledger.bad_rows(outputs):
                line = {"input": source, "row": bad.row, "column": bad.column, "key": bad.key, "reason": bad.reason}
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
    types: Mapping[str, str] | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
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
    claims.refuse_link(target)
    claims.refuse_overlap(place, target)
    sink = sink_for(target)
    ledger = Ledger(sink.root)
    there = ledger.is_begun()
    anew = not there or not resume or (force and target.kind == "folder" and claims.finished(target))
    ended = claims.ended(target, ledger) if resume and not force else None
    appeared = ended is None and not anew and claims.appeared(target, ledger)
    if ended is None and not appeared:
        try:
            claims.refuse_existing(target, ledger, force)
        except StorageError:
            if target.kind != "folder" and not there:
                _tidy(target, ledger)
            raise
    # of what is thrown away nothing is read: it may be what cannot be
    begun = None if anew or ended is not None else ledger.job()
    known, planned = (None if begun is None else _plan(ledger, place.kind)) or (None, frozenset[str]())
    sources = [] if declaration is None else [each.source_column for each in schemas.resolve(declaration)[1]]
    source = open_source(place, known, Reading.of(types, encoding, delimiter, sources))
    if target.kind != "folder":
        source = source.with_partitions()
    configs = _declared(source, declaration)
    if (embedded := modality.of_files(place.kind)) is not None:
        _refuse_others(place, embedded, configs)
    for config in configs:
        zero_policy(config.function, zero_vectors)
    if ended is not None:
        job = _of_end(ended, source, configs, target)
    elif begun is None:
        job = _begin(target, source, configs, declaration, piece_rows)
    else:
        job = begun
        _refuse_other(job, known, source, configs, target)
    names = {"full_names": job.get("full_names", False), "by_rows": bool(job.get("by_rows"))}
    pieces = [] if ended is not None else cut_up(source.inputs, job["piece_rows"], **names)
    _refuse_names(pieces)
    functions = {each.vector_column: each.function for each in configs}
    path = None if cache is None else str(cache)
    before = ledger.stamp()
    # Nothing has been written so far. From here on the destination is this run's.
    lock = Lock(sink.root)
    claim = Claim(target, ledger, lock, _first_missing(sink.root.local))
    held.callback(claim.release)
    lock.acquire()
    ledger.root.sweep()  # before the ledger is looked at: what a run that lost the lock may still publish goes with it
    if ledger.stamp() != before or (begun is not None and ledger.job() != begun):
        raise StorageError(f"another run has begun or ended on {target} meanwhile.", "run the same command again")
    claim.keep = not anew or ended is not None
    ledger.check, sink = lock.check, sink.held(lock.right)
    work = JobSpec(source, sink, job["schema"], functions, on_error, batch_rows, path, zero_vectors)
    if ended is not None:
        return Opened(target, ledger, claim, work, [], {}, ended=ended, begun_before=True)
    if anew:
        _wipe(ledger, sink, pieces, target)
        ledger.begin(**job)
    sink.prepare(job["schema"])
    done, removed = _taken_up(ledger, sink, source, pieces, planned, prune, appeared)
    if appeared and (removed or len(done) < len(pieces)):
        raise claims.exists(target)
    _refuse_other_policy(done.values(), on_error, zero_vectors)
    if known is None or not _same_plan(known, planned, source, pieces):
        ledger.keep_plan(source.schema, source.inputs, pieces, source.reading)
    return Opened(target, ledger, claim, work, pieces, done, removed, appeared, None, not anew)


def _tidy(target: Target, ledger: Ledger) -> None:
    """Remove the empty folders, and the lock, of a run that was stopped behind the last of its work."""
    root = ledger.root
    if root.local is None or not root.local.is_dir():
        return
    claim = Claim(target, ledger, Lock(root), None, keep=False)
    with contextlib.suppress(EmbedregError):  # another run is at work there, or it is none of ours
        try:
            claim.lock.acquire()
        finally:
            claim.release()


def _plan(ledger: Ledger, kind: Kind) -> tuple[Known, frozenset[str]] | None:
    """Return the plan of an earlier run; None where there is none that can be one of this source's."""
    found = ledger.plan()
    numbered = found is not None and kind in ("parquet", "arrow")  # their units are numbered, each has some bytes
    inputs = found[0].inputs.values() if found is not None and numbered else ()
    return None if any(unit.stop > max(each.size, 1) for each in inputs for unit in each.units) else found


def _refuse_names(pieces: Sequence[Piece]) -> None:
    """Refuse inputs whose names cannot be those of outputs, before anything is embedded.

    Raises:
        StorageError: naming the first; on an object store a key may be anything. Two of them would have one name:
            an input came to a job that was begun without it, as `a.csv.gz` beside `a.csv`.
    """
    inputs: dict[str, str] = {}
    for piece in pieces:
        other = inputs.setdefault(piece.output.casefold(), piece.input.path)
        if other != piece.input.path:
            raise StorageError(f"{other} and {piece.input.path} would have one output: {piece.output}.", _ANEW)
        if not is_output(piece.output):
            raise StorageError(
                f"the input {piece.input.path[:200]!r} has a name that no output can have.",
                "rename it: no '..', no backslash, no control character, valid Unicode",
            )


def _of_end(ended: Done, source: Source, configs: Sequence[EmbeddingFunctionConfig], target: Target) -> dict[str, Any]:
    """Return what a job was begun with whose file or table is made, and only to be cleared up after.

    Raises:
        DriftError, SchemaError: it was made by another configuration. StorageError: of other inputs.
    """
    try:
        job = {"schema": schema_of(ended.schema_), "columns": ended.columns}
    except Malformed:
        raise claims.exists(target) from None
    _refuse_other(job, None, source, configs, target)
    if ended.inputs != digest(source.inputs):
        raise claims.exists(target)
    return job


def kept_rows(dst: str, storage_options: Mapping[str, Any] | None = None, filesystem: Any = None) -> int | None:
    """Return how many rows a destination's records hold already; None where no job was begun there."""
    with contextlib.suppress(EmbedregError):
        target = places.destination(dst, options=storage_options, filesystem=filesystem)
        root = sink_for(target).root
        return sum(each.rows for each in Ledger(root).records().values()) if root.exists(JOB) else None
    return None


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
        configs = get_registry().parse_functions(source.schema.metadata).every()
    if not configs:
        raise MetadataError(
            f"nothing declares how {source.place} is to be embedded.",
            "embedreg.embed(src, dst, fn.bind('text', 'vector'))",
        ).for_shell("--function NAME says how (embedreg functions lists the names)")
    return list(configs)


def _refuse_others(place: Place, held: modality.Modality, configs: Sequence[EmbeddingFunctionConfig]) -> None:
    """Refuse to embed the names of images in place of the images.

    Raises:
        InputError: a function that takes texts, or does not say what it takes.
    """
    for config in configs:
        embedded, name = modality.modalities(config.function), type(config.function).__name__
        if held in embedded:
            continue
        if modality.ANY in embedded:
            what, hint = "does not say that it embeds them", f"traits = embedreg.Traits(modality={held.name!r})"
        else:
            what = f"embeds {' or '.join(each.plural for each in embedded)}"
            some = ": open-clip" if held is modality.IMAGE else ""
            hint = f"embedreg functions lists those that take {place.kind}{some}"
        raise InputError(f"{place} holds {place.kind}, and {name} {what}.", hint)


def _begin(
    target: Target, source: Source, configs: Sequence[EmbeddingFunctionConfig], declaration: Any, piece_rows: int | None
) -> dict[str, Any]:
    """Settle what holds for every piece: the schema with its declarations, probes included, and the names."""
    how = declaration if declaration is not None else schemas.Resolved(None, list(configs))
    declared = embed_batches(_no_rows(source.schema), how).schema  # what does not fit is told before a model is loaded
    _refuse_unwritable(declared, target)
    for config in configs:
        if config.vector_column not in source.schema.names and source.rows != 0:
            drift.learn(config.function, codec.declared_by(config))
    rows = piece_rows or PIECE_ROWS
    return {
        "schema": embed_batches(_no_rows(source.schema), how).schema,
        "columns": [config.vector_column for config in configs],
        "source": str(source.place),
        "piece_rows": rows,
        "full_names": not well_named(cut_up(source.inputs, rows)),
        "by_rows": True,
        "before": claims.stamp(target),
    }


def _no_rows(schema: pa.Schema) -> pa.RecordBatchReader:
    """Return data without rows; Arrow makes no empty table of tensors or unions."""
    import pyarrow as pa

    return pa.RecordBatchReader.from_batches(schema, iter(()))


def _refuse_unwritable(schema: pa.Schema, target: Target) -> None:
    """Refuse columns that Parquet cannot hold, which all pieces but Lance's are.

    Raises:
        SchemaError: naming the column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if target.kind == "lance":
        return
    for item in schema:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([item])).close()
            if not pa.types.is_fixed_size_list(item.type) or item.type.list_size:
                continue
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            pass
        raise SchemaError(
            f"column {plain(item.name, 80)!r} is {item.type}, which Parquet cannot hold.",
            "cast the column to another type, or leave it out",
        ) from None


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
    entries = {entry.vector_column: entry for entry in codec.entries(job["schema"].metadata)}
    if any(
        config.vector_column not in entries or config.vector_column not in job["schema"].names for config in configs
    ):
        raise refused(f"what {target} was begun with", "its schema does not declare its columns")
    for config in configs:
        entry = entries[config.vector_column]
        same = codec.says_same(config, entry) or entry.reserved.get("fingerprint") == fingerprint(config.function)
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
    files = sink.listing()
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
            option("put them back; or --prune removes what became of them", "prune=True"),
        )
    for name in sorted(stale):
        ledger.check_now()
        sink.drop(name)
        ledger.forget(name)
    return done, tuple(sorted(name for name in stale if name in records))


def _refuse_other_policy(done: Iterable[Outcome], on_error: OnError, zero_vectors: ZeroVectors | None) -> None:
    """Refuse to keep bad rows, or vectors of zeros, in one part of the data and not in another."""
    for outcome in done:
        if outcome.zeros and outcome.zero_vectors != zero_vectors:
            flag = f"--zero-vectors {outcome.zero_vectors}" if outcome.zero_vectors else "leaving --zero-vectors out"
            raise ConfigError(
                f"{outcome.piece.output} has {outcome.zeros:,} vector(s) of zeros under "
                f"zero_vectors={outcome.zero_vectors!r}, this run says {zero_vectors!r}.",
                _or_anew(f"{flag} goes on", f"zero_vectors={outcome.zero_vectors!r}"),
            )
        was = "drop" if outcome.written < outcome.rows else "null"
        if outcome.bad_rows and was != on_error:
            raise ConfigError(
                f"{outcome.piece.output} has {outcome.bad_rows:,} bad row(s) under on_error={was!r}, this run says "
                f"{on_error!r}.",
                _or_anew(f"--on-error {was} goes on", f"on_error={was!r}"),
            )


def _same_plan(known: Known, planned: frozenset[str], source: Source, pieces: Sequence[Piece]) -> bool:
    if known.reading != source.reading:
        return False
    return planned == {piece.output for piece in pieces} and list(known.inputs.values()) == list(source.inputs)


def _wipe(ledger: Ledger, sink: Sink, pieces: Sequence[Piece], target: Target) -> None:
    """Remove what earlier runs have done and recorded, and nothing else.

    The names of the records say what was done. The plan is looked at only for a piece that was published and not
    recorded yet; where it cannot be read, such a piece is found by its being there.

    Raises:
        StorageError: files are there that neither names.
    """
    root = ledger.root
    if not any(root.exists(name) for name in (JOB, PLAN, RECORDS, DONE)):
        return
    recorded = frozenset(ledger.recorded())
    plan = None
    with contextlib.suppress(EmbedregError):
        plan = ledger.plan()
    names = recorded | (frozenset() if plan is None else plan[1])
    if plan is None and target.kind == "folder":
        ours = names | {piece.output for piece in pieces}
        others = [file.path for file in root.listing() if file.path.endswith(".parquet") and file.path not in ours]
        if others := [path for path in others if not path.startswith(f"{manifest.FOLDER}/")]:
            raise StorageError(
                f"{target} holds {len(others):,} other file(s), such as {plain(others[0])}, and its plan is lost.",
                "remove them, or choose a folder that is new or empty",
            )
    for name in names:
        ledger.check_now()
        sink.drop(name)
        ledger.forget(name)
    sink.reset()
    root.remove_all(RECORDS)
    for name in (manifest.NAME, BAD_ROWS, PLAN, DONE, JOB):
        root.remove(name)


def _first_missing(path: Path | None) -> Path | None:
    """Return the first folder that would have to be made for a path."""
    if path is None:
        return None
    return next((each for each in [*reversed(path.absolute().parents), path.absolute()] if not each.exists()), None)
