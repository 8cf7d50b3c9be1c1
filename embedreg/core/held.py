"""What this process found out about function instances: verified probes, and their own probe and identity.

`declaration.drift` does the comparisons; this module keeps the results per instance.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

from embedreg.core.configured import Configured
from embedreg.core.instances import shared
from embedreg.support.forks import ForkSafeLock

__all__ = ["declared_for", "findings", "forget", "held_to", "learnt", "probe_of", "verify_first"]

MAX_PROBE = 2**19  # characters: about 98,000 dimensions, more than any model has

F = TypeVar("F", bound=Configured)


class Findings:  # no dataclass: making one costs a millisecond of `import embedreg`'s first use
    """Results for one instance: the probes that it agrees with, and its own probe and identity.

    Attributes:
        verified: the stored probes that it agrees with.
        learnt: its own probe and identity, once known.
        turn: held while it is compared.
        declared: the declaration of the column it was read from.
    """

    __slots__ = ("declared", "learnt", "turn", "verified")

    def __init__(self, like: Findings | None = None, declared: Mapping[str, Any] | None = None) -> None:
        self.verified: set[str] = set() if like is None else like.verified
        self.learnt: dict[str, str] = {} if like is None else like.learnt
        self.turn: ForkSafeLock = ForkSafeLock(outer=True) if like is None else like.turn
        self.declared = declared


_states: dict[
    int, tuple[weakref.ref[Configured], Findings]
] = {}  # by identity: of two equal instances, one may have drifted
_lock = ForkSafeLock()


def findings(function: Configured) -> Findings:
    """Return the mutable findings about an instance."""
    key = id(function)
    with _lock:
        if key not in _states:
            _states[key] = weakref.ref(function, lambda _: _states.pop(key, None)), Findings()
        return _states[key][1]


def held_to(function: F, declared: Mapping[str, Any]) -> F:
    """Return a function that is compared with a stored declaration at its first use.

    One instance from `create()` serves every column with an equal declaration, and each column has its own probe.
    So each column gets its own instance, which shares fields, model and caches with the first. Once the probe agrees,
    or if no probe is stored, the first instance itself is returned.
    """
    probe, state = probe_of(declared), findings(function)
    agreed = probe is None or probe in state.verified or probe == probe_of(function._declared)
    cls: type[Any] = type(function)
    if agreed or cls.traits.remote:
        return function
    twin = shared(function)
    with _lock:
        own = Findings(state, declared)
        key = id(twin)
        _states[key] = weakref.ref(twin, lambda _: _states.pop(key, None)), own
    return twin


def declared_for(function: Configured) -> Mapping[str, Any] | None:
    """Return the declaration that `held_to` bound a function to."""
    with _lock:
        found = _states.get(id(function))
        return None if found is None else found[1].declared


def learnt(function: Configured) -> dict[str, Any]:
    """Return the results of `learn`: `probe` and `identity`; empty before the first write."""
    return dict(findings(function).learnt)


def forget(function: Configured) -> None:
    """Discard the findings about an instance, whose model may have been changed in place."""
    state = findings(function)
    with state.turn:
        state.verified.clear()
        state.learnt.clear()


def probe_of(declared: Mapping[str, Any]) -> str | None:
    """Return the stored probe, if it is valid."""
    probe = declared.get("probe")
    return probe if isinstance(probe, str) and 0 < len(probe) <= MAX_PROBE else None


def verify_first(function: Any) -> None:
    """Compare a function with its stored probe before its first use, if not yet done.

    Raises:
        DriftError: as `declaration.drift.verify_once`.
    """
    probe = probe_of(declared_for(function) or function._declared)
    if probe is not None and probe not in findings(function).verified:
        importlib.import_module("embedreg.declaration.drift").verify_once(function)
