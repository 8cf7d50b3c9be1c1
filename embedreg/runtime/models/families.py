"""Model families that were trained with a text in front of queries and documents: a table, one line each.

Vectors without it are valid, and worse for searching, and nothing else shows that something is missing.
"""

from __future__ import annotations

import functools
import re
from pathlib import PurePath
from typing import NamedTuple

__all__ = ["FAMILIES", "Family", "find", "used_without"]


class Family(NamedTuple):
    """Models that were trained with prompts.

    Attributes:
        pattern: of the model's name, in lower case and without owner and tag.
        query, document: what its authors put before queries and documents; "" for nothing.
        source: a model of the hub, whose card documents them.
        own: whether the model's files hold the prompts, in the form that the sentence-transformers library reads.
    """

    pattern: str
    query: str
    document: str
    source: str
    own: bool = False


_SEARCHING = "Represent this sentence for searching relevant passages: "
_WEB = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_ZH = "为这个句子生成表示以用于检索相关文章\uff1a"
_NOMIC = ("search_query: ", "search_document: ")
_GEMMA = ("task: search result | query: ", "title: none | text: ")
_JINA = ("Represent the query for retrieving evidence documents: ", "Represent the document for retrieval: ")

FAMILIES = (
    Family(r"(multilingual-)?e5-(small|base|large)(-v2)?", "query: ", "passage: ", "intfloat/e5-base-v2"),
    Family(r"(multilingual-)?e5-\w+-instruct", f"{_WEB} ", "", "intfloat/multilingual-e5-large-instruct"),
    Family(r"e5-mistral.*", f"{_WEB} ", "", "intfloat/e5-mistral-7b-instruct"),
    Family(r"bge-(small|base|large)-en(-v1\.5)?", _SEARCHING, "", "BAAI/bge-large-en-v1.5"),
    Family(r"bge-(small|base|large)-zh(-v1\.5)?", _ZH, "", "BAAI/bge-large-zh-v1.5"),
    Family(r"nomic-embed-text-v2-moe", *_NOMIC, "nomic-ai/nomic-embed-text-v2-moe", own=True),
    Family(r"nomic-embed-text.*", *_NOMIC, "nomic-ai/nomic-embed-text-v1.5"),
    Family(r"modernbert-embed-(base|large)", *_NOMIC, "nomic-ai/modernbert-embed-base"),
    Family(r"mxbai-embed-large.*", _SEARCHING, "", "mixedbread-ai/mxbai-embed-large-v1", own=True),
    Family(r"uae-large-v1", _SEARCHING, "", "WhereIsAI/UAE-Large-V1"),
    Family(r"snowflake-arctic-embed(2.*|.*-v2.*)", "query: ", "", "Snowflake/snowflake-arctic-embed-l-v2.0", own=True),
    Family(r"snowflake-arctic-embed.*", _SEARCHING, "", "Snowflake/snowflake-arctic-embed-l", own=True),
    Family(r"qwen3-embedding.*", _WEB, "", "Qwen/Qwen3-Embedding-0.6B", own=True),
    Family(r"gte-qwen2-.*", f"{_WEB} ", "", "Alibaba-NLP/gte-Qwen2-1.5B-instruct", own=True),
    Family(r"jina-embeddings-v3", *_JINA, "jinaai/jina-embeddings-v3", own=True),
    Family(r"embeddinggemma.*", *_GEMMA, "google/embeddinggemma-300m", own=True),
)


@functools.lru_cache(maxsize=256)
def find(name: str) -> Family | None:
    """Return the family of a model by its name, with or without owner, path and tag; None if it needs no prompts."""
    plain = PurePath(name.lower()).name.partition(":")[0]
    return next((family for family in FAMILIES if re.fullmatch(family.pattern, plain)), None)


def used_without(name: str, query: str | None, document: str | None) -> str | None:
    """Return a note on a model that needs prompts and is used without; None otherwise.

    Args:
        query, document: the prompts that it is used with; None for no decision, "" for the decision to have none.
    """
    family = find(name) if query is None and document is None else None
    if family is None:
        return None
    return (
        f"{name!r} was trained with prompts and is used without: query_prompt={family.query!r}, "
        f"document_prompt={family.document!r} (model card of {family.source})"
    )
