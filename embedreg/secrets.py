"""`$var:` references: what counts as sensitive, how a reference is resolved, how a secret is kept out of text.

A configuration holds references; values live in a `Variables` store of this process and are looked up when a
field is read. So whatever is dumped, printed, pickled or stored is clean by construction.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

from pydantic import SecretStr

from embedreg.errors import ConfigError, HardcodedSecretError, MissingVariableError

__all__ = [
    "Reference",
    "Variables",
    "is_reference",
    "looks_sensitive",
    "redact",
    "references",
    "refuse_hardcoded",
    "resolve",
    "variables",
]

PREFIX = "$var:"

# Names of nested keys (headers above all) that hold secrets in every service we know of. A bare `..._token` is not
# among them: tokenizer options such as `pad_token` are no secrets.
_SENSITIVE_NAME = re.compile(
    r"(?ix)^ (.*[-_.])? (authorization | auth | api[-_]?key | secret | secret[-_]?(access[-_]?)?key | private[-_]?key"
    r" | access[-_]?key([-_]?id)? | subscription[-_]?key | functions[-_]?key | password | passwd | passphrase"
    r" | (set[-_])?cookie | credentials? | bearer"
    r" | (access|auth|bearer|refresh|session|security|secret|id|private|api|hf|hub|csrf)[-_]?token) $ | ^token$"
)


class Reference(NamedTuple):
    """A parsed `$var:name[:default]`."""

    name: str
    default: str | None


def is_reference(value: object) -> bool:
    """Say whether a value is a `$var:` reference, bare or wrapped in a SecretStr."""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
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
    """Yield every reference inside a value, however deep it lies in dicts and lists."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        if value.startswith(PREFIX):
            yield parse_reference(value)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from references(item)


def resolve(value: Any, lookup: Callable[[Reference], str]) -> Any:
    """Return a copy of a value with every reference in it looked up; a value without any comes back as it is."""
    if isinstance(value, SecretStr):
        return SecretStr(resolve(value.get_secret_value(), lookup)) if is_reference(value) else value
    if isinstance(value, str):
        return lookup(parse_reference(value)) if value.startswith(PREFIX) else value
    if isinstance(value, Mapping):
        return {key: resolve(item, lookup) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(resolve(item, lookup) for item in value)
    return value


def looks_sensitive(name: object) -> bool:
    """Say whether a nested key (`Authorization`, `x-api-key`, ...) names a secret."""
    return isinstance(name, str) and _SENSITIVE_NAME.match(name) is not None


def refuse_hardcoded(where: str, value: object, *, sensitive: bool, named: frozenset[str] = frozenset()) -> None:
    """Refuse a secret that is written out where only a reference may stand.

    Args:
        where: the field, for the message; keys of nested dicts are added to it.
        value: what it was given.
        sensitive: whether the field itself is sensitive.
        named: the class's sensitive keys, refused at any depth of a dict.
    Raises:
        HardcodedSecretError: naming the place, never the value.
    """
    if isinstance(value, SecretStr):
        value, sensitive = value.get_secret_value(), True
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = sensitive or looks_sensitive(key) or key in named
            refuse_hardcoded(f"{where}[{key!r}]", item, sensitive=inner, named=named)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            refuse_hardcoded(where, item, sensitive=sensitive, named=named)
    elif sensitive and value is not None and value != "" and not isinstance(value, bool):
        hint = (
            f"pass a reference, {where.split('[')[0]}='$var:my_key', and set it in code that is not stored: "
            "embedreg.get_registry().bind_env('my_key', 'MY_KEY') or .set_var('my_key', ...)"
        )
        if not (isinstance(value, str) and value.startswith(PREFIX)):
            raise HardcodedSecretError(f"{where} is sensitive and cannot be set to a hard-coded value.", hint)
        if parse_reference(value).default:
            raise HardcodedSecretError(f"{where} is sensitive: its `$var:` cannot carry a hard-coded default.", hint)


def redact(text: str, values: Iterable[str]) -> str:
    """Replace each secret value in a text by `***`, longest first."""
    forms = {form for v in values if v for form in (v, quote(v, safe=""), repr(v)[1:-1])}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


@dataclass(frozen=True)
class _Variable:
    """A value, or the name of the environment variable that holds it, and the functions that may have it."""

    value: str | None = None
    env: str | None = None
    functions: frozenset[str] | None = None

    def get(self) -> str | None:
        return os.environ.get(self.env) if self.env is not None else self.value

    def __repr__(self) -> str:
        return f"_Variable({'env=' + self.env if self.env else '***'})"


class Variables:
    """The variables of this process: set, bound to the environment, or scoped to a block.

    A scope follows `contextvars`: it belongs to the thread or task that entered it, so that two tenants in
    two threads never see each other's keys.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Variable] = {}
        self._lock = threading.Lock()
        self._scope: contextvars.ContextVar[Mapping[str, _Variable]] = contextvars.ContextVar(
            "embedreg_variables", default={}
        )

    def set(self, name: str, value: str, functions: list[str] | None = None) -> None:
        """Set a variable for this process; `functions` names the only ones that metadata may hand it to."""
        _check_name(name)
        if not isinstance(value, str):
            raise ConfigError(
                f"variable {name!r} must be a str, not {type(value).__name__}.", f"set_var({name!r}, str(...))"
            )
        with self._lock:
            self._known[name] = _Variable(value=value, functions=_names(functions))

    def bind_env(self, name: str, env: str, functions: list[str] | None = None) -> None:
        """Bind a variable to an environment variable, which is read whenever the variable is."""
        _check_name(name)
        with self._lock:
            self._known[name] = _Variable(env=env, functions=_names(functions))

    @contextlib.contextmanager
    def scope(self, values: Mapping[str, str]) -> Iterator[None]:
        """Set variables for a block of code only."""
        for name in values:
            _check_name(name)
        token = self._scope.set(
            {**self._scope.get(), **{name: _Variable(value=value) for name, value in values.items()}}
        )
        try:
            yield
        finally:
            self._scope.reset(token)

    def find(self, name: str, *, function: str | None = None) -> str | None:
        """Return a variable's value, or None; with `function`, only where that function may have it."""
        variable = self._scope.get().get(name) or self._known.get(name)
        if variable is None or (
            function is not None and variable.functions is not None and function not in variable.functions
        ):
            return None
        return variable.get()

    def get(self, name: str) -> str:
        """Return a variable's value.

        Raises:
            MissingVariableError: it is not set, or its environment variable is not.
        """
        value = self.find(name)
        if value is None:
            raise missing(name, self._known.get(name))
        return value

    def lookup(self, reference: Reference) -> str:
        """Resolve one reference: the variable, else its default.

        Raises:
            MissingVariableError: neither is there.
        """
        value = self.find(reference.name)
        if value is None:
            value = reference.default
        if value is None:
            raise missing(reference.name, self._known.get(reference.name))
        return value

    def bindings(self, names: set[str]) -> dict[str, str]:
        """Return the environment bindings (names, never values) among some variables: what a pickle carries."""
        return {name: v.env for name in names if (v := self._known.get(name)) is not None and v.env is not None}

    def adopt(self, bindings: Mapping[str, str]) -> None:
        """Take over environment bindings from a pickle, where this process has none of its own."""
        with self._lock:
            for name, env in bindings.items():
                self._known.setdefault(name, _Variable(env=env))

    def clear(self) -> None:
        """Forget every variable and binding of the process."""
        with self._lock:
            self._known.clear()


def missing(name: str, variable: _Variable | None = None) -> MissingVariableError:
    """Build the error for a variable that has no value."""
    if variable is not None and variable.env is not None:
        return MissingVariableError(
            f"variable {name!r} is bound to the environment variable {variable.env}, which is not set.",
            f"export {variable.env}=...",
        )
    return MissingVariableError(
        f"variable {name!r} is not set; variables are set anew in each process.",
        f"embedreg.get_registry().bind_env({name!r}, {name.upper()!r}) or .set_var({name!r}, ...)",
    )


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name or ":" in name:
        raise ConfigError(f"{name!r} cannot name a variable.", "use a non-empty name without a colon")


def _names(functions: list[str] | None) -> frozenset[str] | None:
    return None if functions is None else frozenset([functions] if isinstance(functions, str) else functions)


variables = Variables()
"""The store of this process; the registry's `set_var`, `get_var`, `bind_env` and `variables` are its doors."""
