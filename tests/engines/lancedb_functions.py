"""Embedding functions whose vectors can be counted by hand; new processes import this file to know them too."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
from pydantic import PrivateAttr

from embedreg import RowError, TextEmbeddingFunction, register
from embedreg.errors import CallError

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def counts(text: str, first: int = 26) -> list[float]:
    """Return how often each of the first letters of the alphabet occurs in a text."""
    return [float(text.lower().count(letter)) for letter in LETTERS[:first]]


@register("letter-counts")
class Letters(TextEmbeddingFunction):
    """Counts letters. LETTERS_OFF in the environment stands for weights that have changed."""

    seen: ClassVar[list[str]] = []
    max_retries: int = 0
    first: int = 26

    def ndims(self) -> int:
        return self.first

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        texts = [str(text) for text in texts]
        self.seen.extend(texts)
        rows = np.array([counts(text, self.first) for text in texts], np.float32).reshape(-1, self.first)
        return np.roll(rows, int(os.environ.get("LETTERS_OFF", "0")), axis=1)


@register("choosy-letters")
class ChoosyLetters(Letters):
    """Refuses the row "bad" by its own fault; the text "outage" takes the whole call down."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        texts = [str(text) for text in texts]
        if "outage" in texts:
            raise CallError("the service is down.", "wait a little")
        return [RowError("refused by hand") if text == "bad" else counts(text) for text in texts]


@register("heavy-letters")
class HeavyLetters(TextEmbeddingFunction):
    """Loads its model as it is constructed, as classes written for LanceDB often do."""

    loads: ClassVar[int] = 0
    first: int = 26
    _model: Any = PrivateAttr()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        type(self).loads += 1
        self._model = counts

    def ndims(self) -> int:
        return self.first

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return [self._model(text, self.first) for text in texts]
