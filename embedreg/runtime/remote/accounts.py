"""The budgets of a process: one for each host, key and model, whatever the number of functions and threads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from embedreg.errors import ConfigError
from embedreg.runtime.remote.budget import Budget, Limits
from embedreg.support.forks import ForkSafeLock, in_child

__all__ = ["Account", "budget", "budget_of", "given", "set_workers", "shared_limits", "spent"]

Account = tuple[str, str, str]
"""The host, a digest of the key, and the model."""

_ACCOUNTS = 1024
_budgets: dict[Account, Budget] = {}
_lock = ForkSafeLock()
_workers = 1


@in_child
def _renew() -> None:
    """Keep the limits in a forked child; the requests under way are its parent's."""
    for account, each in list(_budgets.items()):
        _budgets[account] = each.fresh()


def budget_of(account: Account) -> Budget:
    """Return the budget of an account, the same one for all functions of the process."""
    with _lock:
        found = _budgets.get(account)
        if found is None:
            if len(_budgets) >= _ACCOUNTS:
                _budgets.pop(next(iter(_budgets)))
            found = _budgets[account] = Budget(f"{account[2]} at {account[0]}" if account[2] else account[0])
            found.share(_workers)
        return found


def budget(
    function: Any,
    *,
    rpm: float | None = None,
    tpm: float | None = None,
    ipm: float | None = None,
    max_concurrency: int | None = None,
    workers: int | None = None,
) -> Budget:
    """Set the limits of an account: of a remote function's host, key and model, for all functions that share them.

    Args:
        function: any function of the account.
        rpm: requests per minute. tpm: tokens per minute. ipm: inputs per minute.
        max_concurrency: requests at the same time.
        workers: the number of processes that share the limits; this process uses its part. Ray's workers are counted
            without it.
    Returns:
        The budget; its `limits` are those in effect, including those of functions' fields and of the service's headers.
    Raises:
        ConfigError: a limit is not positive, or the function is not a remote one.
    """
    given = Limits(rpm, tpm, ipm, max_concurrency)
    for name, value in [*vars(given).items(), ("workers", workers)]:
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"invalid {name}={value!r}; expected a positive number.", f"budget(..., {name}=60)")
    account = getattr(function, "account", None)
    if account is None:
        raise ConfigError(
            f"{type(function).__name__} sends no requests, so it has no budget.", "pass a remote function"
        )
    found = budget_of(account())
    found.limit(given, workers)
    return found


def given() -> dict[Account, Limits]:
    """Return what `budget` has set in this process, by account."""
    with _lock:
        return {account: each.own for account, each in _budgets.items() if each.own != Limits()}


def spent() -> dict[Account, tuple[list[float], float]]:
    """Return what this process has sent in the last minute, by account: see `Budget.spent`."""
    with _lock:
        known = dict(_budgets)
    found = {account: each.spent() for account, each in known.items()}
    return {account: (cost, for_s) for account, (cost, for_s) in found.items() if any(cost)}


def shared_limits(functions: Iterable[Any], workers: int) -> list[tuple[str, Limits]]:
    """Return the limits of each worker by account, for log lines; none for one worker or without limits."""
    accounts = {function.account(): function.budget() for function in functions if hasattr(function, "account")}
    found = [(each.shown, each.limits.shared(workers)) for each in accounts.values()]
    return [(shown, limits) for shown, limits in found if workers > 1 and limits != Limits()]


def set_workers(
    number: int,
    limits: Mapping[Account, Limits] | None = None,
    sent: Mapping[Account, tuple[list[float], float]] | None = None,
) -> None:
    """Divide the limits of each account by a number of processes; called at the start of a worker.

    Args:
        limits: what `budget` has set in the process that started it.
        sent: what that process has sent in the last minute, as `spent` returns it: each worker counts its part.
    """
    global _workers  # one value for the process, set once at its start
    _workers = max(1, number)
    for account, each in (limits or {}).items():
        budget_of(account).limit(each)
    with _lock:
        for known in _budgets.values():
            known.share(_workers)
    for account, (cost, for_s) in (sent or {}).items():
        budget_of(account).carry([value / _workers for value in cost], for_s)
