"""Multi-vectors and sparse vectors in DuckDB and in columns of files; refused by name where they are not taken."""

from __future__ import annotations

from pathlib import Path

import duckdb
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import columns
from embedreg.engines import databend
from embedreg.engines import duckdb as duck
from embedreg.errors import ConfigError, DriftError, VectorError
from tests.kinds import Letters, WordVectors, word_vectors

MAXSIM = """
WITH asked AS (SELECT embed_query('the fox') AS q)
SELECT text, list_sum(list_transform(q, lambda x: list_max(list_transform(v, lambda y: array_cosine_similarity(x, y)))))
FROM t, asked ORDER BY text
"""
DOT = """
WITH asked AS (SELECT embed_query('bab') AS q)
SELECT text, list_sum(list_transform(list_zip(v.indices, v.values),
    lambda p: p[2] * coalesce(q.values[list_position(q.indices, p[1])], 0)))
FROM t, asked ORDER BY text
"""


def test_sql_functions_of_duckdb() -> None:
    """Columns of either kind, and their searches in SQL: MaxSim and the dot product."""
    con = duckdb.connect()
    duck.install(con, WordVectors.create(), "embed")
    con.sql("CREATE TABLE t AS SELECT *, embed(text) AS v FROM (VALUES ('a fox'), ('big dog'), (NULL)) AS s(text)")
    found = dict(con.sql(MAXSIM).fetchall())
    for text in ("a fox", "big dog"):
        assert found[text] == pytest.approx(float((word_vectors("the fox") @ word_vectors(text).T).max(axis=1).sum()))
    assert found[None] is None
    con.sql("DROP TABLE t")
    duck.install(con, Letters.create(), "embed")
    con.sql("CREATE TABLE t AS SELECT *, embed(text) AS v FROM (VALUES ('abba'), ('abc'), ('zz')) AS s(text)")
    assert con.sql(DOT).fetchall() == [("abba", 6.0), ("abc", 3.0), ("zz", 0.0)]


@pytest.mark.parametrize("function", [WordVectors.create(), Letters.create()], ids=["multi", "sparse"])
def test_a_column_of_a_file_has_its_life(function: embedreg.EmbeddingFunction, tmp_path: Path) -> None:
    """Added, its status read, refreshed, attached, embedded by one function only."""
    path, bare = tmp_path / "t.parquet", tmp_path / "bare.parquet"
    pq.write_table(pa.table({"text": ["a fox", "two words", None]}), path)
    assert columns.add(path, function.bind("text", "v")).embedded == 2
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "text", pa.array(["a fox", "changed", None])), path)
    [status] = columns.status(path)
    assert (status.fresh, status.stale, status.null_source) == (1, 1, 1)
    assert [report.embedded for report in columns.refresh(path)] == [1]
    pq.write_table(pq.read_table(path).replace_schema_metadata(None).select(["text", "v"]), bare)
    assert embedreg.attach(bare, function.bind("text", "v")).lowest == pytest.approx(1)
    table = pq.read_table(path).replace_schema_metadata(None).select(["text", "v"])
    pq.write_table(table.set_column(0, "text", pa.array(["other", "texts", None])), bare)
    with pytest.raises(DriftError, match="2 of 2 sampled rows have other vectors"):
        embedreg.attach(bare, function.bind("text", "v"))
    dense = embedreg.get("hashing").create(dim=8)
    for refused in (
        columns.audit,
        lambda data: columns.compare(data, "v", dense),
        lambda data: columns.identify(data, "v"),
    ):
        with pytest.raises(VectorError, match=r"'v' holds .*; audit, compare and identify read one vector a row"):
            refused(path)
    with pytest.raises(ConfigError, match=r"'v' of .* is of (multi|sparse) vectors, Hashing.* of dense ones"):
        columns.repoint(path, "v", dense)
    columns.add(path, dense.bind("text", "dense"), yes=True)
    with pytest.raises(ConfigError, match="compare needs one vector a row"):
        columns.compare(path, "dense", function)
    with pytest.raises(ConfigError, match="audit and identify compare one vector a row"):
        columns.identify(path, "dense", candidates=[function])
    verdicts = {each.column: (each.verdict, each.problem or "") for each in columns.audit(path)}
    assert verdicts["dense"] == ("sound", "")  # what nobody named does not stop the audit of the others
    assert verdicts["v"][0] == "unknown"
    assert "read one vector a row" in verdicts["v"][1]


@pytest.mark.parametrize("function", [WordVectors.create(), Letters.create()], ids=["multi", "sparse"])
def test_what_takes_one_vector_a_row_refuses_others(function: embedreg.EmbeddingFunction, tmp_path: Path) -> None:
    """Databend, and changes of columns in tables, with the name of the kind."""
    plural = {"multi": "multi-vectors", "sparse": "sparse vectors"}[function.traits.vectors]
    with pytest.raises(ConfigError, match=f"returns {plural}, which Databend does not take: its vector type"):
        databend.serve({"ai_embed": function}, bind="127.0.0.1:0")
    table = lancedb.connect(tmp_path / "db").create_table("t", pa.table({"text": ["a"]}))
    with pytest.raises(ConfigError, match=f"columns of {plural} can be changed in Parquet and Arrow files only"):
        columns.add(table, function.bind("text", "v"))
    assert np.shape(embedreg.embed_table({"text": ["a"]}, function.bind("text", "v"))["v"]) == (1,)
