"""Guarded fields: which fields stored metadata may not set without a grant, by name and by type.

`admission` uses these rules. They do not depend on values or grants.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import ipaddress
import os
import re
import socket
import typing
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel

from embedreg.core.fields import names_by_key

if TYPE_CHECKING:
    pass

__all__ = [
    "Guard",
    "Types",
    "deep_guard",
    "defaults_in",
    "field_guard",
    "guard_by_name",
    "guard_of",
    "inner",
    "of_keys",
    "snake",
    "type_of",
    "value_guard",
]

Guard = Literal["address", "path", "other"]
Types: TypeAlias = tuple[Any, ...]
"""The possible annotations of a value; several below a union."""

# By name, in lower-case words: the full name, or its last words.
_NAMED: dict[Guard, re.Pattern[str]] = {
    "address": re.compile(
        r"(.*_)?(addr|address|api_base|base_url|dns|endpoint|gateway|host|hostname|ip|ipaddr|proxie|proxy"
        r"|server|sockaddr|uri|url)(s|es)?"
    ),
    "path": re.compile(r"(.*_)?(cwd|dir|directory|directorie|file|filename|folder|path|socket|uds|workdir)s?"),
    "other": re.compile(
        r"(.*_)?(header|executable|command|cmd|script|pickle|entry_?point|(remote|custom|user)_?code)s?|code"
    ),
}
# The same as endings of compound words, and unrelated words with these endings.
_TOGETHER: dict[Guard, re.Pattern[str]] = {
    "address": re.compile(
        r".+(address|addr|endpoint|host|hostname|proxy|server|servername|uri|url)s?|.*apibase|servername"
    ),
    "path": re.compile(r".+(dir|directory|file|filename|folder|path|socket)s?"),
    "other": re.compile(r".+(command|cmd|executable|header)s?|(trust)?(remote|custom|user)code"),
}
_CHANCE = re.compile(r"(curl|empath|ghost|jsonpath|nadir|observer|profile|semiprofile|telepath|whost|xpath)s?")
_NUMBERED = re.compile(r"_?(v?[0-9]+)$")
LONGEST_NAME = 256  # characters; only the end of a longer name is checked

_TYPE_NAMES: dict[Guard, re.Pattern[str]] = {
    "path": re.compile(r".*Path(Like|Type)?"),
    "address": re.compile(r".*(Url|URL|Uri|URI|Dsn|UrlConstraints)|IPvAny\w+|.*Socket"),
    "other": re.compile(r".*(ImportString|Json).*"),
}
_ADDRESSES = (
    *(ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Interface, ipaddress.IPv6Interface),
    *(ipaddress.IPv4Network, ipaddress.IPv6Network, socket.socket),
)


def snake(name: str) -> str:
    """Return a camelCase name in snake_case."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


# -- names -------------------------------------------------------------------------------------------------------------


def guard_by_name(name: str) -> Guard | None:
    """Return the guard for a field name; `base_url`, `baseurl`, `baseURL` and `base-url` are equivalent."""
    return _by_name(name[-LONGEST_NAME:])


@functools.lru_cache(maxsize=4096)
def _by_name(name: str) -> Guard | None:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    words = _NUMBERED.sub("", re.sub(r"[\W_]+", "_", words).strip("_").lower())
    if words == "trust_remote_code":
        return "other"
    for guard, pattern in _NAMED.items():
        if pattern.fullmatch(words):
            return guard
    last = words.rpartition("_")[2]
    if _CHANCE.fullmatch(last):
        return None
    return next((guard for guard, pattern in _TOGETHER.items() if pattern.fullmatch(last)), None)


def guard_of(cls: type[Any], name: str) -> Guard | None:
    """Return the guard of a field by its name, class or type; None if it is not guarded."""
    return field_guard(cls, name) or deep_guard(type_of(cls, name))


def field_guard(cls: type[Any], name: str) -> Guard | None:
    """Return the guard of a field by its name or its class's `guarded_fields()`."""
    return guard_by_name(name) or ("other" if name in cls.guarded_fields() else None)


# -- types -------------------------------------------------------------------------------------------------------------


def type_of(cls: type[BaseModel], name: str) -> Types:
    """Return the annotation of a model's field; empty for an unknown field."""
    info = cls.model_fields.get(name)
    if info is None:
        return ()
    return (Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation,)


def inner(types: Types, key: object) -> Types:
    """Return the types of an item: a dict's value for a key, or, with None, a list's item.

    Where the annotation does not assign types to items, each item may have any of them.
    """
    found: list[Any] = []
    for each in _alternatives(types):
        fields = _fields(each) if isinstance(each, type) else {}
        origin, args = get_origin(each), get_args(each)
        if isinstance(key, str) and fields:
            found += [fields[key]] if key in fields else []
        elif fields:  # a named tuple or dataclass, stored as a list
            found += fields.values()
        elif isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
            found += args[1:] if key is not None else args
        else:
            found += [arg for arg in args if arg is not Ellipsis]
    return tuple(found)


def of_keys(types: Types) -> Types:
    """Return the types of a dict's keys."""
    found: list[Any] = []
    for each in _alternatives(types):
        origin = get_origin(each)
        if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
            found += get_args(each)[:1]
    return tuple(found)


def deep_guard(types: Types) -> Guard | None:
    """Return the first guard found in some types, at any depth."""
    seen: set[int] = set()
    waiting = [*types]
    found: set[Guard] = set()
    while waiting:
        for each in _alternatives((waiting.pop(),)):
            origin = get_origin(each)
            guard = _own_guard(each) or (_own_guard(origin) if isinstance(origin, type) else None)
            if guard is not None:
                found.add(guard)
            elif origin is not Literal and id(each) not in seen:
                seen.add(id(each))  # models may refer to each other
                waiting += [arg for arg in get_args(each) if arg is not Ellipsis]
                if isinstance(each, type):
                    waiting += _fields(each).values()
    return next((guard for guard in ("address", "path", "other") if guard in found), None)


def defaults_in(types: Types) -> Iterator[tuple[str, Any]]:
    """Yield the field defaults of each model and dataclass among some types."""
    for each in _alternatives(types):
        if isinstance(each, type) and issubclass(each, BaseModel):
            for name, info in each.model_fields.items():
                if not info.is_required():
                    yield name, info.get_default(call_default_factory=False)
        elif isinstance(each, type) and dataclasses.is_dataclass(each):
            yield from ((item.name, item.default) for item in dataclasses.fields(each))


def _alternatives(types: Types) -> Iterator[Any]:
    """Yield the types behind unions, `Annotated`, `NewType`, type variables and aliases, with their annotations."""
    waiting, count = [*types], 0
    while waiting and count < 10_000:  # an alias may be recursive
        count += 1
        each = waiting.pop()
        origin = get_origin(each)
        if origin in (Union, UnionType):
            waiting += get_args(each)
        elif origin is Annotated:
            waiting += get_args(each)  # constraints can mark a path or a URL, as types can
        elif isinstance(each, TypeVar):
            waiting += [*each.__constraints__, *([each.__bound__] if each.__bound__ is not None else [])]
        elif (behind := getattr(each, "__supertype__", None) or _value_of(each)) is not None:
            waiting.append(behind)
        elif origin in (typing.ClassVar, typing.Final) or str(origin).endswith(("Required", "ReadOnly")):
            waiting += get_args(each)
        else:
            yield each


def _value_of(annotation: Any) -> Any:
    """Return the value of a `type X = ...` alias."""
    named = getattr(annotation, "__origin__", annotation)
    return getattr(named, "__value__", None) if "TypeAlias" in type(named).__name__ else None


def _own_guard(leaf: Any) -> Guard | None:
    if leaf is collections.abc.Callable or get_origin(leaf) is collections.abc.Callable:
        return "other"
    if not isinstance(leaf, type):
        if isinstance(leaf, str | typing.ForwardRef):  # a name that could not be resolved
            leaf = leaf if isinstance(leaf, str) else leaf.__forward_arg__
            return next(
                (guard for guard, pattern in _TYPE_NAMES.items() if re.search(rf"\b{pattern.pattern}\b", leaf)), None
            )
        leaf = type(leaf)  # annotation objects: UrlConstraints, PathType
    if issubclass(leaf, BaseModel | str | int | float | bool | dict | list) and leaf.__module__ != "pydantic.networks":
        own = leaf.__name__ if not issubclass(leaf, BaseModel) else ""
        return next((guard for guard, pattern in _TYPE_NAMES.items() if own and pattern.fullmatch(own)), None)
    if issubclass(leaf, os.PathLike):
        return "path"
    if issubclass(leaf, _ADDRESSES):
        return "address"
    names = [base.__name__ for base in leaf.__mro__ if base is not object]
    return next((g for g, pattern in _TYPE_NAMES.items() if any(pattern.fullmatch(name) for name in names)), None)


def value_guard(value: object) -> Guard | None:
    """Return the guard of a value by its type: a path or an address; None for texts, numbers and containers."""
    return None if isinstance(value, str | int | float | BaseModel) else _own_guard(type(value))


def _fields(cls: type) -> Mapping[str, Any]:
    """Return the field types of a model, dataclass, typed dict or named tuple, by name and alias."""
    try:
        if issubclass(cls, BaseModel):
            return {key: type_of(cls, name)[0] for key, name in names_by_key(cls).items()}
        if dataclasses.is_dataclass(cls) or typing.is_typeddict(cls) or hasattr(cls, "_fields") or _is_typed_dict(cls):
            return typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError, AttributeError):  # an unresolvable name: use the annotations unresolved
        return dict(getattr(cls, "__annotations__", {}))
    return {}


def _is_typed_dict(cls: type) -> bool:
    return hasattr(cls, "__total__") and hasattr(cls, "__required_keys__")  # also matches typing_extensions.TypedDict
