"""Trials of a column's life on a LanceDB table that others use, and of runs that are killed. Each prints its counts.

`python -m benchmarks.trial_columns live [--seconds 60]`: two processes add rows, two merge changed texts, one deletes,
one compacts, two search without a pause, while one changes the function of the vector column again and again. At the
end no row may be lost, duplicated or have another text than its writer gave it, and every vector must be that of its
text.

`python -m benchmarks.trial_columns kills [--points 30]`: a migration is killed (SIGKILL) at points spread over all its
writes, renames, links and commits. The same call must then complete it, and a rollback must restore the old vectors bit
for bit, also after a compaction that removes every unused file.

`python -m benchmarks.trial_columns models [--cache FILE] [--rounds 6]`: 20,000 docstrings go from MiniLM to `hashing`,
and to MiniLM with prompts, and back, killed at random moments, while a reader queries all the time. See `trial_models`.

Over 400 lines: the trials share their processes, their rows and what is counted of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import embedreg
from embedreg import columns
from embedreg.errors import SchemaError

D, ROWS = 32, 4000
USUAL_S = 20.0  # a trial of so long or longer has its roles pause as written; in a shorter one they hurry
FIXED = 200  # rows that no process changes: what the searchers look for
NAME = "t"


def functions() -> list[Any]:
    """Return two functions of equal width, whose vectors differ everywhere."""
    return [embedreg.get("hashing").create(dim=D, seed=seed) for seed in (1, 2)]


def made(folder: Path, *, index: bool = False, vectors: bool = True) -> Any:
    """Make the table, of four fragments, with the first function's vectors and maybe an index."""
    import lancedb

    table = None
    for start in range(0, ROWS, ROWS // 4):
        some = range(start, start + ROWS // 4)
        data = pa.table({"id": list(some), "text": [f"row {i} of the first kind" for i in some]})
        table = lancedb.connect(folder).create_table(NAME, data) if table is None else table
        if start:
            table.add(data)
    if vectors:
        columns.add(table, functions()[0].bind("text", "vector"))
    if index:
        table.to_lance().create_index("vector", "IVF_FLAT", metric="cosine", num_partitions=2)
    return table


# -- live ------------------------------------------------------------------------------------------------------------


class Log:
    """What a process has done, for the check at the end.

    Attributes:
        pace: the share of its usual pauses that a role makes, less than 1 in a short trial.
    """

    def __init__(self, folder: Path, name: str, pace: float) -> None:
        self._file, self.pace = (folder / f"{name}.jsonl").open("w"), pace

    def pause(self, seconds: float) -> None:
        """Wait for a moment."""
        time.sleep(seconds * self.pace)

    def __call__(self, **facts: Any) -> None:
        """Write one fact."""
        self._file.write(json.dumps(facts) + "\n")
        self._file.flush()


def opened(folder: Path, interval: float | None = 0.0) -> Any:
    """Open the table; with an interval of 0 each read looks for the newest version."""
    import lancedb

    wanted = None if interval is None else timedelta(seconds=interval)
    return lancedb.connect(folder / "db", read_consistency_interval=wanted).open_table(NAME)


def adder(folder: Path, number: int, until: float, log: Log) -> None:
    """Add rows, one process by embedreg, the other as LanceDB does; a handle is kept for a while."""
    from embedreg.engines.lancedb import add

    table, start = opened(folder), 10_000 * (number + 1)
    for at in itertools.count(start, 5):
        if time.time() > until:
            return
        if at % 100 == 0:
            table = opened(folder, None if at % 200 else 0.0)
        data = [{"id": i, "text": f"added {i}"} for i in range(at, at + 5)]
        for _ in range(20):
            try:
                add(table, data) if number else table.add(data)
            except (RuntimeError, OSError) as exc:  # an append in flight at the switch is refused by lance, whole
                log(add_again=type(exc).__name__)
            else:
                log(add=[row["id"] for row in data])
                break
        log.pause(0.2)


def merger(folder: Path, number: int, until: float, log: Log) -> None:
    """Change texts of rows of its own."""
    table, own = opened(folder), [i for i in range(FIXED, ROWS // 2) if i % 2 == number]
    for turn in itertools.count():
        if time.time() > until:
            return
        if turn % 20 == 0:
            table = opened(folder, None if turn % 40 else 0.0)
        data = [{"id": i, "text": f"merged {i} in {turn}"} for i in random.sample(own, 5)]
        try:
            table.merge_insert("id").when_matched_update_all().execute(data)
        except Exception as exc:  # noqa: BLE001  # lance's own conflicts
            log(error=type(exc).__name__)
            for row in data:
                log(unsure=row)
            continue
        for row in data:
            log(text=row)
        log.pause(0.3)


def deleter(folder: Path, number: int, until: float, log: Log) -> None:
    """Delete rows of its own."""
    table = opened(folder)
    for at in range(ROWS // 2, ROWS):
        if time.time() > until:
            return
        table.delete(f"id = {at}")
        log(delete=at)
        log.pause(0.5)


def compactor(folder: Path, number: int, until: float, log: Log) -> None:
    """Compact the table; lance gives up on conflicts, which is not an error of embedreg."""
    while time.time() < until:
        log.pause(4)
        try:
            opened(folder).optimize()
            log(compacted=1)
        except Exception as exc:  # noqa: BLE001  # lance's own conflicts
            log(compaction_failed=type(exc).__name__)


def searcher(folder: Path, number: int, until: float, log: Log) -> None:
    """Search for rows that no process changes; the nearest must be the row itself."""
    table = opened(folder, 0.0 if number else None)
    for turn in itertools.count():
        if time.time() > until:
            return
        if not number and turn % 20 == 0:
            table.checkout_latest()
        wanted = random.randrange(FIXED)
        begun = time.time()
        try:
            found = table.search(f"row {wanted} of the first kind").limit(1).to_list()
        except Exception as exc:  # noqa: BLE001  # counted
            log(search_error=f"{type(exc).__name__}: {str(exc)[:200]}")
            continue
        good = bool(found and found[0]["id"] == wanted and found[0]["_distance"] < 1e-5)
        log(right=good, **({} if good else {"wrong": [begun, time.time(), wanted, found and found[0]["id"]]}))
        time.sleep(0.01)


def migrator(folder: Path, number: int, until: float, log: Log) -> None:
    """Change the function, settle, and finish or roll back, again and again."""
    path, now = folder / "db" / f"{NAME}.lance", 0
    for turn in itertools.count():
        if time.time() > until - 3 * log.pace:
            return
        log.pause(2)
        begun = time.perf_counter()
        migration = columns.migrate(path, "vector", functions()[1 - now], switch=False)
        staged = time.perf_counter()
        migration.switch()
        switched = time.perf_counter()
        report = migration.settle()
        log(staged_s=staged - begun, switch_s=switched - staged, settled=report.written, state=migration.state)
        log(window=[time.time() - (time.perf_counter() - staged), time.time() - (time.perf_counter() - switched)])
        if turn % 2 and migration.state in ("switched", "settled"):
            back = time.time()
            migration.rollback(yes=True)
            log(rolled_back=1, window=[back, time.time()])
        elif migration.state == "settled":
            migration.finish()
            now = 1 - now
        else:
            while migration.state != "settled":
                migration.settle()
            migration.finish()
            now = 1 - now


ROLES: list[tuple[Callable[[Path, int, float, Log], None], int]] = [
    (adder, 0),
    (adder, 1),
    (merger, 0),
    (merger, 1),
    (deleter, 0),
    (compactor, 0),
    (searcher, 0),
    (searcher, 1),
    (migrator, 0),
]


def play(role: int, folder: Path, seconds: float, ready: Any) -> None:
    """Play a role in this process, once all processes have opened the table."""
    warnings.simplefilter("ignore")
    opened(folder).search("row 1 of the first kind").limit(1).to_list()
    ready.wait()
    until = time.time() + seconds
    call, number = ROLES[role]
    log = Log(folder, f"{call.__name__}{number}", min(1.0, seconds / USUAL_S))
    try:
        call(folder, number, until, log)
    except BaseException as exc:
        log(died=f"{type(exc).__name__}: {exc}")
        traceback.print_exc()
        raise


def live(seconds: float) -> dict[str, Any]:
    """Run the trial; return its counts."""
    import_only()
    folder = Path(tempfile.mkdtemp(prefix="embedreg-live-"))
    assert forked(lambda: bool(made(folder / "db")))[0] == 0
    context = multiprocessing.get_context("fork")  # one import for all; this process has not used lance yet
    ready = context.Barrier(len(ROLES))
    processes = [context.Process(target=play, args=(role, folder, seconds, ready)) for role in range(len(ROLES))]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    result = checked(folder)
    result["exit codes"] = [each.exitcode for each in processes]
    shutil.rmtree(folder)
    return result


def checked(folder: Path) -> dict[str, Any]:
    """Compare the table with what its writers did, after a last `settle` and `refresh`."""
    facts: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            for key, value in json.loads(line).items():
                facts.setdefault(key, []).append(value)
    table = opened(folder)
    for migration in columns.migrations(table):
        while migration.state != "settled":
            migration.settle()
        migration.finish()
    before = columns.status(table)[0]
    columns.refresh(table, unstamped="recompute")
    after = columns.status(table)[0]
    found = table.to_lance().to_table(columns=["id", "text", "vector"]).to_pydict()
    expected = {i: f"row {i} of the first kind" for i in range(ROWS)}
    expected |= {i: f"added {i}" for ids in facts.get("add", []) for i in ids}
    allowed = {i: {text} for i, text in expected.items()}
    for row in facts.get("text", []):
        allowed[row["id"]] = {row["text"]}
    for row in facts.get("unsure", []):
        allowed[row["id"]].add(row["text"])
    for i in facts.get("delete", []):
        allowed.pop(i)
    texts = dict(zip(found["id"], found["text"], strict=True))
    (declared,) = embedreg.functions_in(table).values()
    want = np.asarray(declared.function.compute_embeddings(found["text"], "source"))
    have = np.array([vector if vector is not None else [0.0] * D for vector in found["vector"]])
    return {
        "rows": len(found["id"]),
        "lost": len(allowed.keys() - texts.keys()),
        "ghosts": len(texts.keys() - allowed.keys()),
        "double": len(found["id"]) - len(texts),
        "other text": sum(texts[i] not in allowed[i] for i in texts.keys() & allowed.keys()),
        "wrong vectors": int((np.abs(want - have).max(axis=1) > 1e-6).sum()),
        "not fresh before the last refresh": before.todo,
        "not fresh": after.todo,
        "searches": len(facts.get("right", [])),
        "wrong searches": facts.get("right", []).count(False),
        "wrong outside of switches": sum(
            not any(begun < stop and start < ended for start, stop in facts.get("window", []))
            for begun, ended, *_ in facts.get("wrong", [])
        ),
        "search errors": dict(Counter(facts.get("search_error", []))),
        "switches": len(facts.get("switch_s", [])),
        "rolled back": len(facts.get("rolled_back", [])),
        "longest switch, s": round(max(facts.get("switch_s", [0])), 3),
        "median switch, s": round(float(np.median(facts.get("switch_s", [0]))), 3),
        "rows settled": sum(facts.get("settled", [])),
        "appends made again": len(facts.get("add_again", [])),
        "mergers' errors": dict(Counter(facts.get("error", []))),
        "compactions": [len(facts.get(each, [])) for each in ("compacted", "compaction_failed")],
        "died": facts.get("died", []),
    }


# -- kills -----------------------------------------------------------------------------------------------------------


class Points:
    """Counts the points at which something reaches the disk, and kills the process at one of them."""

    def __init__(self, at: int | None, later_s: float = 0.0) -> None:
        self.at, self.count, self._later_s = at, 0, later_s
        import lance

        for owner, names in (
            (os, ("fsync", "replace", "link", "unlink", "rmdir")),
            (lance.LanceDataset, ("commit", "create_branch", "update_schema_metadata")),
        ):
            for name in names:
                setattr(owner, name, self._counted(getattr(owner, name), twice=owner is not os))

    def _counted(self, call: Any, twice: bool) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.reached()
            result = call(*args, **kwargs)
            if twice:  # between a commit and what follows it
                self.reached()
            return result

        return counted

    def reached(self) -> None:
        """Count a point."""
        self.count += 1
        if self.count == self.at and self._later_s:  # somewhere between two points
            threading.Timer(self._later_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(call: Callable[[], Any]) -> tuple[int, Any]:
    """Run a call in a child of this process, which has used neither lance nor a model; return its status and result."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            os.write(write, json.dumps(call()).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(data) if data else None


def operation(folder: Path, kind: str, at: int | None) -> int:
    """Run a whole operation, and die at a point; return how many there are."""
    points = Points(at)
    path = folder / f"{NAME}.lance"
    if kind == "add":
        columns.add(path, functions()[0].bind("text", "vector"))
    elif kind == "migrate":
        columns.migrate(path, "vector", functions()[1])
    elif kind == "rollback":
        columns.migrations(path)[0].rollback()
    elif kind == "finish":
        columns.migrations(path)[0].finish()
    return points.count


def vectors(folder: Path) -> Any:
    """Return the vectors by id, as bytes."""
    import lance

    return lance.dataset(str(folder / f"{NAME}.lance")).to_table(columns=["id", "vector"]).sort_by("id")


def right(folder: Path, number: int) -> bool:
    """Return whether all vectors are those of a function."""
    import lance

    found = lance.dataset(str(folder / f"{NAME}.lance")).to_table(columns=["text", "vector"]).to_pydict()
    want = functions()[number].compute_embeddings(found["text"], "source")
    return bool(np.allclose(np.array(found["vector"]), np.asarray(want), atol=1e-6))


def after_kill(folder: Path, kind: str, before: Path, hard: bool) -> dict[str, Any]:
    """Look at what a kill left, complete the operation, roll back, and compare."""
    import lance
    import lancedb

    path = folder / f"{NAME}.lance"
    if kind == "add":
        there = "vector" in lance.dataset(str(path)).schema.names
        true = len(columns.status(path)) == there
        with contextlib.suppress(SchemaError):  # it was killed after its end
            columns.add(path, functions()[0].bind("text", "vector"))
        good = right(folder, 0) and columns.status(path)[0].todo == 0
        columns.migrate(path, "vector", functions()[1], switch=False).abandon()
        return {"state": "added" if there else "not added", "true": true, "good": good, "left": left_in(folder)}
    (status,) = columns.status(path)
    state = status.migration.state if status.migration is not None else "none"
    now = 1 if right(folder, 1) else 0 if right(folder, 0) else None
    # the status describes what the table holds
    true = now == (1 if state in ("switched", "settled", "finished") or (state == "none" and kind == "finish") else 0)
    if kind == "finish":
        for each in columns.migrations(path):
            each.finish()
        good = right(folder, 1)
    else:
        if kind == "migrate":
            columns.migrate(path, "vector", functions()[1])
            if hard:
                lancedb.connect(folder).open_table(NAME).optimize(
                    cleanup_older_than=timedelta(0), delete_unverified=True
                )
        for each in columns.migrations(path):
            if each.state in ("switched", "settled"):
                each.rollback()
            else:
                each.finish() if each.state == "rolled back" else each.abandon()
        good = vectors(folder).equals(vectors(before))
    if not columns.migrations(path):  # the next run removes what a run left that was killed as it ended
        number = int(right(folder, 1))
        columns.migrate(path, "vector", functions()[1 - number], switch=False).abandon()
    indexed = lance.dataset(str(path)).stats.index_stats("vector_idx")["num_unindexed_rows"] == 0
    return {"state": state, "true": true, "good": good and indexed, "left": left_in(folder)}


def left_in(folder: Path) -> list[str]:
    """Return what is left of embedreg's: branches, tags, folders."""
    import lance

    path = folder / f"{NAME}.lance"
    dataset = lance.dataset(str(path))
    known = {"_transactions", "_deletions", "_indices", "data", "_versions", path.name}
    left = [*dataset.branches.list(), *dataset.tags.list()]
    return left + [each.name for each in (*folder.iterdir(), *path.iterdir()) if each.name not in known]


def import_only() -> None:
    """Import what the children need, and use none of it: a fork copies no threads of lance's runtime."""
    import lance  # noqa: F401
    import lancedb  # noqa: F401

    import embedreg.engines.lancedb.columns.migrating  # noqa: F401

    warnings.simplefilter("ignore")


def kills(points: int, kinds: tuple[str, ...] = ("add", "migrate", "rollback", "finish")) -> dict[str, Any]:
    """Kill each operation at points spread over it; return the counts."""
    import_only()
    base = Path(tempfile.mkdtemp(prefix="embedreg-kills-"))
    result: dict[str, Any] = {"points": 0, "states": Counter(), "untrue": 0, "wrong": 0, "left": 0, "failed": 0}
    assert forked(lambda: bool(made(base / "plain", vectors=False)))[0] == 0
    assert forked(lambda: bool(made(base / "old", index=True)))[0] == 0
    shutil.copytree(base / "old", base / "new")
    assert forked(lambda: operation(base / "new", "migrate", None))[0] == 0
    folder = base / "work"
    for kind in kinds:
        start = base / {"add": "plain", "migrate": "old"}.get(kind, "new")
        shutil.copytree(start, base / "whole")
        status, count = forked(lambda kind=kind: operation(base / "whole", kind, None))  # type: ignore[misc]
        shutil.rmtree(base / "whole")
        assert status == 0
        share = max(2, points if kind == "migrate" else points // 3)
        for turn, at in enumerate(np.unique(np.linspace(1, count, share).astype(int)).tolist()):
            shutil.copytree(start, folder)
            died, _ = forked(lambda kind=kind, at=at: operation(folder, kind, at))  # type: ignore[misc]
            assert died == -signal.SIGKILL, f"{kind} at {at} of {count}: {died}"
            ended, found = forked(lambda kind=kind, turn=turn: after_kill(folder, kind, base / "old", turn % 2 == 1))  # type: ignore[misc]
            result["points"] += 1
            if ended or found is None:
                result["failed"] += 1
                print(f"{kind} killed at {at} of {count}: the next run failed", file=sys.stderr)
            else:
                result["states"][f"{kind}: {found['state']}"] += 1
                result["untrue"] += not found["true"]
                result["wrong"] += not found["good"]
                result["left"] += bool(found["left"])
                if not (found["true"] and found["good"]) or found["left"]:
                    print(f"{kind} killed at {at} of {count}: {found}", file=sys.stderr)
            shutil.rmtree(folder)
        result[f"points of {kind}"] = count
    shutil.rmtree(base)
    return {**result, "states": dict(result["states"])}


def main() -> None:
    """Run a trial and print its counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=["live", "kills", "models"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--cache", type=Path, default=None, help="keeps the vectors of MiniLM for the next run")
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    if given.trial == "models":
        from benchmarks.trial_models import models

        with tempfile.TemporaryDirectory() as own:
            found = models(given.cache or Path(own, "cache"), given.rounds)
    else:
        found = live(given.seconds) if given.trial == "live" else kills(given.points)
    for name, value in found.items():
        print(f"{name:>34}: {value}")


if __name__ == "__main__":
    main()
