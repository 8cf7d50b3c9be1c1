"""Pieces of a source: each is embedded at once, published under one name, and recorded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from embedreg.datasets.formats import Span, Unit
from embedreg.datasets.sources import Input
from embedreg.embedding.table import BadRow
from embedreg.runtime.remote.usage import TotalUsage

__all__ = ["PIECE_BYTES", "PIECE_ROWS", "Outcome", "Piece", "cut_up", "stem_of", "well_named"]

PIECE_ROWS = 65_536  # 100 MB of 384-dimensional vectors; an interruption loses at most this much work
PIECE_BYTES = 256 << 20  # of the source as stored; a piece of images has fewer rows
_TOO_LARGE = 2  # times the rows of a piece: a larger row group is split, which costs reading it again


@dataclass(frozen=True)
class Piece:
    """A part of one input, and the output that its rows are written to.

    Attributes:
        output: its name in the destination; no two pieces share one.
        input: the file or fragment, as it was when the job was planned.
        span: its rows.
    """

    output: str
    input: Input
    span: Span

    @property
    def rows(self) -> int | None:
        """The number of rows it reads; None if unknown."""
        return self.span.rows


@dataclass(frozen=True)
class Outcome:
    """The result of a piece, as the ledger records it.

    Attributes:
        piece: the piece.
        rows: rows read.
        written: rows written; fewer where bad rows were dropped.
        embedded, cached, given, nulls, zeros, clipped: as in `Report`.
        bad_rows: how many rows failed.
        bad: these rows, numbered as in their input; the ledger stores them, but `records` leaves them out.
        stored: what the destination needs to find the piece again.
        seconds: its duration.
        zero_vectors: the policy it was run with.
        usage: what remote functions cost for it, including attempts that were interrupted.
    """

    piece: Piece
    rows: int
    written: int
    embedded: int = 0
    cached: int = 0
    given: int = 0
    nulls: int = 0
    zeros: int = 0
    bad_rows: int = 0
    bad: tuple[BadRow, ...] = ()
    stored: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    zero_vectors: str | None = None
    usage: TotalUsage = field(default_factory=TotalUsage)
    clipped: int = 0


def cut_up(inputs: Sequence[Input], piece_rows: int, *, full_names: bool = False, by_rows: bool = True) -> list[Piece]:
    """Cut a source into pieces, in the order of its rows.

    Args:
        inputs: its files.
        piece_rows: about how many rows a piece has; exactly that many for text.
        by_rows: False for a job of an earlier version, which cut text between its units only.
        full_names: whether an output keeps its input's extension (`a.csv-00000.parquet` for `a.csv`), so that names
            are unique.
    """
    return [
        Piece(_name(each.path, part, len(spans), full_names), dataclasses.replace(each, units=()), span)
        for each in inputs
        for spans in [list(_spans(each.units, piece_rows, by_rows))]
        for part, span in enumerate(spans)
    ]


def _name(path: str, part: int, parts: int, full: bool) -> str:
    if full:
        return f"{path}-{part:05}.parquet"
    stem = stem_of(path)
    return f"{stem}.parquet" if parts == 1 else f"{stem}-{part:05}.parquet"


def stem_of(path: str) -> str:
    """Return an input's name without the extensions of its format and compression."""
    packed = PurePosixPath(path).suffix.lower() in (".gz", ".zst")  # text: a.csv.gz has the stem of a.csv
    stem = PurePosixPath(path).with_suffix("").with_suffix("") if packed else PurePosixPath(path).with_suffix("")
    return stem.as_posix()


def well_named(pieces: Sequence[Piece]) -> bool:
    """Return whether the names are unique, and sorting them keeps the order of the rows."""
    names = [piece.output for piece in pieces]
    return names == sorted(names) and len({name.casefold() for name in names}) == len(names)


def _spans(units: Sequence[Unit], piece_rows: int, by_rows: bool) -> Iterator[Span]:
    """Join small units and cut large ones: spans of about `piece_rows` rows."""
    if not units:
        yield Span(0, 0, rows=0)  # an empty file becomes an empty piece
    if by_rows and any(unit.stop - unit.start != 1 for unit in units) and all(unit.rows is not None for unit in units):
        yield from _spans_of_text(units, piece_rows)
        return
    first_row, waiting = 0, list[Unit]()
    for unit in units:
        if waiting and (_rows(waiting) + (unit.rows or 0) > piece_rows or _size([*waiting, unit]) > PIECE_BYTES):
            yield _joined(waiting, first_row)
            first_row, waiting = first_row + _rows(waiting), []
        parts = _parts(unit, piece_rows)
        if parts > 1:
            for part in range(parts):
                start, stop = ((unit.rows or 0) * at // parts for at in (part, part + 1))
                yield Span(unit.start, unit.stop, start, first_row + start, stop - start)
            first_row += unit.rows or 0
        else:
            waiting.append(unit)
    if waiting:
        yield _joined(waiting, first_row)


def _spans_of_text(units: Sequence[Unit], piece_rows: int) -> Iterator[Span]:
    """Cut text after every `piece_rows` rows, and earlier if a piece would have too many bytes."""
    start, skip, first_row, rows, size, stop = units[0].start, 0, 0, 0, 0, units[0].start
    for unit in units:
        left = unit.rows or 0
        if rows and size + unit.size > PIECE_BYTES:
            yield Span(start, stop, skip, first_row, rows)
            first_row, start, skip, rows, size = first_row + rows, unit.start, 0, 0, 0
        while rows + left >= piece_rows and left:
            left -= piece_rows - rows
            yield Span(start, unit.stop, skip, first_row, piece_rows)
            first_row, rows, size = first_row + piece_rows, 0, 0
            start, skip = (unit.start, (unit.rows or 0) - left) if left else (unit.stop, 0)
        rows, stop, size = rows + left, unit.stop, size + unit.size
    if rows or first_row == 0:
        yield Span(start, stop, skip, first_row, rows)


def _parts(unit: Unit, piece_rows: int) -> int:
    """Return the number of spans that a unit is cut into; units of text are cut in `_spans_of_text`."""
    if unit.stop - unit.start != 1 or not unit.rows:
        return 1
    rows = min(piece_rows, max(1, PIECE_BYTES * unit.rows // max(unit.size, 1)))
    return -(-unit.rows // rows) if unit.rows > _TOO_LARGE * rows else 1


def _joined(units: Sequence[Unit], first_row: int) -> Span:
    known = all(unit.rows is not None for unit in units)
    return Span(units[0].start, units[-1].stop, 0, first_row, _rows(units) if known else None)


def _rows(units: Sequence[Unit]) -> int:
    return sum(unit.rows or 0 for unit in units)


def _size(units: Sequence[Unit]) -> int:
    return sum(unit.size for unit in units)
