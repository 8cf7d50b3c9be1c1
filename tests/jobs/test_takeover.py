"""A run that stands still for longer than its lock lives, and goes on: nothing is lost, doubled or harmed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from embedreg.errors import StorageError
from embedreg.jobs import embed
from tests.jobs import children
from tests.jobs.children import Logged
from tests.jobs.objects import s3_server
from tests.jobs.test_kill import NAMES, OPTIONS, ROWS, content, left_over
from tests.jobs.test_objects import KEY, SECRET, expected, keys, table_at

POINTS = int(os.environ.get("EMBEDREG_POINTS", "3"))
LIFE_S = {"folder": 1.0, "file": 1.0, "table": 1.0, "bucket": 4.0}  # a store's times are whole seconds


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """What an AWS client reads, for a server on loopback."""
    with s3_server() as port:
        yield {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def stopped_at(process: Any, log: Path, wanted: int, moment_s: float) -> bool:
    """Stop a run once it has embedded so many texts, and a moment more; return whether it was still at it."""
    while process.is_alive() and len(children.embedded(log)) < wanted:
        process.join(0.002)
    process.join(moment_s)
    if not process.is_alive():
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGSTOP)
    return stands_still(process.pid)


def stands_still(pid: int) -> bool:
    """Return whether a signal stopped a process, and did not come to one that was about to be gone."""
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():  # another system than Linux does not tell so
        return True
    for _ in range(400):
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "TZX":
            return state == "T"
        time.sleep(0.005)
    raise AssertionError(f"the process neither stops nor ends: {state}")


def test_a_commit_after_another_run_has_published_leaves_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last check and Lance's commit another run takes over and ends: its table stays, and only that."""
    dst, declared = tmp_path / NAMES["table"], Logged().bind("text", "vector")
    commit, calls = lance.LanceDataset.commit, []

    def late(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:  # the first has begun the table
            for lock in (dst.parent / ".out.lance.embedreg" / "_embedreg" / "lock").iterdir():
                lock.unlink()
            assert embed(dataset, dst, declared, **OPTIONS).reused == 7
        return commit(*args, **options)

    monkeypatch.setattr(lance.LanceDataset, "commit", late)
    with pytest.raises(StorageError, match="another run took over"):
        embed(dataset, dst, declared, **OPTIONS)
    assert len(calls) == 3
    assert left_over(dst) == []
    assert lance.dataset(dst).count_rows() == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("kind", LIFE_S)
def test_a_run_that_was_taken_over_harms_nobody(
    start: Callable,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    """Stopped at random points; another run takes over and ends, or is killed or overtaken in its middle."""
    chance, s3 = random.Random(f"{kind} {os.environ.get('EMBEDREG_SEED', '')}"), dict[str, str]()
    if kind == "bucket":
        s3 = request.getfixturevalue("environment")
        for name, value in s3.items():
            monkeypatch.setenv(name, value)
        pafs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")[0].create_dir(f"at-{tmp_path.name}")
        reference: Any = expected(dataset)
    else:
        embed(dataset, tmp_path / "reference" / NAMES[kind], Logged().bind("text", "vector"), **OPTIONS)
        reference = content(tmp_path / "reference" / NAMES[kind])
    taken = 0
    for point in range(POINTS):
        dst = f"s3://at-{tmp_path.name}/{point}" if kind == "bucket" else str(tmp_path / str(point) / NAMES[kind])
        logs = [tmp_path / f"{point}-{number}.log" for number in range(3)]
        begin = lambda log, dst=dst: start(  # noqa: E731
            children.run_elsewhere, LIFE_S[kind], s3, dataset, dst, log, pause_s=0.01, **OPTIONS
        )
        first = begin(logs[0])
        wanted, moment_s = chance.randrange(-20, ROWS + 1), chance.random() * 0.1
        if stopped_at(first, logs[0], max(wanted, 0), moment_s):
            taken += 1
            time.sleep(LIFE_S[kind] * 1.3 + (1 if kind == "bucket" else 0.0))
            second = begin(logs[1])
            what = chance.choice(["ends", "overtaken", "killed"])
            if what != "ends":
                while second.is_alive() and len(children.embedded(logs[1])) < chance.randrange(ROWS):
                    second.join(0.002)
            if what == "killed":
                second.kill()
            if what == "ends":
                second.join()
            os.kill(first.pid, signal.SIGCONT)
            first.join()
            second.join()
            assert what == "killed" or second.exitcode == 0 or first.exitcode == 0, (point, what)
            if what == "killed":
                time.sleep(LIFE_S[kind] * 1.3 + (1 if kind == "bucket" else 0.0))
                last = begin(logs[2])
                last.join()
                assert last.exitcode == 0 or first.exitcode == 0 or second.exitcode == 0, point
        if kind == "bucket":
            assert table_at(dst).equals(reference), point
            assert not [key for key in keys(dst) if key.startswith("_embedreg/lock/")]
        else:
            assert content(Path(dst)) == reference, point
            assert left_over(Path(dst)) == []
            if kind == "table":
                # the beginning, the end, and that of a run which was stopped between its last check and its commit
                assert len(lance.dataset(dst).versions()) <= 3
        if kind in ("folder", "bucket"):
            assert isinstance(reference, pa.Table | tuple)
            assert embed(dataset, dst, Logged().bind("text", "vector"), **OPTIONS).nothing_to_do
    assert taken >= POINTS * 3 // 4
