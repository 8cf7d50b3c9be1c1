"""Functions that may have made a column: what is installed and needs no key, host or download, and variants of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from embedreg.columns.arguments import one_vector
from embedreg.core.base import EmbeddingFunction
from embedreg.core.canonical import defaults, registered_name, semantic_config
from embedreg.core.fields import sensitive_fields
from embedreg.core.lancedb_hooks import unwrap
from embedreg.core.role import Role
from embedreg.errors import EmbedregError, InputError
from embedreg.registry import get_registry
from embedreg.security.addresses import is_path
from embedreg.support.display import plain

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PROMPTS", "Vectors", "checked", "described", "installed", "unprompted"]

PROMPTS = (
    "query: ",
    "passage: ",
    "search_query: ",
    "search_document: ",
    "title: ",
    "title: none | text: ",
    "task: search result | query: ",
    "clustering: ",
    "classification: ",
    "Represent this sentence for searching relevant passages: ",
)
"""Prompts of well-known models, for queries or documents; tried before the sources of a column."""

_SEEDS = (0, 1)  # of hashing
_SHOWN = 40  # characters of a field's value


def described(function: EmbeddingFunction) -> str:
    """Return a function's name and the fields that make its vectors differ from the default, on one line."""
    cls = type(function)
    usual, hidden = defaults(cls), sensitive_fields(cls)
    own = {k: v for k, v in semantic_config(function).items() if k not in hidden and v != usual.get(k)}
    fields = ", ".join(f"{key}={_shown(value)}" for key, value in own.items())
    name = registered_name(cls) or cls.__name__
    return f"{name} ({fields})" if fields else name


def _shown(value: object) -> str:
    """Return a field's value; of a long path only its end, which identifies it better."""
    text = plain(value)
    return text if len(text) <= _SHOWN else f"…{text[1 - _SHOWN :]}" if is_path(text) else plain(text, _SHOWN)


def checked(candidates: Any) -> list[EmbeddingFunction] | None:
    """Return a caller's candidates as a list; None for none given.

    Raises:
        InputError: one of them is not an embedding function. ConfigError: it does not return one vector a row.
    """
    if candidates is None:
        return None
    given = [candidates] if isinstance(candidates, EmbeddingFunction) else list(candidates)
    made = [unwrap(each) for each in given]
    for each in made:
        if not isinstance(each, EmbeddingFunction):
            raise InputError(
                f"a candidate is an embedding function, not a {type(each).__name__}.", "embedreg.get(...).create(...)"
            )
        one_vector(each, "audit and identify compare")
    return made


def installed(width: int) -> list[EmbeddingFunction]:
    """Return functions of a width that run here without a key, a host or a download, in their default settings.

    They are this process's own choice: nothing is taken from the data but its width.
    """
    registry = get_registry()
    found: list[EmbeddingFunction] = [registry.get("hashing").create(dim=width, seed=seed) for seed in _SEEDS]
    try:
        model: Any = registry.get("sentence-transformers").create()
        model._find_files(download=False)
        if model.ndims() == width:
            found.append(model)
    except (EmbedregError, ImportError):  # the library is not installed, or its default model not on this machine
        pass
    return found


def unprompted(function: EmbeddingFunction) -> EmbeddingFunction | None:
    """Return the function with its document prompt off; None if it has none to switch off."""
    if "document_prompt" not in type(function).model_fields:
        return None
    prompts = function.vector_traits().get("prompts")
    if not prompts or not prompts.get("document"):
        return None
    return function.model_copy(update={"document_prompt": ""})


class Vectors:
    """The unit vectors of one function, each input embedded once."""

    def __init__(self, function: EmbeddingFunction) -> None:
        self.function = function
        self._known: dict[tuple[Role, Any], np.ndarray] = {}

    def of(self, texts: Iterable[Any], role: Role = "source") -> np.ndarray:
        """Return (n, d) float64 for texts, or images as bytes or names; one without a vector has zeros.

        Raises:
            CallError and the function's own errors.
        """
        import numpy as np

        from embedreg.columns.vectors import unit

        wanted = list(texts)
        missing = list(dict.fromkeys(text for text in wanted if (role, text) not in self._known))
        for text, row in zip(missing, unit(embedded(self.function, missing, role)), strict=True):
            self._known[role, text] = row
        if not wanted:
            return np.zeros((0, self.function.ndims()))
        return np.stack([self._known[role, text] for text in wanted])


def embedded(function: EmbeddingFunction, values: Any, role: Role = "source") -> np.ndarray:
    """Embed values again, past the vector cache and the stored probe: (n, d) float32; zeros for a row without a vector.

    An audit is run to find functions that no longer agree with their probe, so that is not an error here.
    """
    from embedreg.embedding.column import embed_column
    from embedreg.runtime.vectors import disk

    with disk.paused():  # the cache must not return the stored vectors
        return embed_column(function, values, role, zero_vectors="keep", declared={}).matrix


def each_role(function: EmbeddingFunction) -> Iterator[Role]:
    """Yield the roles in which a function returns different vectors, the source first."""
    yield "source"
    if function.vector_traits().get("prompts"):
        yield "query"
