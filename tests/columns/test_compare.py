"""A comparison of two functions says how different they are, what it costs, and no more than the pairs allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg.columns import compare
from embedreg.columns.comparison import difference_of, judged
from embedreg.errors import InputError
from tests.columns.made import column, docstrings

ROWS = 3000


@pytest.fixture(scope="module")
def hashed() -> tuple[pa.Table, Any, Any]:
    """Docstrings with their numbers and hashed vectors, the function of these, and one of another seed."""
    a, b = (embedreg.get("hashing").create(dim=256, seed=seed) for seed in (0, 1))
    texts = docstrings(ROWS, words=100)
    table = column(texts, embedreg.embed_column(a, texts).matrix, a, id=list(range(len(texts))))
    return table, a, b


def pairs_of(table: pa.Table, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return queries of some words of a row each, answered by its number."""
    generator = np.random.default_rng(seed)
    texts = table["text"].to_pylist()
    rows = generator.choice([row for row, text in enumerate(texts) if len(text.split()) >= 8], count)
    made = []
    for row in rows.tolist():
        words = texts[row].split()
        some = sorted(generator.choice(len(words), 3, replace=False).tolist())
        made.append({"query": " ".join(words[place] for place in some), "answers": [row]})
    return made


def test_a_model_compared_with_itself_is_no_other(hashed: tuple[pa.Table, Any, Any]) -> None:
    """Overlap 1.0; 1,000 pairs show that there is no difference, 20 are too few, none allow no judgement."""
    table, a, _ = hashed
    found = compare(table, "vector", a, pairs=pairs_of(table, 1000), key="id")
    assert (found.overlap, found.overlap_error) == (1.0, 0.0)
    assert (found.verdict, found.pairs, found.missing, found.difference) == ("no-difference", 1000, 0, 0.0)
    assert found.recall_a == found.recall_b
    assert 0.2 < (found.recall_a or 0) < 1
    few = compare(table, "vector", a, pairs=pairs_of(table, 20), key="id", corpus=500)
    assert few.verdict == "too-few-pairs"
    assert 100 < (few.pairs_needed or 0) <= 1000
    assert f"{few.pairs_needed:,} like these would decide" in str(few)
    none = compare(table, "vector", a, corpus=1000)
    assert (none.verdict, none.recall_a, none.asked, none.queries) == ("no-pairs", None, "rows", 200)
    assert "cannot be decided" in str(none)


def test_a_worse_model_is_told_with_its_error_size_and_corpus(hashed: tuple[pa.Table, Any, Any]) -> None:
    """Eight dimensions find less than 256: the interval leaves zero, and every figure names its corpus."""
    table, _, _ = hashed
    small = embedreg.get("hashing").create(dim=8)
    found = compare(table, "vector", small, pairs=pairs_of(table, 200), key="id", price_per_million_tokens=1.0)
    assert found.verdict == "worse"
    assert (found.difference or 0) + (found.difference_error or 0) < 0
    assert (found.bytes_per_row, found.bytes_per_row_now) == (32, 1024)
    assert found.full_bytes == 32 * table.num_rows
    assert (found.tokens, found.cost) == (None, None)  # hashing counts none
    assert 0 < found.overlap < 0.5
    assert 0 < found.overlap_error < 0.1
    assert found.corpus_rows == table.num_rows
    assert f"corpus   {table.num_rows:,} distinct sources of {table.num_rows:,} rows" in str(found)
    assert (found.rows_per_s or 0) > 0
    assert len(found.examples) == 8
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == "worse"


def test_equal_models_are_called_different_in_at_most_5_percent_of_400_resamplings(
    hashed: tuple[pa.Table, Any, Any],
) -> None:
    """Two seeds of one method are equal: real differences of pairs are drawn anew with random sides.

    Ten times 400 resamplings, so that the share does not hang on one draw.
    """
    table, _, b = hashed
    differences = compare(table, "vector", b, pairs=pairs_of(table, 1500), key="id").differences
    assert differences is not None
    assert 0.02 < np.abs(differences).mean() < 0.5
    generator = np.random.default_rng(0)
    for pairs in (20, 100, 500):
        false = 0
        for _ in range(4000):
            some = generator.choice(differences, pairs) * generator.choice([-1, 1], pairs)
            false += judged(some) in ("better", "worse")
        assert false <= 200, f"{false} of 4,000 with {pairs} pairs"


def test_the_paired_interval_is_as_wide_as_the_discordant_pairs_allow() -> None:
    """10% discordant pairs: 50 pairs give about +-.12, 1,000 about +-.02; no discordant pair leaves a width."""
    for pairs, error in ((50, 0.12), (200, 0.05), (1000, 0.02)):
        values = np.zeros(pairs)
        values[: pairs // 20], values[pairs // 20 : pairs // 10] = 1, -1
        assert difference_of(values).error == pytest.approx(error, rel=0.12)
    assert 0.1 < difference_of(np.zeros(20)).error < 0.2
    assert judged(np.zeros(20)) == "too-few-pairs"
    assert judged(np.ones(20)) == "better"
    assert judged(np.array([1.0, 1.0, 1.0] + [0.0] * 17)) == "too-few-pairs"
    assert judged(np.zeros(0)) == "no-pairs"


def test_pairs_are_read_from_a_file_and_answers_may_be_texts(hashed: tuple[pa.Table, Any, Any], tmp_path: Path) -> None:
    """A line that is not a pair is named; answers that are not in the data are counted and left out."""
    table, a, _ = hashed
    texts = table["text"].to_pylist()
    file = tmp_path / "pairs.jsonl"
    lines = [{"query": "the first", "answers": [texts[0], "nowhere"]}, {"query": "gone", "answers": ["nowhere else"]}]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = compare(table, "vector", a, pairs=file, corpus=200)
    assert (found.pairs, found.missing) == (1, 2)
    assert found.queries == 2
    file.write_text('{"query": "x", "answers": ["y"]}\n{"query": "x"}\n')
    with pytest.raises(InputError, match="the answers of line 2"):
        compare(table, "vector", a, pairs=file)
    file.write_text("{")
    with pytest.raises(InputError, match=r"line 1 of .* cannot be read: it is not JSON"):
        compare(table, "vector", a, pairs=file)
    with pytest.raises(InputError, match="not all values of column 'id'"):
        compare(table, "vector", a, pairs=[("q", ["a text"])], key="id")


def test_vectors_of_an_open_cache_are_used_and_kept(hashed: tuple[pa.Table, Any, Any], tmp_path: Path) -> None:
    """A second comparison computes nothing, so it has no speed; its other figures are the same."""
    table, _, b = hashed
    with embedreg.vector_cache(tmp_path / "vectors.cache"):
        first = compare(table, "vector", b, corpus=500)
        again = compare(table, "vector", b, corpus=500)
    assert (first.rows_per_s is None, again.rows_per_s, again.full_time_s) == (False, None, None)
    assert (again.overlap, again.corpus_rows) == (first.overlap, first.corpus_rows)
    assert "not measured" in str(again)
