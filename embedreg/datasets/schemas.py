"""The schema of a source with many files, and batches that conform to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow.casting import ConversionError, cast_exactly
from embedreg.datasets.csv_types import Column
from embedreg.datasets.formats import Scan
from embedreg.datasets.json_types import Observed
from embedreg.datasets.places import Kind
from embedreg.datasets.reading import Reading
from embedreg.errors import InputError, SchemaError, StorageError, option
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["conformed", "refuse_invalid", "similar_names", "text_schema", "unified", "with_partition"]

_SHOWN_NOTES = 8


def text_schema(
    kind: Kind, known: pa.Schema | None, scans: Sequence[tuple[str, Scan]], reading: Reading
) -> tuple[pa.Schema | None, list[str]]:
    """Return the schema of all text files, whose types hold every value of every file exactly, and the notes."""
    import pyarrow as pa

    evidence: Any = Column if kind == "csv" else Observed
    columns = {} if known is None else {item.name: evidence.of(item.type) for item in known}
    for _, found in scans:
        for name, column in (found.columns or {}).items():
            columns[name] = columns[name].merged(column) if name in columns else column
    if not columns:
        return None, []
    made, kept = [], []
    for name, column in columns.items():
        declared = reading.type_of(name)
        if declared is None:
            inferred = column.type() if kind == "csv" else column.type(name)
            found_notes = [column.note(name)] if kind == "csv" else column.notes(name)
            kept += [note for note in found_notes if note is not None]
        made.append(pa.field(name, inferred if declared is None else declared))
    notes = [note for _, found in scans for note in found.notes]
    notes += kept[:_SHOWN_NOTES]
    if more := len(kept) - _SHOWN_NOTES:
        notes += [f"{more:,} more columns stay text"] if more > 0 else []
    if kept:
        notes.append(
            option("--types COLUMN=int (or float, date, ...) sets the type of a column", "types={'COLUMN': 'int'}")
        )
    return pa.schema(made, metadata=None if known is None else known.metadata), notes


def similar_names(where: str, scans: Sequence[tuple[str, Scan]], reading: Reading) -> list[str]:
    """Return notes on columns whose names differ only in case between files.

    Raises:
        SchemaError: one of them is embedded: rows of the other files would get no vector.
    """
    files: dict[str, int] = {}
    for _, found in scans:
        for name in found.columns if found.columns is not None else found.schema.names if found.schema else ():
            files[name] = files.get(name, 0) + 1
    groups: dict[str, list[str]] = {}
    for name in files:
        groups.setdefault(name.casefold(), []).append(name)
    notes = []
    for names in groups.values():
        if len(names) == 1:
            continue
        counted = ", ".join(f"{name!r} in {files[name]:,} file(s)" for name in names)
        if set(names) & set(reading.sources) and any(files[name] < len(scans) for name in names):
            raise SchemaError(
                f"{where} has columns that differ in capital letters only: {counted}.",
                "give them one name; else the rows of some files would get no vector",
            )
        notes.append(f"columns differ in capital letters only: {counted}; each is null where a file lacks it")
    filled = sum(1 for _, found in scans if found.columns or (found.columns is None and found.schema))
    for name in reading.sources:
        if name in files and (lacking := filled - files[name]):
            notes.append(f"{lacking:,} file(s) have no column {name!r}: their rows get no vector")
    return notes


def with_partition(batch: pa.RecordBatch, name: str, value: str | None, kind: pa.DataType) -> pa.RecordBatch:
    """Return a batch with the value of its partition folder; values of the file itself take precedence.

    Raises:
        SchemaError: the file has nulls there, and the folder's value is not of the column's type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = batch.schema.get_field_index(name)
    own = None if found < 0 else cast_exactly(batch.column(found), kind, rounds=False)
    if own is not None and not own.null_count:
        return batch.set_column(found, name, own)
    try:
        constant = pa.repeat(pa.scalar(value, pa.string()).cast(kind), batch.num_rows)
    except pa.ArrowException:
        raise SchemaError(
            f"a folder is named {plain(f'{name}={value}', 80)!r}, but column {plain(name, 80)!r} is {kind}.",
            "rename the folder, or the column in its files",
        ) from None
    if own is None:
        return batch.append_column(name, constant)
    return batch.set_column(found, name, pc.coalesce(own, constant))


def refuse_invalid(batch: pa.RecordBatch, where: str, first_row: int) -> None:
    """Raise if texts are not valid UTF-8, which no reader of the output could read.

    Raises:
        StorageError: it names file, column and row.
    """
    import pyarrow as pa

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if not _has_text(column.type):
            continue
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as exc:
            low, high = 0, len(column)
            while high - low > 1:  # bisect for the first invalid row
                middle = (low + high) // 2
                try:
                    # a copy: Arrow may validate more of a slice than its rows
                    column.slice(low, middle - low).take(pa.array(range(middle - low))).validate(full=True)
                    low = middle
                except pa.ArrowInvalid:
                    high = middle
            raise StorageError(
                f"{where}, row {first_row + low}: column {name!r} holds bytes that are not valid UTF-8.",
                "write the file again, or read the column as binary and decode it",
            ) from exc


def _has_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_has_text(kind.field(number).type) for number in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def unified(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """Return the unified schema: the columns of every file, with the widest of their types."""
    import pyarrow as pa

    name, made = schemas[0]
    for other, schema in schemas[1:]:
        if schema.equals(made):
            continue
        try:
            made = pa.unify_schemas([made, schema], promote_options="permissive").with_metadata(made.metadata)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
            raise SchemaError(
                f"{other} does not fit {name}: {str(exc).splitlines()[0]}.", "give a column one type in all files"
            ) from exc
    return made


def conformed(batch: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
    """Return a batch with the columns of a schema: missing columns are null, the others are cast."""
    import pyarrow as pa

    if batch.schema.equals(schema):
        return batch
    columns = []
    for item in schema:
        found = batch.schema.get_field_index(item.name)
        if found < 0:
            columns.append(pa.nulls(batch.num_rows, item.type))
            continue
        column = batch.column(found)
        try:
            columns.append(cast_exactly(column, item.type, rounds=False))
        except ConversionError as exc:
            raise InputError(
                f"{path}: column {item.name!r} is {column.type} but other files have {item.type}: {exc.why}.",
                "cast it first",
            ) from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)
