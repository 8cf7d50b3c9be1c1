"""What stored metadata may ask for, and how its reader grants more.

A table can come from anyone. Rebuilding a function from its metadata runs no code, reads no local path, contacts
no host and hands over no secret unless the reader said so: by creating the same function in this process, or by
`embedreg.trust(...)`.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cachetools import LRUCache
from pydantic_core import PydanticUndefined, to_jsonable_python

from embedreg import secrets
from embedreg.base import runtime_fields, sensitive_fields
from embedreg.errors import UntrustedError

if TYPE_CHECKING:
    from embedreg.base import EmbeddingFunction

__all__ = ["Grant", "trust"]

_URL = re.compile(r"(?i)^[a-z][a-z0-9+.-]*://")
_PATH = re.compile(r"(?i)^(local-dir:|file:|/|~|\.{1,2}([/\\]|$)|[a-z]:[/\\]|\\\\)|(^|[/\\])\.\.([/\\]|$)|\\")
_GUARDED_NAME = re.compile(
    r"(?i)(^|_)(url|uri|host|hostname|endpoint|proxy|proxies|headers?|path|dir|folder|file|code|executable|command)$"
)

_grants: list[Grant] = []
_lock = threading.RLock()
# Instances are small (weights live in the runtime's cache), yet a LanceDB-style class may keep its model in one:
# the bound is what a process with a great many tables would still want at hand.
_vouched: LRUCache[tuple[type, str], EmbeddingFunction] = LRUCache(maxsize=256)


@dataclass(frozen=True, eq=False)
class Grant:
    """What one `trust(...)` call allows; as a context manager it ends with the block."""

    paths: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    remote_code: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def __enter__(self) -> Grant:
        return self

    def __exit__(self, *exc: object) -> None:
        self.revoke()

    def revoke(self) -> None:
        """Take the grant back."""
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

    Args:
        paths: folders (and all below them) that a stored local path may name.
        hosts: hosts, `host` or `host:port`, that a stored endpoint may name.
        variables: `$var:` names that metadata may have in any field, and beside a granted endpoint.
        remote_code: model names (or "*") whose stored `trust_remote_code: true` is kept.
        fields: other guarded fields, written `function.field`, that metadata may set.
    Returns:
        The grant: `.revoke()` it, or use it in a `with` statement.
    """
    texts = {
        name: (str(value),) if isinstance(value, str | Path) else tuple(str(item) for item in value)
        for name, value in (
            ("paths", paths),
            ("hosts", hosts),
            ("variables", variables),
            ("remote_code", remote_code),
            ("fields", fields),
        )
    }
    grant = Grant(**texts)
    with _lock:
        _grants.append(grant)
    return grant


def reset() -> None:
    """Take every grant back and forget every vouched instance."""
    with _lock:
        _grants.clear()
        _vouched.clear()


def granted(kind: str) -> set[str]:
    """Return everything granted of one kind."""
    with _lock:
        return {value for grant in _grants for value in getattr(grant, kind)}


def path_granted(value: str) -> bool:
    """Say whether a stored local path lies in a granted folder, links resolved."""
    folders = granted("paths")
    if not folders:
        return False
    text = re.sub(r"(?i)^(local-dir:|file://)", "", value)
    target = Path(text).expanduser().resolve()
    return any(target.is_relative_to(Path(folder).expanduser().resolve()) for folder in folders)


def host_granted(value: str) -> bool:
    """Say whether a stored URL's or endpoint's host is granted, with the port where the grant names one."""
    try:
        parts = urlsplit(value if _URL.match(value) else f"//{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or parts.username is not None:
        return False
    allowed = {item.lower() for item in granted("hosts")}
    return host in allowed or (port is not None and f"{host}:{port}" in allowed)


def is_path(value: str) -> bool:
    """Say whether a string reads as a local path on any platform."""
    return not _URL.match(value) and _PATH.search(value) is not None


# -- instances that this process vouches for ----------------------------------------------------------------------------


def vouch(function: EmbeddingFunction) -> None:
    """Remember an instance that the reader's own code created; the last one of equal configuration wins."""
    with _lock:
        _vouched[type(function), _canonical(type(function), semantic_config(function))] = function


def vouched(cls: type[EmbeddingFunction], stored: dict[str, Any]) -> EmbeddingFunction | None:
    """Return the instance whose semantic configuration equals a stored one, if this process created it."""
    effective = {**_defaults(cls), **{key: value for key, value in stored.items() if key in cls.model_fields}}
    with _lock:
        return _vouched.get((cls, _canonical(cls, effective)))


def semantic_config(function: EmbeddingFunction) -> dict[str, Any]:
    """Return every semantic field as it is stored: effective values, references unresolved, JSON types."""
    cls = type(function)
    runtime, sensitive = runtime_fields(cls), sensitive_fields(cls)
    config = {}
    for name, value in function.raw_fields().items():
        if name in runtime:
            continue
        passed = function._original_args.get(name)
        if passed is not None and not _has_reference(value) and _has_reference(passed):
            value = passed  # a reference that validation turned into a number: stored as it was written
        if name in sensitive and value is None:
            continue
        config[name] = _jsonable(value)
    return config


def _has_reference(value: Any) -> bool:
    return next(secrets.references(value), None) is not None


def _jsonable(value: Any) -> Any:
    return to_jsonable_python(value, fallback=repr) if not secrets.is_reference(value) else _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value.get_secret_value())


def _defaults(cls: type[EmbeddingFunction]) -> dict[str, Any]:
    defaults = {}
    for name, info in cls.model_fields.items():
        value = info.get_default(call_default_factory=True, validated_data={})
        if value is not PydanticUndefined:
            defaults[name] = _jsonable(value)
    return defaults


def _canonical(cls: type[EmbeddingFunction], config: dict[str, Any]) -> str:
    runtime, sensitive = runtime_fields(cls), sensitive_fields(cls)
    kept = {k: v for k, v in config.items() if k not in runtime and not (k in sensitive and v is None)}
    return json.dumps(kept, sort_keys=True, default=repr)


# -- what metadata may ask for ------------------------------------------------------------------------------------------


def admit(cls: type[EmbeddingFunction], alias: str, stored: dict[str, Any]) -> dict[str, Any]:
    """Check a stored configuration against the rules and the grants, and return what may be built.

    Raises:
        UntrustedError: it asks for a path, host, header, variable or other guarded thing that nobody granted.
    """
    sensitive, declared, defaults = sensitive_fields(cls), frozenset(cls.guarded_fields()), _defaults(cls)
    admitted: dict[str, Any] = {}
    endpoint = False
    for name, value in stored.items():
        if value is None or value == defaults.get(name) or (name in sensitive and secrets.is_reference(value)):
            admitted[name] = value
        elif name == "trust_remote_code":
            admitted[name] = _remote_code(stored)
        else:
            guarded = name in declared or _GUARDED_NAME.search(name) is not None
            _check_value(alias, name, value, guarded)
            endpoint = endpoint or guarded
            admitted[name] = _resolve_public(alias, name, value)
    for name in sensitive & admitted.keys():
        _check_sensitive(alias, name, admitted[name], endpoint)
    return admitted


def _remote_code(stored: dict[str, Any]) -> bool:
    model = stored.get("name")
    allowed = granted("remote_code")
    if stored["trust_remote_code"] is False or "*" in allowed or model in allowed:
        return bool(stored["trust_remote_code"])
    warnings.warn(
        f"stored metadata sets trust_remote_code for {model!r}; it is read as false. "
        f"Hint: embedreg.trust(remote_code=[{model!r}]) lets that model's own code run.",
        stacklevel=2,
    )
    return False


def _check_value(alias: str, name: str, value: Any, guarded: bool) -> None:
    """Refuse a path, an endpoint or any other value of a guarded field that is not granted."""
    if f"{alias}.{name}" in granted("fields"):
        return
    if isinstance(value, dict):
        for item in value.values():
            _check_value(alias, name, item, guarded)
        return
    if isinstance(value, list | tuple):
        for item in value:
            _check_value(alias, name, item, guarded)
        return
    if not isinstance(value, str):
        if guarded and value is not False:
            raise _refusal(alias, name, "a value", f"fields=[{f'{alias}.{name}'!r}]")
        return
    text = value
    if secrets.is_reference(value):
        text = secrets.parse_reference(value).default or ""
    if _URL.match(text) and not text.lower().startswith("file:"):
        if not host_granted(text):
            raise _refusal(alias, name, "a URL", f"hosts=[{_host(text)!r}]")
    elif is_path(text):
        if not path_granted(text):
            raise _refusal(alias, name, "a local path", f"paths=[{text!r}]")
    elif guarded and not host_granted(text):
        raise _refusal(alias, name, "a value", f"fields=[{f'{alias}.{name}'!r}]")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or url
    except ValueError:
        return url


def _refusal(alias: str, name: str, kind: str, grant: str) -> UntrustedError:
    return UntrustedError(
        f"stored metadata sets {name} of {alias!r} to {kind}, which nobody here has granted.",
        f"if you trust where the data comes from: embedreg.trust({grant}), "
        "or create the same function in your own code first",
    )


def _resolve_public(alias: str, name: str, value: Any) -> Any:
    """Replace references outside sensitive places by their defaults: a stored file must not read our variables."""
    allowed = granted("variables")

    def lookup(reference: secrets.Reference) -> str:
        if reference.name in allowed:
            return f"{secrets.PREFIX}{reference.name}" + ("" if reference.default is None else f":{reference.default}")
        if reference.default is None:
            raise UntrustedError(
                f"stored metadata puts variable {reference.name!r} into {name} of {alias!r}, which is no sensitive field.",
                f"if you trust where the data comes from: embedreg.trust(variables=[{reference.name!r}])",
            )
        return reference.default

    return secrets.resolve(value, lookup)


def _check_sensitive(alias: str, name: str, value: Any, endpoint: bool) -> None:
    """Refuse to hand a secret to an endpoint that the metadata chose, even a granted one, unless it is granted too."""
    for reference in secrets.references(value):
        if endpoint and reference.name not in granted("variables"):
            raise UntrustedError(
                f"stored metadata of {alias!r} names an endpoint and would send variable {reference.name!r} ({name}) there.",
                f"if you trust both: embedreg.trust(hosts=[...], variables=[{reference.name!r}])",
            )
