"""Admission: check each field of a stored configuration against the trust rules and the grants.

A table can come from anyone. Rebuilding a function from its metadata runs no code, reads no local path, contacts
no host and passes on no secret unless the reader allowed it: by creating the same function in this process, or by
`embedreg.trust(...)`.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
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
from embedreg.errors import Grant, MetadataError, UntrustedError
from embedreg.security import references
from embedreg.security.addresses import kind_of, parse_host
from embedreg.security.grants import granted, host_granted, path_granted, path_needed, refusal
from embedreg.support import containers

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction

__all__ = ["admit", "admit_built", "examine", "guard_of", "snake"]

MOST_NEEDS = 32  # grants of one configuration; a longer list would be granted unread
MOST_ASKED = 1000  # values that need a grant, repeated ones included: each check takes time
MAX_DEFAULTS = 8  # nested default references; one is usual


def admit(cls: type[EmbeddingFunction], alias: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Check a stored configuration against the rules and the grants, and return the admitted configuration.

    Raises:
        UntrustedError: it uses paths, hosts, headers, variables or other guarded values that have not been granted. The
            error names every field, and its `needed` holds all the grants.
    """
    admitted, needs = examine(cls, alias, stored)
    needs.refuse()
    return admitted


def examine(cls: type[EmbeddingFunction], alias: str, stored: Mapping[str, Any]) -> tuple[dict[str, Any], Needs]:
    """Return the configuration that may be built once its needs are granted, and these needs."""
    sensitive, known = sensitive_fields(cls), defaults(cls)
    needs = Needs(alias)
    admitted: dict[str, Any] = {}
    endpoint = False
    for name, value in stored.items():
        usual = value is None or (name in known and _same(value, known[name]))
        if not usual and _exceeds(name, value) and f"{alias}.{name}" not in granted("fields"):
            needs.field(name, f"more than {_most(name)}", Grant(fields=(f"{alias}.{name}",)))
        if usual or (name in sensitive and references.is_reference(value)):
            admitted[name] = value
        elif name == "trust_remote_code":
            admitted[name] = _remote_code(needs, effective(cls, stored))
        else:
            endpoint |= _check(needs, name, value, field_guard(cls, name), type_of(cls, name))
            admitted[name] = _public(needs, name, value)
    for name in sensitive & admitted.keys():
        _check_sensitive(needs, name, admitted[name], endpoint)
    return admitted, needs


def admit_built(cls: type[EmbeddingFunction], alias: str, stored: Mapping[str, Any], built: Mapping[str, Any]) -> None:
    """Check the values after validation, since validators may produce paths or addresses that annotations do not show.

    Args:
        stored: the stored fields.
        built: the instance's values.
    Raises:
        UntrustedError: some are not granted.
    """
    known, needs = defaults(cls), Needs(alias)
    for name, value in built.items():
        if name in stored and not (name in known and _same(stored[name], known[name])):
            waiting, depth = [value], 0
            while waiting and depth < 1000:
                item, depth = waiting.pop(), depth + 1
                if (guard := value_guard(item)) is not None:
                    _check(needs, name, os.fspath(item) if isinstance(item, os.PathLike) else str(item), guard)
                elif (items := containers.items_of(item)) is not None:
                    usual = dict(defaults_in((type(item),)))  # of a nested model: the defaults of its class
                    waiting += [part for key, part in items if key not in usual or part != usual[key]]
                    waiting += item if isinstance(item, dict) else ()
    needs.refuse()


@dataclass(frozen=True)
class _Need:
    """One missing grant of a stored configuration.

    Attributes:
        message: the error message if it is the only need; part: its part in a message about several.
        lead: the beginning of the hint.
    """

    message: str
    part: str
    grant: Grant
    lead: str = "if you trust where the data comes from"
    other: str = ""


class Needs:
    """The missing grants of a stored configuration, collected in full before the error is raised."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._found: dict[_Need, None] = {}
        self._asked = 0
        self._code: tuple[str, str] | None = None  # a model with its own code, and its grant
        self.fields: set[str] = set()  # fields whose stored value cannot be used without a grant

    def _note(self, need: _Need) -> None:
        self._found[need] = None
        self._asked += 1
        if len(self._found) > MOST_NEEDS or self._asked > MOST_ASKED:
            raise UntrustedError(
                f"stored metadata of {self.alias!r} asks for too many things that have not been granted.",
                "do not use this data, or create the same function in your own code first",
            )

    def field(self, name: str, kind: str, grant: Grant) -> None:
        """Add a field whose value is not granted."""
        message = f"stored metadata sets {name} of {self.alias!r} to {kind}, which has not been granted."
        self._note(_Need(message, f"{name} ({kind})", grant, other=_OWN))
        self.fields.add(name)

    def variable(self, name: str, variable: str) -> None:
        """Add a variable in a field that is not sensitive."""
        message = (
            f"stored metadata puts variable {variable!r} into {name} of {self.alias!r}, which is not a sensitive field."
        )
        self._note(_Need(message, f"variable {variable!r} in {name}", Grant(variables=(variable,))))
        self.fields.add(name)

    def sent(self, name: str, variable: str) -> None:
        """Add a variable that would be sent to an endpoint from the metadata."""
        message = (
            f"stored metadata of {self.alias!r} names an endpoint and would send variable {variable!r} ({name}) there."
        )
        part = f"variable {variable!r} ({name}), sent to that endpoint"
        self._note(_Need(message, part, Grant(variables=(variable,)), lead="if you trust both"))

    def __bool__(self) -> bool:
        """Return whether a grant is missing."""
        return bool(self._found)

    def code(self, model: str, wanted: str) -> None:
        """Add a model with its own code: alone this is not an error, since `trust_remote_code` is read as false."""
        self._code = model, wanted

    def refuse(self) -> None:
        """Raise the error for all missing grants; for a model's own code alone, only warn.

        Raises:
            UntrustedError: grants are missing.
        """
        if not self._found:
            if self._code is not None:
                model, wanted = self._code
                warnings.warn(
                    f"stored metadata sets trust_remote_code for {model!r}; it is read as false. "
                    f"Hint: {Grant(remote_code=(wanted,))} lets that model's own code run.",
                    stacklevel=3,
                )
            return
        needs = [*self._found]
        if self._code is not None and self._code[1].strip():  # a grant needs a name
            model, wanted = self._code
            needs.append(_Need("", f"trust_remote_code (the own code of {model!r})", Grant(remote_code=(wanted,))))
        needed = Grant.union(need.grant for need in needs)
        if len({need.message for need in needs}) == 1:
            raise refusal(needs[0].message, needed, lead=needs[0].lead, other=needs[0].other)
        parts = ", ".join(dict.fromkeys(need.part for need in needs))
        raise refusal(
            f"stored metadata of {self.alias!r} asks for what has not been granted: {parts}.", needed, other=_OWN
        )


_OWN = ", or create the same function in your own code first"

# The largest values of stored runtime fields: bounds on work, waiting and memory.
_MOST: dict[str, int] = {"batch_size": 65_536, "max_retries": 100, "num_threads": 256, "num_workers": 256}
_LONGEST_S = 86_400  # seconds of a timeout


def _most(name: str) -> float:
    return _MOST.get(name, _LONGEST_S if "timeout" in name or "deadline" in name else math.inf)


def _exceeds(name: str, value: Any) -> bool:
    if _most(name) == math.inf or not isinstance(value, int | float | str):
        return False
    try:
        return float(value) > _most(name)  # validators convert numeric texts
    except ValueError:
        return False


def _same(value: Any, other: Any) -> bool:
    return json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True)  # distinguishes True from 1


def _remote_code(needs: Needs, config: Mapping[str, Any]) -> bool:
    """Read a stored `trust_remote_code`: any true value is kept only if that model is granted."""
    value = config["trust_remote_code"]
    if value is False:
        return False
    model = next((text for key in MODEL_FIELDS if isinstance(text := config.get(key), str)), needs.alias)
    # Anyone can upload a revision of any model to a hub, so a grant by name covers only the default revision.
    revisions = [str(v) for k, v in config.items() if k.endswith("revision") and v is not None]
    wanted = "@".join([model, *revisions])
    if {"*", wanted} & granted("remote_code"):
        return True
    needs.code(model, wanted)
    return False


def _check(needs: Needs, name: str, value: Any, guard: Guard | None, types: Types = ()) -> bool:
    """Add missing grants for a value; return whether the granted value may determine where requests are sent.

    Args:
        guard: the guard of the value by name: the field's, or that of a key above it.
        types: its annotations.
    """
    if isinstance(value, dict | list):
        endpoint = False  # check every item, without a short circuit
        if isinstance(value, list):
            below = inner(types, None)
            for item in value:
                endpoint |= _check(needs, name, item, guard, below)
            return endpoint
        usual = [*defaults_in(types)]
        for key, item in value.items():
            endpoint |= _check(needs, name, key, None, of_keys(types))
            if any(key == known and _same(item, _lenient(default)) for known, default in usual):
                continue
            # a disabled option needs no grant; disabling a whole field may
            named = guard or (None if item is False else guard_by_name(key))
            endpoint |= _check(needs, name, item, named, inner(types, key))
        return endpoint
    if value is None:
        return False
    typed = deep_guard(types)
    if not isinstance(value, bool):
        guard = guard or typed
    field = f"{needs.alias}.{name}"
    everything = field in granted("fields")
    if not isinstance(value, str):
        if guard is not None and not everything:
            needs.field(name, "a value", Grant(fields=(field,)))
        return guard in ("address", "other")
    if "\0" in value:  # C libraries would read only the text before it
        raise MetadataError(f"the stored {name} of {needs.alias!r} holds a NUL character.", "do not use this data")
    text = _default(value)
    if text is None:
        return guard in ("address", "other")  # a reference without a default: `_public` adds the variable's grant
    kind = kind_of(text)
    if kind is None and guard in ("address", "path"):
        kind = "url" if guard == "address" else "path"
    if not everything:
        _check_text(needs, name, text, kind, guard, typed)
    return kind == "url" or guard in ("address", "other")


def _check_text(
    needs: Needs,
    name: str,
    text: str,
    kind: Literal["url", "path"] | None,
    guard: Guard | None,
    typed: Guard | None,
) -> None:
    field = Grant(fields=(f"{needs.alias}.{name}",))
    if kind == "url" and (typed == "path" or not host_granted(text)):
        host = (
            None if typed == "path" else parse_host(text)
        )  # its class would convert it to a path, which a host grant does not cover
        what = "a URL" if guard != "address" or kind_of(text) == "url" else "a host"
        needs.field(name, what, field if host is None else Grant(hosts=(str(host),)))
    if kind == "path" and not path_granted(text):
        needs.field(name, "a local path", path_needed(text) or field)
    if kind is None and guard is not None:
        needs.field(name, "a value", field)


def _default(text: str) -> str | None:
    """Return a text without reading variables: itself, or the final default of a reference; None without one."""
    for _ in range(MAX_DEFAULTS):
        if not references.is_reference(text):
            return text
        default = references.parse_reference(text).default
        if default is None:
            return None
        text = default
    raise MetadataError(
        "a stored `$var:` reference has too many nested default references.", "inspect it, and do not use it"
    )


def _public(needs: Needs, name: str, value: Any) -> Any:
    """Replace references outside sensitive fields by their defaults: stored metadata must not read our variables.

    A default may be another reference, which the constructor would resolve. So it is followed to the end here; `_check`
    has already bounded the depth.
    """
    allowed = granted("variables")

    def lookup(reference: references.Reference) -> str:
        if reference.name in allowed:
            default = None if reference.default is None else _default(reference.default)
            return f"{references.PREFIX}{reference.name}" + ("" if default is None else f":{default}")
        if reference.default is None:
            if len(reference.name) > SHOWN:
                raise MetadataError(
                    f"the name of a variable in {name} of {needs.alias!r} is invalid.", "do not use this data"
                )
            needs.variable(name, reference.name)
            return ""  # not used: the configuration will be rejected
        if references.is_reference(reference.default):
            return lookup(references.parse_reference(reference.default))
        return reference.default

    return references.resolve(value, lookup)


def _check_sensitive(needs: Needs, name: str, value: Any, endpoint: bool) -> None:
    """Add a secret that would be sent to an endpoint from the metadata: it needs its own grant, by name."""
    for reference in references.references(value):
        if endpoint and reference.name not in granted("variables"):
            needs.sent(name, reference.name)
