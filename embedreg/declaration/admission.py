"""What stored metadata may ask for: each field of a stored configuration against the rules and the grants.

A table can come from anyone. Rebuilding a function from its metadata runs no code, reads no local path, contacts
no host and hands over no secret unless the reader said so: by creating the same function in this process, or by
`embedreg.trust(...)`.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from embedreg.core.canonical import MODEL_FIELDS, _lenient, defaults, effective
from embedreg.core.fields import sensitive_fields
from embedreg.core.guarding import (
    Guard,
    Types,
    deep_guard,
    defaults_in,
    field_guard,
    guard_by_name,
    guard_of,
    inner,
    of_keys,
    snake,
    type_of,
    value_guard,
)
from embedreg.declaration.entries import SHOWN
from embedreg.errors import MetadataError, UntrustedError
from embedreg.security import references
from embedreg.security.addresses import kind_of, local_path, parse_host
from embedreg.security.grants import granted, host_granted, path_granted
from embedreg.support import containers

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction

__all__ = ["admit", "admit_built", "guard_of", "snake"]

LONGEST_PATH = 4096  # characters that a message shows of a path; Linux takes no more
MAX_DEFAULTS = 8  # references that are each other's defaults; one is what people write


def admit(cls: type[EmbeddingFunction], alias: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Check a stored configuration against the rules and the grants, and return what may be built.

    Raises:
        UntrustedError: it asks for a path, host, header, variable or other guarded thing that nobody granted.
    """
    sensitive, known = sensitive_fields(cls), defaults(cls)
    admitted: dict[str, Any] = {}
    endpoint = False
    for name, value in stored.items():
        usual = value is None or (name in known and _same(value, known[name]))
        if not usual and _exceeds(name, value) and f"{alias}.{name}" not in granted("fields"):
            raise _refusal(alias, name, f"more than {_most(name)}", f"fields=[{f'{alias}.{name}'!r}]")
        if usual or (name in sensitive and references.is_reference(value)):
            admitted[name] = value
        elif name == "trust_remote_code":
            admitted[name] = _remote_code(alias, effective(cls, stored))
        else:
            endpoint |= _check(alias, name, value, field_guard(cls, name), type_of(cls, name))
            admitted[name] = _public(alias, name, value)
    for name in sensitive & admitted.keys():
        _check_sensitive(alias, name, admitted[name], endpoint)
    return admitted


def admit_built(cls: type[EmbeddingFunction], alias: str, stored: Mapping[str, Any], built: Mapping[str, Any]) -> None:
    """Check what validators of a class made of admitted values: a path or an address that no annotation spoke of.

    Args:
        stored: the fields that the file gives.
        built: the values that the instance has.
    Raises:
        UntrustedError: one is not granted.
    """
    known = defaults(cls)
    for name, value in built.items():
        if name in stored and not (name in known and _same(stored[name], known[name])):
            waiting, depth = [value], 0
            while waiting and depth < 1000:
                item, depth = waiting.pop(), depth + 1
                if (guard := value_guard(item)) is not None:
                    _check(alias, name, os.fspath(item) if isinstance(item, os.PathLike) else str(item), guard)
                elif (items := containers.items_of(item)) is not None:
                    usual = dict(defaults_in((type(item),)))  # of a model inside: its class's own
                    waiting += [part for key, part in items if key not in usual or part != usual[key]]
                    waiting += item if isinstance(item, dict) else ()


# How much work, waiting or memory a stored runtime field may ask for.
_MOST: dict[str, int] = {"batch_size": 65_536, "max_retries": 100, "num_threads": 256, "num_workers": 256}
_LONGEST_S = 86_400  # seconds of a timeout


def _most(name: str) -> float:
    return _MOST.get(name, _LONGEST_S if "timeout" in name or "deadline" in name else math.inf)


def _exceeds(name: str, value: Any) -> bool:
    if _most(name) == math.inf or not isinstance(value, int | float | str):
        return False
    try:
        return float(value) > _most(name)  # a validator takes a text for a number
    except ValueError:
        return False


def _same(value: Any, other: Any) -> bool:
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)  # True is not 1 here


def _remote_code(alias: str, config: Mapping[str, Any]) -> bool:
    """Read a stored `trust_remote_code`: true, or anything that counts as true, only where that model is granted."""
    value = config["trust_remote_code"]
    if value is False:
        return False
    model = next((text for key in MODEL_FIELDS if isinstance(text := config.get(key), str)), alias)
    # Anyone can offer a revision of anyone's model on a hub, so a name alone vouches for the default one only.
    revisions = [str(v) for k, v in config.items() if k.endswith("revision") and v is not None]
    wanted = "@".join([model, *revisions])
    if {"*", wanted} & granted("remote_code"):
        return True
    warnings.warn(
        f"stored metadata sets trust_remote_code for {model!r}; it is read as false. "
        f"Hint: embedreg.trust(remote_code=[{wanted!r}]) lets that model's own code run.",
        stacklevel=2,
    )
    return False


def _check(alias: str, name: str, value: Any, guard: Guard | None, types: Types = ()) -> bool:
    """Refuse what is not granted; return whether the value, granted, may decide where requests go.

    Args:
        guard: what names say of the value: the field's, or a key's above it.
        types: the annotations that it comes by.
    """
    if isinstance(value, dict | list):
        endpoint = False  # each item is checked, whatever the ones before it were
        if isinstance(value, list):
            below = inner(types, None)
            for item in value:
                endpoint |= _check(alias, name, item, guard, below)
            return endpoint
        usual = [*defaults_in(types)]
        for key, item in value.items():
            endpoint |= _check(alias, name, key, None, of_keys(types))
            if any(key == known and _same(item, _lenient(default)) for known, default in usual):
                continue
            # an option that is off asks for nothing; a whole field that is off may be what it guards against
            named = guard or (None if item is False else guard_by_name(key))
            endpoint |= _check(alias, name, item, named, inner(types, key))
        return endpoint
    if value is None:
        return False
    typed = deep_guard(types)
    if not isinstance(value, bool):
        guard = guard or typed
    field = f"{alias}.{name}"
    everything = field in granted("fields")
    if not isinstance(value, str):
        if guard is not None and not everything:
            raise _refusal(alias, name, "a value", f"fields=[{field!r}]")
        return guard in ("address", "other")
    if "\0" in value:  # what is below Python takes such a text for its beginning
        raise MetadataError(f"the stored {name} of {alias!r} holds a NUL character.", "do not use this data")
    text = _default(value)
    if text is None:
        return guard in ("address", "other")  # a reference without a default: `_public` asks for the variable's grant
    kind = kind_of(text)
    if kind is None and guard in ("address", "path"):
        kind = "url" if guard == "address" else "path"
    if not everything:
        _check_text(alias, name, text, kind, guard)
    return kind == "url" or guard in ("address", "other")


def _check_text(alias: str, name: str, text: str, kind: Literal["url", "path"] | None, guard: Guard | None) -> None:
    field = f"fields=[{f'{alias}.{name}'!r}]"
    if kind == "url" and not host_granted(text):
        host = parse_host(text)
        what = "a URL" if guard != "address" or kind_of(text) == "url" else "a host"
        raise _refusal(alias, name, what, field if host is None else f"hosts=[{str(host)!r}]")
    if kind == "path" and not path_granted(text):
        grantable = local_path(text) is not None and len(text) <= LONGEST_PATH
        raise _refusal(alias, name, "a local path", f"paths=[{_unspelled(text)!r}]" if grantable else field)
    if kind is None and guard is not None:
        raise _refusal(alias, name, "a value", field)


def _unspelled(text: str) -> str:
    return (local_path(text) or text) if re.match(r"(?i)(local-dir|file):", text) else text


def _refusal(alias: str, name: str, kind: str, grant: str) -> UntrustedError:
    return UntrustedError(
        f"stored metadata sets {name} of {alias!r} to {kind}, which nobody here has granted.",
        f"if you trust where the data comes from: embedreg.trust({grant}), "
        "or create the same function in your own code first",
    )


def _default(text: str) -> str | None:
    """Return what a text is when no variable is read: itself, or a reference's last default; None for none."""
    for _ in range(MAX_DEFAULTS):
        if not references.is_reference(text):
            return text
        default = references.parse_reference(text).default
        if default is None:
            return None
        text = default
    raise MetadataError("a stored `$var:` reference hides behind too many others.", "inspect it, and do not use it")


def _public(alias: str, name: str, value: Any) -> Any:
    """Replace references outside sensitive fields by their defaults: a stored file must not read our variables.

    A default may be a reference again, which the constructor would resolve; so it is followed to its end here, which
    `_check` has seen to be near.
    """
    allowed = granted("variables")

    def lookup(reference: references.Reference) -> str:
        if reference.name in allowed:
            default = None if reference.default is None else _default(reference.default)
            return f"{references.PREFIX}{reference.name}" + ("" if default is None else f":{default}")
        if reference.default is None:
            if len(reference.name) > SHOWN:
                raise MetadataError(
                    f"a variable in {name} of {alias!r} has a name of no sense.", "do not use this data"
                )
            raise UntrustedError(
                f"stored metadata puts variable {reference.name!r} into {name} of {alias!r}, which is no sensitive "
                "field.",
                f"if you trust where the data comes from: embedreg.trust(variables=[{reference.name!r}])",
            )
        if references.is_reference(reference.default):
            return lookup(references.parse_reference(reference.default))
        return reference.default

    return references.resolve(value, lookup)


def _check_sensitive(alias: str, name: str, value: Any, endpoint: bool) -> None:
    """Refuse to hand a secret to an endpoint that the metadata chose, even a granted one, unless it is granted too."""
    for reference in references.references(value):
        if endpoint and reference.name not in granted("variables"):
            raise UntrustedError(
                f"stored metadata of {alias!r} names an endpoint and would send variable {reference.name!r} ({name}) "
                "there.",
                f"if you trust both: embedreg.trust(hosts=[...], variables=[{reference.name!r}])",
            )
