"""What a stored declaration needs is offered as options, all of them at once: the command with them added succeeds."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import embedreg
from embedreg.cli import exits
from embedreg.cli.hints import TRUST_OPTIONS
from embedreg.security import grants

OWN = '''"""A function that asks for one thing of each kind, and uses it."""

import pathlib

import numpy as np

import embedreg


@embedreg.register("needy")
class Needy(embedreg.TextEmbeddingFunction):
    """The text's length, and what was granted."""

    name: str = "small"
    base_url: str | None = None
    organization: str | None = None
    api_key: str | None = None
    default_headers: dict[str, str] | None = None
    trust_remote_code: bool = False
    revision: str | None = None

    @staticmethod
    def sensitive_keys():
        return ["api_key"]

    def ndims(self):
        return 2

    def generate_embeddings(self, texts, *args, **kwargs):
        assert pathlib.Path(self.name).is_dir()
        assert self.trust_remote_code
        assert (self.organization, self.api_key) == ("acme", "sk-mine")
        return np.array([[len(text), 1] for text in texts], np.float32)
'''
NEEDS = {
    "base_url": "https://llm.example:8443/v1",
    "organization": "$var:org",
    "api_key": "$var:mine",
    "default_headers": {"X-Forward": "it's"},
    "trust_remote_code": True,
    "revision": "v2",
}
MAKING = f"""
import os, sys
import embedreg, pyarrow.parquet as pq
import own

folder = os.getcwd()
make = lambda name: own.Needy.create(name=folder + name, **{NEEDS!r})
for variable, value in (("org", "acme"), ("mine", "sk-mine")):
    embedreg.get_registry().set_var(variable, value)
one, other = make("/one model"), make("/other")
table = embedreg.embed_table({{"text": ["a", "bb"]}}, [one.bind("text", "v")])
pq.write_table(table, "one.parquet")
table = embedreg.embed_table({{"text": ["a", "bb"]}}, [one.bind("text", "v"), other.bind("text", "w")])
pq.write_table(table, "two.parquet")
pq.write_table(table.drop_columns(["v", "w"]), "unfilled.parquet")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of tables whose functions need everything, made by a process of its own."""
    folder = tmp_path_factory.mktemp("needy")
    (folder / "own.py").write_text(OWN)
    for model in ("one model", "other"):
        (folder / model).mkdir()
    subprocess.run([sys.executable, "-c", MAKING], cwd=folder, check=True, timeout=120)
    return folder


@pytest.fixture
def needy(made: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return the options that make the function known, and set its variables."""
    monkeypatch.setenv("TEST_ORG", "acme")
    monkeypatch.setenv("TEST_KEY", "sk-mine")
    return ("--import", f"{made}/own.py", "--env", "org=TEST_ORG", "--env", "mine=TEST_KEY")


def offered(err: str) -> list[str]:
    """Return the options that a hint offers, as a shell reads them."""
    [line] = [line for line in err.splitlines() if "--trust-" in line]
    return shlex.split(line[line.index("--trust-") :])


def test_every_need_has_an_option(made: Path, needy: tuple[str, ...], cli: Callable) -> None:
    """The options offered by a refusal are those of all five kinds, each with its value."""
    options = offered(cli("search", made / "one.parquet", "x", *needy, expect=exits.UNTRUSTED).err)
    assert options == [
        *("--trust-path", f"{made}/one model"),
        *("--trust-host", "llm.example:8443"),
        *("--trust-variable", "org", "--trust-variable", "mine"),
        *("--trust-remote-code", f"{made}/one model@v2"),
        *("--trust-field", "needy.default_headers"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        ("search", "one.parquet", "x"),
        ("search", "two.parquet", "x", "--vector", "w"),
        ("ddl", "databend", "--like", "one.parquet"),
        ("embed", "unfilled.parquet", "filled.parquet"),
        ("embed", "unfilled.parquet", "--estimate"),
    ],
    ids=" ".join,
)
def test_the_command_with_what_it_offers_succeeds(
    made: Path, needy: tuple[str, ...], cli: Callable, line: tuple[str, ...]
) -> None:
    """A path, hosts, variables, a field and a model's own code together, in one go."""
    line = tuple(str(made / part) if (made / part).is_file() else part for part in line)
    options = offered(cli(*line, *needy, expect=exits.UNTRUSTED).err)
    assert {*options[::2]} == {*TRUST_OPTIONS.values()}
    cli(*line, *needy, *options)
    cli(*line, *needy, expect=exits.UNTRUSTED)  # they were for one command


def test_a_shell_runs_what_is_offered(made: Path, needy: tuple[str, ...], command: Callable) -> None:
    """In a process of its own, with the hint's options as they are printed."""
    refused = command("search", made / "one.parquet", "x", *needy, expect=exits.UNTRUSTED).err
    [line] = [line for line in refused.splitlines() if "--trust-" in line]
    search = shlex.join([sys.executable, "-m", "embedreg", "search", str(made / "one.parquet"), "x", *needy])
    done = subprocess.run(
        f"{search} {line[line.index('--trust-') :]}", shell=True, cwd=made, capture_output=True, timeout=120, check=True
    )
    assert b"bb" in done.stdout


def test_inspect_offers_what_each_column_needs_and_all_of_it(made: Path, needy: tuple[str, ...], cli: Callable) -> None:
    """With the options of the last line every column can be used."""
    lines = [line for line in cli("inspect", made / "two.parquet", *needy).out.splitlines() if "--trust-" in line]
    assert [line.count("--trust-path") for line in lines] == [1, 1, 2]
    options = shlex.split(lines[2][lines[2].index("--trust-") :])
    found = cli("inspect", made / "two.parquet", *needy, *options, "--check", "--json").json["functions"]
    assert [(each["status"], each["needed"]) for each in found] == [("ready", {})] * 2


def test_a_settings_file_may_grant_it_too(made: Path, needy: tuple[str, ...], cli: Callable) -> None:
    """[trust] takes every kind, paths from its own folder; nothing of it outlives the command."""
    (made / "s.toml").write_text(
        '[trust]\npaths = ["one model"]\nhosts = ["llm.example"]\nvariables = ["org", "mine"]\n'
        f'remote_code = ["{made}/one model@v2"]\nfields = ["needy.default_headers"]\n'
    )
    cli("search", made / "one.parquet", "x", *needy, "--config", made / "s.toml")
    assert grants.in_force() == embedreg.Grant()
