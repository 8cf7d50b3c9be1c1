"""Which errors are retried, how long the waits are, and which error is raised at the end."""

from __future__ import annotations

import datetime as dt
import email.message
import errno
import logging
import pickle
import time
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import format_datetime
from typing import Any

import pytest
import stamina
import stamina.instrumentation
from pydantic import PrivateAttr

import embedreg
from embedreg.errors import CallError, EmbedregError
from embedreg.security import redaction
from embedreg.support.retry import call_with_retry, http_status, is_transient, retry_after_s


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Leave out the sleeps; the waits that would have been slept are seen through `on_retry`."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


class VendorError(Exception):
    """An error of an unknown client library."""

    def __init__(self, status_code: int | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__("sk-secret and 'the whole input'")
        self.status_code = status_code
        self.headers = headers or {}


class Flaky:
    """Fails with each error in turn, then returns its arguments."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return args, kwargs


def test_arguments_and_result_pass_through() -> None:
    """The function gets its arguments, positional and named, and its result comes back."""
    assert call_with_retry(Flaky(), 1, "two", max_retries=3, three=3) == ((1, "two"), {"three": 3})


def test_a_transient_error_is_retried() -> None:
    """Two lost connections and then an answer: three calls."""
    flaky = Flaky(ConnectionResetError(), VendorError(503))
    assert call_with_retry(flaky, max_retries=2) == ((), {})
    assert flaky.calls == 3


@pytest.mark.parametrize("max_retries", [1, 2, 7])
def test_the_original_error_is_raised(max_retries: int) -> None:
    """After 1 + max_retries calls the last error itself is raised, without a substitute as its context."""
    errors = [VendorError(500) for _ in range(20)]
    flaky = Flaky(*errors)
    with pytest.raises(VendorError) as caught:
        call_with_retry(flaky, max_retries=max_retries)
    assert caught.value is errors[max_retries]
    assert flaky.calls == 1 + max_retries
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    assert any(entry.name == "__call__" for entry in caught.traceback)


def test_the_original_error_is_raised_in_stamina_s_test_mode() -> None:
    """If stamina allows fewer attempts than requested, the function's own error is still raised."""
    flaky = Flaky(VendorError(500), VendorError(500), VendorError(500))
    with stamina.set_testing(True, attempts=2), pytest.raises(VendorError):
        call_with_retry(flaky, max_retries=7)
    assert flaky.calls == 2


@pytest.mark.parametrize("max_retries", [0, -1])
def test_zero_disables(max_retries: int) -> None:
    """max_retries=0 calls once."""
    flaky = Flaky(ConnectionError(), ConnectionError())
    with pytest.raises(ConnectionError):
        call_with_retry(flaky, max_retries=max_retries)
    assert flaky.calls == 1


def test_stamina_s_switch_works_on_us() -> None:
    """A process that has switched stamina off gets no retries from embedreg either."""
    flaky = Flaky(ConnectionError(), ConnectionError())
    stamina.set_active(False)
    try:
        with pytest.raises(ConnectionError):
            call_with_retry(flaky, max_retries=7)
    finally:
        stamina.set_active(True)
    assert flaky.calls == 1


def caused(error: Exception, cause: Exception | None) -> Exception:
    """Return an error as `raise error from cause` leaves it, while another was handled."""
    error.__cause__, error.__context__ = cause, TimeoutError()
    return error


def during(error: Exception, other: Exception) -> Exception:
    """Return an error as it is raised while another is handled."""
    error.__context__ = other
    return error


def in_a_circle() -> Exception:
    """Return an error whose causes refer to each other."""
    error, other = RuntimeError("one"), RuntimeError("other")
    error.__cause__, other.__cause__ = other, error
    return error


PASSING: list[Exception] = [
    *(VendorError(status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)),
    ConnectionRefusedError(),
    BrokenPipeError(),
    TimeoutError(),
    OSError(errno.ENETUNREACH, "network unreachable"),
    VendorError(),
    Exception("a bare one, as LanceDB-style classes raise it"),
    caused(RuntimeError("the service failed"), ConnectionResetError()),
    caused(RuntimeError("outer"), caused(RuntimeError("inner"), VendorError(503))),
    during(RuntimeError("while it was handled"), TimeoutError()),
    urllib.error.HTTPError("http://x", 503, "busy", email.message.Message(), None),
]
LASTING: list[BaseException] = [
    *(VendorError(status) for status in (200, 301, 400, 401, 402, 403, 404, 413, 422, 501, 505)),
    TypeError(),
    ValueError(),
    UnicodeDecodeError("utf-8", b"", 0, 1, "bad"),
    KeyError(),
    IndexError(),
    AttributeError(),
    ImportError(),
    ModuleNotFoundError(),
    NameError(),
    NotImplementedError(),
    AssertionError(),
    ZeroDivisionError(),
    RecursionError(),
    MemoryError(),
    FileNotFoundError(),
    PermissionError(),
    OSError(errno.ENOSPC, "no space left"),
    RuntimeError("a bug of the user's, or torch's"),
    caused(RuntimeError("the service refused it"), VendorError(401)),
    caused(RuntimeError("not shown"), None),
    in_a_circle(),
    type("OutOfMemoryError", (RuntimeError,), {})(),
    EmbedregError("ours"),
    CallError("ours"),
    KeyboardInterrupt(),
    SystemExit(),
    urllib.error.HTTPError("http://x", 404, "nothing here", email.message.Message(), None),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_transient_errors(error: Exception) -> None:
    """Connection errors, timeouts, busy servers and unknown errors are retried."""
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_permanent_errors(error: BaseException) -> None:
    """Mistakes, refused requests and keys, and missing memory, disk and files are raised at the first call."""
    assert not is_transient(error)
    flaky = Flaky(error)
    with pytest.raises(type(error)) as caught:
        call_with_retry(flaky, max_retries=7)
    assert caught.value is error
    assert flaky.calls == 1


@pytest.mark.parametrize("holder", ["status_code", "status", "response"])
def test_the_status_is_found_wherever_a_library_keeps_it(holder: str) -> None:
    """`status_code`, `status` and a response's: openai, aiohttp and requests each have their own."""
    error = Exception()
    setattr(error, holder, type("Response", (), {"status_code": 418})() if holder == "response" else 418)
    assert http_status(error) == 418


def test_a_code_that_is_no_http_status_is_none() -> None:
    """`code` is text in one library and a grpc number in another: neither is read as a status."""
    error = Exception()
    error.code = "rate_limit_exceeded"  # type: ignore[attr-defined]
    assert http_status(error) is None
    error.code = 14  # type: ignore[attr-defined]
    assert http_status(error) is None


def waits(*errors: Exception, max_retries: int = 20, **options: Any) -> list[float]:
    """Return the waits before each retry."""
    seen: list[float] = []
    call_with_retry(Flaky(*errors), max_retries=max_retries, on_retry=lambda _, wait_s: seen.append(wait_s), **options)
    return seen


def test_waits_double_are_capped_and_jittered() -> None:
    """Half a second, one, two ... up to 30 s, each shortened by up to a half at random."""
    seen = waits(*(VendorError(500) for _ in range(20)), deadline_s=10_000)
    for failed, wait_s in enumerate(seen):
        full = min(30.0, 0.5 * 2**failed)
        assert full / 2 <= wait_s <= full
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 +99999999999999999999"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds and dates are understood; an invalid value is ignored."""
    assert retry_after_s(VendorError(429, headers)) == seconds


def test_retry_after_may_be_a_date() -> None:
    """An HTTP date 40 seconds ahead means 40 seconds."""
    when = format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=40), usegmt=True)
    assert retry_after_s(VendorError(503, {"Retry-After": when})) == pytest.approx(40, abs=2)


def test_a_date_is_read_by_the_servers_own_clock() -> None:
    """Where the response says when it was sent, this machine's clock may be wrong."""
    headers = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}
    assert retry_after_s(VendorError(503, headers)) == 30
    assert retry_after_s(VendorError(503, {**headers, "Date": "soon"})) == 0


def test_retry_after_is_read_from_the_response() -> None:
    """The header is found on the error's response too."""
    error = VendorError()
    error.response = VendorError(429, {"retry-after": "3"})  # type: ignore[attr-defined]
    assert retry_after_s(error) == 3


def test_the_wait_is_at_least_what_the_server_asks_up_to_a_limit() -> None:
    """Retry-After sets the wait, with a little on top; two minutes is the most."""
    seen = waits(VendorError(429, {"Retry-After": "7"}), VendorError(429, {"Retry-After": "3600"}))
    assert 7 <= seen[0] <= 7.7
    assert 120 <= seen[1] <= 121


def test_the_deadline_ends_it() -> None:
    """A wait that would end after the deadline does not begin: the error is raised at once."""
    flaky = Flaky(VendorError(429, {"Retry-After": "30"}))
    began = time.monotonic()
    with pytest.raises(VendorError):
        call_with_retry(flaky, max_retries=7, deadline_s=10)
    assert flaky.calls == 1
    assert time.monotonic() - began < 5


def test_it_really_waits() -> None:
    """Outside stamina's test mode the wait is slept."""
    with stamina.set_testing(False):
        began = time.monotonic()
        call_with_retry(Flaky(VendorError(429, {"Retry-After": "0.15"})), max_retries=1)
        assert 0.15 <= time.monotonic() - began < 2


def test_neither_logs_nor_stamina_s_hooks_see_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """The error's text, which may hold inputs and keys, reaches no log and no hook; its type and status do."""
    seen: list[stamina.instrumentation.RetryDetails] = []
    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([*before, seen.append])
    try:
        with caplog.at_level(logging.DEBUG):
            call_with_retry(Flaky(VendorError(503)), "the input", max_retries=1, api_key="sk-secret")
    finally:
        stamina.instrumentation.set_on_retry_hooks(before)
    assert "VendorError, HTTP 503" in caplog.text
    everything = caplog.text + "".join(str(record.__dict__) for record in caplog.records) + repr(seen)
    assert "sk-secret" not in everything
    assert "input" not in everything
    cause = seen[0].caused_by
    assert cause.__cause__ is cause.__context__ is None
    assert not isinstance(cause, VendorError)


def test_a_caller_can_give_up_between_attempts() -> None:
    """An error of `on_retry` ends the retries and is raised."""

    def give_up(exc: Exception, wait_s: float) -> None:
        raise CallError("no longer wanted")

    flaky = Flaky(VendorError(500))
    with pytest.raises(CallError, match="no longer wanted"):
        call_with_retry(flaky, max_retries=7, on_retry=give_up)
    assert flaky.calls == 1


# -- through the seam that keeps secrets in ----------------------------------------------------------------------------


class Pooled(embedreg.TextEmbeddingFunction):
    """A user's own remote function: it holds a key, and calls the service from a pool of its own."""

    api_key: str = "$var:pooled_key"
    _answers: list[Exception] = PrivateAttr(default_factory=list)
    _calls: int = PrivateAttr(default=0)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return list(pool.map(self.one, texts))

    def one(self, text: str) -> list[float]:
        """Guarded by itself, since it is the outermost call of its thread."""
        self._calls += 1
        if self._answers:
            raise self._answers.pop(0)
        return [float(len(text))]


@pytest.mark.parametrize("role", ["source", "query"])
def test_a_redacted_error_of_a_worker_thread_is_retried(role: str) -> None:
    """A redacted substitute of a transient error is retried like the error itself; that of a permanent one is not."""
    embedreg.get_registry().set_var("pooled_key", "sk-secret")
    function = Pooled(max_retries=5)
    call = getattr(function, f"compute_{role}_embeddings_with_retry")
    function._answers += [VendorError(503), ConnectionResetError("sk-secret"), VendorError(429, {"Retry-After": "2"})]
    assert call("abc") == [[3.0]]
    assert function._calls == 4
    function._answers += [VendorError(401)]
    with pytest.raises(CallError) as caught:
        call("abc")
    assert function._calls == 5
    assert not caught.value.transient
    assert "sk-secret" not in str(caught.value)


def test_a_call_error_declares_whether_it_is_transient() -> None:
    """`transient` and the wait that a service asked for are kept by the substitute, and by copies of it."""
    plain = redaction.redacted(VendorError(429, {"Retry-After": "7"}), ["sk-secret"])
    for error in (plain, pickle.loads(pickle.dumps(plain))):
        assert is_transient(error)
        assert retry_after_s(error) == 7
    assert not is_transient(redaction.redacted(KeyError("no"), ["sk-secret"]))
    assert waits(CallError("busy", transient=True))[0] <= 0.5
