"""Flight messages of at most 4 MiB that would become much more, and a client that sends them as bytes."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

SERVICE = "/arrow.flight.protocol.FlightService/"
MOST = 4 * 2**20


def varint(value: int) -> bytes:
    """Return a number as protobuf has it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def descriptor(name: str | bytes) -> bytes:
    """Return a FlightDescriptor of a path."""
    raw = name.encode() if isinstance(name, str) else name
    return b"\x08\x01\x1a" + varint(len(raw)) + raw


def flight_data(header: bytes = b"", body: bytes = b"", path: bytes = b"") -> bytes:
    """Return a FlightData."""
    parts = [b"\x0a" + varint(len(path)) + path] if path else []
    parts += [b"\x12" + varint(len(header)) + header] if header else []
    parts += [varint(1000 << 3 | 2) + varint(len(body)) + body] if body else []
    return b"".join(parts)


def messages(table: pa.RecordBatch | Iterable[pa.RecordBatch], **options: Any) -> list[tuple[bytes, bytes]]:
    """Return (header, body) of each message of a stream: the schema, dictionaries, batches."""
    batches = [table] if isinstance(table, pa.RecordBatch) else list(table)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    raw, at, found = sink.getvalue().to_pybytes(), 0, []
    while at + 8 < len(raw):
        size = int.from_bytes(raw[at + 4 : at + 8], "little")
        header = raw[at + 8 : at + 8 + size]
        body = pa.ipc.read_message(raw[at:]).body
        length = 0 if body is None else body.size
        found.append((header, raw[at + 8 + size : at + 8 + size + length]))
        at += 8 + size + length
    return found


def stream(name: str, table: Any, **options: Any) -> list[bytes]:
    """Return the FlightData messages of a call."""
    first, *rest = messages(table, **options)
    return [flight_data(*first, path=descriptor(name)), *(flight_data(*each) for each in rest)]


def replaced(header: bytes, old: int, new: int) -> bytes:
    """Return a header in which an int64 is another."""
    assert struct.pack("<q", old) in header
    return header.replace(struct.pack("<q", old), struct.pack("<q", new))


def column(values: pa.Array) -> pa.RecordBatch:
    """Return a batch of one column."""
    return pa.record_batch({"input": values})


def texts(rows: int, size: int) -> pa.Array:
    """Return distinct texts."""
    return pa.array([f"{n:0{size}d}" for n in range(rows)], pa.string())


def nested(depth: int) -> pa.Array:
    """Return a list in a list in a list."""
    made = pa.array(["x"])
    for _ in range(depth):
        made = pa.ListArray.from_arrays(pa.array([0, len(made)], pa.int32()), made)
    return made


def lying(rows: int) -> list[bytes]:
    """Return a batch of one row whose header reports that it has many."""
    (schema, _), (header, body) = messages(column(pa.array(["only"] * 4711)))
    return [flight_data(schema, path=descriptor("f")), flight_data(replaced(header, 4711, rows), body)]


def claiming(size: int) -> list[bytes]:
    """Return a compressed batch whose buffers say that they are larger than they are."""
    (schema, _), (header, body) = messages(column(pa.array(["a" * 4711])), compression="zstd")
    whole = body.replace(struct.pack("<q", 4711), struct.pack("<q", size))
    assert whole != body
    return [flight_data(schema, path=descriptor("f")), flight_data(header, whole)]


def far(offset: int) -> list[bytes]:
    """Return a text column whose last offset lies far outside."""
    (schema, _), (header, body) = messages(column(pa.array(["a", "b", "c"])))
    return [
        flight_data(schema, path=descriptor("f")),
        flight_data(header, body.replace(struct.pack("<4i", 0, 1, 2, 3), struct.pack("<4i", 0, 1, 2, offset))),
    ]


def deltas(parts: int) -> Iterator[bytes]:
    """Yield dictionaries that grow, without end."""
    values = pa.array(["y" * 100_000])
    batches = [
        column(pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.concat_arrays([values] * (n + 1))))
        for n in range(2)
    ]
    first, dictionary, _, delta, _ = messages(batches, emit_dictionary_deltas=True)
    yield flight_data(*first, path=descriptor("f"))
    yield flight_data(*dictionary)
    for _ in range(parts):
        yield flight_data(*delta)


def replacements(parts: int) -> Iterator[bytes]:
    """Yield dictionaries of 4 MB that replace each other."""
    batch = column(pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(["y" * 4_000_000])))
    first, dictionary, rows = messages(batch)
    yield flight_data(*first, path=descriptor("f"))
    for _ in range(parts):
        yield flight_data(*dictionary)
    yield flight_data(*rows)


def aliases(rows: int, size: int) -> pa.Array:
    """Return views that all look at one long text."""
    view = struct.pack("<i4sii", size, b"zzzz", 0, 0)
    buffers = [None, pa.py_buffer(view * rows), pa.py_buffer(b"z" * size)]
    return pa.Array.from_buffers(pa.string_view(), rows, buffers)


def spread(rows: int) -> pa.Array:
    """Return one text for many rows, as a run."""
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array(["x" * 100_000]))


def dictionary(rows: int, size: int) -> pa.Array:
    """Return one long text that many rows name."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int16)), pa.array(["d" * size]))


def wide(columns: int) -> list[bytes]:
    """Return a schema of many columns."""
    return stream("f", pa.record_batch({f"c{n}": pa.array(["x"]) for n in range(columns)}))


def annotated(size: int) -> list[bytes]:
    """Return a schema with a large annotation."""
    return stream("f", column(pa.array(["x"])).replace_schema_metadata({"k": "v" * size}))


# Each is one call of the function f; a repeated one shows that nothing is left of those before.
KINDS: dict[str, Callable[[], Iterable[bytes]]] = {
    "dictionary": lambda: stream("f", column(dictionary(15_000, 100_000))),
    "dictionary of many rows": lambda: stream("f", column(dictionary(131_000, 200))),
    "zstd": lambda: stream("f", column(pa.array(["a" * 2**30])), compression="zstd"),
    "lz4": lambda: stream("f", column(pa.array(["a" * 2**29])), compression="lz4"),
    "zstd under the bound": lambda: stream("f", column(pa.array(["a" * 2**19] * 62)), compression="zstd"),
    "zstd views": lambda: stream("f", column(aliases(131_000, 100)), compression="zstd"),
    "zstd dictionary": lambda: stream("f", column(dictionary(10, 2**28)), compression="zstd"),
    "empty rows": lambda: stream("f", column(pa.array([""] * 2_000_000)), compression="zstd"),
    "allowed empty rows": lambda: stream("f", column(pa.array([""] * 131_072, pa.large_string()))),
    "rows of null type": lambda: stream("f", column(pa.nulls(40_000_000))),
    "null texts": lambda: stream("f", column(pa.nulls(131_000, pa.string()))),
    "rows without columns": lambda: lying_without_columns(40_000_000),
    "a run": lambda: stream("f", column(spread(2**30))),
    "views of one text": lambda: stream("f", column(aliases(100_000, 2**20))),
    "views under the bound": lambda: stream("f", column(aliases(300, 100_000))),
    "lists": lambda: stream("f", column(nested(40))),
    "structs": lambda: stream("f", column(pa.array([{"a": {"b": ["x"] * 1000}}] * 100))),
    "deltas": lambda: deltas(2000),
    "replaced dictionaries": lambda: replacements(50),
    "more rows than there are": lambda: lying(2**40),
    "a negative number of rows": lambda: lying(-1),
    "rows within the bound without bytes": lambda: lying(100_000),
    "a claim of a terabyte": lambda: claiming(2**40),
    "a claim of 30 MB": lambda: claiming(30 * 2**20),
    "a negative claim": lambda: claiming(-2),
    "far offsets": lambda: far(2**31 - 1),
    "negative offsets": lambda: far(-5),
    "a wide schema": lambda: wide(20_000),
    "a large annotation": lambda: annotated(3_900_000),
    "many batches": lambda: itertools.islice(endless(), 1000),
    "many small texts": lambda: stream("f", column(texts(131_000, 20))),
    "texts that come twice": lambda: stream("f", column(pa.concat_arrays([texts(65_000, 16)] * 2))),
    "one long text": lambda: stream("f", column(pa.array(["l" * 4_000_000]))),
    "words without end": lambda: stream("f", column(pa.array(["w" * 2**17 + str(n) for n in range(30)]))),
    "no protobuf": lambda: [b"\xff" * 4_000_000],
    "lengths without end": lambda: [b"\x12" + b"\xff" * 9 + b"\x01" + b"x" * 100],
    "a long name": lambda: [flight_data(path=descriptor(b"n" * 4_000_000))],
    "many descriptors": lambda: [flight_data(path=descriptor("f")) * 200_000],
    "a header of zeros": lambda: [flight_data(bytes(4_000_000), path=descriptor("f"))],
    "a body without a header": lambda: [flight_data(b"", bytes(4_000_000), path=descriptor("f"))] * 20,
    "not UTF-8": lambda: stream("f", column(pa.array([b"\xff\xfe" * 100_000]).view(pa.string()))),
}


def lying_without_columns(rows: int) -> list[bytes]:
    """Return many rows of no columns."""
    made = pa.RecordBatch.from_struct_array(pa.array([{}] * 4711, pa.struct([])))
    (schema, _), (header, body) = messages(made)
    return [flight_data(schema, path=descriptor("builtin_healthy")), flight_data(replaced(header, 4711, rows), body)]


def endless() -> Iterator[bytes]:
    """Yield batches of one row."""
    first, batch = stream("f", column(pa.array(["again"])))
    yield first
    while True:
        yield batch


class RawClient:
    """Sends messages as they are.

    Args:
        port: of the server on this machine.
    """

    def __init__(self, port: int) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options)

    def send(
        self, parts: Iterable[bytes], method: str = "DoExchange", timeout_s: float = 60, *, squeeze: bool = False
    ) -> tuple[int, str]:
        """Send messages, read all answers; return how many came, and the error in its place, "" for none.

        Args:
            squeeze: whether gRPC compresses the messages.
        """
        answers = 0
        how = grpc.Compression.Gzip if squeeze else None
        call = self.channel.stream_stream(SERVICE + method)(iter(parts), timeout=timeout_s, compression=how)
        try:
            for _ in call:
                answers += 1
        except grpc.RpcError as exc:
            return answers, f"{exc.code().name}: {exc.details()}"
        return answers, ""

    def hold(self, parts: Iterable[bytes], *, read: bool = True) -> Any:
        """Send messages, and keep the call open."""
        done = threading.Event()

        def sending() -> Iterator[bytes]:
            yield from parts
            done.wait(120)

        call = self.channel.stream_stream(SERVICE + "DoExchange")(sending(), timeout=120)
        if read:
            threading.Thread(target=lambda: list(_until_error(call)), daemon=True).start()
        call.let_go = done.set
        return call

    def close(self) -> None:
        """End all calls."""
        self.channel.close()


def _until_error(call: Any) -> Iterator[bytes]:
    try:
        yield from call
    except grpc.RpcError:
        return
