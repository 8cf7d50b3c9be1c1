"""Fixtures: datasets, and processes that are killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs import children


@pytest.fixture(autouse=True)
def logged() -> None:
    """Register the function that records its inputs."""
    children.register()


@pytest.fixture(scope="session")
def nursery() -> Any:
    """Fork processes from one that has imported everything, so that each starts at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.jobs.children", "pyarrow.parquet", "pyarrow.dataset", "embedreg.jobs.run"])
    return context


@pytest.fixture
def start(nursery: Any) -> Iterator[Callable[..., Any]]:
    """Start a function of `children` in its own process."""
    started = []

    def begin(target: Callable[..., None], *args: Any, **options: Any) -> Any:
        process = nursery.Process(target=target, args=tuple(map(str_of, args)), kwargs=options)
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()
        process.close()


def str_of(value: Any) -> Any:
    """Paths travel as text."""
    return str(value) if isinstance(value, Path) else value


def texts(start: int, count: int) -> pa.Table:
    """Rows whose texts are all different."""
    return pa.table(
        {"id": range(start, start + count), "text": [f"text number {n}" for n in range(start, start + count)]}
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A hive folder of three Parquet files, 600 rows, in row groups of 50."""
    folder = tmp_path / "in"
    for name, first, count in (
        ("lang=de/a.parquet", 0, 250),
        ("lang=de/b.parquet", 250, 50),
        ("lang=en/a.parquet", 300, 300),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(texts(first, count), folder / name, row_group_size=50)
    return folder
