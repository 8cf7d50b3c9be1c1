"""Fill the vector columns of tables and streams: given vectors stay, failed rows are reported.

Over 400 lines: one run over batches, whose plan, reports and policies are used together.
"""

from __future__ import annotations

import itertools
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from embedreg.arrow import casting, inputs, layouts
from embedreg.arrow.declared import Expected, as_declared, made_column
from embedreg.arrow.quantized import Ranges
from embedreg.arrow.templates import Template, refuse_type
from embedreg.arrow.values import Defaults
from embedreg.arrow.vectors import Embedded
from embedreg.core import modality
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.core.kinds import kind_of
from embedreg.declaration import codec, digest, drift, templates
from embedreg.declaration.entries import metadata_with_widths
from embedreg.declaration.fingerprint import fingerprint
from embedreg.embedding import quantizing
from embedreg.embedding import schema as schemas
from embedreg.embedding.column import (
    ZeroVectors,
    broken_texts,
    embed_column,
    embed_query,
    fit_float16,
    readable,
    zero_policy,
)
from embedreg.embedding.quantizing import Agree
from embedreg.errors import (
    BadRowsError,
    ConfigError,
    DriftError,
    InputError,
    MissingColumnError,
    SchemaError,
    Words,
    in_shell,
)
from embedreg.registry import get_registry
from embedreg.runtime.remote.usage import TotalUsage, collect
from embedreg.support.display import plain
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["BadRow", "Report", "embed_batches", "embed_column", "embed_query", "embed_table"]

OnError = Literal["raise", "null", "drop"]
Progress = Callable[[int, int | None], None]

BATCH_ROWS = 8192  # enough for a local model to sort by length, 12 MB of 384-dimensional vectors
SHOWN = 5  # bad rows listed in a message
_KEY_COLUMNS = ("id", "_id", "key", "uuid", "path", "file", "file_name", "filename", "url", "name")
_KEY_SHOWN = 200  # characters


@dataclass(frozen=True)
class BadRow:
    """A row whose own input could not be embedded.

    Attributes:
        row: its index in the data, from 0.
        column: the source column.
        reason: why, without the input itself.
        key: an identifier of the row, such as "id=17" or "path=photos/a.jpg"; None without such a column.
    """

    row: int
    column: str
    reason: str
    key: str | None = None


@dataclass
class Report:
    """The counts and bad rows of a run; pass one as `report=` and read it afterwards.

    Attributes:
        rows: rows seen.
        embedded: vectors of distinct inputs, computed or from the vector cache.
        cached: how many of these came from the vector cache.
        given: vectors already in the data, which were left unchanged.
        nulls: vectors that are null because the input is null or blank.
        zeros: rows whose vector is all zeros. `zero_vectors` applies to computed ones; given ones stay.
        bad: the rows that failed.
        usage: what remote functions cost: requests, retries, inputs, tokens, seconds waited for a budget.
        clipped: numbers outside the ranges of "int8" and "uint8" columns, which were clipped.
    """

    rows: int = 0
    embedded: int = 0
    cached: int = 0
    given: int = 0
    nulls: int = 0
    zeros: int = 0
    bad: list[BadRow] = field(default_factory=list)
    usage: TotalUsage = field(default_factory=TotalUsage)
    clipped: int = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {"usage": TotalUsage(), "clipped": 0} | state  # pickles of earlier versions have none


def embed_table(
    data: Any,
    schema: Any = None,
    *,
    on_error: OnError = "raise",
    zero_vectors: ZeroVectors | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
    max_bad_rows: int | None = None,
    batch_rows: int | None = None,
) -> pa.Table:
    """Return the data as one table with its vector columns filled in.

    Arguments and errors are those of `embed_batches`, except that without `batch_rows` all data is one batch: each
    distinct input is embedded once, and a local model can sort all inputs by length.
    """
    import pyarrow as pa

    report = report if report is not None else Report()
    before = report.embedded
    options = (on_error, zero_vectors, report, progress, max_bad_rows, batch_rows)
    with collect(report.usage):
        plan, batches = _stream(data, schema, *options, whole=True)
    made = pa.Table.from_batches(batches, plan.schema)
    if report.embedded > before:
        with collect(report.usage):
            for config in plan.configs:
                drift.learn(config.function, plan.recorded(config))
        made = made.replace_schema_metadata(plan.declare(plan.schema).metadata)
    return made


def embed_batches(
    data: Any,
    schema: Any = None,
    *,
    on_error: OnError = "raise",
    zero_vectors: ZeroVectors | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
    max_bad_rows: int | None = None,
    batch_rows: int = BATCH_ROWS,
) -> pa.RecordBatchReader:
    """Fill the vector columns of a stream, a batch at a time; memory is bounded by the batch.

    Args:
        data: anything column-like; see `inputs.batches_of`.
        schema: declares the functions; see `schema.resolve`. None: use the data's own metadata.
        on_error: what a failed row does: "raise" an error, leave a "null" vector, or "drop" the row. A failed call
            (model, memory, network, key) always raises.
        zero_vectors: the policy for computed vectors of zeros: "null", "keep", or "error", which fails the row. None
            selects "null" if the function's metric is cosine, else "keep".
        report: collects counts and the bad rows.
        progress: called with the rows done and the total, None for a stream of unknown length.
        max_bad_rows: how many rows may fail before the run stops.
        batch_rows: the upper bound of a batch, in rows.
    Returns:
        A reader of the data's columns with absent, null and partly null vector columns filled; given vectors stay.
        Null and blank inputs have null vectors. Its schema metadata carries the declarations.
    Raises:
        MissingColumnError: a source column is missing. BadRowsError: rows failed under "raise", or too many failed.
        SchemaError, InputError, VectorError, MetadataError: invalid data or declarations.
    """
    return embed_agreed(
        data,
        schema,
        None,
        on_error=on_error,
        zero_vectors=zero_vectors,
        report=report,
        progress=progress,
        max_bad_rows=max_bad_rows,
        batch_rows=batch_rows,
    )


def embed_agreed(
    data: Any,
    schema: Any,
    agree: Agree | None,
    *,
    on_error: OnError = "raise",
    zero_vectors: ZeroVectors | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
    max_bad_rows: int | None = None,
    batch_rows: int = BATCH_ROWS,
) -> pa.RecordBatchReader:
    """Fill the vector columns of a stream as `embed_batches`, for a destination that has several writers.

    Args:
        agree: called with the ranges that were learnt, by vector column; returns those that the destination has
            accepted, which may be another writer's. It is not called where nothing is learnt.
    """
    import pyarrow as pa

    report = report if report is not None else Report()
    options = (on_error, zero_vectors, report, progress, max_bad_rows, batch_rows)
    with collect(report.usage):
        plan, batches = _stream(data, schema, *options, agree=agree)
    return pa.RecordBatchReader.from_batches(plan.schema, batches)


def _stream(
    data: Any,
    schema: Any,
    on_error: OnError,
    zero_vectors: ZeroVectors | None,
    report: Report,
    progress: Progress | None,
    max_bad_rows: int | None,
    batch_rows: int | None,
    *,
    whole: bool = False,
    agree: Agree | None = None,
) -> tuple[_Plan, Iterator[pa.RecordBatch]]:
    import pyarrow as pa

    if on_error not in ("raise", "null", "drop"):
        raise ConfigError(f"invalid on_error={on_error!r}.", "on_error='raise', 'null' or 'drop'")
    if batch_rows is not None and (isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1):
        raise ConfigError(
            f"invalid batch_rows={batch_rows!r}: expected a positive integer.", f"batch_rows={BATCH_ROWS}"
        )
    declared, configs = schemas.resolve(schema) if schema is not None else (None, [])
    total = inputs.total_rows(data)
    expected = Expected(
        declared,
        schemas.defaults_of(schema),
        frozenset(config.source_column for config in configs),
        frozenset(config.vector_column for config in configs),
        frozenset(config.source_column for config in configs if modality.accepted(config.function).only_texts),
    )
    own, batches = inputs.batches_of(data, expected, batch_rows or BATCH_ROWS, whole=whole)
    if batch_rows is None:
        table = pa.Table.from_batches(batches, own).combine_chunks()
        total, batches = table.num_rows, iter(table.to_batches())
    stored = codec.Functions(codec.entries(own.metadata))
    if schema is None or stored.entries:
        stored = get_registry().parse_functions(metadata_with_widths(own))
    if schema is None:
        configs = stored.every()
    if not configs:
        where = "the data declares" if schema is None else "the schema declares"
        raise SchemaError(
            f"{where} no embedding function, so there is no vector column to fill.",
            "pass fn.bind('source', 'vector'), or a Schema with SourceField() and VectorField()",
        )
    for config in configs:
        zero_policy(config.function, zero_vectors)  # raises for an unknown value before any model is loaded
    plan = _Plan(own, expected, configs, stored, total)
    run = _Run(report, on_error, zero_vectors, max_bad_rows, progress, total)
    batches = plan.learn_ranges(batches, run, agree)
    return plan, (filled for batch in batches if (filled := _fill(batch, plan, run)) is not None)


class _Plan:
    """The output schema of a run: columns as declared, vector columns to fill, merged metadata."""

    def __init__(
        self,
        own: pa.Schema,
        expected: Expected,
        configs: list[EmbeddingFunctionConfig],
        stored: codec.Functions,
        total: int | None,
    ) -> None:
        import pyarrow as pa

        self.defaults = expected.defaults
        declared = expected.schema
        # an entry for a column that the data lacks does not describe the new vectors, unless it is the declaration
        here = set(own.names) | (stored.entries.keys() - {config.vector_column for config in configs})
        self.stored = stored
        self.kept = [entry if column in here else entry.emptied() for column, entry in stored.entries.items()]
        self._unmixed: set[str] = set()
        self.configs = configs = [self._adopted(config, own) for config in configs]
        self._ready: dict[str, deque[Embedded]] = {}
        vectors = {config.vector_column for config in configs}
        for config in configs:
            if (template := templates.of(config)) is not None:
                templates.refuse_names(config.function)
                items = declared if declared is not None else []
                made = [item.name for item in items if item.nullable or item.name in self.defaults.made]
                template.refuse_missing(list(dict.fromkeys([*own.names, *made])), config.vector_column)
            elif config.source_column not in own.names:
                raise MissingColumnError(
                    f"the data has no column {config.source_column!r} to fill {config.vector_column!r} from "
                    f"(columns: {', '.join(own.names) or 'none'}).",
                    f"{did_you_mean(config.source_column, own.names)}name the source column when you declare the "
                    "function: fn.bind('source', 'vector')",
                ).for_shell(f"{did_you_mean(config.source_column, own.names)}--source NAME names the source column")
        fields = {item.name: item for item in own}
        if len(fields) < len(own):
            raise SchemaError("the data has two columns of one name.", "rename one of them")
        for item in declared if declared is not None else []:
            if item.name in vectors:
                continue
            if item.name in fields:
                fields[item.name] = fields[item.name].with_type(item.type).with_nullable(item.nullable)
            elif item.nullable or item.name in self.defaults.made:
                fields[item.name] = item
            else:
                raise MissingColumnError(
                    f"the data has no column {item.name!r}, which the schema requires.",
                    f"add it, or {item.name}: ... | None",
                )
        self.templates = {
            config.source_column: template for config in configs if (template := templates.of(config)) is not None
        }
        for name, template in self.templates.items():
            fields[name] = self._text_field(name, template, fields, declared)
        for config in configs:
            fields[config.vector_column] = self._vector_field(config, declared, fields.get(config.vector_column))
            if config.vector_column not in own.names and total != 0:
                # the function will be called anyway; given vectors need no model
                drift.learn(config.function, self.recorded(config))
        self.digests = {config.vector_column: self._digest_column(config, fields) for config in configs}
        self.schema = self.declare(pa.schema(list(fields.values()), metadata=own.metadata))

    @staticmethod
    def _text_field(name: str, template: Template, fields: dict[str, pa.Field], declared: pa.Schema | None) -> pa.Field:
        """Return the column of a template's texts, as the data or the schema has it.

        Raises:
            SchemaError: it holds something other than texts. InputError: the template reads a type without a text form.
        """
        import pyarrow as pa

        texts = pa.string(), pa.large_string()
        for column in template.columns:
            refuse_type(column, fields[column].type)
        large = any(fields[column].type in (pa.large_string(), pa.string_view()) for column in template.columns)
        made = pa.field(name, texts[large])
        if declared is not None and name in declared.names:
            made = declared.field(name)
        elif name in fields and not pa.types.is_null(fields[name].type):
            made = fields[name]
        if made.type not in texts or not made.nullable:
            kind = f"{made.type}{'' if made.nullable else ' not null'}"
            raise SchemaError(
                f"column {name!r} is {kind}, where the texts of a template would go.",
                "drop it, or choose another vector column",
            )
        return made

    def rendered(self, batch: pa.RecordBatch, first: int) -> pa.RecordBatch:
        """Return a batch with the texts of the templates, and the columns that they read and the data lacks."""
        for name, template in self.templates.items():
            for column in template.columns:
                if column not in batch.schema.names:
                    item = self.schema.field(column)
                    batch = batch.append_column(item, _cast(None, item, self.defaults, first, batch.num_rows))
            field = self.schema.field(name)
            texts = template.render({column: batch.column(column) for column in template.columns}).cast(field.type)
            if name in batch.schema.names:
                batch = batch.set_column(batch.schema.get_field_index(name), field, texts)
            else:
                batch = batch.append_column(field, texts)
        return batch

    def _adopted(self, config: EmbeddingFunctionConfig, own: pa.Schema) -> EmbeddingFunctionConfig:
        """Return a declaration with the dtype and ranges that the column of the data has."""
        entry = self.stored.entries.get(config.vector_column)
        if entry is None or config.vector_column not in own.names or not codec.says_same(config, entry):
            return config
        return codec.adopted(config, entry)

    def learn_ranges(
        self, batches: Iterator[pa.RecordBatch], run: _Run, agree: Agree | None
    ) -> Iterator[pa.RecordBatch]:
        """Learn the ranges of "int8" and "uint8" columns that have none, from the first rows; return all batches.

        Raises:
            VectorError: there are rows, and too few vectors.
        """
        todo = {config.vector_column: config for config in self.configs if quantizing.is_unknown(config)}
        if not todo:
            return batches
        first: list[pa.RecordBatch] = []
        while sum(batch.num_rows for batch in first) < quantizing.CALIBRATION_ROWS:
            if (batch := next(batches, None)) is None:
                break
            first.append(batch)
        if not any(batch.num_rows for batch in first):
            return iter(first)
        learnt: dict[str, Ranges] = {}
        for name, config in todo.items():
            vectors, computed = self._first_vectors(first, config, run)
            learnt[name] = Ranges.learnt(vectors)
            if computed is not None:
                self._ready[name] = deque(computed)
        agreed = learnt if agree is None else agree(learnt)
        self.configs = [
            codec.with_ranges(config, agreed[config.vector_column]) if config.vector_column in todo else config
            for config in self.configs
        ]
        self.schema = self.declare(self.schema)
        return itertools.chain(first, batches)

    def _first_vectors(
        self, batches: list[pa.RecordBatch], config: EmbeddingFunctionConfig, run: _Run
    ) -> tuple[np.ndarray, list[Embedded] | None]:
        """Return the vectors that the first batches hold; where they hold none, computed ones, with these by batch."""
        import numpy as np

        name, ndims = config.vector_column, config.function.ndims()
        given = name in batches[0].schema.names and any(each.column(name).null_count < len(each) for each in batches)
        if given:
            self.refuse_mixture(config)
            vectors = np.concatenate([quantizing.given_floats(each.column(name), ndims, name) for each in batches])
            if 2 * len(vectors) >= sum(len(each) for each in batches):
                return vectors, None
        on_window = run.progress_callback(len(self.configs))
        made, row = [], 0
        for each in batches:
            source = self.rendered(each, row).column(config.source_column)
            made.append(_embed_rows(config, source, run.zero_vectors, on_window))
            row += each.num_rows
        return np.concatenate([each.matrix[each.valid] for each in made]), None if given else made

    def take_ready(self, config: EmbeddingFunctionConfig) -> Embedded | None:
        """Return the vectors of the next batch that were computed to learn ranges from; None once there are none."""
        ready = self._ready.get(config.vector_column)
        return ready.popleft() if ready else None

    def declare(self, schema: pa.Schema) -> pa.Schema:
        """Return a schema with the current declarations; entries that cannot be rebuilt are kept."""
        if not self.configs and not self.kept:
            return schema
        info = {**(schema.metadata or {}), codec.KEY.encode(): codec.encode(self.configs, self.kept)}
        return schema.with_metadata(info)

    def recorded(self, config: EmbeddingFunctionConfig) -> dict[str, Any]:
        """Return the recorded properties of the column that a declaration adds to, including the probe."""
        entry = next((entry for entry in self.kept if entry.vector_column == config.vector_column), None)
        own = codec.declared_by(config)
        return entry.reserved if not own and entry is not None and codec.says_same(config, entry) else own

    def _digest_column(self, config: EmbeddingFunctionConfig, fields: dict[str, pa.Field]) -> tuple[str, str] | None:
        """Return the digest column that a declaration names, which the output gets, and the function's prefix."""
        import pyarrow as pa

        recorded = self.recorded(config)
        name, prefix = digest.column_of(recorded), digest.prefix_stored(recorded)
        own = None if name is None else fields.setdefault(name, pa.field(name, pa.string()))
        if name is None or prefix is None or own is None or not digest.is_stored(own):
            return None
        return name, prefix

    def refuse_mixture(self, config: EmbeddingFunctionConfig) -> None:
        """Raise if another function made the existing vectors of a column: it would mix two kinds of vectors."""
        entry = self.stored.entries.get(config.vector_column)
        if config.vector_column in self._unmixed or entry is None:
            return
        stored = self.stored.get(config.vector_column)
        if config.template != entry.reserved.get(templates.KEY):
            raise DriftError(
                f"column {config.vector_column!r} already holds vectors of "
                f"{'another template' if config.template is not None else 'a template'}.",
                "drop the column to embed it again, or write to another one",
            ).for_shell(f"write to another column: --vector {shlex.quote(config.vector_column + '_2')}")
        if not codec.says_same(config, entry) and (
            stored is None or fingerprint(stored.function) != fingerprint(config.function)
        ):
            raise DriftError(
                f"column {config.vector_column!r} already holds vectors of {entry.name!r} with another configuration.",
                "drop the column to embed it again, or write to another one: "
                f"fn.bind({config.source_column!r}, {config.vector_column + '_2'!r})",
            ).for_shell(f"write to another column: --vector {shlex.quote(config.vector_column + '_2')}")
        drift.verify_once(config.function, entry.reserved)
        self._unmixed.add(config.vector_column)

    @staticmethod
    def _vector_field(config: EmbeddingFunctionConfig, declared: pa.Schema | None, own: pa.Field | None) -> pa.Field:
        import pyarrow as pa

        ndims, kind = config.function.ndims(), kind_of(config.function)
        quantizer = codec.quantizer(config)
        if quantizer is not None:
            return quantizing.field_of(config, quantizer, declared, own)
        if declared is not None and config.vector_column in declared.names:
            wanted = declared.field(config.vector_column)
        elif own is not None and kind.of_fixed_width(own.type):
            wanted = own
        else:
            stated = config.function.vector_traits().get("dtype", "float32")
            name = str(config.value_type or stored_type(config) or stated)
            wide = name if name == "float16" or config.value_type == "float64" else "float32"
            value = {"float16": pa.float16(), "float64": pa.float64()}.get(wide if wide in kind.value_types else "")
            wanted = pa.field(config.vector_column, kind.arrow_type(ndims, value))
        kind.refuse_misfit(config.vector_column, wanted.type, ndims)
        return wanted


def stored_type(config: EmbeddingFunctionConfig) -> str | None:
    """Return the value type recorded in a declaration that was read; None for one made in this process."""
    entry = codec.entry_behind(config)
    return None if entry is None else codec.value_type(entry.reserved)


class _Run:
    """The counts, progress and bad-row policy of one run."""

    def __init__(
        self,
        report: Report,
        on_error: OnError,
        zero_vectors: ZeroVectors | None,
        max_bad_rows: int | None,
        progress: Progress | None,
        total: int | None,
    ) -> None:
        self.report = report
        self.on_error = on_error
        self.zero_vectors = zero_vectors
        self.max_bad_rows = max_bad_rows
        self.progress = progress
        self.total = total

    def progress_callback(self, functions: int) -> Callable[[int], None] | None:
        """Return a callback that converts one function's finished rows into progress of the whole batch."""
        if self.progress is None:
            return None
        done, progress = [float(self.report.rows)], self.progress

        def on_window(rows: int) -> None:
            done[0] += rows / functions
            progress(int(done[0]), self.total)

        return on_window

    def failed(self, bad: list[BadRow], strict: set[str]) -> None:
        """Apply the policy to the bad rows of a batch.

        Args:
            strict: non-nullable vector columns in which some of these rows have no vector; "null" is impossible there.
        """
        self.report.bad += bad
        no_null = ", ".join(sorted(strict)) if self.on_error == "null" else ""
        raising = self.on_error == "raise" or bool(no_null)
        limit = 0 if raising else self.max_bad_rows
        if limit is None or len(self.report.bad) <= limit:
            return
        what = "have" if raising else f"are over max_bad_rows={self.max_bad_rows}: these have"
        hint = Words(
            "on_error='null' keeps such rows with a null vector, on_error='drop' leaves them out; report= lists them",
            "--on-error null keeps such rows with a null vector, --on-error drop leaves them out",
        )
        if no_null:
            hint = Words(
                f"{no_null} allows no null: on_error='drop' leaves such rows out, Vector(n) keeps them",
                f"{no_null} allows no null: --on-error drop leaves such rows out",
            )
        count = f"{len(self.report.bad)} row(s) {what} no vector: "
        message = _by_reason(self.report.bad).changed(lambda text: f"{count}{text}.")
        raise BadRowsError(message, hint, tuple(item.row for item in self.report.bad))


def rows_in_words(rows: Sequence[str]) -> str:
    """Return 'row 3', or 'rows 0, 1, 2, 3, 4 and 495 more'."""
    more = f" and {len(rows) - SHOWN:,} more" if len(rows) > SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(rows[:SHOWN])}{more}"


def _by_reason(bad: list[BadRow]) -> Words:
    """Return the reasons of failed rows, each once with some of its rows."""
    rows: dict[tuple[str, str], list[int]] = {}
    for item in bad:
        rows.setdefault((item.column, item.reason), []).append(item.row)
    more = [f"and {len(rows) - SHOWN:,} more reasons so far"] if len(rows) > SHOWN else []
    shown = [
        (f"{rows_in_words([*map(str, numbers)])} ({column}): ", reason)
        for (column, reason), numbers in list(rows.items())[:SHOWN]
    ]
    return Words(
        "; ".join([*(where + str(reason) for where, reason in shown), *more]),
        "; ".join([*(where + in_shell(reason) for where, reason in shown), *more]),
    )


def _key(batch: pa.RecordBatch, row: int, config: EmbeddingFunctionConfig) -> str | None:
    """Return the name and value of a column that identifies a row: a key, or the name of its image."""
    names = modality.source_modality(config.function).string == "name"
    for name in (*_KEY_COLUMNS, *([config.source_column] if names else [])):
        if name in batch.schema.names and (names or name != config.source_column):
            value = casting.value_at(batch.column(name), row)
            if isinstance(value, str | int) and not isinstance(value, bool):
                shown = str(value).partition("?")[0]  # the query string of an address may hold a secret
                return f"{name}={plain(shown, _KEY_SHOWN)}"
    return None


def _fill(batch: pa.RecordBatch, plan: _Plan, run: _Run) -> pa.RecordBatch | None:
    """Fill one batch; return None if all its rows were dropped."""
    import numpy as np
    import pyarrow as pa

    first = run.report.rows
    columns: dict[str, Any] = {}
    given_texts = {name: batch.column(name) for name in plan.templates if name in batch.schema.names}
    batch = plan.rendered(batch, first)
    bad: dict[int, BadRow] = {}
    broken: set[str] = set()  # source columns with texts that are not valid Unicode
    strict: set[str] = set()  # non-nullable columns that would need a null
    on_window = run.progress_callback(len(plan.configs))
    for config in plan.configs:
        with collect(run.report.usage):
            filled, why, todo = _fill_column(batch, config, plan, run, on_window)
        columns[config.vector_column] = filled
        if todo is not None and config.source_column in given_texts:
            name = config.source_column
            columns[name] = _texts_beside(given_texts[name], batch.column(name), todo)
        if (named := plan.digests[config.vector_column]) is not None:
            columns[named[0]] = _stamped(batch, config, *named, plan, why, todo)
        if why and not plan.schema.field(config.vector_column).nullable:
            strict.add(config.vector_column)
        if why and broken_texts(batch.column(config.source_column)) is not None:
            broken.add(config.source_column)
        for row, reason in why.items():
            bad.setdefault(row, BadRow(first + row, config.source_column, reason, _key(batch, row, config)))
    run.report.rows += batch.num_rows
    if bad:
        run.failed([bad[row] for row in sorted(bad)], strict)
    for name in broken:  # readers would reject such a column: replace invalid Unicode, in rows that failed anyway
        batch = batch.set_column(batch.schema.get_field_index(name), name, readable(batch.column(name)))
    places = {name: place for place, name in enumerate(batch.schema.names)}
    for item in plan.schema:
        if item.name not in columns:
            place = places.get(item.name)
            given = None if place is None else batch.column(place)
            columns[item.name] = _cast(given, item, plan.defaults, first, batch.num_rows)
    made = pa.RecordBatch.from_arrays([columns[item.name] for item in plan.schema], schema=plan.schema)
    if run.progress is not None:
        run.progress(run.report.rows, run.total)
    if bad and run.on_error == "drop":
        keep = np.ones(batch.num_rows, bool)
        keep[list(bad)] = False
        made = layouts.kept_rows(made, keep)
    return made if made.num_rows or not bad else None


def _fill_column(
    batch: pa.RecordBatch,
    config: EmbeddingFunctionConfig,
    plan: _Plan,
    run: _Run,
    on_window: Callable[[int], None] | None,
) -> tuple[pa.Array, dict[int, str], np.ndarray | None]:
    """Fill a vector column; return it, the reasons of failed rows, and the rows that were computed (None: all)."""
    import numpy as np
    import pyarrow as pa

    target = plan.schema.field(config.vector_column)
    source = batch.column(config.source_column)
    kind, ndims = kind_of(config.function), config.function.ndims()
    value_type = kind.value_type(target.type)
    quantizer = codec.quantizer(config)
    own = batch.column(config.vector_column) if config.vector_column in batch.schema.names else None
    if own is not None and own.null_count < len(own):
        plan.refuse_mixture(config)
        if own.type == target.type and kind.complete(own, ndims):
            zeros = kind.zeros_in(own, ndims) if quantizer is None else 0
            if not zeros or run.zero_vectors != "error":
                run.report.given += len(own)
                run.report.zeros += zeros
                if on_window is not None:
                    on_window(len(own))
                return own, {}, np.zeros(0, np.int64)
        if quantizer is None:
            stored, own_valid, reasons = kind.given(own, ndims, config.vector_column, value_type)
            given = Embedded(stored, own_valid, kind=kind)
            zero = kind.zeros(given.vectors)
        else:
            given, reasons, clipped = quantizing.given_values(own, quantizer, config.vector_column)
            run.report.clipped += clipped
            zero = np.zeros(0, np.int64)  # stored zeros are not vectors of zeros
        zero = zero[given.valid[zero]]
        run.report.zeros += len(zero)
        if run.zero_vectors == "error":
            given.valid[zero] = False
            reasons |= dict.fromkeys(zero.tolist(), "its given vector is all zeros")
        missing = ~given.valid
        missing[list(reasons)] = False
        todo = np.flatnonzero(missing)
        run.report.given += int(given.valid.sum())
        if on_window is not None:
            on_window(len(own) - len(todo))
        source = layouts.taken(source, todo)
    else:
        given, reasons, todo = None, {}, None
    ready = plan.take_ready(config) if todo is None else None
    embedded = ready if ready is not None else _embed_rows(config, source, run.zero_vectors, on_window)
    if quantizer is not None:
        run.report.clipped += quantizer.outside(embedded.matrix[embedded.valid])
        embedded.matrix = quantizer.encode(embedded.matrix)
    elif pa.types.is_float16(value_type):
        fit_float16(config.function, embedded, run.zero_vectors)
    rows = todo if todo is not None else np.arange(len(source))
    reasons |= {int(rows[row]): reason for row, reason in embedded.reasons.items()}
    absent = ~embedded.valid
    absent[list(embedded.reasons)] = False
    zeros_null = None
    if embedded.zeros is not None:
        run.report.zeros += int(embedded.zeros.sum())
        zeros_null = absent & embedded.zeros
        absent &= ~embedded.zeros
    run.report.nulls += int(absent.sum())
    run.report.embedded += embedded.distinct
    run.report.cached += embedded.cached
    if not target.nullable:
        reasons |= {int(row): "null or blank where the vector column allows no null" for row in rows[absent]}
        if zeros_null is not None:
            why = "its vector is all zeros, and the vector column allows no null"
            reasons |= {int(row): why for row in rows[zeros_null]}
    if given is not None:
        given.vectors = kind.put(given.vectors, rows, embedded.vectors)
        given.valid[rows] = embedded.valid
        embedded = given
    return kind.to_arrow(embedded.vectors, embedded.valid, target.type), reasons, todo


def _texts_beside(given: pa.Array, rendered: pa.Array, todo: np.ndarray) -> pa.Array:
    """Return the texts of a template; a given vector keeps the text that it came with, so that `refresh` finds it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    computed = np.zeros(len(rendered), bool)
    computed[todo] = True
    return pc.if_else(pa.array(computed), rendered, pc.coalesce(given.cast(rendered.type), rendered))


def _stamped(
    batch: pa.RecordBatch,
    config: EmbeddingFunctionConfig,
    name: str,
    prefix: str,
    plan: _Plan,
    failed: dict[int, str],
    todo: np.ndarray | None,
) -> pa.Array:
    """Return a digest column: computed rows get theirs, failed ones none; a given vector keeps the data's digest."""
    import numpy as np
    import pyarrow as pa

    rows = np.arange(batch.num_rows) if todo is None else todo
    rows = rows[~np.isin(rows, list(failed))] if failed else rows
    kind = plan.schema.field(name).type
    own = batch.column(name).cast(kind) if name in batch.schema.names else pa.nulls(batch.num_rows, kind)
    if not len(rows):
        return own
    made = own.to_pylist()
    source = layouts.taken(batch.column(config.source_column), rows)
    for row, text in zip(rows.tolist(), digest.digests(source, prefix).to_pylist(), strict=True):
        made[row] = text
    for row in failed:
        made[row] = None
    return pa.array(made, kind)


def _embed_rows(
    config: EmbeddingFunctionConfig,
    source: pa.Array,
    zero_vectors: ZeroVectors | None,
    on_window: Callable[[int], None] | None,
) -> Embedded:
    known = codec.declared_by(config)
    try:
        return embed_column(config.function, source, zero_vectors=zero_vectors, on_window=on_window, declared=known)
    except InputError as exc:
        raise InputError(f"column {config.source_column!r}: {exc.message}", exc.hint) from exc


def _cast(given: pa.Array | None, item: pa.Field, defaults: Defaults, first: int, rows: int) -> pa.Array:
    """Return a column cast to its declared type; a missing column is filled with its default."""
    import pyarrow as pa

    if given is not None:
        return as_declared(given, item, first)
    if (make := defaults.made.get(item.name)) is None:
        return pa.nulls(rows, item.type)
    return as_declared(made_column(item, [make({}) for _ in range(rows)]), item, first)
