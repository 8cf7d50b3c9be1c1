"""Audits of a live LanceDB table, and what an audit may read and reach."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest

import embedreg
from embedreg import columns
from embedreg.runtime.text import truncation
from tests.columns.made import column, docstrings


def test_rows_of_the_function_before_a_migration_are_named(tmp_path: Path) -> None:
    """A writer that still has the old model writes its vectors into the new column: the audit names that model."""
    a, b = (embedreg.get("hashing").create(dim=32, seed=seed) for seed in (0, 9))
    db = lancedb.connect(tmp_path)
    texts = docstrings(300, words=40)
    table = db.create_table("docs", [{"id": row, "text": text} for row, text in enumerate(texts)])
    path = tmp_path / "docs.lance"
    columns.add(path, a.bind("text", "vector"))
    [found] = columns.audit(path)
    assert (found.verdict, found.digests) == ("sound", {"fresh": 300, "stale": 0, "foreign": 0, "unstamped": 0})
    migration = columns.migrate(path, "vector", b)
    migration.settle()
    assert columns.audit(path)[0].verdict == "sound"
    old = embedreg.embed_column(a, texts[:30]).matrix
    table.checkout_latest()
    rows = [{"id": row, "text": texts[row], "vector": old[row].tolist()} for row in range(30)]
    table.merge_insert("id").when_matched_update_all().execute(rows)
    [found] = columns.audit(path, candidates=())
    assert found.verdict == "mixed"
    assert found.cause is not None
    assert (found.cause.kind, found.cause.label, found.cause.rows) == ("previous", "hashing (dim=32)", 30)
    assert found.digests is not None
    assert found.digests["fresh"] == 300  # the digest column cannot see it: this writer changed the vector alone
    migration.finish()
    assert columns.audit(path, candidates=())[0].cause.kind == "unexplained"  # type: ignore[union-attr]


LOOKING = """
import json, sys

opened, reached = [], []

def watch(event, args):
    if event == "open" and isinstance(args[0], str):
        opened.append(args[0])
    elif event in ("socket.connect", "socket.getaddrinfo"):
        reached.append(event)

from embedreg import columns
import embedreg, numpy, pyarrow.dataset, pyarrow.parquet
data, secret = sys.argv[1:]
sys.addaudithook(watch)
best, *_ = columns.identify(data, "vector")
[found] = columns.audit(data)
print(json.dumps({"best": best.function, "verdict": found.verdict, "problem": found.problem, "reached": reached,
                  "secret": [each for each in opened if each.startswith(secret)]}))
"""


def test_nothing_is_reached_and_no_ungranted_path_is_read(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """A hostile declaration names a folder: neither `identify` nor `audit` opens it, or a connection."""
    import pyarrow.parquet as pq

    from tests.columns.made import column

    fn = embedreg.get("hashing").create(dim=384, seed=1)
    texts = docstrings(60, words=30)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "modules.json").write_text("[]")
    entry = {"name": "sentence-transformers", "source_column": "text", "vector_column": "vector"}
    declared = json.dumps([entry | {"model": {"name": str(secret)}}])
    table = column(texts, embedreg.embed_column(fn, texts).matrix)
    pq.write_table(table.replace_schema_metadata({"embedding_functions": declared}), tmp_path / "data.parquet")
    told = json.loads(run_python(LOOKING, tmp_path / "data.parquet", secret))
    assert told.pop("problem").startswith("stored metadata")
    assert told == {"best": "hashing (dim=384, seed=1)", "verdict": "unknown", "reached": [], "secret": []}


class Cutting(embedreg.TextEmbeddingFunction):
    """A function that reads the first 20 characters of a text, and says so as the local ones do."""

    def ndims(self) -> int:
        return 26

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        made = np.array([[text[:20].count(chr(97 + n)) + 0.1 for n in range(26)] for text in texts], np.float32)
        return truncation.settled(made, np.array([len(text) > 20 for text in texts]), "warn", 20, "cutting")


def test_texts_that_are_cut_are_reported_by_what_embeds_and_not_by_an_audit(caplog: pytest.LogCaptureFixture) -> None:
    """An audit makes many trials whose vectors are stored nowhere; their notes would bury what it found."""
    function, texts = Cutting(), docstrings(40, words=40)
    vectors = embedreg.embed_column(function, texts).matrix
    assert "only their beginning was embedded" in caplog.text
    caplog.clear()
    assert columns.identify(column(texts, vectors), "vector", candidates=[function])[0].fits
    assert caplog.text == ""
