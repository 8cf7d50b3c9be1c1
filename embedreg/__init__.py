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
    from embedreg.comments import functions_in_comments
    from embedreg.errors import EmbedregError, RowError
    from embedreg.grants import trust
    from embedreg.images import ImagePolicy, allow_images, url_retrieve
    from embedreg.imports import attempt_import_or_raise
    from embedreg.jobs import embed
    from embedreg.locate import check_drift, functions_in, inspect
    from embedreg.registry import EmbeddingFunctionRegistry, get, get_registry, register
    from embedreg.runtime.cache import release
    from embedreg.runtime.disk_cache import vector_cache
    from embedreg.schema import Schema, Vector
    from embedreg.table import Report, embed_batches, embed_table

__all__ = [
    "IMAGES",
    "TEXT",
    "EmbeddingFunction",
    "EmbeddingFunctionConfig",
    "EmbeddingFunctionRegistry",
    "EmbedregError",
    "ImagePolicy",
    "Report",
    "RowError",
    "Schema",
    "TextEmbeddingFunction",
    "Traits",
    "Vector",
    "__version__",
    "allow_images",
    "attach",
    "attempt_import_or_raise",
    "check_drift",
    "embed",
    "embed_batches",
    "embed_column",
    "embed_query",
    "embed_table",
    "functions_in",
    "functions_in_comments",
    "get",
    "get_registry",
    "inspect",
    "register",
    "release",
    "trust",
    "url_retrieve",
    "vector_cache",
]

_HOMES = {
    "IMAGES": "base",
    "TEXT": "base",
    "EmbeddingFunction": "base",
    "EmbeddingFunctionConfig": "base",
    "EmbeddingFunctionRegistry": "registry",
    "EmbedregError": "errors",
    "ImagePolicy": "images",
    "Report": "table",
    "RowError": "errors",
    "Schema": "schema",
    "TextEmbeddingFunction": "base",
    "Traits": "base",
    "Vector": "schema",
    "allow_images": "images",
    "attach": "attaching",
    "attempt_import_or_raise": "imports",
    "check_drift": "locate",
    "embed": "jobs",
    "embed_batches": "table",
    "embed_column": "column",
    "embed_query": "column",
    "embed_table": "table",
    "functions_in": "locate",
    "functions_in_comments": "comments",
    "get": "registry",
    "get_registry": "registry",
    "inspect": "locate",
    "register": "registry",
    "release": "runtime.cache",
    "trust": "grants",
    "url_retrieve": "images",
    "vector_cache": "runtime.disk_cache",
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
