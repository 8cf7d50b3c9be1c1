"""Functions of multi-vectors and sparse vectors whose vectors can be computed by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

import embedreg
from embedreg import RowError, TextEmbeddingFunction, Traits, register

D = 4


def word_vectors(text: str) -> np.ndarray:
    """Return a vector of length 1 for each word: (k, 4) float32."""
    rows = [[len(word), sum(map(word.count, "aeiou")), ord(word[0]) % 7, 1] for word in text.split()]
    made = np.array(rows, np.float32).reshape(-1, D)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@register("word-vectors")
class WordVectors(TextEmbeddingFunction):
    """A vector for each word of a text; texts with a meaning fail, as `tests.fakes.Picky` does."""

    traits: ClassVar[Traits] = Traits(vectors="multi", retry=False, window=64)

    scale: float = 1.0

    def ndims(self) -> int:
        return D

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        special: dict[str, Any] = {
            "none": None,
            "bad": RowError("refused by hand"),
            "nan": np.full((2, D), np.nan),
            "nothing": np.empty((0, D)),
            "wide": np.ones((2, D + 1)),
        }
        return [special[text] if text in special else self.scale * word_vectors(text) for text in map(str, texts)]


@register("alphabet-weights")
class Letters(TextEmbeddingFunction):
    """How often each of 26 letters occurs, as pairs of indices and weights."""

    traits: ClassVar[Traits] = Traits(vectors="sparse", retry=False, metric="dot", window=64)

    scale: float = 1.0

    def ndims(self) -> int:
        return 26

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        special: dict[str, Any] = {
            "none": None,
            "bad": RowError("refused by hand"),
            "nan": ([1], [np.nan]),
            "123": ([], []),
            "wide": ([26], [1.0]),
        }
        return [special[text] if text in special else self._counts(text) for text in map(str, texts)]

    def _counts(self, text: str) -> tuple[list[int], list[float]]:
        letters = sorted({*text.lower()} & {*map(chr, range(97, 123))})
        return [ord(each) - 97 for each in letters], [self.scale * text.lower().count(each) for each in letters]


ROWS = pa.table(
    {
        "id": range(60),
        "text": [None if row % 11 == 7 else f"note {'xyz'[row % 3]} of {row}" for row in range(60)],
        "title": [None if row % 5 == 0 else f"title {row}" for row in range(60)],
    }
)
"""Rows that each kind of column can be made of, some of them null."""


def of_each_kind() -> dict[str, embedreg.EmbeddingFunctionConfig]:
    """Declare a column of each kind of vectors for `ROWS`, by the name of the column, which is that of the kind."""
    hashing = embedreg.get("hashing").create(dim=16)
    ranges = embedreg.calibrate(hashing, [text for text in ROWS["text"].to_pylist() if text])
    made = {
        "multi": WordVectors.create().bind("text", "multi"),
        "sparse": Letters.create().bind("text", "sparse"),
        "template": hashing.bind(template="{title}: {text}", vector="template"),
    }
    for dtype in ("int8", "uint8", "binary", "ubinary"):
        made[dtype] = hashing.bind("text", dtype, dtype=dtype, ranges=ranges if dtype.endswith("int8") else None)
    return made
