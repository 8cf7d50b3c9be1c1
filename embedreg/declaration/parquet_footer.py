"""Edit the key-value metadata in a Parquet file's footer without changing the data.

A library that writes Parquet would rewrite the data, in its own encodings. The footer is one Thrift structure (the
compact protocol) at the end of the file; all of it but its field 5, the key-value pairs, is copied as it is.

Source: apache/parquet-format, README.md and parquet.thrift; apache/thrift, thrift-compact-protocol.md.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from embedreg.errors import StorageError
from embedreg.support.atomic import replacing, storage_errors

__all__ = ["with_pairs", "write_metadata"]

MAGIC = b"PAR1"
TAIL = 8  # the footer's length, and the magic
ARROW_SCHEMA = b"ARROW:schema"  # the pair that holds the Arrow schema, with a copy of its metadata
PAIRS = 5  # the field of FileMetaData
BINARY, LIST, STRUCT = 8, 9, 12  # of the types of the compact protocol, those that pairs are made of
MAX_DEPTH = 64


def write_metadata(path: Path, changed: Mapping[bytes, bytes]) -> None:
    """Set keys of a Parquet file's schema metadata, as Arrow and every other reader see it; the data stays as it is.

    The file is replaced in one step by a copy with another footer.

    Raises:
        StorageError: it is not a Parquet file, it is encrypted, or it cannot be written. The file is unchanged then.
    """
    path = path.resolve()  # keep a symbolic link in place
    with storage_errors(path), path.open("rb") as old:
        start, footer = _footer(old, path)
        made = _changed(footer, changed)
        with replacing(path) as hidden, storage_errors(path), hidden.open("xb") as new:
            old.seek(0)
            shutil.copyfileobj(old, new, 2**20)
            new.truncate(start)
            new.seek(start)
            new.write(made + len(made).to_bytes(4, "little") + MAGIC)
            shutil.copymode(path, hidden)


def _footer(file: BinaryIO, path: Path) -> tuple[int, bytes]:
    """Return the position of a file's footer, and the footer."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    tail = file.read(TAIL)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] == b"PARE":
        raise StorageError(f"{str(path)!r} is encrypted.", "declare the function when it is written")
    if tail[4:] != MAGIC or length > size - TAIL - len(MAGIC):
        raise StorageError(f"{str(path)!r} is not a complete Parquet file.", "check the path")
    start = size - TAIL - length
    file.seek(start)
    return start, file.read(length)


def _changed(footer: bytes, changed: Mapping[bytes, bytes]) -> bytes:
    try:
        pairs = dict(_pairs_of(footer))
        if arrow := pairs.get(ARROW_SCHEMA):
            pairs[ARROW_SCHEMA] = _arrow_schema(arrow, changed)
        return with_pairs(footer, {**pairs, **changed})
    except (IndexError, KeyError, ValueError, OverflowError) as exc:
        raise StorageError("the footer of the Parquet file cannot be read.", "write the file again") from exc


def _arrow_schema(encoded: bytes, changed: Mapping[bytes, bytes]) -> bytes:
    """Return the stored Arrow schema with the same change in its metadata, since Arrow reads this copy first."""
    import pyarrow as pa

    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded)))
    except (pa.ArrowException, OSError) as exc:
        raise ValueError("the Arrow schema cannot be read") from exc
    return base64.b64encode(schema.with_metadata({**(schema.metadata or {}), **changed}).serialize().to_pybytes())


# -- Thrift's compact protocol -----------------------------------------------------------------------------------------


def with_pairs(footer: bytes, pairs: Mapping[bytes, bytes | None]) -> bytes:
    """Return a footer with other key-value pairs.

    Raises:
        IndexError, ValueError: it is not a footer.
    """
    fields = {number: (kind, footer[start:stop]) for number, kind, start, stop in _fields(footer, 0)}
    fields[PAIRS] = LIST, _list_of_pairs(pairs)
    made, before = bytearray(), 0
    for number in sorted(fields):
        kind, value = fields[number]
        step = number - before
        made += bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _varint(2 * number)
        made += value
        before = number
    return bytes(made) + b"\0"


def _pairs_of(footer: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    for number, kind, start, _ in _fields(footer, 0):
        if number == PAIRS and kind == LIST:
            count, element, position = _list_head(footer, start)
            if element != STRUCT:
                raise ValueError("the pairs are not structures")
            for _ in range(count):
                parts = {part: _binary(footer, value) for part, _, value, _ in _fields(footer, position)}
                position = _after(footer, position, STRUCT, 0)
                if 1 not in parts:
                    raise ValueError("a pair has no key")
                yield parts[1], parts.get(2)


def _list_of_pairs(pairs: Mapping[bytes, bytes | None]) -> bytes:
    made = bytearray([len(pairs) << 4 | STRUCT]) if len(pairs) < 15 else bytearray([15 << 4 | STRUCT])
    if len(pairs) >= 15:
        made += _varint(len(pairs))
    for key, value in pairs.items():
        for text in (key, value):
            if text is not None:
                made += bytes([1 << 4 | BINARY]) + _varint(len(text)) + text
        made += b"\0"
    return bytes(made)


def _fields(data: bytes, position: int, depth: int = 0) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, type, start, stop) for each field of the structure at a position."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    number = 0
    while (head := data[position]) != 0:
        position += 1
        if head >> 4:
            number += head >> 4
        else:
            zigzag, position = _read_varint(data, position)
            number = zigzag >> 1
        stop = _after(data, position, head & 15, depth)
        yield number, head & 15, position, stop
        position = stop


def _after(data: bytes, position: int, kind: int, depth: int, in_list: bool = False) -> int:
    """Return the end of a value."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if kind in (1, 2):  # a boolean field's value is in its type; in a list it takes a byte
        return position + in_list
    if kind in (4, 5, 6):
        return _read_varint(data, position)[1]
    if kind == BINARY:
        length, start = _read_varint(data, position)
        return start + length
    if kind in (LIST, 10):
        count, element, position = _list_head(data, position)
        for _ in range(count):
            position = _after(data, position, element, depth + 1, in_list=True)
            if position > len(data):
                raise ValueError("cut off")
        return position
    if kind == STRUCT:
        return max((stop for *_, stop in _fields(data, position, depth + 1)), default=position) + 1
    sizes = {3: 1, 7: 8, 13: 16}  # a byte, a double, a UUID; Parquet's footer has no maps
    if kind not in sizes:
        raise ValueError(f"a value of type {kind}")
    return position + sizes[kind]


def _list_head(data: bytes, position: int) -> tuple[int, int, int]:
    """Return a list's length, its elements' type, and their position."""
    count, kind = data[position] >> 4, data[position] & 15
    if count == 15:
        count, position = _read_varint(data, position + 1)
        return count, kind, position
    return count, kind, position + 1


def _binary(data: bytes, position: int) -> bytes:
    length, start = _read_varint(data, position)
    if start + length > len(data):
        raise ValueError("cut off")
    return data[start : start + length]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number is too long")


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])
