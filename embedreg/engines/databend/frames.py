"""Arrow Flight messages of an answer."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from embedreg.engines.databend.encoding import prefixed

__all__ = ["BODY", "DESCRIPTOR", "HEADER", "frames"]

DESCRIPTOR, HEADER, BODY = 1, 2, 1000  # fields of FlightData in Flight.proto
FRAME_BYTES = 2**22 - 2**16  # of an answer: many clients take no message of over 4 MiB
_COPIED_TWICE = 2**16  # bytes of an answer that is so small that a second copy costs less than avoiding it
_PLAIN = pa.ipc.IpcWriteOptions()


def frames(made: pa.Schema | pa.RecordBatch) -> Iterator[bytes]:
    """Yield the FlightData messages of a schema or a batch; a large batch goes in several.

    Each is made when it is requested: making all at once needs fresh pages of memory and takes ten times as long.
    """
    if isinstance(made, pa.Schema) or made.nbytes <= _COPIED_TWICE:
        view = memoryview(made.serialize())
        stop = 8 + int.from_bytes(view[4:8], "little")
        yield _flight_data([view[8:stop]], [view[stop:]])
        return
    rows = max(1, FRAME_BYTES * made.num_rows // made.nbytes)
    written = _Written()
    with pa.PythonFile(written, "w") as file, pa.ipc.new_stream(file, made.schema, options=_PLAIN) as writer:
        for at in range(0, made.num_rows, rows):
            writer.write_batch(made.slice(at, rows))
            parts = written.taken()
            if at == 0:
                _, parts = _divided(parts)  # the schema, which comes with the first batch
            yield _flight_data(*_divided(parts))


def _divided(parts: list[memoryview]) -> tuple[list[memoryview], list[memoryview]]:
    """Return the header of an encapsulated message, and what comes after it."""
    left, upto = int.from_bytes(parts[1], "little"), 2
    while left > 0:
        left -= len(parts[upto])
        upto += 1
    return parts[2:upto], parts[upto:]


def _flight_data(header: list[memoryview], body: list[memoryview]) -> bytes:
    """Return a FlightData of the parts of an Arrow message: the one place where an answer is copied."""
    whole: list[bytes | memoryview] = [prefixed(HEADER, sum(map(len, header))), *header]
    if size := sum(map(len, body)):
        whole += [prefixed(BODY, size), *body]
    return b"".join(whole)


class _Written:
    """A file to which Arrow writes, and which keeps the buffers as they are."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[memoryview] = []

    def write(self, part: bytes | pa.Buffer) -> None:
        """Keep what is written."""
        self._parts.append(memoryview(part))

    def flush(self) -> None:
        """Do nothing: there is no file behind it."""

    def close(self) -> None:
        """Close the file, and drop the end of the stream."""
        self.closed, self._parts = True, []

    def taken(self) -> list[memoryview]:
        """Return what was written since the last time."""
        parts, self._parts = self._parts, []
        return parts
