"""The command line's frame: help, versions, exit codes, errors, user code, `functions` and `doctor`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.cli import exits
from embedreg.registry import BUILTINS

COMMANDS = ["demo", "search", "embed", "attach", "inspect", "functions", "doctor", "bench"]
GROUPS = {"serve": ["databend"], "ddl": ["databend", "duckdb"]}

TOY = '''
import embedreg

@embedreg.register("toy")
class Toy(embedreg.TextEmbeddingFunction):
    """Counts letters."""

    dim: int = 4

    def ndims(self):
        return self.dim

    def generate_embeddings(self, texts):
        return [[1.0 + text.count("abcd"[i % 4]) for i in range(self.dim)] for text in texts]
'''


def test_nothing_of_the_command_line_is_imported_with_embedreg() -> None:
    """`import embedreg`, and even `embedreg.cli`, load neither typer nor rich."""
    code = "import sys, embedreg, embedreg.cli; print([m for m in ('typer', 'rich', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_loads_no_library_of_models_or_tables() -> None:
    """`--help` is fast: torch, lancedb, pyarrow and numpy are not imported."""
    code = (
        "import sys; from embedreg.cli import main; main(['embed', '--help']);"
        "print([m for m in ('torch', 'lancedb', 'pyarrow', 'numpy', 'pandas') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_the_version_is_the_packages(command: Callable) -> None:
    """`embedreg --version` prints `embedreg.__version__`."""
    assert command("--version").out == f"embedreg {embedreg.__version__}\n"


def test_help_lists_every_command_and_shows_examples(cli: Callable) -> None:
    """`--help` fits a screen: the commands, examples to paste, the exit codes in short."""
    out = cli("--help").out
    assert all(f"  {name} " in out for name in [*COMMANDS, *GROUPS])
    assert "embedreg search notes.parquet" in out
    assert "3 not granted" in out
    assert len(out.splitlines()) <= 36


def test_the_page_lists_every_exit_code() -> None:
    """What a script needs to know of the outcome is in docs/command-line.md, word by word."""
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert all(f"| {code} | {meaning} |" in page for code, meaning in exits.EXIT_CODES.items())


def test_help_of_a_command_is_about_the_command(cli: Callable) -> None:
    """Options of trust are named in one paragraph, and do not fill the help of each command."""
    out = cli("inspect", "--help").out
    assert "--trust-host HOST" in out
    assert "Let metadata" not in out
    assert len(out.splitlines()) <= 36


@pytest.mark.parametrize(
    "command",
    [[name] for name in COMMANDS] + [[name, under] for name in GROUPS for under in GROUPS[name]],
    ids=" ".join,
)
def test_every_command_has_the_common_options(cli: Callable, command: list[str]) -> None:
    """--import, the grants, --env and --debug are everywhere, and so is --json."""
    out = cli(*command, "--help").out
    for option in ("--import", "--env", "--trust-path", "--trust-host", "--trust-variable", "--debug", "--json"):
        assert option in out


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["search"],
        ["embed", "x.parquet", "--nope"],
        ["demo", "--rows", "0"],
        ["search", "a", "b", "-n", "0"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2_without_a_traceback(cli: Callable, args: list[str]) -> None:
    """Usage errors have another exit code than failures."""
    result = cli(*args, expect=exits.USAGE)
    assert "Usage:" in result.err
    assert "Traceback" not in result.err


def test_functions_are_listed_with_modality_and_origin(cli: Callable) -> None:
    """`functions --json` describes every registered function."""
    found = {each["name"]: each for each in cli("functions", "--json").json}
    assert set(found) >= set(BUILTINS)
    assert found["hashing"]["modality"] == "text"
    assert found["hashing"]["origin"] == "built-in"
    assert found["hashing"]["installed"] is True
    assert "hashing" in cli("functions").out


def test_one_function_is_shown_with_its_fields(cli: Callable) -> None:
    """`functions NAME` lists what --set can set, with types and defaults."""
    out = cli("functions", "hashing").out
    assert "dim" in out
    assert "integer" in out
    assert cli("functions", "hashing", "--json").json["config"]["properties"]["dim"]["default"] == 256


def test_the_error_for_an_unknown_function_suggests_the_closest(cli: Callable) -> None:
    """A typo costs one line and a hint."""
    result = cli("functions", "hashign", expect=exits.ERROR)
    assert result.err.splitlines()[0] == "embedreg: no embedding function is registered as 'hashign'."
    assert result.err.splitlines()[1].startswith("Hint: did you mean 'hashing'?")
    assert result.out == ""


def test_a_users_file_is_imported_on_request(cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--import FILE registers what the file registers, helpers beside it included."""
    for name in ("mine", "helper_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)  # of another test
    (tmp_path / "mine.py").write_text("import helper_of_mine\n" + TOY)
    (tmp_path / "helper_of_mine.py").write_text("")
    described = cli("functions", "toy", "--import", "mine.py", "--json").json
    assert described["doc"] == "Counts letters."
    assert described["origin"] == "registered in mine"


def test_a_users_module_is_imported_from_the_working_directory(command: Callable, tmp_path: Path) -> None:
    """--import MODULE finds what `python -m` would."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    (tmp_path / "my_package" / "functions.py").write_text(TOY)
    assert command("functions", "toy", "--import", "my_package.functions", "--json").json["name"] == "toy"


def test_a_users_file_may_be_called_like_a_module_of_python(cli: Callable, tmp_path: Path) -> None:
    """A file named json.py is imported as itself and hides nothing."""
    (tmp_path / "json.py").write_text(TOY)
    assert cli("functions", "toy", "--import", "./json.py", "--json").json["name"] == "toy"


@pytest.mark.parametrize(
    ("target", "content", "message"),
    [
        ("absent.py", None, "there is no such file"),
        ("absent_module", None, "there is no module 'absent_module'"),
        ("broken.py", "1 / 0", "ZeroDivisionError"),
        ("broken.py", "def", "SyntaxError"),
        ("broken.py", "import surely_not_installed", "pip install surely_not_installed"),
    ],
)
def test_a_failed_import_is_one_line_and_a_hint(
    cli: Callable, tmp_path: Path, target: str, content: str | None, message: str
) -> None:
    """A missing or broken --import names itself and what happened."""
    if content is not None:
        (tmp_path / target).write_text(content)
    result = cli("functions", "--import", target, expect=exits.ERROR)
    assert result.err.startswith(f"embedreg: --import {target}")
    assert message in result.err
    assert len(result.err.splitlines()) == 2


def test_debug_shows_the_traceback_that_is_left_out_otherwise(cli: Callable, tmp_path: Path) -> None:
    """An author of a function can see where it failed."""
    (tmp_path / "broken.py").write_text("1 / 0")
    assert "Traceback" not in cli("functions", "--import", "broken.py", expect=exits.ERROR).err
    assert "1 / 0" in cli("functions", "--import", "broken.py", "--debug", expect=exits.ERROR).err


def test_an_error_of_the_users_function_is_named_as_such(cli: Callable, texts: Path, tmp_path: Path) -> None:
    """A bug in a user's function is an error of theirs, one line and a hint; one of ours alone is exit code 70."""
    assert exits.code_of(LookupError("oops")) == exits.BUG
    (tmp_path / "mine.py").write_text(TOY.replace("return self.dim", "raise LookupError('oops')"))
    result = cli("embed", texts, "out.parquet", "-f", "toy", "--import", "mine.py", expect=exits.ERROR)
    assert result.err.splitlines()[-2:] == [
        "embedreg: your function 'toy' raised LookupError: oops",
        "Hint: run it again with --debug for its traceback",
    ]


def test_doctor_shows_what_is_installed_and_what_is_missing(cli: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, device and functions; for what is missing the command that brings it."""
    from embedreg.cli import doctor

    needed = doctor._required()
    monkeypatch.setattr(doctor, "_required", lambda: needed | {"no-such-library": "lancedb"})
    found = cli("doctor", "--json").json
    assert found["embedreg"] == embedreg.__version__
    assert found["functions"]["hashing"] == {"ready": True, "install": None, "origin": "built-in"}
    assert found["libraries"]["pyarrow"]["version"]
    missing = {"version": None, "extra": "lancedb", "install": "pip install 'embedreg[lancedb]'"}
    assert found["libraries"]["no-such-library"] == missing
    assert found["model"]["origin"] == "wheel"
    assert "pip install 'embedreg[lancedb]'" in cli("doctor").out


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path) -> None:
    """`embedreg ... | head -1` prints no error about the broken pipe."""
    line = f"{sys.executable} -m embedreg functions --json | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "["


def test_a_full_disk_under_stdout_is_an_error(command: Callable) -> None:
    """What could not be printed is not reported as done."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "embedreg", "functions", "--json"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == exits.ERROR
    assert done.stderr.startswith("embedreg: No space left on device")


def test_data_cannot_steer_the_terminal(cli: Callable) -> None:
    """Escape sequences in data are shown as replacement characters; line breaks become spaces."""
    from embedreg.support.display import plain

    assert plain("a\x1b[2Jb\nc\u202ed") == "a\N{REPLACEMENT CHARACTER}[2Jb c\N{REPLACEMENT CHARACTER}d"


def test_json_has_null_where_numbers_are_not_numbers() -> None:
    """NaN is not JSON: the output has null."""
    from embedreg.cli.terminal import as_json

    assert json.loads(as_json({"a": [float("nan"), 1.0], "b": float("inf")})) == {"a": [None, 1.0], "b": None}


@pytest.mark.parametrize("value", [{}, [[]], "\x1b[31m", 2**63, 1, None])
def test_recorded_values_of_other_types_are_shown_or_left_out(cli: Callable, value: object) -> None:
    """Metadata comes from anyone: whatever is recorded, `inspect` prints a line."""
    made = embedreg.embed_table({"text": ["a"]}, embedreg.get("hashing").create(dim=4).bind("text", "vector"))
    [entry] = json.loads(made.schema.metadata[b"embedding_functions"])
    for name in ("normalized", "metric", "dtype", "producer", "prompts", "identity", "digest", "vectors"):
        recorded = {**entry["model"], "embedreg": {**entry["model"]["embedreg"], name: value}}
        text = json.dumps([{**entry, "model": recorded}])
        pq.write_table(made.replace_schema_metadata({"embedding_functions": text}), "odd.parquet")
        found = cli("inspect", "odd.parquet")
        assert "hashing" in found.out
        assert "\x1b" not in found.out + found.err
