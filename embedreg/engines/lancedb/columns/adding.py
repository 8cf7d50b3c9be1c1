"""`add`: a new vector column, staged per fragment and added by one commit; no other column is rewritten."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from embedreg.arrow.templates import Template, refuse_type
from embedreg.columns.arguments import already_there, no_column, texts_there
from embedreg.columns.declare import entry_for
from embedreg.columns.results import ColumnReport
from embedreg.columns.sources import Source
from embedreg.columns.store import Options
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.declaration import codec, digest, templates
from embedreg.declaration.entries import Entry
from embedreg.declaration.quantization import is_quantized, refuse_in_lance
from embedreg.embedding import schema as schemas
from embedreg.engines.lancedb.columns import declared
from embedreg.engines.lancedb.columns.commits import Attempts, Schemas, commit, field_ids, lance, lance_errors
from embedreg.engines.lancedb.columns.making import Maker
from embedreg.engines.lancedb.columns.place import Place
from embedreg.engines.lancedb.columns.staging import Staging, data_files
from embedreg.engines.lancedb.names import refuse_name
from embedreg.errors import ConfigError, SchemaError, StorageError, option
from embedreg.support import strict_json

__all__ = ["add", "as_begun", "new_fields", "reported", "resumed", "sources_of", "typed", "with_entry"]

SHOWN_BAD_ROWS = 1000
_FIRST = 1000  # rows of a part that ranges are learnt from
LATE_ROWS = 2000  # of late fragments that a switch stages at once; more are staged by another round


def add(place: Place, config: EmbeddingFunctionConfig, options: Options) -> ColumnReport:
    """Add a vector column; arguments and errors as `embedreg.columns.add`."""
    import pyarrow as pa

    started = time.perf_counter()
    vector, source = config.vector_column, config.source_column
    dataset = place.newest()
    with place.locked() as lock:
        place.remove_branches()
        record = place.kept.record()
        if _is_done(record, dataset, vector):
            place.kept.drop()
            return ColumnReport(vector, "add", rows=dataset.count_rows(), notes=("an earlier run had added it",))
        if vector in dataset.schema.names:
            raise already_there(f"table {place.name!r}", vector)
        declared.refuse_legacy(dataset, f"table {place.name!r}")
        _refuse(place, dataset.schema, config, options)
        inputs = sources_of(dataset, Source(source, templates.of(config)))
        entry = entry_for(config, digest=options.digest, sources=inputs)
        begun = record is not None and record["kind"] == "add"
        record = resumed(place, record, options, kind="add", vector=vector, name=vector, source=source, entry=entry)
        entry = as_begun(record, entry)
        if (template := templates.of(config)) is not None:
            _add_texts(place, source, vector, template, begun=begun)
        maker = Maker(lambda: config, entry, options)
        field = pa.field(vector, maker.field.type)
        entry = typed(entry, field)
        staging = Staging(
            place, source, maker, progress=options.progress, batch_rows=options.batch_rows, check=lock.check
        )
        staging.run()
        fields = new_fields(field, entry)
        made, tries = _commit(place, staging, record, entry, fields, options)
        staging.republish(made)
        added = place.size_of(data_files(made) - data_files(dataset))
        place.kept.drop()
        place.remove_branches()
    report = reported(vector, "add", maker, made, started)
    return _replace(report, written=maker.report.rows, bytes_written=added, commits=1, retries=tries)


def sources_of(dataset: Any, source: Source) -> Iterator[Any]:
    """Yield what a column is embedded from, in parts, in the order of its rows."""
    found = dataset.scanner(columns=list(source.columns), batch_size=_FIRST).to_batches()
    return (source.values(batch) for batch in found)


def as_begun(record: dict[str, Any], entry: Entry) -> Entry:
    """Return the entry of a quantised column as an interrupted run has recorded it: its ranges are those of the run.

    Raises:
        StorageError: the run was begun with another dtype.
    """
    (begun,) = codec.entries({codec.KEY: f"[{record['entry']}]"})
    if not is_quantized(begun.reserved) and not is_quantized(entry.reserved):
        return entry
    if begun.reserved.get("dtype") != entry.reserved.get("dtype"):
        raise StorageError(
            f"an interrupted run was to write {begun.reserved.get('dtype')}, this one {entry.reserved.get('dtype')}.",
            option("give the same --dtype, or drop it with `embedreg column abandon`", "Migration.abandon()"),
        )
    return begun


def _replace(report: ColumnReport, **values: Any) -> ColumnReport:
    from dataclasses import replace

    return replace(report, **values)


def _is_done(record: dict[str, Any] | None, dataset: Any, vector: str) -> bool:
    """Return whether a killed run's commit has added the column: the table's own declaration decides."""
    if record is None or record["kind"] != "add" or record["vector"] != vector:
        return False
    return any(
        entry.vector_column == vector and entry.reserved.get("fingerprint") == record["to"]
        for entry in codec.entries(dataset.schema.metadata)
    )


def _add_texts(place: Place, source: str, vector: str, template: Template, *, begun: bool) -> None:
    """Add the column of a template's texts: Lance renders them, in a commit of its own before that of the vectors.

    Args:
        begun: whether an interrupted run may have added it.
    Raises:
        SchemaError: the table has such a column of another origin. StorageError: it cannot be written.
    """
    dataset = place.newest()
    if source in dataset.schema.names:
        if not begun:
            raise texts_there(f"table {place.name!r}", source, vector)
        return
    with lance_errors(f"table {place.name!r} cannot be written"):
        dataset.add_columns({source: declared.rendered(template)})


def _refuse(place: Place, schema: Any, config: EmbeddingFunctionConfig, options: Options) -> None:
    vector, source = config.vector_column, config.source_column
    refuse_in_lance(config.value_type, vector)
    template = templates.of(config)
    if template is not None:
        template.refuse_missing(schema.names, vector)
        declared.refuse_computed(schema, template.columns)
        for name in template.columns:
            refuse_type(name, schema.field(name).type)
    elif source not in schema.names:
        raise no_column(f"table {place.name!r}", source, schema.names)
    declared.refuse_computed(schema, [source])
    refuse_name(vector, source, *(template.columns if template is not None else ()))
    mark = digest.column_name(vector)
    if options.digest and mark in schema.names:
        raise SchemaError(
            f"table {place.name!r} has a column {mark!r}.", option("drop it, or --no-digest", "digest=False")
        )
    others = [name for name in declared.vector_columns(schema) if name != vector]
    if others and not options.yes:
        raise ConfigError(
            f"table {place.name!r} has a vector column {others[0]!r}: with a second one, table.search('text') without "
            "vector_column_name fails from now on.",
            option("--yes adds it all the same", "yes=True"),
        )


def resumed(
    place: Place,
    record: dict[str, Any] | None,
    options: Options,
    *,
    kind: str,
    vector: str,
    name: str,
    source: str,
    entry: Entry,
    **more: Any,
) -> dict[str, Any]:
    """Return the record of an interrupted run of the same operation, or begin one.

    Raises:
        StorageError: another operation is unfinished.
    """
    facts = {"kind": kind, "vector": vector, "name": name, "source": source, "to": entry.reserved.get("fingerprint")}
    if record is not None and all(record.get(key) == value for key, value in facts.items()) and options.resume:
        return record
    if record is not None and (options.resume or record["state"] in ("switched", "settled")):
        raise StorageError(
            f"table {place.name!r}: {record['kind']} of column {record['vector'][:80]!r} is unfinished "
            f"({record['state']}).",
            option("run its command again, or drop it with `embedreg column abandon`", "Migration.abandon()"),
        )
    place.kept.drop()
    return place.kept.begin(state="staging", entry=entry.raw, **facts, **more)


def new_fields(field: Any, entry: Entry) -> Any:
    """Return the Arrow fields that a staged column gets: the vector, and the digests that its entry names."""
    import pyarrow as pa

    named = digest.column_of(entry.reserved)
    return pa.schema([field, *([] if named is None else [pa.field(named, pa.string())])])


def typed(entry: Entry, field: Any) -> Entry:
    """Return the declaration of a column with the type of its values, as its field states."""
    if is_quantized(entry.reserved):
        return entry
    item = json.loads(entry.raw)
    item["model"][codec.RESERVED]["dtype"] = schemas.value_name(field.type.value_type)
    (made,) = codec.entries({codec.KEY: f"[{strict_json.dumps(item)}]"})
    return made


def with_entry(schema: Any, entry: Entry, replaced: str | None = None) -> str:
    """Return a table's declarations with one added, or replaced for a column; others stay byte for byte."""
    found = codec.entries(schema.metadata)
    gone = {replaced, entry.vector_column}
    at = next((number for number, each in enumerate(found) if each.vector_column in gone), len(found))
    raw = [each.raw for each in found if each.vector_column not in gone]
    raw.insert(min(at, len(raw)), entry.raw)
    return f"[{', '.join(raw)}]"


def _commit(
    place: Place, staging: Staging, record: dict[str, Any], entry: Entry, fields: Any, options: Options
) -> tuple[Any, int]:
    """Commit the staged column; return the new version, and how often other writers were first."""
    schemas_of, attempts = Schemas(place, f"embedreg-{record['id']}"), Attempts(options.switch_timeout_s)
    while True:
        dataset = place.newest()
        if (missing := staging.missing(dataset)) and not staging.stage_all(dataset, missing):
            attempts.tried(place)
            continue
        if entry.vector_column in dataset.schema.names:
            raise SchemaError(f"another writer added a column {entry.vector_column!r}.", "choose another name")
        schema = schemas_of.changed(dataset, [], fields, {codec.KEY: with_entry(dataset.schema, entry)})
        ids = [field_ids(schema)[item.name] for item in fields]
        operation = lance().LanceOperation.Merge(staging.published(dataset, ids), schema, preserves_nullability=True)
        try:
            return commit(place, operation, dataset.version, f"add {record['id']}"), attempts.tries
        except (OSError, RuntimeError, ValueError) as exc:
            newest = place.newest()
            if _is_done(record, newest, entry.vector_column):
                return newest, attempts.tries
            attempts.failed(place, dataset.version, exc)


def reported(vector: str, what: str, maker: Maker, dataset: Any, started: float) -> ColumnReport:
    """Return the report of what a maker did."""
    made = maker.report
    return ColumnReport(
        vector,
        what,
        rows=int(dataset.count_rows()),
        embedded=made.embedded,
        cached=made.cached,
        bad_rows=len(made.bad),
        bad=tuple(made.bad[:SHOWN_BAD_ROWS]),
        seconds=time.perf_counter() - started,
    )
