"""`embedreg functions`, and the page that lists them all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import embedreg
from embedreg.registry import BUILTINS, RECOGNISED

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "functions.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([\w-]+)` \| (?:`([\w-]+)`)? ?\| (?:`([\w-]+)`)? ?\|", re.MULTILINE)
GROUPS = {
    "Texts, on this machine": "local text",
    "Texts, by a service": "hosted text",
    "Images": "images",
    "Recordings": "recordings",
}


def test_the_page_lists_every_function_as_the_registry_has_it() -> None:
    """Name, LanceDB's name, extra and group of each built-in function, and each name that is only recognised."""
    found = {}
    for title, group in GROUPS.items():
        section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        for name, lancedb, extra in re.findall(
            r"^\| `([\w-]+)` \| (?:`([\w-]+)`)? ?\| (?:`([\w-]+)`)? ?\|", section, re.M
        ):
            found[name] = (lancedb, extra, group)
    described = {name: embedreg.get_registry().describe(name) for name in BUILTINS}
    assert found == {
        name: (name if each["lancedb"] else "", each["extra"] or "", each["group"]) for name, each in described.items()
    }
    rest = PAGE.partition("## Names of LanceDB's that are not here")[2].partition("\n## ")[0]
    assert all(f"`{name}`" in rest for name in RECOGNISED)


def test_the_list_has_a_table_for_each_group(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local texts, hosted texts, images, recordings; and what a missing one needs."""
    monkeypatch.setenv("COLUMNS", "200")
    out = cli("functions").out
    tables = re.split(f"({'|'.join(GROUPS)})", out)
    assert tables[1::2] == list(GROUPS)
    for title, table in zip(tables[1::2], tables[2::2], strict=True):
        assert "│ name" in table or "┃ name" in table
        for name in BUILTINS:
            shown = re.search(rf"│ {re.escape(name)} +│", table) is not None
            assert shown is (embedreg.get_registry().describe(name)["group"] == GROUPS[title]), name


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_one_function_has_an_example_that_can_be_pasted(name: str, cli: Callable) -> None:
    """Its extra, LanceDB's name, roles, limits, keys, documentation, and a command whose configuration it takes."""
    described = embedreg.get_registry().describe(name)
    out = " ".join(cli("functions", name).out.split())
    for field in described["roles"]:
        assert field in out
    assert ("LanceDB has a function of this name" in out) is described["lancedb"]
    assert f"embedreg[{described['extra']}]" in out or described["extra"] is None
    if described["remote"]:
        assert described["documentation"] in out
        assert f"at most {described['limits']['inputs']} inputs" in out
    example = out.partition("example: ")[2]
    assert f"-f {name}" in example
    given = dict(re.findall(r"--set '?(\w+)=([^ ']+)", example))
    embedreg.get_registry().set_var("key", "sk-1234")
    if "..." not in given.values():
        assert embedreg.get(name).create(**given) is not None


@pytest.mark.parametrize("width", [60, 100])
def test_nothing_is_cut_or_wider_than_the_terminal(cli: Callable, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """The list, and what is said of a function but the example, which is one line to paste."""
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in ((), ("voyageai",), ("sentence-transformers",)):
        out = cli("functions", *arguments).out
        assert "\u2026" not in out
        assert max(map(len, out.partition("example: ")[0].splitlines())) <= width
    assert "read, and refused for another model in code." in " ".join(cli("functions", "voyageai").out.split())
