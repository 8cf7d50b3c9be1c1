"""Prompts of remote text functions, and the model families that need them.

A service that takes plain texts leaves the model's prompts to the caller. Vectors without them are valid and worse, so
a model that is known to need them is named when it is used without.
"""

from __future__ import annotations

import logging
import re
from typing import Any, NamedTuple

from embedreg.core.role import Role
from embedreg.runtime.remote.vendor import VendorFunction

__all__ = ["FAMILIES", "Family", "PromptedFunction", "family_of"]

log = logging.getLogger("embedreg")


class Family(NamedTuple):
    """Models that were trained with prompts.

    Attributes:
        pattern: of the model's name, in lower case and without owner and tag.
        query, document: what its authors put before queries and documents.
        source: where they say so.
    """

    pattern: str
    query: str
    document: str
    source: str


_QWEN = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
FAMILIES = (
    Family(r"(multilingual-)?e5-(small|base|large)(-v2)?", "query: ", "passage: ", "model card of intfloat/e5-base-v2"),
    Family(
        r"(multilingual-)?e5-\w+-instruct|e5-mistral.*",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
        "",
        "model card of intfloat/multilingual-e5-large-instruct",
    ),
    Family(
        r"bge-(small|base|large)-en(-v1\.5)?",
        "Represent this sentence for searching relevant passages: ",
        "",
        "model card of BAAI/bge-large-en-v1.5",
    ),
    Family(
        r"nomic-embed-text.*", "search_query: ", "search_document: ", "model card of nomic-ai/nomic-embed-text-v1.5"
    ),
    Family(
        r"mxbai-embed-large.*",
        "Represent this sentence for searching relevant passages: ",
        "",
        "model card of mixedbread-ai/mxbai-embed-large-v1",
    ),
    Family(
        r"snowflake-arctic-embed(2.*|.*-v2.*)", "query: ", "", "model card of Snowflake/snowflake-arctic-embed-l-v2.0"
    ),
    Family(
        r"snowflake-arctic-embed.*",
        "Represent this sentence for searching relevant passages: ",
        "",
        "model card of Snowflake/snowflake-arctic-embed-l",
    ),
    Family(r"qwen3-embedding.*", _QWEN, "", "model card of Qwen/Qwen3-Embedding-0.6B"),
    Family(
        r"gte-qwen2-.*",
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: ",
        "",
        "model card of Alibaba-NLP/gte-Qwen2-1.5B-instruct",
    ),
    Family(
        r"embeddinggemma.*",
        "task: search result | query: ",
        "title: none | text: ",
        "model card of google/embeddinggemma-300m",
    ),
)


def family_of(name: str) -> Family | None:
    """Return the family of a model by its name, with or without owner, path and tag; None if it needs no prompts."""
    plain = name.lower().rpartition("/")[2].partition(":")[0]
    return next((family for family in FAMILIES if re.fullmatch(family.pattern, plain)), None)


def missing_prompts(name: str, query: str | None, document: str | None) -> str | None:
    """Return what is to be said of a model that needs prompts and is used without; None otherwise."""
    family = family_of(name) if query is None and document is None else None
    if family is None:
        return None
    return (
        f"{name!r} was trained with prompts and is used without: query_prompt={family.query!r}, "
        f"document_prompt={family.document!r} ({family.source})"
    )


_named: set[str] = set()


class PromptedFunction(VendorFunction):
    """A function of a service that takes plain texts: a subclass has the fields `query_prompt` and `document_prompt`.

    None is no prompt, and "" is one: a model that needs prompts is then not named.
    """

    def _prompted(self, batch: list[str], role: Role) -> list[str]:
        """Return texts with the prompt of their role."""
        prompt = self._prompt_of(role)
        if (said := self._missing()) is not None and said not in _named:
            _named.add(said)
            log.warning("%s", said)
        return [prompt + text for text in batch] if prompt else batch

    def _prompt_of(self, role: Role) -> str:
        return getattr(self, "query_prompt" if role == "query" else "document_prompt", None) or ""

    def _missing(self) -> str | None:
        prompts = (getattr(self, name, None) for name in ("query_prompt", "document_prompt"))
        return missing_prompts(getattr(self, "name", "") or "", *prompts)

    def _remarks(self) -> list[str]:
        said = self._missing()
        return [*super()._remarks(), *([said] if said else [])]

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors; `prompts` is None if queries and sources are embedded alike."""
        query, document = self._prompt_of("query"), self._prompt_of("source")
        prompts = None if query == document == "" else {"query": query, "document": document}
        return {**super().vector_traits(), "prompts": prompts}
