"""The fingerprint: a digest of the configuration that determines a function's vectors."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata as distributions
from typing import Any

from embedreg._version import __version__
from embedreg.core.base import EmbeddingFunction
from embedreg.core.canonical import MODEL_FIELDS, registered_name, semantic_config
from embedreg.core.fields import sensitive_fields
from embedreg.core.guarding import guard_of
from embedreg.errors import ConfigError
from embedreg.security import references
from embedreg.security.addresses import is_path
from embedreg.support.strict_json import jsonable

__all__ = ["fingerprint", "producer"]


def fingerprint(function: EmbeddingFunction) -> str:
    """Return a digest of the name and the effective values of all semantic fields.

    A local model is identified by the hash of its files instead of its path. Secrets are left out.

    Raises:
        ConfigError: a field's value has no JSON form. MissingVariableError: a field refers to an unset variable.
    """
    cls = type(function)
    sensitive = sensitive_fields(cls)
    try:
        config = semantic_config(function, strict=True)
    except (TypeError, ValueError):
        raise ConfigError(
            f"the configuration of {cls.__name__} cannot be stored as JSON.", "use str, numbers, lists and dicts"
        ) from None
    # fields added by later versions are null by default and must not change stored fingerprints
    fields = {k: _effect(function, k, v, sensitive) for k, v in config.items() if k not in sensitive and v is not None}
    content = json.dumps([registered_name(cls), fields], sort_keys=True)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def _effect(function: EmbeddingFunction, name: str, value: Any, sensitive: frozenset[str]) -> Any:
    """Return the effective value of a field: references resolved, secrets left out, models by identity."""
    if references.is_reference(value):
        value = jsonable(getattr(function, name))
    local = name in MODEL_FIELDS or guard_of(type(function), name) == "path"
    if local and isinstance(value, str) and is_path(value):
        return function.model_identity() or "unknown"
    reader = registered_name(type(function)) if function.from_metadata else None
    return references.resolve(
        _without_secrets(value, sensitive), lambda reference: references.variables.lookup(reference, function=reader)
    )


def _without_secrets(value: Any, sensitive: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_secrets(item, sensitive)
            for key, item in value.items()
            if key not in sensitive and not references.looks_sensitive(key)
        }
    return [_without_secrets(item, sensitive) for item in value] if isinstance(value, list) else value


def producer(function: EmbeddingFunction) -> dict[str, str]:
    """Return the versions of embedreg and of the libraries that a function runs on, without importing them."""
    for modules in (function.traits.requires, *function.traits.alternatives):
        versions = {"embedreg": __version__}
        for module in modules:
            name = module.replace("_", "-")
            try:
                versions[name] = distributions.version(name)
            except distributions.PackageNotFoundError:
                continue
        if len(versions) > len(modules):
            break  # all of them are installed
    return versions
