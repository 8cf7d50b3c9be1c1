"""Interprets a remote service's responses: the vectors, the meaning of a refusal, and messages that repeat an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from embedreg.arrow.vectors import refuse_outage
from embedreg.errors import RowError, VectorError, Words
from embedreg.security.variables import binding

__all__ = [
    "MEANING",
    "AnswerError",
    "Batch",
    "Refusal",
    "are_texts",
    "hint_for",
    "host_of",
    "kind_of",
    "repeats",
    "rows_of",
    "span",
]

ECHO_CHARACTERS = 16  # long enough to avoid chance matches, short enough to fit between two escaped characters

Batch: TypeAlias = list[tuple[int, Any]]
"""Inputs of one request: their row numbers in the call, and the values to send."""


Fault: TypeAlias = Literal["row", "call", "unknown"]


class Refusal(NamedTuple):
    """The meaning of an error response that a retry would not change.

    Attributes:
        fault: the cause: "row", an input of the batch; "call", not an input; "unknown", either.
        message: the server's message; omitted from errors if it repeats an input.
        hint: what to do about it.
    """

    fault: Fault
    message: str
    hint: str | None = None


_KEY_HINT = Words(
    "use a key that is valid there: get_registry().bind_env('my_key', 'MY_API_KEY'), create(api_key='$var:my_key')",
    f"use a key that is valid there: --set 'api_key=$var:my_key' {binding('my_key', 'MY_API_KEY')}",
)
MEANING: dict[int, tuple[Fault, str | None]] = {
    400: ("unknown", None),
    401: ("call", _KEY_HINT),
    402: ("call", "the account has no credit: see the provider's billing page"),
    403: ("call", _KEY_HINT.changed(lambda hint: f"the key may not use this model or endpoint; {hint}")),
    404: ("call", "check the model's name and the endpoint"),
    405: ("call", "check the endpoint"),
    413: ("unknown", "choose a smaller batch_size or max_batch_tokens"),
    422: ("unknown", None),
}


class AnswerError(VectorError):
    """A successful response without valid vectors: empty, cut off, or of another shape. It is tried again."""


def hint_for(status: int | None) -> str:
    """Return the hint for a request that failed after all retries."""
    if status == 429:
        return "the rate limit persists: a smaller concurrency, more max_retries, or a higher limit at the provider"
    if status is not None:
        return "the server fails; try again later, or raise max_retries and deadline_s"
    return "check the network and the endpoint; timeout_s, max_retries and deadline_s set the limits"


def kind_of(batch: Sequence[tuple[int, Any]]) -> str:
    """Return the noun for the inputs of a batch in messages: "text" or "input"."""
    return "text" if are_texts(batch) else "input"


def are_texts(batch: Sequence[tuple[int, Any]]) -> bool:
    """Return whether all inputs of a batch are texts."""
    return all(isinstance(value, str) for _, value in batch)


def host_of(url: str) -> str | None:
    """Return the host and port of a URL, without its user and password; None if it has no host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return None if host is None else host if port is None else f"{host}:{port}"


def rows_of(result: Any, m: int, what: str) -> Any:
    """Convert the result of `request` to (m, d) float32, or to a list of m if rows failed.

    Args:
        what: the noun for an input in messages, from `kind_of`.
    """
    import numpy as np

    if isinstance(result, str | bytes | Mapping | Set) or not hasattr(result, "__iter__"):
        raise VectorError(
            f"request() returned {type(result).__name__} for {m} {what}s.", f"return one vector for each {what}"
        )
    if not isinstance(result, np.ndarray):
        result = list(result)
        if any(row is None or isinstance(row, RowError) for row in result):
            if len(result) != m:
                raise _miscounted(len(result), m, what)
            return result
    try:
        matrix = np.asarray(result)
        if matrix.dtype.kind not in "fiuO" or any(isinstance(item, str | bytes) for item in _items(matrix)):
            raise TypeError  # numpy would parse numbers in strings
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float32, copy=False)
    except (OverflowError, TypeError, ValueError):
        problem = "the server returned vectors of different widths, or values that are not numbers."
        raise VectorError(problem, "check that the endpoint serves embeddings") from None
    if matrix.ndim != 2 or len(matrix) != m:
        raise _miscounted(len(matrix) if matrix.ndim == 2 else 0, m, what)
    if not np.isfinite(matrix).all(axis=1).any():
        refuse_outage(m, lambda: True)  # if only some are not finite, the caller decides
    return matrix


def _items(matrix: Any) -> Any:
    return matrix.flat if matrix.dtype == object else ()


def _miscounted(got: int, m: int, what: str) -> VectorError:
    return VectorError(
        f"the server returned {got} vectors for {m} {what}s.", "check that the endpoint serves embeddings"
    )


def repeats(message: str, batch: Batch) -> bool:
    """Return whether a server's message contains an input or a part of one."""
    texts = [value for _, value in batch if isinstance(value, str)]
    whole = "\n".join(texts)
    pieces = (message[at : at + ECHO_CHARACTERS] for at in range(0, len(message) - ECHO_CHARACTERS + 1, 4))
    if any(piece in whole for piece in pieces):
        return True
    short = [text for text in texts if len(text) < ECHO_CHARACTERS + 4]
    return any(f"{quote}{text}{quote}" in message for text in short for quote in "'\"`")


def span(rows: list[int]) -> str:
    """Format row numbers as ranges: "rows 0-4, 7"."""
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and row == ranges[-1][1] + 1:
            ranges[-1][1] = row
        else:
            ranges.append([row, row])
    shown = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges[:5])
    more = f" and {sum(last - first + 1 for first, last in ranges[5:])} more" if len(ranges) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
