"""The `hashing-sparse` function: the words of a text as a sparse vector, weighted as BM25 does, without a model.

Each word is hashed to one of `dim` dimensions. The dot product of a query's and a document's vector is BM25's score
without its inverse document frequencies, which would be statistics of a corpus.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", section 3.4 (the
saturation of term frequencies by k1, and the normalization of lengths by b).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.arrow.ragged import offsets_of
from embedreg.arrow.sparse import MAX_NDIMS, SparseVectors
from embedreg.core.base import TextEmbeddingFunction, Traits
from embedreg.core.role import Role
from embedreg.functions.hashing import LONG_TEXT, MAX_NGRAM, Range, features_of

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

__all__ = ["HashingSparse"]


class HashingSparse(TextEmbeddingFunction):
    """Words as sparse vectors with BM25's term weights: fast, and deterministic on every platform.

    A word is in the dimension h % dim, where h is the hash that `hashing` has for the feature "w:<word>". A document's
    weight of a word that occurs f times is f (k1 + 1) / (f + k1 (1 - b + b l / average_words)), where l is its number
    of words and runs of words; without `average_words` the length plays no role. A query's weight is how often it has
    the word.

    Attributes:
        dim: dimensions of a vector; two words share one with a probability of 1/dim.
        word_ngrams: shortest and longest run of words.
        k1: how soon further occurrences of a word stop to count; 0 counts each word once.
        b: how much a document's length counts, 0 to 1; only with `average_words`.
        average_words: the average of l over your documents, if you know it.
        lowercase: ignore case.
        seed: another seed gives other dimensions.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "hashing-sparse"
    traits: ClassVar[Traits] = Traits(retry=False, vectors="sparse", metric="dot")

    dim: int = Field(default=2**18, ge=1, le=MAX_NDIMS)
    word_ngrams: Range = (1, 1)
    k1: float = Field(default=1.2, ge=0, allow_inf_nan=False)
    b: float = Field(default=0.75, ge=0, le=1)
    average_words: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lowercase: bool = True
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.word_ngrams
        if not 1 <= low <= high <= MAX_NGRAM:
            raise ValueError(f"word_ngrams must be (shortest, longest) with 1 <= shortest <= longest <= {MAX_NGRAM}")
        return self

    def ndims(self) -> int:
        """Return `dim`."""
        return self.dim

    def vector_traits(self) -> dict[str, Any]:
        """Return the properties of the vectors: float32 weights, of any length."""
        return {"dtype": "float32", "normalized": False}

    def model_identity(self) -> str:
        """Return the version of the method; it changes if the same configuration ever gives other vectors."""
        return "sparse-feature-hashing-1"

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> SparseVectors:
        """Embed n texts; a null counts as an empty text."""
        import numpy as np

        found = [self._counted("" if value is None else str(value)) for value in self.sanitize_input(inputs)]
        indices = np.concatenate([np.zeros(0, np.int64), *(places for places, _ in found)])
        counts = np.concatenate([np.zeros(0, np.int64), *(counted for _, counted in found)])
        offsets = offsets_of(np.array([len(places) for places, _ in found], np.int64))
        weights = counts.astype(np.float64)
        if role == "source":
            scale = np.ones(len(found))
            if self.average_words is not None:
                lengths = np.array([counted.sum() for _, counted in found], np.float64)
                scale = 1 - self.b + self.b * lengths / self.average_words
            norm = self.k1 * np.repeat(scale, np.diff(offsets))
            weights = weights * (self.k1 + 1) / (weights + norm)
        return SparseVectors(indices.astype(np.int32), weights.astype(np.float32), offsets, self.dim)

    def _counted(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the dimensions of a text's words, ascending, and how often each occurs."""
        import numpy as np

        features = features_of(self.seed, self.word_ngrams, None, self.lowercase)
        data = features.of(text) if len(text) <= LONG_TEXT else b"".join(features.pieces(text))
        hashes = np.frombuffer(data, "<u8")
        return np.unique((hashes % np.uint64(self.dim)).astype(np.int64), return_counts=True)
