"""The table of engines: a new engine is a folder and one line, or an entry point of an installed package."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import tomllib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.cli import main
from embedreg.errors import StorageError
from embedreg.inspection import engines as table

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests" / "plugin" / "embedreg_plugin_example" / "sqlite.py"


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with an engine, and its line in the table."""
    folder = tmp_path / "path" / "an_engine_of_this_test"
    folder.mkdir(parents=True)
    (folder / "engine.py").write_text(EXAMPLE.read_text())
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setitem(table.ENGINES, "sqlite", "an_engine_of_this_test.engine:SQLite")


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A file that declares two columns, one of them under an awkward name."""
    create = embedreg.get("hashing").create
    declared = [create(dim=16).bind("text", "vector"), create(dim=8).bind("text", "it's")]
    path = tmp_path / "notes.parquet"
    pq.write_table(embedreg.embed_table(pa.table({"text": ["pay the bill"]}), declared), path)
    return path


def out_of(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """Run a command of embedreg and return what it prints."""
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 0
    return capsys.readouterr().out


def json_of(capsys: pytest.CaptureFixture[str], *args: object) -> Any:
    """Run a command of embedreg and return its JSON."""
    return json.loads(out_of(capsys, *args))


@pytest.mark.usefixtures("sqlite")
def test_a_folder_and_a_line_make_an_engine(parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its DDL is printed by `embedreg ddl`, its reader is found by `functions_in`, its line is shown by `doctor`."""
    printed = out_of(capsys, "ddl", "sqlite", parquet)
    path = tmp_path / "notes.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(printed)
    expected = embedreg.functions_in(parquet)
    assert dict(embedreg.functions_in(path)) == dict(expected)
    assert [drift.verdict for drift in embedreg.check_drift(path)] == ["same", "same"]
    assert "--table" in out_of(capsys, "ddl", "sqlite", "--help")
    assert "For SQLite: a table of declarations." in out_of(capsys, "ddl", "--help")
    assert re.search(r"sqlite\W+ready", out_of(capsys, "doctor"))


@pytest.mark.usefixtures("sqlite")
def test_its_options_are_those_of_its_method(parquet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A keyword-only argument of `ddl` is an option; characters that would steer a terminal are refused in it too."""
    assert 'CREATE TABLE IF NOT EXISTS "mine"' in out_of(capsys, "ddl", "sqlite", parquet, "--table", "mine")
    assert main(["ddl", "sqlite", str(parquet), "--table", "mi\x1b[2Jne"]) == 1
    assert "cannot be shown in SQL" in capsys.readouterr().err


@pytest.mark.usefixtures("sqlite")
def test_an_engine_without_a_sample_is_not_attached_to(parquet: Path, tmp_path: Path) -> None:
    """`attach` reports it, and leaves the file as it is."""
    path = tmp_path / "notes.sqlite"
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(StorageError, match="keeps no declaration that could be written"):
        embedreg.attach(path, embedreg.functions_in(parquet)["vector"])
    assert path.stat().st_size == 0


@pytest.mark.usefixtures("sqlite")
def test_its_errors_are_its_own(tmp_path: Path) -> None:
    """What it says of a file that it cannot read reaches the caller."""
    (tmp_path / "broken.sqlite").write_text("nothing of the kind, and longer than a header of a hundred bytes" * 9)
    with pytest.raises(StorageError, match="not a database"):
        embedreg.functions_in(tmp_path / "broken.sqlite")


def test_an_installed_package_adds_an_engine(
    run_python: Callable[..., str], plugin_path: Path, parquet: Path, tmp_path: Path
) -> None:
    """An entry point does it; it is looked up where no engine of the table reads the data, and not for Arrow data."""
    code = (
        "import sys, sqlite3, embedreg\n"
        "from embedreg.engines import Declared\n"
        "from embedreg.inspection.engines import engines\n"
        "from pathlib import Path\n"
        "import pyarrow.parquet as pq\n"
        "entries = [*embedreg.functions_in(pq.read_schema(sys.argv[1])).entries.values()]\n"
        "print('embedreg_plugin_example' in sys.modules)\n"
        "made = engines()['sqlite'].ddl(Declared(Path(sys.argv[1]), 'parquet', entries))\n"
        "with sqlite3.connect(sys.argv[2]) as connection:\n"
        "    [connection.execute(sql) for each in made for sql in each.listed]\n"
        "print(sorted(embedreg.functions_in(sys.argv[2])))"
    )
    printed = run_python(code, parquet, tmp_path / "notes.sqlite", path=[plugin_path]).splitlines()
    assert printed == ["False", "[\"it's\", 'vector']"]


def test_an_engine_that_cannot_be_imported_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, parquet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data of others is read all the same; the log has one line of it, and `doctor` gives the reason."""
    monkeypatch.setitem(table.ENGINES, "broken", "no_such_module_of_an_engine:Engine")
    monkeypatch.setitem(table.ENGINES, "odd", "json:JSONDecoder")
    with caplog.at_level(logging.WARNING, "embedreg"):
        assert len(embedreg.functions_in(parquet)) == 2
        assert len(embedreg.functions_in(parquet)) == 2
    assert [record.getMessage().partition(" cannot")[0] for record in caplog.records] == [
        "the engine 'broken' (no_such_module_of_an_engine:Engine)",
        "the engine 'odd' (json:JSONDecoder)",
    ]
    shown = " ".join(out_of(capsys, "doctor").split())
    assert "no_such_module" in shown
    assert "not ready" in shown


class Demanding(table.Engine):
    """An engine whose requirement does not exist."""

    requires = ("numpy>=999", "pyarrow>=1")


def test_a_version_outside_of_the_bounds_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An engine's library that is installed, and too old for it, is reported with the version to install."""
    monkeypatch.setitem(table.ENGINES, "demanding", f"{__name__}:Demanding")
    found = json_of(capsys, "doctor", "--json")["engines"]["demanding"]
    assert found["ready"] is False
    assert found["install"] == "pip install 'numpy>=999' 'pyarrow>=1'"
    assert found["libraries"]["numpy"]["needs"] == ">=999"


def test_every_engine_has_a_folder_a_line_and_an_extra() -> None:
    """The table names exactly the folders, each engine's extra is one of pyproject.toml."""
    folders = {path.parent.name for path in (ROOT / "embedreg" / "engines").glob("*/__init__.py")}
    assert table.ENGINES.keys() == folders
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {table.engines()[name].extra for name in folders} <= extras.keys()


def test_the_page_shows_the_engine_of_the_example() -> None:
    """docs/writing-an-engine.md has the example's file, word for word, and the table as it is."""
    page = (ROOT / "docs" / "writing-an-engine.md").read_text()
    assert f"```python\n{EXAMPLE.read_text()}```" in page
    lines = re.findall(r'(?m)^     "(\w+)": "([\w.:]+)",$', page)
    assert dict(lines) == table.ENGINES
