"""The house is as docs/architecture.md says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "embedreg"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
HEAVY = {
    "torch",
    "transformers",
    "sentence_transformers",
    "lancedb",
    "lance",
    "PIL",
    "pandas",
    "polars",
    "openai",
    "duckdb",
    "ray",
}


def imports_of(file: Path) -> set[str]:
    """Return every module that a file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def test_the_page_names_every_room() -> None:
    """Every module and folder of the package is in the table of rooms, and nothing else is."""
    table = PAGE[PAGE.index("| room |") : PAGE.index("`functions/` and `engines/` meet")]
    named = {
        name for row in table.strip().splitlines() for name in re.findall(r"`([\w/.]+(?:\.py|/))`", row.split("|")[1])
    }
    real = {file.name for file in PACKAGE.glob("*.py")} - {"__main__.py", "_version.py"}
    real |= {f"{folder.name}/" for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}
    assert named == real


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda file: file.name)
def test_the_core_names_no_heavy_library_and_no_function(file: Path) -> None:
    """torch, lancedb and the like are imported below the core only; the core knows no function and no command."""
    roots = {name.partition(".")[0] for name in imports_of(file)}
    assert not roots & HEAVY
    below = {name for name in imports_of(file) if re.match(r"embedreg\.(functions|cli|testing)\b", name)}
    assert file.name == "__main__.py" or not below


@pytest.mark.parametrize("folder", ["engines", "functions"])
def test_engines_and_functions_do_not_know_each_other(folder: str) -> None:
    """Engines and functions meet through the registry only."""
    other = {"engines": "functions", "functions": "engines"}[folder]
    for file in (PACKAGE / folder).glob("*.py"):
        assert not {name for name in imports_of(file) if name.startswith(f"embedreg.{other}")}, file
