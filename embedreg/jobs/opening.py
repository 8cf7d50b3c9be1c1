"""`open_job`: begin a job, or continue one, after every check that needs no model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.arrow.templates import Template
from embedreg.core import modality
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.datasets import places, targets
from embedreg.datasets.places import INPUTS, Kind, Place
from embedreg.datasets.reading import Reading
from embedreg.datasets.sources import Known, Source, open_source
from embedreg.datasets.targets import Target
from embedreg.declaration import codec, drift, templates
from embedreg.declaration.entries import metadata_with_widths
from embedreg.declaration.quantization import KEY as QUANTIZATION
from embedreg.declaration.quantization import quantizer_of, record_of, refuse_in_lance
from embedreg.embedding import schema as schemas
from embedreg.embedding.column import ZeroVectors, zero_policy
from embedreg.embedding.quantizing import CALIBRATION_ROWS, learn_from
from embedreg.embedding.table import BATCH_ROWS, OnError, embed_batches
from embedreg.errors import ConfigError, EmbedregError, InputError, MetadataError, SchemaError, StorageError
from embedreg.jobs import claims, earlier
from embedreg.jobs.lance_sink import LanceSink, refuse_missing_lance, refuse_unstorable
from embedreg.jobs.ledger import JOB, Ledger, digest
from embedreg.jobs.lock import Lock
from embedreg.jobs.opened import Claim, Opened
from embedreg.jobs.pieces import PIECE_ROWS, Piece, cut_up, well_named
from embedreg.jobs.sinks import FileSink, FolderSink, Sink
from embedreg.jobs.stored import Done, is_output, schema_of
from embedreg.jobs.work import JobSpec
from embedreg.media.allowances import allow_images
from embedreg.registry import get_registry
from embedreg.support.display import plain
from embedreg.support.strict_json import Malformed

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["KINDS", "kept_rows", "open_job", "sink_for"]

KINDS: tuple[Kind, ...] = ("parquet", "arrow", "jsonl", "csv", "lance", INPUTS)


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
    """Begin a job, or continue the one that was begun there; arguments and errors as `embed`.

    Args:
        held: releases the claim on the destination at its end, unless `close` has done so. The caller passes it, so
            that a signal at any moment still leads to the release.
    """
    _check_policies(on_error, batch_rows, piece_rows)
    where: dict[str, Any] = {"options": storage_options, "filesystem": filesystem}
    place = places.find(src, KINDS, remote=True, **where)
    target = targets.destination(dst, **where)
    claims.refuse_link(target)
    claims.refuse_overlap(place, target)
    sink = sink_for(target)
    ledger = Ledger(sink.root)
    there = ledger.is_begun()
    fresh = not there or not resume or (force and target.kind == "folder" and claims.finished(target))
    ended = claims.ended(target, ledger) if resume and not force else None
    appeared = ended is None and not fresh and claims.appeared(target, ledger)
    if ended is None and not appeared:
        try:
            claims.refuse_existing(target, ledger, force)
        except StorageError:
            if target.kind != "folder" and not there:
                _tidy(target, ledger)
            raise
    # a job that is dropped is not read: it may be unreadable
    begun = None if fresh or ended is not None else ledger.job()
    known, planned = (None if begun is None else _plan(ledger, place.kind)) or (None, frozenset[str]())
    given = [] if declaration is None else schemas.resolve(declaration)[1]
    sources = [each.source_column for each in given if each.template is None]
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
        earlier.refuse_other(job, known, source, configs, target)
    names = {"full_names": job.get("full_names", False), "by_rows": bool(job.get("by_rows"))}
    pieces = [] if ended is not None else cut_up(source.inputs, job["piece_rows"], **names)
    _refuse_names(pieces)
    functions = {each.vector_column: each.function for each in configs}
    path = None if cache is None else str(cache)
    before = ledger.stamp()
    # Nothing has been written so far. From here on this run owns the destination.
    lock = Lock(sink.root)
    claim = Claim(target, ledger, lock, _first_missing(sink.root.local))
    held.callback(claim.release)
    lock.acquire()
    ledger.root.sweep()  # before the ledger is read: it also removes what a run that lost the lock may still publish
    if ledger.stamp() != before or (begun is not None and ledger.job() != begun):
        raise StorageError(f"another run has begun or ended on {target} meanwhile.", "run the same command again")
    claim.keep = not fresh or ended is not None
    ledger.check, sink = lock.check, sink.held(lock.right)
    work = JobSpec(source, sink, job["schema"], functions, on_error, batch_rows, path, zero_vectors)
    if ended is not None:
        return Opened(target, ledger, claim, work, [], {}, ended=ended, begun_before=True)
    if fresh:
        earlier.wipe(ledger, sink, pieces, target)
        ledger.begin(**job)
    sink.prepare(job["schema"])
    done, removed = earlier.completed(ledger, sink, source, pieces, planned, prune, appeared)
    if appeared and (removed or len(done) < len(pieces)):
        raise claims.exists(target)
    earlier.refuse_other_policy(done.values(), on_error, zero_vectors)
    if known is None or not earlier.same_plan(known, planned, source, pieces):
        ledger.keep_plan(source.schema, source.inputs, pieces, source.reading)
    return Opened(target, ledger, claim, work, pieces, done, removed, appeared, None, not fresh)


def _tidy(target: Target, ledger: Ledger) -> None:
    """Remove the empty folders and the lock of a run that was stopped after its last write."""
    root = ledger.root
    if root.local is None or not root.local.is_dir():
        return
    claim = Claim(target, ledger, Lock(root), None, keep=False)
    with contextlib.suppress(EmbedregError):  # another run holds it, or it is not a folder of embedreg
        try:
            claim.lock.acquire()
        finally:
            claim.release()


def _plan(ledger: Ledger, kind: Kind) -> tuple[Known, frozenset[str]] | None:
    """Return the plan of an earlier run; None if there is none that is possible for this source."""
    found = ledger.plan()
    numbered = found is not None and kind in ("parquet", "arrow")  # each unit has a number and at least one byte
    inputs = found[0].inputs.values() if found is not None and numbered else ()
    return None if any(unit.stop > max(each.size, 1) for each in inputs for unit in each.units) else found


def _refuse_names(pieces: Sequence[Piece]) -> None:
    """Raise if outputs cannot be named after their inputs, before anything is embedded.

    Raises:
        StorageError: a name is invalid (the key of an object may be any text), or two outputs would share a name:
            `a.csv.gz` was added beside `a.csv` after the job was begun.
    """
    inputs: dict[str, str] = {}
    for piece in pieces:
        other = inputs.setdefault(piece.output.casefold(), piece.input.path)
        if other != piece.input.path:
            raise StorageError(
                f"{other} and {piece.input.path} would have one output: {piece.output}.", earlier.START_OVER
            )
        if not is_output(piece.output):
            raise StorageError(
                f"the name of the input {piece.input.path[:200]!r} is invalid for an output.",
                "rename it: no '..', backslash or control character, and valid Unicode",
            )


def _of_end(ended: Done, source: Source, configs: Sequence[EmbeddingFunctionConfig], target: Target) -> dict[str, Any]:
    """Return the settings of a job whose file or table is published and whose working files remain.

    Raises:
        DriftError, SchemaError: it was made with another configuration. StorageError: from other inputs.
    """
    try:
        job = {"schema": schema_of(ended.schema_), "columns": ended.columns}
    except Malformed:
        raise claims.exists(target) from None
    earlier.refuse_other(job, None, source, configs, target)
    if ended.inputs != digest(source.inputs):
        raise claims.exists(target)
    return job


def kept_rows(dst: str, storage_options: Mapping[str, Any] | None = None, filesystem: Any = None) -> int | None:
    """Return how many rows are recorded at a destination; None if no job was begun there."""
    with contextlib.suppress(EmbedregError):
        target = targets.destination(dst, options=storage_options, filesystem=filesystem)
        root = sink_for(target).root
        return sum(each.rows for each in Ledger(root).records().values()) if root.exists(JOB) else None
    return None


def _check_policies(on_error: str, batch_rows: int, piece_rows: int | None) -> None:
    if on_error not in ("raise", "null", "drop"):
        raise ConfigError(f"invalid on_error={on_error!r}.", "on_error='raise', 'null' or 'drop'")
    for name, value in (("batch_rows", batch_rows), ("piece_rows", piece_rows)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"invalid {name}={value!r}, expected a positive number of rows.", f"{name}={BATCH_ROWS}")


# -- beginning and continuing ------------------------------------------------------------------------------------------


def _declared(source: Source, declaration: Any) -> list[EmbeddingFunctionConfig]:
    """Return the declarations to use: those that were passed, else those of the source."""
    if declaration is not None:
        configs = schemas.resolve(declaration)[1]
    else:
        configs = get_registry().parse_functions(metadata_with_widths(source.schema)).every()
    if not configs:
        raise MetadataError(
            f"no declaration for {source.place}: it carries none, and none was passed.",
            "embedreg.embed(src, dst, fn.bind('text', 'vector'))",
        ).for_shell("--function NAME chooses a function (embedreg functions lists the names)")
    return list(configs)


def _refuse_others(place: Place, held: modality.Modality, configs: Sequence[EmbeddingFunctionConfig]) -> None:
    """Raise if a function would embed the names of image files instead of the images.

    Raises:
        InputError: a function takes texts, or does not declare what it takes.
    """
    for config in configs:
        embedded, name = modality.modalities(config.function), type(config.function).__name__
        if held in embedded:
            continue
        if modality.ANY in embedded:
            what, hint = "does not declare that it embeds them", f"traits = embedreg.Traits(modality={held.name!r})"
        else:
            what = f"embeds {' or '.join(each.plural for each in embedded)}"
            some = ": open-clip" if held is modality.IMAGE else ""
            hint = f"embedreg functions lists those that take {place.kind}{some}"
        raise InputError(f"{place} holds {place.kind}, and {name} {what}.", hint)


def _begin(
    target: Target, source: Source, configs: Sequence[EmbeddingFunctionConfig], declaration: Any, piece_rows: int | None
) -> dict[str, Any]:
    """Return the settings of a new job, for every piece: the schema with declarations and probes, and the names."""
    how = declaration if declaration is not None else schemas.Resolved(None, list(configs))
    declared = embed_batches(_no_rows(source.schema), how).schema  # errors are raised before a model is loaded
    _refuse_unwritable(declared, target)
    for config in configs:
        if config.vector_column not in source.schema.names and source.rows != 0:
            drift.learn(config.function, codec.declared_by(config))
    rows = piece_rows or PIECE_ROWS
    return {
        "schema": _with_ranges(embed_batches(_no_rows(source.schema), how).schema, source, configs),
        "columns": [config.vector_column for config in configs],
        "source": str(source.place),
        "piece_rows": rows,
        "full_names": not well_named(cut_up(source.inputs, rows)),
        "by_rows": True,
        "before": claims.stamp(target),
    }


def _with_ranges(schema: pa.Schema, source: Source, configs: Sequence[EmbeddingFunctionConfig]) -> pa.Schema:
    """Return a job's schema with the ranges of quantised columns, which all pieces use, learnt from its first rows."""
    made = []
    for entry in codec.entries(schema.metadata):
        config = next((each for each in configs if each.vector_column == entry.vector_column), None)
        how = None if config is None else quantizer_of(entry.reserved)
        if config is None or how is None or how.known:
            made.append(entry.raw)
            continue
        _refuse_given(source, entry.vector_column)
        template = templates.stored(entry)
        names = [entry.source_column] if template is None else list(template.columns)
        batches = source.batches(names, CALIBRATION_ROWS)
        parts = (_inputs(batch, template) for batch in batches)
        with contextlib.ExitStack() as stack:
            if modality.files_of(source.place.kind) is not None:  # naming the folder is the permission
                stack.enter_context(allow_images(dirs=[source.place.storage.full("")]))
            ranges = learn_from(codec.recorded(entry, config.function), parts).ranges
        made.append(entry.raw if ranges is None else entry.recording({QUANTIZATION: record_of(ranges)}).raw)
    return schema.with_metadata({**(schema.metadata or {}), codec.KEY.encode(): f"[{', '.join(made)}]".encode()})


def _inputs(batch: pa.RecordBatch, template: Template | None) -> pa.Array:
    """Return what is embedded of a batch that has the source column, or those that the template reads."""
    if template is None:
        return batch.column(0)
    return template.render({name: batch.column(name) for name in template.columns})


def _refuse_given(source: Source, vector: str) -> None:
    """Raise if a column to be quantised holds vectors already.

    Raises:
        SchemaError: it does.
    """
    if vector in source.schema.names:
        raise SchemaError(
            f"column {plain(vector, 80)!r} of {source.place} holds vectors already, and no ranges to quantise them by.",
            "fn.bind('text', 'vector', dtype='int8', ranges=...), or write to another column",
        ).for_shell("--vector NAME writes to another column")


def _no_rows(schema: pa.Schema) -> pa.RecordBatchReader:
    """Return data without rows; Arrow cannot make an empty table of tensors or unions."""
    import pyarrow as pa

    return pa.RecordBatchReader.from_batches(schema, iter(()))


def _refuse_unwritable(schema: pa.Schema, target: Target) -> None:
    """Raise if Parquet, or Lance for a table of its own, cannot hold a column.

    Raises:
        SchemaError: it names the column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if target.kind == "lance":
        for entry in codec.entries(schema.metadata):
            refuse_in_lance(entry.reserved.get("dtype"), entry.vector_column)
        refuse_unstorable(schema)
        return
    for item in schema:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([item])).close()
            if not pa.types.is_fixed_size_list(item.type) or item.type.list_size:
                continue
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # Arrow raises either for a type without a Parquet form
            pass
        raise SchemaError(
            f"column {plain(item.name, 80)!r} is {item.type}, which Parquet cannot hold.",
            "cast the column to another type, or leave it out",
        ) from None


def sink_for(target: Target) -> Sink:
    """Return the sink of a destination; for a file or table it writes pieces beside it, under a hidden name."""
    if target.kind == "folder":
        return FolderSink(target.storage)
    if target.kind == "lance":
        target.storage.refuse_for_lance()
        refuse_missing_lance()  # before anything is written
    beside = target.storage.inside(f".{target.name}.embedreg")
    return LanceSink(beside, target) if target.kind == "lance" else FileSink(beside, target=target)


def _first_missing(path: Path | None) -> Path | None:
    """Return the first folder that would have to be made for a path."""
    if path is None:
        return None
    return next((each for each in [*reversed(path.absolute().parents), path.absolute()] if not each.exists()), None)
