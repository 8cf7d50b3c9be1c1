"""An audit names what made a column of real MiniLM vectors other than the declared function's."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import embedreg
from embedreg.columns import Audit, audit, identify
from tests.columns.made import column, docstrings

ROWS, SAMPLE = 80, 20


class Made:
    """Docstrings and their MiniLM vectors, embedded once for this module."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        # As many long texts as the tenth of a sample that is taken from them, and one more. They are of short ones, so
        # that 128 words are less than the 256 tokens that the model takes.
        plain = iter(
            [text for text in docstrings(20_000, words=40, seed=2) if re.fullmatch(r"[\w\s.,'()-]{60,}", text)]
        )
        long = [" ".join(" ".join(itertools.islice(plain, 15)).split()[:170]) for _ in range(SAMPLE // 10 + 1)]
        # few words may have many characters, in tables; the audit takes those for long texts
        short = [text for text in docstrings(20_000, words=40, seed=1) if len(text) < 500][: ROWS - len(long)]
        self.texts = [text if row % 3 else without_dot(text) for row, text in enumerate(short)] + long
        self.long = range(len(self.texts) - len(long), len(self.texts))
        self.vectors = self.embed(self.texts)

    def function(self, **fields: Any) -> Any:
        return embedreg.get("sentence-transformers").create(name=self.folder, device="cpu", **fields)

    def embed(self, texts: list[str], **fields: Any) -> Any:
        return embedreg.embed_column(self.function(**fields), texts).matrix

    def audit(self, vectors: Any, candidates: Any = (), **options: Any) -> Audit:
        table = column(self.texts, vectors, self.function())
        [found] = audit(table, sample=SAMPLE, candidates=candidates, **options)
        return found


@pytest.fixture(scope="module")
def made(minilm_path: Path) -> Made:
    return Made(minilm_path)


def int8(matrix: Any) -> Any:
    """Return vectors quantised to 255 levels each."""
    scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
    return (np.round(matrix / scale) * scale).astype(np.float32)


def bfloat16(matrix: Any) -> Any:
    """Return vectors rounded to the upper half of a float32."""
    rounded = matrix.astype(np.float32).view(np.uint32) + 0x8000
    return (rounded & 0xFFFF0000).view(np.float32)


@pytest.mark.parametrize(
    ("storage", "rounded"),
    [
        (None, lambda matrix: matrix),
        ("float16", lambda matrix: matrix.astype(np.float16).astype(np.float32)),
        ("bfloat16", bfloat16),
        ("int8", int8),
        ("reduced", lambda matrix: matrix + np.random.default_rng(0).normal(0, 2e-4, matrix.shape)),
    ],
)
def test_a_rounded_column_is_sound_and_its_number_type_is_named(made: Made, storage: str, rounded: Any) -> None:
    """Rounding keeps a column sound; the residual distinguishes float16, bfloat16, int8 and coarser computation."""
    found = made.audit(rounded(made.vectors), scan=False)
    assert (found.verdict, found.storage, found.causes) == ("sound", storage, ())
    assert found.agree == found.compared == SAMPLE


def test_another_scale_and_lower_case_are_sound(made: Made) -> None:
    """`normalize=False` and lower-case texts give this model's own vectors, so nothing is reported."""
    plain = made.embed([text.lower() for text in made.texts], normalize=False)
    assert made.audit(plain, scan=False).verdict == "sound"


def without_dot(text: str) -> str:
    """Return a text without its last full stop."""
    return text.rstrip().removesuffix(".") or text


def test_a_final_full_stop_that_was_removed_is_named(made: Made) -> None:
    """Vectors of the texts without their last full stop are stale in the rows that have one, and only there."""
    found = made.audit(made.embed([without_dot(text) for text in made.texts]), scan=False)
    assert found.verdict == "stale"
    assert found.cause is not None
    assert found.cause.label == "text without its final punctuation"
    evidence = found.evidence
    dotted = {index for index in range(len(evidence.rows)) if evidence.rows.text(index).rstrip().endswith(".")}
    wrong = {index for index, kind in enumerate(evidence.kinds) if kind != "agree"}
    assert {evidence.kinds[index] for index in wrong} == {"text"}
    assert wrong <= dotted
    assert len(dotted) < len(evidence.rows)
    assert len(dotted - wrong) <= 4  # the end of a long text is not read, and some dots hardly matter


def test_a_prompt_is_named_without_a_candidate_and_with_one(made: Made) -> None:
    """A document prompt changes every row; a well-known one is found, any other one if it is a candidate."""
    found = made.audit(made.embed([f"title: {text}" for text in made.texts]), scan=False)
    assert found.verdict == "other-model"
    assert found.cause is not None
    assert (found.cause.kind, found.cause.label) == ("prompt", "'title: ' before each text")
    own = made.embed(made.texts, document_prompt="of our shop: ")
    found = made.audit(own, [made.function(document_prompt="of our shop: ")], scan=False)
    assert found.verdict == "other-model"
    assert found.cause is not None
    assert found.cause.kind == "candidate"
    assert "document_prompt=of our shop:" in found.cause.label


def test_the_declared_functions_own_prompt_is_found_to_be_off(made: Made) -> None:
    """Vectors made without the declared function's document prompt, as by stock clients, are named."""
    table = column(made.texts, made.vectors, made.function(document_prompt="passage: "))
    [found] = audit(table, sample=SAMPLE, candidates=(), scan=False)
    assert found.verdict == "other-model"
    assert found.cause is not None
    assert found.cause.label == "without the document prompt"


@pytest.mark.parametrize("words", [128, 60])
def test_a_cut_is_named_with_its_length_by_the_long_rows_alone(made: Made, words: int) -> None:
    """Only long rows disagree; they are sampled apart, and the number of words that was kept is found."""
    cut = [" ".join(text.split()[:words]) for text in made.texts]
    vectors = made.vectors.copy()
    vectors[made.long] = made.embed([cut[row] for row in made.long])
    found = made.audit(vectors)
    assert found.long_agree == 0
    assert found.long_compared == SAMPLE // 10
    assert [cause.label for cause in found.causes] == [f"texts cut at {words} words"]
    assert found.causes[0].named
    assert found.verdict == "stale"


def test_a_cut_at_half_the_models_tokens_is_named(made: Made) -> None:
    """A model whose limit was once 128 tokens, instead of its 256, has cut the long texts."""
    tokenizer, vectors = tokenizers.Tokenizer.from_file(f"{made.folder}/tokenizer.json"), made.vectors.copy()
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ends = {row: tokenizer.encode(made.texts[row]).offsets[126][1] for row in made.long}  # the first is [CLS], then 126
    vectors[made.long] = made.embed([made.texts[row][:end] for row, end in ends.items()])
    found = made.audit(vectors)
    assert [cause.label for cause in found.causes] == ["texts cut at 128 tokens"]


@pytest.mark.parametrize("seed", [0, 1])
def test_hashing_under_a_models_declaration_is_named_with_its_seed(made: Made, seed: int) -> None:
    """Every row disagrees, and an installed function that needs no model explains all of them."""
    hashing = embedreg.get("hashing").create(dim=384, seed=seed)
    found = made.audit(embedreg.embed_column(hashing, made.texts).matrix, None)
    assert found.verdict == "other-model"
    assert found.cause is not None
    assert found.cause.label == ("hashing (dim=384)" if seed == 0 else "hashing (dim=384, seed=1)")


def test_moved_and_shuffled_rows_are_named(made: Made) -> None:
    """A shift is named with its distance, a shuffle by vectors that fit other sampled texts."""
    found = made.audit(np.roll(made.vectors, 2, axis=0), scan=False)
    assert found.verdict == "broken"
    named = [cause.label for cause in found.causes if cause.named or cause.rows > 1]
    assert "vectors of the text 2 row(s) above" in named, found
    shuffled = np.random.default_rng(0).permutation(made.vectors)
    found = made.audit(shuffled, scan=False)
    assert found.verdict == "broken"
    assert found.cause is not None
    assert found.cause.label == "vectors of other rows' texts"


def test_identify_finds_what_nobody_declared(made: Made) -> None:
    """MiniLM, hashing with a seed and MiniLM with a prompt are found from 30 rows; random vectors are unknown."""
    prompted = made.function(document_prompt="of our shop: ")
    hashing = embedreg.get("hashing").create(dim=384, seed=1)
    candidates = [made.function(), hashing, prompted]
    of = {
        "sentence-transformers (": made.vectors,
        "hashing (dim=384, seed=1)": embedreg.embed_column(hashing, made.texts).matrix,
        "document_prompt=of our shop:": made.embed(made.texts, document_prompt="of our shop: "),
    }
    for name, vectors in of.items():
        best, *_ = identify(column(made.texts, vectors), "vector", candidates=candidates)
        assert name in best.function
        assert (best.fits, best.agree, best.compared, best.variant) == (True, 30, 30, None)
    random = np.random.default_rng(0).normal(size=made.vectors.shape)
    best, *_ = identify(column(made.texts, random), "vector", candidates=candidates)
    assert (best.function, best.fits) == ("unknown", False)
    assert re.search("none of the candidates", str(best))
