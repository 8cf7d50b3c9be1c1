"""The `hashing` function: the same vectors everywhere, and nearer for texts that share words."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import random
import subprocess
import tracemalloc
import unicodedata
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import embedreg
from embedreg.errors import ConfigError
from embedreg.functions import hashing
from embedreg.functions.hashing import HashingEmbeddings
from tests.timing import within

TEXTS = ["The quick brown fox", "jumps over", "the lazy dog!", "Straße in Łódź", "日本語の文章", "🎉🎉", "?!"]

# What embedreg 0.1 gives "hello world" in 16 dimensions, counted, and the CRC-32 of the little-endian vectors of TEXTS.
GOLDEN = [-1.0, 0.0, -1.0, 0.0, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0, -1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
GOLDEN_CRC = 3437549468


def create(**config: Any) -> HashingEmbeddings:
    """The function, as a user makes it."""
    fn: HashingEmbeddings = embedreg.get("hashing").create(**config)
    return fn


def by_hand(text: str, dim: int, seed: int = 0) -> np.ndarray:
    """The documented method for lower-case words, written out: words, pairs, and "<word>" in threes and fours."""
    words = text.split()
    features = [f"w:{word}" for word in words] + [f"w:{a} {b}" for a, b in itertools.pairwise(words)]
    for word in words:
        whole = f"<{word}>"
        features += [f"c:{whole[i : i + n]}" for n in (3, 4) for i in range(len(whole) - n + 1)]
    counts = np.zeros(dim)
    for feature in features:
        salt = seed.to_bytes(16, "little", signed=True)
        h = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8, salt=salt).digest(), "little")
        counts[h % dim] += -1 if h >> 63 else 1
    return counts


@pytest.mark.parametrize("seed", [0, 7, -1])
@pytest.mark.parametrize("dim", [16, 100, 256])
def test_it_is_the_documented_method(dim: int, seed: int) -> None:
    """Counts equal those of the documented method written out by hand, for any width and seed."""
    for text in ("cat", "red cat", "a b"):
        counts = create(dim=dim, seed=seed, normalize=False).generate_embeddings([text])[0]
        assert np.array_equal(counts, by_hand(text, dim, seed))


def test_golden_vectors() -> None:
    """The vectors of embedreg 0.1, bit for bit: a change here makes every stored column wrong."""
    made = create(dim=16).generate_embeddings(["hello world"])
    assert made.dtype == np.float32
    assert create(dim=16, normalize=False).generate_embeddings(["hello world"])[0].tolist() == GOLDEN
    assert np.array_equal(made[0], (np.array(GOLDEN) / np.sqrt(np.sum(np.square(GOLDEN)))).astype(np.float32))
    everything = create().generate_embeddings(TEXTS).astype("<f4").tobytes()
    assert zlib.crc32(everything) == GOLDEN_CRC


def test_it_is_the_same_in_every_process(run_python: Callable[..., str]) -> None:
    """Another process with another PYTHONHASHSEED gives the same bytes."""
    code = f"""
import embedreg, zlib
made = embedreg.get("hashing").create().generate_embeddings({TEXTS!r})
print(zlib.crc32(made.astype("<f4").tobytes()))
"""
    for hash_seed in ("1", "2"):
        assert run_python(code, env={"PYTHONHASHSEED": hash_seed, "PYTHONIOENCODING": "utf-8"}).strip() == str(
            GOLDEN_CRC
        )


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Alone, in any order, in any number and from any thread, a text has the same vector, bit for bit."""
    fn = create()
    texts = [f"text {i} with {i * i} words" for i in range(3000)]
    together = fn.generate_embeddings(texts)
    assert np.array_equal(fn.generate_embeddings(texts[::-1])[::-1], together)
    assert np.array_equal(np.concatenate([fn.generate_embeddings([text]) for text in texts[:50]]), together[:50])
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda seed: create(seed=seed).generate_embeddings(texts), [0, 0, 0, 0]):
            assert np.array_equal(made, together)


def test_shapes() -> None:
    """(n, d) float32 for any n, from lists, numpy and Arrow; a query is one row."""
    fn = create(dim=32)
    assert fn.ndims() == 32
    for texts in (["a", "b"], np.array(["a", "b"]), pa.array(["a", "b"]), pa.chunked_array([["a"], ["b"]])):
        made = fn.compute_source_embeddings(texts)
        assert (made.shape, made.dtype) == ((2, 32), np.float32)
    assert fn.compute_source_embeddings([]).shape == (0, 32)
    assert np.array_equal(fn.compute_query_embeddings("a"), fn.compute_source_embeddings(["a"]))


@settings(max_examples=200, deadline=None)
@given(st.text(), st.integers(1, 40), st.sampled_from([(1, 1), (1, 3), (2, 2), None]), st.booleans())
def test_any_text_has_a_direction(text: str, dim: int, word_ngrams: tuple[int, int] | None, normalize: bool) -> None:
    """Every text, signs and broken surrogates alone too, has a finite vector that is not zero; unit length if asked."""
    fn = HashingEmbeddings(dim=dim, word_ngrams=word_ngrams, normalize=normalize)
    (vector,) = fn.generate_embeddings([text])
    assert np.isfinite(vector).all()
    assert vector.any()
    assert not normalize or np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("text", ["", " ", "\ud800", "...", "\x00", "a" * 100_000, "a " * 50_000])
def test_odd_texts(text: str) -> None:
    """Empty, blank, broken, huge: a finite unit vector each."""
    assert np.linalg.norm(create().generate_embeddings([text])[0]) == pytest.approx(1, abs=1e-5)


def test_texts_that_share_words_are_near() -> None:
    """Word order, inflection and a typo cost little; unrelated texts are far away."""
    base, *others = create(dim=1024).generate_embeddings(
        [
            "wait for a thread to finish",
            "waiting until the thread has finished",
            "wait for a thraed to finish",
            "to finish wait for a thread",
            "parse an XML document into a tree",
        ]
    )
    inflected, typo, reordered, unrelated = (float(base @ other) for other in others)
    assert unrelated < 0.2 < inflected < typo < 1
    assert reordered > 0.85


def test_the_right_docstring_is_found() -> None:
    """Among the standard library's thread methods, a question with the right words finds the right one."""
    docs = {
        name: str(getattr(owner, name).__doc__)
        for owner in (__import__("threading").Thread, subprocess.Popen, __import__("zipfile").ZipFile)
        for name in dir(owner)
        if not name.startswith("_") and getattr(owner, name).__doc__
    }
    fn = create(dim=2048)
    scores = (
        fn.generate_embeddings(list(docs.values())) @ fn.generate_embeddings(["wait until the thread terminates"])[0]
    )
    assert list(docs)[int(scores.argmax())] == "join"


def test_options_change_vectors_as_they_say() -> None:
    """Case, spelling of accents, n-gram ranges, normalisation and seed have the effect of their names."""
    fn = create()
    assert np.array_equal(fn.generate_embeddings(["HELLO"]), fn.generate_embeddings(["hello"]))
    kept = create(lowercase=False).generate_embeddings(["HELLO", "hello"])
    assert not np.array_equal(kept[0], kept[1])
    composed, decomposed = fn.generate_embeddings(["caf\u00e9", "cafe\u0301"])
    assert np.array_equal(composed, decomposed)
    bag = create(word_ngrams=(1, 1), char_ngrams=None).generate_embeddings(["a b c", "c b a"])
    assert np.array_equal(bag[0], bag[1])
    counts = create(word_ngrams=(1, 1), char_ngrams=None, normalize=False).generate_embeddings(["x x x"])
    assert np.abs(counts).sum() == 3
    assert abs(float(fn.generate_embeddings(["hello"])[0] @ create(seed=1).generate_embeddings(["hello"])[0])) < 0.5


@pytest.mark.parametrize(
    "config",
    [
        {"dim": 0},
        {"dim": 100_000},
        {"word_ngrams": None, "char_ngrams": None},
        {"word_ngrams": (2, 1)},
        {"char_ngrams": (0, 3)},
        {"char_ngrams": (3, 99)},
        {"dims": 3},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_work_is_refused(config: dict[str, Any]) -> None:
    """Widths and ranges out of bounds, and typos, are refused when the function is made."""
    with pytest.raises(ConfigError):
        create(**config)


def test_it_is_a_value() -> None:
    """Equal configurations are equal after pickling and through stored metadata, ranges included."""
    fn = create(dim=64, char_ngrams=(2, 5))
    assert pickle.loads(pickle.dumps(fn)) == fn
    metadata = embedreg.get_registry().get_table_metadata([fn.bind("text", "vector")])
    embedreg.get_registry().reset()
    back = embedreg.get_registry().parse_functions(metadata)["vector"].function
    assert back == fn
    assert np.array_equal(back.generate_embeddings(TEXTS), fn.generate_embeddings(TEXTS))


def test_importing_it_needs_numpy_only(run_python: Callable[..., str]) -> None:
    """Using it loads neither Arrow, torch nor any other library."""
    code = """
import sys, embedreg
embedreg.get("hashing").create().generate_embeddings(["a"])
print(sorted({"pyarrow", "torch", "pandas", "stamina", "openai", "lancedb"} & set(sys.modules)))
"""
    assert run_python(code).strip() == "[]"


def test_a_text_without_spaces_takes_memory_of_its_own_size() -> None:
    """A quarter of a megabyte in two words has half a million parts; they are counted as they come, none is kept."""
    function = embedreg.get("hashing").create(dim=64)
    function.generate_embeddings(["a first text"])
    tracemalloc.start()
    try:
        function.generate_embeddings(["w" * 2**17 + " " + "v" * 2**17])
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert kept < 2**18


def test_a_long_text_is_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in pieces, a text has the same vector to the bit, whatever its words, runs and signs."""
    from embedreg.functions import hashing

    chance = random.Random(3)
    fields = [
        {"word_ngrams": words, "char_ngrams": characters, "dim": dim, "normalize": False}
        for words in (None, (1, 1), (1, 2), (2, 3), (3, 3))
        for characters in (None, (3, 4), (1, 2))
        for dim in (1, 2, 64)
        if words or characters
    ]
    texts = ["", " ", ".,", "a" * 3000, "É ß İ x", *("".join(chance.choices("abc é,. ", k=300)) for _ in range(5))]
    for each in fields:
        fn = embedreg.get("hashing").create(**each)
        whole = fn.generate_embeddings(texts)
        with monkeypatch.context() as patched:
            patched.setattr(hashing, "LONG_TEXT", -1)
            patched.setattr(hashing, "LONG_WORD", 4)
            assert fn.generate_embeddings(texts).tobytes() == whole.tobytes()


def test_memory_does_not_grow_with_a_text(run_python: Callable[..., str]) -> None:
    """Five million letters, as one word and as many, take some times their own size."""
    code = """
import resource
import embedreg
fn = embedreg.get("hashing").create(dim=64)
fn.generate_embeddings(["warm"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fn.generate_embeddings([" ".join(f"w{row % 999}" for row in range(300_000)), "x" * 1_500_000])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000)
"""
    assert run_python(code) == "True\n"


def test_a_run_of_combining_marks_costs_what_other_text_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unicode's own sorting of such a run is quadratic; putting it in order before gives the same text."""
    with within(10):
        assert create(dim=4).compute_source_embeddings(["a" + "\u0301\u0323" * 500_000]).shape == (1, 4)
    monkeypatch.setattr(hashing, "_MANY_MARKS", 3)
    hashing._runs_of_marks.cache_clear()
    letters = "ae\u00e9 \uac00\u3099\uff9e\uff76\u1e69\u0f73\u0344\u0301\u0323\u0327\u0334\ufc5e\u3046\u0958"
    made = random.Random(0)
    for _ in range(500):
        text = "".join(made.choices(letters, k=40))
        assert hashing._nfkc(text) == unicodedata.normalize("NFKC", text)
    hashing._runs_of_marks.cache_clear()
