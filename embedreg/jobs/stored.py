"""What lies in `_embedreg/`, as it may lie there: typed, bounded, and with names that stay below the folder.

The folder may have come from anyone. What does not fit is one `StorageError`, or counts for nothing.
"""

from __future__ import annotations

import base64
import itertools
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from embedreg.datasets.formats import Span, Unit
from embedreg.datasets.sources import Input
from embedreg.declaration import manifest
from embedreg.embedding.table import BadRow
from embedreg.errors import StorageError, Words, option
from embedreg.jobs.pieces import Outcome, Piece, stem_of
from embedreg.support import confined
from embedreg.support.strict_json import Malformed, document

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORMAT", "MAX_BYTES", "Done", "Job", "Plan", "Record", "inputs_of", "is_output", "outcome_of", "read"]
__all__ += ["refused", "schema_of"]

FORMAT = 1
MAX_BYTES = 256 << 20  # of a file: the plan of a million inputs, the record of a piece whose every row failed
_MAX_TEXT = 64 << 20  # of the schema, which is one text
_MAX_NAME = 4096
_PART = re.compile(r"-\d{5,9}\.parquet")

Count = Annotated[int, Field(ge=0, lt=2**62)]
Kept = TypeVar("Kept", bound="_Stored")


def is_output(name: str) -> bool:
    """Return whether a name is one that a piece may have: below the folder, of Parquet, and not in `_embedreg/`."""
    return (
        confined.is_plain(name)
        and name.endswith(".parquet")
        and name.partition("/")[0].casefold() != manifest.FOLDER
        and PurePosixPath(name).name != ".parquet"
    )


def _output(name: str) -> str:
    if not is_output(name):
        raise ValueError("not the name of a piece")
    return name


Output = Annotated[str, AfterValidator(_output)]


class _Stored(BaseModel):
    """What a file holds; other keys than these are of no meaning here."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    format: Literal[1]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Job(_Stored):
    """What a job was begun with."""

    schema_: str = Field(alias="schema")
    columns: list[str] = Field(min_length=1)
    source: str
    piece_rows: Annotated[int, Field(ge=1, lt=2**62)]
    full_names: bool
    by_rows: bool = False  # which earlier versions did not know
    before: list[Any] | None


class _Looked(_Part):
    path: Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
    size: Count
    mtime_ns: int | None
    etag: Annotated[str, Field(max_length=_MAX_NAME)] | None


class _Planned(_Looked):
    units: list[tuple[Count, Count, Count | None, Count]]


class Plan(_Stored):
    """What a look at the source found, and the names that are going to be written."""

    schema_: str = Field(alias="schema")
    inputs: dict[str, _Planned]
    outputs: list[Output]
    reading: dict[str, Any] | None = None  # of text, which earlier versions read in one way


class _Span(_Part):
    start: Count
    stop: Count
    skip: Count
    first_row: Count
    rows: Count | None


class _Piece(_Part):
    output: Output
    input: _Looked
    span: _Span


class Record(_Stored):
    """What became of a piece."""

    piece: _Piece
    rows: Count
    written: Count
    embedded: Count
    cached: Count
    given: Count
    nulls: Count
    bad_rows: Count
    # keys came later, and then reasons as the command line words them
    bad: list[tuple[Count, str, str] | tuple[Count, str, str, str | None] | tuple[Count, str, str, str | None, str]]
    stored: dict[str, Any]
    zeros: Count = 0  # which earlier versions did not count
    zero_vectors: Literal["null", "keep", "error"] | None = None
    seconds: Annotated[float, Field(ge=0)]


class Done(_Stored):
    """What a file or a table came to that is made, while the rest of its job is being removed."""

    schema_: str = Field(alias="schema")
    columns: list[str] = Field(min_length=1)
    source: str
    inputs: str
    stamp: list[Any]
    pieces: Count
    counts: dict[str, Count]


def read(kind: type[Kept], data: bytes) -> Kept:
    """Return what a file holds.

    Raises:
        Malformed: it is not JSON that means one thing, or not of the kind; the message quotes nothing of it.
    """
    document(data, max_bytes=MAX_BYTES, max_text=_MAX_TEXT, max_key=_MAX_NAME, max_values=MAX_BYTES)
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _known(kind))
        raise Malformed(f"{where or 'a value'} is not what it should be ({first['type']})") from None


def _known(kind: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in kind.model_fields.items()}


def outcome_of(record: Record) -> Outcome:
    """Return a record as what became of its piece.

    Raises:
        Malformed: its numbers, or its names, do not fit each other.
    """
    piece, looked = record.piece, record.piece.input
    if record.written > record.rows or record.bad_rows != len(record.bad):
        raise Malformed("its numbers do not fit each other")
    if not made_of(piece.output, looked.path):
        raise Malformed("its output is not one of its input")
    return Outcome(
        piece=Piece(
            piece.output,
            Input(looked.path, looked.size, looked.mtime_ns, looked.etag),
            Span(piece.span.start, piece.span.stop, piece.span.skip, piece.span.first_row, piece.span.rows),
        ),
        bad=tuple(map(_bad_row, record.bad)),
        **{
            name: getattr(record, name) for name in ("rows", "written", "embedded", "cached", "given", "nulls", "zeros")
        },
        bad_rows=record.bad_rows,
        stored=record.stored,
        zero_vectors=record.zero_vectors,
        seconds=record.seconds,
    )


def _bad_row(facts: tuple[Any, ...]) -> BadRow:
    row, column, reason, key, shell = (*facts, None, None)[:5]
    return BadRow(row, column, reason if shell is None else Words(reason, shell), key)


def made_of(output: str, path: str) -> bool:
    """Return whether a piece of an input would have a name."""
    stem = stem_of(path)
    return output == f"{stem}.parquet" or any(
        output.startswith(start) and _PART.fullmatch(output, len(start)) is not None for start in (stem, path)
    )


def inputs_of(plan: Plan) -> dict[str, Input]:
    """Return the inputs of a plan.

    Raises:
        Malformed: a key is not the path of its input, or its units leave a gap, overlap, or end before they begin.
    """
    found = {}
    for path, each in plan.inputs.items():
        units = tuple(Unit(*unit) for unit in each.units)
        gaps = any(one.stop != other.start for one, other in itertools.pairwise(units))
        if path != each.path or gaps or any(unit.start > unit.stop for unit in units):
            raise Malformed("its units do not fit each other")
        if units:  # one without any is looked at again: it is empty, or its rows would be lost
            found[path] = Input(path, each.size, each.mtime_ns, each.etag, units)
    return found


def schema_of(text: str) -> pa.Schema:
    """Return an Arrow schema that was written down.

    Raises:
        Malformed: it is none.
    """
    import pyarrow as pa

    try:
        return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text, validate=True)))
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, RecursionError, MemoryError) as exc:
        raise Malformed("its schema is not one of Arrow's") from exc


def refused(where: str, why: str) -> StorageError:
    """Return the error for a file that a job cannot go on without."""
    return StorageError(
        f"{where} cannot be read by this version of embedreg: {why}.",
        option("start anew with --fresh", "resume=False"),
    )
