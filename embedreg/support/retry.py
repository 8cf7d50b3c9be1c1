"""Retries of transient errors: a lost connection, a busy server, an error of unknown type.

The loop is stamina's, so `stamina.set_active(False)` and `stamina.set_testing(True)` also apply to embedreg. Its
instrumentation hooks are process-wide and are not changed. They receive a substitute that names the error's type and
HTTP status, never the error itself, whose text may quote an input or a key.
"""

from __future__ import annotations

import datetime as dt
import errno
import logging
import math
import random
import sys
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from embedreg.errors import CallError, EmbedregError

__all__ = ["call_with_retry", "http_status", "is_outage", "is_transient", "retry_after_s", "waits_are_left_out"]

T = TypeVar("T")

log = logging.getLogger("embedreg")

# Rate limits are usually per minute: ten minutes cover several intervals and a short outage.
# A longer failure is not transient and should be reported.
DEADLINE_S = 600.0
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
MAX_RETRY_AFTER_S = 120.0  # a server that asks for more is retried sooner, and its error is then raised

# Request timeout, conflict (lock timeout), too early, too many requests; and every 5xx but two.
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
_PERMANENT_5XX = frozenset({501, 505})  # not implemented, HTTP version not supported

_TRANSIENT_TYPES = (ConnectionError, TimeoutError, InterruptedError, BlockingIOError)
_PERMANENT_TYPES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ChildProcessError,
    EOFError,
    EmbedregError,
    FileExistsError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    LookupError,
    MemoryError,
    NameError,
    NotADirectoryError,
    NotImplementedError,
    PermissionError,
    ProcessLookupError,
    RecursionError,
    ReferenceError,
    StopAsyncIteration,
    StopIteration,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    Warning,
)
_PERMANENT_ERRNO = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG})
# Header, and its units per second; a plain dict of headers is case-sensitive.
_RETRY_AFTER = (("retry-after-ms", 1000.0), ("retry-after", 1.0), ("Retry-After", 1.0))
_MAX_CAUSES = 20  # that are followed: causes can refer to each other
_PERMANENT_NAMES = frozenset({"OutOfMemoryError"})  # torch's, not imported here: waiting does not free memory
# Missing credentials, refused parameters and settings of clients, which have no status: library -> base classes, and
# the classes below them that are errors of the network after all.
_LASTING: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "boto3": (frozenset({"Boto3Error"}), frozenset()),
    "botocore": (
        frozenset({"BotoCoreError"}),
        frozenset(
            {
                "ChecksumError",
                "ConnectionError",
                "CredentialRetrievalError",
                "EventStreamError",
                "HTTPClientError",
                "IncompleteReadError",
                "MetadataRetrievalError",
            }
        ),
    ),
    "cohere": (frozenset({"ApiError"}), frozenset()),
    "google": (frozenset({"DefaultCredentialsError", "MalformedError"}), frozenset()),
    "httpx": (frozenset({"InvalidURL", "LocalProtocolError", "UnsupportedProtocol"}), frozenset()),
    "httpx2": (frozenset({"InvalidURL", "LocalProtocolError", "UnsupportedProtocol"}), frozenset()),
    "voyageai": (frozenset({"AuthenticationError", "InvalidRequestError", "MalformedRequestError"}), frozenset()),
}


class _Transient(Exception):
    """A substitute for a transient error, which stamina and its hooks see."""

    def __init__(self, what: str, wait_s: float) -> None:
        super().__init__(what)
        self.wait_s = wait_s


def call_with_retry(
    function: Callable[..., T],
    /,
    *args: Any,
    max_retries: int,
    deadline_s: float = DEADLINE_S,
    on_retry: Callable[[Exception, float], None] | None = None,
    called: str | None = None,
    transient: Callable[[BaseException], bool] | None = None,
    uncounted_s: Callable[[], float] | None = None,
    **kwargs: Any,
) -> T:
    """Call a function, and retry it while its error is transient; see `is_transient`.

    Waits double from half a second to 30 s, with jitter, unless the server requests one (Retry-After, up to two
    minutes).

    Args:
        function: called with the other arguments.
        max_retries: the maximum number of further calls; 0 for none.
        deadline_s: no wait begins that would end later than this after the first call. A running call is never
            cancelled: that is the task of its own timeout.
        on_retry: called with the error and the wait in seconds before each wait.
        called: the name of the embedding function in the log line of each retry.
        transient: decides which errors are retried; by default `is_transient`.
        uncounted_s: returns the seconds so far that do not count towards the deadline.
    Raises:
        The last error of the function itself, unchanged.
    """
    if max_retries <= 0:
        return function(*args, **kwargs)
    started, wanted = time.monotonic(), transient or is_transient
    try:
        return function(*args, **kwargs)  # before stamina's loop, which takes as long as a cheap call
    except Exception as exc:
        if not wanted(exc):
            raise
        failure = exc
    import stamina

    logging.getLogger("stamina").addFilter(_ONE_LINE)  # the same object: it is added once
    attempts = max_retries + 1 if stamina.is_active() else 1
    try:
        for attempt in stamina.retry_context(on=_wait_of, attempts=attempts, timeout=None):
            with attempt:
                try:
                    if attempt.num == 1:
                        raise failure
                    return function(*args, **kwargs)
                except Exception as exc:
                    wait_s = _next_wait_s(exc, attempt.num)
                    waited_s = 0.0 if uncounted_s is None else uncounted_s()
                    over = time.monotonic() - started - waited_s + wait_s > deadline_s
                    if attempt.num >= attempts or over or not wanted(exc):
                        raise
                    if on_retry is not None:
                        on_retry(exc, wait_s)
                    what = _describe(exc)
                    log.warning(
                        "%scall %d of %d failed (%s); trying again in %.1f s",
                        f"{called}: " if called else "", attempt.num, attempts, what, wait_s,
                    )  # fmt: skip
                    failure = exc
                    stand_in = _Transient(what, wait_s)
                raise stand_in  # outside the except block, so that the error itself is not its context
    except _Transient:  # stamina's test mode allows fewer attempts than requested
        pass
    try:
        raise failure
    finally:
        del failure  # its traceback references this frame: avoid a cycle


def waits_are_left_out() -> bool:
    """Return whether waits between attempts are left out: stamina's test mode, which applies to every wait."""
    stamina = sys.modules.get("stamina")
    return stamina is not None and bool(stamina.is_testing())


class _OneLine(logging.Filter):
    """Drops stamina's own line for a retry of ours, which has a line already; its other hooks see every retry."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(getattr(record, "stamina.caused_by", "")).startswith(f"{_Transient.__name__}(")


_ONE_LINE = _OneLine()


def _wait_of(exc: Exception) -> bool | float:
    """Return the seconds before the next attempt, or False to stop; called by stamina."""
    return exc.wait_s if isinstance(exc, _Transient) else False


def _next_wait_s(exc: Exception, failed: int) -> float:
    """Return the wait after a number of failed calls."""
    asked = retry_after_s(exc)
    if asked is not None:
        # never sooner than requested, and with jitter between clients
        return min(asked, MAX_RETRY_AFTER_S) + random.uniform(0, min(1.0, 0.1 * asked))
    return float(min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failed - 1, 16)) * random.uniform(0.5, 1.0))


def is_transient(exc: BaseException) -> bool:
    """Return whether an error is transient, so that a retry may succeed.

    Transient errors are connection errors, timeouts, HTTP 408, 409, 425, 429 and 5xx, and unknown exception types. Not
    transient are programming errors, refused requests, missing or refused keys, missing memory, disk space or files,
    and embedreg's own errors, except a `CallError` that is marked as transient. A plain `RuntimeError` is as transient
    as its cause: `raise RuntimeError(...) from exc`, or the error that was being handled; alone it is a bug.
    """
    if isinstance(exc, CallError):
        return exc.transient
    if not isinstance(exc, Exception) or isinstance(exc, EmbedregError):
        return False
    status = http_status(exc)
    if status is not None:
        return status in _TRANSIENT_STATUS or (status >= 500 and status not in _PERMANENT_5XX)
    if isinstance(exc, _TRANSIENT_TYPES):
        return True
    if type(exc) is RuntimeError:  # Python's and torch's for bugs, and users' for what a service answered
        cause = _cause_of(exc)
        return cause is not None and is_transient(cause)
    if isinstance(exc, _PERMANENT_TYPES) or type(exc).__name__ in _PERMANENT_NAMES or _is_lasting(type(exc)):
        return False
    retryable = getattr(exc, "retryable", None)  # google-auth's errors
    if isinstance(retryable, bool):
        return retryable
    return not (isinstance(exc, OSError) and exc.errno in _PERMANENT_ERRNO)


def _cause_of(exc: BaseException) -> BaseException | None:
    """Return the first error behind a plain RuntimeError that is not one itself; None if there is none."""
    found: BaseException | None = exc
    for _ in range(_MAX_CAUSES):
        if found is None or type(found) is not RuntimeError:
            return found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return None


def _is_lasting(kind: type[BaseException]) -> bool:
    """Return whether an error class derives from a client library's class for errors that last."""
    names = {(base.__module__.partition(".")[0], base.__name__) for base in kind.__mro__}
    libraries = {library for library, _ in names} & _LASTING.keys()
    for library in libraries:
        lasting, passing = ({(library, name) for name in group} for group in _LASTING[library])
        if names & lasting and not names & passing:
            return True
    return False


def is_outage(exc: BaseException) -> bool:
    """Return whether an error is of a type that is known to be transient."""
    return is_transient(exc) and (isinstance(exc, (CallError, *_TRANSIENT_TYPES)) or http_status(exc) is not None)


def http_status(exc: BaseException) -> int | None:
    """Return the HTTP status that an error of any client library carries, or None."""
    response = getattr(exc, "response", None)
    for holder, name in (
        (exc, "status_code"),  # openai, anthropic, cohere, ollama
        (exc, "http_status"),  # voyageai, older openai
        (response, "status_code"),  # requests, httpx, huggingface_hub
        (exc, "status"),  # aiohttp, urllib3
        (response, "status"),
        (exc, "code"),  # urllib, google-genai
    ):
        value = getattr(holder, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
            return int(value)
    status = _of_botocore(exc).get("HTTPStatusCode")
    return status if isinstance(status, int) and 100 <= status <= 599 else None


def _of_botocore(exc: BaseException) -> dict[str, Any]:
    """Return what botocore keeps of a response in its errors, a dict in a dict; empty for other errors."""
    response = getattr(exc, "response", None)
    found = response.get("ResponseMetadata") if isinstance(response, dict) else None
    return found if isinstance(found, dict) else {}


def retry_after_s(exc: BaseException) -> float | None:
    """Return the seconds that a server asked to wait, 0 or more; None if it did not.

    An error's own attribute `retry_after_s` comes first, for services that ask in the body of the response.

    Source: RFC 9110, section 10.2.3 (seconds or an HTTP date); `retry-after-ms` is OpenAI's and Azure's.
    """
    own = getattr(exc, "retry_after_s", None)
    if isinstance(own, int | float) and not isinstance(own, bool) and math.isfinite(own) and own >= 0:
        return float(own)
    if isinstance(exc, CallError):
        return None
    response = getattr(exc, "response", None)
    for headers in (
        getattr(response, "headers", None),
        getattr(exc, "headers", None),
        _of_botocore(exc).get("HTTPHeaders"),
    ):
        get = getattr(headers, "get", None)
        if get is None:
            continue
        for name, unit in _RETRY_AFTER:
            text = get(name)
            if isinstance(text, str) and (seconds := _seconds(text, unit, get("date") or get("Date"))) is not None:
                return seconds
    return None


def _seconds(text: str, unit: float, sent: Any) -> float | None:
    """Return the seconds of a header; of a date those from when the response was sent, by the server's own clock."""
    try:
        seconds = float(text) / unit
    except ValueError:
        when = _when(text)
        if when is None:
            return None
        now = _when(sent) if isinstance(sent, str) else None
        return max(0.0, (when - (now or dt.datetime.now(dt.UTC))).total_seconds())
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _when(text: str) -> dt.datetime | None:
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # no date; one with a zone beyond any
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=dt.UTC)  # "-0000", or no zone at all


def _describe(exc: BaseException) -> str:
    """Return the type and HTTP status of an error, without its text, which may contain inputs or secrets."""
    status = http_status(exc)
    return type(exc).__qualname__ + (f", HTTP {status}" if status is not None else "")
