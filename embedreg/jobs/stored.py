"""Validated models of the files in `_embedreg/`: typed, bounded, with names confined to the folder.

The folder may come from anyone. A file that does not validate raises a `StorageError` or is ignored.
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
from embedreg.jobs.submissions import Batch, Submission
from embedreg.runtime.remote.usage import TotalUsage
from embedreg.support import confined
from embedreg.support.strict_json import Malformed, document

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORMAT", "MAX_BYTES", "Done", "Job", "Plan", "Record", "Used", "inputs_of", "is_output", "outcome_of"]
__all__ += ["Submitted", "read", "refused", "schema_of", "submissions_of", "usage_of"]

FORMAT = 1
MAX_BYTES = 256 << 20  # of a file: fits the plan of a million inputs, or the record of a piece whose rows all failed
_MAX_TEXT = 64 << 20  # of the schema, which is one string
_MAX_NAME = 4096
_PART = re.compile(r"-\d{5,9}\.parquet")

Count = Annotated[int, Field(ge=0, lt=2**62)]
Kept = TypeVar("Kept", bound="_Stored")


def is_output(name: str) -> bool:
    """Return whether a piece may have this name: a Parquet file below the folder and outside of `_embedreg/`."""
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
    """The content of a file; unknown keys are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
    format: Literal[1]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Job(_Stored):
    """The settings that a job was begun with."""

    schema_: str = Field(alias="schema")
    columns: list[str] = Field(min_length=1)
    source: str
    piece_rows: Annotated[int, Field(ge=1, lt=2**62)]
    full_names: bool
    by_rows: bool = False  # earlier versions did not record it
    before: list[Any] | None


class _Listed(_Part):
    path: Annotated[str, Field(min_length=1, max_length=_MAX_NAME)]
    size: Count
    mtime_ns: int | None
    etag: Annotated[str, Field(max_length=_MAX_NAME)] | None


class _Planned(_Listed):
    units: list[tuple[Count, Count, Count | None, Count]]


class Plan(_Stored):
    """The source as it was listed, and the names of the outputs."""

    schema_: str = Field(alias="schema")
    inputs: dict[str, _Planned]
    outputs: list[Output]
    reading: dict[str, Any] | None = None  # settings for text; earlier versions had none


class _Span(_Part):
    start: Count
    stop: Count
    skip: Count
    first_row: Count
    rows: Count | None


class _Piece(_Part):
    output: Output
    input: _Listed
    span: _Span


class _Usage(_Part):
    requests: Count = 0
    retries: Count = 0
    inputs: Count = 0
    billed_tokens: Count = 0
    estimated_tokens: Count = 0
    waited_s: Annotated[float, Field(ge=0)] = 0.0


class Used(_Stored):
    """The cost of remote functions so far, for a piece that is not done or for opening the job."""

    usage: _Usage


class _Batch(_Part):
    ranges: list[tuple[Count, Count]]
    tag: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    sent: Annotated[float, Field(ge=0)] | None
    handle: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,512}$")] | None
    ended: bool
    attempt: Annotated[int, Field(ge=1, le=100)]


class _Submission(_Part):
    digest: Annotated[str, Field(max_length=64)]
    inputs: Count
    batches: list[_Batch]


class Submitted(_Stored):
    """The submissions of a piece to batch APIs, by column."""

    columns: dict[str, _Submission]


class Record(_Stored):
    """The result of a piece."""

    piece: _Piece
    rows: Count
    written: Count
    embedded: Count
    cached: Count
    given: Count
    nulls: Count
    bad_rows: Count
    # later versions added keys, and then reasons for the command line
    bad: list[tuple[Count, str, str] | tuple[Count, str, str, str | None] | tuple[Count, str, str, str | None, str]]
    stored: dict[str, Any]
    zeros: Count = 0  # earlier versions did not count them
    clipped: Count = 0  # nor these
    zero_vectors: Literal["null", "keep", "error"] | None = None
    seconds: Annotated[float, Field(ge=0)]
    usage: _Usage = _Usage()  # earlier versions did not count it


class Done(_Stored):
    """The totals of a published file or table, kept while the rest of its job is removed."""

    schema_: str = Field(alias="schema")
    columns: list[str] = Field(min_length=1)
    source: str
    inputs: str
    stamp: list[Any]
    pieces: Count
    counts: dict[str, Count]
    usage: _Usage = _Usage()


def read(kind: type[Kept], data: bytes) -> Kept:
    """Parse and validate a file.

    Raises:
        Malformed: the JSON is invalid or ambiguous, or does not validate; the message quotes none of its values.
    """
    document(data, max_bytes=MAX_BYTES, max_text=_MAX_TEXT, max_key=_MAX_NAME, max_values=MAX_BYTES)
    try:
        return kind.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _known(kind))
        raise Malformed(f"{where or 'a value'} is invalid ({first['type']})") from None


def _known(kind: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in kind.model_fields.items()}


def outcome_of(record: Record) -> Outcome:
    """Convert a record to an `Outcome`.

    Raises:
        Malformed: its counts or its names are inconsistent.
    """
    piece, listed = record.piece, record.piece.input
    if record.written > record.rows or record.bad_rows != len(record.bad):
        raise Malformed("its counts are inconsistent")
    if not made_of(piece.output, listed.path):
        raise Malformed("its output does not belong to its input")
    return Outcome(
        piece=Piece(
            piece.output,
            Input(listed.path, listed.size, listed.mtime_ns, listed.etag),
            Span(piece.span.start, piece.span.stop, piece.span.skip, piece.span.first_row, piece.span.rows),
        ),
        bad=tuple(map(_bad_row, record.bad)),
        **{
            name: getattr(record, name)
            for name in ("rows", "written", "embedded", "cached", "given", "nulls", "zeros", "clipped")
        },
        bad_rows=record.bad_rows,
        stored=record.stored,
        zero_vectors=record.zero_vectors,
        seconds=record.seconds,
        usage=usage_of(record),
    )


def usage_of(found: Record | Used | Done) -> TotalUsage:
    """Convert the usage in a file."""
    return TotalUsage(**found.usage.model_dump())


def submissions_of(found: Submitted) -> dict[str, Submission]:
    """Convert what was submitted.

    Raises:
        Malformed: ranges overlap, end before they begin, or name inputs that do not exist.
    """
    made = {}
    for column, each in found.columns.items():
        for batch in each.batches:
            edges = [edge for pair in batch.ranges for edge in pair]
            if (
                edges != sorted(edges)
                or any(start == stop for start, stop in batch.ranges)
                or max(edges, default=0) > each.inputs
            ):
                raise Malformed("its ranges are inconsistent")
        batches = [Batch(**batch.model_dump()) for batch in each.batches]
        made[column] = Submission(each.digest, each.inputs, batches)
    return made


def _bad_row(facts: tuple[Any, ...]) -> BadRow:
    row, column, reason, key, shell = (*facts, None, None)[:5]
    return BadRow(row, column, reason if shell is None else Words(reason, shell), key)


def made_of(output: str, path: str) -> bool:
    """Return whether `output` is the name of a piece of the input `path`."""
    stem = stem_of(path)
    return output == f"{stem}.parquet" or any(
        output.startswith(start) and _PART.fullmatch(output, len(start)) is not None for start in (stem, path)
    )


def inputs_of(plan: Plan) -> dict[str, Input]:
    """Return the inputs of a plan.

    Raises:
        Malformed: a key is not the path of its input, or its units have gaps, overlap, or end before they begin.
    """
    found = {}
    for path, each in plan.inputs.items():
        units = tuple(Unit(*unit) for unit in each.units)
        gaps = any(one.stop != other.start for one, other in itertools.pairwise(units))
        if path != each.path or gaps or any(unit.start > unit.stop for unit in units):
            raise Malformed("its units are inconsistent")
        if units:  # an input without units is listed again: it is empty, or its rows would be lost
            found[path] = Input(path, each.size, each.mtime_ns, each.etag, units)
    return found


def schema_of(text: str) -> pa.Schema:
    """Parse a stored Arrow schema.

    Raises:
        Malformed: it is invalid.
    """
    import pyarrow as pa

    try:
        return pa.ipc.read_schema(pa.BufferReader(base64.b64decode(text, validate=True)))
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, RecursionError, MemoryError) as exc:
        raise Malformed("its Arrow schema is invalid") from exc


def refused(where: str, why: str) -> StorageError:
    """Return the error for an unreadable file that a job needs in order to continue."""
    return StorageError(
        f"{where} cannot be read by this version of embedreg: {why}.",
        option("start over with --fresh", "resume=False"),
    )
