"""What an audit says of the whole column: the scan, the classes of the rows, and the bound."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg.columns import audit, bounds, sampling
from embedreg.columns.tables import TableRows
from embedreg.declaration import digest
from tests.columns.made import column, docstrings


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    """The upper bounds are those of the beta quantiles in print, and exact for a sample of all rows."""
    known = {(0, 30): 9.50, (0, 100): 2.95, (0, 300): 0.994, (0, 1000): 0.299, (1, 30): 14.86, (1, 300): 1.57}
    for (found, sampled), percent in known.items():
        assert 100 * bounds.upper_bound(found, sampled, 0.95, 10**6) == pytest.approx(percent, abs=0.006)
    assert bounds.upper_bound(3, 300, 0.95, 300) == 0.01
    assert bounds.upper_bound(30, 30, 0.95, 100) == 1.0


def test_the_bound_covers_the_truth_in_95_percent_of_1000_columns() -> None:
    """Foreign rows from 0.5% to 5%, scattered or in one piece: rows are drawn by number, so neither matters."""
    rows, sample, missed = 20_000, 300, Counter[bool]()
    texts = pa.array(["x"] * rows)
    for share in (0.005, 0.01, 0.02, 0.05):
        for together in (False, True):
            foreign = np.zeros(rows, np.float32)
            foreign[: int(share * rows)] = 1
            if not together:
                foreign = np.random.default_rng(1).permutation(foreign)
            numbers = np.stack([foreign, np.ones(rows, np.float32)], axis=1).ravel()
            table = pa.table({"text": texts, "vector": pa.FixedSizeListArray.from_arrays(pa.array(numbers), 2)})
            for seed in range(125):
                drawn = sampling.draw(TableRows(table), "vector", "text", sample=sample, seed=seed, long_rows=())
                wrong = int(drawn.matrix[: drawn.uniform, 0].sum())
                missed[together] += bounds.upper_bound(wrong, sample, 0.95, rows) < share
    assert sum(missed.values()) <= 50, missed
    assert max(missed.values()) <= 35, missed  # half of the columns, and three standard deviations


@pytest.mark.parametrize("stamped", [True, False])
def test_each_sampled_row_of_a_mixed_column_is_in_its_class(stamped: bool) -> None:
    """97% of one function, 2% of another, 1% edited since, 0.5% cut: with row digests and without."""
    a, b = (embedreg.get("hashing").create(dim=384, seed=seed) for seed in (0, 1))
    texts = docstrings(6000, words=200)
    generator = np.random.default_rng(0)
    order = generator.permutation(len(texts))
    of_b, others = order[:120], order[120:]
    # a text of 60 words that has grown has the vector of a text that was cut at 60 words
    edited = np.array([row for row in others if len(texts[row].split()) != 60][:60])
    cut = np.array([row for row in others[100:] if len(texts[row].split()) > 70][:30])
    matrix = embedreg.embed_column(a, texts).matrix.copy()
    matrix[of_b] = embedreg.embed_column(b, [texts[row] for row in of_b]).matrix
    matrix[cut] = embedreg.embed_column(a, [" ".join(texts[row].split()[:60]) for row in cut]).matrix
    stamps = digest.digests(pa.array(texts), digest.prefix_of(a)).to_pylist()
    for row in edited:
        texts[row] = f"{texts[row]} Changed in a later version of this library."
    truth = np.full(len(texts), "agree", dtype=object)
    truth[of_b], truth[edited], truth[cut] = "candidate", "edited" if stamped else "near", "cut"
    table = column(texts, matrix, a)
    if stamped:
        [entry] = json.loads(table.schema.metadata[b"embedding_functions"])
        entry["model"]["embedreg"]["digest"] = "vector__source_digest"
        table = table.append_column("vector__source_digest", pa.array(stamps)).replace_schema_metadata(
            {"embedding_functions": json.dumps([entry])}
        )
    [found] = audit(table, sample=1200, candidates=[b])
    evidence, known = found.evidence, truth[found.evidence.rows.numbers]
    pairs = Counter(zip(known.tolist(), evidence.kinds, strict=True))
    unsure = pairs.pop(("near", "unexplained"), 0)  # a short text that grew: only a digest proves it
    pairs["near", "near"] += pairs.pop(("near", "text"), 0)  # a text that has grown is known by its beginning
    assert all(true == told for true, told in pairs), pairs
    assert unsure <= pairs["near", "near"] / 4
    counts = Counter(evidence.kinds[:1200])
    assert (found.foreign, found.cut) == (counts["candidate"], counts["cut"])
    assert found.stale == counts["edited"] + counts["near"] + counts["text"]
    assert min(found.foreign, found.stale, found.cut) > 0
    assert found.verdict == "mixed"
    assert found.bound is not None
    assert found.bound >= 0.035
    labels = {cause.label for cause in found.causes}
    assert {"hashing (dim=384, seed=1)", "texts cut at 60 words"} <= labels
    assert (found.digests is not None) == stamped
    if stamped:
        assert found.digests == {"fresh": len(texts) - 60, "stale": 60, "foreign": 0, "unstamped": 0}


def test_a_scan_finds_what_cannot_be_right_without_a_model() -> None:
    """Nulls, zeros, infinities, one vector for other texts and other vectors for equal texts need no function."""
    fn = embedreg.get("hashing").create(dim=32)
    texts = [f"text number {row} of many" for row in range(400)]
    texts[1], texts[3] = texts[0], texts[2]  # equal texts
    matrix = embedreg.embed_column(fn, texts).matrix.copy()
    matrix[1] = -matrix[1]  # the second maker
    matrix[3] += 1e-7  # another batch, not another maker
    matrix[10], matrix[11] = 0, np.nan
    matrix[20:23] = matrix[20]
    table = column(texts, matrix, fn)
    table = pa.table({"text": [*texts, None, "a text"], "vector": [*table["vector"].to_pylist(), None, None]})
    table = table.cast(pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), 32))]))
    unknown = '[{"name": "nobody-has-this", "source_column": "text", "vector_column": "vector", "model": {}}]'
    [found] = audit(table.replace_schema_metadata({"embedding_functions": unknown}))
    assert (found.nulls, found.zeros, found.nonfinite, found.duplicates) == (2, 1, 1, 3)
    assert found.contradictions == 1
    assert (found.verdict, found.compared) == ("broken", 0)
    assert "nobody-has-this" in str(found.problem)
    matrix[10:12] = 1
    [found] = audit(column(texts, matrix).replace_schema_metadata({"embedding_functions": unknown}))
    assert (found.verdict, found.contradictions) == ("mixed", 1)
    assert "rows 0 and 1 have equal sources and different vectors" in str(found)
    matrix[1] = matrix[0]
    [found] = audit(column(texts, matrix).replace_schema_metadata({"embedding_functions": unknown}))
    assert found.verdict == "unknown"


@pytest.mark.parametrize("scan", [True, False])
def test_columns_of_every_form_are_read(scan: bool) -> None:
    """Views, dictionaries, invalid Unicode, lists of no fixed size, another width, no rows: each has its verdict."""
    fn = embedreg.get("hashing").create(dim=16)
    texts = [f"text number {row} and more" for row in range(40)]
    table = column(texts, embedreg.embed_column(fn, texts).matrix, fn)
    broken = pa.array([*(text.encode() for text in texts[1:]), b"\xff\xfe"]).view(pa.string())
    sources = {
        "string_view": (pa.array(texts, pa.string_view()), "sound"),
        "dictionary": (pa.array(texts).dictionary_encode(), "sound"),
        "invalid": (broken, "broken"),  # all rows have moved by one
    }
    for name, (values, verdict) in sources.items():
        changed = table.set_column(0, "text", values).replace_schema_metadata(table.schema.metadata)
        [found] = audit(changed, scan=scan, candidates=())
        assert found.verdict == verdict, name
    lists = table.set_column(1, "vector", table["vector"].cast(pa.list_(pa.float32())))
    assert audit(lists, scan=scan)[0].verdict == "sound"
    assert audit(table.slice(0, 0), scan=scan)[0].verdict == "unknown"
    half = column(texts, np.ones((40, 8))).replace_schema_metadata(table.schema.metadata)
    [found] = audit(half, scan=False)
    assert (found.verdict, found.compared) == ("other-model", 0)
    assert "8 dimensions, the function returns 16" in str(found)


def test_a_function_that_is_not_trusted_is_not_run() -> None:
    """A declaration that names a folder or a host is refused; the scan still counts, and the grant is named."""
    texts = docstrings(50, words=30)
    matrix = np.eye(50, 64, dtype=np.float32) + 0.1
    model = {"name": "/srv/somebody/model"}
    entry = {"name": "sentence-transformers", "source_column": "text", "vector_column": "vector", "model": model}
    table = column(texts, matrix).replace_schema_metadata({"embedding_functions": json.dumps([entry])})
    [found] = audit(table)
    assert (found.verdict, found.compared, found.nulls) == ("unknown", 0, 0)
    assert "not been granted" in str(found.problem)
    assert "unknown" in str(found)


def test_a_sound_column_is_told_with_its_bound() -> None:
    """The sentence names the rows compared, those that disagree and the share that is excluded."""
    fn = embedreg.get("hashing").create(dim=64)
    texts = docstrings(3000, words=60)
    table = column(texts, embedreg.embed_column(fn, texts).matrix, fn)
    [found] = audit(table)
    assert found.verdict == "sound"
    told = "300 of 3,000 rows compared, 0 disagree: at 95% confidence at most 0.99% (29 rows) do."
    assert found.as_dict()["sentence"] == told
    assert told in str(found)
    assert json.dumps(found.as_dict())
    [whole] = audit(table, sample=5000, scan=False)
    assert whole.as_dict()["sentence"] == "3,000 of 3,000 rows compared, 0 disagree: that is all of them."
    assert (whole.nulls, whole.bound) == (None, 0.0)
