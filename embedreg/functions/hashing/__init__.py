"""The `hashing` function: vectors from a text's characters, without a model, a download or a dependency except numpy.

A text's word and character n-grams are counted into `dim` buckets, with signs; a hash chooses both. Texts that share
words or parts of words are near each other; their meaning plays no role.

Source: Weinberger, Dasgupta, Langford, Smola and Attenberg 2009, "Feature Hashing for Large Scale Multitask Learning"
(the signed hash of section 2); character n-grams inside word boundaries as in Bojanowski et al. 2017, section 3.2.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import TextEmbeddingFunction, Traits
from embedreg.core.fields import MAX_NDIMS

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

__all__ = ["HashingEmbeddings", "features_of"]

Range = tuple[int, int]

HASH_BYTES = 8
MAX_NGRAM = 16
CHUNK_COUNTS = 2**20  # buckets of the rows that are counted at a time: 8 MiB, which fits into the processor's cache
CHUNK_CHARACTERS = 2**20  # of the texts that are counted at a time: each character adds some features of 8 bytes
LONG_TEXT = 2**16  # characters; a longer text is counted separately, in parts
LONG_WORD = 1024  # characters; longer words are not cached
MEMO = 100_000  # words, and as many runs of words, whose hashes are cached: some tens of megabytes

_MANY_MARKS = 1024  # consecutive combining marks, and the minimum length of a text that is searched for them
_PARTS = 16_384  # words or runs of a long text at a time
_WORD = re.compile(r"\w+")


class HashingEmbeddings(TextEmbeddingFunction):
    """Signed feature hashing of word and character n-grams: fast, and deterministic on every platform.

    A feature is a kind ("w" for words, "c" for characters), a colon and the n-gram (its words joined by spaces), in
    UTF-8. Its hash is BLAKE2b of 8 bytes with the seed as salt (16 bytes, little-endian, signed), read as a
    little-endian number h. Bucket h % dim gets +1, or -1 where the highest bit of h is set. The character n-grams of a
    word are those of "<word>". Nothing depends on Python's `hash()`, on the platform or the process.

    Attributes:
        dim: dimensions of a vector.
        word_ngrams: shortest and longest run of words, or None for no words.
        char_ngrams: shortest and longest run of characters, or None for none.
        normalize: scale vectors to length 1; otherwise they hold counts.
        lowercase: ignore case.
        seed: another seed gives other vectors, unrelated to the first.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "hashing"  # also where it is imported directly
    traits: ClassVar[Traits] = Traits(retry=False)

    dim: int = Field(default=256, ge=1, le=MAX_NDIMS)
    word_ngrams: Range | None = (1, 2)
    char_ngrams: Range | None = (3, 4)
    normalize: bool = True
    lowercase: bool = True
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.word_ngrams is None and self.char_ngrams is None:
            raise ValueError("word_ngrams and char_ngrams cannot both be None")
        for name in ("word_ngrams", "char_ngrams"):
            low, high = getattr(self, name) or (1, 1)
            if not 1 <= low <= high <= MAX_NGRAM:
                raise ValueError(f"{name} must be (shortest, longest) with 1 <= shortest <= longest <= {MAX_NGRAM}")
        return self

    def ndims(self) -> int:
        """Return `dim`."""
        return self.dim

    def model_identity(self) -> str:
        """Return the version of the method; it changes if the same configuration ever gives other vectors."""
        return "feature-hashing-1"

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Embed n texts: (n, dim) float32; a null counts as an empty text."""
        import numpy as np

        values = ["" if value is None else str(value) for value in self.sanitize_input(texts)]
        features = features_of(self.seed, self.word_ngrams, self.char_ngrams, self.lowercase)
        dim, rows = self.dim, max(1, CHUNK_COUNTS // self.dim)
        made = np.empty((len(values), dim), np.float32)
        for start, stop in _chunks(values, rows):
            if stop == start + 1 and len(values[start]) > LONG_TEXT:
                counts = _count_long(features.pieces(values[start]), dim)
            else:
                counts = _count([features.of(text) for text in values[start:stop]], dim)
            if self.normalize:
                # Counts are integers: the sum of their squares is exact in any order of addition.
                counts = counts / np.sqrt((counts * counts).sum(axis=1, keepdims=True))
            made[start:stop] = counts
        return made


def _chunks(texts: list[str], rows: int) -> Iterator[tuple[int, int]]:
    """Yield chunks of texts of at most `rows` rows and `CHUNK_CHARACTERS`; a text over `LONG_TEXT` is a chunk."""
    start = characters = 0
    for row, text in enumerate(texts):
        apart = characters + len(text) > CHUNK_CHARACTERS or max(len(text), len(texts[row - 1])) > LONG_TEXT
        if row > start and (row - start == rows or apart):
            yield start, row
            start, characters = row, 0
        characters += len(text)
    if texts:
        yield start, len(texts)


def _count_long(pieces: Iterable[bytes], dim: int) -> np.ndarray:
    """Count the features of one text, given in parts: (1, dim) float64."""
    import numpy as np

    counts, first = np.zeros((1, dim)), b""
    for piece in pieces:
        first = first or piece[:HASH_BYTES]
        hashes = np.frombuffer(piece, "<u8")
        signs = np.where(hashes >> np.uint64(63), -1.0, 1.0)
        counts[0] += np.bincount((hashes % np.uint64(dim)).astype(np.int64), signs, dim)
    if not counts.any():
        counts[0, int.from_bytes(first, "little") % dim] = 1.0
    return counts


def _count(features: list[bytes], dim: int) -> np.ndarray:
    """Count the features of m texts, at least one each, into signed buckets: (m, dim) float64."""
    import numpy as np

    lengths = np.fromiter((len(item) // HASH_BYTES for item in features), np.int64, len(features))
    hashes = np.frombuffer(b"".join(features), "<u8")
    buckets = (hashes % np.uint64(dim)).astype(np.int64)
    signs = np.where(hashes >> np.uint64(63), -1.0, 1.0)
    rows = np.repeat(np.arange(len(features)) * dim, lengths)
    counts = np.bincount(rows + buckets, signs, len(features) * dim).reshape(len(features), dim)
    # All signs may cancel, above all for a small dim, and a vector of zeros has no direction.
    for row in np.flatnonzero(~counts.any(axis=1)):
        counts[row, buckets[lengths[:row].sum()]] = 1.0
    return counts


def _nfkc(text: str) -> str:
    """Return a text in Unicode's form NFKC, in time linear in its length.

    Normalizing sorts a run of combining marks in quadratic time: two million of them, which are 4 MB, took hours.
    A sorted run takes linear time, so long runs are sorted first, which does not change the result.
    """
    if len(text) > _MANY_MARKS:
        text = _runs_of_marks().sub(_in_order, text)
    return unicodedata.normalize("NFKC", text)


@functools.cache
def _runs_of_marks() -> re.Pattern[str]:
    """Return a pattern for long runs of characters that decompose to combining marks only."""
    forms = ((char, unicodedata.normalize("NFKD", char)) for char in map(chr, range(0x300, 0x1F000)))
    marks = "".join(char for char, form in forms if all(map(unicodedata.combining, form)))
    return re.compile(f"[{marks}]{{{_MANY_MARKS},}}")


def _in_order(run: re.Match[str]) -> str:
    parts = {char: unicodedata.normalize("NFKD", char) for char in set(run[0])}
    return "".join(sorted("".join(map(parts.__getitem__, run[0])), key=unicodedata.combining))


class _Features:
    """Computes the hashes of a text's features; the hashes of words are cached, since most words are frequent."""

    def __init__(self, seed: int, words: Range | None, characters: Range | None, lowercase: bool) -> None:
        self.words, self.characters, self.lowercase = words, characters, lowercase
        salt = seed.to_bytes(16, "little", signed=True)
        self._start = hashlib.blake2b(digest_size=HASH_BYTES, salt=salt)
        self._known_words: dict[str, bytes] = {}
        self._known_runs: dict[str, bytes] = {}

    def of(self, text: str) -> bytes:
        """Return the hashes of a text's features, 8 bytes each; at least one."""
        if not text.isascii():
            text = _nfkc(text)  # one code point sequence for each accented letter
        if self.lowercase:
            text = text.lower()
        words = _WORD.findall(text) or [text.strip()]  # punctuation alone is a word too
        known = self._known_words
        parts = [known.get(word) or self._learn_word(word) for word in words]
        if self.words is not None and self.words[1] > 1:
            known = self._known_runs
            parts += [known.get(run) or self._learn_run(run) for run in self._runs(words)]
        return b"".join(parts) or self._hash("w:")

    def pieces(self, text: str) -> Iterator[bytes]:
        """Yield the hashes that `of` returns, in parts, so that memory does not grow with the text's features.

        Their order differs except for the first; the sum of integers does not depend on it.
        """
        if not text.isascii():
            text = _nfkc(text)
        if self.lowercase:
            text = text.lower()
        some = False
        for piece in _joined(feature for word in _words(text) for feature in self._of_word(word)):
            some = True
            yield piece
        if self.words is not None and self.words[1] > 1:
            for piece in _joined(self._long_runs(text, *self.words)):
                some = True
                yield piece
        if not some:
            yield self._hash("w:")

    def _of_word(self, word: str) -> Iterator[bytes]:
        if len(word) <= LONG_WORD:
            yield self._known_words.get(word) or self._learn_word(word)
            return
        if self.words is not None and self.words[0] == 1:
            yield self._hash(f"w:{word}")
        if self.characters is not None:
            whole = f"<{word}>"
            for n in range(self.characters[0], self.characters[1] + 1):
                for at in range(len(whole) - n + 1):
                    yield self._hash(f"c:{whole[at : at + n]}")

    def _long_runs(self, text: str, low: int, high: int) -> Iterator[bytes]:
        """Yield the hashes of the runs of two words and more, each after its last word."""
        recent: deque[str] = deque(maxlen=high)
        for word in _words(text):
            recent.append(word)
            for n in range(max(low, 2), len(recent) + 1):
                run = " ".join(list(recent)[-n:])
                yield self._known_runs.get(run) or (
                    self._learn_run(run) if len(run) <= LONG_WORD else self._hash(f"w:{run}")
                )

    def _runs(self, words: list[str]) -> list[str]:
        """Return the runs of two words and more."""
        low, high = self.words or (1, 1)
        if (low, high) in ((1, 2), (2, 2)):
            return [f"{a} {b}" for a, b in itertools.pairwise(words)]
        lengths = range(max(low, 2), high + 1)
        return [" ".join(words[at : at + n]) for n in lengths for at in range(len(words) - n + 1)]

    def _learn_word(self, word: str) -> bytes:
        """Return the hashes of a word and of its character n-grams, and cache them."""
        features = [f"w:{word}"] if self.words is not None and self.words[0] == 1 else []
        if self.characters is not None:
            low, high = self.characters
            whole = f"<{word}>"
            features += [f"c:{whole[at : at + n]}" for n in range(low, high + 1) for at in range(len(whole) - n + 1)]
        return _keep(self._known_words, word, b"".join([self._hash(feature) for feature in features]))

    def _learn_run(self, run: str) -> bytes:
        return _keep(self._known_runs, run, self._hash(f"w:{run}"))

    def _hash(self, feature: str) -> bytes:
        state = self._start.copy()  # takes half the time of a new state with the salt
        state.update(feature.encode(errors="surrogatepass"))  # wrong decoding leaves lone surrogates in texts
        return state.digest()


def _words(text: str) -> Iterator[str]:
    """Yield the words of a text; punctuation alone is a word too."""
    word = None
    for word in _WORD.finditer(text):
        yield word[0]
    if word is None:
        yield text.strip()


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the parts joined, thousands at a time; yield nothing if all are empty."""
    while some := list(itertools.islice(parts, _PARTS)):
        if joined := b"".join(some):
            yield joined


def _keep(memo: dict[str, bytes], key: str, value: bytes) -> bytes:
    """Cache a value and return it; a full cache is cleared, which is cheaper than recording the order of use."""
    if len(key) > LONG_WORD:
        return value
    if len(memo) >= MEMO:
        memo.clear()
    memo[key] = value
    return value


@functools.lru_cache(maxsize=8)
def features_of(seed: int, words: Range | None, characters: Range | None, lowercase: bool) -> _Features:
    """Return the hasher that equal configurations share."""
    return _Features(seed, words, characters, lowercase)
