"""embedreg: embedding functions, declared once and rebuilt from the data's own metadata.

Nothing heavy is imported here: a name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg._version import __version__
from embedreg.core import lancedb_hooks
from embedreg.support.lazy import index, keep_old_modules

if TYPE_CHECKING:
    from embedreg.chunks import chunk, sync
    from embedreg.core.base import (
        IMAGES,
        TEXT,
        EmbeddingFunction,
        EmbeddingFunctionConfig,
        TextEmbeddingFunction,
        Traits,
    )
    from embedreg.core.modality import InputFiles, Modality, add_modality
    from embedreg.embedding.column import embed_column, embed_query
    from embedreg.embedding.quantizing import calibrate
    from embedreg.embedding.schema import MultiVector, Schema, SparseVector, Vector
    from embedreg.embedding.table import Report, embed_batches, embed_table
    from embedreg.errors import EmbedregError, Grant, RowError
    from embedreg.images import ImagePolicy, allow_images, url_retrieve
    from embedreg.inspection.attach import attach
    from embedreg.inspection.locate import check_drift, functions_in, functions_in_comments, inspect
    from embedreg.jobs import embed
    from embedreg.registry import EmbeddingFunctionRegistry, get, get_registry, register
    from embedreg.runtime.cache import release
    from embedreg.runtime.local.image import LocalImageFunction
    from embedreg.runtime.local.text import LocalFunction
    from embedreg.runtime.remote.accounts import budget
    from embedreg.runtime.remote.function import RemoteFunction, RemoteTextFunction
    from embedreg.runtime.text.tokens import Tokens
    from embedreg.runtime.vectors.disk import vector_cache
    from embedreg.security.grants import trust
    from embedreg.support.imports import attempt_import_or_raise

__all__ = [
    "IMAGES",
    "TEXT",
    "EmbeddingFunction",
    "EmbeddingFunctionConfig",
    "EmbeddingFunctionRegistry",
    "EmbedregError",
    "Grant",
    "ImagePolicy",
    "InputFiles",
    "LocalFunction",
    "LocalImageFunction",
    "Modality",
    "MultiVector",
    "RemoteFunction",
    "RemoteTextFunction",
    "Report",
    "RowError",
    "Schema",
    "SparseVector",
    "TextEmbeddingFunction",
    "Tokens",
    "Traits",
    "Vector",
    "__version__",
    "add_modality",
    "allow_images",
    "attach",
    "attempt_import_or_raise",
    "budget",
    "calibrate",
    "check_drift",
    "chunk",
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
    "sync",
    "trust",
    "url_retrieve",
    "vector_cache",
]

_HOMES = {
    "IMAGES": "core.base",
    "TEXT": "core.base",
    "EmbeddingFunction": "core.base",
    "EmbeddingFunctionConfig": "core.base",
    "EmbeddingFunctionRegistry": "registry",
    "EmbedregError": "errors",
    "Grant": "errors",
    "ImagePolicy": "images",
    "InputFiles": "core.modality",
    "Modality": "core.modality",
    "MultiVector": "embedding.schema",
    "LocalFunction": "runtime.local.text",
    "LocalImageFunction": "runtime.local.image",
    "RemoteFunction": "runtime.remote.function",
    "RemoteTextFunction": "runtime.remote.function",
    "Report": "embedding.table",
    "RowError": "errors",
    "Schema": "embedding.schema",
    "SparseVector": "embedding.schema",
    "TextEmbeddingFunction": "core.base",
    "Tokens": "runtime.text.tokens",
    "Traits": "core.base",
    "Vector": "embedding.schema",
    "add_modality": "core.modality",
    "allow_images": "images",
    "attach": "inspection.attach",
    "attempt_import_or_raise": "support.imports",
    "budget": "runtime.remote.accounts",
    "calibrate": "embedding.quantizing",
    "check_drift": "inspection.locate",
    "chunk": "chunks.calls",
    "embed": "jobs",
    "embed_batches": "embedding.table",
    "embed_column": "embedding.column",
    "embed_query": "embedding.column",
    "embed_table": "embedding.table",
    "functions_in": "inspection.locate",
    "functions_in_comments": "inspection.locate",
    "get": "registry",
    "get_registry": "registry",
    "inspect": "inspection.locate",
    "register": "registry",
    "release": "runtime.cache",
    "sync": "chunks.calls",
    "trust": "security.grants",
    "url_retrieve": "images",
    "vector_cache": "runtime.vectors.disk",
}

# What pickles of functions and results name, in modules that have moved since: module -> name -> where it is now. An
# entry stays as long as such pickles are to be read; tests/fixtures/ has one of each.
_MOVED = {
    "base": {"EmbeddingFunctionConfig": "core.base", "Traits": "core.base"},
    "entries": {"Entry": "declaration.entries"},
    "images.allowances": {"ImagePolicy": "media.allowances"},
    "identity": {"Drift": "declaration.drift"},
    "metadata": {"Functions": "declaration.codec", "_Stored": "declaration.codec"},
    "table": {"BadRow": "embedding.table", "Report": "embedding.table"},
    "value": {"_rebuild": "core.value"},
    "vectors": {"Embedded": "arrow.vectors"},
}
keep_old_modules(__name__, _MOVED)

if not TYPE_CHECKING:  # a type checker reads the imports above
    __getattr__, __dir__ = index(__name__, _HOMES)

lancedb_hooks.watch()
