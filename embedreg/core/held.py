"""What this process knows of an instance and the columns that it serves: probes it agrees with, and its own.

What is stored of a column is compared by `declaration.drift`; here is what has been found out, and for which instance.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from embedreg.core.configured import Configured
from embedreg.core.instances import shared
from embedreg.support.forks import ForkSafeLock

__all__ = ["declared_for", "findings", "forget", "held_to", "learnt", "probe_of", "verify_first"]

MAX_PROBE = 2**19  # characters: no vector has 98 thousand dimensions

F = TypeVar("F", bound=Configured)


@dataclass
class Findings:
    """What this process found out about one instance: probes that it agrees with, and its own probe and identity."""

    verified: set[str] = field(default_factory=set)
    learnt: dict[str, str] = field(default_factory=dict)
    turn: ForkSafeLock = field(default_factory=lambda: ForkSafeLock(outer=True))
    declared: Mapping[str, Any] | None = None  # of the one column that it was found by


_states: dict[int, tuple[weakref.ref[Configured], Findings]] = {}  # by identity: equal instances may be drifting
_lock = ForkSafeLock()


def findings(function: Configured) -> Findings:
    """Return what this process has found out about an instance, to be added to."""
    key = id(function)
    with _lock:
        if key not in _states:
            _states[key] = weakref.ref(function, lambda _: _states.pop(key, None)), Findings()
        return _states[key][1]


def held_to(function: F, declared: Mapping[str, Any]) -> F:
    """Return a function that is compared with a stored declaration at its first use.

    What `create()` made serves every column of an equal declaration, and one column's probe says nothing of the others.
    So the column gets an instance of its own, which shares everything with the first one: fields, model, caches. Once
    the probe agrees, or where there is none to compare, it is the very instance.
    """
    probe, state = probe_of(declared), findings(function)
    agreed = probe is None or probe in state.verified or probe == probe_of(function._declared)
    cls: type[Any] = type(function)
    if agreed or cls.traits.remote:
        return function
    twin = shared(function)
    with _lock:
        own = Findings(state.verified, state.learnt, state.turn, declared)
        key = id(twin)
        _states[key] = weakref.ref(twin, lambda _: _states.pop(key, None)), own
    return twin


def declared_for(function: Configured) -> Mapping[str, Any] | None:
    """Return the declaration that `held_to` holds a function to."""
    with _lock:
        found = _states.get(id(function))
        return None if found is None else found[1].declared


def learnt(function: Configured) -> dict[str, Any]:
    """Return what `learn` found out: `probe` and `identity`; empty before the first write."""
    return dict(findings(function).learnt)


def forget(function: Configured) -> None:
    """Forget what was found out about an instance, whose model may have been changed in place."""
    state = findings(function)
    with state.turn:
        state.verified.clear()
        state.learnt.clear()


def probe_of(declared: Mapping[str, Any]) -> str | None:
    """Return the probe that is stored, where it can be one."""
    probe = declared.get("probe")
    return probe if isinstance(probe, str) and 0 < len(probe) <= MAX_PROBE else None


def verify_first(function: Any) -> None:
    """Compare a function with what it is held to before its first use, if that is due.

    Raises:
        DriftError: as `declaration.drift.verify_once`.
    """
    probe = probe_of(declared_for(function) or function._declared)
    if probe is not None and probe not in findings(function).verified:
        importlib.import_module("embedreg.declaration.drift").verify_once(function)
