"""Rows in text files: JSON lines and CSV, cut where one row ends and the next begins."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.errors import StorageError
from embedreg.jobs.formats import Look, Span, Unit, cut
from embedreg.jobs.storage import Storage

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["look_csv", "look_jsonl", "read_csv", "read_jsonl"]

_CHUNK_BYTES = 8 << 20  # of text, parsed at a time
_BEFORE_QUOTE = tuple(b',\n\r"')
_BOM = b"\xef\xbb\xbf"  # a byte order mark, which Windows programs write
_ONE_TYPE = "give each field one type throughout the file"
_ALL = Span(0, 0)  # the bytes are the piece: no row of them belongs to another


def _range(file: Any, start: int, stop: int) -> bytes:
    return bytes(file.read_at(stop - start, start))


# -- JSON lines: Arrow infers the types of one block only, so the file is read twice, once for its schema --------------


def _chunks(file: Any, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of whole lines, of about `_CHUNK_BYTES`."""
    start = at = 3 if _range(file, 0, 3) == _BOM else 0
    while at < size:
        block = _range(file, at, min(at + _CHUNK_BYTES, size))
        newline = block.rfind(b"\n")
        at += len(block)
        if newline >= 0:
            stop = at - len(block) + newline + 1
            yield start, stop
            start = stop
            at = stop
    if start < size:
        yield start, size


def look_jsonl(storage: Storage, path: str) -> Look:
    """Read all lines, for their types."""
    import pyarrow as pa

    schemas, units = [], []
    with storage.open(path) as file:
        line = 1
        for start, stop in _chunks(file, file.size()):
            chunk = _range(file, start, stop)
            rows = 0
            if chunk.strip():
                table = _parse(storage.shown(path), line, chunk, None)
                schemas.append(pa.schema([pa.field(each.name, _as_written(each.type)) for each in table.schema]))
                rows = table.num_rows
            units.append(Unit(start, stop, rows, len(chunk)))
            line += chunk.count(b"\n")
    if not schemas:
        return Look(None, ())
    try:
        return Look(pa.unify_schemas(schemas, promote_options="permissive"), tuple(units))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as exc:
        raise StorageError(f"{storage.shown(path)}: {str(exc).splitlines()[0]}.", _ONE_TYPE) from exc


def read_jsonl(
    storage: Storage, path: str, span: Span, columns: Sequence[str] | None, batch_rows: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Read a span of lines, each with the fields of `schema`."""

    def batches() -> Iterator[pa.RecordBatch]:
        with storage.open(path) as file:
            for start, stop in _within(file, span):
                chunk = _range(file, start, stop)
                if chunk.strip():
                    table = _parse(storage.shown(path), None, chunk, schema)
                    yield from table.select(columns or schema.names).to_batches()

    yield from cut(batches(), _ALL, batch_rows)


def _within(file: Any, span: Span) -> Iterator[tuple[int, int]]:
    """Yield runs of whole lines inside a span, none of them much longer than `_CHUNK_BYTES`."""
    start = span.start
    while start < span.stop:
        stop = start
        while stop < span.stop:
            block = _range(file, stop, min(stop + _CHUNK_BYTES, span.stop))
            newline = block.rfind(b"\n")
            stop += len(block) if newline < 0 else newline + 1
            if newline >= 0:
                break
        yield start, stop
        start = stop


def _parse(where: str, first_line: int | None, chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    """Parse whole lines.

    Args:
        first_line: the number of the first one, for messages; None where it was not counted.
        schema: of the fields to read; None to infer one.
    """
    import pyarrow as pa
    import pyarrow.json as pj

    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore")
    try:
        return pj.read_json(io.BytesIO(chunk), pj.ReadOptions(use_threads=False, block_size=len(chunk) + 1), options)
    except pa.ArrowInvalid as exc:
        for number, text in enumerate(chunk.splitlines(), first_line or 1):
            try:
                good = not text.strip() or isinstance(json.loads(text), dict)
            except (ValueError, RecursionError):
                good = False
            if not good:
                at = f", line {number}" if first_line is not None else ""
                raise StorageError(f"{where}{at}: no JSON object.", "write one object {...} per line") from None
        at = f", from line {first_line}" if first_line is not None else ""
        raise StorageError(f"{where}{at}: {str(exc).splitlines()[0]}.", _ONE_TYPE) from exc


def _as_written(kind: pa.DataType) -> pa.DataType:
    """Undo Arrow's guess that a text which looks like a time is one: a text stays the text that it was."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_written(field.type)) for field in kind])
    return kind


# -- CSV: its rows may hold line breaks inside quotes ------------------------------------------------------------------


class _Uncuttable(Exception):
    """Quotes, or line ends, that do not tell where rows end."""


def look_csv(storage: Storage, path: str) -> Look:
    """Read the types off the first block, and find where rows end."""
    import numpy as np
    import pyarrow as pa

    with storage.open(path) as file, _stream(file) as reader:
        schema = pa.schema([pa.field(each.name, _as_written(each.type)) for each in reader.schema])
    units: list[Unit] = []
    start: int | None = None  # None in the header
    with storage.open(path) as file:
        size = file.size()
        try:
            for stops, filled in _row_ends(file, 3 if _range(file, 0, 3) == _BOM else 0, size):
                if start is None and filled.any():
                    header = int(np.argmax(filled))
                    start, stops, filled = int(stops[header]), stops[header + 1 :], filled[header + 1 :]
                if start is not None and len(stops):
                    stop = int(stops[-1])
                    units.append(Unit(start, stop, int(filled.sum()), stop - start))
                    start = stop
        except _Uncuttable:
            return Look(schema, (Unit(0, size, None, size),))
    return Look(schema, tuple(units))


def _row_ends(file: Any, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Find where the rows of a CSV file end.

    A line break is a row's end where the quotes before it are even in number. That holds as long as every quote which
    opens stands at the start of a field, or right behind another quote.

    Args:
        start: where a row begins.
        stop: where one ends.
    Yields:
        For each block: the positions behind its rows' ends, and which of these rows are not empty: an empty line is
        none to Arrow.
    Raises:
        _Uncuttable: a quote opens elsewhere, or carriage returns alone end rows.
    """
    import numpy as np

    quotes, begun, before = 0, start, b"\n"  # quotes before this block; where its first row began; the byte before
    at = start
    while at < stop:
        block = np.frombuffer(before + _range(file, at, min(at + _CHUNK_BYTES, stop)), np.uint8)
        here, previous = block[1:], block[:-1]
        is_quote = here == ord('"')
        inside = (quotes + np.cumsum(is_quote)) % 2 == 1
        alone = (previous == ord("\r")) & (here != ord("\n")) & ~np.concatenate([[quotes % 2 == 1], inside[:-1]])
        if alone.any() or not np.isin(previous[is_quote & inside], _BEFORE_QUOTE).all():
            raise _Uncuttable
        ends = np.flatnonzero((here == ord("\n")) & ~inside)
        if len(ends):
            stops = at + ends + 1
            lengths = np.diff(stops, prepend=begun)
            yield stops, (lengths > 2) | ((lengths == 2) & (previous[ends] != ord("\r")))
            begun = int(stops[-1])
        quotes += int(is_quote.sum())
        before = block[-1:].tobytes()
        at += len(here)
    if begun < stop:
        yield np.array([stop]), np.array([bool(_range(file, begun, stop).strip(b"\r\n"))])


def read_csv(
    storage: Storage, path: str, span: Span, columns: Sequence[str] | None, batch_rows: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Read a span of rows, with the types of `schema`."""
    import pyarrow as pa
    import pyarrow.csv as pc

    def batches() -> Iterator[pa.RecordBatch]:
        with storage.open(path) as head, _stream(head) as reader:
            names = reader.schema.names
        types = pc.ConvertOptions(
            column_types=schema, include_columns=None if columns is None else [n for n in columns if n in names]
        )
        with storage.open(path) as file:
            if span.start == 0:  # one that cannot be cut, its header included
                with _stream(file, types) as reader:
                    yield from reader
                return
            start = span.start
            for stops, filled in _row_ends(file, start, span.stop):
                stop = int(stops[-1])
                if filled.any():
                    # one block, which ends with a row: where its own meet, pyarrow 26 loses a line feed of a text
                    chunk = _range(file, start, stop)
                    how = pc.ReadOptions(use_threads=False, block_size=len(chunk) + 1, column_names=names)
                    yield from pc.read_csv(pa.BufferReader(chunk), how, _csv_rules(), types).to_batches()
                start = stop

    if span.start < span.stop:
        yield from cut(batches(), _ALL, batch_rows)


def _stream(file: Any, types: Any = None) -> Any:
    import pyarrow.csv as pc

    return pc.open_csv(file, pc.ReadOptions(use_threads=False, block_size=_CHUNK_BYTES), _csv_rules(), types)


def _csv_rules() -> Any:
    import pyarrow.csv as pc

    return pc.ParseOptions(newlines_in_values=True)
