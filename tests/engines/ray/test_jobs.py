"""Resumable jobs on a Ray cluster: the same result as here, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.engines import ray as engine
from embedreg.errors import BadRowsError, CallError, MissingVariableError, StorageError
from embedreg.jobs import Job, embed
from tests.engines.conftest import HERE, RAY_WARNS, Cluster
from tests.engines.ray_functions import KEY, Choosy, Gated, Hosted, Lengths, Mortal
from tests.kinds import ROWS, of_each_kind
from tests.servers import Loopback

pytestmark = RAY_WARNS


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the functions write down what they embed."""
    return tmp_path / "log"


def write(folder: Path, files: int, rows: int, last: str = "") -> Path:
    """Write a folder of Parquet files; the text of the last row ends in `last`."""
    folder.mkdir()
    for number in range(files):
        texts = [None if row % 7 == 6 else f"text {number}.{row}" for row in range(rows)]
        if number == files - 1:
            texts[-1] = f"text {number}.{rows - 1} {last}"
        pq.write_table(
            pa.table({"id": range(number * rows, (number + 1) * rows), "text": texts}), folder / f"{number}.parquet"
        )
    return folder


def read(folder: Path) -> dict[str, pa.Table]:
    """The files of a dataset, by name."""
    return {path.name: pq.read_table(path) for path in sorted(folder.glob("*.parquet"))}


def same(folder: Path, other: Path) -> bool:
    """Say whether two datasets have the same files with the same rows in the same order, schemas included."""
    mine, theirs = read(folder), read(other)
    return mine.keys() == theirs.keys() and all(mine[name].equals(theirs[name], check_metadata=True) for name in mine)


def test_a_job_on_two_actors_is_the_job_here(cluster: Cluster, tmp_path: Path) -> None:
    """20,000 rows through two actors: the same files, rows, order, schemas and counts as in this process."""
    source = write(tmp_path / "in", 4, 5000)
    declared = embedreg.get("hashing").create(dim=64).bind("text", "vector")
    shown: list[tuple[int, int | None]] = []
    far = embed(
        source,
        tmp_path / "far",
        declared,
        piece_rows=2500,
        engine=engine.engine(actors=2),
        progress=lambda done, total: shown.append((done, total)),
    )
    near = embed(source, tmp_path / "near", declared, piece_rows=2500)
    assert same(tmp_path / "far", tmp_path / "near")
    assert (far.rows, far.embedded, far.nulls, far.pieces) == (near.rows, near.embedded, near.nulls, near.pieces)
    assert shown[-1] == (20_000, 20_000)
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)


def test_a_job_of_every_kind_is_the_job_here(cluster: Cluster, tmp_path: Path) -> None:
    """Multi-vectors, sparse vectors, a template, and quantised vectors, with given ranges and with learnt ones."""
    (tmp_path / "in").mkdir()
    for number in range(2):
        pq.write_table(ROWS.slice(30 * number, 30), tmp_path / "in" / f"{number}.parquet")
    kinds = of_each_kind()
    declared = [*kinds.values(), kinds["int8"].function.bind("text", "learnt", dtype="int8")]
    embed(tmp_path / "in", tmp_path / "far", declared, engine=engine.engine(actors=2))
    embed(tmp_path / "in", tmp_path / "near", declared)
    assert same(tmp_path / "far", tmp_path / "near")


def test_a_lance_table_is_made_whole(cluster: Cluster, tmp_path: Path) -> None:
    """Fragments that actors wrote become one table, in the order of the rows, by one commit."""
    source = write(tmp_path / "in", 3, 40)
    declared = embedreg.get("hashing").create(dim=8).bind("text", "vector")
    with Job.open(source, tmp_path / "db" / "notes.lance", declared) as job:
        report = engine.run_job(job, actors=2)
    assert report.rows == 120
    from lance import dataset

    table = dataset(str(tmp_path / "db" / "notes.lance")).to_table()
    assert table["id"].to_pylist() == list(range(120))
    assert embedreg.functions_in(tmp_path / "db" / "notes.lance")["vector"].function == declared.function


def test_an_actor_that_is_killed_costs_its_piece_only(cluster: Cluster, tmp_path: Path, log: Path) -> None:
    """`kill -9` of an actor: its piece is run again on another one, and nothing else is."""
    source = write(tmp_path / "in", 4, 20, "die")
    declared = Mortal.create(log=str(log)).bind("text", "vector")
    report = embed(source, tmp_path / "far", declared, engine=engine.engine(actors=1))
    assert Path(f"{log}.died").exists()
    assert report.rows == 80
    embedded = Counter(line for line in log.read_text().splitlines() if line.startswith("text"))
    assert {text for text, times in embedded.items() if times != 1} == {
        text for text in read(source)["3.parquet"]["text"].to_pylist() if text is not None
    }
    embed(source, tmp_path / "near", declared)
    assert same(tmp_path / "far", tmp_path / "near")


def test_a_piece_that_always_kills_its_worker_ends_the_run(cluster: Cluster, tmp_path: Path, log: Path) -> None:
    """A piece is tried three times, then the run names it; what was done stays."""
    source = write(tmp_path / "in", 2, 5, "die")
    declared = Mortal.create(log=str(log), always=True).bind("text", "vector")
    with pytest.raises(CallError, match=r"3 worker\(s\) have died at 1\.parquet"):
        embed(source, tmp_path / "far", declared, engine=engine.engine(actors=1))
    assert [*read(tmp_path / "far")] == ["0.parquet"]
    report = embed(source, tmp_path / "far", Lengths.create().bind("text", "vector"), resume=False)
    assert report.rows == 10


DRIVER = """
import logging, sys
sys.path.insert(0, sys.argv[1])
import embedreg
from embedreg.engines import ray as engine
from ray_functions import Gated

declared = Gated.create(log=sys.argv[5]).bind("text", "vector")
embedreg.embed(sys.argv[3], sys.argv[4], declared, engine=engine.engine(actors=2, address=sys.argv[2]))
"""


def test_a_driver_that_is_killed_is_gone_on_with(cluster: Cluster, tmp_path: Path, log: Path) -> None:
    """`kill -9` of the driver: the next run has the same result, and embeds nothing twice but the piece in flight."""
    source, target = write(tmp_path / "in", 5, 20, "wait"), tmp_path / "far"
    told = tmp_path / "stderr"
    with told.open("w") as stderr:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, HERE, cluster.address, source, target, log], stderr=stderr
        )
    try:
        wait_for(lambda: len([*(target / "_embedreg" / "ledger").glob("*.json")]) == 4, driver, told)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    before = log.read_text().splitlines()
    Path(f"{log}.gate").touch()
    declared = Gated.create(log=str(log)).bind("text", "vector")
    report = embed(source, target, declared, engine=engine.engine(actors=2))
    assert (report.rows, report.pieces, report.reused) == (100, 5, 4)
    again = log.read_text().splitlines()[len(before) :]
    assert all(line.startswith("text 4.") for line in again if line.startswith("text"))
    embed(source, tmp_path / "near", declared)
    assert same(target, tmp_path / "near")


def test_sigterm_ends_the_command_as_it_does_without_ray(cluster: Cluster, tmp_path: Path, log: Path) -> None:
    """Exit code 143 and a line that reports that work is kept; nothing of Ray's own about the signal."""
    source, target, told = write(tmp_path / "in", 3, 5, "wait"), tmp_path / "far", tmp_path / "stderr"
    command = [sys.executable, "-m", "embedreg", "embed", source, target, "--import", HERE / "ray_functions.py"]
    command += ["-f", "ray-gated", "--set", f"log={log}", "--engine", "ray", "--address", cluster.address]
    with told.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, stdout=stderr)
    try:
        wait_for(lambda: len([*(target / "_embedreg" / "ledger").glob("*.json")]) == 2, process, told)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
    finally:
        process.kill()
    assert told.read_text().splitlines()[-1].startswith("finished work is kept (")
    assert "SIGTERM" not in told.read_text()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], told: Path) -> None:
    """Wait until a condition holds, as long as a process lives; `told` is what it prints."""
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, told.read_text()
        assert time.monotonic() < deadline, f"it hangs: {told.read_text()}"
        time.sleep(0.05)


def test_a_failed_piece_is_one_clean_error(cluster: Cluster, tmp_path: Path) -> None:
    """A call that fails on a worker is one CallError that names the node, without the secret, here and in the logs."""
    source = write(tmp_path / "in", 1, 3)
    pq.write_table(pa.table({"id": [0], "text": ["leak"]}), source / "0.parquet")
    embedreg.get_registry().bind_env("k", KEY)
    with pytest.raises(CallError, match=r"^on node .+ConnectionError: 401 for Bearer \*\*\*") as caught:
        embed(
            source,
            tmp_path / "far",
            Lengths.create(api_key="$var:k").bind("text", "vector"),
            engine=engine.engine(actors=1),
        )
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    found = [path for path in cluster.folder.rglob("*") if path.is_file() and cluster.key.encode() in path.read_bytes()]
    assert not found


def test_a_variable_of_this_process_alone_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """A key that `set_var` holds cannot reach the actors, of the function as of the filesystem."""
    source = write(tmp_path / "in", 1, 3)
    embedreg.get_registry().set_var("k", "set-here-only")
    with pytest.raises(MissingVariableError, match="in this process only"):
        embed(
            source,
            tmp_path / "far",
            Lengths.create(api_key="$var:k").bind("text", "vector"),
            engine=engine.engine(actors=1),
        )
    assert not (tmp_path / "far").exists()


def test_bad_rows_are_counted_over_all_pieces(cluster: Cluster, tmp_path: Path) -> None:
    """The limit is the job's: pieces that keep it each and break it together end the run."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        pq.write_table(pa.table({"text": ["good", "bad"]}), source / f"{number}.parquet")
    declared = Choosy.create().bind("text", "vector")
    with pytest.raises(BadRowsError, match="3 rows of the job have failed so far, max_bad_rows=2"):
        embed(source, tmp_path / "far", declared, on_error="null", max_bad_rows=2, engine=engine.engine(actors=1))
    report = embed(source, tmp_path / "far", declared, on_error="null", max_bad_rows=3, engine=engine.engine(actors=1))
    assert (report.rows, report.bad_rows) == (6, 3)
    assert [(name, row.row) for name, row in report.bad] == [(f"{number}.parquet", 1) for number in range(3)]
    with pytest.raises(BadRowsError, match=r"on node .+0\.parquet: 1 row\(s\) have no vector"):
        embed(source, tmp_path / "strict", declared, engine=engine.engine(actors=1))


def test_a_node_that_does_not_see_the_destination_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """An actor looks for the job where it is to write: another folder of that name is not a shared disk."""
    source = write(tmp_path / "in", 2, 3)
    declared = embedreg.get("hashing").create(dim=8).bind("text", "vector")
    with Job.open(source, tmp_path / "far", declared) as job:
        (tmp_path / "far" / "_embedreg" / "job.json").unlink()  # as on a machine with a disk of its own
        with pytest.raises(StorageError, match="is not the folder that it is where the run was started"):
            engine.run_job(job, actors=1)


def test_the_command_runs_on_a_cluster(
    cluster: Cluster, tmp_path: Path, log: Path, run_python: Callable[..., str]
) -> None:
    """`embedreg embed --engine ray` with a class of the user's own file; run again, it has nothing left to do."""
    source = write(tmp_path / "in", 2, 20)
    command = ["embed", source, tmp_path / "far", "--import", HERE / "ray_functions.py", "-f", "ray-lengths"]
    command += ["--set", f"log={log}", "--engine", "ray", "--address", cluster.address, "--actors", "2", "--json"]
    run = "import sys; from embedreg.cli import main; sys.exit(main())"
    first = json.loads(run_python(run, *command))
    assert (first["rows"], first["pieces"], first["reused"]) == (40, 2, 0)
    second = json.loads(run_python(run, *command))
    assert (second["rows"], second["reused"]) == (40, 2)
    assert max(Counter(line for line in log.read_text().splitlines() if line.startswith("text")).values()) == 1


ALONE = """
import sys
import embedreg
from embedreg.engines import ray as engine
from embedreg.errors import EmbedregError

declared = embedreg.get("hashing").create(dim=8).bind("text", "vector")
try:
    embedreg.embed(sys.argv[1], sys.argv[2], declared, engine=engine.engine(actors=1, address=sys.argv[3]))
except EmbedregError as exc:
    print(type(exc).__name__, exc)
"""


def test_an_address_where_nothing_is_fails_at_once(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """Ray itself would try for many minutes; here the error names the address, and nothing is left behind."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        said = run_python(ALONE, write(tmp_path / "in", 1, 3), tmp_path / "far", address)
    assert said.startswith(f"ConfigError there is no Ray cluster at '{address}'")
    assert not (tmp_path / "far").exists()


def test_without_ray_the_extra_is_named(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """Where Ray is not installed, the error states what installs it."""
    hide = "import sys\nsys.modules['ray'] = None\n"
    said = run_python(hide + ALONE, write(tmp_path / "in", 1, 3), tmp_path / "far", "auto")
    assert said.startswith("MissingExtraError the library 'ray[data]' is not installed.")
    assert "embedreg[ray]" in said


# -- one budget for all workers ----------------------------------------------------------------------------------------


class Counting(Loopback):
    """Counts requests: when each arrived, and from which process."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[tuple[float, str]] = []


class _Count(BaseHTTPRequestHandler):
    owner: Counting

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base's name)
        """Say nothing on stderr."""

    def do_POST(self) -> None:
        """Count one request."""
        sender = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.owner.arrived.append((time.monotonic(), sender))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


Counting.handler = _Count


@pytest.mark.slow
def test_two_actors_keep_to_one_rate_and_use_it(cluster: Cluster, tmp_path: Path) -> None:
    """Thirty requests in any period of six seconds, from both together, and each uses 0.9 of its half."""
    window_s, most = 6.0, 30
    with Counting() as server:
        source = write(tmp_path / "in", 2, 60)
        function = Hosted.create(host=f"http://{server.host}", rpm=most * 60 / window_s, window_s=window_s)
        report = embed(source, tmp_path / "out", function.bind("text", "vector"), engine=engine.engine(actors=2))
    assert report.usage.requests == len(server.arrived)
    times = sorted(when for when, _ in server.arrived)
    assert max(sum(0 <= other - start < window_s for other in times) for start in times) <= most
    workers = {sender for _, sender in server.arrived if sender != str(os.getpid())}
    assert len(workers) == 2
    for worker in workers:
        own = [when for when, sender in server.arrived if sender == worker]
        full = 3 * most // 2  # the requests of three whole periods, after which the next one may begin
        assert len(own) > full
        assert 3 * window_s / (own[full] - own[0]) >= 0.9


def test_the_usage_of_a_worker_that_dies_is_kept(cluster: Cluster, tmp_path: Path, log: Path) -> None:
    """A worker is killed right after a response: the job's usage is still the service's own count."""
    with Counting() as server:
        source = write(tmp_path / "in", 2, 5, "die")
        function = Hosted.create(host=f"http://{server.host}", log=str(log), concurrency=1)
        report = embed(source, tmp_path / "out", function.bind("text", "vector"), engine=engine.engine(actors=1))
    assert Path(f"{log}.died").exists()
    assert report.usage.requests == report.usage.inputs == len(server.arrived) == 10 + 5 + 1  # the probe
