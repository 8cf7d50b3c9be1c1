"""Read text files of any encoding and compression as UTF-8, and locate faults by line."""

from __future__ import annotations

import codecs
import contextlib
import decimal
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from embedreg.datasets.reading import Reading
from embedreg.datasets.storage import Storage
from embedreg.errors import StorageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PER_LINE", "Fault", "Text", "as_type", "breaks", "open_text", "quoted", "row_runs", "shown_value"]

_CHUNK_BYTES = 1 << 20  # of text that is parsed at a time; a piece begins at a chunk or inside one
MAX_ROW_BYTES = 256 << 20  # of one row: an unclosed quote must not exhaust the memory
_BOM = b"\xef\xbb\xbf"  # the byte order mark that Windows programs write
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {  # longer ones first: UTF-32's mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_KEPT = 4  # chunks that are kept behind the position of a stream: the next piece may begin in them
_OPEN = 4  # streams that are kept open for the next piece of their file
_SHOWN = 60  # characters of a value, in messages
_INTEGER = re.compile(r"[+-]?[0-9]+")
_BLANK = re.compile(r"[ \t\r\n]*")
PER_LINE = "write one object {...} per line"


class Fault(Exception):  # converted to a StorageError once its line is counted
    """An error at an offset of a text file.

    Args:
        offset: of a byte of the line, in the text as UTF-8.
        message: the error.
        other: the offset of a second position, and what is in its line.
    """

    def __init__(self, offset: int, message: str, hint: str, other: tuple[int, str] | None = None) -> None:
        super().__init__(message)
        self.offset, self.message, self.hint, self.other = offset, message, hint, other


class Unnamed(StorageError):  # the caller who knows the file adds its name
    """An error in a text file, without the file's name."""


class Text:
    """A text file, open for reading as UTF-8.

    An uncompressed UTF-8 file is read at any offset. Others are read from their start, so reading at an offset before
    the last `_KEPT` chunks starts over.
    """

    def __init__(self, storage: Storage, path: str, reading: Reading) -> None:
        self._storage, self._path, self._reading = storage, path, reading
        self.array = False  # whether it is one JSON array, whose elements are returned as lines
        self._begin()
        name = PurePosixPath(path.lower().removesuffix(".gz").removesuffix(".zst"))
        if name.suffix == ".json" and self.read(0, _CHUNK_BYTES).removeprefix(_BOM).lstrip()[:1] == b"[":
            self.array = True
            self._begin()
        self.start = 3 if self.read(0, 3) == _BOM else 0
        self.head: Any = None  # the header that a format has parsed, for a stream that is continued

    def _begin(self) -> None:
        self._file = self._storage.open(self._path)
        head = self._file.read(4)
        self._file.seek(0)
        packed = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
        raw: Any = self._file
        if packed is not None:
            import pyarrow as pa

            raw = pa.CompressedInputStream(self._file, packed)
            head = raw.read(4)
        encoding = self._reading.encoding or next(
            (name for mark, name in _MARKS.items() if head.startswith(mark)), None
        )
        self.encoding = encoding or "utf-8"
        self.seekable = packed is None and encoding is None and not self.array
        if self.seekable:
            return
        if packed is None:
            head = b""  # nothing was consumed
        pieces = _raw(raw, head)
        decoded = pieces if encoding is None else _recoded(pieces, encoding)
        self._chunks = _elements(decoded) if self.array else decoded
        self._kept, self._from = bytearray(), 0

    def read(self, start: int, size: int) -> bytes:
        """Return the bytes from an offset on, fewer than requested only at the end."""
        if self.seekable:
            whole = self._file.size()
            return bytes(self._file.read_at(max(min(size, whole - start), 0), start)) if start < whole else b""
        if start < self._from:
            self._begin()
        while self._from + len(self._kept) < start + size:
            block = next(self._chunks, None)
            if block is None:
                break
            self._kept += block
            if (spare := min(len(self._kept) - len(block), start - self._from) - _KEPT * _CHUNK_BYTES) > _CHUNK_BYTES:
                del self._kept[:spare]
                self._from += spare
        at = start - self._from
        return bytes(self._kept[at : at + size])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _raw(stream: Any, head: bytes) -> Iterator[bytes]:
    if head:
        yield head
    while block := stream.read(_CHUNK_BYTES):
        yield bytes(block)


def _recoded(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Convert text of another encoding to UTF-8; the text before a fault is yielded first."""
    decoder = codecs.getincrementaldecoder(encoding)()
    done = 0

    def decoded(piece: bytes, final: bool) -> Iterator[bytes]:
        nonlocal done
        try:
            made = decoder.decode(piece, final).encode()
        except UnicodeError as exc:
            good = getattr(exc, "object", b"")[: getattr(exc, "start", 0)]
            text = ""
            if isinstance(exc, UnicodeDecodeError):
                with contextlib.suppress(UnicodeError):
                    text = good.decode({"utf-16": exc.encoding, "utf-32": exc.encoding}.get(encoding, encoding))
            done += len(text.encode())
            yield text.encode()
            raise Fault(
                done, f"this is not valid {encoding}", "name the file's own encoding: --encoding cp1252"
            ) from None
        done += len(made)
        yield made

    for piece in pieces:
        yield from decoded(piece, False)
    yield from decoded(b"", True)


def _elements(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield each element of a JSON array as a line."""
    scan = json.JSONDecoder().raw_decode
    decoder, text, number, wanted = codecs.getincrementaldecoder("utf-8")(), "", 0, 0
    state, final = "start", False
    while not final:
        piece = next(pieces, None)
        final = piece is None
        try:
            text += decoder.decode(piece or b"", final)
        except UnicodeDecodeError:
            raise _element(number + 1, "this is not valid utf-8", "--encoding latin-1") from None
        if len(text) < wanted and not final:
            continue
        lines, at, wanted = [], 0, 0
        while (at := _BLANK.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches anywhere
            mark = text[at]
            if state == "start":
                at, state = at + 1, "start" if mark == "\ufeff" else "first"
            elif mark == "]" and state in ("first", "comma"):
                at, state = at + 1, "end"
            elif state in ("comma", "end"):
                if state == "end" or mark != ",":
                    raise _element(number, "expected a comma or the end of the array", "write the file again")
                at, state = at + 1, "value"
            else:
                try:
                    _, stop = scan(text, at)
                except RecursionError:
                    raise _element(number + 1, "not a JSON object: it is nested too deeply", PER_LINE) from None
                except ValueError:
                    if final:
                        break
                    stop = len(text)
                if stop == len(text) and not final:  # even a number may continue in the next chunk
                    break
                number, state = number + 1, "comma"
                # JSON strings contain no line breaks, so a space can replace one
                lines.append(text[at:stop].replace("\r", " ").replace("\n", " "))
                at = stop
        text = text[at:]
        wanted = 2 * len(text)
        if len(text) > MAX_ROW_BYTES or (final and state != "end"):
            raise _element(number + 1, "invalid JSON, or the array is truncated here", "write the file again")
        yield "".join(f"{line}\n" for line in lines).encode()


def _element(number: int, message: str, hint: str) -> Unnamed:
    return Unnamed(f"element {number} of the array: {message}.", hint)


# -- streams that are kept open for the next piece of their file ------------------------------------------------------

_waiting: OrderedDict[tuple[Any, ...], Text] = OrderedDict()
_lock = threading.Lock()


@contextlib.contextmanager
def open_text(storage: Storage, path: str, reading: Reading) -> Iterator[Text]:
    """Open a text file; a kept stream continues where the previous piece ended.

    Raises:
        StorageError: a `Fault` inside the block, with its line.
    """
    info = storage.info(path)
    key = (storage.uri, path, info.size, info.mtime_ns, reading.encoding, id(storage.filesystem))
    with _lock:
        text = _waiting.pop(key, None)
    if text is None:
        try:
            text = Text(storage, path, reading)
        except Fault as fault:
            raise _located(storage, path, reading, fault) from None
        except StorageError as exc:
            raise _named(storage, path, exc) from None
    whole = False
    try:
        yield text
        whole = True
    except GeneratorExit:  # a piece ends inside a chunk
        whole = True
        raise
    except Fault as fault:
        raise _located(storage, path, reading, fault) from None
    except StorageError as exc:
        raise _named(storage, path, exc) from None
    finally:
        if whole and not text.seekable:
            with _lock:
                _waiting[key] = text
                out = [_waiting.popitem(last=False)[1] for _ in range(len(_waiting) - _OPEN)]
        else:
            out = [text]
        for each in out:
            each.close()


def _named(storage: Storage, path: str, exc: StorageError) -> StorageError:
    return StorageError(f"{storage.shown(path)}, {exc.message}", exc.hint) if isinstance(exc, Unnamed) else exc


def _located(storage: Storage, path: str, reading: Reading, fault: Fault) -> StorageError:
    """Convert a fault to an error that names the file and the line."""
    try:
        text = Text(storage, path, reading)
    except Fault:  # it cannot even be opened
        return StorageError(f"{storage.shown(path)}, near its start: {fault.message}.", fault.hint)
    try:
        line = _line(text, fault.offset)
        what = f"element {line} of the array" if text.array else f"line {line}"
        other = "" if fault.other is None else f": in line {_line(text, fault.other[0])} {fault.other[1]}"
    finally:
        text.close()
    return StorageError(f"{storage.shown(path)}, {what}: {fault.message}{other}.", fault.hint)


def _line(text: Text, offset: int) -> int:
    at, found = 0, 1
    while at < offset:
        block = text.read(at, min(_CHUNK_BYTES, offset - at))
        if not block:
            break
        at += len(block)
        # one byte more, so that a CR LF is not counted twice
        found += breaks(block) - (block[-1:] == b"\r" and text.read(at, 1) == b"\n")
    return found


def breaks(block: bytes) -> int:
    """Return the number of line breaks: LF, CR LF, or CR alone."""
    return block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")


# -- shared by both formats --------------------------------------------------------------------------------------------


def row_runs(text: Text, start: int, stop: int | None, whole: Any) -> Iterator[tuple[int, int, Any]]:
    """Read runs of complete rows.

    Args:
        start: the offset at which a row begins.
        stop: the offset at which a row ends; None for the end of the file.
        whole: `whole(block, offset, last)` returns the number of bytes of complete rows in the block, and the parsed
            rows; 0 bytes mean that the row continues after the block.
    Yields:
        The start of each run, its end, and the parsed rows.
    """
    block, size = b"", _CHUNK_BYTES
    while True:
        wanted = size if stop is None else min(size, stop - start - len(block))
        more = text.read(start + len(block), wanted)
        last = len(more) < wanted or (stop is not None and start + len(block) + len(more) >= stop)
        block += more
        if not block:
            return
        taken, made = whole(block, start, last)
        if taken:
            yield start, start + taken, made
            start, block, size = start + taken, block[taken:], _CHUNK_BYTES
        else:
            if len(block) > MAX_ROW_BYTES:
                raise Fault(start, f"a row that begins here is longer than {MAX_ROW_BYTES >> 20} MiB", "shorten it")
            size = max(len(block), _CHUNK_BYTES)  # double it each time
        if last:
            return


def as_type(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast texts to a declared type.

    Raises:
        pa.ArrowInvalid: a text is not a value of that type, or a number that the float type cannot hold exactly.
    """
    import numpy as np
    import pyarrow as pa

    made = values.cast(kind)
    if not pa.types.is_floating(kind):
        return made
    numbers = made.to_numpy(zero_copy_only=False)  # a null is NaN
    for row in np.flatnonzero(np.abs(numbers) >= 2**53).tolist():
        text, number = values[row].as_py(), numbers[row]
        if "inf" in text.lower() if np.isinf(number) else not _INTEGER.fullmatch(text):
            continue
        if np.isinf(number) or decimal.Decimal(text) != decimal.Decimal(float(number)):
            raise pa.ArrowInvalid(f"{text[:_SHOWN]} is not a {kind}")
    return made


def shown_value(value: Any) -> str:
    """Return a value as shown in messages."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return repr(text) if isinstance(value, str) else text


def quoted(names: Any) -> str:
    """Return a comma-separated list of quoted names."""
    return ", ".join(map(repr, names))
