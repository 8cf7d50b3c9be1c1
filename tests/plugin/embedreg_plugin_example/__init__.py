"""A plug-in for embedreg: texts as the frequencies of their letters. Small enough to check by hand."""

from collections.abc import Sequence

import numpy as np

from embedreg import TextEmbeddingFunction

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class LetterFrequencies(TextEmbeddingFunction):
    """Count the letters a to z, and everything else together.

    Attributes:
        case_sensitive: count capitals with everything else, instead of as their small letters.
        normalize: scale each vector to unit length.
    """

    case_sensitive: bool = False
    normalize: bool = True

    def ndims(self) -> int:
        """One axis for each letter and one for the rest, so that no text gives a vector of zeros."""
        return len(LETTERS) + 1

    def generate_embeddings(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, 27) float32, one row a text."""
        out = np.zeros((len(texts), self.ndims()), np.float32)
        for row, text in zip(out, texts, strict=True):
            for letter in text if self.case_sensitive else text.lower():
                row[LETTERS.find(letter)] += 1  # find gives -1, the last axis, for anything else
        if self.normalize:
            out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return out
