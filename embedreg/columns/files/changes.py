"""One change of a column, staged file by file: which rows of each file are embedded, and what its new schema is."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.columns.files import rows as by_row
from embedreg.columns.files.folder import DataFiles, with_entries
from embedreg.columns.files.rows import Counts
from embedreg.columns.files.staging import Staging
from embedreg.columns.results import ColumnReport
from embedreg.columns.sources import Source, differs
from embedreg.columns.store import Options
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.core.kinds import kind_recorded
from embedreg.declaration import codec
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry, value_type
from embedreg.declaration.quantization import quantizer_of
from embedreg.errors import BadRowsError, MetadataError, SchemaError, StorageError, option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Change", "Known", "after", "classified", "stage"]

Known = Callable[["pa.Array"], "tuple[pa.Array, pa.Array, np.ndarray]"]
"""Looks up sources: (n,) known vectors, (n,) their digests, (n,) bool, which are known."""
_ROUNDS = 20  # listings of a dataset that others write to, until none of its files is new


@dataclass(frozen=True)
class Change:
    """A change of a column, the same for every file.

    Attributes:
        what: as in `ColumnReport.what`.
        key: identifies the change.
        entry: the declaration afterwards.
        config: the same with its function; loaded when a row has to be embedded.
        leave_out: columns that the files no longer have afterwards: of the old vectors and digests.
        anew: whether the vectors of all rows are made again; else those of the classes in `wanted`.
        wanted: as in `rows.needs`.
        stamp: classes that get a digest without being embedded.
        known: finds vectors that need not be embedded.
        previous: returns whether a file is put back as it was, for a rollback.
    """

    what: str
    key: str
    entry: Entry
    config: Callable[[], EmbeddingFunctionConfig]
    leave_out: tuple[str, ...] = ()
    anew: bool = False
    wanted: frozenset[str] = frozenset()
    stamp: frozenset[str] = frozenset()
    known: Known | None = None
    previous: Callable[[str], bool] | None = None

    @property
    def digest(self) -> str | None:
        """The column of digests afterwards."""
        return digests.column_of(self.entry.reserved)

    @functools.cached_property
    def source(self) -> Source:
        """What the vectors are embedded from."""
        return Source.of(self.entry)

    @property
    def prefix(self) -> str | None:
        """The part of its digests that names the function."""
        return digests.prefix_stored(self.entry.reserved)


def stage(staging: Staging, change: Change, options: Options) -> tuple[ColumnReport, list[Entry]]:
    """Stage all files that the change concerns; return the counts, and the dataset's declarations afterwards.

    Files that appear or change meanwhile are staged too.

    Raises:
        BadRowsError: rows failed under "raise", or too many. StorageError: it cannot be read or written, or others
            write to it without a pause. EmbedregError: as `embed_batches`.
    """
    start = time.perf_counter()
    files = staging.files
    entry = staging.begin(change.key, change.entry, options.resume)
    change = dataclasses.replace(change, entry=entry)
    plan = _Plan(staging, change, options)
    for left in reversed(range(_ROUNDS)):
        if not plan.round():
            break
        if not left:
            raise StorageError(f"{files.path} is being written to all the time.", "run it again in a quiet moment")
    report = plan.report(time.perf_counter() - start)
    return report, after(files.declared(), change)


def after(entries: Iterable[Entry], change: Change) -> list[Entry]:
    """Return declarations with that of the change instead of the old one, or at the end."""
    gone = {change.entry.vector_column, *change.leave_out}
    made: list[Entry] = []
    placed = False
    for each in entries:
        if each.vector_column not in gone:
            made.append(each)
        elif not placed:
            made.append(change.entry)
            placed = True
    return made if placed else [*made, change.entry]


class _Plan:
    """The run over the files of a change."""

    def __init__(self, staging: Staging, change: Change, options: Options) -> None:
        self.staging, self.files, self.change, self.options = staging, staging.files, change, options
        self.counts, self.bytes = Counts(), 0
        self.rows = 0  # of all files
        self._seen: dict[str, list[int]] = {}
        self._total: int | None = None
        self._before = 0
        self._reused = 0

    def round(self) -> bool:
        """Stage the files that are new or have changed since the last round; return whether there were any."""
        found = False
        names = self.files.names()
        if self._total is None:
            self._total = sum(unit.rows or 0 for name in names for unit in self.files.scan(name).units)
        for name in names:
            stamp = self.files.stamp(name)
            if stamp is None or self._seen.get(name) == stamp:
                continue
            found = True
            self._one(name, stamp)
            if self.files.stamp(name) == stamp:
                self._seen[name] = stamp
        return found

    def _one(self, name: str, stamp: list[int]) -> None:
        done = self.staging.done(name)
        if done is not None:
            self._reused += 1
            self.counts.add(Counts(**{k: v for k, v in done.model_dump().items() if k in Counts.__dataclass_fields__}))
            self.bytes += done.staged[2]
        elif self.change.previous is not None and self.change.previous(name):
            self.bytes += self.staging.stage_previous(name, stamp).staged[2]
        else:
            counts = Counts()
            if not self.change.anew and not self._concerned(name):
                counts.rows = sum(unit.rows or 0 for unit in self.files.scan(name).units)
            else:
                self.bytes += self._stage(name, stamp, counts)
            self.counts.add(counts)
        self._before = self.counts.rows
        self._progress(0)

    def _stage(self, name: str, stamp: list[int], counts: Counts) -> int:
        schema = self._schema(name)
        limit = 0 if self.options.on_error == "raise" else self.options.max_bad_rows

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in self.files.batches(name, None, self.options.batch_rows):
                yield self._remade(batch, schema, counts, name)
                bad = self.counts.bad_rows + counts.bad_rows
                if limit is not None and bad > limit:
                    some = [*self.counts.bad, *counts.bad]
                    raise BadRowsError(
                        f"{bad:,} row(s) have no vector, such as row {some[-1].row:,} of {name}: {some[-1].reason}.",
                        "on_error='null' keeps such rows with a null vector; max_bad_rows allows more",
                        tuple(each.row for each in some),
                    ).for_shell("--on-error null keeps such rows with a null vector; --max-bad-rows allows more")

        fill = self.files.fill
        return self.staging.stage(name, stamp, counts, lambda path: fill(path, name, schema, batches())).staged[2]

    def _concerned(self, name: str) -> bool:
        """Return whether a file has a row to embed or to stamp, or lacks the column or its declaration."""
        schema = self.files.schema(name)
        entry, digest = self.change.entry, self.change.digest
        self._refuse_missing(name, schema)
        needed = {entry.vector_column, *([] if digest is None else [digest])}
        if self.change.source.template is not None:
            needed.add(self.change.source.name)
        if not needed <= set(schema.names):
            return True
        for found, vector in self.classified(name):
            if by_row.needs(found, vector, self.change.wanted).any():
                return True
            if any(found[each].any() for each in self.change.stamp):
                return True
        return False

    def classified(self, name: str) -> Iterator[tuple[dict[str, Any], Any]]:
        """Yield the classes of the rows of a file, a batch at a time, with the vectors."""
        yield from classified(self.files, name, self.change.entry, self.options.batch_rows)

    def _schema(self, name: str) -> pa.Schema:
        """Return the new schema of a file."""
        import pyarrow as pa

        own = self.files.schema(name)
        self._refuse_missing(name, own)
        change, entry = self.change, self.change.entry
        others = [each for each in codec.entries(own.metadata) if each.vector_column not in change.leave_out]
        refuse_digest(entry, pa.schema([f for f in own if f.name not in change.leave_out]), others)
        fields = [field for field in own if field.name not in change.leave_out]
        place = next((n for n, field in enumerate(own) if field.name in change.leave_out), len(fields))
        names = [field.name for field in fields]
        if change.anew and (taken := {entry.vector_column, change.digest} & set(names)):
            taken_name = sorted(filter(None, taken))[0]
            raise SchemaError(
                f"{self.files.data.shown(name)} has a column {taken_name!r} already.", "choose another name"
            )
        if change.source.template is not None and change.source.name not in names:
            fields.insert(min(place, len(fields)), pa.field(change.source.name, pa.string()))
            place += 1
        if entry.vector_column not in names:
            value = {"float16": pa.float16(), "float64": pa.float64()}.get(
                str(value_type(entry.reserved)), pa.float32()
            )
            quantizer = quantizer_of(entry.reserved)
            usual = kind_recorded(entry.reserved).arrow_type(self._ndims(), value)
            kind = usual if quantizer is None else quantizer.type()
            fields.insert(min(place, len(fields)), pa.field(entry.vector_column, kind))
        else:
            self._refuse_other_type(next(field for field in fields if field.name == entry.vector_column))
        if change.digest is not None and change.digest not in names:
            fields.append(pa.field(change.digest, pa.string()))
        schema = pa.schema(fields, metadata=own.metadata)
        return with_entries(schema, after(self.files.own_entries(name), change))

    def _ndims(self) -> int:
        stated = self.change.entry.reserved.get("ndims")
        if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
            return stated
        return self.change.config().function.ndims()

    def _refuse_other_type(self, field: pa.Field) -> None:
        import pyarrow as pa

        kind, quantizer = kind_recorded(self.change.entry.reserved), quantizer_of(self.change.entry.reserved)
        fits, what = kind.holds(field.type), f"a list of {self._ndims()} floats"
        if quantizer is not None:
            value = quantizer.type().value_type
            fits, what = fits and field.type.value_type == value, f"a list of {quantizer.width} numbers of {value}"
        else:
            fits = fits and pa.types.is_floating(kind.value_type(field.type))
            what = what if kind.one_size else kind.described(self._ndims())
        if not fits or not field.nullable:
            raise SchemaError(
                f"column {field.name!r} is {field.type}{'' if field.nullable else ' without nulls'}, not {what} that "
                "may be null.",
                "change its model to another column: embedreg.columns.migrate(data, vector, function, name=...)",
            ).for_shell("embedreg column migrate DATA --vector V --to FUNCTION --name NEW writes to another column")

    def _refuse_missing(self, name: str, schema: pa.Schema) -> None:
        shown = self.files.data.shown(name)
        self.change.source.refuse_missing(schema.names, self.change.entry.vector_column, shown)

    def _remade(self, batch: pa.RecordBatch, schema: pa.Schema, counts: Counts, name: str) -> pa.RecordBatch:
        """Return a batch with its new columns."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        change, entry = self.change, self.change.entry
        source = change.source.values(batch)
        first, n = counts.rows, batch.num_rows
        digest = change.digest
        here = set(batch.schema.names) - set(change.leave_out)
        vector = batch.column(entry.vector_column) if entry.vector_column in here else None
        stored = batch.column(digest) if digest is not None and digest in here else None
        stamp = np.zeros(n, bool)
        if change.anew:
            todo = np.asarray(source.is_valid())
            if change.known is not None:
                vector, stored, known = change.known(source)
                todo &= ~known
        else:
            texts = change.source.stored(batch)
            found = by_row.classes(source, vector, stored, change.prefix, differs(texts, source))
            todo = by_row.needs(found, vector, change.wanted)
            for each in change.stamp:
                stamp |= found[each]
        made = by_row.made(
            change.config,
            schema.field(entry.vector_column).type,
            source,
            vector,
            stored,
            todo,
            stamp,
            change.prefix if digest is not None else None,
            counts,
            first,
            lambda rows: self._progress(first + rows),
        )
        new = {entry.vector_column: made.vector}
        if digest is not None and made.digest is not None:
            new[digest] = made.digest.cast(schema.field(digest).type)
        if change.source.template is not None:
            kind, texts = schema.field(change.source.name).type, change.source.stored(batch)
            anew = todo if texts is not None and not change.anew else np.ones(n, bool)
            kept = pa.nulls(n, kind) if texts is None else texts
            new[change.source.name] = pc.if_else(pa.array(anew), source.cast(kind), kept.cast(kind))
        columns = [new[field.name] if field.name in new else batch.column(field.name) for field in schema]
        self._progress(counts.rows)
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _progress(self, rows: int) -> None:
        if self.options.progress is not None:
            self.options.progress(self._before + rows, self._total)

    def report(self, seconds: float) -> ColumnReport:
        """Return what was done."""
        counts = self.counts
        notes = (f"{self._reused:,} file(s) were staged by an earlier run",) if self._reused else ()
        return ColumnReport(
            vector=self.change.entry.vector_column,
            what=self.change.what,
            rows=counts.rows,
            written=counts.written,
            embedded=counts.embedded,
            cached=counts.cached,
            stamped=counts.stamped,
            bytes_written=self.bytes,
            bad_rows=counts.bad_rows,
            bad=tuple(counts.bad),
            seconds=seconds,
            notes=notes,
        )


def refuse_digest(entry: Entry, schema: pa.Schema, others: Iterable[Entry]) -> None:
    """Raise if the digest column that a declaration names has another use: a stored declaration is untrusted.

    Raises:
        MetadataError: it is a column of another use or type.
    """
    digest = digests.column_of(entry.reserved)
    if digest is None:
        return
    used = {entry.source_column, entry.vector_column}
    for each in others:
        if each.vector_column != entry.vector_column:
            used |= {each.source_column, each.vector_column, digests.column_of(each.reserved) or ""}
    if digest in used or (digest in schema.names and not digests.is_stored(schema.field(digest))):
        raise MetadataError(
            f"column {digest!r} cannot hold the digests of {entry.vector_column!r}: it has another use.",
            option("embedreg attach declares the function again", "embedreg.attach"),
        )


def classified(files: DataFiles, name: str, entry: Entry, batch_rows: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield the classes of the rows of a file by their digests, a batch at a time, with the vectors or None."""
    digest, prefix = digests.column_of(entry.reserved), digests.prefix_stored(entry.reserved)
    schema = files.schema(name)
    refuse_digest(entry, schema, codec.entries(schema.metadata))
    source = Source.of(entry)
    source.refuse_missing(schema.names, entry.vector_column, files.data.shown(name))
    wanted = [*source.columns, entry.vector_column, *([digest] if digest is not None else [])]
    wanted += [] if source.template is None else [source.name]
    for batch in files.batches(name, wanted, batch_rows):
        here = batch.schema.names
        vector = batch.column(entry.vector_column) if entry.vector_column in here else None
        stored = batch.column(digest) if digest is not None and digest in here else None
        values = source.values(batch)
        yield by_row.classes(values, vector, stored, prefix, differs(source.stored(batch), values)), vector
