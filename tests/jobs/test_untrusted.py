"""A job folder that somebody else made: whatever lies in it, nothing outside is touched, and errors are one line."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg.errors import EmbedregError, StorageError
from embedreg.jobs import Job
from tests.jobs.children import Logged
from tests.jobs.conftest import texts
from tests.jobs.outside import snapshot, touched_outside

OPTIONS: dict[str, Any] = {"piece_rows": 10, "batch_rows": 10}
PATIENCE_S = 60
NAMES = {"folder": "out", "file": "out.parquet", "table": "out.lance"}
ROOTS = {"folder": "out", "file": ".out.parquet.embedreg", "table": ".out.lance.embedreg"}


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Fail rather than wait for ever, as for a pipe."""

    def late(*_: object) -> None:
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def declaration() -> Any:
    """What every job here is done with."""
    return Logged().bind("text", "vector")


def make(folder: Path, kind: str, whole: bool) -> None:
    """Make a source, a job on it that is whole or has one piece left, and what must never be touched."""
    source = folder / "in"
    for name, first in (("lang=de/a.parquet", 0), ("b.parquet", 30)):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(texts(first, 20), source / name, row_group_size=10)
    place = folder / "place"
    place.mkdir()
    with Job.open(source, place / NAMES[kind], declaration(), **OPTIONS) as job:
        pieces = job.pending()
        for piece in pieces if whole else pieces[:-1]:
            job.record(job.work.run(piece))
        if whole and kind == "folder":
            job.finish()
    outside = folder / "outside"
    (outside / "data").mkdir(parents=True)
    (outside / "tmp").mkdir()
    (outside / "precious.txt").write_text("precious")
    for name in ("precious.parquet", "data/precious.parquet"):
        pq.write_table(embedreg.embed_table(texts(0, 3), declaration()), outside / name)
    (outside / "0.json").write_text("{}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """Jobs to damage copies of."""
    ready: dict[tuple[str, bool], Path] = {}

    def get(kind: str, whole: bool) -> Path:
        if (kind, whole) not in ready:
            ready[kind, whole] = tmp_path_factory.mktemp(kind) / "base"
            make(ready[kind, whole], kind, whole)
        return ready[kind, whole]

    return get


@pytest.fixture
def job(made: Callable[[str, bool], Path], tmp_path: Path) -> Callable[..., Path]:
    """Copy a job to this test's own folder."""

    def get(kind: str = "folder", whole: bool = False) -> Path:
        return Path(shutil.copytree(made(kind, whole), tmp_path / "job", copy_function=shutil.copy2))

    return get


RUNS: dict[str, Callable[[Path, str], object]] = {
    "resume": lambda at, kind: embedreg.embed(at / "in", at / "place" / NAMES[kind], declaration(), **OPTIONS),
    "fresh": lambda at, kind: embedreg.embed(
        at / "in", at / "place" / NAMES[kind], declaration(), resume=False, **OPTIONS
    ),
    "force": lambda at, kind: embedreg.embed(
        at / "in", at / "place" / NAMES[kind], declaration(), force=True, **OPTIONS
    ),
    "prune": lambda at, kind: embedreg.embed(
        at / "in", at / "place" / NAMES[kind], declaration(), prune=True, **OPTIONS
    ),
    "inspect": lambda at, kind: embedreg.inspect(at / "place" / NAMES[kind]),
    "source": lambda at, kind: embedreg.embed(at / "place" / NAMES[kind], at / "elsewhere"),
}


def tried(at: Path, kind: str, run: str) -> EmbedregError | None:
    """Do something with a folder of somebody else's; return the error, which is one of ours."""
    before, source = snapshot(at / "outside"), snapshot(at / "in")
    problem = None
    with patience(), touched_outside(at / "place", at / "elsewhere") as outside:
        try:
            RUNS[run](at, kind)
        except EmbedregError as exc:
            problem = exc
    assert outside == []
    assert snapshot(at / "outside") == before
    assert snapshot(at / "in") == source
    assert problem is None or "\x1b" not in str(problem)
    return problem


# -- examples ----------------------------------------------------------------------------------------------------------


def change(path: Path, *keys: Any, to: Any) -> None:
    """Change a value in a file of JSON."""
    found = json.loads(path.read_text())
    value = found
    for key in keys[:-1]:
        value = value[key]
    value[keys[-1]] = to
    path.write_text(json.dumps(found))


LEADING_OUT = (
    "../outside/precious.txt",
    "../../outside/precious.parquet",
    "lang=de/../../../outside/precious.parquet",
    "/etc/passwd.parquet",
    "..\\outside\\precious.parquet",
    "C:/precious.parquet",
    "./precious.parquet",
    "lang=de//precious.parquet",
    "",
    ".",
    "..",
    "a\0.parquet",
    "a\x1b[2J.parquet",
    "\ud800.parquet",
    "_embedreg/job.json",
    "_embedreg/x.parquet",
    "x" * 5000 + ".parquet",
    None,
    3,
)


@pytest.mark.parametrize("run", ["resume", "prune", "fresh"])
@pytest.mark.parametrize("name", LEADING_OUT, ids=ascii)
def test_a_plan_removes_nothing_outside(job: Callable[..., Path], name: Any, run: str) -> None:
    """A planned name that is not a piece's makes the whole plan count for nothing, and the job goes on without it."""
    at = job()
    plan = at / "place" / "out" / "_embedreg" / "plan.json"
    outputs = json.loads(plan.read_text())["outputs"]
    change(plan, "outputs", to=[*outputs, name])
    assert tried(at, "folder", run) is None
    assert (at / "place" / "out" / "_embedreg" / "manifest.json").exists()


@pytest.mark.parametrize("name", LEADING_OUT, ids=ascii)
@pytest.mark.parametrize("run", ["resume", "prune", "fresh"])
def test_a_record_removes_nothing_outside(job: Callable[..., Path], name: Any, run: str) -> None:
    """A record with such a name counts for nothing: its piece is done again."""
    at = job()
    record = at / "place" / "out" / "_embedreg" / "ledger" / "b-00000.parquet.json"
    change(record, "piece", "output", to=name)
    (record.parent / "other.parquet.json").write_bytes(record.read_bytes())
    assert tried(at, "folder", run) is None


@pytest.mark.parametrize("units", [[], [[0, 1, 10, 100], [1, 1, 0, 0], [5, 6, 10, 100]]])
@pytest.mark.parametrize("kind", NAMES)
def test_a_plan_with_gaps_loses_no_rows(job: Callable[..., Path], kind: str, units: list[list[int]]) -> None:
    """Inputs without units, or with units that leave some out, are looked at again."""
    at = job(kind)
    plan = at / "place" / ROOTS[kind] / "_embedreg" / "plan.json"
    for path in json.loads(plan.read_text())["inputs"]:
        change(plan, "inputs", path, "units", to=units)
    assert tried(at, kind, "resume") is None
    report = embedreg.embed(at / "in", at / "elsewhere", declaration(), **OPTIONS)
    assert rows_of(at / "place" / NAMES[kind]) == report.rows == 40


def rows_of(path: Path) -> int:
    """Count the rows of an output."""
    if path.suffix == ".lance":
        import lance

        return int(lance.dataset(str(path)).count_rows())
    files = [path] if path.is_file() else [each for each in path.rglob("*.parquet") if "_embedreg" not in each.parts]
    return sum(pq.read_metadata(each).num_rows for each in files)


def test_a_planned_file_that_is_not_ours_stays(job: Callable[..., Path]) -> None:
    """A plan may name what lies in the folder and was never embedreg's: it is not removed."""
    at = job()
    out = at / "place" / "out"
    pq.write_table(texts(0, 3), out / "mine.parquet")
    plan = out / "_embedreg" / "plan.json"
    change(plan, "outputs", to=[*json.loads(plan.read_text())["outputs"], "mine.parquet"])
    for run in ("resume", "fresh"):
        problem = tried(at, "folder", run)
        assert problem is not None
        assert "mine.parquet" in str(problem)
        assert pq.read_table(out / "mine.parquet").num_rows == 3


FOLDERS = ("", "_embedreg", "_embedreg/tmp", "_embedreg/lock", "_embedreg/ledger", "_embedreg/ledger/lang=de")


@pytest.mark.parametrize("run", ["resume", "fresh", "prune", "inspect"])
@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("folder", [*FOLDERS, "lang=de"])
def test_a_link_in_the_place_of_a_folder_leads_nowhere(
    job: Callable[..., Path], folder: str, kind: str, run: str
) -> None:
    """It is refused, or removed as a link; what it leads to is neither emptied nor written into."""
    at = job(kind)
    path = at / "place" / ROOTS[kind] / folder
    if folder == "" and kind == "folder":
        pytest.skip("the folder that the user names may be a link")
    if path.exists():
        shutil.rmtree(path)
    path.symlink_to(at / "outside")
    problem = tried(at, kind, run)
    assert path.is_symlink() or not path.exists() or problem is None


@pytest.mark.parametrize("name", ["job.json", "plan.json", "manifest.json", "bad_rows.jsonl", "lock/x.json"])
@pytest.mark.parametrize("thing", ["link", "dangling", "pipe", "folder"])
@pytest.mark.parametrize("run", ["resume", "fresh", "inspect", "source"])
def test_only_regular_files_are_read(job: Callable[..., Path], name: str, thing: str, run: str) -> None:
    """A link, a pipe or a folder in the place of a file is an error or ignored; it does not block."""
    at = job(whole=True)
    path = at / "place" / "out" / "_embedreg" / name
    replace(path, thing, at)
    tried(at, "folder", run)


def replace(path: Path, thing: str, at: Path) -> None:
    """Put something else in the place of a file or a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if thing == "link":
        path.symlink_to(at / "outside" / "precious.txt")
    elif thing == "to a folder":
        path.symlink_to(at / "outside" / "data")
    elif thing == "dangling":
        path.symlink_to(at / "outside" / "nothing")
    elif thing == "pipe":
        os.mkfifo(path)
    elif thing == "folder":
        path.mkdir()


def test_a_pipe_among_the_inputs_is_an_error(job: Callable[..., Path]) -> None:
    """It is named; it does not block."""
    at = job()
    os.mkfifo(at / "in" / "c.parquet")
    with patience(), pytest.raises(StorageError, match=r"c\.parquet is a pipe, not a regular file"):
        RUNS["resume"](at, "folder")


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 100, b"[]", b"null", b"[" * 100_000, b'{"format": 0}'])
@pytest.mark.parametrize("kind", NAMES)
def test_fresh_does_not_read_what_it_throws_away(job: Callable[..., Path], content: bytes, kind: str) -> None:
    """A `job.json` that cannot be read stops a run that would go on, and none that starts anew."""
    at = job(kind)
    (at / "place" / ROOTS[kind] / "_embedreg" / "job.json").write_bytes(content)
    problem = tried(at, kind, "resume")
    assert problem is not None
    assert "--fresh" in str(problem)
    assert tried(at, kind, "fresh") is None
    assert pq.read_table(at / "place" / "out").num_rows == 40 if kind == "folder" else True


def test_a_fresh_start_without_a_plan_leaves_no_mixture(job: Callable[..., Path]) -> None:
    """A file that neither a record nor the new job names would be read with the others: it is named."""
    at = job()
    out = at / "place" / "out"
    pq.write_table(pq.read_table(out / "b-00000.parquet"), out / "left.parquet")
    (out / "_embedreg" / "plan.json").write_text("torn")
    problem = tried(at, "folder", "fresh")
    assert problem is not None
    assert "left.parquet" in str(problem)


@pytest.mark.parametrize(
    ("path", "leads"), [("out.parquet", "precious.parquet"), ("out.lance", "data"), ("out.arrow", "nothing")]
)
@pytest.mark.parametrize("force", [False, True])
def test_a_link_as_the_destination_is_refused(job: Callable[..., Path], path: str, leads: str, force: bool) -> None:
    """Neither the link is replaced nor what it leads to; the error names that."""
    at = job()
    (at / "place" / path).symlink_to(at / "outside" / leads)
    with touched_outside(at / "place") as outside, pytest.raises(StorageError, match="is a link") as caught:
        embedreg.embed(at / "in", at / "place" / path, declaration(), force=force)
    assert str(at / "outside" / leads) in str(caught.value)
    assert outside == []
    assert (at / "place" / path).is_symlink()


def test_the_folder_that_is_named_may_be_a_link(dataset: Path, tmp_path: Path) -> None:
    """What a user names is the user's choice: a dataset may lie on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert embedreg.embed(dataset, tmp_path / "out", declaration()).rows == 600
    assert embedreg.embed(dataset, tmp_path / "out", declaration()).nothing_to_do


def test_bad_rows_leave_nothing_beside_a_file(tmp_path: Path) -> None:
    """Their list grows where the job grows; a file of its name that is somebody's stays as it is."""
    table = texts(0, 5).set_column(1, "text", [["bad", "b", "c", "d", "e"]])
    pq.write_table(table, tmp_path / "in.parquet")
    for name in ("out.parquet", "out.arrow", "out.lance"):
        report = embedreg.embed(tmp_path / "in.parquet", tmp_path / name, declaration(), on_error="null")
        assert report.bad_rows_path == str(tmp_path / f"{name}.bad_rows.jsonl")
        assert not (tmp_path / "_embedreg").exists()
    (tmp_path / "new.parquet.bad_rows.jsonl").write_text("mine\n")
    with pytest.raises(StorageError, match="not a list of bad rows"):
        embedreg.embed(tmp_path / "in.parquet", tmp_path / "new.parquet", declaration(), on_error="null")
    pq.write_table(texts(0, 5), tmp_path / "in.parquet")
    embedreg.embed(tmp_path / "in.parquet", tmp_path / "new.parquet", declaration(), on_error="null", resume=False)
    assert (tmp_path / "new.parquet.bad_rows.jsonl").read_text() == "mine\n"


# -- anything ----------------------------------------------------------------------------------------------------------

FILES = ("job.json", "plan.json", "manifest.json", "done.json", "bad_rows.jsonl", "lock/0.json")
RECORDS = ("ledger/b-00000.parquet.json", "ledger/lang=de/a-00000.parquet.json", "ledger/new.parquet.json")
ODD = st.one_of(
    st.sampled_from([*LEADING_OUT, "outside", "../outside", "a.parquet", True, -1, 2**70, 1.5, [], {}, [[[[]]]]]),
    st.text(max_size=5),
    st.integers(-5, 2**64),
    st.recursive(st.none() | st.booleans() | st.floats(), st.lists, max_leaves=4),
)
RAW = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"", b"{}", b"null", b"[" * 5000, b'{"a":' * 2000, b"\xff\xfe{}", b'{"format": 1}', b"\0" * 64]),
)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, Any, Any]]:
    """Draw what is done to a job's folder."""
    made = []
    for _ in range(draw(st.integers(1, 3))):
        what = draw(st.sampled_from(["value", "value", "value", "key", "raw", "cut", "twice", "thing", "place"]))
        name = draw(st.sampled_from([*FILES, *RECORDS]))
        if what == "value":
            made.append((what, name, (draw(st.integers(0, 200)), draw(ODD))))
        elif what in ("key", "cut", "twice"):
            made.append((what, name, draw(st.integers(0, 2000))))
        elif what == "raw":
            made.append((what, name, draw(RAW)))
        elif what == "thing":
            made.append((what, name, draw(st.sampled_from(["link", "dangling", "pipe", "folder", "to a folder"]))))
        else:
            place = draw(
                st.sampled_from([*FOLDERS[1:], "../lang=de", "../b-00000.parquet", "../data", "../table.lance"])
            )
            made.append(("thing", place.removeprefix("_embedreg/") if place != "_embedreg" else "", draw(THINGS)))
    return made


THINGS = st.sampled_from(["link", "to a folder", "dangling", "pipe", "folder"])


def damage(root: Path, at: Path, what: str, name: str, how: Any) -> None:
    """Do one of these things to a folder."""
    path = root / "_embedreg" / name
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, FileExistsError):
        path = path.parent.resolve() / path.name if ".." in path.parts else path
        if what == "thing":
            replace(path, how, at)
            return
        if path.is_symlink() or (path.exists() and not path.is_file()):
            return
        if what == "raw":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(how)
        if not path.exists():
            return
        if what == "cut":
            path.write_bytes(path.read_bytes()[: how % (path.stat().st_size + 1)])
        elif what == "twice":
            path.write_text(path.read_text().replace("{", '{"format": 2, "piece": 1,', 1))
        elif what in ("value", "key"):
            try:
                found = json.loads(path.read_text())
            except ValueError:
                return
            number, value = how if what == "value" else (how, None)
            spots = list(leaves(found)) if isinstance(found, dict | list) else []
            if spots:
                holder, key = spots[number % len(spots)]
                if what == "value":
                    holder[key] = copy.deepcopy(value)
                else:
                    del holder[key]
            path.write_text(json.dumps(found))


def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value in JSON: its holder and its key."""
    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(each, dict | list):
            yield from leaves(each)


@pytest.mark.parametrize("kind", NAMES)
@settings(
    max_examples=int(os.environ.get("EMBEDREG_EXAMPLES", "25")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(done=damages(), whole=st.booleans(), runs=st.lists(st.sampled_from(sorted(RUNS)), min_size=1, max_size=3))
def test_whatever_lies_in_a_job_nothing_outside_is_touched(
    made: Callable[[str, bool], Path],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    done: list[tuple[str, Any, Any]],
    whole: bool,
    runs: list[str],
) -> None:
    """Any names, types, links, pipes and lengths: each run is a success or one of our errors, and stays inside."""
    at = tmp_path_factory.mktemp("any") / "job"
    shutil.copytree(made(kind, whole), at, copy_function=shutil.copy2)
    for what, name, how in done:
        damage(at / "place" / ROOTS[kind], at, what, name, how)
    for run in runs:
        tried(at, kind, run)
    shutil.rmtree(at.parent)
