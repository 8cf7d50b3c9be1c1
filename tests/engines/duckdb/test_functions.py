"""DuckDB: embedding functions in SQL, and declarations in column comments and Parquet footers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import EmbeddingFunction, Traits, register
from embedreg.engines import duckdb as engine
from embedreg.engines.duckdb import sql as duckdb_sql
from embedreg.errors import CallError, ConfigError, MetadataError, StorageError
from tests.fakes import Lengths, Picky, lengths
from tests.turning import Model

ROWS = ["the cat sat on the mat", "a thread waits", None, "copy a file", "   ", "the cat sat on the mat"]


@pytest.fixture
def con() -> Iterator[Any]:
    """A database in memory."""
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture(autouse=True)
def unseen() -> None:
    """Forget what reached the functions."""
    Lengths.seen.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A Parquet file that embedreg wrote: a null and a blank row among the texts."""
    made = embedreg.embed_table({"id": list(range(6)), "text": ROWS}, hashing().bind("text", "vector"))
    pq.write_table(made, tmp_path / "texts.parquet")
    return tmp_path / "texts.parquet"


def hashing(dim: int = 64) -> Any:
    """Return the function of most tests."""
    return embedreg.get("hashing").create(dim=dim)


@register("signs")
class Signs(Lengths):
    """Embeds queries with their signs turned."""

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return -np.asarray(self.generate_embeddings([query]))


@register("duck-sizes")
class Sizes(EmbeddingFunction):
    """Embeds pictures by how many bytes they have, and queries for them by their words."""

    traits = Traits(modality="image+text")

    def ndims(self) -> int:
        return 2

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        return [[len(image), 0] for image in images.to_pylist()]

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [[0, len(query.split())]]


@register("duck-broken")
class Broken(Lengths):
    """Fails every call, with several lines."""

    error: ClassVar[Exception] = RuntimeError("first line\nsecond line")

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        raise self.error


# -- SQL functions ---------------------------------------------------------------------------------------------------


def test_a_search_over_parquet_in_plain_sql(con: Any, path: Path) -> None:
    """The function that a file declares is installed from the file, and finds the row that states what is asked."""
    engine.install(con, path)
    sql = (
        f"SELECT id FROM '{path}' ORDER BY array_cosine_distance(vector::FLOAT[64], "
        "ai_embed_query('thread that waits')) LIMIT 5"
    )
    found = [row for (row,) in con.sql(sql).fetchall()]
    assert found[0] == 1
    assert set(found[-2:]) <= {0, 2, 4, 5, 3}


@pytest.mark.parametrize("kind", ["function", "binding", "path", "schema", "table"])
def test_what_can_be_installed(con: Any, path: Path, kind: str) -> None:
    """A function, a declaration, and whatever declares one give the same SQL function."""
    table = pq.read_table(path)
    given = {
        "function": hashing(),
        "binding": hashing().bind("text", "vector"),
        "path": str(path),
        "schema": table.schema,
        "table": table,
    }[kind]
    assert engine.install(con, given, name="f") == hashing()
    [(vector,)] = con.sql(f"SELECT f('{ROWS[0]}')").fetchall()
    assert np.array_equal(np.array(vector, np.float32), table["vector"][0].values.to_numpy())


def test_null_blank_and_bad_rows_are_null(con: Any) -> None:
    """Every row that has no vector is NULL in SQL, and the others are right; so they are sorted last."""
    engine.install(con, Picky.create())
    con.execute("CREATE TABLE t AS SELECT unnest(['one', NULL, ' ', 'bad', 'none', 'nan', 'inf', 'two words']) AS text")
    found = con.sql("SELECT text, ai_embed(text) FROM t").fetchall()
    assert [vector for _, vector in found[1:-1]] == [None] * 6
    assert [list(found[0][1]), list(found[-1][1])] == [lengths("one"), lengths("two words")]
    assert con.sql("SELECT typeof(ai_embed(text)) FROM t LIMIT 1").fetchall() == [("FLOAT[3]",)]
    sql = "SELECT text FROM t ORDER BY array_distance(ai_embed(text), ai_embed_query('one')) LIMIT 2"
    assert con.sql(sql).fetchall() == [("one",), ("two words",)]


def test_sources_and_queries_have_their_own_roles(con: Any) -> None:
    """`ai_embed` embeds as a source row and `ai_embed_query` as a query, also in a column of queries."""
    engine.install(con, Signs.create())
    con.execute("CREATE TABLE t AS SELECT unnest(['one', 'two words']) AS text")
    for source, query in con.sql("SELECT ai_embed(text), ai_embed_query(text) FROM t").fetchall():
        assert [-value for value in source] == list(query)


def test_pictures_come_as_bytes_and_are_asked_for_in_words(con: Any) -> None:
    """A function of images takes BLOB as source, VARCHAR as query where it knows text."""
    engine.install(con, Sizes.create(), name="look")
    assert con.sql("SELECT look('abc'::BLOB), look_query('a red square')").fetchall() == [((3.0, 0.0), (0.0, 3.0))]


def test_each_text_is_embedded_once(con: Any) -> None:
    """DuckDB asks for 2048 rows at a time: what comes again, in a later call or query, is not embedded again."""
    engine.install(con, Lengths.create())
    con.execute("CREATE TABLE t AS SELECT 'text number ' || (i % 100) AS text FROM range(10000) r(i)")
    sql = "SELECT avg(array_distance(ai_embed(text), ai_embed_query('constant'))) FROM t"
    first = con.sql(sql).fetchall()
    assert len(Lengths.seen) == 101
    assert con.sql(sql).fetchall() == first
    assert sorted(Lengths.seen) == sorted({*Lengths.seen})


def test_what_is_kept_is_bounded(con: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest vectors stay, within so many bytes; a value that was pushed out is embedded again."""
    monkeypatch.setattr("embedreg.engines.duckdb.functions.KNOWN_BYTES", 50 * 212)
    engine.install(con, Lengths.create())
    con.execute("CREATE TABLE t AS SELECT 'text ' || i AS text FROM range(200) r(i)")
    con.sql("SELECT ai_embed(text) FROM t").fetchall()
    Lengths.seen.clear()
    con.sql("SELECT ai_embed(text) FROM t WHERE text IN ('text 0', 'text 199')").fetchall()
    assert Lengths.seen == ["text 0"]


def test_a_failed_call_fails_the_query_in_one_line(con: Any) -> None:
    """No column of nulls where the model fell over; the message has the error's name and hint, and no traceback."""
    engine.install(con, Broken.create(), name="broken")
    for error, expected in (
        (RuntimeError("first line\nsecond line"), "CallError: 'duck-broken' failed: RuntimeError: first line"),
        (CallError("no more quota.", "wait an hour"), "CallError: no more quota. Hint: wait an hour"),
    ):
        Broken.error = error
        with pytest.raises(duckdb.Error) as raised:
            con.sql("SELECT broken('x')").fetchall()
        assert str(raised.value).endswith(expected)
        assert "\n" not in str(raised.value)


def test_installing_again_replaces_both(con: Any) -> None:
    """A name belongs to what was installed last, of whatever width; its vectors are not the former one's."""
    engine.install(con, Lengths.create())
    assert con.sql("SELECT ai_embed('abc')").fetchall() == [(tuple(lengths("abc")),)]
    engine.install(con, hashing(8))
    [(source, query)] = con.sql("SELECT ai_embed('abc'), ai_embed_query('abc')").fetchall()
    assert len(source) == len(query) == 8


def test_a_cursor_has_the_functions_and_cannot_replace_them(con: Any) -> None:
    """Cursors share the database's functions; DuckDB lets the connection that installed them replace them."""
    engine.install(con, hashing(8))
    with con.cursor() as cursor:
        assert len(cursor.sql("SELECT ai_embed('abc')").fetchall()[0][0]) == 8
        with pytest.raises(StorageError, match="ai_embed") as raised:
            engine.install(cursor, hashing(4))
        assert "under another name" in str(raised.value)


def test_queries_in_many_threads(con: Any) -> None:
    """Eight cursors in eight threads, and DuckDB's own threads: every vector is its text's."""
    engine.install(con, hashing(16))
    con.execute("SET threads = 4")
    con.execute("CREATE TABLE t AS SELECT i, 'text number ' || (i % 3000) AS text FROM range(150000) r(i)")
    expected = embedreg.embed_column(hashing(16), [f"text number {row}" for row in range(3000)]).matrix
    wrong: list[Any] = []

    def work(number: int) -> None:
        with con.cursor() as cursor:
            sql = f"SELECT i % 3000 AS i, ai_embed(text) AS v FROM t WHERE i % 8 = {number} AND i < 40000"
            got = cursor.sql(sql).to_arrow_table().combine_chunks()
            vectors = got["v"].combine_chunks().flatten().to_numpy().reshape(-1, 16)
            if not np.allclose(vectors, expected[got["i"].to_numpy()], atol=1e-6):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_data_without_a_function_or_with_several(con: Any) -> None:
    """Nothing is guessed: none is an error, and of several one is named."""
    with pytest.raises(MetadataError, match="declares no"):
        engine.install(con, pa.table({"text": ["a"]}))
    configs = [hashing(4).bind("text", "v4"), hashing(8).bind("text", "v8")]
    made = embedreg.embed_table({"text": ["a"]}, configs)
    with pytest.raises(MetadataError, match="2 vector columns") as raised:
        engine.install(con, made)
    assert "vector='v4'" in str(raised.value)
    engine.install(con, made, vector="v8")
    assert len(con.sql("SELECT ai_embed('abc')").fetchall()[0][0]) == 8
    with pytest.raises(ConfigError, match="no name"):
        engine.install(con, hashing(), name="")


# -- declarations ----------------------------------------------------------------------------------------------------


def entries_of(path: Path) -> Any:
    """Return the declarations of a file as they are stored."""
    return list(embedreg.functions_in(path).entries.values())


def test_copy_with_our_clause_keeps_the_declaration(con: Any, path: Path, tmp_path: Path) -> None:
    """DuckDB's own Parquet files declare what the clause says, though DuckDB drops the schema's metadata."""
    out = tmp_path / "out.parquet"
    con.execute(f"CREATE TABLE t AS FROM '{path}'")
    con.execute(f"COPY t TO '{out}' (FORMAT parquet)")
    assert not embedreg.functions_in(out)
    con.execute(duckdb_sql.copy_statement("t", str(out), entries_of(path)))
    assert embedreg.functions_in(out)["vector"] == embedreg.functions_in(path)["vector"]
    assert embedreg.inspect(out) == embedreg.inspect(path)
    [drift] = embedreg.check_drift(out)
    assert drift.verdict == "same"


def test_a_copy_of_null_arrays_can_be_read_by_others(con: Any, path: Path, tmp_path: Path) -> None:
    """DuckDB writes NULL arrays as only itself can read; our COPY casts them, so pyarrow reads every row."""
    out = tmp_path / "out.parquet"
    con.execute(duckdb_sql.create_table_statement("t", str(path), entries_of(path)))
    assert con.sql("SELECT typeof(vector) FROM t LIMIT 1").fetchall() == [("FLOAT[64]",)]
    con.execute(duckdb_sql.copy_statement("t", str(out), entries_of(path)))
    assert pq.read_table(out)["vector"].to_pylist() == pq.read_table(path)["vector"].to_pylist()


def test_comments_declare_a_table(con: Any, path: Path) -> None:
    """What our COMMENT statements declare is read from the connection, from a relation, and from a view; words stay."""
    con.execute(f"CREATE TABLE t AS FROM '{path}'")
    con.execute("CREATE VIEW v AS FROM t")
    con.execute("COMMENT ON COLUMN t.text IS 'what somebody wrote'")
    assert not engine.functions_in(con, "t")
    for name in ("t", "main.v"):
        [statement] = duckdb_sql.comment_statements(name, entries_of(path), "Vectors of the texts.")
        con.execute(statement)
        [(comment,)] = con.execute(
            "SELECT comment FROM duckdb_columns() WHERE table_name = ? AND column_name = 'vector'", [name[-1]]
        ).fetchall()
        assert comment.startswith("Vectors of the texts. embedding_functions=[")
        assert "\n" not in comment
    expected = embedreg.functions_in(path)["vector"]
    for name in ("t", "T", "main.t", "memory.main.t", "v", '"t"'):
        assert engine.functions_in(con, name)["vector"] == expected
    assert embedreg.functions_in(con.table("t"))["vector"] == expected
    assert embedreg.functions_in(con.view("v"))["vector"] == expected
    assert not embedreg.functions_in(con.sql("SELECT 1 AS x"))
    engine.install(con, con.table("t"))
    assert len(con.sql("SELECT ai_embed('abc')").fetchall()[0][0]) == 64


def test_comments_survive_a_database_file(tmp_path: Path, path: Path) -> None:
    """A database that is opened again, by another connection, still declares its functions."""
    with duckdb.connect(tmp_path / "d.duckdb") as con:
        con.execute(f"CREATE TABLE t AS FROM '{path}'")
        for statement in duckdb_sql.comment_statements("t", entries_of(path)):
            con.execute(statement)
    with duckdb.connect(tmp_path / "d.duckdb", read_only=True) as con:
        assert engine.functions_in(con, "t")["vector"] == embedreg.functions_in(path)["vector"]


def test_names_and_texts_cannot_leave_their_quotes(con: Any, tmp_path: Path) -> None:
    """Tables, columns and configurations with quotes, semicolons and backslashes come back as they were."""
    table, vector, source = 'a"b;--', "v'\"; DROP TABLE t; --", 's"\\'
    fn = embedreg.get("openai").create(name="text-embedding-3-small", query_prompt="'\"\\;--\n")
    written = embedreg.get_registry().get_table_metadata([fn.bind(source, vector)])
    entries = list(embedreg.functions_in(written).entries.values())
    quoted = '"a""b;--"'
    con.execute(
        f"CREATE TABLE t AS SELECT 1 AS x; CREATE TABLE {quoted} AS SELECT [1.0] AS {duckdb_sql.identifier(vector)}"
    )
    for statement in duckdb_sql.comment_statements(quoted, entries):
        con.execute(statement)
    out = tmp_path / "it's; here.parquet"
    con.execute(duckdb_sql.copy_statement(quoted, str(out), entries))
    for found in (
        engine.functions_in(con, quoted),
        embedreg.functions_in(con.table(quoted)),
        embedreg.functions_in(out),
    ):
        assert found.entries[vector].model == entries[0].model
        assert found.entries[vector].source_column == source
    assert con.sql("SELECT * FROM t").fetchall() == [(1,)]
    assert table in duckdb_sql.parts_of(quoted)


@pytest.mark.parametrize("name", ["", ".", "a.", 'a"b', '"a', "a.b.c.d", '""', 'a."b"c', "a\0b"])
def test_what_is_no_table_name_is_refused(name: str) -> None:
    """Text that cannot name a table never becomes SQL."""
    with pytest.raises(ConfigError):
        duckdb_sql.table_name(name)


def test_tables_that_are_not_there_and_comments_that_are_broken(con: Any) -> None:
    """No table is an error, and so is a declaration that cannot be read; another comment is left alone."""
    with pytest.raises(StorageError, match="no table"):
        engine.functions_in(con, "missing")
    con.execute("CREATE TABLE t (text VARCHAR, a FLOAT[3], b FLOAT[3])")
    con.execute("COMMENT ON COLUMN t.a IS 'embedding_functions are nice'")
    assert not engine.functions_in(con, "t")
    con.execute("COMMENT ON COLUMN t.a IS 'embedding_functions=[{\"name\": 1}]'")
    with pytest.raises(MetadataError):
        engine.functions_in(con, "t")
    with pytest.raises(MetadataError, match="no declaration"):
        duckdb_sql.copy_clause([])
    with pytest.raises(MetadataError, match="no declaration"):
        duckdb_sql.comment_statements("t", [])


def test_two_columns_of_one_table(con: Any) -> None:
    """Each column's comment holds its own declaration; together they are the table's."""
    configs = [hashing(4).bind("text", "v4"), hashing(8).bind("text", "v8")]
    made = embedreg.embed_table({"text": ["a"]}, configs)
    con.execute("CREATE TABLE t AS FROM made")
    for statement in duckdb_sql.comment_statements("t", list(embedreg.functions_in(made).entries.values())):
        con.execute(statement)
    found = engine.functions_in(con, "t")
    assert {column: found[column].function for column in found} == {"v4": hashing(4), "v8": hashing(8)}
    con.execute("COMMENT ON COLUMN t.v4 IS NULL")
    assert list(engine.functions_in(con, "t")) == ["v8"]


def test_a_temporary_table_hides_one_of_its_name(con: Any) -> None:
    """The table that DuckDB itself would take is the one whose comments are read."""
    made = embedreg.embed_table({"text": ["a"]}, hashing(4).bind("text", "v"))
    con.execute("CREATE TABLE t AS FROM made; CREATE SCHEMA s; CREATE TABLE s.t AS FROM made")
    [statement] = duckdb_sql.comment_statements("main.t", list(embedreg.functions_in(made).entries.values()))
    con.execute(statement)
    assert engine.functions_in(con, "t")
    assert not engine.functions_in(con, "s.t")
    con.execute("CREATE TEMP TABLE t AS FROM made")
    assert not engine.functions_in(con, "t")
    assert engine.functions_in(con, "memory.main.t")


def test_a_function_that_has_changed_is_found_out_in_sql(
    con: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is compared at the first call, also where this process created the function."""
    pq.write_table(embedreg.embed_table({"text": ["a"]}, Model().bind("text", "vector")), tmp_path / "t.parquet")
    monkeypatch.setattr(Model, "angle", 1.0)
    Model.create()
    engine.install(con, tmp_path / "t.parquet")
    for sql in ("SELECT ai_embed('a')", "SELECT ai_embed_query('a')"):
        with pytest.raises(duckdb.Error, match="no longer returns the stored vectors"):
            con.sql(sql).fetchall()
