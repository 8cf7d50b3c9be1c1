"""Access values inside containers: dicts, lists, models, dataclasses, and pydantic's secret types."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

__all__ = ["WRAPPERS", "items_of", "rebuilt", "unwrapped", "wrapped"]

WRAPPERS = (SecretStr, SecretBytes, Secret)


def unwrapped(value: Any) -> Any:
    """Return the value of a pydantic secret, bytes as text; return any other value unchanged."""
    if not isinstance(value, WRAPPERS):
        return value
    held = value.get_secret_value()
    return held.decode("utf-8", "replace") if isinstance(held, bytes) else held


def wrapped(text: str, like: Any) -> Any:
    """Wrap a text in the same secret type as `like`."""
    return SecretBytes(text.encode()) if isinstance(like, SecretBytes) else type(like)(text)


def items_of(value: object) -> list[tuple[object, Any]] | None:
    """Return the (key or None, item) pairs of a dict, list, pydantic model or dataclass; None for other values.

    An embedding function inside a configuration is a leaf: it handles its own references.
    """
    if value is None or isinstance(value, str | int | float):
        return None
    if isinstance(value, dict | Mapping):  # the builtin first: isinstance against an ABC is slow
        return list(value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return [(None, item) for item in value]
    if isinstance(value, BaseModel) and not hasattr(type(value), "__embedding_function_registry_alias__"):
        return [*value.__dict__.items(), *(value.__pydantic_extra__ or {}).items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(item.name, getattr(value, item.name, None)) for item in dataclasses.fields(value)]
    return None


def rebuilt(value: Any, change: Callable[[object, Any], Any]) -> Any:
    """Return a container of the same kind with each item replaced by `change(key, item)`."""
    if isinstance(value, Mapping):
        return {key: change(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [change(None, item) for item in value]
        return (
            type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        )  # a named tuple takes separate arguments
    changed = {str(key): change(key, item) for key, item in items_of(value) or []}
    if isinstance(value, BaseModel):
        return value.model_copy(update=changed)
    twin = copy.copy(value)
    for key, item in changed.items():
        object.__setattr__(twin, key, item)  # a dataclass may be frozen
    return twin
