"""The work of earlier runs on a destination: checks that this run may continue it, or its removal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow.quantized import QUANTIZED
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.datasets.sources import Known, Source
from embedreg.datasets.targets import Target
from embedreg.declaration import codec, manifest, templates
from embedreg.declaration.fingerprint import fingerprint
from embedreg.declaration.quantization import is_quantized, quantizer_of
from embedreg.embedding.column import ZeroVectors
from embedreg.embedding.table import OnError
from embedreg.errors import ConfigError, DriftError, EmbedregError, SchemaError, StorageError, Words, option
from embedreg.jobs.ledger import BAD_ROWS, DONE, JOB, PLAN, RECORDS, Ledger
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.sinks import Sink
from embedreg.jobs.stored import refused
from embedreg.support.display import plain

if TYPE_CHECKING:
    pass
__all__ = ["START_OVER", "completed", "refuse_other", "refuse_other_policy", "same_plan", "wipe"]

START_OVER = option("write to another place; or --fresh starts over", "resume=False")


def _or_start_over(text: str, call: str) -> Words:
    """Return a hint that names an option, or starting over."""
    return option(text, call, "; ") + START_OVER


def refuse_other(
    job: Mapping[str, Any],
    known: Known | None,
    source: Source,
    configs: Sequence[EmbeddingFunctionConfig],
    target: Target,
) -> None:
    """Raise if the configuration or the columns differ from those that the job was begun with.

    Raises:
        DriftError, SchemaError: it names the difference.
    """
    columns = [config.vector_column for config in configs]
    if sorted(columns) != sorted(job["columns"]):
        raise DriftError(
            f"{target} was begun to fill {', '.join(job['columns'])}, not {', '.join(columns)}.", START_OVER
        )
    entries = {entry.vector_column: entry for entry in codec.entries(job["schema"].metadata)}
    if any(
        config.vector_column not in entries or config.vector_column not in job["schema"].names for config in configs
    ):
        raise refused(f"the job record of {target}", "its schema does not declare its columns")
    for config in configs:
        entry = entries[config.vector_column]
        same = codec.says_same(config, entry) or entry.reserved.get("fingerprint") == fingerprint(config.function)
        same = same and config.template == entry.reserved.get(templates.KEY)
        if not same or config.source_column != entry.source_column:
            raise DriftError(
                f"{target} was begun with {entry.name!r} in another configuration: column {config.vector_column!r} "
                "would hold two kinds of vectors.",
                START_OVER,
            )
        began = entry.reserved.get("dtype") if is_quantized(entry.reserved) else None
        dtype = config.value_type if config.value_type in QUANTIZED else None
        if dtype != began and (dtype is not None or config.value_type is not None):
            raise DriftError(
                f"{target} was begun with {began or 'float'} values in column {config.vector_column!r}, not "
                f"{config.value_type}.",
                START_OVER,
            )
        stored = quantizer_of(entry.reserved)
        if stored is not None and config.ranges is not None and config.ranges != stored.ranges:
            raise DriftError(f"{target} was begun with other ranges for column {config.vector_column!r}.", START_OVER)
    if known is not None and not known.schema.equals(source.schema):
        before, now = ({f"{item.name}: {item.type}" for item in schema} for schema in (known.schema, source.schema))
        raise SchemaError(
            f"the columns of {source.place} are not those that {target} was begun with "
            f"({', '.join(sorted(before ^ now)) or 'another order'}).",
            START_OVER,
        )


def completed(
    ledger: Ledger,
    sink: Sink,
    source: Source,
    pieces: Sequence[Piece],
    planned: frozenset[str],
    prune: bool,
    appeared: bool,
) -> tuple[dict[str, Outcome], tuple[str, ...]]:
    """Return the pieces that are done and still valid, by output, and the outputs that were removed.

    Outputs of an earlier plan that this one lacks are removed: their inputs have changed or no longer exist.

    Raises:
        StorageError: inputs no longer exist, and `prune` is not set.
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
            f"{len(gone):,} input(s) that were embedded no longer exist: {some}.",
            option("restore them; or --prune removes their outputs", "prune=True"),
        )
    for name in sorted(stale):
        ledger.check_now()
        sink.drop(name)
        ledger.forget(name)
    return done, tuple(sorted(name for name in stale if name in records))


def refuse_other_policy(done: Iterable[Outcome], on_error: OnError, zero_vectors: ZeroVectors | None) -> None:
    """Raise if bad rows or vectors of zeros would be treated in two ways in one dataset."""
    for outcome in done:
        if outcome.zeros and outcome.zero_vectors != zero_vectors:
            flag = f"--zero-vectors {outcome.zero_vectors}" if outcome.zero_vectors else "leaving --zero-vectors out"
            raise ConfigError(
                f"{outcome.piece.output} has {outcome.zeros:,} vector(s) of zeros under "
                f"zero_vectors={outcome.zero_vectors!r}, this run has {zero_vectors!r}.",
                _or_start_over(f"{flag} continues", f"zero_vectors={outcome.zero_vectors!r}"),
            )
        was = "drop" if outcome.written < outcome.rows else "null"
        if outcome.bad_rows and was != on_error:
            raise ConfigError(
                f"{outcome.piece.output} has {outcome.bad_rows:,} bad row(s) under on_error={was!r}, this run has "
                f"{on_error!r}.",
                _or_start_over(f"--on-error {was} continues", f"on_error={was!r}"),
            )


def same_plan(known: Known, planned: frozenset[str], source: Source, pieces: Sequence[Piece]) -> bool:
    """Return whether the recorded plan still describes the source and its pieces."""
    if known.reading != source.reading:
        return False
    return planned == {piece.output for piece in pieces} and list(known.inputs.values()) == list(source.inputs)


def wipe(ledger: Ledger, sink: Sink, pieces: Sequence[Piece], target: Target) -> None:
    """Remove the outputs and records of earlier runs, and nothing else.

    The outputs are those that have a record. The plan adds pieces that were published but not recorded; if it cannot
    be read, such a piece is recognised by its name.

    Raises:
        StorageError: the folder holds other files than these.
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
