"""The state of one instance: how `$var:` references are kept while it is built, and resolved when a field is read.

These are functions instead of methods, since a subclass may use any method name.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel

from embedreg.core.fields import copied, names_by_key, secret_values, sensitive_fields
from embedreg.security import references
from embedreg.support import containers

if TYPE_CHECKING:
    from embedreg.core.configured import Configured

__all__ = ["Origin", "State", "building", "held_secrets", "keep", "read", "secret_values", "shared", "state_of"]

Origin: TypeAlias = Literal["user", "metadata", "pickle"]
_MIN_REDACTED = 8  # characters; a shorter secret may occur in another value by chance
_get = object.__getattribute__
_gathering = threading.local()
_AnyInstance = TypeVar("_AnyInstance")


class State:  # no dataclass: making one costs milliseconds of the first use
    """The state of an instance beside its fields. It stays in memory: never dumped, pickled or compared.

    Attributes:
        origin: what the instance was created from.
        alias: the function name in the stored metadata.
        unknown: stored fields that the class does not have.
        passed: the arguments of the outermost `__init__`, which pickle and copy replay; a subclass may change them
            before they reach the base.
        given: the configuration that reached the base, by field name where known.
        resolved: the same with references resolved, during validation.
        converted: field -> (resolved value, validated value), where the two differ.
        assigned: fields that were set after the instance was built, by its methods or by user code.
        own: of these, the fields that its own methods set.
        pending: fields that the class is expected to set -> their values in the stored declaration.
        stated_ndims: the width from a schema, for a class that cannot return it.
        cached: values of cached properties that contain a secret.
        seen: secrets resolved so far, redacted from every text even after they are unset.
    """

    __slots__ = (
        "alias",
        "assigned",
        "cached",
        "converted",
        "given",
        "origin",
        "own",
        "passed",
        "pending",
        "resolved",
        "seen",
        "stated_ndims",
        "unknown",
    )

    def __init__(
        self, origin: Origin = "user", alias: str | None = None, unknown: dict[str, Any] | None = None
    ) -> None:
        self.origin: Origin = origin
        self.alias = alias
        self.unknown: dict[str, Any] = {} if unknown is None else unknown
        self.passed: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.given: dict[str, Any] = {}
        self.resolved: dict[str, Any] | None = None
        self.converted: dict[str, tuple[Any, Any]] = {}
        self.assigned: set[str] = set()
        self.own: set[str] = set()
        self.pending: dict[str, Any] = {}
        self.stated_ndims: int | None = None
        self.cached: dict[str, Any] = {}
        self.seen: set[str] = set()

    def __repr__(self) -> str:
        return f"State(origin={self.origin!r}, alias={self.alias!r})"


# The origin of the instance under construction; read in `__new__`, since users' subclasses may wrap `__init__`.
_build: contextvars.ContextVar[tuple[type, Origin, str | None, dict[str, Any]] | None] = contextvars.ContextVar(
    "embedreg_build", default=None
)


@contextmanager
def building(cls: type, origin: Origin, alias: str | None, unknown: dict[str, Any]) -> Iterator[None]:
    """Set the origin of the instances of a class that are built in this block."""
    token = _build.set((cls, origin, alias, unknown))
    try:
        yield
    finally:
        _build.reset(token)


def metadata_is_building() -> bool:
    """Return whether this thread is building an instance from stored metadata, including nested instances."""
    build = _build.get()
    return build is not None and build[1] == "metadata"


def new_state(cls: type) -> State:
    """Return a new state for an instance under construction."""
    build = _build.get()
    if build is None or build[0] is not cls:
        return State()
    return State(build[1], build[2], dict(build[3]))


def state_of(instance: Configured) -> State:
    """Return the state of an instance."""
    return _get(instance, "_embedreg")  # type: ignore[no-any-return]


def extra_of(instance: Configured) -> dict[str, Any]:
    """Return the extra fields of an instance, if its class allows any; empty during construction."""
    return _slot(instance, "__pydantic_extra__")


def _slot(instance: Configured, name: str) -> dict[str, Any]:
    try:
        return _get(instance, name) or {}
    except AttributeError:  # not set before pydantic has validated the fields
        return {}


# -- references and their values --------------------------------------------------------------------------------------


def restored(passed: Any, resolved: Any, value: Any, *, sensitive: bool) -> Any:
    """Return a validated value with its original references put back.

    A reference that was converted to a number, a flag or an enum stays converted, unless it is sensitive.
    """
    if not references.has_reference(passed):
        return value
    if isinstance(passed, (str, *containers.WRAPPERS)):
        text = containers.unwrapped(passed)
        if isinstance(value, containers.WRAPPERS):
            return containers.wrapped(text, value)
        return text if sensitive or (type(value) is str and value == resolved) else value
    before, after, now = (
        containers.items_of(passed) or [],
        containers.items_of(resolved) or [],
        containers.items_of(value),
    )
    if now is None:
        return passed if sensitive else value
    if before and before[0][0] is None:  # a sequence
        if isinstance(value, set | frozenset) or len(now) != len(before):
            return passed if sensitive else value
        pairs = zip(before, after, now, strict=True)
        items = iter([restored(p, r, v, sensitive=sensitive) for (_, p), (_, r), (_, v) in pairs])
        return containers.rebuilt(value, lambda key, item: next(items))
    keyed, of_model = {key: (item, dict(after)[key]) for key, item in before}, isinstance(value, BaseModel)
    names = names_by_key(type(value)) if of_model else {}
    keyed = {names.get(str(key), key) if of_model else key: pair for key, pair in keyed.items()}

    def put_back(key: object, item: Any) -> Any:
        if key not in keyed:
            return item
        return restored(*keyed[key], item, sensitive=sensitive or references.looks_sensitive(key))

    return containers.rebuilt(value, put_back)


def holds_any(value: Any, values: Iterable[str]) -> bool:
    """Return whether a value contains one of some secrets."""
    value = containers.unwrapped(value)
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return any(secret in value for secret in values if len(secret) >= _MIN_REDACTED or secret == value)
    return any(holds_any(item, values) for _, item in containers.items_of(value) or ())


# -- instances ---------------------------------------------------------------------------------------------------------


def validation_values(instance: Configured) -> dict[str, Any]:
    """Return a configuration with its references resolved, for validation.

    Raises:
        MissingVariableError: a variable is not set, in the user's own call. From metadata or a pickle, a missing
            variable stays a reference until the field is read.
    """
    state, reader = state_of(instance), reader_of(instance)

    def look_up_leniently(reference: references.Reference) -> str:
        value = references.variables.find(reference.name, function=reader)
        if value is None:
            value = reference.default
        return f"{references.PREFIX}{reference.name}" if value is None else value

    lookup = references.variables.lookup if state.origin == "user" else look_up_leniently
    return {key: references.resolve(value, lookup) for key, value in state.given.items()}


def keep(instance: Configured) -> None:
    """Put the references back into the fields after validation, once."""
    state, cls = state_of(instance), type(instance)
    resolved, state.resolved = state.resolved, None
    if resolved is None or not any(map(references.has_reference, state.given.values())):
        return
    held, missing, sensitive = held_secrets(instance), unset(instance), sensitive_fields(cls)
    for key, passed in state.given.items():
        name = names_by_key(cls).get(key, key)
        place = instance.__dict__ if name in instance.__dict__ else extra_of(instance)
        if name not in place or not references.has_reference(passed):
            continue
        value = place[name]
        kept = restored(passed, resolved[key], value, sensitive=name in sensitive)
        if holds_any(kept, held):  # a validator moved the secret elsewhere
            kept = copied(passed)
        place[name] = kept
        if name in missing:
            state.converted[name] = (None, None)
        elif not same(now := references.resolve(kept, looking_up(instance)), value):
            state.converted[name] = (now, value)


def fill_unvalidated(instance: Configured) -> None:
    """Fill in a pickled configuration without validation, since some of its variables are not set here (yet)."""
    cls, names, state = type(instance), names_by_key(type(instance)), state_of(instance)
    values = {names.get(key, key): value for key, value in state.given.items()}
    twin = BaseModel.model_construct.__func__(cls, **values)  # type: ignore[attr-defined]
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__"):
        object.__setattr__(instance, slot, getattr(twin, slot))
    state.converted = dict.fromkeys(unset(instance), (None, None))


def unset(instance: Configured) -> set[str]:
    """Return the fields that refer to an unset variable without a default."""
    names, reader = names_by_key(type(instance)), reader_of(instance)
    return {
        names.get(key, key)
        for key, value in state_of(instance).given.items()
        for reference in references.references(value)
        if reference.default is None and references.variables.find(reference.name, function=reader) is None
    }


def read(instance: Configured, name: str, kept: Any) -> Any:
    """Return the value of a field: references resolved, and converted as its validators did."""
    if kept.__class__ is str and not kept.startswith(references.PREFIX):
        return kept
    value = references.resolve(kept, looking_up(instance))
    if value is kept:
        return kept
    state = state_of(instance)
    state.seen |= secret_values(type(instance), {name: kept}, reader_of(instance))
    converted = state.converted.get(name)
    if converted is None:
        return value
    if not same(converted[0], value):  # the variable has changed, or was not set when this instance was built
        converted = state_of(copy.copy(instance)).converted.get(name, (value, value))
        state.converted[name] = converted
    return converted[1]


def reader_of(instance: Configured) -> str | None:
    """Return the function name under which variables are looked up; None if it was not built from metadata."""
    state = state_of(instance)
    return state.alias if state.origin == "metadata" else None


def looking_up(instance: Configured) -> Callable[[references.Reference], str]:
    """Return the variable lookup of an instance; it raises MissingVariableError."""
    return functools.partial(references.variables.lookup, function=reader_of(instance))


def held_secrets(instance: Configured) -> list[str]:
    """Return the secrets that an instance holds or has held, and those of the functions inside it."""
    state, cls, reader = state_of(instance), type(instance), reader_of(instance)
    passed = state.passed[1] if state.passed is not None else {}
    for config in (passed, state.given, {} if state.resolved is not None else instance.raw_fields()):
        state.seen |= secret_values(cls, config, reader)
    entered: set[int] = _gathering.__dict__.setdefault("entered", set())
    if id(instance) not in entered:  # functions may refer to each other
        entered.add(id(instance))
        try:
            for inner in _inner_functions(instance):
                state.seen.update(inner._held_secrets())
        finally:
            entered.discard(id(instance))
    return sorted(state.seen)


def _inner_functions(instance: Configured) -> Iterator[Configured]:
    """Yield the functions in an instance's fields, in lists or dicts in its fields, and in its private attributes."""
    fields = list(instance.__dict__.values())
    private = _slot(instance, "__pydantic_private__").values()
    for value in [*fields, *private, *(item for held in fields for _, item in containers.items_of(held) or ())]:
        if hasattr(type(value), "_held_secrets"):
            yield value


def overlay(instance: Any, name: str, value: Any) -> None:
    """Replace the value that `__init__` gave a field."""
    if name in type(instance).__pydantic_fields__:
        instance.__dict__[name] = value
    elif instance.__pydantic_extra__ is not None:
        instance.__pydantic_extra__[name] = value


def same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; arrays, whose comparison has no single truth value, count as different."""
    try:
        return bool(one == other)
    except ValueError:
        return False


def shared(value: _AnyInstance) -> _AnyInstance:
    """Return a second instance that shares all state with the first, including what is loaded or assigned later."""
    twin: _AnyInstance = object.__new__(type(value))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot != "__weakref__" and hasattr(value, slot):
                object.__setattr__(twin, slot, _get(value, slot))
    object.__setattr__(twin, "__dict__", _get(value, "__dict__"))
    return twin
