"""Functions to declare, and entries as either client writes them."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field

from embedreg import TextEmbeddingFunction, Traits, register

KEY = b"embedding_functions"
LENGTHS = {"name": "lengths", "model": {}, "source_column": "text", "vector_column": "vector"}


class Base(TextEmbeddingFunction):
    """One dimension: the text's length."""

    max_retries: int = 0

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return np.array([[len(str(text)) + 1] for text in texts], np.float32).reshape(-1, 1)


@register("like-openai")
class LikeOpenAI(Base):
    """What JavaScript's client calls otherwise, and what stock LanceDB does not know."""

    traits: ClassVar[Traits] = Traits(
        stock_fields=frozenset({"name", "dim", "api_key", "device", "max_retries"}),
        stored_names={"model": "name", "apiKey": "api_key"},
    )
    name: str = "ada"
    dim: int | None = None
    api_key: str | None = None
    device: str = "auto"
    truncate_dim: int | None = None
    prompts: dict[str, str] = Field(default_factory=dict)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]


@register("anything")
class Anything(Base):
    """Takes any value, and fields that no class has."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    value: Any = None


def stored(*entries: Any, key: Any = KEY, as_text: bool = False) -> dict[Any, Any]:
    """Return schema metadata that holds some entries."""
    text = json.dumps(list(entries))
    return {key: text if as_text else text.encode()}


def entry(name: str | None = "lengths", model: Any = None, vector: str = "vector", **beside: Any) -> dict[str, Any]:
    """Return an entry in Python's spelling."""
    return {
        "name": name,
        "model": {} if model is None else model,
        "source_column": "text",
        "vector_column": vector,
        **beside,
    }


def deep(levels: int) -> str:
    """Return a JSON list in lists."""
    return "[" * levels + "]" * levels


def with_model(model: bytes) -> bytes:
    """Return an entry's bytes around those of its `model`."""
    return b'[{"name": "lengths", "model": ' + model + b', "source_column": "text", "vector_column": "vector"}]'


def model_of(written: bytes | dict[Any, Any]) -> dict[str, Any]:
    """Return the `model` of the only entry."""
    [item] = json.loads(written[KEY] if isinstance(written, dict) else written)
    return item["model"]  # type: ignore[no-any-return]
