"""`embedreg embed` on datasets: resumable jobs, from the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from embedreg.cli import exits
from tests.cli.test_embed import PICKY
from tests.jobs.conftest import texts

JOB = ("-f", "hashing", "--set", "dim=8", "--piece-rows", 50, "--batch-rows", 25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two files, 300 rows."""
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    pq.write_table(texts(0, 200), tmp_path / "docs" / "a.parquet", row_group_size=50)
    pq.write_table(texts(200, 100), tmp_path / "docs" / "deep" / "b.parquet", row_group_size=50)
    return tmp_path / "docs"


def test_a_folder_becomes_a_folder_and_search_finds_it(cli: Callable, folder: Path) -> None:
    """DST needs nothing else: it is searched, inspected, and embedded again in no time."""
    found = cli("embed", "docs", "out", *JOB, "--json").json
    assert {key: found[key] for key in ("path", "rows", "written", "embedded", "pieces", "reused", "bad_rows")} == {
        "path": "out",
        "rows": 300,
        "written": 300,
        "embedded": 300,
        "pieces": 6,
        "reused": 0,
        "bad_rows": 0,
    }
    assert cli("search", "out", "text number 17", "--json").json[0]["text"] == "text number 17"
    assert cli("inspect", "out", "--json").json["rows"] == 300
    again = cli("embed", "docs", "out", *JOB)
    assert "nothing to do, 300 rows done before" in again.out
    assert "300 rows embedded by an earlier run" in again.err


def test_another_configuration_has_its_exit_code_and_its_way_out(cli: Callable, folder: Path) -> None:
    """A dataset that was begun otherwise is refused; --fresh, or its other name, begins anew."""
    cli("embed", "docs", "out", *JOB)
    refused = cli("embed", "docs", "out", *JOB, "--set", "dim=16", expect=exits.DRIFT)
    assert "--fresh starts over" in refused.err
    assert len(pq.read_table("out/a-00000.parquet").column("vector")[0]) == 8
    for flag in ("--fresh", "--no-resume"):
        assert cli("embed", "docs", "out", *JOB, "--set", "dim=16", flag, "--json").json["reused"] == 0
    assert len(pq.read_table("out/a-00000.parquet").column("vector")[0]) == 16


def test_inputs_that_are_gone_are_pruned_when_asked(cli: Callable, folder: Path) -> None:
    """Without --prune it is an error that names the option."""
    cli("embed", "docs", "out", *JOB)
    (folder / "a.parquet").unlink()
    assert "--prune" in cli("embed", "docs", "out", *JOB, expect=exits.ERROR).err
    assert len(cli("embed", "docs", "out", *JOB, "--prune", "--json").json["removed"]) == 4
    assert ds.dataset("out", format="parquet").count_rows() == 100


def test_patterns_and_other_kinds(cli: Callable, folder: Path, tmp_path: Path) -> None:
    """A pattern names the files; Arrow IPC is read and written."""
    assert cli("embed", "docs/*.parquet", "out.arrow", *JOB, "--json").json["rows"] == 200
    assert cli("embed", "out.arrow", "back.parquet", "--json").json["given"] == 200
    assert pq.read_table("back.parquet").column("id").to_pylist() == list(range(200))


def test_bad_rows_go_to_a_file(cli: Callable, folder: Path, tmp_path: Path) -> None:
    """Beside a file, or in the dataset's own folder; the output has the path."""
    (tmp_path / "picky.py").write_text(PICKY)
    table = texts(0, 30)
    bad = [f"bad {n}" if n % 3 == 0 else f"good {n}" for n in range(30)]
    pq.write_table(table.set_column(1, "text", [bad]), "source.parquet")
    options = ("--import", "picky.py", "-f", "picky", "--on-error", "null")
    for dst, side in (("out.parquet", "out.parquet.bad_rows.jsonl"), ("out", "out/_embedreg/bad_rows.jsonl")):
        result = cli("embed", "source.parquet", dst, *options)
        assert "10 bad" in result.out
        assert side in result.err
        lines = [json.loads(line) for line in Path(side).read_text().splitlines()]
        assert lines[1] == {
            "input": "source.parquet",
            "row": 3,
            "column": "text",
            "key": "id=3",
            "reason": "it says bad",
        }
        assert len(lines) == 10


def test_a_cache_is_kept(cli: Callable, folder: Path) -> None:
    """--cache PATH: what was embedded once is read from there in any job."""
    cli("embed", "docs", "first", *JOB, "--cache", "vectors.cache")
    found = cli("embed", "docs", "second", *JOB, "--cache", "vectors.cache", "--json").json
    assert (found["embedded"], found["cached"]) == (300, 300)


@pytest.mark.parametrize("name", ["out", "out.parquet", "db/out.lance"])
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, exits.INTERRUPTED), (signal.SIGTERM, exits.TERMINATED)])
def test_a_stopped_run_is_continued(
    cli: Callable, folder: Path, tmp_path: Path, stop: signal.Signals, code: int, name: str
) -> None:
    """Ctrl-C and SIGTERM keep what is done, report it, and the same command ends the job."""
    (tmp_path / "picky.py").write_text(PICKY)
    job = ["docs", name, "--import", "picky.py", "-f", "picky", "--piece-rows", "50", "--batch-rows", "10"]
    line = [sys.executable, "-m", "embedreg", "embed", *job, "--set", "pause_s=0.05"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    root = tmp_path / name if name == "out" else (tmp_path / name).parent / f".{Path(name).name}.embedreg"
    deadline = time.monotonic() + 60
    while not list((root / "_embedreg" / "ledger").rglob("*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)  # the event is in another process
    process.send_signal(stop)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert re.search(r"finished work is kept \(\d+ rows?\); to continue: embedreg embed docs ", err)
    assert name == "out" or not (tmp_path / name).exists()
    found = cli("embed", *job, "--set", "pause_s=0.05", "--json").json
    assert found["reused"] >= 1
    assert found["rows"] == 300
    assert not [path for path in (tmp_path / name).parent.iterdir() if path.name.startswith(".")]


def test_an_estimate_reads_any_source(cli: Callable, folder: Path) -> None:
    """It writes nothing and counts what there is to do."""
    found = cli("embed", "docs", "-f", "hashing", "--estimate", "--json").json
    assert (found[0]["rows"], found[0]["to_embed"]) == (300, 300)
    missing = cli("embed", "docs", "-f", "hashing", "--source", "txt", "--estimate", expect=exits.ERROR)
    assert "--source" in missing.err


def test_options_of_a_filesystem_hold_no_secret(cli: Callable, folder: Path) -> None:
    """A key on the command line would stay in the shell's history: it is refused unread."""
    arguments = ("embed", "s3://bucket/in", "out", *JOB, "--storage-option", "secret_key=hunter2")
    refused = cli(*arguments, expect=exits.ERROR)
    assert "hard-coded" in refused.err
    assert "hunter2" not in refused.err + refused.out
    assert cli(*arguments[:-1], "secret_key", expect=exits.USAGE).code == exits.USAGE


UNHELPFUL = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "lance":
            try:
                os.kill(os.getpid(), signal.{stop})
                os.getpid()
            except BaseException as exc:
                raise {error}("the module could not be set up") from exc

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError"])
@pytest.mark.parametrize(("stop", "code"), [("SIGINT", exits.INTERRUPTED), ("SIGTERM", exits.TERMINATED)])
def test_a_signal_while_a_library_is_imported_has_its_exit_code(
    cli: Callable, folder: Path, tmp_path: Path, stop: str, code: int, error: str
) -> None:
    """A library may turn what the signal raised into an error of its own: the code is the signal's all the same."""
    (tmp_path / "unhelpful.py").write_text(UNHELPFUL.format(stop=stop, error=error))
    line = [sys.executable, "-m", "embedreg", "embed", "docs", "db/out.lance", "-f", "hashing"]
    done = subprocess.run([*line, "--import", "unhelpful.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert "please report" not in done.stderr
    assert not (tmp_path / "db").exists()
