"""`$var:` references: parsing and resolving them, and refusing hard-coded secrets.

A configuration holds references; values live in the variables of this process and are looked up when a
field is read. Dumps, prints, pickles and stored metadata therefore hold no secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from embedreg.errors import ConfigError, HardcodedSecretError, Words
from embedreg.security.redaction import redact
from embedreg.security.sensitive import holds_credentials, items_judged, looks_sensitive
from embedreg.security.variables import Reference, Variables, binding, missing, variables
from embedreg.support.containers import WRAPPERS, items_of, rebuilt, unwrapped, wrapped

__all__ = [
    "PREFIX",
    "Reference",
    "Variables",
    "has_reference",
    "holds_credentials",
    "is_reference",
    "looks_sensitive",
    "missing",
    "parse_reference",
    "redact",
    "references",
    "refuse_hardcoded",
    "resolve",
    "variables",
]

PREFIX = "$var:"


def is_reference(value: object) -> bool:
    """Return whether a value is a `$var:` reference, plain or wrapped in a SecretStr."""
    text = unwrapped(value)
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_reference(value: str) -> Reference:
    """Split `$var:name[:default]`; a default may hold colons.

    Raises:
        ConfigError: the name is empty.
    """
    name, colon, default = value[len(PREFIX) :].partition(":")
    if not name:
        raise ConfigError("a `$var:` reference has no name.", "write it as '$var:my_key' or '$var:my_key:default'")
    return Reference(name, default if colon else None)


def references(value: object) -> Iterator[Reference]:
    """Yield every reference inside a value, at any depth of dicts, lists and models."""
    value = unwrapped(value)
    if isinstance(value, str):
        if value.startswith(PREFIX):
            yield parse_reference(value)
        return
    for _, item in items_of(value) or ():
        yield from references(item)


def has_reference(value: object) -> bool:
    """Return whether a value contains a reference at any depth."""
    return next(references(value), None) is not None


def resolve(value: Any, lookup: Callable[[Reference], str]) -> Any:
    """Return a copy of a value with every reference resolved; a value without references is returned unchanged."""
    if isinstance(value, str):
        return lookup(parse_reference(value)) if value.startswith(PREFIX) else value
    if isinstance(value, WRAPPERS):
        return wrapped(resolve(unwrapped(value), lookup), value) if is_reference(value) else value
    if not has_reference(value):
        return value
    return rebuilt(value, lambda key, item: resolve(item, lookup))


def refuse_hardcoded(where: str, value: object, *, sensitive: bool, named: frozenset[str] = frozenset()) -> None:
    """Raise for a hard-coded secret where a reference is required.

    Args:
        where: the field, for the message; keys of nested dicts are appended.
        value: its value.
        sensitive: whether the field itself is sensitive.
        named: the class's sensitive keys, refused at any depth of a dict.
    Raises:
        HardcodedSecretError: the message names the field, never the value.
        ConfigError: a reference without a name.
    """
    if isinstance(value, WRAPPERS):
        value, sensitive = unwrapped(value), True
    if isinstance(value, str):
        if value.startswith(PREFIX):
            default = parse_reference(value).default
            if default and (sensitive or holds_credentials(default)):
                raise _hardcoded(f"{where} is sensitive: its `$var:` cannot carry a hard-coded default.", where)
        elif value and sensitive:
            raise _hardcoded(f"{where} is sensitive and cannot be set to a hard-coded value.", where)
        elif holds_credentials(value):
            raise _hardcoded(f"{where} holds credentials, which cannot be hard-coded.", where)
        return
    items = items_of(value)
    if items is not None:
        for key, item, judged in items_judged(value, items):
            inner = sensitive or judged or key in named
            if inner and not sensitive and key is None:  # a (name, secret) pair
                key, item = item
            refuse_hardcoded(where if key is None else f"{where}[{key!r}]", item, sensitive=inner, named=named)
    elif sensitive and value is not None and not isinstance(value, bool) and value not in (0, b""):
        raise _hardcoded(f"{where} is sensitive and cannot be set to a hard-coded value.", where)


def _hardcoded(message: str, where: str) -> HardcodedSecretError:
    field = where.partition("[")[0]
    written = f"{field}='$var:my_key'" if field == where else f"'$var:my_key' for {where}"
    return HardcodedSecretError(
        message,
        Words(
            f"pass a reference, {written}, and set it in code that is not stored: "
            "embedreg.get_registry().bind_env('my_key', 'MY_KEY') or .set_var('my_key', ...)",
            (f"--set '{field}=$var:my_key' " if field == where else f"'$var:my_key' for {where}, and ")
            + binding("my_key", "MY_KEY"),
        ),
    )
