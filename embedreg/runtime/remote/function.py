"""`RemoteFunction`, the base class of remote functions: batches, concurrent requests, retries, isolating bad inputs.

A remote function is a subclass of `RemoteTextFunction`, or for other inputs than texts of `RemoteFunction`, with
`ndims()` and `request(batch, role)`.

Over 400 lines: sending, retrying and finding the refused input share the state of one call.
"""

from __future__ import annotations

import contextvars
import functools
import hashlib
import inspect
import json
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from embedreg.core.base import EmbeddingFunction, TextEmbeddingFunction, Traits
from embedreg.core.role import Role, role_of, takes_role
from embedreg.errors import CallError, EmbedregError, InputError, RowError, changed
from embedreg.runtime.remote.accounts import Account, budget_of
from embedreg.runtime.remote.answers import (
    MEANING,
    AnswerError,
    Batch,
    Refusal,
    Usage,
    are_texts,
    hint_for,
    host_of,
    key_hint,
    kind_of,
    redirected,
    repeats,
    rows_of,
    span,
)
from embedreg.runtime.remote.budget import Budget, Limits, record
from embedreg.runtime.remote.connections import client_key, clients, release
from embedreg.runtime.remote.offline import instead
from embedreg.runtime.remote.usage import TotalUsage
from embedreg.security.redaction import called, carried, guarded, redact
from embedreg.support.display import plain
from embedreg.support.retry import DEADLINE_S, call_with_retry, http_status, is_transient, retry_after_s
from embedreg.support.threads import Threads

__all__ = ["AnswerError", "Refusal", "RemoteFunction", "RemoteTextFunction", "client_key", "clients", "is_passing"]
__all__ += ["release"]

# Maximum extra requests for one refused batch. Bisecting 512 rows takes up to 18 requests per bad row, so this finds a
# dozen or more, and a batch in which every row is refused ends in about a minute instead of after a thousand requests.
BLAME_REQUESTS = 256
_CONTROL: Batch = [(-1, "hello")]  # a server that refuses this text refuses every text
READ_CHARACTERS = 10_000  # of a server's message, in search of inputs
SHOWN_CHARACTERS = 500  # of it: some respond with a whole page

log = logging.getLogger("embedreg")

_NOTED_S = 0.001  # a shorter wait for a budget is not one
_LEAST_S = 1.0  # minimum time of the last attempt before the deadline: less would fail always
_requests = Threads("embedreg-request", computes=False)
_REFUSES_ALL = "it refuses every text: check the model's name, and the settings that it is sent"
_NO_JSON = (json.JSONDecodeError, UnicodeDecodeError)
_BUDGET_FIELDS = ("rpm", "tpm", "ipm", "max_concurrency")
_ADDRESSES = ("base_url", "endpoint", "api_base", "url", "host")


class _Refused(EmbedregError):
    """A failure that a retry would not change; its cause is the client library's error."""

    def __init__(self, refusal: Refusal, status: int | None, kind: str = "") -> None:
        super().__init__(refusal.message, refusal.hint)
        self.fault = refusal.fault
        self.where = ", ".join(part for part in (kind, f"HTTP {status}" if status is not None else "") if part)


class _Stopped(CallError):
    """Ends a request whose result is no longer needed."""


@dataclass
class _Call:
    """One call of a function: its role, its budget, and whether one of its requests has failed."""

    role: Role
    budget: Budget
    stopped: threading.Event = field(default_factory=threading.Event)


class RemoteFunction(EmbeddingFunction):
    """An embedding function behind a network call.

    A subclass defines `ndims()`, `request(batch, role)` and its `traits`. Nulls and blank texts are not sent and have
    no vector. The other inputs are sent in batches, several concurrently. Transient errors are retried, and results are
    in the order of the inputs. A refused input is found by bisecting its batch, and only its own row fails.

    Attributes:
        batch_size: maximum inputs of one request.
        max_batch_tokens: maximum tokens of one request, by `count_tokens`; a longer input is sent alone.
        concurrency: maximum concurrent requests.
        timeout_s: total time limit of one request, connecting and reading included.
        deadline_s: time limit of a batch, retries included but not the wait for a budget; finding refused texts may
            take as long again.
        rpm, tpm, ipm: maximum requests, tokens and inputs per minute, for all functions with this host, key and model
            together; None for no limit of its own.
        max_concurrency: maximum concurrent requests of all these functions together.
    """

    # Rows for several requests at a time; retries are per request, so the whole call is not retried.
    traits: ClassVar[Traits] = Traits(modality="any", remote=True, retry=False, window=8192)

    _takes_texts: ClassVar[bool] = False  # whether `request` takes texts among its other inputs
    counts_inputs: ClassVar[bool] = False  # whether the service counts each input as a request

    batch_size: int = Field(default=512, ge=1)
    max_batch_tokens: int = Field(default=250_000, ge=1)
    concurrency: int = Field(default=4, ge=1, le=64)
    timeout_s: float = Field(default=60.0, gt=0)
    deadline_s: float = Field(default=DEADLINE_S, gt=0)
    rpm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    tpm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ipm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_concurrency: int | None = Field(default=None, ge=1)

    @staticmethod
    def runtime_keys() -> list[str]:
        return ["concurrency", "deadline_s", "max_batch_tokens", *_BUDGET_FIELDS]

    # -- defined by a subclass --------------------------------------------------------------------------------------

    @abstractmethod
    def request(self, batch: list[Any], role: Role) -> Any:
        """Embed one batch with one network call; called from several threads at a time.

        A class whose service embeds queries and sources alike may omit the role: `request(self, batch)`.

        Args:
            batch: m inputs, none of them null or blank, 1 <= m <= batch_size.
            role: "source" or "query", for the whole batch.
        Returns:
            (m, d) in the order of the batch, or m vectors with None or a RowError for a row that failed. What it cost
            goes to `report_usage`, if the service reports it.
        Raises:
            Exception: any error; one for which `explain` returns a refusal is final, other transient ones are retried.
        """

    def explain(self, exc: Exception) -> Refusal | None:
        """Return the refusal that an error of `request` means, or None; the default uses the HTTP status."""
        status = http_status(exc)
        if status is None or status not in MEANING:
            return redirected(status, self.words_of(exc))
        fault, hint = MEANING[status]
        if status in (401, 403):
            hint = self._credentials_hint()
            if status == 403:
                hint = changed(hint, lambda hint: f"the credentials may not use this model or endpoint; {hint}")
        return Refusal(fault, self.words_of(exc), hint)

    def _credentials_hint(self) -> str:
        """Return what to do when the service refuses the credentials."""
        fields = self.sensitive_keys()
        return key_hint(fields[0]) if fields else "check the credentials that the service expects"

    def words_of(self, exc: Exception) -> str:
        """Return the service's message from an error of its client library."""
        return str(exc)

    def count_tokens(self, text: Any) -> int:
        """Return an upper estimate of the tokens of an input; 1 for an input that is not a text.

        The default counts a token for two UTF-8 bytes: prose has about four bytes per token, and a character of three
        bytes is rarely more than one and a half tokens.
        """
        return len(text.encode()) // 2 + 1 if isinstance(text, str) else 1

    def estimate_usage(self, batch: list[Any]) -> Usage:
        """Return an upper estimate of what a request costs; a class whose service counts otherwise overrides it."""
        return Usage(1, len(batch), sum(map(self.count_tokens, batch)))

    def account(self) -> Account:
        """Return what services count limits for: the host, a digest of the key, and the model."""
        secrets = "\0".join(sorted({*self._account_keys()}))
        host = self._address() or type(self).__name__
        return host, hashlib.sha256(secrets.encode("utf-8", "replace")).hexdigest()[:16], str(getattr(self, "name", ""))

    def _account_keys(self) -> list[str]:
        """Return what tells accounts of one host apart: the keys, but no token that is fetched with them."""
        return self._held_secrets()

    def budget(self) -> Budget:
        """Return the budget that the function's requests are counted in."""
        found = budget_of(self.account())
        limits = Limits(self.rpm, self.tpm, self.ipm, self.max_concurrency)
        if limits != Limits():
            found.lower(limits)
        return found

    def batch_api(self) -> Any:
        """Return the service's `batch_api.BatchApi` for this function; None if it has none."""
        return None

    def row_problem(self, text: Any) -> str | None:
        """Return the reason why an input cannot be embedded, before it is sent, or None; the default is None."""
        return None

    # -- the contract -----------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed n inputs.

        Returns:
            (n, d) float32; if rows have no vector, a list of n vectors, None (null, blank) and RowError.
        Raises:
            CallError: a request failed; it names the rows by their numbers in this call.
            VectorError: the response does not fit the request.
        """
        return self._embed_rows(inputs, role)

    def compute_source_embeddings(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed source rows, as `compute_embeddings` does."""
        return self._embed_rows(self.sanitize_input(inputs), "source")

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed one query, as `compute_embeddings` does."""
        return self._embed_rows([query], "query")

    def _sent(self, value: Any, row: int, role: Role) -> Any:
        """Return the value to send for an input; None for null and blank. A RowError fails that row."""
        return None if _is_null(value) or (isinstance(value, str) and not value.strip()) else value

    def _embed_rows(self, inputs: Any, role: Role) -> Any:
        import numpy as np

        values = list(inputs)
        if not values:
            return np.empty((0, self.ndims()), np.float32)
        found: list[Any] = [None] * len(values)
        rows: Batch = []
        for row, given in enumerate(values):
            try:
                value = self._sent(given, row, role)
            except RowError as exc:
                found[row] = exc.with_traceback(None)
                continue
            if value is None:
                continue
            problem = self.row_problem(value)
            if problem is None:
                rows.append((row, value))
            else:
                found[row] = RowError(problem)
        other = instead()
        if other is not None:
            for (row, _), vector in zip(rows, other.take(self, [value for _, value in rows], role), strict=True):
                found[row] = vector
            rows = [each for each in rows if found[each[0]] is None]  # such as the control of a call without vectors
        budget = self.budget()  # once a call: an account is a digest of the secrets
        results = self._embed_all(list(self._batches(rows, budget.limits)), _Call(role, budget)) if rows else []
        if len(rows) == len(values) and all(isinstance(result, np.ndarray) for result in results):
            return np.concatenate(results) if len(results) > 1 else results[0]
        vectors = (vector for result in results for vector in result)
        for (row, _), vector in zip(rows, vectors, strict=True):
            found[row] = vector
        return found

    # -- batches ----------------------------------------------------------------------------------------------------

    def _batches(self, rows: Batch, limits: Limits) -> Iterator[Batch]:
        """Cut rows into batches by number and tokens, in order.

        A request over a limit per minute would wait until nothing else counts.
        """
        batch: Batch = []
        total = 0
        most_rows, most_tokens = self._request_limits()
        most_rows = max(1, min(most_rows, int(limits.ipm or most_rows)))
        most_tokens = max(1, min(most_tokens, int(limits.tpm or most_tokens)))
        for row in rows:
            tokens = self.count_tokens(row[1])
            if batch and (len(batch) == most_rows or total + tokens > most_tokens):
                yield batch
                batch, total = [], 0
            batch.append(row)
            total += tokens
        if batch:
            yield batch

    def _request_limits(self) -> tuple[int, int]:
        """Return the maximum inputs and tokens of one request; a subclass lowers them to its service's."""
        return self.batch_size, self.max_batch_tokens

    def _embed_all(self, batches: list[Batch], call: _Call) -> list[Any]:
        """Embed batches, several at a time; the first failure stops the others and is raised."""
        if len(batches) <= 1 or self.concurrency == 1:
            return [self._embed(batch, call) for batch in batches]
        pool = ThreadPoolExecutor(min(self.concurrency, len(batches)), thread_name_prefix="embedreg-request")
        # Each thread runs in a copy of the caller's context, which contains scoped variables.
        pending = [pool.submit(contextvars.copy_context().run, self._embed, batch, call) for batch in batches]
        try:
            done, _ = wait(pending, return_when=FIRST_EXCEPTION)
            failures = [failure for future in done if (failure := future.exception()) is not None]
            for failure in sorted(failures, key=lambda failure: isinstance(failure, _Stopped)):
                raise failure  # the failure that stopped the others
            return [future.result() for future in pending]
        finally:
            call.stopped.set()
            # Without waiting: a thread may sleep before its next attempt, which it will not make.
            pool.shutdown(wait=False, cancel_futures=True)

    @guarded  # the outermost function of its thread, so that the retries inside see the client library's own errors
    def _embed(self, batch: Batch, call: _Call) -> Any:
        """Embed one batch, and stop the others if it fails: (m, d), or a list of m with RowErrors among them."""
        try:
            result = self._send(batch, call, time.monotonic() + self.deadline_s)
            if not isinstance(result, _Refused):
                return result
            until = time.monotonic() + self.deadline_s
            # where a text cannot stand for the others, there is no value that every service accepts
            texts = self._takes_texts or are_texts(batch)
            if result.fault == "unknown" and texts and isinstance(self._send(_CONTROL, call, until), _Refused):
                result.fault = "call"  # the texts are not the cause
                result.hint = result.hint or _REFUSES_ALL
            if result.fault == "call":
                raise self._call_error(result, batch)
            found: list[Any] = []
            self._bisect(batch, result, call, found, [BLAME_REQUESTS], until)
            return found
        except BaseException:
            call.stopped.set()  # here, not in the waiting thread, which may be slow to wake
            raise

    def _bisect(
        self,
        batch: Batch,
        refused: _Refused,
        call: _Call,
        found: list[Any],
        left: list[int],
        until: float,
    ) -> None:
        """Split a refused batch until only single rows are refused; `left` is the number of requests that remain."""
        if len(batch) == 1:
            found.append(RowError(self._failure_text(f"the server refused this {kind_of(batch)}", refused, batch)))
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            if not left[0]:
                where, what = span([row for row, _ in half]), kind_of(batch)
                raise CallError(
                    f"too many {what}s are refused: {BLAME_REQUESTS} more requests did not find all of them; they are "
                    f"among {where} of this call; {self._failure_text('the last response', refused, batch)}.",
                    "shorten or drop them first; batch_size=64 finds all of them, with more requests",
                )
            left[0] -= 1
            result = self._send(half, call, until)
            if not isinstance(result, _Refused):
                found.extend(result)
            elif result.fault == "call":
                raise self._call_error(result, half)
            else:
                self._bisect(half, result, call, found, left, until)

    def _send(self, batch: Batch, call: _Call, until: float) -> Any:
        """Send one request and retry transient errors: (m, d), a list of m, or a refusal.

        Args:
            until: the deadline, by `time.monotonic`.
        Raises:
            CallError: it failed after all retries.
        """
        ask = functools.partial(_caller(type(self).request), self.request, [value for _, value in batch], call.role)

        budget, estimate = call.budget, self.estimate_usage([value for _, value in batch])
        total = TotalUsage()

        def attempt() -> Any:
            reservation, waited_s = budget.reserve(estimate, call.stopped.is_set, per_input=self.counts_inputs)
            if waited_s > _NOTED_S:
                record(total, TotalUsage(waited_s=waited_s))
            if reservation is None:
                raise _Stopped("another request of the same call has failed.")
            left_s = until + total.waited_s - time.monotonic()
            try:
                with budget.counted(reservation, estimate, total):
                    # In a thread that can be abandoned: a client's own timeouts restart with each byte, and none of
                    # them covers name resolution.
                    return _requests.call(carried(ask), timeout_s=min(self.timeout_s, max(_LEAST_S, left_s)))
            except EmbedregError:
                raise
            except Exception as exc:
                refusal = self.explain(exc)
                if refusal is None:
                    if http_status(exc) == 429:
                        budget.refused(reservation, retry_after_s(exc))
                    raise
                raise _Refused(refusal, http_status(exc)) from exc

        try:
            result = call_with_retry(
                attempt,
                max_retries=self.max_retries,
                deadline_s=max(0.0, until - time.monotonic()),
                transient=is_passing,
                uncounted_s=lambda: total.waited_s,
            )
        except _Refused as refused:
            return refused.with_traceback(None)  # used as a value from here on
        except EmbedregError:
            raise
        except Exception as exc:
            if http_status(exc) is None and not is_passing(exc) and not isinstance(exc, OSError):
                raise  # a bug in `request`: its own traceback is more useful
            failure = self._failure(exc)
        else:
            return rows_of(result, len(batch), kind_of(batch))
        finally:
            log.debug("%s: %s", called(self), total)
        raise self._call_error(failure, batch)

    def _address(self) -> str | None:
        """Return the host and port of the requests, if a field contains them; for error messages."""
        for name in _ADDRESSES:
            value = getattr(self, name, None) if name in type(self).model_fields else None
            if isinstance(value, str) and (found := host_of(value)) is not None:
                return found
        return None

    # -- errors -----------------------------------------------------------------------------------------------------

    def _failure(self, exc: Exception) -> _Refused:
        """Return what an error means that retries have not helped against."""
        status = http_status(exc)
        if isinstance(exc, _NO_JSON):
            refusal = Refusal("call", "the response is not JSON", MEANING[405][1])
        else:
            refusal = self.explain(exc) or Refusal("call", self.words_of(exc), hint_for(status))
        address = self._address() if status is None else None
        failure = _Refused(refusal, status, type(exc).__name__ + (f" at {address}" if address else ""))
        failure.__cause__ = exc
        return failure

    def _failed_call(self, what: str, exc: Exception, batch: Batch) -> CallError:
        """Return the error for an exchange other than `request`; `batch` holds the inputs that it may repeat."""
        return self._call_error(self._failure(exc), batch, what)

    def _refused_call(self, refusal: Refusal, status: int | None, what: str) -> CallError:
        """Return the error for a refusal that came with other results."""
        return self._call_error(_Refused(refusal, status), [], what)

    def _failure_of_row(self, refusal: Refusal, status: int, batch: Batch) -> str:
        """Return why a row failed that the service has refused."""
        return self._failure_text(f"the server refused this {kind_of(batch)}", _Refused(refusal, status), batch)

    def _call_error(self, refused: _Refused, batch: Batch, what: str | None = None) -> CallError:
        """Return the error for a failed request; its cause is the client library's error unless that repeats inputs."""
        rows = [row for row, _ in batch if row >= 0]
        if what is None:
            what = f"the request for {span(rows)} of this call failed" if rows else "the service cannot be used"
        error = CallError(f"{self._failure_text(what, refused, batch)}.", refused.hint)
        if not repeats(str(refused.__cause__), batch):
            error.__cause__ = refused.__cause__
        error.__suppress_context__ = True
        return error

    def _failure_text(self, what: str, refused: _Refused, batch: Batch) -> str:
        """Return a message with the server's own, unless that repeats an input; secrets are redacted."""
        message = refused.message[:READ_CHARACTERS]
        detail = plain(message).rstrip(".")
        if repeats(message, batch):
            detail = "the server's message repeats an input and is omitted"
        elif len(detail) > SHOWN_CHARACTERS:
            detail = f"{detail[:SHOWN_CHARACTERS]}..."
        failure = f"{what} ({refused.where})" if refused.where else what
        return redact(f"{failure}: {detail}" if detail else failure, self._held_secrets())


class RemoteTextFunction(TextEmbeddingFunction, RemoteFunction):  # type: ignore[misc]  # parameter names differ
    """A text embedding function behind a network call: a `RemoteFunction` whose inputs are texts.

    A subclass defines `ndims()` and `request(batch, role)`.
    """

    traits: ClassVar[Traits] = Traits(remote=True, retry=False, window=8192)

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed texts, as `generate_embeddings` does, and pass the role to `request`."""
        return EmbeddingFunction.compute_embeddings(self, inputs, role)  # LanceDB's methods, which a subclass overrides

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed n texts.

        Returns:
            (n, d) float32; if rows have no vector, a list of n vectors, None (null, blank) and RowError.
        Raises:
            InputError: a row is not text. CallError: a request failed; it names the rows by their numbers in this call.
            VectorError: the response does not fit the request.
        """
        return self._embed_rows(self.sanitize_input(texts), role_of(self))

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors; `prompts` is None if `request` has no parameter for the role."""
        alike = {} if takes_role(type(self).request) else {"prompts": None}
        return {**super().vector_traits(), **alike}

    def _sent(self, value: Any, row: int, role: Role) -> Any:
        return _text_of(value, row)


@functools.lru_cache(maxsize=256)
def _caller(request: Any) -> Callable[[Callable[..., Any], list[Any], Role], Any]:
    """Return a function that calls a class's `request` with a batch, and with the role if it has a parameter for it."""
    if takes_role(request):
        return lambda bound, batch, role: bound(batch, role=role)
    try:
        inspect.signature(request).bind("self", "batch")
    except TypeError:  # it has a second required parameter, under another name
        return lambda bound, batch, role: bound(batch, role)
    except ValueError:  # a callable without a signature
        pass
    return lambda bound, batch, role: bound(batch)


def is_passing(exc: BaseException) -> bool:
    """Return whether an error of a request is transient; a successful response without a valid body is too."""
    status = http_status(exc)
    return (
        isinstance(exc, (AnswerError, *_NO_JSON)) or is_transient(exc) or (status is not None and 200 <= status < 300)
    )


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # pandas represents null as NaN


def _text_of(value: Any, row: int) -> str | None:
    """Return a text to send, or None for null and blank."""
    if _is_null(value):
        return None
    if not isinstance(value, str):
        raise InputError(f"row {row} is {type(value).__name__}, not text.", "convert the column to text first")
    return str(value) if value.strip() else None  # numpy's str_ is not a JSON type
