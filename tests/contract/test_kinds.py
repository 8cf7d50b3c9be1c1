"""The contract suite of multi-vectors and sparse vectors, on good functions and on functions with one flaw each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg.testing import VectorKindContract
from tests.kinds import D, Letters, WordVectors, word_vectors


class TestMultiVectors(VectorKindContract):
    """A vector for each word."""

    @pytest.fixture
    def function(self) -> embedreg.EmbeddingFunction:
        return WordVectors.create()


class TestSparseVectors(VectorKindContract):
    """Weights of words."""

    @pytest.fixture
    def function(self) -> embedreg.EmbeddingFunction:
        return embedreg.get("hashing-sparse").create()


class Padded(WordVectors):
    """Fills all rows up to the longest."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        rows = [word_vectors(text) for text in texts]
        most = max(map(len, rows), default=0)
        return [np.concatenate([row, np.zeros((most - len(row), D))]) for row in rows]


class Neighbourly(Letters):
    """Weighs letters by how many texts there are."""

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return [(indices, [value * len(texts) for value in values]) for indices, values in map(self._counts, texts)]


TESTS = VectorKindContract()
INPUTS = ["one", "two words", "three more words"]


@pytest.mark.parametrize(
    ("function", "test", "flaw"),
    [
        (Padded(), TESTS.test_no_row_is_padded, "the rows hold 9 entries, 6 of which are not zeros"),
        (
            Neighbourly(),
            lambda fn, rows: TESTS.test_a_row_does_not_depend_on_its_neighbours(fn, rows, 1e-3),
            "row 0 alone",
        ),
        (Neighbourly(), lambda fn, rows: TESTS.test_many_rows(fn, rows, 1e-3), "row 0 in a long column differs"),
        (embedreg.get("hashing").create(), lambda fn, rows: TESTS.test_it_declares_its_kind(fn), "one vector for each"),
    ],
)
def test_a_flaw_is_found(function: embedreg.EmbeddingFunction, test: Any, flaw: str) -> None:
    """Each by the test that is there for it, with a hint."""
    with pytest.raises(pytest.fail.Exception, match=flaw) as caught:
        test(function, INPUTS)
    assert "Hint: " in str(caught.value)
