"""Text files as UTF-8, whatever their compression and encoding, with the place of each fault in them."""

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

__all__ = ["PER_LINE", "Fault", "Text", "as_type", "breaks", "growing", "open_text", "quoted", "shown_value"]

_CHUNK_BYTES = 1 << 20  # of text, parsed at a time; pieces begin at such chunks, or inside of one
MAX_ROW_BYTES = 256 << 20  # of one row: a quote that is never closed must not fill the memory
_BOM = b"\xef\xbb\xbf"  # a byte order mark, which Windows programs write
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = {  # the longer ones first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_KEPT = 4  # chunks behind the place of a stream, which the next piece may begin in
_OPEN = 4  # streams that wait for the next piece of their file
_SHOWN = 60  # characters of a value, in messages
_INTEGER = re.compile(r"[+-]?[0-9]+")
_BLANK = re.compile(r"[ \t\r\n]*")
PER_LINE = "write one object {...} per line"


class Fault(Exception):  # it becomes a StorageError once its line is counted
    """What is wrong at a place of a text file.

    Args:
        offset: of a byte of the line, in the text as UTF-8.
        message: what is wrong there.
        other: the offset of another place, and what stands in its line.
    """

    def __init__(self, offset: int, message: str, hint: str, other: tuple[int, str] | None = None) -> None:
        super().__init__(message)
        self.offset, self.message, self.hint, self.other = offset, message, hint, other


class Unnamed(StorageError):  # whoever knows the file names it
    """What is wrong in a text file, without the file's name."""


class Text:
    """A text file, open for reading as UTF-8.

    A file that is UTF-8 already is read at any place. Others are read from their start, so a place before the last
    `_KEPT` chunks means to begin again.
    """

    def __init__(self, storage: Storage, path: str, reading: Reading) -> None:
        self._storage, self._path, self._reading = storage, path, reading
        self.array = False  # whether it is one JSON array, of which each element is given as a line
        self._begin()
        name = PurePosixPath(path.lower().removesuffix(".gz").removesuffix(".zst"))
        if name.suffix == ".json" and self.read(0, _CHUNK_BYTES).removeprefix(_BOM).lstrip()[:1] == b"[":
            self.array = True
            self._begin()
        self.start = 3 if self.read(0, 3) == _BOM else 0
        self.head: Any = None  # what a format has found at the start, for a stream that goes on

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
            head = b""  # nothing was taken from the file
        pieces = _raw(raw, head)
        decoded = pieces if encoding is None else _recoded(pieces, encoding)
        self._coming = _elements(decoded) if self.array else decoded
        self._kept, self._from = bytearray(), 0

    def read(self, start: int, size: int) -> bytes:
        """Return the bytes from a place on, fewer than asked for only at the end."""
        if self.seekable:
            whole = self._file.size()
            return bytes(self._file.read_at(max(min(size, whole - start), 0), start)) if start < whole else b""
        if start < self._from:
            self._begin()
        while self._from + len(self._kept) < start + size:
            block = next(self._coming, None)
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
    """Turn text of another encoding into UTF-8; what comes before a fault is given first."""
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
                done, f"what stands here is not valid {encoding}", "name the file's own encoding: --encoding cp1252"
            ) from None
        done += len(made)
        yield made

    for piece in pieces:
        yield from decoded(piece, False)
    yield from decoded(b"", True)


def _elements(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Give each element of a JSON array as a line."""
    scan = json.JSONDecoder().raw_decode
    decoder, text, number, wanted = codecs.getincrementaldecoder("utf-8")(), "", 0, 0
    state, final = "start", False
    while not final:
        piece = next(pieces, None)
        final = piece is None
        try:
            text += decoder.decode(piece or b"", final)
        except UnicodeDecodeError:
            raise _element(number + 1, "what stands here is not valid utf-8", "--encoding latin-1") from None
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
                    raise _element(number, "no comma follows, and the array does not end", "write the file again")
                at, state = at + 1, "value"
            else:
                try:
                    _, stop = scan(text, at)
                except RecursionError:
                    raise _element(number + 1, "no JSON object: it is nested too deeply", PER_LINE) from None
                except ValueError:
                    if final:
                        break
                    stop = len(text)
                if stop == len(text) and not final:  # even a number that ends here may go on
                    break
                number, state = number + 1, "comma"
                # a line break cannot stand inside of a JSON text, so that a blank may stand for it
                lines.append(text[at:stop].replace("\r", " ").replace("\n", " "))
                at = stop
        text = text[at:]
        wanted = 2 * len(text)
        if len(text) > MAX_ROW_BYTES or (final and state != "end"):
            raise _element(number + 1, "no JSON, or the array breaks off here", "write the file again")
        yield "".join(f"{line}\n" for line in lines).encode()


def _element(number: int, message: str, hint: str) -> Unnamed:
    return Unnamed(f"element {number} of the array: {message}.", hint)


# -- streams that wait for the next piece of their file ----------------------------------------------------------------

_waiting: OrderedDict[tuple[Any, ...], Text] = OrderedDict()
_lock = threading.Lock()


@contextlib.contextmanager
def open_text(storage: Storage, path: str, reading: Reading) -> Iterator[Text]:
    """Open a text file; a stream goes on where the piece before has left it.

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
    except GeneratorExit:  # a piece ends inside of a chunk
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
    """Return a fault as an error that names the file and the line."""
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
        # one more byte, so that no CR LF is counted as two
        found += breaks(block) - (block[-1:] == b"\r" and text.read(at, 1) == b"\n")
    return found


def breaks(block: bytes) -> int:
    """Count the line breaks: LF, CR LF, and CR alone."""
    return block.count(b"\n") + block.count(b"\r") - block.count(b"\r\n")


# -- what both formats need --------------------------------------------------------------------------------------------


def growing(text: Text, start: int, stop: int | None, whole: Any) -> Iterator[tuple[int, int, Any]]:
    """Read runs of whole rows.

    Args:
        start: where a row begins.
        stop: where one ends; None for the end of the file.
        whole: `whole(block, offset, last)` returns how many bytes of the block are whole rows, and what it made of
            them; none at all means that the row goes on.
    Yields:
        The offset of each run, where it ends, and what `whole` made of it.
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
                raise Fault(start, f"a row that begins here is longer than {MAX_ROW_BYTES >> 20} MiB", "cut it")
            size = max(len(block), _CHUNK_BYTES)  # twice as much each time
        if last:
            return


def as_type(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return texts as the type that was declared for them.

    Raises:
        pa.ArrowInvalid: one of them is none of that type, or an integer or a power that its floats do not hold.
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
            raise pa.ArrowInvalid(f"{text[:_SHOWN]} is no {kind}")
    return made


def shown_value(value: Any) -> str:
    """Return a value as a message shows it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return repr(text) if isinstance(value, str) else text


def quoted(names: Any) -> str:
    """List names in quotes."""
    return ", ".join(map(repr, names))
