"""What the commands print: tables for every width, counts in words, reasons once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from embedreg.cli import terminal
from embedreg.cli.embed import _bad_lines
from embedreg.embedding.table import BadRow

ROWS = [["0.931", "json", "Deserialize a document to a Python object, with a text long enough to be cut"]]
HEADS = ["score", "module", "text"]


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_no_table_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """Every heading and the start of every cell are shown, whatever the width."""
    monkeypatch.setenv("COLUMNS", str(width))
    heads = ["score", *(f"column_{n}" for n in range(6)), "module", "text"]
    terminal.print_table(heads, [["0.931", *"abcdef", *ROWS[0][1:]]])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert all(word in out for word in ("score", "column_5", "module", "text", "0.931", "json", "Deserialize"))


def test_words_are_not_broken_in_a_narrow_terminal(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 columns the names of the functions can still be copied."""
    monkeypatch.setenv("COLUMNS", "60")
    out = cli("functions").out
    assert all(name in out for name in ("sentence-transformers", "open-clip", "image+text", "built-in"))


def test_a_table_for_a_pipe_stays_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, columns are side by side."""
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.print_table(HEADS, ROWS)
    assert "│ json" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "text"), [(0, "0 rows"), (1, "1 row"), (2400, "2,400 rows")])
def test_singular_and_plural_are_distinguished(value: int, text: str) -> None:
    """A count agrees with its noun."""
    assert terminal.count(value, "row") == text


def test_equal_reasons_are_one_line() -> None:
    """A reason of five hundred rows is printed once, with some rows; the most frequent comes first."""
    bad = [("a.csv", BadRow(3, "image", "cannot be read"))]
    bad += [("a.csv", BadRow(row, "image", "is not an image")) for row in range(500)]
    assert _bad_lines(bad) == [
        "a.csv, rows 0, 1, 2, 3, 4 and 495 more: is not an image",
        "a.csv, row 3: cannot be read",
    ]
    assert _bad_lines([("a.csv", BadRow(7, "image", "is not an image", "path=b.jpg"))]) == [
        "a.csv, row 7 (path=b.jpg): is not an image"
    ]
    lines = _bad_lines([("a.csv", BadRow(row, "image", f"reason {row}")) for row in range(9)])
    assert lines[-1] == "and 4 other reasons"


def test_finished_work_is_reported_as_nothing_to_do(cli: Callable, tmp_path: Path) -> None:
    """The same command on finished work reports this, without a speed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "n.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    run = ("embed", "in", "out", "-f", "hashing", "--set", "dim=4")
    assert "2 rows, 2 distinct inputs embedded" in cli(*run).out
    again = cli(*run)
    assert "nothing to do, 2 rows done before" in again.out
    assert "rows/s" not in again.err


def test_a_continued_run_reports_earlier_work(cli: Callable, tmp_path: Path) -> None:
    """Rows and pieces of an earlier run are named beside those of this one; a run that only removes is not idle."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    run = ("embed", "in", "out", "-f", "hashing", "--set", "dim=4")
    cli(*run)
    (folder / "b.jsonl").write_text('{"text": "c"}\n', encoding="utf-8")
    assert "3 rows" in (grown := cli(*run).out)
    assert "2 of the rows (1 of 2 pieces) done before" in grown
    (folder / "b.jsonl").unlink()
    pruned = cli(*run, "--prune").out
    assert "1 output removed" in pruned
    assert "nothing to do" not in pruned


def test_the_command_that_is_offered_can_be_pasted(cli: Callable, tmp_path: Path) -> None:
    """A path with a space is quoted."""
    (tmp_path / "n.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    err = cli("embed", "n.jsonl", "my notes.parquet", "-f", "hashing", "--set", "dim=4").err
    assert "try: embedreg search 'my notes.parquet' \"some text\"" in err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("embed", "n.jsonl", "o.parquet", "-f", "hashing", "--source", "txt"), "--source"),
        (("embed", "n.jsonl", "o.parquet", "-f", "hashing", "--set", "dim=many"), "embedreg functions hashing"),
        (("search", "n.parquet", "a", "--vector", "v"), "embedreg attach"),
    ],
)
def test_hints_name_options(cli: Callable, tmp_path: Path, arguments: tuple[str, ...], hint: str) -> None:
    """A hint on the command line names what can be typed there, not a call in Python."""
    (tmp_path / "n.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    cli("embed", "n.jsonl", "n.parquet", "-f", "hashing", "--set", "dim=4")
    err = cli(*arguments, expect=1).err
    assert hint in err
    assert not any(call in err for call in ("bind(", "describe(", "on_error=", "get_registry"))


def test_columns_keep_the_order_given(cli: Callable, tmp_path: Path) -> None:
    """`--columns text,id` shows the text first."""
    (tmp_path / "n.jsonl").write_text('{"id": 1, "text": "pay the bill"}\n', encoding="utf-8")
    cli("embed", "n.jsonl", "n.parquet", "-f", "hashing", "--set", "dim=64")
    head = cli("search", "n.parquet", "bill", "--columns", "text,id").out.splitlines()[1]
    assert head.index("text") < head.index("id")


def test_words_and_meaning_are_searched_in_lance(cli: Callable, tmp_path: Path) -> None:
    """`--mode text` ranks by words, `--mode hybrid` by both; Parquet, which has no index, is refused in one line."""
    rows = [{"id": 1, "text": "pay the bill"}, {"id": 2, "text": "water the tomatoes"}]
    (tmp_path / "n.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    cli("embed", "n.jsonl", "db/n.lance", "-f", "hashing", "--set", "dim=64")
    cli("embed", "n.jsonl", "n.parquet", "-f", "hashing", "--set", "dim=64")
    found = cli("search", "db/n", "tomatoes", "--mode", "text", "--json").json
    assert [row["id"] for row in found] == [2]
    assert found[0]["_score"] > 0
    both = cli("search", "db/n", "tomatoes", "--mode", "hybrid", "--json").json
    assert [row["id"] for row in both] == [2, 1]
    assert both[0]["_score"] > both[1]["_score"]
    assert "--mode text looks for words" in cli("search", "n.parquet", "bill", "--mode", "text", expect=1).err


def test_doctor_lists_every_extra_and_the_keys(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library of each extra is there with its version, and which keys are set, never their values."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-000000000000")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    found = cli("doctor", "--json")
    extras = {library["extra"] for library in found.json["libraries"].values()}
    assert {
        None,
        "sentence-transformers",
        "openvino",
        "openai",
        "images",
        "open-clip",
        "databend",
        "duckdb",
        "ray",
    } <= extras
    keys = found.json["keys"]
    assert (keys["OPENAI_API_KEY"], keys["AZURE_OPENAI_API_KEY"], keys["HF_TOKEN"]) == (True, False, False)
    assert {"COHERE_API_KEY", "GEMINI_API_KEY", "JINA_API_KEY", "MISTRAL_API_KEY", "VOYAGE_API_KEY"} <= keys.keys()
    assert "sk-test" not in found.out


def test_lines_are_folded_to_a_terminal_and_not_for_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value goes on below itself; without a terminal and a COLUMNS, lines stay as they are."""
    text = "vector: sound: a verdict of some length\n  sample   300 of 3,000 rows compared, 0 disagree"
    monkeypatch.setenv("COLUMNS", "30")
    folded = "vector: sound: a verdict of\n  some length\n  sample   300 of 3,000 rows\n           compared, 0\n"
    assert terminal.folded(text) == f"{folded}           disagree"
    monkeypatch.delenv("COLUMNS")
    assert terminal.folded(text) == text


def test_doctor_cuts_no_command_in_a_narrow_terminal(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be pasted is there in full: a library that is missing shows its whole command."""
    from embedreg.cli import doctor

    command = "pip install 'embedreg[sentence-transformers]'"
    found = doctor.examine()
    found["functions"]["hashing"] = {"ready": False, "install": command}
    monkeypatch.setattr(doctor, "examine", lambda: found)
    monkeypatch.setenv("COLUMNS", "60")
    assert command in " ".join(cli("doctor").out.split())
