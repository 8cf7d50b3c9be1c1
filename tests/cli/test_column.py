"""`embedreg column`: the life of a vector column from a shell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.columns.files.staging import Staging

HASHING = ("--set", "dim=16")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of two Parquet files with five texts, one of them null."""
    data = tmp_path / "notes"
    data.mkdir()
    for name, texts in (("a", ["pay the bill", "water the plants", None]), ("b", ["call home", "buy milk"])):
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), data / f"{name}.parquet")
    return data


@pytest.fixture
def added(notes: Path, cli: Callable) -> Path:
    """The same with a column of vectors."""
    cli("column", "add", "notes", "-f", "hashing", *HASHING)
    return notes


def content(data: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_a_column_is_added_and_described(notes: Path, cli: Callable) -> None:
    """`add` says what it did and `status` counts rows by class; what the data declares is what was given."""
    made = cli("column", "add", "notes", "-f", "hashing", *HASHING)
    assert "notes: vector added: 4 rows of 5 embedded" in made.out
    assert "embedding: 5 rows in" in made.err
    assert embedreg.functions_in(notes)["vector"].function.dim == 16
    [status] = cli("column", "status", "notes", "--json").json
    assert {name: status[name] for name in ("rows", "fresh", "null_source", "empty", "digest")} == {
        "rows": 5,
        "fresh": 4,
        "null_source": 1,
        "empty": 0,
        "digest": "vector__source_digest",
    }
    again = cli("column", "add", "notes", "-f", "hashing", *HASHING, expect=1)
    assert "has a column 'vector' already" in again.err
    assert "embedreg column fill" in again.err


def test_the_status_fits_a_narrow_terminal(added: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table at 100 columns, a block of lines at 60; no line is wider."""
    for width in (100, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = cli("column", "status", "notes").out.splitlines()
        assert max(map(len, lines)) <= width
        assert any("fresh" in line for line in lines)
        assert any("hashing" in line for line in lines)


def test_a_dry_run_writes_nothing_and_says_what_would_be_done(added: Path, cli: Callable) -> None:
    """Of each command that writes."""
    pq.write_table(pa.table({"text": ["new"]}), added / "c.parquet")
    before = content(added)
    wanted = {
        ("add", "-f", "hashing", *HASHING, "--vector", "other"): "other: 5 rows would be embedded",
        ("fill",): "vector: 1 row would be embedded",
        ("refresh",): "vector: 1 row would be embedded",
        ("migrate", "--to", "hashing", *HASHING, "--set", "seed=2"): "vector would change from hashing to hashing",
        ("detach", "--drop"): "column vector and its declaration would be removed",
    }
    for (name, *options), words in wanted.items():
        made = cli("column", name, "notes", *options, "--dry-run")
        assert words in made.out, name
        assert "nothing was written" in made.err
        assert content(added) == before
    cli("column", "migrate", "notes", "--to", "hashing", *HASHING, "--set", "seed=2", "--no-switch")
    before = content(added)
    steps = {
        "switch": "take the place of the old ones",
        "settle": "not switched yet",
        "rollback": "not switched yet",
        "abandon": "what was staged would be removed",
        "finish": "not switched yet",
    }
    for name, words in steps.items():
        refused = words == "not switched yet"
        made = cli("column", name, "notes", "--dry-run", expect=1 if refused else 0)
        assert words in made.err
        assert refused or "ready (6 of 6 rows staged)" in made.out
        assert content(added) == before
    cli("column", "switch", "notes")
    pq.write_table(pa.table({"text": ["newer"]}), added / "d.parquet")
    before = content(added)
    assert "1 row would be embedded" in cli("column", "settle", "notes", "--dry-run").err
    assert "would be restored" in cli("column", "rollback", "notes", "--dry-run").err
    assert "not settled" in cli("column", "finish", "notes", "--dry-run", expect=1).err
    assert "are in place" in cli("column", "abandon", "notes", "--dry-run", expect=1).err
    assert content(added) == before


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("fill", "--vector", "no"), 1, "declares no function for column 'no'"),
        (("detach", "--vector", "no"), 1, "declares no function for column 'no'"),
        (("migrate", "--to", "hashing", *HASHING), 1, "declared with this function already"),
        (("migrate", "--to", "hashing", "--set", "dim=8", "--name", "vector__source_digest"), 1, "has a column"),
        (("repoint", "--to", "hashing", *HASHING, "--set", "seed=2"), 4, "have other vectors"),
    ],
)
def test_a_dry_run_is_refused_where_the_command_would_be(
    added: Path, cli: Callable, command: tuple[str, ...], code: int, words: str
) -> None:
    """With the same exit code and the same words."""
    for options in (("--dry-run",), ()):
        assert words in cli("column", command[0], "notes", *command[1:], *options, expect=code).err


def test_a_dry_run_of_repoint_compares_and_declares_nothing(added: Path, cli: Callable) -> None:
    """The sample agrees; the declaration stays."""
    before = content(added)
    made = cli("column", "repoint", "notes", "--to", "hashing", *HASHING, "--dry-run")
    assert "cosine 1.00000 at the lowest" in made.out
    assert "notes would declare hashing" in made.out
    assert content(added) == before


def test_the_steps_that_embed_show_it_and_take_a_cache(added: Path, cli: Callable, tmp_path: Path) -> None:
    """`switch`, `settle` and `rollback` embed what came late, and fill the cache."""
    to = ("--to", "hashing", *HASHING, "--set", "seed=2")
    cli("column", "migrate", "notes", *to, "--no-switch")
    for name, late in (("switch", "new"), ("settle", "newer"), ("rollback", "newest")):
        pq.write_table(pa.table({"text": [late]}), added / f"{name}.parquet")
        made = cli("column", name, "notes", "--cache", "kept.db", "--switch-timeout", "5")
        assert "embedding: " in made.err, name
    assert (tmp_path / "kept.db").exists()


def test_refresh_embeds_what_changed(added: Path, cli: Callable) -> None:
    """A new file is embedded with the declared function; then nothing is left."""
    pq.write_table(pa.table({"text": ["new", "newer"]}), added / "c.parquet")
    assert "next: embedreg column refresh notes" in cli("column", "status", "notes").err
    assert "vector refreshed: 2 rows of 7 embedded" in cli("column", "refresh", "notes").out
    assert "vector refreshed: nothing to embed" in cli("column", "refresh", "notes").out
    [report] = cli("column", "fill", "notes", "--json").json
    assert (report["written"], report["commits"]) == (0, 0)


def test_a_migration_from_a_shell(added: Path, cli: Callable) -> None:
    """Staged, switched, settled and rolled back, each command naming the next; the old files come back."""
    before = content(added)
    to = ("--to", "hashing", *HASHING, "--set", "seed=2")
    staged = cli("column", "migrate", "notes", *to, "--no-switch")
    assert "ready (5 of 5 rows staged)" in staged.out
    assert "next: embedreg column switch notes" in staged.err
    assert "migration of vector to hashing (seed=2 instead of 0): ready" in cli("column", "status", "notes").out
    assert "not switched yet" in cli("column", "finish", "notes", expect=1).err
    assert "next: embedreg column settle notes" in cli("column", "switch", "notes").err
    assert embedreg.functions_in(added)["vector"].function.seed == 2
    settled = cli("column", "settle", "notes")
    assert "settled" in settled.out
    assert "next: embedreg column rollback notes" in settled.err
    assert cli("column", "rollback", "notes", "--json").json["state"] == "rolled back"
    assert content(added) == before
    assert cli("column", "migrate", "notes", *to, "--json").json["state"] == "settled"
    assert "finished" in cli("column", "finish", "notes").out
    assert "no migration of notes is in progress" in cli("column", "rollback", "notes", expect=2).err


def test_an_interrupted_switch_is_told_and_completed_by_the_next_command(
    added: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` says how many files are left and what to run; that command leaves all files new."""
    replace, names = Staging._replace, list[str]()

    def stopping(self: Staging, name: str) -> None:
        names.append(name)
        if len(names) == 2:
            raise KeyboardInterrupt
        replace(self, name)

    monkeypatch.setattr(Staging, "_replace", stopping)
    cli("column", "migrate", "notes", "--to", "hashing", *HASHING, "--set", "seed=2", expect=130)
    monkeypatch.undo()
    monkeypatch.chdir(added.parent)
    found = cli("column", "status", "notes")
    assert "ready (5 of 5 rows staged)" in found.out
    assert "1 of 2 files are left" in found.err
    assert "next: embedreg column switch notes" in found.err
    cli("column", "switch", "notes")
    assert {embedreg.functions_in(path)["vector"].function.seed for path in added.glob("*.parquet")} == {2}


def test_a_rollback_that_embeds_much_asks_first(added: Path, cli: Callable) -> None:
    """It names the number of rows and the option, with the exit code of an error; with `--yes` it is done."""
    cli("column", "migrate", "notes", "--to", "hashing", *HASHING, "--set", "seed=2")
    pq.write_table(pa.table({"text": [f"text {n}" for n in range(101)]}), added / "c.parquet")
    refused = cli("column", "rollback", "notes", expect=1)
    assert "101 rows have no old vector" in refused.err
    assert "pass --yes" in refused.err
    assert "yes=True" not in refused.err
    assert "vector settled" in cli("column", "settle", "notes", "--grace", "0.01").out
    assert "rolled back" in cli("column", "rollback", "notes", "--yes").out
    assert embedreg.functions_in(added)["vector"].function.seed == 0


def test_columns_of_one_function_are_told_apart_by_their_settings(added: Path, cli: Callable) -> None:
    """The table of `status` names what differs, and nothing else."""
    cli("column", "add", "notes", "-f", "hashing", *HASHING, "--set", "seed=3", "--vector", "other")
    said = " ".join(cli("column", "status", "notes").out.split())
    assert "seed=0" in said
    assert "seed=3" in said
    assert "dim=16" not in said


def test_an_object_store_is_refused_in_words_for_the_shell(cli: Callable) -> None:
    """By every command, before anything is reached."""
    for name, *options in (("status",), ("add", "-f", "hashing"), ("refresh",), ("migrate", "--to", "hashing")):
        refused = cli("column", name, "s3://bucket/data", *options, expect=1)
        assert "'s3://bucket/data' is on an object store" in " ".join(refused.err.split())
        assert "embedreg embed SRC s3://bucket/new" in " ".join(refused.err.split())


def test_detach_and_repoint_change_the_declaration_alone(added: Path, cli: Callable) -> None:
    """A function of other vectors is refused with the exit code of drift; one of the same vectors is declared."""
    refused = cli("column", "repoint", "notes", "--to", "hashing", *HASHING, "--set", "seed=2", expect=4)
    assert "have other vectors" in refused.err
    found = cli("column", "repoint", "notes", "--to", "hashing", *HASHING, "--json").json
    assert (found["compared"], found["rows"]) == (4, 5)
    assert "is removed" in cli("column", "detach", "notes").out
    undeclared = cli("column", "status", "notes")
    assert "declares no embedding function" in undeclared.out
    assert "next: embedreg column add notes -f FUNCTION" in undeclared.err


def test_a_search_shows_no_row_digests_unless_they_are_named(added: Path, cli: Callable) -> None:
    """They are neither data nor answers; `--columns` shows them."""
    assert set(cli("search", "notes", "milk", "--json").json[0]) == {"text", "_distance", "_score"}
    [row] = cli("search", "notes", "milk", "-n", 1, "--columns", "vector__source_digest", "--json").json
    assert len(row["vector__source_digest"]) == 25


def test_a_refresh_without_digests_says_how_to_embed_every_row(notes: Path, cli: Callable) -> None:
    """`--unstamped recompute` cannot do it; what the note names does."""
    cli("column", "add", "notes", "-f", "hashing", *HASHING, "--no-digest")
    done = cli("column", "refresh", "notes", "--unstamped", "recompute")
    assert "embedreg column detach --drop" in " ".join(done.err.split())
    cli("column", "detach", "notes", "--drop")
    cli("column", "add", "notes", "-f", "hashing", *HASHING)
    [status] = cli("column", "status", "notes", "--json").json
    assert (status["fresh"], status["digest"]) == (4, "vector__source_digest")


def test_a_stored_address_wants_a_grant_and_an_own_function_an_import(
    notes: Path, cli: Callable, tmp_path: Path
) -> None:
    """--import registers a class; `refresh` with metadata that names a host is refused with the option to add."""
    (tmp_path / "mine.py").write_text(
        "import embedreg\n"
        "@embedreg.register('mine')\n"
        "class Mine(embedreg.TextEmbeddingFunction):\n"
        "    endpoint: str = ''\n"
        "    def ndims(self): return 1\n"
        "    def generate_embeddings(self, texts): return [[len(text)] for text in texts]\n"
    )
    mine = ("--import", "./mine.py")
    cli("column", "add", "notes", "-f", "mine", "--set", "endpoint=http://embed.example", *mine)
    embedreg.get_registry().reset()
    pq.write_table(pa.table({"text": ["new"]}), notes / "c.parquet")
    assert "no embedding function is registered as 'mine'" in cli("column", "refresh", "notes", expect=1).err
    refused = cli("column", "refresh", "notes", *mine, expect=3)
    assert "--trust-host embed.example" in refused.err
    assert "1 row of 6" in cli("column", "refresh", "notes", *mine, "--trust-host", "embed.example").out


def test_the_commands_are_imported_when_one_is_used(run_python: Callable) -> None:
    """`embedreg --help` loads none of them."""
    code = (
        "import sys\nfrom embedreg.cli.app import app\nassert app(['--help']) == 0\n"
        "assert not any(name.startswith('embedreg.cli.column_') for name in sys.modules)\n"
        "assert app(['column', 'status', '--help']) == 0\n"
        "assert 'embedreg.cli.column_data' in sys.modules\n"
    )
    assert "Count the rows of each vector column" in run_python(code)


def test_wrong_usage_is_told_before_anything_is_read(added: Path, cli: Callable) -> None:
    """A missing table is an error, a missing choice of columns is wrong usage."""
    assert "there is no such file or table" in cli("column", "status", "nowhere", expect=1).err
    cli("column", "add", "notes", "-f", "hashing", *HASHING, "--vector", "other", "--yes")
    assert "--vector is needed: notes declares vector, other" in cli("column", "detach", "notes", expect=2).err
    assert (
        "declares no function for column 'nothing'"
        in cli("column", "refresh", "notes", "--vector", "nothing", expect=1).err
    )
    assert json.loads(cli("column", "refresh", "notes", "--vector", "other", "--json").out)[0]["vector"] == "other"


def test_an_audit_ends_with_the_code_of_drift_where_vectors_are_not_those_of_the_texts(
    added: Path, cli: Callable
) -> None:
    """A sound column ends with 0; one whose texts were changed is reported in words, in JSON, and by exit code 4."""
    assert "0 disagree" in cli("column", "audit", "notes").out
    path = added / "b.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.set_column(0, "text", pa.array(["another text", "and another"])), path)
    found = cli("column", "audit", "notes", "--json", expect=4).json
    assert [each["verdict"] for each in found] == ["stale"]
    assert "stale" in cli("column", "audit", "notes", "--no-scan", "--sample", "10", expect=4).out


def test_a_column_that_nobody_declared_is_identified_among_candidates(added: Path, cli: Callable) -> None:
    """A candidate is a function with its fields."""
    cli("column", "detach", "notes")
    candidates = ("--candidate", "hashing:dim=16,seed=3", "--candidate", "hashing:dim=16")
    [best, *_] = cli("column", "identify", "notes", "--vector", "vector", *candidates, "--json").json
    assert best["fits"]
    assert "seed" not in best["function"]
    assert "hashing" in cli("column", "identify", "notes", "--vector", "vector", *candidates).out
