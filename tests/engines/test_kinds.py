"""Each kind of vectors in DuckDB, LanceDB, Databend and columns of files; refused by name where it is not taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import columns
from embedreg.arrow.quantized import QUANTIZED
from embedreg.cli import main
from embedreg.cli import search as searching
from embedreg.datasets import places
from embedreg.declaration import codec, drift
from embedreg.engines import databend
from embedreg.engines import duckdb as duck
from embedreg.engines import lancedb as lancedb_engine
from embedreg.errors import ConfigError, DriftError, VectorError
from tests.kinds import ROWS, Letters, WordVectors, of_each_kind, word_vectors

ROOT = Path(__file__).resolve().parents[2]

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


# -- each kind through the engines -------------------------------------------------------------------------------------

KINDS = ["multi", "sparse", "template", "int8", "uint8", "binary", "ubinary"]


@pytest.mark.parametrize("name", KINDS)
def test_a_declaration_goes_through_files_and_notices_drift(name: str, tmp_path: Path) -> None:
    """Parquet, Arrow and DuckDB's own copy give back function, dtype, ranges and template; another function drifts."""
    config = of_each_kind()[name]
    made = embedreg.embed_table(ROWS, config)
    parquet, arrow, copied = (tmp_path / each for each in ("t.parquet", "t.arrow", "copied.parquet"))
    pq.write_table(made, parquet)
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
        writer.write_table(made)
    con, entries = duckdb.connect(), codec.entries(made.schema.metadata)
    con.execute(duck.sql.create_table_statement("t", str(parquet), entries))
    con.execute(duck.sql.copy_statement("t", str(copied), entries))
    assert pq.read_table(copied)[name].to_pylist() == made[name].to_pylist()
    for path in (parquet, arrow, copied):
        assert embedreg.functions_in(path)[name] == config
        assert [each.verdict for each in embedreg.check_drift(path)] == ["same"]
    changes = {"multi": {"scale": -1.0}, "sparse": {"scale": 2.0}}.get(name, {"seed": 1})
    changed = config.function.model_copy(update=changes)
    assert drift.compare(changed, entries[0].reserved).verdict == "drift"
    other = changed.bind(config.source_column, name, template=config.template, dtype=config.value_type)
    gap = made.set_column(
        made.schema.names.index(name),
        made.schema.field(name),
        pa.concat_arrays([pa.nulls(1, made.schema.field(name).type), made[name].combine_chunks()[1:]]),
    )
    with pytest.raises(DriftError):
        embedreg.embed_table(gap, other)


@pytest.mark.parametrize("name", KINDS)
def test_what_sql_serves_of_each_kind(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DuckDB finds by the SQL that is printed what `embedreg search` finds, of floats; refusals name the kind."""
    config = of_each_kind()[name]
    path = tmp_path / "t.parquet"
    pq.write_table(embedreg.embed_table(ROWS, config), path)
    kind = {"multi": "multi-vectors", "sparse": "sparse vectors"}.get(name, f"{name} vectors")
    dense = name == "template"
    with duckdb.connect(str(tmp_path / "d.duckdb")) as data:
        data.execute(f"CREATE TABLE t AS SELECT id, text, title FROM '{path}'")
    if dense:
        assert columns.add(tmp_path / "d.duckdb" / "t", config).embedded == 59
    else:
        with pytest.raises(ConfigError, match=kind):
            columns.add(tmp_path / "d.duckdb" / "t", config)
    con = duckdb.connect()
    [entry] = codec.entries(pq.read_schema(path).metadata)
    con.execute(duck.sql.create_table_statement("t", str(path), [entry]))
    if config.value_type in QUANTIZED:
        with pytest.raises(ConfigError, match=kind):
            duck.sql.search_statement("t", entry)
    else:
        duck.install(con, config.function, "ai_embed")
        looked_for = duck.sql.search_statement("t", entry, limit=1).replace("what you look for", "note z")
        [found] = con.sql(looked_for).fetchall()
        hits = searching.find(places.find(str(path)), "note z", limit=60)
        nearest = hits.distances <= hits.distances.min() + 1e-6
        assert found[0] in hits.rows["id"].to_numpy()[nearest]
        assert nearest.sum() < 30
    assert (main(["ddl", "databend", "--like", str(path)]) == 0) == dense
    assert dense or kind in capsys.readouterr().err


REOPENED = """
import sys
import lancedb
import embedreg, tests.kinds
from embedreg.cli import search as searching
from embedreg.datasets import places
from embedreg.engines.lancedb import add
from embedreg.errors import ConfigError
table = lancedb.connect("db").open_table("t")
add(table, [{"id": 60, "text": "an owl in the night", "title": "birds"}])
assert {each.verdict for each in embedreg.check_drift(table)} == {"same"}
for name in ("multi", "template", "ubinary"):
    asked = "birds: an owl in the night" if name == "template" else "an owl in the night"
    [hit] = table.search(asked, vector_column_name=name).limit(1).to_list()
    assert hit["id"] == 60, name
for name in ("sparse", "int8", "binary"):
    try:
        table.search("an owl in the night", vector_column_name=name).to_list()
    except (ConfigError, RuntimeError) as exc:
        assert f"{name} vectors" in str(exc), exc
    else:
        raise AssertionError(name)
    hits = searching.find(places.find("db/t.lance"), "an owl in the night", vector=name, limit=1)
    assert hits.rows["id"].to_pylist() == [60], name
"""


def test_a_lancedb_table_of_every_kind_in_another_process(run_python: Callable[..., str], tmp_path: Path) -> None:
    """One table with a column of each kind: filled here, searched and added to there, by the same ranges."""
    configs = [config for name, config in of_each_kind().items() if name != "uint8"]
    local = embedreg.embed_table(ROWS, configs)
    table = lancedb_engine.create_table(lancedb.connect(tmp_path / "db"), "t", local.schema)
    lancedb_engine.add(table, ROWS)
    assert table.to_arrow().select(local.schema.names).cast(local.schema).equals(local)
    run_python(REOPENED, path=[ROOT], cwd=tmp_path)
    new = pa.table({"id": [60], "text": ["an owl in the night"], "title": ["birds"]})
    table.checkout_latest()
    row = table.to_arrow().filter(pc.field("id") == 60).select(local.schema.names).cast(local.schema)
    assert row.equals(embedreg.embed_table(new, configs))
