"""The table of promises in docs/architecture.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_promises_of_a_columns_life_name_tests_that_exist() -> None:
    """Each of the seventeen names a file with the tests after it, or a trial or benchmark."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8").partition("## Where the promises of a column's life")[2]
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", text, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, 18))
    trials = "".join(path.read_text("utf-8") for path in (ROOT / "benchmarks").glob("*_columns.py"))
    for number, shown in rows:
        source, names = "", re.findall(r"`([^`]+)`", shown)
        assert names, number
        for name in names:
            if name.endswith(".py"):
                source = (ROOT / name).read_text("utf-8")
            elif name.startswith("test_"):
                assert f"def {name}(" in source, (number, name)
            else:
                assert name.split()[-1] in trials, (number, name)


def test_no_overlay_is_ever_committed() -> None:
    """Lance commits a `DataOverlay`, and refuses to open the table afterwards."""
    assert not [path for path in (ROOT / "embedreg").rglob("*.py") if "DataOverlay" in path.read_text("utf-8")]
