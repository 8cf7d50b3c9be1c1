"""What this process lets stored metadata have: grants, and the functions that its own code created.

`admission` holds the rules that ask here; `docs/trust.md` tells them to readers.
"""

from __future__ import annotations

import dis
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from embedreg.core import instances
from embedreg.core.canonical import canonical, defaults, effective, semantic_config
from embedreg.errors import ConfigError, UntrustedError
from embedreg.security import references
from embedreg.security.addresses import folder_given, forms, is_path, local_path, parse_host, texts_given
from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction

__all__ = ["Grant", "is_path", "may_read", "path_granted", "trust"]

_grants: list[Grant] = []
_lock = ForkSafeLock()
# Instances are small (weights live in the runtime's cache), yet a LanceDB-style class may keep its model in one:
# the bound is what a process with a great many tables would still want at hand.
_vouched: LRUCache[tuple[type, str], EmbeddingFunction] = LRUCache(maxsize=256)  # by its configuration as created
# Engines rebuild a function for every add and every search: what one declaration asks for is built once, so that a
# LanceDB-style class that loads its model in __init__ loads it once. Few, since such a model stays with its instance.
_rebuilt: LRUCache[tuple[type, str, str], tuple[EmbeddingFunction, dict[str, Any]]] = LRUCache(maxsize=16)
_building = ForkSafeLock(outer=True)  # not _lock: what is built may load a model, which may ask for grants


@dataclass(frozen=True, eq=False)
class Grant:
    """What one `trust(...)` call allows; as a context manager it ends with the block."""

    paths: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    remote_code: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def __enter__(self) -> Grant:
        with _lock:
            if self not in _grants:
                _grants.append(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.revoke()

    def revoke(self) -> None:
        """Take the grant back: what is rebuilt from now on lacks it, and no model is read for it any more."""
        with _lock:
            if self in _grants:
                _grants.remove(self)


def trust(
    *,
    paths: Iterable[str | Path] = (),
    hosts: Iterable[str] = (),
    variables: Iterable[str] = (),
    remote_code: Iterable[str] = (),
    fields: Iterable[str] = (),
) -> Grant:
    """Grant stored metadata more than it gets by default, for this process or for a `with` block.

    A grant holds for every thread of the process, since an engine embeds in threads of its own.

    Args:
        paths: folders (and all below them) or files that a stored local path may name.
        hosts: what a stored endpoint may lead to: `host` (any port), `host:port`, or `scheme://host[:port]`.
        variables: `$var:` names that metadata may have in any field, and beside an endpoint that it names.
        remote_code: model names (`name@revision` where a revision is stored, or "*") whose stored
            `trust_remote_code: true` is kept.
        fields: other guarded fields, written `function.field`, that metadata may set.
    Returns:
        The grant: `.revoke()` it, or use it in a `with` statement.
    Raises:
        ConfigError: something that could not grant what it seems to, such as an empty path.
    """
    grant = Grant(
        paths=tuple(folder_given("trust", "paths", item) for item in _given("paths", paths)),
        hosts=tuple(_authority(item) for item in _given("hosts", hosts)),
        variables=tuple(_given("variables", variables)),
        remote_code=tuple(_given("remote_code", remote_code)),
        fields=tuple(_given("fields", fields)),
    )
    return grant.__enter__()


_given = functools.partial(texts_given, "trust")


def _authority(text: str) -> str:
    host = parse_host(text)
    if host is None or not (host.bare or text.rstrip("/") == f"{host.scheme}://{host}"):
        raise ConfigError(
            f"trust(hosts=...) cannot grant {text!r}.", "write hosts=['host'], ['host:port'] or ['https://host']"
        )
    return text.rstrip("/")


def reset() -> None:
    """Take every grant back and forget every vouched instance."""
    with _lock:
        _grants.clear()
        _vouched.clear()
        _rebuilt.clear()


def granted(kind: str) -> set[str]:
    """Return everything granted of one kind."""
    with _lock:
        return {value for grant in _grants for value in getattr(grant, kind)}


def may_read(function: EmbeddingFunction, value: str) -> bool:
    """Say whether a function may look for a value among this machine's files.

    The reader's own function may. One that metadata asked for may where the value is a path, and granted now; a plain
    name is never looked up in the working directory for it.
    """
    return not function.from_metadata or (is_path(value) and path_granted(value))


def path_granted(value: str) -> bool:
    """Say whether a stored local path lies in a granted folder, however it is read and wherever its links lead."""
    folders = granted("paths")
    return bool(folders) and all(_inside(form, folders) for form in forms(value))


def _inside(text: str, folders: set[str]) -> bool:
    path = local_path(text)
    if path is None:
        return False
    plain = Path(os.path.abspath(path))
    for folder in folders:
        real = os.path.realpath(folder)
        # First by its letters alone: following the links of a stored path could already reach for a network share.
        if (plain.is_relative_to(folder) or plain.is_relative_to(real)) and Path(os.path.realpath(path)).is_relative_to(
            real
        ):
            return True
    return False


def host_granted(value: str) -> bool:
    """Say whether a stored URL, or a bare host, leads to a granted host."""
    host = parse_host(value)
    if host is None:
        return False
    known = (parse_host(item) for item in granted("hosts"))
    return any(item is not None and item.covers(host) for item in known)


# -- instances ---------------------------------------------------------------------------------------------------------


def vouch(function: EmbeddingFunction) -> None:
    """Remember an instance that the reader's own code created; the last one of equal configuration wins."""
    if instances.metadata_is_building():
        return  # created on the way, by the constructor of a function that metadata asked for
    instances.state_of(function).assigned.clear()
    instances.state_of(function).own.clear()
    with _lock:
        _vouched.pop(key := (type(function), canonical(type(function), semantic_config(function))), None)
        _vouched[key] = function


def vouched(cls: type[EmbeddingFunction], stored: Mapping[str, Any]) -> EmbeddingFunction | None:
    """Return the instance whose semantic configuration equals a stored one, if this process created it.

    It may have set fields since, in `ndims()` for one: what is stored may be from before that or from after it.
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
        return function if canonical(cls, semantic_config(function)) == key[1] else None
    return next((made for made, created in changed if _is_of(made, created, wanted)), None)


def _is_of(function: EmbeddingFunction, created: str, wanted: Mapping[str, Any]) -> bool:
    """Return whether a stored configuration is one of an instance's: as it is now, but for what it set by itself."""
    cls, own = type(function), instances.state_of(function).own
    before, now = json.loads(created), json.loads(canonical(cls, semantic_config(function)))
    stored = json.loads(canonical(cls, wanted))
    return all(
        stored.get(name) == now.get(name) or (name in own and stored.get(name) == before.get(name))
        for name in {*stored, *now}
    )


# -- what a class sets by itself ---------------------------------------------------------------------------------------


def set_by_class(
    cls: type[EmbeddingFunction],
    stored: Mapping[str, Any],
    refused: Iterable[str],
    build: Callable[[], EmbeddingFunction],
) -> EmbeddingFunction | None:
    """Return an instance built without the refused fields, where its class gives them the stored values by itself.

    No stored value of these is used then. What the class sets in `ndims()` only, which may load a model, is compared
    once that was asked; nothing is embedded before.

    Args:
        stored: the stored configuration.
        refused: its fields that need a grant.
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


def settle(function: EmbeddingFunction) -> None:
    """Compare what a class has set by itself in `ndims()` with what was stored.

    Raises:
        UntrustedError: it is something else, and the stored value is not granted.
    """
    state, now = instances.state_of(function), semantic_config(function)
    for name, value in state.pending.items():
        if now.get(name) != value:
            raise UntrustedError(
                f"stored metadata sets {name} of {state.alias!r} to another value than its class does.",
                f"if you trust where the data comes from: embedreg.trust(fields=[{f'{state.alias}.{name}'!r}])",
            )
    state.pending.clear()


def _sets(method: Any, name: str) -> bool:
    code = getattr(inspect.unwrap(method), "__code__", None)
    return code is not None and any(
        step.opname == "STORE_ATTR" and step.argval == name for step in dis.get_instructions(code)
    )


# -- instances that metadata asked for ---------------------------------------------------------------------------------


def rebuilt(
    cls: type[EmbeddingFunction], admitted: dict[str, Any], declaration: Any, build: Callable[[], EmbeddingFunction]
) -> EmbeddingFunction:
    """Return the instance that a declaration was built into before, if nobody changed it since; else build it.

    One that refers to variables is built anew each time: an instance may keep what it resolved, and the next reader
    may be another tenant.

    Args:
        admitted: the configuration, as the rules let it through.
        declaration: everything else that the instance knows, in JSON types.
    """
    if references.has_reference(admitted):
        return build()
    key = cls, json.dumps(admitted, sort_keys=True), json.dumps(declaration, sort_keys=True)
    with _building:
        function, fields = _rebuilt.get(key, (None, {}))
        if function is None or function.raw_fields() != fields:
            function = build()
            _rebuilt[key] = function, dict(function.raw_fields())
        return function
