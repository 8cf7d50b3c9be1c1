"""Read CSV files: values are exact, and a column gets a type only if all of its values survive it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from embedreg.datasets import texts
from embedreg.datasets.csv_types import Column
from embedreg.datasets.formats import Scan, Span, Unit, cut
from embedreg.datasets.reading import Reading
from embedreg.datasets.storage import Storage
from embedreg.datasets.texts import Fault, Text
from embedreg.errors import option

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.datasets.csv_rows import Rows

__all__ = ["read_csv", "scan_csv"]

_OTHERS = ";\t|"  # common delimiters besides the comma
_UTF8 = option("if the file is in another encoding, name it: --encoding latin-1", "encoding='latin-1'")
_TYPED = option("read the column as text, or correct the row: --types COLUMN=text", "types={'COLUMN': 'text'}")
_OTHER_NOW = option("write to another place; or --fresh starts over", "resume=False")


class _Header(NamedTuple):
    stop: int  # offset of the first row
    names: list[str]
    delimiter: int
    unnamed: list[str]


def scan_csv(storage: Storage, path: str, reading: Reading) -> Scan:
    """Read all rows, to infer the types and to find units of complete rows."""
    units, notes, blank, where = list[Unit](), list[str](), 0, storage.shown(path)
    with texts.open_text(storage, path, reading) as text:
        head = _header(text, path, reading)
        if head is None:
            return Scan(None, (), {}, (f"{where} is empty: it has no header line",))
        columns = {name: Column() for name in head.names}
        line = 1 + texts.breaks(text.read(0, head.stop))
        for start, stop, rows in _runs(text, head, head.stop, None):

            def place(row: int, rows: Rows = rows, line: int = line) -> tuple[str, int]:
                return where, line + texts.breaks(rows.block[: rows.begun[row]])

            blank += rows.blank
            for number, name in enumerate(head.names):
                values, kind = _strings(rows, number, name, text), reading.type_of(name)
                if kind is None:
                    columns[name].observe(values, rows.quoted[:, number], place)
                else:
                    _typed(values, rows, number, name, kind)
            units.append(Unit(start, stop, len(rows), stop - start))
            line += texts.breaks(rows.block[: stop - start])
    if head.unnamed:
        notes.append(f"{where}: columns without a name are named {texts.quoted(head.unnamed)}")
    if len(head.names) == 1:
        if blank:
            notes.append(f"{where}: {blank:,} blank line(s) are skipped")
        if (other := next((mark for mark in _OTHERS if mark in head.names[0]), None)) is not None:
            notes.append(f"{where}: its only column is named {head.names[0]!r}; is {other!r} the --delimiter?")
    return Scan(None, tuple(units), columns, tuple(notes))


def read_csv(
    storage: Storage,
    path: str,
    span: Span,
    columns: Sequence[str] | None,
    batch_rows: int,
    schema: pa.Schema,
    reading: Reading,
) -> Iterator[pa.RecordBatch]:
    """Read a span of rows, with the types of `schema`."""
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        with texts.open_text(storage, path, reading) as text:
            head = _header(text, path, reading)
            if head is None:
                return
            # at least one column, to count the rows
            wanted = [name for name in columns or schema.names if name in head.names] or head.names[:1]
            for _, _, rows in _runs(text, head, max(span.start, head.stop), span.stop):
                made = []
                for name in wanted:
                    number, kind = head.names.index(name), schema.field(name).type
                    values = _strings(rows, number, name, text)
                    if reading.type_of(name) is None:
                        _refuse_other(values, rows, number, name, kind)
                    made.append(_typed(values, rows, number, name, kind))
                yield pa.RecordBatch.from_arrays(made, wanted)

    if span.start < span.stop:
        yield from cut(batches(), span, batch_rows)


def _header(text: Text, path: str, reading: Reading) -> _Header | None:
    """Return the header; None if the file has none.

    Raises:
        Fault: a name appears twice, or is not text.
    """
    if text.head is not None:
        found: _Header = text.head
        return found
    suffix = PurePosixPath(path.lower().removesuffix(".gz").removesuffix(".zst")).suffix
    delimiter = ord(reading.delimiter or ("\t" if suffix == ".tsv" else ","))

    from embedreg.datasets.csv_rows import tokenized  # imports numpy: deferred so that `--help` stays fast

    def first(block: bytes, offset: int, last: bool) -> tuple[int, Rows | None]:
        return tokenized(block, offset, last, delimiter, None)

    start, stop, rows = next(texts.row_runs(text, text.start, None, first), (0, 0, None))
    if rows is None:
        return None
    at = start + int(rows.begun[0])
    names, unnamed = [], []
    for number in range(rows.starts.shape[1]):
        raw = rows.column(number)[0].as_py()
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise Fault(at, f"the name of column {number + 1} is not valid UTF-8", _UTF8) from None
        if "\0" in name:
            raise Fault(at, "the header holds NUL bytes, so this is not UTF-8", "try --encoding utf-16")
        if not name:
            name = f"column_{number + 1}"
            unnamed.append(name)
        names.append(name)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Fault(at, f"the header names {texts.quoted(twice)} more than once", "give each column its own name")
    text.head = _Header(stop, names, delimiter, unnamed)
    return text.head  # type: ignore[no-any-return]  # it was just set


def _runs(text: Text, head: _Header, start: int, stop: int | None) -> Iterator[tuple[int, int, Rows]]:
    from embedreg.datasets.csv_rows import tokenized

    def whole(block: bytes, offset: int, last: bool) -> tuple[int, Rows | None]:
        return tokenized(block, offset, last, head.delimiter, len(head.names))

    yield from texts.row_runs(text, start, stop, whole)


def _strings(rows: Rows, number: int, name: str, text: Text) -> pa.Array:
    """Return a column as strings.

    Raises:
        Fault: bytes that are not UTF-8, at their row.
    """
    import pyarrow as pa

    raw = rows.column(number)
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        for row, value in enumerate(raw.to_pylist()):
            try:
                value.decode()
            except UnicodeDecodeError as exc:
                byte = value[exc.start]
                raise _at(rows, row, f"column {name!r} holds the byte 0x{byte:02X}, not valid UTF-8", _UTF8) from None
        raise


def _typed(values: pa.Array, rows: Rows, number: int, name: str, kind: pa.DataType) -> pa.Array:
    """Cast texts to a type; an empty field without quotes is null.

    Raises:
        Fault: a text is not a value of that type.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(kind):
        return values
    empty = pc.and_(pc.equal(pc.binary_length(values), 0), pa.array(~rows.quoted[:, number]))
    filled = pc.if_else(empty, pa.scalar(None, pa.string()), values)
    try:
        return texts.as_type(filled, kind)
    except pa.ArrowException:
        for row in range(len(filled)):
            try:
                texts.as_type(filled[row : row + 1], kind)
            except pa.ArrowException:
                value = texts.shown_value(filled[row].as_py())
                raise _at(rows, row, f"column {name!r}: {value} is not {kind}", _TYPED) from None
        raise


def _refuse_other(values: pa.Array, rows: Rows, number: int, name: str, kind: pa.DataType) -> None:
    """Raise if the type of a column, found by an earlier scan, would change a value.

    Raises:
        Fault: the file has changed, or an earlier version of embedreg inferred a type that is not exact.
    """
    import pyarrow as pa

    if pa.types.is_string(kind):
        return
    found, bad = Column(), list[int]()

    def note(row: int) -> tuple[str, int]:
        bad.append(row)
        return "", 0

    found.observe(values, rows.quoted[:, number], note)
    if bad or (found.floats and not pa.types.is_floating(kind)) or (found.large and pa.types.is_floating(kind)):
        row = bad[0] if bad else 0
        value = texts.shown_value(values[row].as_py())
        raise _at(rows, row, f"column {name!r} was read as {kind}, which cannot hold {value} exactly", _OTHER_NOW)


def _at(rows: Rows, row: int, message: str, hint: str) -> Any:
    return Fault(rows.offset + int(rows.begun[row]), message, hint)
