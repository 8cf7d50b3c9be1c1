"""`embedreg ddl databend`: the options in their order, what data declares, and the text that is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.engines.databend.sql import functions_in_comments
from tests.engines.databend_engine import Engine

TWO_SIDED = '''
import embedreg

@embedreg.register("two-sided")
class TwoSided(embedreg.TextEmbeddingFunction):
    """Queries point the other way."""

    def ndims(self):
        return 3

    def generate_embeddings(self, texts):
        return [[1.0, len(text), 0.0] for text in texts]

    def compute_query_embeddings(self, query, *args, **kwargs):
        return [[1.0, -len(query), 0.0]]
'''


def functions(found: dict) -> list[tuple[str, int]]:
    """Return the name and the width of what was printed."""
    return [(each["name"], each["ndims"]) for each in found["functions"]]


def test_each_option_belongs_to_the_function_before_it(cli: Callable) -> None:
    """In every spelling that an option has, and with values that look like options."""
    args = ["-f", "hashing", "--set", "dim=8", "--as", "first", "--function=hashing", "--set=dim=4", "--set=seed=3"]
    args += ["-fhashing", "--set", "dim=6", "--as=--function", "-f", "hashing"]
    found = cli("ddl", "databend", *args, "--json").json
    assert functions(found) == [("first", 8), ("ai_embed_4", 4), ("--function", 6), ("ai_embed_256", 256)]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--as", "x", "-f", "hashing"], "--as x: give it after"),
        (["--set", "dim=8"], "--set dim=8: give it after"),
        (["-f", "hashing", "--as", "x", "--as", "y"], "--as is given twice"),
        (["--like", "t.parquet", "--set", "dim=8"], "it cannot be combined with --like"),
        (["-f", "hashing", "--vector", "v"], "it cannot be combined with --function"),
        (["-f", "hashing", "--set", "dim"], "KEY=VALUE"),
        (["-f", "hashing", "--returns", "list"], "array or vector"),
        ([], "--function NAME or --like DATA is needed"),
    ],
)
def test_options_without_a_function_are_refused(cli: Callable, args: list[str], problem: str) -> None:
    """The command line itself is wrong: exit code 2."""
    assert problem in " ".join(cli("ddl", "databend", *args, expect=2).err.split())


@pytest.mark.parametrize("target", ["texts_embedded.parquet", "db/texts.lance"])
def test_like_takes_the_function_that_data_declares(cli: Callable, texts: Path, target: str) -> None:
    """Function, columns and declaration are those of a Parquet file or a Lance table; the comment leads back to it."""
    cli("embed", texts, target, "--function", "hashing", "--set", "dim=16", "--set", "seed=5")
    found = cli("ddl", "databend", "--like", target, "--as", "ai_embed", "--table", "db.notes", "--json").json
    assert functions(found) == [("ai_embed", 16)]
    comment = found["create_tables"][1].partition("COMMENT '")[2].rpartition("'")[0].replace("\\\\", "\\")
    declared = functions_in_comments([comment])["vector"]
    assert declared.function == embedreg.get("hashing").create(dim=16, seed=5)
    assert found["searches"][0] == (
        "SELECT id, text, cosine_distance(vector, ai_embed('machine learning techniques')) AS distance\n"
        "FROM db.notes_embedded\n"
        "ORDER BY distance ASC LIMIT 5;"
    )


def test_like_prints_the_columns_of_the_data(cli: Callable, tmp_path: Path, tmp_path_factory: Any) -> None:
    """With their types, in place of `id`; what Databend has no type for is named; Databend takes what is printed."""
    fn = embedreg.get("hashing").create(dim=4)
    columns = {
        "isbn no": pa.array(["1"]),
        "pages": pa.array([2], pa.uint16()),
        "at": pa.array([0], pa.timestamp("us", "UTC")),
        "price": pa.array([None], pa.decimal128(9, 2)),
        "tags": pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        "place": pa.array([{"x": 1}]),
        "text": pa.array(["a"]),
        "given": pa.array([[1.0]], pa.list_(pa.float32(), 1)),
    }
    pq.write_table(embedreg.embed_table(pa.table(columns), fn.bind("text", "vector")), tmp_path / "books.parquet")
    found = cli("ddl", "databend", "--like", "books.parquet", "--table", "books", "--json").json
    names = '"isbn no", pages, at, price, tags'
    defined = '"isbn no" STRING, pages SMALLINT UNSIGNED, at TIMESTAMP, price DECIMAL(9, 2), tags ARRAY(STRING)'
    assert found["create_tables"][0] == f"CREATE TABLE IF NOT EXISTS books ({defined}, text STRING);"
    assert f"AS SELECT {names}, text, ai_embed_4(text) FROM books;" in found["create_tables"][1]
    assert found["searches"][1].startswith(f"SELECT {names}, text, cosine_distance(")
    assert found["notes"] == ["columns without a type in Databend are left out: place"]
    assert "-- columns without a type" in cli("ddl", "databend", "--like", "books.parquet").out
    with Engine(tmp_path_factory.mktemp("engine")) as engine:
        engine.sql(found["create_tables"][0])
        engine.sql(f"SELECT {names}, text FROM books")
    bare = embedreg.embed_table(pa.table({"text": ["a"]}), fn.bind("text", "vector"))
    pq.write_table(bare, tmp_path / "bare.parquet")
    found = cli("ddl", "databend", "--like", "bare.parquet", "--json").json
    assert found["create_tables"][0] == "CREATE TABLE IF NOT EXISTS articles (text STRING);"
    assert found["searches"][0].startswith("SELECT text, cosine_distance(vector, ")


def test_like_needs_a_declaration(cli: Callable, texts: Path, tmp_path: Path) -> None:
    """A file that declares nothing, and one that declares two columns, need a word more."""
    assert "declares no embedding function" in cli("ddl", "databend", "--like", texts, expect=1).err
    fn = embedreg.get("hashing").create(dim=4)
    both = embedreg.embed_table({"text": ["a"]}, [fn.bind("text", "v1"), fn.bind("text", "v2")])
    pq.write_table(both, tmp_path / "both.parquet")
    assert "--vector v1" in cli("ddl", "databend", "--like", "both.parquet", expect=1).err
    found = cli("ddl", "databend", "--like", "both.parquet", "--vector", "v2", "--json").json
    assert "cosine_distance(v2, " in found["searches"][0]


def test_a_function_with_queries_of_their_own_gets_a_second_name(cli: Callable, tmp_path: Path) -> None:
    """Rows go through the one, the text that is searched for through the other."""
    (tmp_path / "two_sided.py").write_text(TWO_SIDED)
    found = cli("ddl", "databend", "--import", "two_sided.py", "-f", "two-sided", "--json").json
    assert [(each["name"], each["role"]) for each in found["functions"]] == [
        ("ai_embed_3", "source"),
        ("ai_embed_3_query", "query"),
    ]
    assert "cosine_distance(ai_embed_3(content), ai_embed_3_query('" in found["searches"][1]


def test_the_token_has_a_place_and_is_not_printed(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement has a placeholder; the variable is not even read."""
    monkeypatch.setenv("EMBED_TOKEN", "planted-token-123")
    for version, said in (("current", "'Bearer <the token>'"), ("1.2.453", "Databend 1.2.453 sends no token")):
        args = ("-f", "hashing", "--auth-token-env", "EMBED_TOKEN", "--databend-version", version)
        for flags in ([], ["--json"]):
            out = cli("ddl", "databend", *args, *flags).out
            assert said in out
            assert "planted-token-123" not in out


def test_what_is_printed_is_sql_between_comments(cli: Callable) -> None:
    """Every line is part of a statement or a comment, and the statements are those of --json."""
    args = ("-f", "hashing", "--set", "dim=8", "--databend-version", "current")
    found = cli("ddl", "databend", *args, "--json").json
    lines = [line for line in cli("ddl", "databend", *args).out.splitlines() if not line.startswith("-- ")]
    printed = [text.strip() for text in "\n".join(lines).split(";\n") if text.strip()]
    stated = [*found["create_functions"], *found["create_tables"], *found["searches"]]
    assert [f"{text.removesuffix(';')};" for text in printed] == stated


def test_versions_types_and_addresses_that_do_not_fit_are_refused(cli: Callable) -> None:
    """With what would do, as options, and without repeating an address, which may hold a password."""
    err = cli("ddl", "databend", "-f", "hashing", "--databend-version", "1.2.45", expect=1).err
    assert "did you mean '1.2.453'" in err
    err = cli("ddl", "databend", "-f", "hashing", "--returns", "vector", expect=1).err
    assert "--returns array, or --databend-version current" in err
    err = cli("ddl", "databend", "-f", "hashing", "--address", "http://me:secret@h:1", expect=1).err
    assert "secret" not in err


def test_a_secret_that_data_holds_in_the_clear_is_not_printed(cli: Callable, tmp_path: Path) -> None:
    """Fields that a class does not know are kept as they were stored, and a comment would show them."""
    table = embedreg.embed_table([{"text": "a"}], embedreg.get("hashing").create(dim=4).bind("text", "vector"))
    model = {"dim": 4, "options": {"name": "Authorization", "value": "zzKEYzz"}}
    entry = {"name": "hashing", "model": model, "source_column": "text", "vector_column": "vector"}
    declared = {"embedding_functions": json.dumps([entry])}
    pq.write_table(table.replace_schema_metadata(declared), tmp_path / "kept.parquet")
    for form in ([], ["--json"]):
        done = cli("ddl", "databend", "--like", "kept.parquet", *form, expect=1)
        assert "contains a secret in plain text" in done.err
        assert "zzKEYzz" not in done.out + done.err
