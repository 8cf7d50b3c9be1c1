"""embedreg: embedding functions, declared once and rebuilt from the data's own metadata.

Nothing heavy is imported here: a name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from embedreg import engines
from embedreg._version import __version__

if TYPE_CHECKING:
    from embedreg.base import (
        IMAGES,
        TEXT,
        EmbeddingFunction,
        EmbeddingFunctionConfig,
        TextEmbeddingFunction,
        Traits,
    )
    from embedreg.column import embed_column, embed_query
    from embedreg.errors import EmbedregError, RowError
    from embedreg.grants import trust
    from embedreg.imports import attempt_import_or_raise
    from embedreg.locate import check_drift, functions_in, inspect
    from embedreg.registry import EmbeddingFunctionRegistry, get, get_registry, register
    from embedreg.runtime.cache import release
    from embedreg.schema import Schema, Vector
    from embedreg.table import Report, embed_batches, embed_table

__all__ = [
    "IMAGES",
    "TEXT",
    "EmbeddingFunction",
    "EmbeddingFunctionConfig",
    "EmbeddingFunctionRegistry",
    "EmbedregError",
    "Report",
    "RowError",
    "Schema",
    "TextEmbeddingFunction",
    "Traits",
    "Vector",
    "__version__",
    "attempt_import_or_raise",
    "check_drift",
    "embed_batches",
    "embed_column",
    "embed_query",
    "embed_table",
    "functions_in",
    "get",
    "get_registry",
    "inspect",
    "register",
    "release",
    "trust",
]

_HOMES = {
    "IMAGES": "base",
    "TEXT": "base",
    "EmbeddingFunction": "base",
    "EmbeddingFunctionConfig": "base",
    "EmbeddingFunctionRegistry": "registry",
    "EmbedregError": "errors",
    "Report": "table",
    "RowError": "errors",
    "Schema": "schema",
    "TextEmbeddingFunction": "base",
    "Traits": "base",
    "Vector": "schema",
    "attempt_import_or_raise": "imports",
    "check_drift": "locate",
    "embed_batches": "table",
    "embed_column": "column",
    "embed_query": "column",
    "embed_table": "table",
    "functions_in": "locate",
    "get": "registry",
    "get_registry": "registry",
    "inspect": "locate",
    "register": "registry",
    "release": "runtime.cache",
    "trust": "grants",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'embedreg' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(f"embedreg.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


engines.watch()
