"""`embedreg embed` on text files, folders and pipes: what is read, what is noted, what is refused."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedreg.cli import serve_config

JOB = ("-f", "hashing", "--set", "dim=4")


def test_options_say_how_text_is_read(cli: Callable, tmp_path: Path) -> None:
    """Types, encoding and delimiter; and so for an estimate."""
    Path("a.csv").write_bytes("id;text;day;größe=x\n007;gr\xfcn;2024-05-01;5\n".encode("latin-1"))
    options = ("--delimiter", ";", "--encoding", "latin-1", "--types", "day=date", "--types", "größe=x=float")
    assert cli("embed", "a.csv", *JOB, *options, "--estimate", "--json").json[0]["rows"] == 1
    found = cli("embed", "a.csv", "out.parquet", *JOB, *options, "--json").json
    assert any("column 'id' stays text: '007'" in note for note in found["notes"])
    row = pq.read_table("out.parquet").to_pylist()[0]
    assert (row["id"], row["text"], row["day"], row["größe=x"]) == ("007", "grün", datetime.date(2024, 5, 1), 5.0)


def test_notes_are_printed(cli: Callable, tmp_path: Path) -> None:
    """On stderr, beside the answer."""
    Path("in").mkdir()
    Path("in/a.csv").write_text("text,zip\nx,01234\n")
    Path("in/b.txt").write_text("x")
    told = cli("embed", "in", "out", *JOB)
    assert "'01234' would not read back the same (in/a.csv, line 2)" in told.err
    assert "1 file(s) of other kinds are left out: b.txt" in told.err
    assert "--types" in told.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("embed", "-", "out"), 1, "a pipe cannot be read twice"),
        (("embed", "/dev/stdin", "out"), 1, "save it first"),
        (("embed", "pipe.jsonl", "out"), 1, "is a pipe"),
        (("embed", "missing.jsonl", "out"), 1, ".jsonl or .csv file"),
        (("embed", "a.csv", "-"), 1, "cannot be written to a pipe"),
        (("embed", "a.csv", "db/my notes.lance"), 1, "db/my_notes.lance"),
        (("embed", "a.csv", "out", "--types", "text"), 2, "COLUMN=TYPE"),
        (("embed", "a.csv", "out", "--types", "text=varchar"), 1, "unknown type 'varchar'"),
        (("embed", "a.csv", "out", "--encoding", "x"), 1, "unknown encoding"),
        (("embed", "open.csv", "out"), 1, "line 3: the quote that opens here is never closed"),
        (("search", "*.csv", "x"), 1, "*.csv"),
        (("inspect", "pipe.jsonl"), 1, "is a pipe"),
    ],
)
def test_the_error_for_unreadable_data_has_a_hint(
    cli: Callable, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    """One line and a hint, and nothing is made."""
    os.mkfifo("pipe.jsonl")
    Path("a.csv").write_text("text\nx\n")
    Path("open.csv").write_text('text,n\nx,1\n"y,2\n')
    job = JOB if arguments[0] == "embed" else ()
    told = cli(*arguments, *job, expect=code)
    assert message in told.err
    assert not Path("out").exists()
    assert not Path("-").exists()


def test_a_toml_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As editors on Windows write it."""
    path = tmp_path / "serve.toml"
    path.write_bytes(b"\xef\xbb\xbfaddress = 'x:1'\n")
    assert serve_config.read(str(path)).address == "x:1"


def test_a_job_of_an_older_version_is_continued(cli: Callable, tmp_path: Path) -> None:
    """Its pieces are cut as they were, and what is done stays; a plan without options counts."""
    Path("in").mkdir()
    for name in "ab":
        lines = [json.dumps({"text": f"{name}{n}", "n": n}) for n in range(30)]
        Path(f"in/{name}.jsonl").write_text("\n".join(lines) + "\n")
    cli("embed", "in", "out", *JOB)
    job, plan = Path("out/_embedreg/job.json"), Path("out/_embedreg/plan.json")
    old = {name: value for name, value in json.loads(job.read_text()).items() if name != "by_rows"}
    job.write_text(json.dumps(old | {"piece_rows": 20}))
    plan.write_text(json.dumps({name: v for name, v in json.loads(plan.read_text()).items() if name != "reading"}))
    Path("out/b.parquet").unlink()
    found = cli("embed", "in", "out", *JOB, "--json").json
    assert (found["reused"], found["pieces"]) == (1, 2)
    assert pq.read_table("out/b.parquet").column("n").to_pylist() == [*range(30)]
    assert pq.read_schema("out/b.parquet").field("n").type == pa.int64()
