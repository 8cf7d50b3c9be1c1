"""The command line as a user has it: called in this process for speed, or started as a process of its own."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedreg.cli import main


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout, which must be JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Result]]:
    """Call the command line in this process, in an empty folder: cli("embed", ...) gives code, out, err."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*args: object, expect: int = 0) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        result = Result(code, *capsys.readouterr())
        assert code == expect, f"exit code {code}, not {expect}\n{result.out}\n{result.err}"
        return result

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Result]:
    """Start `python -m embedreg` in an empty folder; `expect` is the exit code, other keywords are subprocess's."""

    def run(*args: object, expect: int | None = 0, **options: Any) -> Result:
        line = [sys.executable, "-m", "embedreg", *map(str, args)]
        options = {"cwd": tmp_path, "timeout": 300, **options}
        done = subprocess.run(line, capture_output=True, text=True, check=False, **options)
        if expect is not None:
            assert done.returncode == expect, f"exit code {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}"
        return Result(done.returncode, done.stdout, done.stderr)

    return run


TEXTS = [
    "the cat sat on the mat",
    "a thread waits for another thread",
    None,
    "copy a file to another folder",
    "   ",
    "the cat sat on the mat",
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A Parquet file of six rows: two alike, one null, one blank."""
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), path)
    return path
