"""The same texts through every engine: equal vectors, equal declarations, also after the tools that drop metadata."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import lancedb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.declaration import codec, manifest
from embedreg.declaration.entries import KEY
from embedreg.engines import duckdb as in_duckdb
from embedreg.engines import lancedb as in_lancedb
from embedreg.engines.duckdb import sql as duckdb_sql
from tests.engines.conftest import RAY_WARNS, Cluster

pytestmark = RAY_WARNS

WORDS = ["stone", "river", "lamp", "green", "slowly", "under", "seven", "bread", "window", "copy", "wait", "paint"]


def texts(rows: int) -> list[str | None]:
    """Return texts of one to fourteen words, among them equal ones, nulls and blanks."""
    generator = np.random.default_rng(7)
    made: list[str | None] = [
        f"{' '.join(generator.choice(WORDS, generator.integers(1, 14)))} {row % (rows // 2)}" for row in range(rows)
    ]
    made[5], made[rows // 2] = None, "  "
    return made


class Case(NamedTuple):
    """A function, its texts, and the file that `embed_table` makes of them."""

    fn: Any
    table: pa.Table
    local: Path

    def vectors(self) -> np.ndarray:
        """The local vectors, NaN where null."""
        return matrix(pq.read_table(self.local)["vector"], self.fn.ndims())


@pytest.fixture(scope="module", params=["hashing", pytest.param("minilm", marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """20,000 texts for `hashing`, 500 for a model, embedded locally."""
    if request.param == "hashing":
        fn, table = embedreg.get("hashing").create(dim=64), table_of(20_000)
    else:
        fn = embedreg.get("sentence-transformers").create(name="all-MiniLM-L6-v2", device="cpu")  # in its wheel
        table = table_of(500)
    local = tmp_path_factory.mktemp("local") / "local.parquet"
    pq.write_table(embedreg.embed_table(table, fn.bind("text", "vector")), local)
    return Case(fn, table, local)


def table_of(rows: int) -> pa.Table:
    """Return a table of texts."""
    return pa.table({"id": range(rows), "text": texts(rows)})


def matrix(column: Any, ndims: int) -> np.ndarray:
    """Return the vectors of a column of any list type, NaN where null."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    made = np.full((len(array), ndims), np.nan, np.float32)
    present = np.asarray(array.is_valid())
    made[present] = array.filter(pa.array(present)).flatten().to_numpy(zero_copy_only=False).reshape(-1, ndims)
    return made


# -- engines: each embeds a table in its own way and stores it, and gives where it lies and its vectors in order -------


def with_duckdb(fn: Any, table: pa.Table, folder: Path) -> tuple[Any, Any]:
    """Embed with the SQL function, and COPY with our clause."""
    stored = embedreg.get_registry().get_table_metadata([fn.bind("text", "vector")])
    entries = codec.entries(stored)
    path = folder / "duckdb.parquet"
    with duckdb.connect() as con:
        in_duckdb.install(con, fn)
        con.register("rows", table)
        con.execute("CREATE TABLE t AS SELECT *, ai_embed(text) AS vector FROM rows ORDER BY id")
        con.execute(duckdb_sql.copy_statement("t", str(path), entries))
    return path, pq.read_table(path).sort_by("id")["vector"]


def with_lancedb(fn: Any, table: pa.Table, folder: Path) -> tuple[Any, Any]:
    """Embed with `engines.lancedb.add` into a LanceDB table."""

    class Rows(embedreg.Schema):
        id: int
        text: str | None = fn.SourceField(default=None)
        vector: embedreg.Vector(fn.ndims()) | None = fn.VectorField(default=None)  # type: ignore[valid-type]

    made = in_lancedb.create_table(lancedb.connect(folder), "rows", Rows)
    in_lancedb.add(made, table)
    return folder / "rows.lance", made.to_arrow().sort_by("id")["vector"]


def with_lancedb_alone(fn: Any, table: pa.Table, folder: Path) -> tuple[Any, Any]:
    """Embed by lancedb's own `add`."""
    from lancedb.pydantic import LanceModel

    class Rows(LanceModel):
        id: int
        text: str | None = fn.SourceField(default=None)
        vector: embedreg.Vector(fn.ndims()) | None = fn.VectorField(default=None)  # type: ignore[valid-type]

    made = lancedb.connect(folder).create_table("own", schema=Rows)
    made.add(table, on_bad_vectors="null")
    return folder / "own.lance", made.to_arrow().sort_by("id")["vector"]


ENGINES: dict[str, Callable[[Any, pa.Table, Path], tuple[Any, Any]]] = {
    "DuckDB": with_duckdb,
    "LanceDB": with_lancedb,
    "LanceDB's own add": with_lancedb_alone,
}


def declared(data: Any) -> Any:
    """Return what data declares of its vectors, but for what is learnt at a first write."""
    functions = embedreg.functions_in(data)
    config = functions["vector"]
    learnt = {*codec.LEARNT, "producer"}  # LanceDB compares a declaration alone, which must not hold versions
    recorded = {k: v for k, v in functions.entries["vector"].reserved.items() if k not in learnt}
    return config.source_column, config.function, recorded


def agree(case: Case, place: Any, vectors: Any) -> None:
    """Compare what an engine made with what `embed_table` makes of the same texts."""
    expected = case.vectors()
    assert int(np.isnan(expected[:, 0]).sum()) == 2
    np.testing.assert_allclose(matrix(vectors, case.fn.ndims()), expected, rtol=0, atol=1e-5)
    assert declared(place) == declared(case.local)
    [drift] = embedreg.check_drift(place)
    assert drift.verdict in ("same", "unknown")  # what was declared and never written by us has no probe


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_gives_the_same_vectors_and_declares_the_same(case: Case, tmp_path: Path, name: str) -> None:
    """Vectors within 1e-5 of the local ones, null where these are null, under an equal declaration."""
    agree(case, *ENGINES[name](case.fn, case.table, tmp_path))


@pytest.mark.slow
def test_two_ray_actors_give_the_same(case: Case, tmp_path: Path, cluster: Cluster) -> None:
    """A Ray dataset, embedded by two actors and written as a folder, is the same again."""
    import ray.data

    from embedreg.engines import ray as in_ray

    declaration, rows = case.fn.bind("text", "vector"), len(case.table) // 8
    made = in_ray.embed_dataset(ray.data.from_arrow(case.table), declaration, actors=2, batch_rows=rows)
    in_ray.write_parquet(made, str(tmp_path / "ray"))
    stored = pq.read_table(tmp_path / "ray").sort_by("id")["vector"]
    agree(case, tmp_path / "ray", stored)


@pytest.mark.skipif(find_spec("databend") is None, reason="the engine is on PyPI for x86-64 Linux only")
def test_a_databend_ctas_with_our_ddl_gives_the_same(case: Case, tmp_path: Path) -> None:
    """The table that `databend_sql` has Databend make, by a CTAS through our server: its comment is the declaration."""
    from embedreg.engines.databend import Served, serve, sql
    from tests.engines.databend_engine import Engine

    served, layout = Served("ai_embed", case.fn), sql.Layout("notes", "text", "vector", "id")
    rows = [
        f"({row['id']}, {'NULL' if row['text'] is None else sql.literal(row['text'])})"
        for row in case.table.to_pylist()
    ]
    with serve([served], bind="127.0.0.1:0") as server, Engine(tmp_path / "engine", server.address) as engine:
        engine.sql(sql.create_function(served, server.address))
        engine.sql("CREATE TABLE notes (id BIGINT, text STRING NULL)")
        for start in range(0, len(rows), 5000):
            engine.sql(f"INSERT INTO notes VALUES {', '.join(rows[start : start + 5000])}")
        engine.sql(sql.create_vector_table(served, layout))
        made = engine.sql("SELECT vector FROM notes_embedded ORDER BY id")["vector"]
        shown = engine.rows("SELECT comment FROM system.columns WHERE table = 'notes_embedded'")
    entry = sql.functions_in_comments(row["comment"] for row in shown).entries["vector"]
    agree(case, {KEY: f"[{entry.raw}]"}, made)


@pytest.fixture
def con() -> Iterator[Any]:
    """A DuckDB database."""
    with duckdb.connect() as connection:
        yield connection


def test_declarations_come_back_from_every_carrier(case: Case, tmp_path: Path, con: Any) -> None:
    """A DuckDB COPY with our clause, its comments, and a polars rewrite beside its manifest: the very same function,
    whose query finds its row in what these tools wrote.
    """
    fn, table, local = case
    folder = tmp_path / "data"
    folder.mkdir()
    place = Path(shutil.copy(local, folder))
    declaration, expected = declared(place), case.vectors()
    entries = list(embedreg.functions_in(place).entries.values())

    con.execute(duckdb_sql.create_table_statement("t", str(place), entries))
    con.execute(duckdb_sql.copy_statement("t", str(tmp_path / "copied.parquet"), entries))
    for statement in duckdb_sql.comment_statements("t", entries):
        con.execute(statement)
    manifest.write(folder, f"[{entries[0].raw}]".encode())
    pl.read_parquet(place).write_parquet(place)
    assert not pq.read_schema(place).metadata

    for carrier in (tmp_path / "copied.parquet", con.table("t"), place, folder):
        assert declared(carrier) == declaration
        [drift] = embedreg.check_drift(carrier)
        assert drift.verdict == "same"
    for path in (tmp_path / "copied.parquet", place):
        rewritten = pq.read_table(path).sort_by("id")["vector"]
        np.testing.assert_array_equal(matrix(rewritten, fn.ndims()), expected)
    in_duckdb.install(con, folder)
    query = table["text"][11].as_py()
    nearest = "SELECT text FROM t ORDER BY array_cosine_distance(vector, ai_embed_query($1)) LIMIT 1"
    assert con.execute(nearest, [query]).fetchall() == [(query,)]
