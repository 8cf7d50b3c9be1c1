"""The error tree. Every error says what was wrong and gives a hint that can be pasted.

EmbedregError
├── UnknownFunctionError    (KeyError)        no function of that name is registered
├── DuplicateFunctionError  (ValueError)      two distributions claim one name
├── ConfigError             (ValueError)      a configuration that cannot work
│   ├── HardcodedSecretError                  a sensitive field holds a value instead of a reference
│   └── MissingVariableError  (KeyError)      a `$var:` that nobody has set
├── MissingExtraError       (ImportError)     an optional library is not installed
├── UntrustedError          (PermissionError) stored metadata asks for what the reader did not grant
├── MetadataError           (ValueError)      a declaration that cannot be read
├── SchemaError             (ValueError)      a schema that cannot be built or paired
├── MissingColumnError      (KeyError)        the data lacks a column
├── InputError              (TypeError)       data of a kind that cannot be embedded
├── VectorError             (ValueError)      vectors of the wrong width, or not numbers
├── RowError                (ValueError)      one row's own failure
├── BadRowsError            (ValueError)      rows that failed, where failing is not allowed
├── DriftError              (ValueError)      the function no longer gives the vectors that are stored
├── ModelNotFoundError      (FileNotFoundError) no such model, here or on the hub
├── CallError               (RuntimeError)    a call failed: model, memory, network, quota, key
└── StorageError            (OSError)         reading or writing data failed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

# The errors alone; `Grant`, which one of them carries, is `embedreg.Grant`.
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
    """What stored metadata may have, or needs before it may be used: a value, compared by what it holds.

    `embedreg.trust(grant)` puts one into force. Each field is as `trust` takes it; one text stands for a tuple of one.
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
        """Yield the kinds that it holds something of, so that `trust(**grant)` takes it too."""
        return (field.name for field in fields(self) if getattr(self, field.name))

    def __getitem__(self, kind: str) -> tuple[str, ...]:
        values: tuple[str, ...] = getattr(self, kind)
        return values

    def __bool__(self) -> bool:
        return any(self.keys())

    def __or__(self, other: Grant) -> Grant:
        """Return a grant of what either holds, each thing once."""
        return Grant.union((self, other))

    @staticmethod
    def union(grants: Iterable[Grant]) -> Grant:
        """Return a grant of what any of them holds, each thing once."""
        held = [*grants]
        kinds = [field.name for field in fields(Grant)]
        return Grant(**{kind: tuple(dict.fromkeys(value for each in held for value in each[kind])) for kind in kinds})

    def __str__(self) -> str:
        """Return the call that puts it into force."""
        return f"embedreg.trust({', '.join(f'{kind}={list(self[kind])!r}' for kind in self.keys())})"


class Words(str):
    """A text for callers in Python that also says what the command line shows in its place, as `shell`.

    Whoever words an error knows both callers: nobody has to find calls in a text and turn them into options.
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
        """Return the same words with a change made to both texts."""
        return Words(change(str.__str__(self)), change(self.shell))


def option(said: str, call: str, rest: str = "") -> Words:
    """Return words that name an option, and the argument that stands for it in Python."""
    return Words(f"{said} (in Python: {call}){rest}", said + rest)


def in_shell(text: str) -> str:
    """Return what the command line shows of a text."""
    return text.shell if isinstance(text, Words) else text


def changed(text: str, change: Callable[[str], str]) -> str:
    """Return a text with a change made to it, for both callers where it has words for both."""
    return text.changed(change) if isinstance(text, Words) else change(text)


class EmbedregError(Exception):
    """The root of every error that embedreg raises on purpose.

    Args:
        message: what was wrong, with the value where it is no secret.
        hint: what to do, in a form that can be pasted; `Words` where it is another on the command line.

    Attributes:
        raised_by: the name of the user's own function whose error this one stands for.
        trace: that error's own traceback, without secrets.
        shell_hint: what to do on the command line, where that is something else.
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
        """Give the hint that the command line shows in place of the one in Python; return the error itself."""
        self.shell_hint = hint
        if self.hint is not None:
            self.hint = Words(self.hint, hint)  # which an error that says more of this one passes on
        return self

    def with_shell_hint_of(self, other: EmbedregError) -> Self:
        """Take over the command line's hint of another error; return the error itself."""
        return self if other.shell_hint is None else self.for_shell(other.shell_hint)

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
    """A sensitive field was given a value where only a `$var:` reference may stand."""


class MissingVariableError(ConfigError, KeyError):
    """A `$var:` reference names a variable that is not set; LanceDB raises ValueError or KeyError for one."""


class MissingExtraError(EmbedregError, ImportError):
    """An optional library is needed and not installed."""


class UntrustedError(EmbedregError, PermissionError):
    """Stored metadata asks for something that the reader has not granted.

    Attributes:
        needed: everything that it asks for and has not got. `with embedreg.trust(error.needed):` grants it; empty where
            no grant helps.
    """

    def __init__(self, message: str, hint: str | None = None, needed: Grant = Grant()) -> None:
        super().__init__(message, hint)
        self.needed = needed


class MetadataError(EmbedregError, ValueError):
    """Stored declarations that cannot be read."""


class SchemaError(EmbedregError, ValueError):
    """A schema whose types or source/vector pairs cannot be made out."""


class MissingColumnError(EmbedregError, KeyError):
    """The data lacks a column that the declaration names."""


class InputError(EmbedregError, TypeError):
    """A value or a column of a kind that the function cannot embed."""


class VectorError(EmbedregError, ValueError):
    """Vectors of the wrong width or number, or that are not numbers."""


class RowError(EmbedregError, ValueError):
    """The failure of one row, by its own input's fault.

    A function may put an instance in its result list, in place of that row's vector.
    """


def reason_of(problem: RowError) -> str:
    """Return why a row failed, as a plain str: the class and the message may be a function author's own."""
    try:
        message: object = problem.message
        if type(message) is Words:
            return message
        text = str.__str__(message) if isinstance(message, str) else str(message)
    except Exception as exc:  # noqa: BLE001  # see above
        text = f"{type(problem).__name__} (its message failed with {type(exc).__name__})"
    return text or "the function gave no reason"


class BadRowsError(EmbedregError, ValueError):
    """Rows failed, and the policy does not let them; `rows` holds their numbers."""

    def __init__(self, message: str, hint: str | None = None, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message, hint)
        self.rows = rows


class DriftError(EmbedregError, ValueError):
    """The function no longer gives the vectors that the column was made with."""


class ModelNotFoundError(EmbedregError, FileNotFoundError):
    """The model is neither on this machine nor to be had from the hub."""


class CallError(EmbedregError, RuntimeError):
    """A whole call failed: model, memory, network, quota or key. Never a row's own fault.

    Args:
        message, hint: as of every error here.
        transient: whether the failure may pass by itself and nobody has tried again yet; `max_retries` then applies.
        retry_after_s: how many seconds the service asked to wait, where it did.
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
    """Reading or writing data failed; what was there before is intact."""
