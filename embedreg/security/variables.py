"""The variables behind `$var:` references: set, bound to the environment, or scoped to a block of code."""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from embedreg.errors import ConfigError, MissingVariableError, Words
from embedreg.security.sensitive import holds_credentials
from embedreg.support.forks import ForkSafeLock
from embedreg.support.imports import did_you_mean

__all__ = ["Reference", "Variables", "missing", "variables"]

_SHOWN = 80  # characters of a name that a message shows
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")

Names: TypeAlias = set[str]  # `Variables.set` hides the builtin in the class below
Binding: TypeAlias = tuple[str, tuple[str, ...] | None]
"""An environment variable's name, and the functions that may read it."""


class Reference(NamedTuple):
    """A parsed `$var:name[:default]`."""

    name: str
    default: str | None


class _Variable(NamedTuple):
    """A value or the name of an environment variable, and the functions that may read it."""

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
    two threads never see each other's keys. A thread that is started inside a scope does not inherit it; an asyncio
    task and `asyncio.to_thread` do.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Variable] = {}
        self._lock = ForkSafeLock()
        self._scope: contextvars.ContextVar[Mapping[str, _Variable] | None] = contextvars.ContextVar(
            "embedreg_variables", default=None
        )
        self._leaving: contextvars.ContextVar[bool] = contextvars.ContextVar("embedreg_leaving", default=False)

    def set(self, name: str, value: str, functions: list[str] | None = None) -> None:
        """Set a variable for this process; with `functions`, stored metadata may use it in these functions only.

        Raises:
            ConfigError: an empty name, a name with a colon, or a value that is not a str.
        """
        variable = _set_to(name, value, functions)
        with self._lock:
            self._known[name] = variable

    def bind_env(self, name: str, env: str, functions: list[str] | None = None) -> None:
        """Bind a variable to an environment variable, which is read at each lookup.

        Raises:
            ConfigError: an invalid name of the variable or of the environment variable.
        """
        _check_name(name)
        if not isinstance(env, str) or not _ENV_NAME.fullmatch(env) or holds_credentials(env):
            # not quoted: the key may have been passed in place of the variable's name
            raise ConfigError(
                f"variable {name!r} is bound to something that cannot be the name of an environment variable.",
                Words(
                    f"bind_env({name!r}, {_env_name(name)!r}), with the key itself in that environment variable",
                    binding(name),
                ),
            )
        variable = _Variable(env=env, functions=_names(functions))
        with self._lock:
            self._known[name] = variable

    @contextlib.contextmanager
    def scope(self, values: Mapping[str, str]) -> Iterator[None]:
        """Set variables for a block of code; in nested blocks the inner value wins."""
        own = {name: _set_to(name, value, None) for name, value in values.items()}
        token = self._scope.set({**(self._scope.get() or {}), **own})
        try:
            yield
        finally:
            self._scope.reset(token)

    def find(self, name: str, *, function: str | None = None) -> str | None:
        """Return a variable's value, or None; with `function`, only if that function may read it."""
        variable = self._variable(name)
        if variable is None or not _may_have(function, variable):
            return None
        return variable.get()

    def get(self, name: str) -> str:
        """Return a variable's value.

        Raises:
            MissingVariableError: it is not set, or its environment variable is not.
        """
        value = self.find(name)
        if value is None:
            raise self.missing(name)
        return value

    def lookup(self, reference: Reference, *, function: str | None = None) -> str:
        """Resolve one reference: the variable, else its default; `function` is given for stored metadata.

        Raises:
            MissingVariableError: neither is set, or that function may not read it.
        """
        value = self.find(reference.name, function=function)
        if value is None:
            value = reference.default
        if value is None:
            raise self.missing(reference.name, function=function)
        return value

    def missing(self, name: str, *, function: str | None = None) -> MissingVariableError:
        """Return the error for a variable that is not set, or not allowed for this function."""
        variable = self._variable(name)
        if variable is not None and not _may_have(function, variable):
            allowed = sorted({*(variable.functions or ()), str(function)})
            return MissingVariableError(
                f"variable {name!r} is not allowed for {function!r} in stored metadata.",
                f"allow that function too: set_var({name!r}, ..., functions={allowed})",
            )
        return missing(name, variable, known={*self._known, *(self._scope.get() or {})})

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Raise, inside a block that pickles for other processes, for variables set in this process only.

        Raises:
            MissingVariableError: a variable was set instead of bound to the environment.
        """
        token = self._leaving.set(True)
        try:
            yield
        finally:
            self._leaving.reset(token)

    def bindings(self, names: Names) -> dict[str, Binding]:
        """Return the environment bindings (names, never values) of some variables, for a pickle."""
        for name in sorted(names) if self._leaving.get() else ():
            variable = self._variable(name)
            if variable is not None and variable.env is None:
                raise MissingVariableError(
                    f"variable {name!r} is set in this process only, but other processes need it.",
                    Words(
                        f"embedreg.get_registry().bind_env({name!r}, {_env_name(name)!r}), with {_env_name(name)} in "
                        "the environment of each of them",
                        binding(name),
                    ),
                )
        with self._lock:
            known = {name: self._known[name] for name in sorted(names) if name in self._known}
        return {
            name: (v.env, None if v.functions is None else tuple(sorted(v.functions)))
            for name, v in known.items()
            if v.env is not None
        }

    def adopt(self, bindings: Mapping[str, Binding]) -> None:
        """Add environment bindings from a pickle; existing ones of this process win."""
        with self._lock:
            for name, (env, functions) in bindings.items():
                self._known.setdefault(name, _Variable(env=env, functions=_names(functions)))

    def clear(self) -> None:
        """Remove every variable and binding of the process; open scopes stay."""
        with self._lock:
            self._known.clear()

    def _variable(self, name: str) -> _Variable | None:
        _check_name(name)
        return (self._scope.get() or {}).get(name) or self._known.get(name)


def missing(
    name: str, variable: _Variable | None = None, known: Names | frozenset[str] = frozenset()
) -> MissingVariableError:
    """Return the error for a variable that is not set; `known` are the names to suggest from."""
    name = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."  # the name may come from stored metadata
    lancedb = f"Variable {name!r} not found in registry"  # LanceDB's words, for code that looks for them
    if variable is not None and variable.env is not None:
        return MissingVariableError(
            f"{lancedb}: variable {name!r} is bound to the environment variable {variable.env}, which is not set.",
            f"export {variable.env}=...",
        )
    return MissingVariableError(
        f"{lancedb}: variable {name!r} is not set; variables are set again in each process.",
        Words(
            f"{did_you_mean(name, known)}embedreg.get_registry().bind_env({name!r}, {_env_name(name)!r}) "
            f"or .set_var({name!r}, ...)",
            f"{did_you_mean(name, known)}{binding(name)}",
        ),
    )


def binding(name: str, variable: str | None = None) -> str:
    """Return the command-line option that binds a variable."""
    return f"--env {name}={variable or _env_name(name)}, with the value in that environment variable"


def _env_name(name: str) -> str:
    """Return a suggested environment variable for a variable."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).upper()


def _set_to(name: str, value: str, functions: list[str] | None) -> _Variable:
    _check_name(name)
    if not isinstance(value, str):
        raise ConfigError(
            f"variable {name!r} must be a str, not {type(value).__name__}.", f"set_var({name!r}, str(...))"
        )
    return _Variable(value=value, functions=_names(functions))


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name or ":" in name:
        raise ConfigError(f"{name!r} cannot name a variable.", "use a non-empty name without a colon")


def _names(functions: list[str] | tuple[str, ...] | str | None) -> frozenset[str] | None:
    return None if functions is None else frozenset([functions] if isinstance(functions, str) else functions)


def _may_have(function: str | None, variable: _Variable) -> bool:
    return function is None or variable.functions is None or function in variable.functions


variables = Variables()
"""The variables of this process; the registry's `set_var`, `get_var`, `bind_env` and `variables` use it."""
