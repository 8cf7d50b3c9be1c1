"""Arrow Flight messages, read with bounds: nothing is decoded before its size after decoding is known to be allowed.

pyarrow's own Flight server decodes a message in C++ before Python sees it, so a few KiB may become gigabytes:
compressed buffers, dictionaries, views of one long text, rows without bytes. Here the headers are read first, by a
reader that trusts no offset.

Sources: Flight.proto (FlightData, FlightDescriptor); Message.fbs and Schema.fbs of Apache Arrow, format version 1.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedreg.engines.databend.encoding import Table, fields, invalid_message
from embedreg.engines.databend.frames import BODY, DESCRIPTOR, HEADER
from embedreg.errors import InputError
from embedreg.support.display import plain

if TYPE_CHECKING:
    from embedreg.engines.databend.spec import Limits

__all__ = ["Incoming", "Seen", "path_of"]

MAX_SCHEMA_BYTES = 2**16  # of a schema's header: a function takes one column
MAX_HEADER_BYTES = 2**20  # of a batch's header: 65,536 buffers of a string view
MAX_COLUMNS = 64
MAX_DICTIONARIES = 64  # messages
_SCHEMAS = 32  # that were read last, which are kept: a client sends the same one with each call

_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3  # MessageHeader of Message.fbs


def path_of(descriptor: bytes | memoryview) -> str:
    """Return the first part of a FlightDescriptor's path, the name of a function; "" where there is none."""
    for number, value in fields(memoryview(descriptor)):
        if number == 3 and isinstance(value, memoryview):
            return bytes(value[:1024]).decode("utf-8", "replace")
    return ""


def _as_bytes(column: pa.Array) -> pa.Array:
    """Return a column of texts over the same memory as bytes: a text that is not UTF-8 fails alone, as its own row."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(column.indices, _as_bytes(column.dictionary), safe=False)
    if pa.types.is_string(kind):
        return column.view(pa.binary())
    return column.view(pa.large_binary()) if pa.types.is_large_string(kind) else column


@dataclass(frozen=True)
class Seen:
    """A description of a message, from its header alone.

    Attributes:
        kind: "descriptor", "schema", "dictionary" or "batch".
        rows: of a batch.
        cost: the bytes that decoding and looking at it may take.
        path: the function's name, where the message has a descriptor.
    """

    kind: str
    rows: int = 0
    cost: int = 0
    path: str | None = None


class Incoming:
    """The Arrow stream of one call.

    Args:
        limits: what a batch may hold.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.schema: pa.Schema | None = None
        self._schema_message: pa.Buffer | None = None
        self._dictionaries: list[pa.Buffer] = []
        self._dictionary_bytes = 0

    @property
    def kept(self) -> int:
        """The bytes of dictionaries that are kept for the batches to come."""
        return sum(each.size for each in self._dictionaries)

    def check(self, message: bytes) -> Seen:
        """Check a message's header against the limits; the schema and dictionaries are kept.

        Raises:
            InputError: it is not a valid Flight message, or over a limit.
        """
        header, body, path = memoryview(b""), memoryview(b""), None
        for number, value in fields(memoryview(message)):
            if number in (DESCRIPTOR, HEADER, BODY) and not isinstance(value, memoryview):
                raise invalid_message()
            if number == DESCRIPTOR:
                path = path_of(value)
            elif number == HEADER:
                header = value
            elif number == BODY:
                body = value
        if not header:
            return Seen("descriptor", path=path)
        if len(header) > MAX_HEADER_BYTES:
            raise InputError(f"a message's header of {len(header):,} bytes is too large.", "send plain columns")
        table = Table.root(header)
        kind, content = table.number(1, "<B"), table.table(2)
        if content is None or table.number(3, "<q") != len(body):
            raise invalid_message()
        if kind == _SCHEMA:
            self._read_schema(header, body, content)
            return Seen("schema", path=path)
        if self.schema is None or kind not in (_DICTIONARY, _BATCH):
            raise invalid_message()
        if kind == _DICTIONARY:
            self._keep_dictionary(header, body, content)
            return Seen("dictionary", path=path)
        rows, grown = self._check_batch(content, body, self.schema)
        # the message, its decoded form, and copies of that: trimmed, distinct, expanded
        return Seen("batch", rows, 5 * grown + 48 * rows + len(body), path)

    def batch(self, message: bytes) -> pa.RecordBatch:
        """Decode a batch that has passed `check`.

        Raises:
            InputError: its contents are not valid Arrow, or over a limit.
        """
        parts = {number: value for number, value in fields(memoryview(message)) if number in (HEADER, BODY)}
        whole = _encapsulated(parts[HEADER], parts.get(BODY, memoryview(b"")))
        try:
            if self._dictionaries:
                assert self._schema_message is not None  # `check` requires it before all others
                stream = pa.BufferReader(b"".join([self._schema_message, *self._dictionaries, whole]))
                made = pa.ipc.open_stream(stream).read_next_batch()
            else:
                made = pa.ipc.read_record_batch(pa.ipc.read_message(whole), self.schema)
            made.validate()
            for column in made.columns:
                self._check_growth(column)
                _as_bytes(column).validate(full=True)  # what reads a column trusts its offsets
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, IndexError, StopIteration):
            raise InputError("a batch is not valid Arrow data.", "call it from Databend or a Flight client") from None
        return made

    # -- headers -----------------------------------------------------------------------------------------------------

    def _read_schema(self, header: memoryview, body: memoryview, content: Table) -> None:
        if self.schema is not None or len(body):
            raise invalid_message()
        _, count = content.vector(1, 4)
        if len(header) > MAX_SCHEMA_BYTES or count > MAX_COLUMNS:
            raise InputError(
                f"a schema of {count:,} columns and {len(header):,} bytes is too large.", "check CREATE FUNCTION"
            )
        self.schema, self._schema_message = _schema_of(bytes(header))

    def _check_batch(self, content: Table, body: memoryview, schema: pa.Schema | None) -> tuple[int, int]:
        """Return the rows of a batch and its bytes once it is decoded."""
        rows, limits = content.number(0, "<q"), self._limits
        if not 0 <= rows <= limits.max_rows:
            raise InputError(
                f"a batch of {rows:,} rows is over the {limits.max_rows:,} that the server takes.",
                f"a larger limits.max_rows than {limits.max_rows}",
            )
        if any(node[0] != rows or not 0 <= node[1] <= rows for node in content.longs(1, 2)):
            raise invalid_message()
        buffers, compressed = content.longs(2, 2), content.table(3) is not None
        grown = 0
        for start, size in buffers:
            if start < 0 or size < 0 or start + size > len(body):
                raise invalid_message()
            grown += size
            if compressed and size >= 8:
                (claimed,) = struct.unpack_from("<q", body, start)
                grown += max(0, claimed)
        if grown > len(body):  # overlapping buffers are copies once they are decoded, as compressed ones are
            self._refuse_growth(grown)
        if schema is not None and any(pa.types.is_dictionary(each) for each in schema.types):
            grown += limits.max_expanded_bytes
        elif schema is not None and any(map(_is_view, schema.types)):
            grown += limits.max_expanded_bytes if compressed else self._views(schema, buffers, body)
        return rows, max(grown, len(body))

    def _views(self, schema: pa.Schema, buffers: list[tuple[int, ...]], body: memoryview) -> int:
        """Estimate the texts behind views in bytes, for the reservation; the column itself is checked exactly."""
        total = 0
        if len(schema) == 1 and len(buffers) > 1:
            start, size = buffers[1]
            lengths = np.frombuffer(body[start : start + size // 16 * 16], "<i4")[::4]
            total = int(lengths[lengths > 0].sum(dtype=np.int64))
        return min(total, max(len(body), self._limits.max_expanded_bytes))

    def _keep_dictionary(self, header: memoryview, body: memoryview, content: Table) -> None:
        data = content.table(1)
        if data is None:
            raise invalid_message()
        _, grown = self._check_batch(data, body, None)
        if not content.number(2, "<B"):  # it replaces the one before
            self._dictionaries, self._dictionary_bytes = [], 0
        self._dictionary_bytes += grown
        self._refuse_growth(self._dictionary_bytes)
        if len(self._dictionaries) >= MAX_DICTIONARIES:
            raise InputError(f"a dictionary in more than {MAX_DICTIONARIES} parts is too large.", "send plain columns")
        self._dictionaries.append(_encapsulated(header, body))

    # -- contents ----------------------------------------------------------------------------------------------------

    def _check_growth(self, column: pa.Array) -> None:
        """Refuse a column that is too large once its dictionary or its views are expanded."""
        if pa.types.is_dictionary(column.type):
            lengths = pc.binary_length(column.dictionary).fill_null(0)
            grown = pc.sum(lengths.take(column.indices)).as_py() or 0
        elif _is_view(column.type):
            views = column.buffers()[1]
            lengths = np.frombuffer(views, "<i4")[::4][column.offset : column.offset + len(column)] if views else None
            grown = 0 if lengths is None else int(lengths[np.asarray(column.is_valid())].sum(dtype=np.int64))
            if grown <= column.nbytes:
                return
        else:
            return
        self._refuse_growth(grown)

    def _refuse_growth(self, grown: int) -> None:
        most = self._limits.max_expanded_bytes
        if grown > most:
            raise InputError(
                f"a compressed, dictionary or view column would become {grown:,} bytes, over the {most:,} that the "
                "server takes.",
                f"send it as plain text, or a larger limits.max_expanded_bytes than {most}",
            )


@functools.lru_cache(_SCHEMAS)
def _schema_of(header: bytes) -> tuple[pa.Schema, pa.Buffer]:
    """Return a schema, and its message."""
    whole = _encapsulated(memoryview(header), memoryview(b""))
    try:
        schema = pa.ipc.read_schema(pa.ipc.read_message(whole))
    except (pa.ArrowException, OSError, ValueError):
        raise invalid_message() from None
    for field in schema:
        if not _flat(field.type):
            raise InputError(f"it takes plain columns, and got one of type {plain(field.type, 60)}.", "cast it in SQL")
    return schema, whole


def _encapsulated(header: memoryview, body: memoryview) -> pa.Buffer:
    """Return a message as Arrow's stream format has it, aligned."""
    padded = -(-len(header) // 8) * 8
    whole = pa.allocate_buffer(8 + padded + len(body))
    view = memoryview(whole).cast("B") if memoryview(whole).format != "B" else memoryview(whole)
    struct.pack_into("<Ii", view, 0, 0xFFFFFFFF, padded)
    view[8 : 8 + len(header)] = header
    view[8 + len(header) : 8 + padded] = bytes(padded - len(header))
    view[8 + padded :] = body
    return whole


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _flat(kind: pa.DataType) -> bool:
    """Return whether each row of a type has bytes of its own in a message."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        return (
            not pa.types.is_dictionary(kind) and not _is_view(kind) and not pa.types.is_primitive(kind) and _flat(kind)
        )
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(text or binary or _is_view(kind) or pa.types.is_primitive(kind))
