"""`embedreg search` and `embedreg inspect`: the way back from the data alone."""

import json
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.cli import exits
from tests.kinds import WordVectors, word_vectors

HASHING = ("-f", "hashing")


@pytest.fixture
def tables(cli: Callable, texts: Path, tmp_path: Path) -> list[str]:
    """The same embedded rows as a Parquet file, a folder of two files, and a Lance table in two spellings."""
    cli("embed", texts, "file.parquet", *HASHING)
    table = pq.read_table("file.parquet")
    (tmp_path / "folder").mkdir()
    pq.write_table(table.slice(0, 3), "folder/a.parquet")
    pq.write_table(table.slice(3), "folder/b.parquet")
    cli("embed", texts, "db/rows.lance", *HASHING)
    return ["file.parquet", "folder", "db/rows", "db/rows.lance"]


def found(cli: Callable, *args: object) -> list[dict[str, object]]:
    """The rows that a search gives a program."""
    return cli("search", *args, "--json").json


def test_every_kind_of_table_gives_the_same_answer(cli: Callable, tables: list[str]) -> None:
    """Parquet, a folder of it and Lance agree on rows and distances; null vectors are never found."""
    answers = [found(cli, table, "a thread waits for a thread") for table in tables]
    assert answers[0][0]["id"] == 1
    assert {row["id"] for row in answers[0]} == {0, 1, 3, 5}
    for answer in answers[1:]:
        assert [row["_distance"] for row in answer] == pytest.approx([row["_distance"] for row in answers[0]], abs=1e-5)
        assert answer[0] == {**answers[0][0], "_distance": answer[0]["_distance"], "_score": answer[0]["_score"]}


def test_limit_columns_and_conditions_hold_everywhere(cli: Callable, tables: list[str]) -> None:
    """--limit, --columns and --where mean the same for files and tables."""
    for table in tables:
        rows = found(cli, table, "the cat", "-n", 1, "--columns", "id", "--where", "id >= 1 AND text LIKE '%cat%'")
        assert [set(row) for row in rows] == [{"id", "_distance", "_score"}]
        assert rows[0]["id"] == 5


def test_the_vector_itself_can_be_shown(cli: Callable, tables: list[str]) -> None:
    """Vectors are left out unless asked for by name."""
    for table in tables:
        [row] = found(cli, table, "the cat", "-n", 1, "--columns", "vector,id")
        assert len(row["vector"]) == 256  # type: ignore[arg-type]


def test_people_get_a_table_and_programs_get_nothing_else(cli: Callable, tables: list[str]) -> None:
    """Without --json the rows are readable; the note about time goes to stderr."""
    result = cli("search", "file.parquet", "a thread waits")
    assert "a thread waits for another thread" in result.out
    assert "score" in result.out
    assert " rows in " in result.err
    assert "\x1b" not in result.out  # no colours where no terminal is


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["absent", "x"], exits.ERROR, "there is no such file or table"),
        (["file.parquet", ""], exits.ERROR, "the query is empty"),
        (["file.parquet", "x", "--columns", "txet"], exits.ERROR, "did you mean 'text'"),
        (["db/rows", "x", "--columns", "txet"], exits.ERROR, "did you mean 'text'"),
        (["file.parquet", "x", "--vector", "embedding"], exits.ERROR, "declared: 'vector'"),
        (["file.parquet", "x", "--where", "idd = 3"], exits.ERROR, "did you mean 'id'"),
        (["db/rows", "x", "--where", "idd = 3"], exits.ERROR, "idd"),
        (["file.parquet", "x", "--where", "id = 'three'"], exits.ERROR, "--where"),
        (["db", "x"], exits.ERROR, "name one: db/rows"),
        (["texts.parquet", "x"], exits.ERROR, "declares no embedding function"),
        (["stranger.parquet", "x"], exits.ERROR, "no embedding function is registered as 'strange'"),
        (["hostile.parquet", "x"], exits.ERROR, "cannot be read"),
        (["dropped.parquet", "x"], exits.ERROR, "does not have it"),
        (["narrow.parquet", "x"], exits.ERROR, "3 values"),
    ],
)
def test_what_cannot_be_searched_is_one_line_and_a_hint(
    cli: Callable, tables: list[str], tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    """Wrong paths, columns, conditions and declarations are distinguished by name."""
    table = pq.read_table("file.parquet")
    entries = json.loads(table.schema.metadata[b"embedding_functions"])
    strange = json.dumps([{**entries[0], "name": "strange"}])
    pq.write_table(table.replace_schema_metadata({"embedding_functions": strange}), "stranger.parquet")
    pq.write_table(table.replace_schema_metadata({"embedding_functions": "[" * 100_000}), "hostile.parquet")
    pq.write_table(table.drop_columns(["vector"]), "dropped.parquet")
    narrow = table.set_column(2, "vector", pa.array([[1.0, 2.0, 3.0]] * 6)).replace_schema_metadata(
        table.schema.metadata
    )
    pq.write_table(narrow, "narrow.parquet")
    result = cli("search", *args, expect=code)
    assert message in result.err
    assert "Hint: " in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_several_vector_columns_are_chosen_by_name(cli: Callable, texts: Path) -> None:
    """If a table has two, --vector selects one; without it the message lists them."""
    cli("embed", texts, "one.parquet", *HASHING, "--vector", "small", "--set", "dim=16")
    cli("embed", "one.parquet", "two.parquet", *HASHING, "--vector", "large", "--set", "dim=64")
    refused = cli("search", "two.parquet", "cat", expect=exits.ERROR).err
    assert "--vector small" in refused
    assert "--vector large" in refused
    for column in ("small", "large"):
        assert found(cli, "two.parquet", "the cat sat on the mat", "-n", 1, "--vector", column)[0]["id"] == 0


def test_vectors_that_other_programs_made_plain_lists_are_searched(cli: Callable, tables: list[str]) -> None:
    """A column of plain lists, as DuckDB and polars write it, is as good."""
    table = pq.read_table("file.parquet")
    plain = table.set_column(2, "vector", table.column("vector").cast(pa.list_(pa.float32())))
    pq.write_table(plain.replace_schema_metadata(table.schema.metadata), "plain.parquet")
    assert found(cli, "plain.parquet", "the cat")[0]["id"] == found(cli, "file.parquet", "the cat")[0]["id"]


def test_a_table_of_the_javascript_client_is_searched_and_left_as_it_is(cli: Callable, tables: list[str]) -> None:
    """Its spelling of the metadata is read; looking at a table rewrites nothing."""
    table = lancedb.connect("db").open_table("rows")
    [entry] = json.loads(table.schema.metadata[b"embedding_functions"])
    camel = {"sourceColumn": "text", "vectorColumn": "vector", "name": entry["name"], "model": entry["model"]}
    table.to_lance().update_schema_metadata({"embedding_functions": json.dumps([camel])})
    version = lancedb.connect("db").open_table("rows").version
    assert found(cli, "db/rows", "a thread waits")[0]["id"] == 1
    assert cli("inspect", "db/rows", "--json").json["functions"][0]["source_column"] == "text"
    assert lancedb.connect("db").open_table("rows").version == version


def test_inspect_prints_text_and_json(cli: Callable, tables: list[str]) -> None:
    """Function, columns, dimensions, versions and usability, for files and tables."""
    for table in tables:
        out = cli("inspect", table, "--check").out
        for word in ("vector is filled from text", "hashing", "256 dimensions", "cosine", "usable", "6 rows"):
            assert word in out
        [function] = cli("inspect", table, "--check", "--json").json["functions"]
        assert function["status"] == "ready"
        assert function["drift"]["verdict"] == "same"
        assert function["drift"]["cosine"] == pytest.approx(1)


def test_inspect_reports_drift_by_exit_code(cli: Callable, tables: list[str]) -> None:
    """A function that gives other vectors than those stored is exit code 4, for `search` too."""
    table = pq.read_table("file.parquet")
    text = table.schema.metadata[b"embedding_functions"].decode()
    assert '"seed": 0' in text
    drifted = table.replace_schema_metadata({"embedding_functions": text.replace('"seed": 0', '"seed": 1')})
    pq.write_table(drifted, "drifted.parquet")
    assert "YES: it returns other vectors" in cli("inspect", "drifted.parquet", "--check", expect=exits.DRIFT).out
    assert cli("inspect", "drifted.parquet").code == exits.OK
    assert "no longer returns the stored vectors" in cli("search", "drifted.parquet", "x", expect=exits.DRIFT).err


def test_inspect_shows_what_cannot_be_used_here(cli: Callable, tables: list[str]) -> None:
    """A function that is not installed is described, with what to do; only --check makes it a failure."""
    table = pq.read_table("file.parquet")
    text = table.schema.metadata[b"embedding_functions"].decode().replace('"name": "hashing"', '"name": "strange"')
    pq.write_table(table.replace_schema_metadata({"embedding_functions": text}), "stranger.parquet")
    out = cli("inspect", "stranger.parquet").out
    assert "usable     no: " in out
    assert "strange" in out
    assert cli("inspect", "stranger.parquet", "--check", expect=exits.ERROR)


def test_data_without_a_declaration_is_inspected_too(cli: Callable, texts: Path) -> None:
    """No declaration is an answer, not an error."""
    assert "declares no embedding function" in cli("inspect", texts).out
    assert cli("inspect", texts, "--json").json["functions"] == []


def test_a_stored_path_needs_a_grant_and_the_message_holds_it(
    cli: Callable, command: Callable, minilm_path: Path, texts: Path, tmp_path: Path
) -> None:
    """Exit code 3 and the option to paste; with that option the table is searched."""
    os.symlink(minilm_path, tmp_path / "model")
    cli("embed", texts, "file.parquet", "-f", "sentence-transformers", "--set", f"name={tmp_path / 'model'}")
    refused = command("search", "file.parquet", "a thread waits", expect=exits.UNTRUSTED)
    grant = f"--trust-path {tmp_path / 'model'}"
    assert grant in refused.err
    granted = command("search", "file.parquet", "a thread waits", "--json", *grant.split())
    assert granted.json[0]["id"] == 1


def test_a_grant_ends_with_the_command(cli: Callable, texts: Path) -> None:
    """--trust-path and --trust-host are for one command; the process they ran in keeps none of it."""
    from embedreg.security import grants

    cli("inspect", texts, "--trust-path", "/models", "--trust-host", "example.org")
    assert not grants.granted("paths")
    assert not grants.granted("hosts")


def test_variables_are_bound_to_the_environment_on_request(
    cli: Callable, monkeypatch: pytest.MonkeyPatch, texts: Path
) -> None:
    """--env NAME=VARIABLE lets `$var:NAME` resolve; a wrong form is a usage error."""
    monkeypatch.setenv("MY_SECRET", "value")
    cli("functions", "--env", "my_key=MY_SECRET")
    assert embedreg.get_registry().get_var("my_key") == "value"
    assert "NAME=ENVIRONMENT_VARIABLE" in cli("functions", "--env", "my_key", expect=exits.USAGE).err


def test_a_class_that_changed_is_found_out_though_its_module_creates_it(
    command: Callable, texts: Path, tmp_path: Path
) -> None:
    """The probe is compared at the first use of a column, also for an instance that the reader's own module made."""
    code = """
        import numpy as np
        from embedreg import TextEmbeddingFunction, register

        @register("sizes")
        class Sizes(TextEmbeddingFunction):
            def ndims(self):
                return 2

            def generate_embeddings(self, texts, *args, **kwargs):
                return np.array([[len(str(text)), {other}] for text in texts], np.float32)

        fn = Sizes.create()
    """
    module = tmp_path / "sizes.py"
    module.write_text(textwrap.dedent(code).format(other="1"))
    for made in ("sizes.parquet", "sizes.lance"):
        command("embed", texts, made, "--import", "sizes.py", "-f", "sizes")
    command("search", "sizes.parquet", "cat", "--import", "sizes.py")
    module.write_text(textwrap.dedent(code).format(other="-len(str(text))"))
    for made in ("sizes.parquet", "sizes.lance"):
        result = command("search", made, "cat", "--import", "sizes.py", expect=exits.DRIFT)
        assert "'sizes' no longer returns the stored vectors" in result.err


def test_a_search_imports_neither_torch_nor_lancedb(cli: Callable, run_python: Callable, tmp_path: Path) -> None:
    """The demo's table is embedded, searched and inspected by processes in which these libraries cannot be imported."""
    blocked = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'sentence_transformers'):\n"
        "    sys.modules[name] = None\n"
        "from embedreg.cli import main\n"
        "code = main(sys.argv[2:])\n"
        "assert sys.argv[1] not in sys.modules, sys.argv[1]\n"
        "sys.exit(code)\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"text": "Return the sine of x."}\n{"text": "Delete a folder."}\n')
    embed = ("embed", "rows.jsonl", "db/rows.lance", "--function", "sentence-transformers", "--source", "text")
    run_python(blocked, "open_clip", *embed)
    found = run_python(blocked, "lancedb", "search", "db/rows", "remove a directory", "--limit", "1", "--json")
    (row,) = json.loads(found)
    assert row["text"] == "Delete a folder."
    inspected = json.loads(run_python(blocked, "open_clip", "inspect", "db/rows", "--check", "--json"))
    (function,) = inspected["functions"]
    assert (function["backend"], function["drift"]["verdict"]) == ("light", "same")


TEXTS = ["a thread waits for a thread", "the cat sleeps", "cats and threads", "nothing of it"]


def test_kinds_of_vectors_are_searched_exactly_and_fused(cli: Callable, tmp_path: Path) -> None:
    """MaxSim as LanceDB computes it, the dot product of sparse vectors, and the ranks of several columns."""
    words, tokens = embedreg.get("hashing-sparse").create(), WordVectors.create()
    declared = [words.bind("text", "words"), tokens.bind("text", "tokens")]
    declared.append(embedreg.get("hashing").create(dim=32).bind("text", "vector"))
    table = embedreg.embed_table({"id": range(4), "text": TEXTS}, declared)
    pq.write_table(table, "t.parquet")
    lancedb.connect("db").create_table("t", table)
    for place in ("t.parquet", "db/t"):
        hits = found(cli, place, "the thread", "--vector", "words")
        weight = table["words"][1].as_py()["values"]
        assert [row["id"] for row in hits] == [0, 1], "only those that share a word"
        assert 1 - hits[1]["_distance"] == pytest.approx(max(weight))
        assert set(hits[0]) == {"id", "text", "_distance"}
        hits = found(cli, place, "the thread", "--vector", "tokens", "-n", 4)
        query = word_vectors("the thread")
        sums = {row: (1 - (query @ word_vectors(text).T).max(axis=1)).sum() for row, text in enumerate(TEXTS)}
        assert {row["id"]: row["_distance"] for row in hits} == pytest.approx(sums, abs=1e-5)
        hits = found(cli, place, "the thread", "--vector", "words", "--vector", "vector")
        assert hits[0]["id"] == 0
        assert hits[0]["_score"] == pytest.approx(2 / 61)
        assert len(hits) == 4
    refused = cli("search", "db/t", "thread", "--vector", "tokens", "--mode", "hybrid", expect=exits.ERROR).err
    assert "--mode hybrid takes one vector a row; 'tokens' holds multi-vectors" in refused
    shown = cli("inspect", "t.parquet").out
    assert "sparse, 262144 dimensions" in shown
    assert "multi, 4 dimensions" in shown
    assert "4 vectors, 0 null, 0 all zeros" in shown
