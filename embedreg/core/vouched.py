"""Instances by declaration: those that this process's own code created, and those rebuilt from metadata before."""

from __future__ import annotations

import dis
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from cachetools import LRUCache

from embedreg.core import instances
from embedreg.core.canonical import canonical, defaults, effective, semantic_config
from embedreg.core.configured import Configured
from embedreg.errors import Grant
from embedreg.security import references
from embedreg.security.addresses import is_path
from embedreg.security.grants import path_granted, refusal
from embedreg.support.forks import ForkSafeLock

__all__ = ["may_read", "rebuilt", "reset", "set_by_class", "settle", "vouch", "vouched"]

F = TypeVar("F", bound=Configured)

_lock = ForkSafeLock()
# Instances are small (weights live in the runtime's cache), yet a LanceDB-style class may keep its model in one:
# the bound is enough for a process with a great many tables.
_vouched: LRUCache[tuple[type, str], Configured] = LRUCache(maxsize=256)  # by the configuration as created
# Engines rebuild a function for every add and every search. Each declaration is built once, so that a LanceDB-style
# class that loads its model in __init__ loads it once. Few are kept, since such a model stays with its instance.
_rebuilt: LRUCache[tuple[type, str, str], tuple[Any, dict[str, Any]]] = LRUCache(maxsize=16)
_building = ForkSafeLock(outer=True)  # not _lock: building may load a model, which may look up grants


def reset() -> None:
    """Discard every instance."""
    with _lock:
        _vouched.clear()
        _rebuilt.clear()


def may_read(function: Configured, value: str) -> bool:
    """Return whether a function may look up a value in the local file system.

    A function created by the reader's own code may. A function built from metadata may if the value is a path that is
    granted now. A plain name is never looked up in the working directory for it.
    """
    return not function.from_metadata or (is_path(value) and path_granted(value))


# -- what this process created -----------------------------------------------------------------------------------------


def vouch(function: Configured) -> None:
    """Record an instance that the reader's own code created; of equal configurations, the last one wins."""
    if instances.metadata_is_building():
        return  # created inside the constructor of a function built from metadata
    instances.state_of(function).assigned.clear()
    instances.state_of(function).own.clear()
    with _lock:
        _vouched.pop(key := (type(function), canonical(type(function), semantic_config(function))), None)
        _vouched[key] = function


def vouched(cls: type[F], stored: Mapping[str, Any]) -> F | None:
    """Return the instance whose semantic configuration equals a stored one, if this process created it.

    The instance may have set fields since, for example in `ndims()`. The stored configuration may be from before or
    after that.
    """
    wanted = effective(cls, stored)
    key = cls, canonical(cls, wanted)
    with _lock:
        function = _vouched.get(key)
        changed = [
            (made, created)
            for (owner, created), made in reversed([*_vouched.items()])
            if owner is cls and instances.state_of(made).assigned
        ]
    if function is not None and not instances.state_of(function).assigned:
        return cast("F", function) if canonical(cls, semantic_config(function)) == key[1] else None
    return cast("F | None", next((made for made, created in changed if _is_of(made, created, wanted)), None))


def _is_of(function: Configured, created: str, wanted: Mapping[str, Any]) -> bool:
    """Return whether a stored configuration matches an instance now, or before it set some of its own fields."""
    cls, own = type(function), instances.state_of(function).own
    before, now = json.loads(created), json.loads(canonical(cls, semantic_config(function)))
    stored = json.loads(canonical(cls, wanted))
    return all(
        stored.get(name) == now.get(name) or (name in own and stored.get(name) == before.get(name))
        for name in {*stored, *now}
    )


# -- fields that a class sets -----------------------------------------------------------------------------------------


def set_by_class(cls: type[Any], stored: Mapping[str, Any], refused: Iterable[str], build: Callable[[], F]) -> F | None:
    """Return an instance built without the refused fields, if its class sets them to the stored values.

    The stored values of these fields are not used. A field that the class sets only in `ndims()`, which may load a
    model, is compared after `ndims()` was called, and before anything is embedded.

    Args:
        stored: the stored configuration.
        refused: the fields that need a grant.
        build: builds an instance without them.
    """
    made = build()
    now, known = semantic_config(made), defaults(cls)
    for name in refused:
        if now.get(name) == stored[name]:
            continue
        if now.get(name) != known.get(name) or not _sets(cls.ndims, name):
            return None
        instances.state_of(made).pending[name] = stored[name]
    return made


def settle(function: Configured) -> None:
    """Compare the fields that a class set in `ndims()` with the stored values.

    Raises:
        UntrustedError: they differ, and the stored value is not granted.
    """
    state, now = instances.state_of(function), semantic_config(function)
    changed = [name for name, value in state.pending.items() if now.get(name) != value]
    if changed:
        raise refusal(
            f"stored metadata sets {', '.join(changed)} of {state.alias!r} to another value than its class does.",
            Grant(fields=tuple(f"{state.alias}.{name}" for name in changed)),
        )
    state.pending.clear()


def _sets(method: Any, name: str) -> bool:
    code = getattr(inspect.unwrap(method), "__code__", None)
    return code is not None and any(
        step.opname == "STORE_ATTR" and step.argval == name for step in dis.get_instructions(code)
    )


# -- instances built from metadata ------------------------------------------------------------------------------------


def rebuilt(cls: type[Any], admitted: dict[str, Any], declaration: Any, build: Callable[[], F]) -> F:
    """Return the instance built earlier from a declaration, if it is unchanged; otherwise build one.

    A configuration with variables is built each time: an instance may keep resolved values, and the next reader may be
    another tenant.

    Args:
        admitted: the configuration after the trust rules were applied.
        declaration: the rest of the instance's state, in JSON types.
    """
    if references.has_reference(admitted):
        return build()
    key = cls, json.dumps(admitted, sort_keys=True), json.dumps(declaration, sort_keys=True)
    with _building:
        function, fields = _rebuilt.get(key, (None, {}))
        if function is None or function.raw_fields() != fields:
            function = build()
            _rebuilt[key] = function, dict(function.raw_fields())
        return cast("F", function)
