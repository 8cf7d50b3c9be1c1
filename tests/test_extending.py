"""docs/extending.md: each of its diffs applies to the package, and the code below it then runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import embedreg
from embedreg.engines import Engine
from embedreg.inspection.engines import engines

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
SECTION = re.compile(r"^## (?P<title>.+?)$.*?```diff\n(?P<diff>.*?)```.*?```python\n(?P<code>.*?)```", re.M | re.S)
SECTIONS = {match["title"]: (match["diff"], match["code"]) for match in SECTION.finditer(PAGE)}


def apply(diff: str, tree: Path) -> None:
    """Apply a diff by its content: the lines that a hunk keeps or removes have to be there, together, once."""
    for part in re.split(r"^(?=--- )", diff, flags=re.M):
        if not part:
            continue
        head, *hunks = re.split(r"^@@.*\n", part, flags=re.M)
        path = tree / head.splitlines()[1].removeprefix("+++ b/")
        for hunk in hunks:
            lines = [(line[:1] or " ", line[1:]) for line in hunk.splitlines()]
            before = "".join(f"{text}\n" for mark, text in lines if mark != "+")
            after = "".join(f"{text}\n" for mark, text in lines if mark != "-")
            there = path.read_text() if path.exists() else ""
            assert (there.count(before) if before else not there) == 1, f"{path.name}: {before}"
            path.write_text(there.replace(before, after) if before else after)


def test_the_page_has_all_four() -> None:
    """A provider, a back end, an engine and a modality."""
    assert [*SECTIONS] == ["A provider", "A back end", "An engine", "A modality"]


@pytest.mark.parametrize("title", SECTIONS)
def test_the_diff_is_one_file_and_one_line_of_a_table(title: str) -> None:
    """At most one file is new; in the others lines are added in one place of one file."""
    diff, _ = SECTIONS[title]
    new = re.findall(r"^--- /dev/null$", diff, re.M)
    changed = re.findall(r"^--- a/(.+)$", diff, re.M)
    assert len(new) <= 1
    assert len(changed) == 1
    assert (len(new), changed) == (0, ["embedreg/core/modality.py"]) or len(new) == 1


@pytest.mark.parametrize("title", SECTIONS)
def test_it_applies_and_runs(title: str, tmp_path: Path) -> None:
    """The code runs in a copy of the package with the diff, and nothing else changed."""
    diff, code = SECTIONS[title]
    shutil.copytree(ROOT / "embedreg", tmp_path / "embedreg", ignore=shutil.ignore_patterns("__pycache__"))
    apply(diff, tmp_path)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}\nassert embedreg.__file__.startswith(sys.path[0])"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_engine_adds_its_sql_types() -> None:
    """docs/writing-an-engine.md: the diff of the class applies to it, and the code below it then runs."""
    page = (ROOT / "docs" / "writing-an-engine.md").read_text(encoding="utf-8")
    whole = page.partition("```python\n")[2].partition("```")[0]
    diff = page.partition("```diff\n     requires")[2].partition("```")[0]
    code = page.partition("```python\nsqlite = ")[2].partition("```")[0]
    lines = ["    requires" + diff.splitlines()[0], *(line[1:] for line in diff.splitlines()[1:])]
    assert whole.count("\n".join(lines[:-1])) == 1
    names: dict[str, Any] = {"__name__": "page", "embedreg": embedreg}
    exec(whole.replace("\n".join(lines[:-1]), "\n".join(lines)), names)
    exec(f"sqlite = {code}", names)
    with pytest.raises(embedreg.errors.ConfigError, match=r"embeds 'text', which plain cannot pass to a function"):
        plain().sql_type(embedreg.get("hashing").create())
    assert engines()["duckdb"].sql_type(embedreg.get("open-clip").create()) == "BLOB"


class plain(Engine):  # noqa: N801 (its name is the engine's)
    """An engine without SQL."""
