"""What an error on the command line says to do is said in options, never in Python."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedreg.cli import exits
from embedreg.cli.hints import TRUST_OPTIONS, hint_of, in_options, trusting, with_options
from embedreg.errors import Grant, UntrustedError


@pytest.mark.parametrize(
    ("hint", "here"),
    [
        (None, None),
        ("rename it", "rename it"),
        ("--force replaces it (in Python: force=True)", "--force replaces it"),
        (
            "--types a=text keeps it (in Python: types={'a(b)': 'text'}); or drop it",
            "--types a=text keeps it; or drop it",
        ),
        ("embedreg.allow_images(dirs=['photos'])", "--allow-dir photos"),
        ("embedreg.allow_images(private_hosts=['box'])", "--allow-private-host box"),
        (
            "did you mean 'key'? embedreg.get_registry().bind_env('kee', 'KEE') or .set_var('kee', ...)",
            "did you mean 'key'? --env kee=KEE, with the value in that environment variable",
        ),
        (
            "pass a reference, api_key='$var:k', and embedreg.get_registry().bind_env('k', 'K')",
            "--set 'api_key=$var:k' --env k=K, with the value in that environment variable",
        ),
        ("give its path: name='/path/to/folder'", "give its path: --set name=/path/to/folder"),
    ],
)
def test_a_hint_in_python_becomes_options(hint: str | None, here: str | None) -> None:
    """What has an option here is named by it; the rest stays."""
    assert in_options(hint) == here


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


def test_the_reason_of_a_bad_row_names_an_option() -> None:
    """A reason serves both callers; here the call is left out."""
    reason = "not read from 'p'; allow it: embedreg.allow_images(dirs=['a b']), or --allow-dir on the command line"
    assert with_options(reason) == "not read from 'p'; allow it: --allow-dir 'a b'"


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
def test_closed_streams_are_no_bug(tmp_path: Path, closed: str) -> None:
    """What would be printed is lost; the work is done, an error has its code, and no file becomes stdout."""
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
    """The file has rows; what they lack is said."""
    (tmp_path / "in.jsonl").write_text("{}\n{}\n")
    assert "no field in any of them" in cli("embed", "in.jsonl", "o.parquet", "-f", "hashing", expect=exits.ERROR).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("search", "notes.csv", "x"), ("notes.csv is CSV", "embedreg embed SRC")),
        (("search", "*.csv", "x"), ("of a kind that is read here", ".parquet", "embedreg embed SRC")),
        (("search", "folder", "x"), ("neither Lance tables nor Parquet", "embedreg embed SRC")),
        (("inspect", "notes.csv"), ("notes.csv is CSV", ".parquet file")),
        (("search", "plain.parquet", "x"), ("declares no embedding function", "embedreg attach")),
        (("embed", "plain.parquet", "o.parquet", "-f", "hashing"), ("2 dimensions", "--vector NAME")),
        (("embed", "notes.csv", "plain.parquet", "-f", "hashing"), ("plain.parquet exists", "--force replaces it")),
        (("functions", "mine"), ("registered as 'mine'", "--import FILE.py")),
    ],
)
def test_an_error_says_what_to_type_here(cli: Callable, tmp_path: Path, arguments: tuple, said: tuple) -> None:
    """No call of Python stands in it, and no format that the command does not read."""
    (tmp_path / "notes.csv").write_text("text\na\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "n.csv").write_text("text\na\n")
    pq.write_table(pa.table({"text": ["a"], "vector": pa.array([[1.0, 2.0]])}), tmp_path / "plain.parquet")
    err = cli(*arguments, expect=exits.ERROR).err
    assert all(each in err for each in said), err
    assert not any(each in err for each in ("fn.bind", "in Python", "embedreg.", "known: .csv")), err
