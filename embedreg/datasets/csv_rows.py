"""Split CSV into rows of fields: their start, end and whether they are quoted (RFC 4180).

A quote opens a field only at the start of the field. Inside it two quotes mean one, and the closing quote must be
followed by a delimiter or the end of the row. Anywhere else a quote is an ordinary character.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedreg.datasets.texts import Fault

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Rows", "tokenized"]

_LF, _CR, _QUOTE = 10, 13, 34
_DOUBLE = 'a quote inside quotes is written twice: ""'
_GATHERED = 64  # mean bytes per field: longer fields are copied one by one


@dataclass(frozen=True)
class Rows:
    """The complete rows of one block.

    Attributes:
        offset: of the block in the text.
        starts, stops: (n, d) of each field in the block, quotes not included.
        quoted: (n, d), which fields were in quotes.
        begun: (n,), the start of each row.
        blank: number of empty lines.
    """

    block: bytes
    offset: int
    starts: np.ndarray
    stops: np.ndarray
    quoted: np.ndarray
    begun: np.ndarray
    blank: int

    def __len__(self) -> int:
        return len(self.begun)

    def column(self, number: int) -> pa.Array:
        """Return a column as binary; it may be invalid UTF-8."""
        import pyarrow as pa
        import pyarrow.compute as pc

        starts, stops, quoted = self.starts[:, number], self.stops[:, number], self.quoted[:, number]
        offsets = np.zeros(len(starts) + 1, np.int32)
        np.cumsum(stops - starts, out=offsets[1:])
        total = int(offsets[-1])
        if total > _GATHERED * len(starts):
            data = b"".join(self.block[a:b] for a, b in zip(starts.tolist(), stops.tolist(), strict=True))
        else:
            at = np.arange(total) + np.repeat(starts - offsets[:-1], np.diff(offsets))
            data = np.frombuffer(self.block, np.uint8)[at].tobytes()
        made = pa.Array.from_buffers(pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        if quoted.any() and b'""' in data:
            made = pc.if_else(pa.array(quoted), pc.replace_substring(made, b'""', b'"'), made)
        return made


def tokenized(block: bytes, offset: int, last: bool, delimiter: int, width: int | None) -> tuple[int, Rows | None]:
    """Find the rows and fields of a block that begins with a row.

    Args:
        offset: of the block, for errors.
        last: whether the text ends with the block; otherwise its last row may continue.
        width: the number of fields in a row; None to read the first row only, which determines it.
    Returns:
        The number of bytes of complete rows, and the rows.
    Raises:
        Fault: ambiguous quotes, or a row of another width.
    """
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    if not _plain(data, quotes, delimiter):
        quotes = _structural(data, quotes, delimiter, offset, last)
    if last and len(quotes) % 2:
        raise Fault(offset + int(quotes[-1]), "the quote that opens here is never closed", _DOUBLE)
    flags = np.zeros(len(data), np.uint8)
    flags[quotes] = 1
    outside = np.cumsum(flags, dtype=np.uint8) % 2 == 0  # overflow is harmless: parity is kept
    returns = (data == _CR) & outside
    ends = (data == _LF) & outside
    if returns.any():
        following = np.append(data[1:], _LF if not last else 0)  # the LF of a final CR may be in the next block
        ends |= returns & (following != _LF)
    row_ends = np.flatnonzero(ends)
    if last and len(data) and (not len(row_ends) or row_ends[-1] != len(data) - 1):
        row_ends = np.append(row_ends, len(data))
    if not len(row_ends):
        return 0, None
    if width is None:
        first = _first_filled(data, row_ends)
        if first is None:
            return (len(data), None) if last else (0, None)
        row_ends = row_ends[:first]
    taken = min(int(row_ends[-1]) + 1, len(data))
    separators = np.flatnonzero((data[: row_ends[-1]] == delimiter) & outside[: row_ends[-1]])
    if width is None and len(row_ends) > 1:
        separators = separators[separators > row_ends[-2]]
    stops = np.sort(np.concatenate([separators, row_ends]))
    starts = np.concatenate([[0], stops[:-1] + 1])
    is_end = np.isin(stops, row_ends, assume_unique=True)
    at_crlf = is_end & (stops > starts) & (data[np.minimum(stops, len(data) - 1)] == _LF)
    at_crlf &= data[np.maximum(stops - 1, 0)] == _CR
    stops = stops - at_crlf
    begun = np.concatenate([[0], np.flatnonzero(is_end)[:-1] + 1])  # of each row's first field
    widths = np.diff(np.append(begun, len(stops)))
    blank = (widths == 1) & (stops[begun] == starts[begun])
    if blank.any():
        keep = ~np.repeat(blank, widths)
        row_starts, widths = starts[begun][~blank], widths[~blank]
        starts, stops = starts[keep], stops[keep]
    else:
        row_starts = starts[begun]
    width = width or int(widths[0])
    if (widths != width).any():
        odd = int(np.flatnonzero(widths != width)[0])
        raise Fault(
            offset + int(row_starts[odd]),
            f"the file cannot be read as csv: the row has {widths[odd]} field(s), the header {width}",
            f'put a text with a delimiter into quotes: "..."; and {_DOUBLE}',
        )
    quoted = (stops > starts) & (data[np.minimum(starts, len(data) - 1)] == _QUOTE)
    shape = (len(row_starts), width)
    return taken, Rows(
        block,
        offset,
        (starts + quoted).reshape(shape),
        (stops - quoted).reshape(shape),
        quoted.reshape(shape),
        row_starts,
        int(blank.sum()),
    )


def _first_filled(data: np.ndarray, row_ends: np.ndarray) -> int | None:
    """Return the number of rows up to and including the first that is not blank; None if there is none."""
    begun = 0
    for number, end in enumerate(row_ends.tolist()):
        if data[begun:end].tobytes().strip(b"\r\n"):
            return number + 1
        begun = end + 1
    return None


def _plain(data: np.ndarray, quotes: np.ndarray, delimiter: int) -> bool:
    """Return whether quotes alternately open and close fields; this test is vectorised."""
    if not len(quotes):
        return True
    before = np.concatenate([[_LF], data[:-1]])[quotes]
    after = np.append(data[1:], _LF)[quotes]
    edges = [delimiter, _LF, _CR, _QUOTE]
    return bool(np.isin(before[0::2], edges).all() and np.isin(after[1::2], edges).all())


def _structural(data: np.ndarray, quotes: np.ndarray, delimiter: int, offset: int, last: bool) -> np.ndarray:
    """Return the quotes that open or close fields, or are doubled inside them."""
    edges = (delimiter, _LF, _CR)
    kept: list[int] = []
    opened: int | None = None
    places, size, number = quotes.tolist(), len(data), 0
    while number < len(places):
        at = places[number]
        number += 1
        if opened is None:
            if at == 0 or data[at - 1] in edges:
                opened = at
                kept.append(at)
            continue
        if number < len(places) and places[number] == at + 1:
            kept += [at, at + 1]
            number += 1
        elif at + 1 == size and not last:
            break  # the next block may begin with another quote
        elif at + 1 == size or data[at + 1] in edges:
            kept.append(at)
            opened = None
        else:
            raise Fault(
                offset + opened,
                "the quote that opens here is not closed",
                _DOUBLE,
                (offset + at, "no delimiter follows a quote"),
            )
    return np.array(kept, np.int64)
