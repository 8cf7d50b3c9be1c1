"""Interprets a remote service's responses: the vectors, the meaning of a refusal, and messages that repeat an input."""

from __future__ import annotations

import base64
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
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
    "Usage",
    "are_texts",
    "count_of",
    "decode",
    "hint_for",
    "host_of",
    "in_order",
    "kind_of",
    "matrix_of",
    "redirected",
    "repeats",
    "report_headers",
    "report_usage",
    "rows_of",
    "span",
    "usage_reports",
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


def key_hint(field: str) -> Words:
    """Return the hint for a key that the service refused, with the name of the field that takes it."""
    lead = "use a key that is valid there: "
    return Words(
        f"{lead}get_registry().bind_env('my_key', 'MY_API_KEY'), create({field}='$var:my_key')",
        f"{lead}--set '{field}=$var:my_key' {binding('my_key', 'MY_API_KEY')}",
    )


MEANING: dict[int, tuple[Fault, str | None]] = {
    400: ("unknown", None),
    401: ("call", None),  # the function's own hint names where its credentials come from; so for 403
    402: ("call", "the account has no credit: see the provider's billing page"),
    403: ("call", None),
    404: ("call", "check the model's name and the endpoint"),
    405: ("call", "check the endpoint"),
    413: ("unknown", "choose a smaller batch_size or max_batch_tokens"),
    422: ("unknown", None),
    424: ("call", "the model behind the endpoint failed, or is not one of embeddings: check its name"),
}


class AnswerError(VectorError):
    """A successful response without valid vectors: empty, cut off, or of another shape. It is tried again."""


class Usage(NamedTuple):
    """The cost of a response.

    Attributes:
        requests: HTTP requests.
        inputs: inputs in them.
        tokens: the tokens that the service counted; None if it does not report them.
    """

    requests: int = 1
    inputs: int = 0
    tokens: int | None = None


_learning: contextvars.ContextVar[Callable[[Mapping[str, str]], None] | None] = contextvars.ContextVar(
    "embedreg_headers", default=None
)
_reported: contextvars.ContextVar[list[Usage] | None] = contextvars.ContextVar("embedreg_usage", default=None)


def report_usage(usage: Usage) -> None:
    """Report what a response cost; called by a function's `request`, once for each response that reports it."""
    if (reports := _reported.get()) is not None:
        reports.append(usage)


def report_headers(headers: Mapping[str, str]) -> None:
    """Report a response's headers, from which limits are learnt; names are case-insensitive."""
    if (learn := _learning.get()) is not None:
        learn(headers)


@contextmanager
def usage_reports(learn: Callable[[Mapping[str, str]], None] | None = None) -> Iterator[list[Usage]]:
    """Collect the usage that is reported in this block, and in threads that get a copy of its context.

    Args:
        learn: called with the headers of each response.
    """
    reports: list[Usage] = []
    tokens = _reported.set(reports), _learning.set(learn)
    try:
        yield reports
    finally:
        _reported.reset(tokens[0])
        _learning.reset(tokens[1])


def redirected(status: int | None, message: str) -> Refusal | None:
    """Return the refusal that a redirect means: it is not followed, since texts and keys would go to another host."""
    if status is None or not 300 <= status < 400:
        return None
    return Refusal(
        "call", message or "the endpoint redirects", "redirects are not followed: set the endpoint's final address"
    )


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


def count_of(value: Any) -> int | None:
    """Return a number of a response as a count, 0 or more; None for anything else, such as more than any limit."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def in_order(items: Any, m: int, hint: str) -> list[Any]:
    """Return the items of a response in the order of the request, by their `index`, which some servers omit.

    Args:
        items: dicts or objects with `index`, as OpenAI's protocol has them.
    Raises:
        AnswerError: not a list of m, or indices that do not fit.
    """
    if not isinstance(items, list):
        raise AnswerError("the server's response contains no vectors.", hint)
    places = [item.get("index") if isinstance(item, dict) else getattr(item, "index", None) for item in items]
    if len(items) == m and all(place is None for place in places):
        return items
    if sorted(place if isinstance(place, int) else -1 for place in places) != list(range(m)):
        raise AnswerError(
            f"the server's response has {len(items)} vectors for {m} texts, and their indices do not match.", hint
        )
    return [item for _, item in sorted(zip(places, items, strict=True), key=lambda pair: pair[0] or 0)]


_NUMBERS = frozenset({int, float, type(None)})  # null becomes NaN: the row has no vector


def decode(embedding: Any, hint: str) -> Any:
    """Decode base64 of little-endian float32, or a list of numbers, which some servers return anyway: (d,) float32.

    Raises:
        AnswerError: anything else.
    """
    import numpy as np

    try:
        if isinstance(embedding, str):
            vector = np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
        elif set(map(type, embedding)) <= _NUMBERS:
            vector = np.asarray(embedding, np.float32)
        else:  # numpy would parse numbers in texts, and count with true and false
            vector = np.empty(0, np.float32)
    except (OverflowError, TypeError, ValueError):
        vector = np.empty(0, np.float32)
    if vector.ndim != 1 or not vector.size:
        raise AnswerError("the server's response contains a value that is not a vector.", hint)
    return vector


def matrix_of(vectors: Any, m: int, hint: str) -> Any:
    """Return the vectors of a response as (m, d) float32: m lists of d numbers, or of what `decode` takes.

    Raises:
        AnswerError: another number, no vectors, or vectors of different widths. VectorError: a vector for each token.
    """
    import numpy as np

    if not isinstance(vectors, list | tuple) or isinstance(vectors, str):
        raise AnswerError("the server's response contains no vectors.", hint)
    if len(vectors) != m:
        raise AnswerError(f"the server returned {len(vectors)} vectors for {m} texts.", hint)
    if all(isinstance(vector, list) and vector and isinstance(vector[0], list) for vector in vectors):
        raise VectorError(
            "the server returned a vector for each token, not one for each text.",
            "choose a model that pools its tokens into one vector",
        )
    rows = [decode(vector, hint) for vector in vectors]
    widths = sorted({len(row) for row in rows})
    if len(widths) > 1:
        raise AnswerError(
            f"the server's response contains vectors of {', '.join(map(str, widths))} dimensions.",
            "check which model it serves",
        )
    return np.stack(rows)


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
