"""Submit a batch, ask for its state, read its results: the same for every vendor's `BatchApi`.

Retries, errors and redaction are those of requests. A submission is repeated only after a look at the vendor's list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from embedreg.errors import CallError, EmbedregError, RowError, Words
from embedreg.runtime.remote.answers import AnswerError, Refusal, usage_reports
from embedreg.runtime.remote.batch_api import BatchApi, BatchResult, BatchState
from embedreg.runtime.remote.function import is_passing
from embedreg.security.redaction import guarded
from embedreg.support.retry import call_with_retry, http_status, retry_after_s, waits_are_left_out

__all__ = ["Results", "collect", "failed", "poll", "submit"]

T = TypeVar("T")

_SLACK_S = 3600.0  # between the vendor's clock and ours
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_NOT_ITS_FAULT = frozenset({401, 402, 403, 404, 405, 408, 409, 424, 425, 429})  # of an input
_CALLS = frozenset({401, 402, 403, 404, 405, 424})
_AGAIN = Words(
    "call embed again with batch_api=True: it looks for the batch first, and submits it again only if there is none",
    "run the same command again: it looks for the batch first, and submits it again only if there is none",
)


@dataclass
class Results:
    """The results of a batch.

    Attributes:
        vectors: place -> (d,) float32.
        failed: place -> why the service refused this input.
        tokens: the tokens that the service counted; None if it did not.
        missing: why an input that has neither was not embedded, the first one.
    """

    vectors: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, RowError] = field(default_factory=dict)
    tokens: int | None = 0
    missing: str = ""


@guarded
def submit(
    function: Any,
    tag: str,
    texts: Sequence[str],
    *,
    since: float | None,
    lag_s: float,
    sending: Callable[[], object],
    refused: Callable[[], object],
) -> str:
    """Submit a batch and return its handle; a batch of this tag that exists already is never submitted again.

    Args:
        tag: identifies the batch, in the vendor's list too.
        since: when it was first sent, if it may exist already.
        lag_s: how long the vendor's list may lag behind.
        sending: called right before it is sent.
        refused: called if the service has refused it, so that it does not exist.
    Raises:
        CallError: it was refused, or it is unknown whether it exists.
    """
    api: BatchApi = function.batch_api()
    what = f"submitting a batch of {len(texts):,} inputs failed"
    batch = list(enumerate(texts))

    def existing(since: float) -> str | None:
        for attempt in range(2):
            if attempt:
                time.sleep(lag_s)
            if handle := _call(function, "listing the batches failed", lambda: _find(api, tag, since, len(texts))):
                return handle
        return None

    if since is not None and (handle := existing(since)) is not None:
        return handle
    try:
        prepared = _call(function, what, lambda: api.prepare(tag, [api.line(*each) for each in batch]), batch)
    except EmbedregError:
        refused()
        raise
    for attempt in range(function.max_retries + 1):
        begun = time.time()
        sending()
        try:
            return api.create(tag, prepared)
        except Exception as exc:
            if isinstance(exc, EmbedregError) and not is_passing(exc):
                raise
            status = http_status(exc)
            refusal = function.explain(exc)
            if refusal is not None or (status != 429 and not is_passing(exc)):
                refused()
                raise function._failed_call(what, exc, batch) from None
            wait_s = retry_after_s(exc) or min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt)
            failure = exc
        if status != 429 and (handle := existing(begun)) is not None:
            return handle
        if attempt < function.max_retries:
            time.sleep(0.0 if waits_are_left_out() else min(wait_s, 120.0))
    if status == 429:
        refused()
    error = function._failed_call(what, failure, batch)
    raise CallError(error.message, error.hint if status == 429 else _AGAIN)


def _find(api: BatchApi, tag: str, since: float, inputs: int) -> str | None:
    """Return the handle of the batch with a tag, from the vendor's list; of what is older than `since` nothing.

    Raises:
        CallError: the vendor keeps no tags, and several batches could be it.
    """
    possible = []
    for each in api.found():
        if each.created and each.created < since - _SLACK_S:
            break
        if each.tag == tag:
            return each.handle
        if each.tag is None and each.inputs == inputs:
            possible.append(each.handle)
    if len(possible) > 1:
        raise CallError(
            f"{len(possible)} batches of {api.vendor} could be the one whose submission was interrupted: "
            f"{', '.join(possible[:5])}.",
            "cancel those that are not needed, and run the same command again",
        )
    return possible[0] if possible else None


@guarded
def poll(function: Any, handle: str, tag: str, inputs: int) -> BatchState:
    """Return the state of a batch; "failed" for one that the service no longer has.

    Args:
        inputs: how many were submitted in it.
    Raises:
        CallError: the service cannot be queried, or the batch has another tag, or none and another number of inputs.
    """
    api: BatchApi = function.batch_api()

    def ask() -> BatchState:
        try:
            return api.state(handle)
        except Exception as exc:
            if http_status(exc) in (404, 410):
                return BatchState("failed", message="the service no longer has it")
            raise

    state = _call(function, f"asking for batch {handle} failed", ask)
    other = state.status == "ended" and state.total not in (0, inputs) if state.tag is None else state.tag != tag
    if other:
        raise CallError(f"batch {handle} of {api.vendor} is not the one that was submitted.", "write to another folder")
    return state


@guarded
def failed(function: Any, handle: str, state: BatchState) -> CallError:
    """Return the error for a batch that failed as a whole."""
    error: CallError = function._refused_call(Refusal("call", state.message), None, f"batch {handle} failed")
    return CallError(
        error.message,
        Words(
            "call embed again, once the cause is gone, to resubmit its inputs",
            "run the same command again, once the cause is gone, to resubmit its inputs",
        ),
    )


@guarded
def collect(function: Any, handle: str, state: BatchState, texts: Sequence[str]) -> Results:
    """Read the results of a batch.

    Raises:
        CallError: they cannot be read, or report that the key or the model is wrong. VectorError: they have another
            width.
    """
    api: BatchApi = function.batch_api()

    def read() -> Results:
        try:
            return _read(function, api.results(handle, state, len(texts)), texts)
        except Exception as exc:
            if http_status(exc) in (404, 410):
                return Results(missing="the service no longer has the results")
            raise

    return _call(function, f"reading the results of batch {handle} failed", read)


def _read(function: Any, results: Iterable[BatchResult], texts: Sequence[str]) -> Results:
    import numpy as np

    made, differing = Results(), set[int]()
    for result in results:
        place, status = result.place, result.status
        if place >= len(texts) or (place in made.vectors and not 200 <= status < 300):
            continue
        if 200 <= status < 300:
            vector = None
            with usage_reports() as reports:
                try:
                    vector = function._vectors_of(result.body, 1)[0]
                except AnswerError as exc:
                    made.missing = made.missing or exc.message
            if place in made.vectors:
                if vector is not None and not np.array_equal(vector, made.vectors[place]):
                    differing.add(place)
                continue
            if vector is not None:
                made.vectors[place] = vector
            counted = [each.tokens for each in reports]
            known = None not in counted and counted
            made.tokens = None if made.tokens is None or not known else made.tokens + sum(map(int, counted))  # type: ignore[arg-type]
        elif status in _CALLS:
            raise function._refused_call(Refusal("call", result.message), status, "the batch failed")
        elif 400 <= status < 500 and status not in _NOT_ITS_FAULT:
            why = function._failure_of_row(Refusal("row", result.message), status, [(0, texts[place])])
            made.failed.setdefault(place, RowError(why))
        else:
            made.missing = made.missing or (result.message or "it was not embedded in time")
    for place in made.failed.keys() & made.vectors.keys():
        del made.failed[place]
    for place in differing:
        del made.vectors[place]
        made.missing = made.missing or "there are two results for an input, and they differ"
    return made


def _call(function: Any, what: str, ask: Callable[[], T], batch: list[tuple[int, Any]] | None = None) -> T:
    """Send requests that may be repeated, and retry transient errors."""

    def attempt() -> T:
        try:
            return ask()
        except EmbedregError:
            raise
        except Exception as exc:
            if function.explain(exc) is not None:
                raise function._failed_call(what, exc, batch or []) from None
            raise

    try:
        return call_with_retry(
            attempt, max_retries=function.max_retries, deadline_s=function.deadline_s, transient=is_passing
        )
    except EmbedregError:
        raise
    except Exception as exc:  # noqa: BLE001 (any error of a client library, raised below as ours)
        failed = function._failed_call(what, exc, batch or [])
    raise failed
