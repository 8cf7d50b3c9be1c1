"""A user's own function on the command line: what it raises is theirs, and what it returns is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KEY = "sk-0123456789-of-the-command-line"

SOURCE = """
import sys
import embedreg

class Own(embedreg.TextEmbeddingFunction):
    how: str = ""
    api_key: str | None = None
    max_retries: int = 0

    @staticmethod
    def sensitive_keys():
        return ["api_key"]

    def ndims(self):
        if self.how == "ndims":
            raise RuntimeError("no width")
        return 2

    def generate_embeddings(self, texts):
        if self.how == "zeros":
            return [[0, 0] if text == "zero" else [1, 2] for text in texts]
        if self.how == "rows":
            return [embedreg.RowError(f"refused with {self.api_key}") for text in texts]
        errors = {"runtime": RuntimeError, "value": ValueError, "pipe": BrokenPipeError, "os": FileNotFoundError}
        if self.how in errors:
            raise errors[self.how](f"it said {self.api_key}")
        sys.exit(0)

embedreg.register("own-of-the-command-line")(Own)
"""


@pytest.fixture
def embed(cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a call of `embedreg embed` with the function above, behaving as named."""
    monkeypatch.setenv("OWN_KEY", KEY)
    code, data = tmp_path / "own_of_the_command_line.py", tmp_path / "in.jsonl"
    code.write_text(SOURCE)
    data.write_text('{"text": "one"}\n{"text": "zero"}\n')

    def call(how: str, *more: object, expect: int = 0) -> Any:
        return cli(
            *("embed", data, "out.parquet", "-f", "own-of-the-command-line", "--import", code),
            *("--set", f"how={how}", *more),
            expect=expect,
        )

    return call


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("runtime", "RuntimeError: it said None"),
        ("value", "ValueError: it said None"),
        ("pipe", "BrokenPipeError: it said None"),
        ("os", "FileNotFoundError: it said None"),
        ("ndims", "RuntimeError: no width"),
    ],
)
def test_an_error_of_a_users_function_is_theirs(embed: Callable[..., Any], how: str, said: str) -> None:
    """One line that names the function, exit code 1 for every error, and its own traceback under --debug."""
    found = embed(how, expect=1)
    assert f"your function 'own-of-the-command-line' raised {said}" in found.err
    assert "report it" not in found.err
    assert "Traceback" not in found.err
    debug = embed(how, "--debug", expect=1).err
    assert "own_of_the_command_line.py" in debug
    assert "raise" in debug
    assert "run it again with --debug" not in debug


def test_a_function_with_a_key_has_its_traceback_too(embed: Callable[..., Any]) -> None:
    """Without the key."""
    options = ("--set", "api_key=$var:own", "--env", "own=OWN_KEY")
    found = embed("value", *options, "--debug", expect=1)
    assert "your function 'own-of-the-command-line' raised ValueError: it said ***" in found.err
    assert 'raise errors[self.how](f"it said {self.api_key}")' in found.err
    assert KEY not in found.err + found.out


def test_an_exit_within_a_function_is_a_failure(embed: Callable[..., Any]) -> None:
    """`sys.exit(0)` in a user's code does not end the command as if the work were done."""
    found = embed("exit", expect=1)
    assert "sys.exit(0)" in found.err
    assert not Path("out.parquet").exists()


def test_what_a_function_returns_for_a_row_is_cleaned(embed: Callable[..., Any]) -> None:
    """The key is in no file of the job and nowhere on the terminal."""
    found = embed("rows", "--set", "api_key=$var:own", "--env", "own=OWN_KEY", "--on-error", "null")
    assert "refused with ***" in found.err
    assert KEY not in found.err + found.out
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert any("bad_rows" in path.name for path in files)
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_zero_vectors_are_counted_and_chosen(embed: Callable[..., Any], cli: Callable[..., Any]) -> None:
    """The report counts them, the option sets the policy, and `inspect` counts stored ones."""
    assert "1 vector of zeros" in embed("zeros").out
    assert json.loads(embed("zeros", "--force", "--json").out)["zeros"] == 1
    code = "own_of_the_command_line.py"
    stored = json.loads(cli("inspect", "out.parquet", "--json", "--import", code).out)["functions"][0]["stored"]
    assert stored == {"vectors": 1, "null": 1, "zeros": 0}
    embed("zeros", "--force", "--zero-vectors", "keep")
    shown = cli("inspect", "out.parquet", "--import", code).out
    assert "2 vectors, 0 null, 1 all zeros" in shown
    assert "all zeros" in embed("zeros", "--force", "--zero-vectors", "error", expect=1).err
