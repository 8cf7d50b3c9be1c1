"""Protobuf and flatbuffers, read with bounds: whatever points outside of a message is an InputError.

Sources: the encodings of protobuf messages (wire format) and of FlatBuffers (internals).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from embedreg.errors import InputError

__all__ = ["Table", "fields", "invalid_message", "prefixed"]

MAX_FIELDS = 64  # of a protobuf message; FlightData has four
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf


def invalid_message() -> InputError:
    """Return the error for an invalid Flight message."""
    return InputError("the message is not a valid Arrow Flight message.", "call it from Databend or a Flight client")


# -- protobuf ---------------------------------------------------------------------------------------------------------


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for n, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << (7 * n)
        if byte < 128:
            return value, at + n + 1
    raise invalid_message()


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield (field number, value) of a protobuf message; a value is a number or a view of its bytes."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(data):
            return
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint(data, at)
        if size is None or size > len(data) - at:
            raise invalid_message()
        yield tag >> 3, data[at : at + size]
        at += size
    if at < len(data):
        raise invalid_message()


def prefixed(number: int, size: int) -> bytes:
    """Return what precedes the bytes of a protobuf field: its tag and their number."""
    out = bytearray()
    for value in (number << 3 | _BYTES, size):
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


# -- flatbuffers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A flatbuffer table; whatever points outside of its bytes is an InputError."""

    data: memoryview
    at: int

    @classmethod
    def root(cls, data: memoryview) -> Table:
        return cls(data, cls(data, 0)._read("<I", 0))

    def _read(self, kind: str, at: int) -> int:
        try:
            if at < 0:
                raise invalid_message()
            return int(struct.unpack_from(kind, self.data, at)[0])
        except struct.error:
            raise invalid_message() from None

    def _place(self, field: int) -> int | None:
        table = self.at - self._read("<i", self.at)
        if 4 + 2 * field >= self._read("<H", table):
            return None
        offset = self._read("<H", table + 4 + 2 * field)
        return self.at + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        """Return a scalar; 0 where it is left out."""
        place = self._place(field)
        return 0 if place is None else self._read(kind, place)

    def table(self, field: int) -> Table | None:
        """Return a table within this one."""
        place = self._place(field)
        return None if place is None else Table(self.data, place + self._read("<I", place))

    def vector(self, field: int, width: int) -> tuple[int, int]:
        """Return where a vector of elements of a width begins, and how many there are."""
        place = self._place(field)
        if place is None:
            return 0, 0
        start = place + self._read("<I", place)
        count = self._read("<I", start)
        if count * width > len(self.data) - start - 4:
            raise invalid_message()
        return start + 4, count

    def longs(self, field: int, width: int) -> list[tuple[int, ...]]:
        """Return a vector of structs of `width` int64."""
        start, count = self.vector(field, 8 * width)
        numbers = struct.unpack_from(f"<{count * width}q", self.data, start) if count else ()
        return [numbers[n : n + width] for n in range(0, len(numbers), width)]
