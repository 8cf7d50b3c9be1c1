"""Hints on the command line name options, never Python calls."""

from __future__ import annotations

import ast
import copy
import dataclasses
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import ImagePolicy
from embedreg.cli import exits
from embedreg.cli.hints import TRUST_OPTIONS, hint_of, trusting
from embedreg.errors import ConfigError, EmbedregError, Grant, UntrustedError, in_shell, option
from embedreg.jobs import claims
from embedreg.media import fetching, files
from embedreg.runtime.models import weights
from embedreg.security import references, variables
from tests import image_fakes  # noqa: F401  # registers pixel-means


def test_an_error_has_words_for_both_callers() -> None:
    """The error is raised with both; additions, changes, copies and pickles keep both."""
    both = option("--types a=text keeps it", "types={'a(b)': 'text'}", "; or drop it")
    assert (both, both.shell) == (
        "--types a=text keeps it (in Python: types={'a(b)': 'text'}); or drop it",
        "--types a=text keeps it; or drop it",
    )
    assert (both + "!").shell == "--types a=text keeps it; or drop it!"
    assert both.changed(str.upper).shell == "--TYPES A=TEXT KEEPS IT; OR DROP IT"
    for twin in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert (twin, twin.shell) == (both, both.shell)
    error = pickle.loads(pickle.dumps(ConfigError(both, "rename it").for_shell("--as NAME")))
    assert (in_shell(error.message), error.hint, hint_of(error)) == (both.shell, "rename it", "--as NAME")
    assert hint_of(ConfigError("no.", "rename it")) == "rename it"
    assert hint_of(ConfigError("no.")) is None
    assert str(ConfigError("no.").for_shell("--x")) == "no."


IN_PYTHON = re.compile(r"columns\.\w|fn\.bind|Migration\.|embedreg\.\w+|\w=(True|False|'|\")")
# what only a caller in Python can do wrong: another type than is asked for, or a value that the options do not take
BY_PYTHON_ALONE = {"a_function", "add", "refresh", "migrate", "_options", "checked"}


def _in_python(file: Path) -> set[str]:
    """Return the functions of a file that raise an error whose hint is a Python call, and has no words for a shell."""
    found = set()
    for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        worded = [call.func.value for call in calls if isinstance(call.func, ast.Attribute)]  # of `for_shell`
        for call in calls:
            raised = isinstance(call.func, ast.Name) and call.func.id.endswith(("Error", "undeclared", "declarations"))
            hints = [each for each in call.args[1:] if isinstance(each, ast.Constant | ast.JoinedStr)]
            if raised and call not in worded and any(IN_PYTHON.search(ast.unparse(each)) for each in hints):
                found.add(function.name)
    return found


def test_each_error_about_a_column_has_a_hint_for_the_shell() -> None:
    """A hint that is a call in Python has its words for `embedreg column` beside it, wherever a command can meet it."""
    package = Path(embedreg.__file__).parent
    files = [*package.glob("columns/**/*.py"), *package.glob("engines/*/columns/**/*.py")]
    assert len(files) > 40
    assert set().union(*map(_in_python, files)) == BY_PYTHON_ALONE


@pytest.mark.parametrize(
    ("error", "here"),
    [
        (lambda: claims.exists("out.parquet"), "--force replaces it"),
        (
            lambda: variables.missing("kee", None, frozenset({"key"})),
            "did you mean 'key'? --env kee=KEE, with the value in that environment variable",
        ),
        (
            lambda: references.refuse_hardcoded("api_key", "sk-1", sensitive=True, named=frozenset()),
            "--set 'api_key=$var:my_key' --env my_key=MY_KEY, with the value in that environment variable",
        ),
        (lambda: files.read(Path("a b/x.png"), ImagePolicy()), "--allow-dir '{here}/a b'"),
        (lambda: fetching.fetch("http://box.example/x.png", ImagePolicy()), "--allow-host box.example"),
        (lambda: fetching.fetch("http://10.0.0.1/", ImagePolicy(hosts="10.0.0.1")), "--allow-private-host 10.0.0.1"),
        (
            lambda: weights.resolve_model("all-MiniLM-L6-v0", allow_local=True, download=False),
            "connect once so that it can be downloaded, or copy its folder here and give its path: "
            "--set name=/path/to/folder",
        ),
    ],
)
def test_a_hint_is_worded_in_options(
    error: Callable, here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has an option is named by it, with its value quoted for the shell."""
    monkeypatch.chdir(tmp_path)
    try:
        raised = error()
    except EmbedregError as exc:
        raised = exc
    assert hint_of(raised) == here.format(here=tmp_path)
    assert "--" not in str(raised.hint).replace("--force", "")


def test_a_grant_becomes_options() -> None:
    """Whatever has to be granted has an option, quoted for the shell; no text is read for it."""
    needed = Grant(
        paths=("my models",), hosts=("a:1", "b"), variables=("k",), remote_code=("org/m@v1",), fields=("f.headers",)
    )
    assert trusting(needed) == (
        "if you trust where the data comes from: --trust-path 'my models' --trust-host a:1 --trust-host b "
        "--trust-variable k --trust-remote-code org/m@v1 --trust-field f.headers"
    )
    assert TRUST_OPTIONS.keys() == dict(needed).keys() == {field.name for field in dataclasses.fields(Grant)}
    assert hint_of(UntrustedError("no.", "embedreg.trust(paths=['x'])", Grant(paths="x"))) == (
        "if you trust where the data comes from: --trust-path x"
    )
    assert hint_of(UntrustedError("pickled weights.", "use another model")) == "use another model"


def test_the_reason_of_a_bad_row_names_an_option(cli: Callable, tmp_path: Path) -> None:
    """In an error, in the end report and for rows of an earlier run; in Python and in JSON the call stays."""
    (tmp_path / "my photos").mkdir()
    pq.write_table(pa.table({"image": ["my photos/a.png", None]}), "in.parquet")
    run = ("embed", "in.parquet", "out", "-f", "pixel-means", "--source", "image")
    allowed = f"--allow-dir '{tmp_path}/my photos'"
    refused = cli(*run, expect=exits.ERROR).err
    assert allowed in refused
    assert "--on-error" in refused
    for _ in range(2):
        shown = cli(*run, "--on-error", "null")
        assert allowed in shown.err
        assert "embedreg." not in refused + shown.err
    [bad] = cli(*run, "--on-error", "null", "--json").json["bad"]
    assert "embedreg.allow_images(dirs=[" in bad["reason"]


def test_what_a_job_and_a_table_add_to_an_error_keeps_its_hint(cli: Callable, tmp_path: Path) -> None:
    """A bad row names --on-error; a function that is not registered here names --import; what is offered can be run."""
    (tmp_path / "own.py").write_text(
        "import embedreg\n\n@embedreg.register('own-hints')\nclass Own(embedreg.TextEmbeddingFunction):\n"
        "    def ndims(self):\n        return 2\n\n    def generate_embeddings(self, texts):\n"
        "        return [embedreg.RowError('odd') if text == 'b' else [1, 2] for text in texts]\n"
    )
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    run = ("embed", "in.jsonl", "out.parquet", "-f", "own-hints", "--import", "own.py")
    err = cli(*run, expect=exits.ERROR).err
    assert "--on-error null" in err
    assert "report=" not in err
    done = cli(*run, "--on-error", "null")
    assert "2 distinct inputs given to the function, 1 bad" in done.out
    offered = next(line for line in done.err.splitlines() if line.startswith("try: "))
    assert shlex.split(offered)[2:] == ["search", "out.parquet", "some text", "--import", "own.py"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_not_a_bug(tmp_path: Path, closed: str) -> None:
    """Output is lost, but the work is done, an error has its code, and no file becomes stdout."""
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    run = f"{shlex.quote(sys.executable)} -m embedreg"
    for line, code in (
        (f"{run} embed in.jsonl out.parquet -f hashing --set dim=4 {closed}", 0),
        (f"{run} search out.parquet a {closed}", 0),
        (f"{run} inspect missing.parquet {closed}", exits.ERROR),
    ):
        assert subprocess.run(["bash", "-c", line], cwd=tmp_path, timeout=120, check=False).returncode == code, line
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 1


def test_a_name_that_is_not_utf8_is_named(command: Callable, tmp_path: Path) -> None:
    """As the source or the destination, it is one line, with the bytes escaped."""
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    odd = os.fsdecode(b"na\xffme.jsonl")
    (tmp_path / odd).write_text('{"text": "a"}\n')
    for arguments in (
        ("embed", odd, "out.parquet", "-f", "hashing"),
        ("search", odd, "a"),
        ("embed", "in.jsonl", odd.replace("jsonl", "parquet"), "-f", "hashing"),
    ):
        err = command(*arguments, expect=exits.ERROR).err
        assert "not valid UTF-8" in err
        assert "Traceback" not in err


def test_a_place_that_cannot_be_written_is_not_answered_with_the_same_command(cli: Callable, tmp_path: Path) -> None:
    """Running it once more would not help."""
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "file").write_text("")
    err = cli("embed", "in.jsonl", "file/out.parquet", "-f", "hashing", expect=exits.ERROR).err
    assert "run the same command" not in err
    assert "Hint" in err


def test_rows_without_a_field_are_not_called_an_empty_file(cli: Callable, tmp_path: Path) -> None:
    """The file has rows; the error names the missing field."""
    (tmp_path / "in.jsonl").write_text("{}\n{}\n")
    assert "no field in any of them" in cli("embed", "in.jsonl", "o.parquet", "-f", "hashing", expect=exits.ERROR).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "notes.csv", "x"), ("notes.csv is CSV", "embedreg embed SRC")),
        (("search", "*.csv", "x"), ("of a supported kind", ".parquet", "embedreg embed SRC")),
        (("search", "folder", "x"), ("neither Lance tables nor Parquet", "embedreg embed SRC")),
        (("inspect", "notes.csv"), ("notes.csv is CSV", ".parquet file")),
        (("search", "plain.parquet", "x"), ("declares no embedding function", "embedreg attach")),
        (("embed", "plain.parquet", "o.parquet", "-f", "hashing"), ("2 dimensions", "--vector NAME")),
        (("embed", "notes.csv", "plain.parquet", "-f", "hashing"), ("plain.parquet exists", "--force replaces it")),
        (("functions", "mine"), ("registered as 'mine'", "--import FILE.py")),
    ],
)
def test_hints_are_worded_as_commands(cli: Callable, tmp_path: Path, arguments: tuple, said: tuple) -> None:
    """It contains no Python call, and no format that the command does not read."""
    (tmp_path / "notes.csv").write_text("text\na\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "n.csv").write_text("text\na\n")
    pq.write_table(pa.table({"text": ["a"], "vector": pa.array([[1.0, 2.0]])}), tmp_path / "plain.parquet")
    err = cli(*arguments, expect=exits.ERROR).err
    assert all(each in err for each in said), err
    assert not any(each in err for each in ("fn.bind", "in Python", "embedreg.", "known: .csv")), err
