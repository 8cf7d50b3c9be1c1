"""One run on a destination at a time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.datasets.storage import Storage
from embedreg.errors import StorageError
from embedreg.jobs import Job, lock
from embedreg.jobs.lock import Lock
from embedreg.support import processes
from tests.jobs import children
from tests.jobs.children import Logged
from tests.jobs.conftest import texts

OPTIONS: dict[str, Any] = {"piece_rows": 100, "batch_rows": 20}


@pytest.fixture
def held(tmp_path: Path) -> Callable[..., Path]:
    """Write another run's lock into `out`."""

    def put(**told: Any) -> Path:
        path = tmp_path / "out" / lock.FOLDER / "other.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**processes.this_process(), **told}))
        return path

    return put


def test_two_runs_at_once_are_refused(start: Callable, dataset: Path, tmp_path: Path) -> None:
    """The second run ends at once with an error that names the first run's process; the first one continues."""
    log, out = tmp_path / "log", tmp_path / "out"
    first = start(children.run, dataset, out, log, pause_s=0.05, **OPTIONS)
    while not children.embedded(log):
        assert first.exitcode is None
        first.join(0.01)
    with pytest.raises(StorageError, match=f"another run is writing to .*process {first.pid} on"):
        embedreg.embed(dataset, out, Logged().bind("text", "vector"), **OPTIONS)
    first.join()
    assert first.exitcode == 0
    assert len(children.embedded(log)) == 600


def test_a_lock_of_a_dead_process_is_taken_over(start: Callable, dataset: Path, tmp_path: Path) -> None:
    """The lock of a killed run does not block the next run."""
    log, out = tmp_path / "log", tmp_path / "out"
    first = start(children.run, dataset, out, log, pause_s=0.05, **OPTIONS)
    while not children.embedded(log):
        assert first.exitcode is None
        first.join(0.01)
    first.kill()
    first.join()
    assert len(list((out / lock.FOLDER).iterdir())) == 1
    embedreg.embed(dataset, out, Logged().bind("text", "vector"), **OPTIONS)
    assert not list((out / lock.FOLDER).iterdir())


@pytest.mark.parametrize(
    ("told", "age_s", "free"),
    [
        ({}, 0, True),  # this very process, and no lock that it knows: it could not be removed
        ({"pid": 1, "started": "0"}, 0, True),  # the number was given out again
        ({"boot": "another machine"}, 0, False),
        ({"boot": "another machine"}, lock.STALE_S - 20, False),
        ({"boot": "another machine"}, lock.STALE_S + 20, True),
        ({"boot": None}, 0, False),
    ],
)
def test_a_lock_is_checked_by_its_process_or_its_age(
    held: Callable[..., Path], tmp_path: Path, told: dict[str, Any], age_s: float, free: bool
) -> None:
    """A process of this machine is checked; for any other, the last renewal of its lock decides."""
    path = held(**told)
    then = time.time() - age_s
    os.utime(path, (then, then))
    root = Storage(str(tmp_path / "out"))
    if free:
        with Lock(root):
            assert not path.exists()
    else:
        with pytest.raises(StorageError, match="another run"):
            Lock(root).__enter__()
        assert [each.name for each in path.parent.iterdir()] == ["other.json"]


def test_a_lock_that_cannot_be_read_is_one(held: Callable[..., Path], tmp_path: Path) -> None:
    """A partial lock file belongs to another run that is writing it."""
    held().write_bytes(b"{")
    with pytest.raises(StorageError, match="another run"):
        Lock(Storage(str(tmp_path / "out"))).__enter__()


def test_a_run_that_was_considered_dead_stops(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was suspended for too long finds its lock removed, and records nothing more."""
    monkeypatch.setattr(lock, "_RENEW_S", 0.01)
    with Job.open(dataset, tmp_path / "out", Logged().bind("text", "vector"), **OPTIONS) as job:
        outcome = job.work.run(job.pending()[0])
        for path in (tmp_path / "out" / lock.FOLDER).iterdir():
            path.unlink()
        job._opened.claim.lock._renewing.join(30)
        with pytest.raises(StorageError, match="took over"):
            job.record(outcome)


def test_a_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is updated while the run is alive."""
    monkeypatch.setattr(lock, "_RENEW_S", 0.01)
    with Lock(Storage(str(tmp_path / "out"))):
        (path,) = (tmp_path / "out" / lock.FOLDER).iterdir()
        first = path.stat().st_mtime_ns
        deadline = time.monotonic() + 30
        while path.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.005)  # the event is another thread's write


def test_a_run_that_ended_while_this_one_was_opening_is_left_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is read again once the lock is acquired, so that no work of the other run is lost."""
    out, declaration = tmp_path / "out", Logged().bind("text", "vector")
    acquire = Lock.acquire

    def late(self: Lock) -> None:
        monkeypatch.undo()
        embedreg.embed(dataset, out, declaration, **OPTIONS)  # another run, from its beginning to its end
        acquire(self)

    monkeypatch.setattr(Lock, "acquire", late)
    with pytest.raises(StorageError, match="another run has begun or ended"):
        embedreg.embed(dataset, out, declaration, **OPTIONS)
    assert embedreg.embed(dataset, out, declaration, **OPTIONS).reused == 7


# -- a run that was considered dead ------------------------------------------------------------------------------------

NAMES = {"folder": "out", "file": "out.parquet", "table": "db/out.lance"}


def hidden(tmp_path: Path, kind: str) -> Path:
    """The folder that holds a job's `_embedreg/`."""
    path = tmp_path / NAMES[kind]
    return path if kind == "folder" else path.parent / f".{path.name}.embedreg"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Callable[..., None]:
    """Make every lock of a destination one of another machine that was last renewed long ago."""

    def age(kind: str) -> None:
        for path in (hidden(tmp_path, kind) / lock.FOLDER).iterdir():
            path.write_text(json.dumps({**processes.this_process(), "boot": "another machine"}))
            os.utime(path, (1, 1))

    return age


def everything(folder: Path) -> dict[str, Any]:
    """Every file below a folder, hidden ones too, with its content and its inode."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("recorded", [0, 2])
@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("kind", NAMES)
def test_a_run_that_lost_its_lock_changes_nothing(
    dataset: Path, tmp_path: Path, elsewhere: Callable[[str], None], kind: str, ended: bool, recorded: int
) -> None:
    """Another run took over, and has begun or ended: this one can neither record, finish nor clean up."""
    declaration, path = Logged().bind("text", "vector"), tmp_path / NAMES[kind]
    first = Job.open(dataset, path, declaration, **OPTIONS)
    pieces = first.pending()
    for piece in pieces[:recorded]:
        first.record(first.work.run(piece))
    outcome = first.work.run(pieces[recorded])
    elsewhere(kind)
    second = Job.open(dataset, path, declaration, **OPTIONS)
    for piece in second.pending() if ended else second.pending()[:1]:
        second.record(second.work.run(piece))
    if ended:
        second.finish()
        second.close()
    before = everything(tmp_path)
    with pytest.raises(StorageError, match="took over"):
        first.record(outcome)
    with pytest.raises(StorageError, match="took over"):
        first.work.run(pieces[-1])
    first._done = {piece.output: outcome for piece in pieces}  # as if it had got all of them done before
    with pytest.raises(StorageError, match="took over"):
        first.finish()
    first.close()
    assert everything(tmp_path) == before
    second.close()
    if not ended:
        assert embedreg.embed(dataset, path, declaration, **OPTIONS).reused == recorded + 1


def test_a_live_run_of_this_machine_keeps_its_lock_at_any_age(start: Callable, dataset: Path, tmp_path: Path) -> None:
    """A clock that jumps, or a process that is stopped for hours, does not let another run take over."""
    log, out = tmp_path / "log", tmp_path / "out"
    first = start(children.run, dataset, out, log, pause_s=0.02, **OPTIONS)
    while not children.embedded(log):
        assert first.exitcode is None
        first.join(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    for path in (out / lock.FOLDER).iterdir():
        os.utime(path, (1, 1))
    with pytest.raises(StorageError, match=f"another run is writing to .*process {first.pid} on"):
        embedreg.embed(dataset, out, Logged().bind("text", "vector"), **OPTIONS)
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0
    assert embedreg.embed(dataset, out, Logged().bind("text", "vector"), **OPTIONS).nothing_to_do


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b'{"pid": true}', b'{"pid": -1, "boot": 3}', b"\0" * 10, b"[" * 9999, b'{"host": {}}']
)
def test_an_invalid_lock_counts_until_it_is_old(held: Callable[..., Path], tmp_path: Path, content: bytes) -> None:
    """With any content, its age decides."""
    path = held()
    path.write_bytes(content)
    root = Storage(str(tmp_path / "out"))
    with pytest.raises(StorageError, match="another run"):
        Lock(root).__enter__()
    os.utime(path, (1, 1))
    with Lock(root):
        assert not path.exists()


# -- inputs that change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("change", ["longer", "touched", "gone"])
def test_an_input_that_changes_while_the_job_runs_is_noticed(
    dataset: Path, tmp_path: Path, kind: str, change: str
) -> None:
    """One whose pieces are done already: the job does not finish, and the next run has only the new rows."""
    path, first = tmp_path / NAMES[kind], dataset / "lang=de" / "a.parquet"
    declaration = Logged().bind("text", "vector")
    with Job.open(dataset, path, declaration, **OPTIONS) as job:
        for piece in job.pending():
            job.record(job.work.run(piece))
        if change == "longer":
            pq.write_table(texts(5000, 300), first, row_group_size=50)
        elif change == "touched":
            os.utime(first, (1, 1))
        else:
            first.unlink()
        with pytest.raises(StorageError, match=r"1 input\(s\) changed while the job ran: lang=de/a\.parquet"):
            job.finish()
    if change == "gone":
        return
    report = embedreg.embed(dataset, path, declaration, **OPTIONS)
    assert report.rows == (650 if change == "longer" else 600)
    assert report.reused == 4
