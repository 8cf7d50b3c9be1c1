"""Embedding functions whose vectors can be computed by hand: no mocks, small real subclasses."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from embedreg import RowError, TextEmbeddingFunction, register


def lengths(text: str) -> list[float]:
    """Return the vector of a text: its length, its vowels, its words."""
    return [float(len(text)), float(sum(text.count(vowel) for vowel in "aeiou")), float(len(text.split()))]


@register("lengths")
class Lengths(TextEmbeddingFunction):
    """Embeds a text as (length, vowels, words), and remembers what reached it."""

    seen: ClassVar[list[str]] = []
    max_retries: int = 0
    scale: float = 1.0

    def ndims(self) -> int:
        return 3

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        texts = [str(text) for text in texts]
        self.seen.extend(texts)
        return np.array([lengths(text) for text in texts], np.float32).reshape(-1, 3) * np.float32(self.scale)


@register("picky-rows")
class Picky(Lengths):
    """Fails rows by their own fault: "none" has no vector, "bad" is refused, "nan" and "inf" are not finite."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        special = {
            "none": None,
            "bad": RowError("refused by hand"),
            "nan": [1, float("nan"), 1],
            "inf": [float("inf")] * 3,
        }
        return [special.get(text, lengths(text)) for text in map(str, texts)]
