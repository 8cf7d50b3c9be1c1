"""A user's own pairs of queries and answers, and the rows that the answers name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedreg.columns.rows import Readable
from embedreg.errors import InputError, MissingColumnError, StorageError, option
from embedreg.support.imports import did_you_mean
from embedreg.support.strict_json import Malformed, document

__all__ = ["Pair", "found_rows", "read_pairs"]

_HINT = '{"query": "...", "answers": ["...", ...]}'
_MAX_BYTES = 1 << 30  # of a file


@dataclass(frozen=True)
class Pair:
    """A query and the rows that answer it.

    Attributes:
        query: what a user asks.
        answers: values of the key column, or texts of the source column; one or more.
    """

    query: str
    answers: tuple[Any, ...]


def read_pairs(pairs: Any) -> list[Pair]:
    """Read pairs.

    Args:
        pairs: a file of JSON lines, each `{"query": "...", "answers": [...]}`, or such mappings, or (query, answers).
    Raises:
        InputError: one of them is not a pair; the message names its place. StorageError: the file cannot be read.
    """
    if isinstance(pairs, str | os.PathLike):
        return [_pair(item, f"line {number}") for number, item in _lines(Path(pairs))]
    if not isinstance(pairs, Iterable):
        raise InputError(f"pairs are a file or a list, not a {type(pairs).__name__}.", _HINT)
    return [_pair(item, f"pair {number}") for number, item in enumerate(pairs, 1)]


def _lines(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise StorageError(f"{str(path)!r} is larger than 1 GiB.", "a few thousand pairs are enough")
        content = path.read_bytes()
    except OSError as exc:
        raise StorageError(f"{str(path)!r} cannot be read: {exc.strerror}.", "check the path") from None
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                yield number, document(line)
            except Malformed as exc:
                raise InputError(f"line {number} of {str(path)!r} cannot be read: {exc}.", _HINT) from None


def _pair(item: Any, place: str) -> Pair:
    if isinstance(item, Pair):
        return item
    if isinstance(item, Mapping):
        query, answers = item.get("query"), item.get("answers")
    elif isinstance(item, tuple | list) and len(item) == 2:
        query, answers = item
    else:
        raise InputError(f"{place} is not a query with answers.", _HINT)
    answers = [answers] if isinstance(answers, str | int) and not isinstance(answers, bool) else answers
    if not isinstance(query, str) or not query.strip():
        raise InputError(f"the query of {place} is not text.", _HINT)
    if not isinstance(answers, list | tuple | set | frozenset) or not answers:
        raise InputError(f"the answers of {place} are not a list of one or more.", _HINT)
    if not all(isinstance(each, str | int) and not isinstance(each, bool) for each in answers):
        raise InputError(f"an answer of {place} is neither text nor a whole number.", _HINT)
    return Pair(query, tuple(dict.fromkeys(answers)))


def found_rows(data: Readable, column: str, pairs: Iterable[Pair]) -> dict[Any, int]:
    """Find the rows that answers name: {answer: row number}, of several equal ones the first.

    Args:
        column: the key column, or the source column.
    Raises:
        MissingColumnError: there is no such column. InputError: answers and the column are of different types.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = data.schema.names
    if column not in names:
        hint = f"{did_you_mean(column, names)}columns: {', '.join(names)}"
        raise MissingColumnError(f"{data.shown} has no column {column!r}.", hint)
    wanted = list(dict.fromkeys(answer for pair in pairs for answer in pair.answers))
    kind = data.schema.field(column).type
    try:
        values = pa.array(wanted, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):  # the last: types that Arrow cannot make
        raise InputError(
            f"the answers are not all values of column {column!r}, which is {kind}.",
            option("--key NAME names another column", "key='name'"),
        ) from None
    found: dict[Any, int] = {}
    start = 0
    for batch in data.scan([column]):
        hits = pc.indices_nonzero(pc.fill_null(pc.is_in(batch.column(0), value_set=values), False))
        for place, value in zip(hits.to_pylist(), batch.column(0).take(hits).to_pylist(), strict=True):
            found.setdefault(value, start + place)
        start += batch.num_rows
    return found
