"""Full disks, and the files that remain on them."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.errors import StorageError
from tests.jobs import children
from tests.jobs.children import Logged
from tests.jobs.test_kill import NAMES, content, left_over

OPTIONS: dict[str, Any] = {"piece_rows": 100, "batch_rows": 100}


def run_on_a_small_disk(limit: int, error: str, src: str, dst: str) -> None:
    """Run a job in a process with a limit on file size, which acts like a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        children.run(src, dst, "", **OPTIONS)
    except StorageError as exc:
        Path(error).write_text(str(exc))
        raise SystemExit(3) from None


@pytest.fixture
def growing(dataset: Path) -> Path:
    """A dataset whose last file becomes much larger pieces than the others."""
    path = dataset / "lang=en" / "a.parquet"
    long = [str(random.Random(n).getrandbits(1200)) for n in range(300)]
    pq.write_table(pq.read_table(path).set_column(1, "text", [long]), path, row_group_size=50)
    return dataset


@pytest.mark.parametrize("kind", NAMES)
def test_a_job_continues_when_there_is_space_again(start: Callable, growing: Path, tmp_path: Path, kind: str) -> None:
    """A full disk is one error; no partial file remains, and the next run completes the job."""
    path, log, error = tmp_path / "small" / NAMES[kind], tmp_path / "log", tmp_path / "error"
    process = start(run_on_a_small_disk, 12_000, error, growing, path)
    process.join()
    assert process.exitcode == 3
    assert "File too large" in error.read_text()
    report = embedreg.embed(growing, path, Logged(log=str(log)).bind("text", "vector"), **OPTIONS)
    assert report.reused == 4
    assert len(children.embedded(log)) == 300
    reference = tmp_path / "reference" / NAMES[kind]
    embedreg.embed(growing, reference, Logged().bind("text", "vector"), **OPTIONS)
    assert content(path) == content(reference)
    assert left_over(path) == []


def test_readers_of_folders_see_rows_only(dataset: Path, tmp_path: Path) -> None:
    """pyarrow, DuckDB, polars and pandas read the output as a dataset, despite `_embedreg/`."""
    import duckdb
    import pandas as pd
    import polars as pl

    out = tmp_path / "out"
    embedreg.embed(dataset, out, Logged().bind("text", "vector"), on_error="null", **OPTIONS)
    counts = {
        "pyarrow": ds.dataset(out, format="parquet", partitioning="hive").count_rows(),
        "duckdb": len(
            duckdb.sql(f"SELECT * FROM read_parquet('{out}/**/*.parquet', hive_partitioning=true)").fetchall()
        ),
        "polars": pl.read_parquet(f"{out}/**/*.parquet").height,
        "pandas": len(pd.read_parquet(out)),
    }
    assert counts == dict.fromkeys(counts, 600)
