"""What every remote function shares: batches, order, several requests at a time, retries, and whose fault a refusal is.

A remote function is a subclass of `RemoteTextFunction` with `ndims()` and `request(batch)`.
"""

from __future__ import annotations

import contextvars
import json
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field

from embedreg.arrow.vectors import refuse_outage
from embedreg.core.base import TextEmbeddingFunction, Traits
from embedreg.errors import CallError, EmbedregError, InputError, RowError, VectorError
from embedreg.runtime.cache import ModelCache
from embedreg.security.redaction import carried, guarded, redact
from embedreg.support.retry import DEADLINE_S, call_with_retry, http_status, is_transient
from embedreg.support.threads import Threads

__all__ = ["AnswerError", "Refusal", "RemoteTextFunction", "client_key", "clients", "release"]

# How many more requests one refused batch may cost. To find a row among 512 by halving takes up to 18: this finds a
# dozen or more, and a batch that is refused throughout ends in about a minute instead of after a thousand requests.
BLAME_REQUESTS = 256
CONTROL_TEXT = "hello"  # a server that refuses this embeds nothing
SHOWN_CHARACTERS = 500  # of a server's words: some answer with a whole page
ECHO_CHARACTERS = 16  # long enough not to strike by chance, short enough to lie between two escaped characters

Batch: TypeAlias = list[tuple[int, str]]
"""Rows of one request: their numbers in the call, and their texts."""

clients = ModelCache(max_models=32, stays=lambda key: False)
"""API clients by `client_key`, connections included; a client in use outlives its eviction."""


def client_key(*parts: Hashable) -> Hashable:
    """Return a key for `clients` that holds in this process only: connections do not survive a fork."""
    return (os.getpid(), *parts)


def release() -> int:
    """Let go of every client and its connections; return how many there were. The next use connects anew."""
    return clients.release()


Fault: TypeAlias = Literal["row", "call", "unknown"]


_LEAST_S = 1.0  # what a last attempt gets where the deadline is near: less would be none
_requests = Threads("embedreg-request", computes=False)
_NO_JSON = (json.JSONDecodeError, UnicodeDecodeError)
_ADDRESSES = ("base_url", "endpoint", "api_base", "url", "host")


class Refusal(NamedTuple):
    """What an answer means that would be the same the next time.

    Attributes:
        fault: "row", an input of the batch cannot be embedded; "call", no input is to blame; "unknown", either.
        message: the server's words; left out of errors where they repeat an input.
        hint: what to do about it.
    """

    fault: Fault
    message: str
    hint: str | None = None


_KEY_HINT = (
    "use a key that is valid there: get_registry().bind_env('my_key', 'MY_API_KEY'), create(api_key='$var:my_key')"
)
_MEANING: dict[int, tuple[Fault, str | None]] = {
    400: ("unknown", None),
    401: ("call", _KEY_HINT),
    402: ("call", "the account has no credit: see the provider's billing page"),
    403: ("call", f"the key may not use this model or endpoint; {_KEY_HINT}"),
    404: ("call", "check the model's name and the endpoint"),
    405: ("call", "check the endpoint"),
    413: ("unknown", "choose a smaller batch_size or max_batch_tokens"),
    422: ("unknown", None),
}


class _Refused(EmbedregError):
    """Carries a failure that is no use repeating; its cause is the client library's error."""

    def __init__(self, refusal: Refusal, status: int | None, kind: str = "") -> None:
        super().__init__(refusal.message, refusal.hint)
        self.fault = refusal.fault
        self.where = ", ".join(part for part in (kind, f"HTTP {status}" if status is not None else "") if part)


class AnswerError(VectorError):
    """An answer that says "success" and holds no vectors: empty, cut off, or of another shape. It is tried again."""


class _Stopped(CallError):
    """Ends a request that is no longer wanted."""


class RemoteTextFunction(TextEmbeddingFunction):
    """A text embedding function behind a network call.

    A subclass says `ndims()` and `request(batch)`. Null and blank texts are never sent and have no vector; the others
    go out in batches, several at a time, each tried again while its error may pass; results come back in order. A text
    that the server refuses costs only its own row: it is found by halving its batch.

    Attributes:
        batch_size: texts in one request, at most.
        max_batch_tokens: tokens in one request, at most, as `count_tokens` counts; a longer text goes alone.
        concurrency: requests under way at a time, at most.
        timeout_s: how long one request may take, from first to last, whatever its server does meanwhile.
        deadline_s: how long a batch may take with all that is tried again; to find refused texts it has as long again.
    """

    # Several requests' worth of rows at a time; the retries are per request, so the whole call is not tried again.
    traits: ClassVar[Traits] = Traits(remote=True, retry=False, window=8192)

    batch_size: int = Field(default=512, ge=1)
    max_batch_tokens: int = Field(default=250_000, ge=1)
    concurrency: int = Field(default=4, ge=1, le=64)
    timeout_s: float = Field(default=60.0, gt=0)
    deadline_s: float = Field(default=DEADLINE_S, gt=0)

    @staticmethod
    def runtime_keys() -> list[str]:
        return ["concurrency", "deadline_s", "max_batch_tokens"]

    # -- what a subclass says ---------------------------------------------------------------------------------------

    @abstractmethod
    def request(self, batch: list[str]) -> Any:
        """Embed one batch with one network call; called from several threads at a time.

        Args:
            batch: m texts, none of them blank, 1 <= m <= batch_size.
        Returns:
            (m, d) in the order of the batch, or m vectors with None or a RowError for a row that failed.
        Raises:
            Anything: what `explain` calls a refusal is final, the rest is tried again if it may pass.
        """

    def explain(self, exc: Exception) -> Refusal | None:
        """Say what an error of `request` means, or None where it is no refusal; the default goes by the HTTP status."""
        status = http_status(exc)
        if status is None or status not in _MEANING:
            return None
        fault, hint = _MEANING[status]
        return Refusal(fault, self.words_of(exc), hint)

    def words_of(self, exc: Exception) -> str:
        """Return the service's own words out of an error of its client library."""
        return str(exc)

    def count_tokens(self, text: str) -> int:
        """Return about how many tokens a text has, rather too many than too few.

        The default takes two UTF-8 bytes for a token: prose has about four, and where a character takes three bytes it
        is seldom more than one and a half tokens.
        """
        return len(text.encode()) // 2 + 1

    def row_problem(self, text: str) -> str | None:
        """Say why a text cannot be embedded, before it is sent, or None; the default leaves that to the server."""
        return None

    # -- the contract -----------------------------------------------------------------------------------------------

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed n texts.

        Returns:
            (n, d) float32; where rows have no vector, a list of n vectors with None (null, blank) and RowError instead.
        Raises:
            InputError: a row is not text. CallError: a request failed; it names the rows by their numbers in this call.
            VectorError: the answer does not fit the request.
        """
        import numpy as np

        values = list(self.sanitize_input(texts))
        if not values:
            return np.empty((0, self.ndims()), np.float32)
        found: list[Any] = [None] * len(values)
        rows: Batch = []
        for row, value in enumerate(values):
            text = _text_of(value, row)
            if text is None:
                continue
            problem = self.row_problem(text)
            if problem is None:
                rows.append((row, text))
            else:
                found[row] = RowError(problem)
        results = self._embed_all(list(self._batches(rows)))
        if len(rows) == len(values) and all(isinstance(result, np.ndarray) for result in results):
            return np.concatenate(results) if len(results) > 1 else results[0]
        vectors = (vector for result in results for vector in result)
        for (row, _), vector in zip(rows, vectors, strict=True):
            found[row] = vector
        return found

    # -- batches ----------------------------------------------------------------------------------------------------

    def _batches(self, rows: Sequence[tuple[int, str]]) -> Iterator[Batch]:
        """Cut rows into batches by number and tokens, in order."""
        batch: Batch = []
        total = 0
        for row in rows:
            tokens = self.count_tokens(row[1])
            if batch and (len(batch) == self.batch_size or total + tokens > self.max_batch_tokens):
                yield batch
                batch, total = [], 0
            batch.append(row)
            total += tokens
        if batch:
            yield batch

    def _embed_all(self, batches: list[Batch]) -> list[Any]:
        """Embed batches, several at a time; the first failure stops the others and is raised."""
        stopped = threading.Event()
        if len(batches) <= 1 or self.concurrency == 1:
            return [self._embed(batch, stopped) for batch in batches]
        pool = ThreadPoolExecutor(min(self.concurrency, len(batches)), thread_name_prefix="embedreg-request")
        # Each thread works in a copy of the caller's context: scoped variables live there.
        pending = [pool.submit(contextvars.copy_context().run, self._embed, batch, stopped) for batch in batches]
        try:
            done, _ = wait(pending, return_when=FIRST_EXCEPTION)
            failures = [failure for future in done if (failure := future.exception()) is not None]
            for failure in sorted(failures, key=lambda failure: isinstance(failure, _Stopped)):
                raise failure  # the one that stopped the others
            return [future.result() for future in pending]
        finally:
            stopped.set()
            # Not waited for: one may be asleep before its next attempt, which it will not make.
            pool.shutdown(wait=False, cancel_futures=True)

    @guarded  # the outermost of its thread, so that the retries inside see the client library's own errors
    def _embed(self, batch: Batch, stopped: threading.Event) -> Any:
        """Embed one batch, and stop the others if it fails: (m, d), or a list of m with RowErrors for refused texts."""
        try:
            result = self._send(batch, stopped, time.monotonic() + self.deadline_s)
            if not isinstance(result, _Refused):
                return result
            until = time.monotonic() + self.deadline_s
            if result.fault == "unknown" and isinstance(self._send([(-1, CONTROL_TEXT)], stopped, until), _Refused):
                result.fault = "call"  # it is not about these texts
            if result.fault == "call":
                raise self._call_error(result, batch)
            found: list[Any] = []
            self._halve(batch, result, stopped, found, [BLAME_REQUESTS], until)
            return found
        except BaseException:
            stopped.set()  # here, not where it is waited for: that thread may be slow to wake
            raise

    def _halve(
        self,
        batch: Batch,
        refused: _Refused,
        stopped: threading.Event,
        found: list[Any],
        left: list[int],
        until: float,
    ) -> None:
        """Split a refused batch until only single rows are refused; `left` holds the requests that remain."""
        if len(batch) == 1:
            found.append(RowError(self._said("the server refused this text", refused, batch)))
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            if not left[0]:
                where = _span([row for row, _ in half])
                raise CallError(
                    f"so many texts are refused that {BLAME_REQUESTS} more requests could not tell them apart, {where} "
                    f"of this call among them; {self._said('the last answer', refused, batch)}.",
                    "shorten or drop such texts first; with batch_size=64 every one is found, by more requests",
                )
            left[0] -= 1
            result = self._send(half, stopped, until)
            if not isinstance(result, _Refused):
                found.extend(result)
            elif result.fault == "call":
                raise self._call_error(result, half)
            else:
                self._halve(half, result, stopped, found, left, until)

    def _send(self, batch: Batch, stopped: threading.Event, until: float) -> Any:
        """Send one request, again while its error may pass: (m, d), a list of m, or a refusal.

        Args:
            until: when it is over, by `time.monotonic`.
        Raises:
            CallError: it failed for good.
        """
        texts = [text for _, text in batch]

        def attempt() -> Any:
            if stopped.is_set():
                raise _Stopped("another request of the same call has failed.")
            try:
                # In a thread that can be left: a client's own timeouts begin anew with each byte, and none of them
                # covers the look-up of a name.
                limit_s = min(self.timeout_s, max(_LEAST_S, until - time.monotonic()))
                return _requests.call(carried(self.request), texts, timeout_s=limit_s)
            except EmbedregError:
                raise
            except Exception as exc:
                refusal = self.explain(exc)
                if refusal is None:
                    raise
                raise _Refused(refusal, http_status(exc)) from exc

        try:
            result = call_with_retry(
                attempt,
                max_retries=self.max_retries,
                deadline_s=max(0.0, until - time.monotonic()),
                transient=_passes,
            )
        except _Refused as refused:
            return refused.with_traceback(None)  # a value from here on
        except EmbedregError:
            raise
        except Exception as exc:
            status = http_status(exc)
            if status is None and not _passes(exc) and not isinstance(exc, OSError):
                raise  # a mistake in `request`: its own traceback says more
            if isinstance(exc, _NO_JSON):
                refusal = Refusal("call", "the answer is not JSON", _MEANING[405][1])
            else:
                refusal = Refusal("call", self.words_of(exc), _hint_for(status))
            address = self._address() if status is None else None
            kind = type(exc).__name__ + (f" at {address}" if address else "")
            failure = _Refused(refusal, status, kind)
            failure.__cause__ = exc
        else:
            return _rows_of(result, len(batch))
        raise self._call_error(failure, batch)

    def _address(self) -> str | None:
        """Return the host and port that requests go to, where a field says them; for errors."""
        for name in _ADDRESSES:
            value = getattr(self, name, None) if name in type(self).model_fields else None
            if isinstance(value, str) and (found := host_of(value)) is not None:
                return found
        return None

    # -- errors -----------------------------------------------------------------------------------------------------

    def _call_error(self, refused: _Refused, batch: Batch) -> CallError:
        """Build the error for a failed request; the client library's error is its cause, unless that repeats inputs."""
        rows = [row for row, _ in batch if row >= 0]
        what = f"{_span(rows)} of this call could not be embedded" if rows else "the service cannot be used"
        error = CallError(f"{self._said(what, refused, batch)}.", refused.hint)
        if not _repeats(str(refused.__cause__), batch):
            error.__cause__ = refused.__cause__
        error.__suppress_context__ = True
        return error

    def _said(self, what: str, refused: _Refused, batch: Batch) -> str:
        """Say what happened in the server's words, unless they repeat an input; no secret is in them."""
        words = " ".join(refused.message.split()).rstrip(".")
        if _repeats(refused.message, batch):
            words = "the server's words repeat an input and are left out"
        elif len(words) > SHOWN_CHARACTERS:
            words = f"{words[:SHOWN_CHARACTERS]}..."
        said = f"{what} ({refused.where})" if refused.where else what
        return redact(f"{said}: {words}" if words else said, self._held_secrets())


def _passes(exc: BaseException) -> bool:
    """Say whether an error of a request may pass by itself; what claims success and is no answer may too."""
    status = http_status(exc)
    return (
        isinstance(exc, (AnswerError, *_NO_JSON)) or is_transient(exc) or (status is not None and 200 <= status < 300)
    )


def host_of(url: str) -> str | None:
    """Return the host and port of a URL, without its user and password; None where it has none."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return None if host is None else host if port is None else f"{host}:{port}"


def _hint_for(status: int | None) -> str:
    if status == 429:
        return "the rate limit holds on: a smaller concurrency, more max_retries, or a higher limit at the provider"
    if status is not None:
        return "the server fails; try again later, or raise max_retries and deadline_s"
    return "check the network and the endpoint; timeout_s, max_retries and deadline_s say how patient to be"


def _text_of(value: Any, row: int) -> str | None:
    """Return a text to send, or None for null and blank."""
    if value is None or (isinstance(value, float) and value != value):  # NaN is pandas' null
        return None
    if not isinstance(value, str):
        raise InputError(f"row {row} is {type(value).__name__}, not text.", "convert the column to text first")
    return str(value) if value.strip() else None  # numpy's str_ is no JSON


def _rows_of(result: Any, m: int) -> Any:
    """Turn what `request` returned into (m, d) float32, or a list of m where rows failed."""
    import numpy as np

    if isinstance(result, str | bytes | Mapping | Set) or not hasattr(result, "__iter__"):
        raise VectorError(f"request() gave {type(result).__name__} for {m} texts.", "return one vector for each text")
    if not isinstance(result, np.ndarray):
        result = list(result)
        if any(row is None or isinstance(row, RowError) for row in result):
            if len(result) != m:
                raise _miscounted(len(result), m)
            return result
    try:
        matrix = np.asarray(result)
        if matrix.dtype.kind not in "fiuO" or any(isinstance(item, str | bytes) for item in _items(matrix)):
            raise TypeError  # numpy would read numbers out of texts
        with np.errstate(over="ignore"):
            matrix = matrix.astype(np.float32, copy=False)
    except (OverflowError, TypeError, ValueError):
        what = "the server gave vectors of different widths, or what are no numbers."
        raise VectorError(what, "check that the endpoint serves embeddings") from None
    if matrix.ndim != 2 or len(matrix) != m:
        raise _miscounted(len(matrix) if matrix.ndim == 2 else 0, m)
    if not np.isfinite(matrix).all(axis=1).any():
        refuse_outage(m, lambda: True)  # of a few, whoever called decides
    return matrix


def _items(matrix: Any) -> Any:
    return matrix.flat if matrix.dtype == object else ()


def _miscounted(got: int, m: int) -> VectorError:
    return VectorError(f"the server gave {got} vectors for {m} texts.", "check that the endpoint serves embeddings")


def _repeats(message: str, batch: Batch) -> bool:
    """Say whether a server's words hold an input or a piece of one."""
    whole = "\n".join(text for _, text in batch)
    pieces = (message[at : at + ECHO_CHARACTERS] for at in range(0, len(message) - ECHO_CHARACTERS + 1, 4))
    if any(piece in whole for piece in pieces):
        return True
    short = [text for _, text in batch if len(text) < ECHO_CHARACTERS + 4]
    return any(f"{quote}{text}{quote}" in message for text in short for quote in "'\"`")


def _span(rows: list[int]) -> str:
    """Write row numbers as ranges: "rows 0-4, 7"."""
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and row == ranges[-1][1] + 1:
            ranges[-1][1] = row
        else:
            ranges.append([row, row])
    shown = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges[:5])
    more = f" and {sum(last - first + 1 for first, last in ranges[5:])} more" if len(ranges) > 5 else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
