"""The budget of an account: what may be sent per minute, and what has been.

A request reserves its estimated cost before it is sent and settles with what the response reports. Limits are those of
the functions' fields, of `budget()`, and of the service's headers; the lowest is used. A request counts from its
reservation until a minute after its response, so the service never sees more than a limit in any minute, however long a
request is under way.
"""

from __future__ import annotations

import logging
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from embedreg.runtime.remote.answers import Usage, usage_reports
from embedreg.runtime.remote.usage import TotalUsage, collectors
from embedreg.support.retry import waits_are_left_out

__all__ = ["Budget", "Limits", "Reservation", "record"]

log = logging.getLogger("embedreg")

WINDOW_S = 60.0
MAX_PAUSE_S = 120.0  # as of a retry: a service that asks for more is asked again
_FIRST_PAUSE_S = 1.0  # after a 429 without Retry-After; doubles with each that follows
_LONGEST_GAP_S = 30.0
_RECOVERY_S = 5.0  # without a 429, the rate rises by a quarter this often
_POLL_S = 0.2  # how soon a waiting request notices that its call was stopped


@dataclass(frozen=True)
class Limits:
    """Limits of what may be sent per minute; None for no limit.

    Attributes:
        rpm: requests. tpm: tokens. ipm: inputs.
        max_concurrency: requests at the same time.
    """

    rpm: float | None = None
    tpm: float | None = None
    ipm: float | None = None
    max_concurrency: int | None = None

    def lowest(self, other: Limits) -> Limits:
        """Return the lower of each limit."""
        mine, theirs = vars(self), vars(other)
        return Limits(**{name: _lower(mine[name], theirs[name]) for name in mine})

    def shared(self, workers: int) -> Limits:
        """Return the share of one of several processes; at least one concurrent request."""
        if workers == 1:
            return self
        rates = {name: None if (limit := getattr(self, name)) is None else limit / workers for name in _RATES}
        most = None if self.max_concurrency is None else max(1, self.max_concurrency // workers)
        return Limits(**rates, max_concurrency=most)

    def __str__(self) -> str:
        set_ = [(each.name, value) for each in fields(self) if (value := getattr(self, each.name)) is not None]
        return ", ".join(f"{name} {value:,.10g}" for name, value in set_) or "no limits"


_RATES = ("rpm", "ipm", "tpm")  # in the order of a Usage: requests, inputs, tokens


def _lower(one: Any, other: Any) -> Any:
    return other if one is None else one if other is None else min(one, other)


class Reservation:
    """A request that counts towards a budget, from `Budget.reserve` until a minute after it was settled."""

    __slots__ = ("cost", "per_input", "started", "until")

    def __init__(self, cost: list[float], started: float, per_input: bool) -> None:
        self.cost, self.started, self.per_input, self.until = cost, started, per_input, math.inf


class Budget:
    """The limits of one account, and what it sent in the last minute. Safe to use from any thread.

    Args:
        shown: the account in log lines, without its key.
        window_s: the period that limits are counted over.
    """

    def __init__(self, shown: str, window_s: float = WINDOW_S) -> None:
        self.shown, self.window_s = shown, window_s
        self._changed = threading.Condition()
        self._own = Limits()  # from `budget()`
        self._fields: dict[Limits, None] = {}  # from functions' fields
        self._learned = Limits()  # from headers
        self._workers: int | None = None  # from `budget()`; else `_processes`
        self._processes = 1
        self._limits = Limits()
        self._past: deque[Reservation] = deque()  # settled, in the order of their ends
        self._total = [0.0, 0.0, 0.0]  # of these and of the requests under way
        self._running = 0
        self._paused_until = -math.inf
        self._refusals = 0  # in a row
        self._gap_s = 0.0  # between the starts of requests; above 0 after a 429
        self._next_start = -math.inf
        self._last_change = -math.inf  # of the gap

    # -- limits -----------------------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        """The limits in effect: the lowest of all that are known, divided by the number of processes."""
        return self._limits

    def fresh(self) -> Budget:
        """Return a budget with the same limits and no requests, for a forked child."""
        made = Budget(self.shown, self.window_s)
        made._own, made._fields, made._learned = self._own, dict(self._fields), self._learned
        made._workers, made._processes = self._workers, self._processes
        made._combine()
        return made

    @property
    def own(self) -> Limits:
        """The limits that `limit` set."""
        return self._own

    def share(self, processes: int) -> None:
        """Divide the limits by a number of processes, unless `limit` set another one."""
        with self._changed:
            self._processes = processes
            self._combine()

    def limit(self, limits: Limits, workers: int | None = None) -> None:
        """Set the limits, as `budget()` does.

        Args:
            workers: the number of processes that share them.
        """
        with self._changed:
            self._own, self._workers = limits, workers if workers is not None else self._workers
            self._combine()

    def lower(self, limits: Limits) -> None:
        """Add the limits of a function's fields; the lowest of all functions is used."""
        if limits not in self._fields:
            with self._changed:
                self._fields[limits] = None
                self._combine()

    def learn(self, headers: Mapping[str, str]) -> None:
        """Learn limits from a response's headers, and pause if nothing remains.

        Source: the headers `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of OpenAI and Azure, which others
        have taken over.
        """
        found, pause_s = {}, 0.0
        for name, limit in (("requests", "rpm"), ("tokens", "tpm")):
            most = _number(headers.get(f"x-ratelimit-limit-{name}"))
            if most:
                found[limit] = most
            if most and _number(headers.get(f"x-ratelimit-remaining-{name}")) == 0:
                pause_s = max(pause_s, _duration_s(headers.get(f"x-ratelimit-reset-{name}")))
        if not found:
            return
        learned = replace(
            self._learned, rpm=found.get("rpm", self._learned.rpm), tpm=found.get("tpm", self._learned.tpm)
        )
        with self._changed:
            if learned != self._learned:
                self._learned = learned
                self._combine()
            if pause_s:
                self._paused_until = max(self._paused_until, time.monotonic() + min(pause_s, MAX_PAUSE_S))

    def _combine(self) -> None:
        combined = self._own
        for limits in (*self._fields, self._learned):
            combined = combined.lowest(limits)
        shared = combined.shared(self._workers or self._processes)
        if shared != self._limits:
            self._limits = shared
            log.debug("%s: %s", self.shown, shared)
        if self._changed._is_owned():  # type: ignore[attr-defined]  # not while a new one is made
            self._changed.notify_all()

    # -- requests ---------------------------------------------------------------------------------------------------

    def reserve(
        self, cost: Usage, stopped: Callable[[], bool] = bool, *, per_input: bool = False
    ) -> tuple[Reservation | None, float]:
        """Wait until a request may be sent, and count it.

        A request that alone exceeds a limit is sent once nothing else counts.

        Args:
            cost: its estimated cost.
            stopped: whether it is no longer needed.
            per_input: whether the service counts each input as a request.
        Returns:
            The reservation, to `settle`; None if it was stopped. And the seconds that it waited.
        """
        begun = time.monotonic()
        wanted = _counted(cost, per_input, 0.0)
        with self._changed:
            while True:
                now = time.monotonic()
                if stopped():
                    return None, now - begun
                wait_s = self._wait_s(wanted, now)
                if wait_s <= 0:
                    break
                self._changed.wait(min(wait_s, _POLL_S))
            self._running += 1
            self._next_start = max(now, self._next_start) + self._gap_s
            self._add(wanted, 1)
            return Reservation(wanted, now, per_input), now - begun

    def settle(self, reservation: Reservation, used: Usage) -> None:
        """Replace a request's estimate by its cost, once its response is there or it has failed."""
        actual = _counted(used, reservation.per_input, reservation.cost[2])
        with self._changed:
            now = time.monotonic()
            self._running -= 1
            self._add(reservation.cost, -1)
            self._add(actual, 1)
            reservation.cost, reservation.until = actual, now + self.window_s
            self._past.append(reservation)
            self._changed.notify_all()

    def spent(self) -> tuple[list[float], float]:
        """Return what counts at present, in the order of `_RATES`, and after how many seconds none of it does."""
        with self._changed:
            now = time.monotonic()
            self._forget(now)
            last = now + self.window_s if self._running else max((each.until for each in self._past), default=now)
            return list(self._total), last - now

    def carry(self, cost: list[float], for_s: float) -> None:
        """Count what another process has sent, in the order of `_RATES`, for some seconds from now on."""
        with self._changed:
            now = time.monotonic()
            carried = Reservation(cost, now, False)
            carried.until = now + for_s
            self._add(cost, 1)
            self._past.appendleft(carried)

    @contextmanager
    def counted(self, reservation: Reservation, estimate: Usage, total: TotalUsage) -> Iterator[None]:
        """Send a request inside of this block: settle its reservation, learn from its response, and add up its cost."""
        expected, again = estimate.tokens or 0, total.requests > 0
        sent = TotalUsage(estimate.requests, estimate.requests if again else 0, estimate.inputs, 0, expected)
        record(total, sent)  # before it is sent: a process that is killed then has recorded it
        with usage_reports(self.learn) as reports:
            try:
                yield
                self.succeeded()
            finally:
                used = _summed(reports) or Usage(estimate.requests, estimate.inputs)
                self.settle(reservation, used)
                more, tokens = used.requests - estimate.requests, used.tokens
                change = TotalUsage(more, more if again else 0, used.inputs - estimate.inputs)
                if tokens is not None:
                    change.billed_tokens, change.estimated_tokens = tokens, -expected
                record(total, change)

    def succeeded(self) -> None:
        """Record a response that was not a refusal: the rate recovers step by step."""
        if not self._gap_s and not self._refusals:
            return
        with self._changed:
            now = time.monotonic()
            if now < self._paused_until:
                return  # sent before the refusal
            self._refusals = 0
            if now - self._last_change >= _RECOVERY_S * self.window_s / WINDOW_S:
                self._gap_s = 0.0 if self._gap_s < 0.001 else self._gap_s * 0.8
                self._last_change = now

    def refused(self, reservation: Reservation, retry_after_s: float | None) -> float:
        """Pause the account after a 429 and halve its rate; return the seconds of the pause.

        Several requests that were under way together are refused together: that halves the rate once.
        """
        with self._changed:
            now = time.monotonic()
            if reservation.started >= self._last_change or self._last_change == -math.inf:
                self._refusals += 1
                if not waits_are_left_out():
                    self._gap_s = min(_LONGEST_GAP_S, 2 * max(self._gap_s, self._mean_gap_s(now)))
                self._last_change = now
            if retry_after_s is None:
                pause_s = min(30.0, _FIRST_PAUSE_S * 2.0 ** min(self._refusals - 1, 5)) * self.window_s / WINDOW_S
            else:
                pause_s = min(retry_after_s, MAX_PAUSE_S)
            if waits_are_left_out():
                pause_s = 0.0
            if now + pause_s > self._paused_until:
                self._paused_until = self._next_start = now + pause_s
                log.warning(
                    "%s: rate limit reached (HTTP 429); all of its requests wait %.1f s, then one each %.2g s",
                    self.shown, pause_s, self._gap_s,
                )  # fmt: skip
            return pause_s

    def _mean_gap_s(self, now: float) -> float:
        """Return the mean time between requests in the last minute."""
        self._forget(now)
        oldest = min((each.started for each in self._past), default=now)
        return max(0.01, now - oldest) / max(1.0, self._total[0])

    def _add(self, cost: list[float], sign: int) -> None:
        for place, value in enumerate(cost):
            self._total[place] += sign * value

    def _forget(self, now: float) -> None:
        while self._past and self._past[0].until <= now:
            self._add(self._past.popleft().cost, -1)

    def _wait_s(self, wanted: list[float], now: float) -> float:
        """Return how long a request waits at least; 0 to send it."""
        self._forget(now)
        limits = self._limits
        if limits.max_concurrency is not None and self._running >= limits.max_concurrency:
            return math.inf
        wait_s = max(self._paused_until - now, self._next_start - now if self._gap_s else 0.0)
        for place, name in enumerate(_RATES):
            limit = getattr(limits, name)
            if limit is None:
                continue
            limit *= self.window_s / WINDOW_S
            over = self._total[place] + wanted[place] - limit
            if over > 1e-9 and (self._running or self._past):
                wait_s = max(wait_s, self._until_freed(place, over) - now)
        return wait_s

    def _until_freed(self, place: int, amount: float) -> float:
        """Return when enough of the past is forgotten; infinity if that depends on requests under way."""
        for each in self._past:
            amount -= each.cost[place]
            if amount <= 1e-9:
                return each.until
        return math.inf if self._running else self._past[-1].until


def _counted(usage: Usage, per_input: bool, tokens: float) -> list[float]:
    """Return a cost in the order of `_RATES`; `tokens` if the usage has none."""
    requests = usage.inputs if per_input else usage.requests
    return [float(requests), float(usage.inputs), tokens if usage.tokens is None else float(usage.tokens)]


def record(total: TotalUsage, change: TotalUsage) -> None:
    """Add a change to a total and to those that this context collects."""
    if change:
        for each in (total, *collectors()):
            each.add(change)


def _summed(reports: list[Usage]) -> Usage | None:
    """Return the sum of the responses to one call of `request`; None if nothing was reported."""
    if not reports:
        return None
    tokens = [used.tokens for used in reports if used.tokens is not None]
    return Usage(
        sum(used.requests for used in reports),
        sum(used.inputs for used in reports),
        sum(tokens) if len(tokens) == len(reports) else None,
    )


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None


_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _duration_s(text: Any) -> float:
    """Return the seconds of a text such as "1s", "6m0s", "20ms" or "12.5"; 0 if it is not one."""
    if not isinstance(text, str):
        return 0.0
    if (plain := _number(text)) is not None:
        return plain
    parts = _PART.findall(text[:64])
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))
