"""`embedreg ddl duckdb`: what it prints runs as it stands, and keeps the declaration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.engines import duckdb as engine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with two declared columns, one of them with an awkward name."""
    fn = embedreg.get("hashing").create
    made = embedreg.embed_table(
        {"text": ["water the tomatoes", "pay the bill", None]},
        [fn(dim=16).bind("text", "vector"), fn(dim=8).bind("text", 'it\'s "v"')],
    )
    pq.write_table(made, tmp_path / "it's notes.parquet")
    return tmp_path / "it's notes.parquet"


@pytest.mark.parametrize("table", ["notes", 'main."my notes; --"'])
def test_what_is_printed_runs_and_declares(cli: Callable[..., Any], path: Path, tmp_path: Path, table: str) -> None:
    """The whole output, pasted: a table whose comments declare, a Parquet file that declares, a search that finds."""
    printed = cli("ddl", "duckdb", path, "--table", table, "--to", "out.parquet").out
    expected = embedreg.functions_in(path)
    with duckdb.connect() as con:
        engine.install(con, path, vector="vector")
        statements, search = printed.split("-- after")
        con.execute(statements)
        found = engine.functions_in(con, table)
        assert {column: found[column] for column in found} == dict(expected)
        first = search.partition("\n")[2].partition("LIMIT 5;")[0].replace("what you look for", "tomatoes")
        assert con.execute(first).fetchall()[0][0] == "water the tomatoes"
    assert dict(embedreg.functions_in(tmp_path / "out.parquet")) == dict(expected)
    assert [drift.verdict for drift in embedreg.check_drift(tmp_path / "out.parquet")] == ["same", "same"]


def test_json_for_programs(cli: Callable[..., Any], path: Path) -> None:
    """Each statement is one item; the default table name is the file's."""
    found = cli("ddl", "duckdb", path, "--json").json
    assert list(found) == ["create_table", "comments", "copy", "searches"]
    assert found["create_table"].startswith('CREATE TABLE "it\'s notes" AS SELECT * REPLACE ("vector"::FLOAT[16]')
    assert len(found["comments"]) == len(found["searches"]) == 2
    assert "TO 'it''s notes.parquet'" in found["copy"]


def test_a_folder_is_read_by_a_pattern(cli: Callable[..., Any], path: Path, tmp_path: Path) -> None:
    """A folder's files make one table, in which the manifest's declaration is kept."""
    folder = tmp_path / "data" / "day=1"
    folder.mkdir(parents=True)
    pq.write_table(pq.read_table(path), folder / "a.parquet")
    found = cli("ddl", "duckdb", folder.parent, "--json").json
    with duckdb.connect() as con:
        con.execute(found["create_table"])
        assert con.execute("SELECT count(*) FROM data").fetchall() == [(3,)]


def test_data_that_declares_nothing_and_secrets(cli: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing to carry is an error; a secret that another writer stored in plain text is not printed."""
    table = pa.table({"text": ["a"]})
    pq.write_table(table, "plain.parquet")
    assert "no declaration" in cli("ddl", "duckdb", "plain.parquet", expect=1).err
    entry = {
        "name": "openai",
        "model": {"name": "text-embedding-3-small", "api_key": "sk-abcdefghijklmnop"},
        "source_column": "text",
        "vector_column": "vector",
    }
    pq.write_table(table.replace_schema_metadata({"embedding_functions": json.dumps([entry])}), "secret.parquet")
    result = cli("ddl", "duckdb", "secret.parquet", expect=1)
    assert "secret in plain text" in result.err
    assert "abcdefgh" not in result.out + result.err


@pytest.mark.parametrize("name", ["v\x1b[2J", "v\n-- a line", "v\u202ename"])
def test_names_with_control_characters_are_refused(cli: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """SQL has no escapes for a name's characters, so such a name is not printed; JSON has them."""
    function = embedreg.get("hashing").create(dim=4)
    data = embedreg.embed_table(pa.table({"text": ["a"]}), [function.bind("text", name)])
    pq.write_table(data, tmp_path / "odd.parquet")
    done = cli("ddl", "duckdb", "odd.parquet", expect=1)
    assert "cannot be shown in SQL" in done.err
    assert "\x1b" not in done.out + done.err
    statements = json.loads(cli("ddl", "duckdb", "odd.parquet", "--json").out)
    assert name in statements["searches"][0]
