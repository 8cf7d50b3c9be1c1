"""Values inside containers: dicts, lists, models, dataclasses, and pydantic's wrappers of secrets."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

__all__ = ["WRAPPERS", "items_of", "rebuilt", "unwrapped", "wrapped"]

WRAPPERS = (SecretStr, SecretBytes, Secret)


def unwrapped(value: Any) -> Any:
    """Return what a SecretStr or another of pydantic's secrets holds, bytes as text; any other value as it is."""
    if not isinstance(value, WRAPPERS):
        return value
    held = value.get_secret_value()
    return held.decode("utf-8", "replace") if isinstance(held, bytes) else held


def wrapped(text: str, like: Any) -> Any:
    """Return a text in the same kind of secret as another one."""
    return SecretBytes(text.encode()) if isinstance(like, SecretBytes) else type(like)(text)


def items_of(value: object) -> list[tuple[object, Any]] | None:
    """Return what a container holds, as (key or None, item): a dict, a list, a pydantic model, a dataclass; else None.

    An embedding function inside a configuration is a leaf: it looks after its own references.
    """
    if value is None or isinstance(value, str | int | float):
        return None
    if isinstance(value, dict | Mapping):  # the builtin first: asking the abstract class is dear
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
        )  # a named tuple takes them apart
    changed = {str(key): change(key, item) for key, item in items_of(value) or []}
    if isinstance(value, BaseModel):
        return value.model_copy(update=changed)
    twin = copy.copy(value)
    for key, item in changed.items():
        object.__setattr__(twin, key, item)  # a dataclass may be frozen
    return twin
