"""A reader that queries all the time while a table's model is changed and the change is killed: `trial_columns models`.

A table of 20,000 docstrings with the vectors of all-MiniLM-L6-v2 goes to another function and back, once to `hashing`
and once to the same model with prompts. The process that changes it is killed (SIGKILL) at random points, and the same
call continues. Meanwhile a reader with a handle of its own searches for texts. What is nearest to each is known for
either function from a comparison with all rows, and the moment of each switch from the file of the table's version. So
each answer is right or wrong, and was begun before, in or after a switch.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import embedreg
from benchmarks.common import minilm_folder
from embedreg import columns

ROWS, QUESTIONS, PIECE = 20_000, 200, 5_000
NAME = "docs"
KILLS = 4  # of one change, before it may end
NEAR = 1e-3  # of a squared distance: what two computations of one vector may differ by


def function(which: str) -> Any:
    """Return MiniLM ("old"), or one that replaces it: "hashing", or "prompts" for MiniLM with prompts."""
    if which == "hashing":
        return embedreg.get("hashing").create(dim=384)
    prompts = {"query_prompt": "query: ", "document_prompt": "passage: "} if which == "prompts" else {}
    return embedreg.get("sentence-transformers").create(name=minilm_folder(), device="cpu", **prompts)


def prepared() -> None:
    """Grant the folder of the weights, which the table's declaration names."""
    warnings.simplefilter("ignore")
    embedreg.trust(paths=[minilm_folder()])


def docstrings(rows: int) -> list[str]:
    """Return distinct docstrings of the standard library; where it has fewer, some again with a number."""
    from embedreg.cli.corpus import collect

    found = list(dict.fromkeys(doc.text for doc in collect(rows)))
    return found + [f"{found[row % len(found)]} ({row})" for row in range(len(found), rows)]


def filled(folder: Path, texts: list[str], cache: Path) -> Any:
    """Make the table, of some fragments, with MiniLM's vectors."""
    import lancedb

    table = None
    for start in range(0, len(texts), PIECE):
        some = texts[start : start + PIECE]
        data = pa.table({"id": range(start, start + len(some)), "text": some})
        table = lancedb.connect(folder).create_table(NAME, data) if table is None else table
        if start:
            table.add(data)
    columns.add(table, function("old").bind("text", "vector"), cache=cache)
    return table


def nearest(which: str, texts: list[str], asked: list[str], cache: Path) -> list[tuple[float, list[int]]]:
    """Return for each question the squared distance of the nearest row, and the rows that are as near."""
    fn = function(which)
    with embedreg.vector_cache(cache):
        rows = embedreg.embed_column(fn, texts).matrix.astype(np.float64)
    found = []
    for question in asked:
        vector = np.asarray(embedreg.embed_query(fn, question), np.float64).ravel()
        distances = ((rows - vector) ** 2).sum(axis=1)
        best = float(distances.min())
        found.append((best, np.flatnonzero(distances < best + NEAR).tolist()))
    return found


def reader(folder: Path, asked: list[str], stop: Any, ready: Any, log: Path) -> None:
    """Search for the nearest row of each question in turn, with one handle that looks for the newest version."""
    import lancedb

    prepared()
    table = lancedb.connect(folder, read_consistency_interval=timedelta(0)).open_table(NAME)
    with log.open("w") as file:
        turn = 0
        while not stop.is_set():
            question = turn % len(asked)
            begun = time.time()
            try:
                (row,) = table.search(asked[question]).limit(1).select(["id", "_distance"]).to_list()
                said = [row["id"], row["_distance"]]
            except Exception as exc:  # noqa: BLE001  # counted
                said = [f"{type(exc).__name__}: {str(exc)[:200]}", 0.0]
            file.write(json.dumps([question, begun, time.time(), *said]) + "\n")
            file.flush()
            turn += 1
            ready.set()


def change(path: Path, which: str, way: str, cache: Path, at: int | None, later_s: float, reached: Any) -> None:
    """Migrate, or roll back; die at a point, or a moment after it."""
    from benchmarks.trial_columns import Points

    prepared()
    points = Points(at, later_s)
    if way == "there":
        columns.migrate(path, "vector", function(which), cache=cache)
    else:
        for migration in columns.migrations(path):
            migration.rollback()
    reached.value = points.count


def killed(context: Any, *what: Any, at: int | None = None, later_s: float = 0.0) -> int | None:
    """Make the change in a process; return how many points it reached, or None if it was killed."""
    reached = context.Value("i", 0)
    process = context.Process(target=change, args=(*what, at, later_s, reached))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return None if process.exitcode else int(reached.value)


def declared(path: Path, version: int | None = None) -> str:
    """Return the fingerprint of the function that a version declares for the vectors."""
    import lance

    entries = json.loads((lance.dataset(str(path), version=version).schema.metadata or {})[b"embedding_functions"])
    return str(entries[0]["model"]["embedreg"]["fingerprint"])


def switches(path: Path) -> list[tuple[float, str]]:
    """Return when the declaration changed, and to which function: the moment at which its version got its name."""
    import lance

    found: list[tuple[float, str]] = []
    dataset = lance.dataset(str(path))
    files = {each.stat().st_ctime: each for each in (path / "_versions").glob("*.manifest")}
    moments = sorted(files)
    versions = sorted(each["version"] for each in dataset.versions())
    assert len(moments) == len(versions)
    last = None
    for moment, version in zip(moments, versions, strict=True):
        if "vector" not in lance.dataset(str(path), version=version).schema.names:
            continue
        now = declared(path, version)
        if last is not None and now != last:
            found.append((moment, now))
        last = now
    return found


def stored(path: Path) -> Any:
    """Return the vectors in the order of the ids: (n, d)."""
    import lance

    table = lance.dataset(str(path)).to_table(columns=["id", "vector"]).sort_by("id")
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def true(path: Path, vectors: dict[str, Any]) -> bool:
    """Return whether all vectors are those of the function that the table declares, and `status` agrees."""
    (status,) = columns.status(path)
    matrix = stored(path)
    moved = status.migration is not None and status.migration.state in ("switched", "settled")
    # the old ones are restored bit for bit by a rollback
    good = np.allclose(matrix, vectors["new"], atol=1e-5) if moved else np.array_equal(matrix, vectors["old"])
    return bool(good) and status.todo == 0 and status.problem is None


def judged(
    log: Path, moments: list[tuple[float, str]], expected: dict[str, list[tuple[float, list[int]]]], first: str
) -> Counter[str]:
    """Count the reader's answers: right, wrong, and those of questions that a switch fell into."""
    counts: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        question, begun, ended, row, distance = json.loads(line)
        counts["queries"] += 1
        within = [name for moment, name in moments if begun < moment < ended]
        before = [name for moment, name in moments if moment <= begun]
        now = before[-1] if before else first
        counts[f"queries of {'the old' if now == first else 'the new'} model"] += not within
        good = {
            name: isinstance(row, int) and row in rows and abs(distance - best) < NEAR
            for name, (best, rows) in ((name, expected[name][question]) for name in (now, *within))
        }
        counts["errors"] += not isinstance(row, int)
        if within:
            counts["in a switch"] += 1
            counts["in a switch, wrong"] += not any(good.values())
        else:
            counts["wrong before or after a switch"] += not good[now]
    return counts


def models(cache: Path, rounds: int, rows: int = ROWS, seed: int = 0) -> dict[str, Any]:
    """Run the trial for both functions; return the counts."""
    context, chance, result = multiprocessing.get_context("spawn"), random.Random(seed), {}
    prepared()
    texts = docstrings(rows)
    asked = chance.sample(texts, QUESTIONS)
    cpu = time.process_time()
    answers = {which: nearest(which, texts, asked, cache) for which in ("old", "hashing", "prompts")}
    result["CPU s of the vectors"] = round(time.process_time() - cpu, 1)
    base = Path(tempfile.mkdtemp(prefix="embedreg-models-"))
    filled(base / "start", texts, cache)
    for which in ("hashing", "prompts"):
        folder = base / which
        shutil.copytree(base / "start", folder)
        path, stop, ready, log = folder / f"{NAME}.lance", context.Event(), context.Event(), base / f"{which}.jsonl"
        first = declared(path)
        with embedreg.vector_cache(cache):
            vectors = {"old": stored(path), "new": embedreg.embed_column(function(which), texts).matrix}
        asking = context.Process(target=reader, args=(folder, asked, stop, ready, log))
        asking.start()
        ready.wait()
        counts: Counter[str] = Counter()
        states: Counter[str] = Counter()
        points = {"there": 0, "back": 0}
        for turn in range(rounds):
            for way in points:
                what = (path, which, way, cache)
                for _ in range(KILLS if turn else 0):  # the first round shows how many points there are
                    at, later_s = chance.randint(1, points[way]), chance.choice((0.0, chance.uniform(0.01, 0.5)))
                    if killed(context, *what, at=at, later_s=later_s) is not None:
                        break
                    counts["kills"] += 1
                    (status,) = columns.status(path)
                    states[f"{way}: {status.migration.state if status.migration else 'none'}"] += 1
                    counts["untrue after a kill"] += not true(path, vectors)
                points[way] = max(points[way], killed(context, *what) or 0)
                counts["untrue at the end"] += not true(path, vectors)
        stop.set()
        asking.join()
        moments = switches(path)
        second = next(name for _, name in moments if name != first)
        counts += judged(log, moments, {first: answers["old"], second: answers[which]}, first)
        names = ("wrong before or after a switch", "errors", "in a switch, wrong", "untrue after a kill")
        counts = Counter({**dict.fromkeys((*names, "untrue at the end", "kills"), 0), **counts})
        counts["switches"] = len(moments)
        result |= {f"to {which}: {name}": count for name, count in sorted(counts.items())}
        result[f"to {which}: states after a kill"] = dict(states)
    shutil.rmtree(base)
    return result
