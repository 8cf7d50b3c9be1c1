"""The SQL that adds, refreshes and migrates a column of a Databend table, run by the real engine."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import pyarrow as pa
import pytest

import embedreg
from embedreg.arrow.templates import parse
from embedreg.cli import main
from embedreg.columns.declare import entry_for
from embedreg.engines.databend import Server, serve
from embedreg.engines.databend.changes import Column, add, migrate, refresh
from embedreg.engines.databend.sql import functions_in_comments
from embedreg.errors import ConfigError
from embedreg.inspection.engines import Statements
from tests.engines.databend_engine import Engine, SqlError

needs_engine = pytest.mark.skipif(find_spec("databend") is None, reason="the engine has no wheel for this machine")


def hashing(seed: int = 0) -> embedreg.EmbeddingFunction:
    """Eight dimensions."""
    return embedreg.get("hashing").create(dim=8, seed=seed)


def column(vector: str = "embedding", function: str = "old_embed", seed: int = 0, **more: Any) -> Column:
    """A column of the table `articles`, embedded from `content`."""
    return Column("articles", entry_for(hashing(seed).bind("content", vector), digest=True), function, **more)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of two functions."""
    with serve({"old_embed": hashing(), "new_embed": hashing(1)}, bind="127.0.0.1:0", warm=False) as running:
        yield running


@pytest.fixture(scope="module")
def engine(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A real engine that knows both."""
    with Engine(tmp_path_factory.mktemp("engine"), server.address) as running:
        for name in ("old_embed", "new_embed"):
            running.create(name, server.address)
        yield running


def run(engine: Engine, statements: Sequence[Statements], *keys: str) -> list[Any]:
    """Run the statements of these keys, all by default; return the last answer."""
    answer: list[Any] = []
    for each in statements:
        for statement in each.listed if not keys or each.key in keys else ():
            try:
                answer = engine.rows(statement.rstrip(";"))
            except SqlError as exc:  # the binding cannot show the counts of a MERGE, which is done all the same
                if not statement.startswith("MERGE") or "column types must match schema types" not in str(exc):
                    raise
    return answer


def texts(engine: Engine, function: embedreg.EmbeddingFunction, name: str = "articles") -> bool:
    """Return whether each row of a table or view has the vector of its text."""
    rows = engine.rows(f"SELECT content, embedding FROM {name}")
    made = embedreg.embed_table({"content": [row["content"] for row in rows]}, function.bind("content", "v"))
    return [row["embedding"] for row in rows] == [
        None if vector is None else pytest.approx(vector, abs=1e-6) for vector in made["v"].to_pylist()
    ]


@needs_engine
def test_the_statements_run_from_add_to_finish(engine: Engine) -> None:
    """As printed for 1.2.453: edits found by digest, one statement that switches, one that goes back."""
    engine.sql("CREATE TABLE articles (id BIGINT, content STRING)")
    engine.sql("INSERT INTO articles VALUES (1, 'bread'), (2, 'rome'), (3, NULL), (4, 'bread')")
    assert run(engine, add(column())) == [{"rows_left": 0}]
    assert texts(engine, hashing())
    shown = [row["comment"] for row in engine.rows("SELECT comment FROM system.columns WHERE table = 'articles'")]
    assert functions_in_comments(shown)["embedding"].function == hashing()

    engine.sql("UPDATE articles SET content = 'trees' WHERE id = 1")
    engine.sql("UPDATE articles SET content = NULL WHERE id = 2")
    engine.sql("INSERT INTO articles (id, content) VALUES (5, 'new')")
    assert run(engine, refresh(column()), "check") == [{"rows_left": 2}]
    assert run(engine, refresh(column())) == [{"rows_left": 0}]
    assert texts(engine, hashing())

    steps = migrate(column("embedding_2", "new_embed", 1), "embedding", "articles_current")
    run(engine, steps, "columns", "view")
    assert texts(engine, hashing(), "articles_current")
    assert run(engine, steps, "fill", "clear", "check") == [{"rows_left": 0}]
    run(engine, steps, "switch")
    assert texts(engine, hashing(1), "articles_current")
    run(engine, steps, "rollback")
    assert texts(engine, hashing(), "articles_current")
    run(engine, steps, "switch")
    run(engine, steps, "finish")
    assert [row["Field"] for row in engine.rows("DESC articles")] == [
        "id",
        "content",
        "embedding__source_digest",
        "embedding_2",
        "embedding_2__source_digest",
    ]


@needs_engine
def test_the_update_of_newer_versions_runs_with_a_function_of_sql(engine: Engine) -> None:
    """1.2.453 takes none that is external there, so one of its own stands in its place."""
    engine.sql("CREATE TABLE notes (content STRING)")
    engine.sql("INSERT INTO notes VALUES ('bread'), (NULL)")
    engine.sql("CREATE FUNCTION stand_in AS (x) -> [length(x)::FLOAT, 1::FLOAT]")
    newer = Column("notes", column().entry, "stand_in", "current")
    assert run(engine, add(newer)) == [{"rows_left": 0}]
    assert sorted(engine.rows("SELECT embedding FROM notes"), key=str) == [
        {"embedding": None},
        {"embedding": [5.0, 1.0]},
    ]
    [fill, *_] = refresh(Column("notes", column().entry, "old_embed", "current"))
    engine.sql("UPDATE notes SET embedding = NULL, embedding__source_digest = NULL")
    with pytest.raises(SqlError):
        engine.sql(fill.listed[0].rstrip(";"))


def test_names_are_quoted_and_what_cannot_stand_is_refused() -> None:
    """Reserved words, quotes, one name for two columns, a version that nobody knows, a type before its time."""
    odd = Column('my "db".select', entry_for(hashing().bind("from", 'a"b'), digest=True), "f")
    text = "\n".join(line for each in migrate(Column("t", odd.entry, "f"), "order", "the view") for line in each.listed)
    for name in ('"from"', '"a""b"', '"order"', '"the view"'):
        assert name in text
    with pytest.raises(ConfigError, match="needs another name than 'embedding'"):
        migrate(column(), "embedding", "v")
    with pytest.raises(ConfigError, match="did you mean 'current'"):
        column(version="curent")
    with pytest.raises(ConfigError, match="has no VECTOR type"):
        column(returns="vector")
    assert "VECTOR(8) NULL" in add(column(version="current", returns="vector"))[0].listed[0]


def test_the_command_line_prints_them_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """With --print alone or --engine alone it is wrong usage."""
    given = ["articles", "--source", "content", "--engine", "databend", "--set", "dim=8"]
    assert (
        main(["column", "add", *given, "--vector", "embedding", "-f", "hashing", "--as", "old_embed", "--print"]) == 0
    )
    assert capsys.readouterr().out.count(";\n") == 7
    assert main(["column", "refresh", *given, "-f", "hashing", "--print", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"fill", "clear", "check"}
    assert main(["column", "migrate", *given, "--to", "hashing", "--vector", "embedding", "--print"]) == 0
    assert "CREATE OR REPLACE VIEW articles_current AS SELECT * EXCLUDE (embedding," in capsys.readouterr().out
    assert main(["column", "add", *given, "-f", "hashing"]) == 2
    assert "add --print" in capsys.readouterr().err
    assert main(["column", "refresh", *given, "--print"]) == 2


@needs_engine
def test_a_template_is_rendered_by_the_engine_as_in_python(engine: Engine) -> None:
    """The expression gives Python's very texts; `add` and `refresh` render, then embed what they rendered."""
    text = "{{{title}}} \\ 'q'\n\t{n}|{ok}|{day}"
    kinds = [("title", pa.string()), ("n", pa.int64()), ("ok", pa.bool_()), ("day", pa.date32())]
    rows = [("it's", -5, True, dt.date(2024, 2, 29)), (None, 2**62, False, dt.date(1969, 12, 31)), (None,) * 4]
    named = [dict(zip(("title", "n", "ok", "day"), row, strict=True)) for row in rows]
    table = pa.Table.from_pylist(named, pa.schema(kinds))
    expected = parse(text).render(table).to_pylist()
    columns = "id INT, title STRING NULL, n BIGINT NULL, ok BOOLEAN NULL, day DATE NULL"
    engine.rows(f"CREATE OR REPLACE TABLE pages ({columns})")
    engine.rows(
        """INSERT INTO pages VALUES (0, 'it''s', -5, TRUE, '2024-02-29'), (1, NULL, 4611686018427387904, FALSE,
        '1969-12-31'), (2, NULL, NULL, NULL, NULL)"""
    )
    entry = entry_for(hashing().bind("embedding__source", "embedding", template=text), digest=True)
    pages = Column("pages", entry, "old_embed")
    assert pages.rendered is not None
    found = engine.rows(f"SELECT {pages.rendered} AS text FROM pages ORDER BY id")
    assert [row["text"] for row in found] == expected
    assert run(engine, add(pages))[0]["rows_left"] == 0
    engine.rows("UPDATE pages SET title = 'new' WHERE id = 1")
    assert run(engine, refresh(pages))[0]["rows_left"] == 0
    made = engine.rows("SELECT embedding__source AS text, embedding AS vector FROM pages ORDER BY id")
    assert made[1]["text"] == expected[1].replace("{}", "{new}")
    vectors = embedreg.embed_column(hashing(), pa.array([row["text"] for row in made])).to_arrow().to_pylist()
    assert [row["vector"] for row in made] == vectors
    [statement] = next(each for each in add(pages) if each.key == "texts").listed
    assert "\n" not in statement
