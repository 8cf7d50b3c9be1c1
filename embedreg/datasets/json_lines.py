"""Read JSON lines: one object per line, and for each field a type that holds all of its values exactly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from embedreg.datasets import texts
from embedreg.datasets.formats import Scan, Span, Unit, cut
from embedreg.datasets.json_types import MAX_DEPTH, MAX_FIELDS, Inexact, Observed, Raw, fitted
from embedreg.datasets.reading import Reading
from embedreg.datasets.storage import Storage
from embedreg.datasets.texts import Fault
from embedreg.errors import option
from embedreg.support.unicode import is_valid

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_jsonl", "scan_jsonl"]

_UTF8 = option("if the file is in another encoding, name it: --encoding latin-1", "encoding='latin-1'")
_DEEP = f"not a JSON object: it is nested deeper than {MAX_DEPTH} levels"
_FLAT = "store the inner part as text: json.dumps(...)"
_BLANKS = b" \t\r\n"
_EXACT_CHARS = 17  # digits that identify a float uniquely


def scan_jsonl(storage: Storage, path: str, reading: Reading) -> Scan:
    """Read all lines, to infer the types."""
    columns, units, where, number = dict[str, Observed](), list[Unit](), storage.shown(path), 1
    declared = {name: str(reading.type_of(name)) for name in (*reading.sources, *dict(reading.types))}
    with texts.open_text(storage, path, reading) as text:
        for start, stop, lines in texts.row_runs(text, text.start, None, _whole):
            rows = 0
            for at, line in _numbered(start, lines):
                if line.strip(_BLANKS):
                    row = _parsed(line, at, _EXACTLY)
                    _observe(row, line, at, columns, where, number, declared, reading)
                    rows += 1
                number += 1
            units.append(Unit(start, stop, rows, stop - start))
    if not any(unit.rows for unit in units):
        return Scan(None, (), {}, (f"{where} is empty: it has no rows",))
    return Scan(None, tuple(units), columns, ())


def _observe(
    row: dict[str, Any],
    line: bytes,
    at: int,
    columns: dict[str, Observed],
    where: str,
    number: int,
    declared: dict[str, str],
    reading: Reading,
) -> None:
    surrogates, given = b"\\ud" in line or b"\\uD" in line, dict(reading.types)
    for name, value in row.items():
        if surrogates and not _is_unicode([name, value]):
            raise Fault(at, f"column {name!r} is not valid Unicode: half of a surrogate pair", "write the text again")
        found = columns.get(name)
        if found is None:
            if len(columns) >= MAX_FIELDS:
                raise Fault(at, f"there are more than {MAX_FIELDS:,} different keys", _FLAT)
            found = columns[name] = Observed()
        if (kind := declared.get(name)) is not None:
            if value is not None and type(value) is not str and name in reading.sources and name not in given:
                message = f"column {name!r} is embedded as text, but holds {texts.shown_value(value)}"
                hint = option(f"--types {name}=text embeds it as written", f"types={{{name!r}: 'text'}}")
                raise Fault(at, message, hint)
            if kind != "string":  # every value can be a string
                _declared([value], reading.type_of(name), name, [(at, line)])
            continue
        try:
            found.observe(value, where, number)
        except RecursionError:
            raise Fault(at, f"{_DEEP} in column {name!r}", _FLAT) from None
        except OverflowError:
            message = f"column {name!r} has objects of more than {MAX_FIELDS:,} different keys"
            raise Fault(at, message, f"--types {name}=text stores them as text") from None


def read_jsonl(
    storage: Storage,
    path: str,
    span: Span,
    columns: Sequence[str] | None,
    batch_rows: int,
    schema: pa.Schema,
    reading: Reading,
) -> Iterator[pa.RecordBatch]:
    """Read a span of lines, each with the fields of `schema`."""
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        with texts.open_text(storage, path, reading) as text:
            for start, _, lines in texts.row_runs(text, max(span.start, text.start), span.stop, _whole):
                some = [(at, line) for at, line in _numbered(start, lines) if line.strip(_BLANKS)]
                rows = [_parsed(line, at, _EXACTLY) for at, line in some]
                wanted = columns if columns is not None else schema.names
                made = [_column(rows, some, name, schema.field(name).type, reading) for name in wanted]
                if rows and made:
                    yield pa.RecordBatch.from_arrays(made, list(wanted))

    if span.start < span.stop:
        yield from cut(batches(), span, batch_rows)


def _column(
    rows: list[dict[str, Any]], lines: list[tuple[int, bytes]], name: str, kind: pa.DataType, reading: Reading
) -> pa.Array:
    import pyarrow as pa

    values = [row.get(name) for row in rows]
    if reading.type_of(name) is not None:
        return _declared(values, kind, name, lines)
    try:
        if not pa.types.is_nested(kind) and not pa.types.is_string(kind):
            return pa.array(values, kind)
        if not any(isinstance(value, Inexact) for value in values):
            return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    # the column holds numbers that stay text
    raw = [_parsed(line, at, _AS_WRITTEN).get(name) for at, line in lines]
    try:
        return pa.array([fitted(value, kind) for value in raw], kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as exc:
        for value, (at, _) in zip(raw, lines, strict=True):
            try:
                pa.array([fitted(value, kind)], kind)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                message = f"column {name!r} was read as {kind}, but holds {texts.shown_value(value)}"
                raise Fault(at, message, "run the same command again, with --fresh") from None
        raise texts.Unnamed(f"column {name!r}: {exc}.", "--fresh") from exc


def _declared(values: list[Any], kind: pa.DataType, name: str, lines: list[tuple[int, bytes]]) -> pa.Array:
    """Cast values to a declared type.

    Raises:
        Fault: a value is not of that type.
    """
    import pyarrow as pa

    if pa.types.is_string(kind) and all(value is None or type(value) is str for value in values):
        return pa.array(values, kind)
    made = []
    for value, (at, line) in zip(values, lines, strict=True):
        if value is not None and type(value) is not str:
            value = _parsed(line, at, _AS_WRITTEN)[name]
        written = fitted(value, pa.string())
        try:
            made.append(texts.as_type(pa.array([written], pa.string()), kind)[0])
        except pa.ArrowException:
            hint = option(f"--types {name}=text keeps the values unchanged", f"types={{{name!r}: 'text'}}")
            raise Fault(at, f"column {name!r}: {texts.shown_value(written)} is not {kind}", hint) from None
    return pa.array([each.as_py() for each in made], kind)


# -- lines -------------------------------------------------------------------------------------------------------------


def _whole(block: bytes, offset: int, last: bool) -> tuple[int, list[bytes]]:
    stop = len(block) if last else block.rfind(b"\n") + 1
    return stop, block[:stop].split(b"\n")


def _numbered(start: int, lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their offsets; nothing after the last line break is not a line."""
    if lines and not lines[-1]:
        lines.pop()
    for line in lines:
        yield start, line
        start += len(line) + 1


def _parsed(line: bytes, at: int, decoder: json.JSONDecoder) -> dict[str, Any]:
    """Parse one line.

    Raises:
        Fault: it is not an object, a key appears twice, or bytes are not UTF-8.
    """
    try:
        row = decoder.decode(line.decode())
    except UnicodeDecodeError as exc:
        message = f"{_where_invalid(line)} holds the byte 0x{line[exc.start]:02X}, not valid UTF-8"
        raise Fault(at, message, _UTF8) from None
    except _DuplicateKey as exc:
        raise Fault(at, f"the key {exc.args[0]!r} appears twice", "keep one of them") from None
    except RecursionError:
        raise Fault(at, _DEEP, _FLAT) from None
    except ValueError as exc:
        why = f" ({exc.msg}, character {exc.colno})" if isinstance(exc, json.JSONDecodeError) else f" ({exc})"
        raise Fault(at, f"not a JSON object{why}", texts.PER_LINE) from None
    if not isinstance(row, dict):
        raise Fault(at, f"not a JSON object, but {texts.shown_value(row)}", _object_hint(row))
    return row


def _object_hint(row: Any) -> str:
    if isinstance(row, list) and all(isinstance(each, dict) for each in row):
        return f"{texts.PER_LINE}; a file that is one array ends in .json"
    return texts.PER_LINE


def _where_invalid(line: bytes) -> str:
    """Return the column whose value or name is not UTF-8."""
    try:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
        names = [name for name, value in row.items() if not _is_unicode([name, value])]
    except (ValueError, RecursionError, AttributeError):
        return "the line"
    return f"column {names[0].encode('utf-8', 'replace').decode()!r}" if names else "the line"


def _is_unicode(value: Any) -> bool:
    try:
        return is_valid(json.dumps(value, ensure_ascii=False))
    except RecursionError:
        return False


class _DuplicateKey(ValueError):
    """A key that appears twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return made


def _number(text: str) -> float:
    """Parse a fraction as a float, marked as `Inexact` if the float differs from the text."""
    value = float(text)
    if len(text) <= _EXACT_CHARS and value - value == 0 and value != 0:
        return value
    digits = re.sub(r"[eE].*|[-.]", "", text).strip("0")
    held = value - value == 0 and (value != 0 or not digits)  # neither inf, nor rounded to 0
    if held and len(digits) > _EXACT_CHARS:
        held = Decimal(text) in (Decimal(repr(value)), Decimal(value))
    if held:
        return value
    inexact = Inexact(value)
    inexact.text = text
    return inexact


_EXACTLY = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number)
_AS_WRITTEN = json.JSONDecoder(object_pairs_hook=_object, parse_float=Raw, parse_int=Raw, parse_constant=Raw)
