"""A job that is killed at any moment and started again ends with the same result."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.errors import StorageError
from embedreg.jobs import Job, embed
from tests.jobs import children
from tests.jobs.children import Logged

ROWS, PIECE = 600, 100
OPTIONS = {"piece_rows": PIECE, "batch_rows": 20}
NAMES = {"folder": "out", "file": "out.parquet", "table": "db/out.lance"}


def content(path: Path) -> Any:
    """Return what a reader of the output sees: names, rows, order, declarations."""
    if path.suffix == ".lance":
        table = lance.dataset(path).to_table()
        return table, table.schema.metadata
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    tables = [pq.ParquetFile(file).read() for file in files]
    manifest = path / "_embedreg" / "manifest.json"
    names = [str(file.relative_to(path)) for file in files]
    return names, tables, [table.schema.metadata for table in tables], manifest.exists() and manifest.read_bytes()


def left_over(path: Path) -> list[str]:
    """Return leftovers that must not exist: hidden working files, locks, partial files."""
    beside = [each.name for each in path.parent.iterdir() if each.name.startswith(".")]
    within = [path / "_embedreg" / name for name in ("tmp", "lock")]
    return beside + [each.name for folder in within if folder.exists() for each in folder.iterdir()]


@pytest.fixture
def uninterrupted(dataset: Path, tmp_path: Path) -> Callable[[str], Any]:
    """The result of an uninterrupted run."""

    def run(kind: str, every_kind: bool = False) -> Any:
        path, log = tmp_path / "reference" / NAMES[kind], str(tmp_path / "reference.log")
        declared = children.of_each_kind(log) if every_kind else Logged(log=log).bind("text", "vector")
        embed(dataset, path, declared, **OPTIONS)
        return content(path)

    return run


def check(path: Path, log: Path, expected: Any, kills: int) -> None:
    """Check that no row is lost or duplicated, and that each kill cost at most one piece."""
    assert content(path) == expected
    assert left_over(path) == []
    counted = Counter(children.embedded(log))
    assert set(counted) == {f"text number {n}" for n in range(ROWS)}
    again = sum(count - 1 for count in counted.values())
    assert again <= kills * PIECE


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("folder", 20), ("file", 6), ("table", 6)])
def test_a_job_killed_at_a_random_moment_ends_with_the_same_result(
    start: Callable, uninterrupted: Callable, dataset: Path, tmp_path: Path, kind: str, kills: int
) -> None:
    """SIGKILL at random points: the same files, rows, order, declarations; only the running piece is repeated."""
    expected, chance = uninterrupted(kind), random.Random(kind)
    killed = 0
    for trial in range(kills):
        path, log = tmp_path / str(trial) / NAMES[kind], tmp_path / f"{trial}.log"
        # After so many texts, then a moment: anywhere between two steps of the job.
        wanted = chance.randrange(ROWS)
        process = start(children.run, dataset, path, log, pause_s=0.01, **OPTIONS)
        while process.is_alive() and len(children.embedded(log)) < wanted:
            process.join(0.002)
        process.join(chance.random() * 0.03)
        process.kill()
        process.join()
        killed += process.exitcode != 0
        embed(dataset, path, Logged(log=str(log)).bind("text", "vector"), **OPTIONS)
        check(path, log, expected, 1)
        shutil.rmtree(path.parent)
    assert killed >= kills * 3 // 4  # a few may have been too late


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_a_job_killed_at_each_of_its_steps_ends_with_the_same_result(
    start: Callable, uninterrupted: Callable, dataset: Path, tmp_path: Path, kind: str
) -> None:
    """A job that is killed before each of its syncs in turn never repeats a completed piece."""
    expected, log = uninterrupted(kind), tmp_path / "log"
    path, kills = tmp_path / "killed" / NAMES[kind], 0
    number = 1
    while True:
        process = start(children.run_killed_at_sync, number, dataset, path, log, **OPTIONS)
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        number += 1 + number // 6  # the first steps are the ones of opening: later runs get beyond them
        assert kills < 60
    assert kills > 8
    check(path, log, expected, kills)


def test_one_job_killed_again_and_again_ends(
    start: Callable, uninterrupted: Callable, dataset: Path, tmp_path: Path
) -> None:
    """A job that is killed repeatedly ends, as long as a piece is completed now and then, with each kind of vectors."""
    expected, log, path = uninterrupted("folder", every_kind=True), tmp_path / "log", tmp_path / "out"
    table = pq.ParquetFile(tmp_path / "reference" / "out" / expected[0][0]).read()
    words = [[len(word), sum(word.encode())] for word in table["text"][0].as_py().split()]
    assert table["multi"][0].as_py() == words
    assert table["sparse"][0].as_py() == {"indices": [0], "values": [len(table["text"][0].as_py())]}
    assert table["template__source"][0].as_py() == f"{table['id'][0].as_py()}: {table['text'][0].as_py()}"
    declared = embedreg.functions_in(table)
    assert [declared[name].value_type for name in ("int8", "ubinary")] == ["int8", "ubinary"]
    kills, chance = 0, random.Random(7)
    while True:
        seen = len(children.embedded(log))
        process = start(children.run, dataset, path, log, pause_s=0.005, every_kind=True, **OPTIONS)
        wanted = seen + PIECE + chance.randrange(PIECE)
        while process.is_alive() and len(children.embedded(log)) < wanted:
            process.join(0.002)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 3
    check(path, log, expected, kills)


# -- Lance's fragments, and the last steps -----------------------------------------------------------------------------


def test_fragments_are_on_the_disk_before_they_are_recorded(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file of Lance is synced to the disk before its record is written."""
    pushed, sync = list[str](), os.fsync

    def noting(handle: int) -> None:
        pushed.append(os.readlink(f"/proc/self/fd/{handle}"))
        sync(handle)

    path = tmp_path / NAMES["table"]
    with Job.open(dataset, path, Logged().bind("text", "vector"), **OPTIONS) as job:
        outcome = job.work.run(job.pending()[0])
        monkeypatch.setattr(os, "fsync", noting)
        outcome = job.work.run(job.pending()[1])
        data = path.parent / ".out.lance.embedreg" / "table.lance" / "data"
        names = [file["path"] for each in outcome.stored["fragments"] for file in each["files"]]
        assert set(pushed) == {str(data), *(str(data / name) for name in names)}


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_truncated_fragment_is_done_again(
    uninterrupted: Callable, dataset: Path, tmp_path: Path, damage: str
) -> None:
    """A recorded fragment whose file was truncated is ignored."""
    expected, log, path = uninterrupted("table"), tmp_path / "log", tmp_path / NAMES["table"]
    declaration = Logged(log=str(log)).bind("text", "vector")
    with Job.open(dataset, path, declaration, **OPTIONS) as job:
        outcomes = [job.work.run(piece) for piece in job.pending()[:2]]
        for outcome in outcomes:
            job.record(outcome)
    name = outcomes[0].stored["fragments"][0]["files"][0]["path"]
    file = path.parent / ".out.lance.embedreg" / "table.lance" / "data" / name
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7] if damage == "cut" else b"")
    assert embed(dataset, path, declaration, **OPTIONS).reused == 1
    assert content(path) == expected
    assert left_over(path) == []


@pytest.mark.parametrize("kind", ["file", "table"])
def test_a_run_that_is_killed_during_cleanup_is_recognised_as_complete(
    start: Callable, uninterrupted: Callable, dataset: Path, tmp_path: Path, kind: str
) -> None:
    """Ended before any of its last removals, what it made is whole: the next run reports it, and clears up.

    Where nothing but a lock and empty folders is left it is a job that has ended, like any: its output exists.
    """
    expected, log = uninterrupted(kind), tmp_path / "log"
    number, known, existing = 1, 0, 0
    while True:
        path = tmp_path / str(number) / NAMES[kind]
        process = start(children.run_killed_at_removal, number, dataset, path, log, **OPTIONS)
        process.join()
        if process.exitcode == 0:
            break
        try:
            report = embed(dataset, path, Logged().bind("text", "vector"), **OPTIONS)
        except StorageError:
            existing += 1
        else:
            assert report.nothing_to_do
            assert (report.rows, report.pieces, report.reused, report.reused_rows) == (ROWS, 7, 7, ROWS)
            known += 1
        assert content(path) == expected
        assert sorted(each.name for each in path.parent.iterdir()) == [path.name]
        number += 2
    assert known > 5
    assert existing <= 4
