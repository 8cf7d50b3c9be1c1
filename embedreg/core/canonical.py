"""The part of a configuration that determines vectors, in JSON types: what is stored, compared and fingerprinted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined

from embedreg.core.fields import names_by_key, runtime_fields, sensitive_fields
from embedreg.core.kinds import kind_of
from embedreg.security import references
from embedreg.support.strict_json import jsonable

if TYPE_CHECKING:
    from embedreg.core.configured import Configured

__all__ = [
    "MODEL_FIELDS",
    "OWN_PREFIX",
    "canonical",
    "defaults",
    "effective",
    "persisted_name",
    "registered_name",
    "semantic_config",
]

OWN_PREFIX = "embedreg:"
"""The prefix of stored names that stock LanceDB must not resolve to its own functions."""

MODEL_FIELDS = ("name", "model", "model_name", "model_id", "pretrained")
"""The fields that name a class's model: a hub name, a local folder or a weights file."""


def semantic_config(function: Configured, *, strict: bool = False) -> dict[str, Any]:
    """Return every semantic field as it is stored: effective values, references unresolved, JSON types.

    Args:
        strict: whether a value without a JSON form raises; otherwise its repr is used.
    Raises:
        ValueError, TypeError: with `strict`, a value has no JSON form.
    """
    cls: type[Any] = type(function)
    runtime, sensitive, names = runtime_fields(cls), sensitive_fields(cls), names_by_key(cls)
    passed = {names.get(key, key): value for key, value in function._original_args.items()}
    config = {}
    for name, value in function.raw_fields().items():
        if name in runtime or (name in sensitive and value is None):
            continue
        if not references.has_reference(value) and references.has_reference(passed.get(name)):
            value = passed[name]  # validation converted the reference to a number: store the reference
        config[name] = jsonable(value) if strict else _lenient(value)
    return config


def _lenient(value: Any) -> Any:
    try:
        return jsonable(value)
    except (TypeError, ValueError):
        return repr(value)


def defaults(cls: type[Any]) -> dict[str, Any]:
    """Return a class's defaults in JSON types; required fields are left out."""
    found = {}
    for name, info in cls.model_fields.items():
        value = info.get_default(call_default_factory=True, validated_data={})
        if value is not PydanticUndefined:
            found[name] = _lenient(value)
    return found


def effective(cls: type[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration, with missing fields filled from the class's defaults."""
    return {**defaults(cls), **stored}


def canonical(cls: type[Any], config: Mapping[str, Any]) -> str:
    """Return a text that is equal for equal semantic configurations of a class."""
    runtime, sensitive = runtime_fields(cls), sensitive_fields(cls)
    kept = {k: v for k, v in config.items() if k not in runtime and not (k in sensitive and v is None)}
    return json.dumps(kept, sort_keys=True, default=repr)


def registered_name(cls: type[Any]) -> str | None:
    """Return the name that a class was registered under; an unregistered subclass does not inherit its parent's."""
    alias = cls.__dict__.get("__embedding_function_registry_alias__")
    return alias if isinstance(alias, str) else None


def persisted_name(function: Configured) -> str | None:
    """Return the name an entry is stored under.

    A built-in that sets a field which stock LanceDB's function of that name would ignore is stored as
    `embedreg:<name>`, and so is one whose kind of vectors stock LanceDB stores wrongly. Stock LanceDB then fails
    instead of writing different vectors of the same width, or nulls.
    """
    cls: type[Any] = type(function)
    alias = registered_name(cls)
    stock = cls.traits.stock_fields
    if alias is None or stock is None:
        return alias
    if not kind_of(function).stock_lancedb:
        return f"{OWN_PREFIX}{alias}"
    usual = defaults(cls)
    own = (k for k, v in semantic_config(function).items() if k not in stock and v != usual.get(k))
    return alias if next(own, None) is None else f"{OWN_PREFIX}{alias}"
