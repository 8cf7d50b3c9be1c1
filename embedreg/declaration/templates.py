"""The templates of stored declarations, and what they may contain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from embedreg.arrow.templates import Template, is_column, parse
from embedreg.core.base import EmbeddingFunction
from embedreg.core.modality import source_modality
from embedreg.declaration import digest
from embedreg.declaration.entries import RESERVED, Entry, shown
from embedreg.errors import ConfigError, MetadataError

__all__ = ["KEY", "of", "plain", "refuse_names", "stored"]

KEY = "template"  # in the reserved properties


def of(config: Any) -> Template | None:
    """Return the template of a declaration; None for one of a plain column."""
    text = getattr(config, "template", None)
    return None if text is None else parse(text)


def refuse_names(function: EmbeddingFunction) -> None:
    """Raise `ConfigError` for a function that treats texts as file names, which a template does not produce."""
    if source_modality(function).string == "name":
        raise ConfigError(
            f"a template produces texts, and {type(function).__name__} treats those as file names.",
            "fn.bind('source', 'vector')",
        )


def stored(entry: Entry) -> Template | None:
    """Return the template of a stored declaration; None for one of a plain column.

    A declaration is untrusted: embedreg writes the rendered texts, so their column must be one of such texts by name.

    Raises:
        MetadataError: it is not as embedreg writes it.
    """
    text = entry.reserved.get(KEY)
    if text is None:
        return None
    try:
        found = parse(text) if isinstance(text, str) else None
    except ConfigError:
        found = None
    own = {entry.source_column, entry.vector_column, digest.column_of(entry.reserved)}
    if found is None or not is_column(entry.source_column) or own & {*found.columns}:
        raise MetadataError(
            f"the template of column {shown(entry.vector_column)} is invalid: embedreg would not have written it.",
            "declare the column again: fn.bind(template='{title} {body}', vector='vector')",
        ).for_shell("declare the column again: embedreg attach --help")
    return found


def plain(entry: Entry) -> Entry:
    """Return a declaration that embeds the texts of a template as they are, without rendering them."""
    if KEY not in entry.reserved:
        return entry
    reserved = {name: value for name, value in entry.reserved.items() if name != KEY}
    return replace(entry, model={**entry.model, RESERVED: reserved})
