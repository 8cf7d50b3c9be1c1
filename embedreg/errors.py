"""The error tree. Every message states what is wrong, and most have a hint that can be pasted.

EmbedregError
├── UnknownFunctionError    (KeyError)        no function of that name is registered
├── DuplicateFunctionError  (ValueError)      two distributions claim one name
├── ConfigError             (ValueError)      a configuration that cannot work
│   ├── HardcodedSecretError                  a sensitive field holds a value instead of a reference
│   └── MissingVariableError  (KeyError)      a `$var:` that is not set
├── MissingExtraError       (ImportError)     an optional library is not installed
├── UntrustedError          (PermissionError) stored metadata needs something that has not been granted
├── MetadataError           (ValueError)      a declaration that cannot be read
├── SchemaError             (ValueError)      a schema that cannot be built or paired
├── MissingColumnError      (KeyError)        the data lacks a column
├── InputError              (TypeError)       data of a kind that cannot be embedded
├── VectorError             (ValueError)      vectors of the wrong width, or not numbers
├── RowError                (ValueError)      one row's own failure
├── BadRowsError            (ValueError)      rows failed, and the policy does not allow it
├── DriftError              (ValueError)      the function no longer returns the vectors that are stored
├── ModelNotFoundError      (FileNotFoundError) no such model, here or on the hub
├── CallError               (RuntimeError)    a call failed: model, memory, network, quota, key
└── StorageError            (OSError)         reading or writing data failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

# Only the errors; `Grant`, which `UntrustedError` carries, is exported as `embedreg.Grant`.
__all__ = [
    "BadRowsError",
    "CallError",
    "ConfigError",
    "DriftError",
    "DuplicateFunctionError",
    "EmbedregError",
    "HardcodedSecretError",
    "InputError",
    "MetadataError",
    "MissingColumnError",
    "MissingExtraError",
    "MissingVariableError",
    "ModelNotFoundError",
    "RowError",
    "SchemaError",
    "StorageError",
    "UnknownFunctionError",
    "UntrustedError",
    "VectorError",
]


@dataclass(frozen=True)
class Grant:
    """Permissions that stored metadata has, or needs before it may be used; grants are compared by value.

    `embedreg.trust(grant)` grants it. The fields are the arguments of `trust`; a single text means a tuple of one.
    """

    paths: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    remote_code: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            object.__setattr__(self, field.name, (value,) if isinstance(value, str) else tuple(value))

    def keys(self) -> Iterator[str]:
        """Yield the names of the fields that are not empty, so that `trust(**grant)` also works."""
        return (field.name for field in fields(self) if getattr(self, field.name))

    def __getitem__(self, kind: str) -> tuple[str, ...]:
        values: tuple[str, ...] = getattr(self, kind)
        return values

    def __bool__(self) -> bool:
        return any(self.keys())

    def __or__(self, other: Grant) -> Grant:
        """Return the union of two grants."""
        return Grant.union((self, other))

    @staticmethod
    def union(grants: Iterable[Grant]) -> Grant:
        """Return the union of several grants, without duplicates."""
        held = [*grants]
        kinds = [field.name for field in fields(Grant)]
        return Grant(**{kind: tuple(dict.fromkeys(value for each in held for value in each[kind])) for kind in kinds})

    def __str__(self) -> str:
        """Return the call that grants it."""
        return f"embedreg.trust({', '.join(f'{kind}={list(self[kind])!r}' for kind in self.keys())})"


class Words(str):
    """A text for callers in Python that also carries the text for the command line, as `shell`.

    Both texts are written where the error is raised, so no code has to replace calls by options in a message.
    """

    shell: str

    def __new__(cls, text: str, shell: str) -> Self:
        made = super().__new__(cls, text)
        made.shell = shell
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Words, (str.__str__(self), self.shell)

    def __add__(self, other: str) -> Words:
        return Words(str.__str__(self) + str(other), self.shell + in_shell(other))

    def changed(self, change: Callable[[str], str]) -> Words:
        """Return the words with a change applied to both texts."""
        return Words(change(str.__str__(self)), change(self.shell))


def option(text: str, call: str, rest: str = "") -> Words:
    """Return words that name a command-line option and the corresponding argument in Python."""
    return Words(f"{text} (in Python: {call}){rest}", text + rest)


def in_shell(text: str) -> str:
    """Return the text that the command line shows."""
    return text.shell if isinstance(text, Words) else text


def changed(text: str, change: Callable[[str], str]) -> str:
    """Return a text with a change applied, to both texts of `Words`."""
    return text.changed(change) if isinstance(text, Words) else change(text)


class EmbedregError(Exception):
    """The base class of every error that embedreg raises on purpose.

    Args:
        message: what is wrong, including the value unless it is a secret.
        hint: how to fix it, in a form that can be pasted; `Words` if it differs on the command line.

    Attributes:
        raised_by: the name of the user's own function whose error this one replaces.
        trace: that error's own traceback, without secrets.
        shell_hint: the hint for the command line, if it differs; see `for_shell`.
    """

    raised_by: str | None = None
    trace: str | None = None
    shell_hint: str | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if isinstance(hint, Words):
            self.shell_hint = hint.shell

    def for_shell(self, hint: str) -> Self:
        """Set the hint that the command line shows instead of the one for Python; return the error itself."""
        self.shell_hint = hint
        if self.hint is not None:
            self.hint = Words(self.hint, hint)  # so that an error that extends this one passes it on
        return self

    def __str__(self) -> str:
        # KeyError's own __str__ would print the repr of the message.
        return self.message if self.hint is None else f"{self.message}\nHint: {self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint), self.__dict__


class UnknownFunctionError(EmbedregError, KeyError):
    """No embedding function is registered under that name."""


class DuplicateFunctionError(EmbedregError, ValueError):
    """Two installed distributions claim one function name."""


class ConfigError(EmbedregError, ValueError):
    """A configuration with an unknown field or a value of the wrong kind."""


class HardcodedSecretError(ConfigError):
    """A sensitive field got a value, but only a `$var:` reference is allowed."""


class MissingVariableError(ConfigError, KeyError):
    """A `$var:` reference names a variable that is not set; LanceDB raises ValueError or KeyError for it."""


class MissingExtraError(EmbedregError, ImportError):
    """A required optional library is not installed."""


class UntrustedError(EmbedregError, PermissionError):
    """Stored metadata needs something that has not been granted.

    Attributes:
        needed: everything that is missing. `with embedreg.trust(error.needed):` grants it; empty if no grant helps.
    """

    def __init__(self, message: str, hint: str | None = None, needed: Grant = Grant()) -> None:
        super().__init__(message, hint)
        self.needed = needed


class MetadataError(EmbedregError, ValueError):
    """Stored declarations that cannot be read."""


class SchemaError(EmbedregError, ValueError):
    """A schema with invalid types or unclear source/vector pairs."""


class MissingColumnError(EmbedregError, KeyError):
    """The data lacks a column that the declaration names."""


class InputError(EmbedregError, TypeError):
    """A value or a column of a kind that the function cannot embed."""


class VectorError(EmbedregError, ValueError):
    """Vectors of the wrong width or number, or that are not numbers."""


class RowError(EmbedregError, ValueError):
    """The failure of one row, caused by its own input.

    A function may return an instance in its result list instead of that row's vector.
    """


def reason_of(problem: RowError) -> str:
    """Return why a row failed as a plain str: class and message may be defined by a function's author."""
    try:
        message: object = problem.message
        if type(message) is Words:
            return message
        text = str.__str__(message) if isinstance(message, str) else str(message)
    except Exception as exc:  # noqa: BLE001  # see above
        text = f"{type(problem).__name__} (its message failed with {type(exc).__name__})"
    return text or "the function gave no reason"


class BadRowsError(EmbedregError, ValueError):
    """Rows failed, and the policy does not allow it; `rows` holds their numbers."""

    def __init__(self, message: str, hint: str | None = None, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message, hint)
        self.rows = rows


class DriftError(EmbedregError, ValueError):
    """The function no longer returns the vectors that the column was made with."""


class ModelNotFoundError(EmbedregError, FileNotFoundError):
    """The model is neither on this machine nor available from the hub."""


class CallError(EmbedregError, RuntimeError):
    """A whole call failed: model, memory, network, quota or key. It is never caused by a single row.

    Args:
        message, hint: as for every error here.
        transient: whether a retry may succeed and none was made yet; `max_retries` then applies.
        retry_after_s: the seconds that the service asked to wait, if it did.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.transient = transient
        self.retry_after_s = retry_after_s


class StorageError(EmbedregError, OSError):
    """Reading or writing data failed; earlier data is intact."""
