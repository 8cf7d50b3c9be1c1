"""One function that keeps the contract, and those that break its promises about vectors, as authors do by mistake."""

from __future__ import annotations

import functools
import random
import time
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from embedreg import TEXT, EmbeddingFunction, TextEmbeddingFunction, Traits, register

WIDTH = 16
KEY = "sk-contract-0815-4711"


@register("specimen")
class Good(TextEmbeddingFunction):
    """Counts a text's letters by the CRC of each, which any process agrees on.

    Attributes:
        prefix: put before each text.
        api_key: not needed; it must be kept all the same.
    """

    prefix: str = ""
    batch_size: int = 32
    api_key: str | None = None

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    def ndims(self) -> int:
        return WIDTH

    def vector(self, text: Any) -> np.ndarray:
        """Return the vector of one text: (16,) float32, whole numbers."""
        out = np.zeros(WIDTH, np.float32)
        for place, letter in enumerate(f"{self.prefix}{text}"):
            out[zlib.crc32(letter.encode()) % WIDTH] += 1 + place % 3
        return out

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return np.array([self.vector(text) for text in texts], np.float32).reshape(-1, WIDTH)


@register("specimen-bytes")
class Pictures(EmbeddingFunction):
    """Rows of bytes, in the place of pictures, and queries of text: each by its histogram."""

    traits: ClassVar[Traits] = Traits(modality="image", metric="l2")

    def ndims(self) -> int:
        return WIDTH

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        rows = [np.frombuffer(image, np.uint8) % WIDTH for image in self.sanitize_input(images)]
        return np.array([np.bincount(row, minlength=WIDTH) for row in rows], np.float32).reshape(-1, WIDTH)

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self.compute_source_embeddings([query.encode() if isinstance(query, str) else query])


# -- shape and values -------------------------------------------------------------------------------------------------


class NumpyWidth(Good):
    """`ndims()` gives numpy's int, which JSON does not take."""

    def ndims(self) -> Any:
        return np.int64(WIDTH)


class GrowingWidth(Good):
    """`ndims()` is a guess until the first call."""

    def ndims(self) -> int:
        return self._ndims or 8

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        self._ndims = WIDTH
        return super().generate_embeddings(texts)


class WrongWidth(Good):
    """`ndims()` and the vectors differ."""

    def ndims(self) -> int:
        return WIDTH + 1


class LosesARow(Good):
    """The last row is missing."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return list(super().generate_embeddings(texts))[:-1]


class GivesNone(Good):
    """Gives up on any text with an accent."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return [self.vector(text) if str(text).isascii() else None for text in texts]


class Float64(Good):
    """Returns numpy's default dtype instead of float32."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return super().generate_embeddings(texts).astype(np.float64)


class NotFinite(Good):
    """A division by the number of blanks."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        blanks = np.array([str(text).count(" ") for text in texts], np.float32)[:, None]
        with np.errstate(all="ignore"):
            return super().generate_embeddings(texts) / blanks


class ZeroVector(Good):
    """Zeros for what it does not know."""

    def vector(self, text: Any) -> np.ndarray:
        return super().vector(text) * np.float32(str(text).isascii())


class Constant(Good):
    """Every text has the same vector."""

    def vector(self, text: Any) -> np.ndarray:
        return np.ones(WIDTH, np.float32)


class NotUnit(Good):
    """Says that it normalizes, and does not."""

    normalize: bool = True


class FlatNothing(Good):
    """Zero rows have lost their second axis."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return np.array([self.vector(text) for text in texts], np.float32)


class Squeezing(Good):
    """One row has lost its first axis."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return super().generate_embeddings(texts).squeeze()


class Letters(Good):
    """Treats a single text as a list of letters."""

    def compute_source_embeddings(self, texts: TEXT, *args: Any, **kwargs: Any) -> Any:
        return self.generate_embeddings(list(texts))


# -- rows and their neighbours ----------------------------------------------------------------------------------------


class BatchesBackwards(Good):
    """The last batch comes first."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        rows = list(texts)
        starts = reversed(range(0, max(1, len(rows)), self.batch_size))
        parts = [super(BatchesBackwards, self).generate_embeddings(rows[at : at + self.batch_size]) for at in starts]
        return np.concatenate(parts)


class Sorting(Good):
    """Sorts by length, for speed, and forgets to undo it."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return super().generate_embeddings(sorted(texts, key=len))


class Neighbourly(Good):
    """Takes the mean of the batch off each vector."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        vectors = super().generate_embeddings(texts)
        return vectors - vectors.mean(axis=0) / 2 if len(vectors) else vectors


class Random(Good):
    """Dropout that was left on."""

    def vector(self, text: Any) -> np.ndarray:
        return super().vector(text) * np.float32(random.uniform(0.9, 1.1))


class KeepsRowsOnSelf(Good):
    """What belongs to one call is kept where every thread finds it."""

    _rows: Any = None

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        self._rows = list(texts)
        time.sleep(0.01)  # a model would take longer
        return super().generate_embeddings(self._rows)


# -- what goes in and what comes out ----------------------------------------------------------------------------------


class TakesScalars(Good):
    """What an Arrow array is made of goes into the vectors."""

    def compute_source_embeddings(self, texts: TEXT, *args: Any, **kwargs: Any) -> Any:
        return self.generate_embeddings([repr(text) for text in texts])


class Mutating(Good):
    """Cleans the caller's list."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        for place, text in enumerate(texts):
            texts[place] = f" {text}".strip()
        texts.sort()
        return super().generate_embeddings(texts)


class Aliasing(Good):
    """Writes each result into one buffer."""

    _buffer: Any = None

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        vectors = super().generate_embeddings(texts)
        if self._buffer is None or len(self._buffer) < len(vectors):
            self._buffer = np.zeros((len(vectors), WIDTH), np.float32)
        self._buffer[: len(vectors)] = vectors
        return self._buffer[: len(vectors)]


@functools.lru_cache(maxsize=8)
def _cached(function: Good, texts: tuple[str, ...]) -> Any:
    return np.stack([function.vector(text) for text in texts])


class HandsOutItsCache(Good):
    """Gives the array that it keeps, for the caller to write into."""

    def generate_embeddings(self, texts: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        return _cached(self, tuple(texts)) if len(texts) else super().generate_embeddings(texts)


class RetriesOtherwise(Good):
    """What engines call is another thing than what its author tests."""

    def compute_source_embeddings_with_retry(self, *args: Any, **kwargs: Any) -> Any:
        return self.compute_source_embeddings(*args, **kwargs) * 2


class BareQuery(Good):
    """A query gives a vector where a list of one is due."""

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return self.vector(query).tolist()


class AwaitsTheFirst(Good):
    """An awaited query is cut to its first letter."""

    async def acompute_query_embeddings(self, query: Any) -> Any:
        return self.compute_query_embeddings(query[:1])


# -- roles ------------------------------------------------------------------------------------------------------------


@register("specimen-roles")
class Roles(Good):
    """Embeds queries with a prompt, in batches; the others here break what it keeps."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return super().generate_embeddings([("ask: " if role == "query" else "") + text for text in inputs])

    def vector_traits(self) -> dict[str, Any]:
        return {**super().vector_traits(), "prompts": {"query": "ask: ", "document": ""}}


class IgnoresTheRole(Roles):
    """States a prompt for queries, and puts it nowhere."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return super().compute_embeddings(inputs, "source")


class SaysAlike(Roles):
    """Says that queries are embedded as sources are, and puts a prompt before them."""

    def vector_traits(self) -> dict[str, Any]:
        return {**super().vector_traits(), "prompts": None}


class NeighbourlyQueries(Roles):
    """Centres each batch of queries."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        made = super().compute_embeddings(inputs, role)
        return made - made.mean(axis=0) if role == "query" and len(made) else made


class SortsQueries(Roles):
    """Gives a batch of queries the vectors of its sorted ones."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return super().compute_embeddings(sorted(inputs) if role == "query" else inputs, role)


class SinglesDiffer(Roles):
    """Puts another prompt before a query that comes alone."""

    def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
        return self.generate_embeddings(["what: " + query])

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return super().compute_embeddings(inputs, role)


class SourcesDiffer(Roles):
    """Embeds sources otherwise where they come by LanceDB's method."""

    def compute_source_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return self.generate_embeddings([text + "." for text in self.sanitize_input(texts)])

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return super().compute_embeddings(inputs, role)


class LosesAQuery(Roles):
    """Leaves the last query out of a batch."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        made = super().compute_embeddings(inputs, role)
        return made[:-1] if role == "query" and len(made) > 1 else made


class NoneOfNoQueries(Roles):
    """Fails without any query."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        return super().compute_embeddings(inputs or [""], role)


class GivesUpOnAQuery(Roles):
    """Has no vector for a query with an accent."""

    def compute_embeddings(self, inputs: Any, role: Any = "source") -> Any:
        made = super().compute_embeddings(inputs, role)
        return [row if role == "source" or text.isascii() else None for row, text in zip(made, inputs, strict=True)]
