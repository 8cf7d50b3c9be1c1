"""Jobs through batch APIs: each input is submitted once, whatever is interrupted, and comes back in its place."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.core.modality import PROBE_TEXT
from embedreg.errors import BadRowsError, CallError, ConfigError, MissingVariableError, StorageError
from embedreg.jobs import JobReport, batches, embed
from embedreg.jobs.unfinished import unfinished
from embedreg.runtime.remote import batch_api
from tests.batches import VENDORS, BatchServer
from tests.secret_holders import everything_about
from tests.servers import Reply, alone
from tests.vendors import KEY, WIDTH

ROWS = 30
TEXTS = [f"note {number} of größe {'x' * number}" for number in range(ROWS)]
FAST = batches.engine(poll_s=0.01, lag_s=0.0)


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, BatchServer]]:
    """A server for each vendor."""
    with alone(), ExitStack() as stack:
        yield {vendor: stack.enter_context(BatchServer(vendor)) for vendor in VENDORS}


@pytest.fixture
def server(running: dict[str, BatchServer], request: pytest.FixtureRequest) -> BatchServer:
    """OpenAI's server, or that of the parameter, with nothing in it."""
    found = running[getattr(request, "param", "openai")]
    found.reset()
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Texts: nulls, blanks and duplicates among them."""
    path = tmp_path / "notes.parquet"
    pq.write_table(pa.table({"id": range(ROWS + 4), "text": [*TEXTS, None, " ", TEXTS[0], TEXTS[3]]}), path)
    return path


def run(server: BatchServer, source: Path, to: Path, **options: Any) -> JobReport:
    """Run a job through the server's batch API, in pieces of twelve rows."""
    function = server.function(**options.pop("config", {}))
    return embed(source, to, function.bind("text", "vector"), **{"piece_rows": 12, "engine": FAST, **options})


def vectors(path: Path) -> list[Any]:
    """Return the vectors of a dataset, in the order of its rows."""
    return pq.read_table(path).sort_by("id")["vector"].to_pylist()


def ordinary(server: BatchServer, source: Path) -> list[Any]:
    """Return what ordinary requests give."""
    return embedreg.embed_table(pq.read_table(source), server.function().bind("text", "vector"))["vector"].to_pylist()


def probe_tokens(server: BatchServer) -> int:
    """Return what the server counts for the request that opens a job."""
    return len(PROBE_TEXT.split()) + 3 * (server.vendor == "gemini-text")  # whose sources have a title


every_vendor = pytest.mark.parametrize("server", VENDORS, indirect=True)


@every_vendor
def test_results_are_those_of_requests_in_order(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """Each distinct input of a piece is in one batch, and the dataset is the one that ordinary requests make."""
    report = run(server, source, tmp_path / "out")
    assert vectors(tmp_path / "out") == ordinary(server, source)
    assert len(server.batches) == 3
    assert server.inputs == ROWS + 2  # two duplicates lie in another piece
    assert (report.rows, report.nulls, report.bad_rows) == (ROWS + 4, 2, 0)
    assert report.usage.billed_tokens == server.billed + probe_tokens(server)
    assert report.usage.inputs == server.inputs + 1
    assert report.usage.requests == 3 + 1
    assert report.usage.estimated_tokens == 0
    assert not [file for file in (tmp_path / "out").rglob("*") if file.name.endswith((".batches", ".usage"))][1:]


@every_vendor
def test_a_row_that_is_refused_is_a_bad_row(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """A partial error of a batch fails its own row, without the key that the service repeats."""
    server.refused = frozenset({TEXTS[2], TEXTS[20]})
    with pytest.raises(BadRowsError, match="the server refused this text"):
        run(server, source, tmp_path / "out")
    made = len(server.batches)
    report = run(server, source, tmp_path / "out", on_error="null")  # the results are there, and are not paid for again
    assert made == len(server.batches) == 3
    assert [row.row for _, row in report.bad] == [2, 20]
    assert KEY not in repr(report) + (tmp_path / "out" / "_embedreg" / "bad_rows.jsonl").read_text()
    expected = ordinary(server, source)
    expected[2] = expected[20] = None
    assert vectors(tmp_path / "out") == expected
    assert report.usage.billed_tokens == server.billed + probe_tokens(server)


@every_vendor
def test_a_lost_answer_is_looked_up_not_sent_again(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """The connection ends after the service made the batch: it is found in the list, which may lag."""
    server.creations, server.hidden = ["lost", "created", "lost"], 1
    report = run(server, source, tmp_path / "out")
    assert len(server.batches) == 3
    assert server.inputs == ROWS + 2
    assert report.usage.requests == 3 + 1
    assert vectors(tmp_path / "out") == ordinary(server, source)


@pytest.mark.parametrize(
    ("server", "how"),
    [(vendor, "unsent") for vendor in VENDORS] + [("openai", 500), ("openai", 429)],
    indirect=["server"],
)
def test_a_submission_that_failed_is_sent_again(server: BatchServer, source: Path, tmp_path: Path, how: Any) -> None:
    """An answer of 500 or 429, or none: there is no such batch, so it is submitted once more."""
    server.creations = [how]
    report = run(server, source, tmp_path / "out")
    assert len(server.batches) == 3
    assert report.usage.requests == 4 + 1
    assert report.usage.retries == 1


@every_vendor
def test_an_expired_batch_is_submitted_for_what_it_lacks(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """What a batch did before it expired is kept; the rest goes into a new one."""
    server.expire_after = 9  # of 11, 11 and 10
    report = run(server, source, tmp_path / "out")
    assert sorted(len(made.lines) for made in server.batches.values()) == [1, 2, 2, 10, 11, 11]
    assert vectors(tmp_path / "out") == ordinary(server, source)
    assert report.usage.billed_tokens == server.billed + probe_tokens(server)


def test_a_batch_that_never_ends_well_is_an_error(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """After three batches that embedded nothing the job stops, and says how to go on."""
    server.expire_after = 0
    with pytest.raises(CallError, match="were not embedded by 3 batches") as caught:
        run(server, source, tmp_path / "out")
    assert "batch-api" in str(caught.value.shell_hint)
    assert len(server.batches) == 3 * 3


@pytest.mark.parametrize("server", ["openai", "gemini-text", "jina", "mistral"], indirect=True)
def test_a_batch_that_fails_is_an_error_and_is_submitted_anew(
    server: BatchServer, source: Path, tmp_path: Path
) -> None:
    """A batch that the service refuses as a whole: its words, one line; the next run submits that one again."""
    server.fails = f"the model is not allowed in batches, {KEY}"
    with pytest.raises(CallError, match="the model is not allowed in batches") as caught:
        run(server, source, tmp_path / "out")
    assert "\n" not in caught.value.message
    assert KEY not in everything_about(caught.value)
    server.fails = None
    assert run(server, source, tmp_path / "out").bad_rows == 0
    assert len(server.batches) == 4
    assert vectors(tmp_path / "out") == ordinary(server, source)


def test_a_batch_that_the_service_lost_is_submitted_anew(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """A batch that is gone, and results that are: neither is a dead end."""
    server.polls = 10**6
    interrupted(server, source, tmp_path / "out", after=3)
    server.batches.pop("batch_0")
    with pytest.raises(CallError, match="no longer has it"):
        run(server, source, tmp_path / "out")
    server.polls = 0
    run(server, source, tmp_path / "out")
    assert vectors(tmp_path / "out") == ordinary(server, source)


@pytest.mark.parametrize("server", ["openai", "gemini-text"], indirect=True)
def test_all_inputs_refused_is_a_failed_call(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """A batch whose inputs are all refused is not a column of nulls."""
    server.refused = frozenset(TEXTS)
    with pytest.raises(CallError, match="refused all of 11 inputs"):
        run(server, source, tmp_path / "out", on_error="null")


def test_a_batch_that_was_cancelled_is_not_submitted_unasked(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """Somebody cancelled it at the service: the job stops; called again, it submits what is left."""
    server.polls = 10**6
    interrupted(server, source, tmp_path / "out", after=3)
    server.batches["batch_1"].status = "cancelled"
    server.files |= {"batch_1": b"", "batch_1-errors": b""}
    with pytest.raises(CallError, match="was cancelled"):
        run(server, source, tmp_path / "out")
    assert len(server.batches) == 3
    server.polls = 0
    run(server, source, tmp_path / "out")
    assert len(server.batches) == 4
    assert vectors(tmp_path / "out") == ordinary(server, source)


# -- interruptions -----------------------------------------------------------------------------------------------------


def interrupted(server: BatchServer, source: Path, to: Path, after: int, **options: Any) -> None:
    """Press Ctrl-C once so many batches exist and one was looked at."""

    def progress(rows: int, total: int | None) -> None:
        pass

    def sleep(seconds: float) -> None:
        if len(server.batches) >= after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches.time, "sleep", sleep)
        with pytest.raises(KeyboardInterrupt):
            run(server, source, to, **options)


@every_vendor
def test_ctrl_c_leaves_the_batches_and_the_next_run_collects_them(
    server: BatchServer, source: Path, tmp_path: Path
) -> None:
    """Nothing is cancelled and nothing submitted twice; usage over both runs is the service's count."""
    server.polls = 10**6
    interrupted(server, source, tmp_path / "out", after=3)
    assert len(server.batches) == 3
    records = sorted((tmp_path / "out" / "_embedreg" / "ledger").glob("*.batches"))
    assert len(records) == 3
    assert not any(KEY in record.read_text() for record in (tmp_path / "out").rglob("*") if record.is_file())
    with pytest.raises(ConfigError, match=r"3 pieces of .* have been submitted"):
        run(server, source, tmp_path / "out", engine=None)  # it would pay for them twice
    left = unfinished(str(tmp_path / "out"))
    assert left is not None
    assert (left.pieces, left.done, len(left.batches)) == (3, 0, 3)
    assert left.batches[0]["handle"].endswith("batch_0")
    server.polls = 0
    report = run(server, source, tmp_path / "out")
    assert unfinished(str(tmp_path / "out")) is None
    assert len(server.batches) == 3
    assert vectors(tmp_path / "out") == ordinary(server, source)
    assert report.usage.billed_tokens == server.billed + probe_tokens(server)
    assert report.usage.inputs == server.inputs + 1
    assert not list((tmp_path / "out" / "_embedreg" / "ledger").glob("*.batches"))


# Jina's batches have no tags, and are recognised otherwise; the rest is as OpenAI's
KILLS = [("openai", "before"), ("openai", "after"), ("openai", "collected"), ("jina", "after")]
KILLS += [pytest.param(vendor, "after", marks=pytest.mark.slow) for vendor in ("gemini-text", "mistral", "voyageai")]


@pytest.mark.parametrize(("server", "point"), KILLS, indirect=["server"])
def test_a_kill_around_a_submission_submits_nothing_twice(
    server: BatchServer, source: Path, tmp_path: Path, start: Callable, point: str
) -> None:
    """Killed between the record and the request, and between the response and its record."""
    server.polls = 0
    url = f"http://{server.host}"
    process = start(_killed, point, server.vendor, url, source, tmp_path / "out", piece_rows=40)
    process.join(60)
    assert process.exitcode == -9
    assert len(server.batches) == (point != "before")
    report = run(server, source, tmp_path / "out", piece_rows=40)
    assert len(server.batches) == 1
    assert server.inputs == ROWS
    assert vectors(tmp_path / "out") == ordinary(server, source)
    assert report.usage.billed_tokens == server.billed + probe_tokens(server)
    again = point == "before"  # it was recorded, and then sent once more
    assert report.usage.requests == 1 + again + 1


def _killed(*args: Any, **options: Any) -> None:
    from tests.jobs import children

    children.submit_killed(*args, **options)


def test_a_submission_that_the_service_refuses_leaves_no_record(
    server: BatchServer, source: Path, tmp_path: Path
) -> None:
    """A wrong key, a batch that is too large: one line, and an ordinary run may follow."""
    function = server.function()
    embedreg.embed_query(function, "warm")
    server.creations = [403]
    with pytest.raises(CallError, match=r"submitting a batch of 11 inputs failed .*HTTP 403"):
        run(server, source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.batches"))
    assert run(server, source, tmp_path / "out", engine=None).rows == ROWS + 4


def test_a_service_that_stays_away_is_asked_again_by_the_next_run(
    server: BatchServer, source: Path, tmp_path: Path
) -> None:
    """No answer after all retries: the record stays, and the next run looks before it submits."""
    server.creations = ["lost", "unsent", "unsent"]
    server.hidden = 10**6
    with pytest.raises(CallError, match="submitting a batch") as caught:
        run(server, source, tmp_path / "out", config={"max_retries": 2})
    assert "looks for the batch first" in str(caught.value.hint)
    server.hidden, server.creations = 0, []
    run(server, source, tmp_path / "out")
    assert len(server.batches) == 3
    assert vectors(tmp_path / "out") == ordinary(server, source)


def test_polls_survive_a_bad_moment_of_the_service(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """A 500, a lost connection, no JSON while waiting: asked again, nothing lost."""
    server.function()
    server.polls = 2
    seen = []

    def create() -> None:
        seen.append(len(server.batches))
        if len(seen) == 3:
            server.replies.extend([Reply("error", 500), Reply("drop"), Reply("raw", 200, "no JSON"), Reply("cut")])

    server.on_create = create
    run(server, source, tmp_path / "out")
    assert not server.replies
    assert len(server.batches) == 3


def test_a_source_that_changed_is_submitted_anew(
    server: BatchServer, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The inputs of a recorded batch are no longer those of the piece: it is not used, and named."""
    server.polls = 10**6
    interrupted(server, source, tmp_path / "out", after=3)
    pq.write_table(
        pq.read_table(source).set_column(1, "text", pa.array([f"other {k}" for k in range(ROWS + 4)])), source
    )
    server.polls = 0
    run(server, source, tmp_path / "out")
    assert len(server.batches) == 6
    assert "the source has changed" in caplog.text
    assert vectors(tmp_path / "out") == ordinary(server, source)


# -- what is around it -------------------------------------------------------------------------------------------------


def test_a_function_without_a_batch_api_is_refused(tmp_path: Path, source: Path, server: BatchServer) -> None:
    """It is named before anything is embedded, and so is a second engine."""
    with pytest.raises(ConfigError, match="no batch API"):
        embed(source, tmp_path / "out", embedreg.get("hashing").create().bind("text", "vector"), batch_api=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="exclude each other"):
        run(server, source, tmp_path / "out", batch_api=True)


def test_only_what_needs_a_vector_is_submitted(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """Given vectors stay, and vectors of a cache are not paid for again."""
    table = pq.read_table(source)
    given = [[1.0] * WIDTH if row % 2 else None for row in range(ROWS + 4)]
    kind = pa.list_(pa.float32(), WIDTH)
    function = server.function()
    some = table.append_column("vector", pa.array(given, kind))
    bound = function.bind("text", "vector")
    pq.write_table(some.replace_schema_metadata(embedreg.embed_table(table.slice(0, 0), bound).schema.metadata), source)
    run(server, source, tmp_path / "out")
    assert server.inputs == ROWS // 2 + 1
    server.reset()
    pq.write_table(table, source)
    run(server, source, tmp_path / "one", cache=tmp_path / "cache.db")
    first = server.inputs
    run(server, source, tmp_path / "two", cache=tmp_path / "cache.db")
    assert server.inputs == first == ROWS + 2  # the second run submits nothing


def test_a_piece_over_the_service_s_limits_is_cut(
    server: BatchServer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More inputs, or more bytes, than one batch may have: several batches, in the order of the rows."""
    monkeypatch.setattr(batch_api.FileBatches, "max_inputs", 10)
    run(server, source, tmp_path / "out", piece_rows=100)
    assert sorted(len(made.lines) for made in server.batches.values()) == [10, 10, 10]
    assert vectors(tmp_path / "out") == ordinary(server, source)
    monkeypatch.setattr(batch_api.FileBatches, "max_inputs", 50_000)
    function = server.function()
    width = len(json.dumps(function.batch_api().line(0, TEXTS[0]), separators=(",", ":"))) + 20
    monkeypatch.setattr(batch_api.FileBatches, "max_bytes", 3 * width)
    parts = function.batch_api().parts(TEXTS)
    assert parts[0][0] == 0
    assert parts[-1][1] == ROWS
    assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
    assert len(parts) > 9


def test_a_record_that_cannot_be_read_is_refused(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """What was submitted is unknown then: submitting again might pay twice, and a foreign handle is no path."""
    server.polls = 10**6
    interrupted(server, source, tmp_path / "out", after=3)
    record = sorted((tmp_path / "out" / "_embedreg" / "ledger").glob("*.batches"))[0]
    kept = record.read_text()
    for broken in ("{", kept.replace("batch_0", "batch 0"), kept.replace('"inputs": 11', '"inputs": 3')):
        assert broken != kept
        record.write_text(broken)
        with pytest.raises(StorageError, match="cannot be read"):
            run(server, source, tmp_path / "out")
    record.write_text(kept.replace("batch_0", "batch_1"))
    with pytest.raises(CallError, match="is not the one"):
        run(server, source, tmp_path / "out")
    assert len(server.batches) == 3


def test_a_missing_key_is_named(source: Path, tmp_path: Path, server: BatchServer) -> None:
    """Before anything is sent."""
    function = embedreg.get("mistral").create(name="mistral-embed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MISTRAL_API_KEY", raising=False)
        with pytest.raises(MissingVariableError, match="MISTRAL_API_KEY"):
            embed(source, tmp_path / "out", function.bind("text", "vector"), engine=FAST)


def test_two_columns_of_two_functions(server: BatchServer, source: Path, tmp_path: Path) -> None:
    """Each function's inputs are in batches of its own."""
    one, other = server.function(), server.function(document_prompt="passage: ", query_prompt="query: ")
    binds = [one.bind("text", "vector"), other.bind("text", "other")]
    embed(source, tmp_path / "out", binds, piece_rows=100, engine=FAST)
    found = pq.read_table(tmp_path / "out")
    assert len(server.batches) == 2
    assert found["vector"].to_pylist() == ordinary(server, source)
    assert np.any(np.array(found["other"][0].as_py()) != np.array(found["vector"][0].as_py()))


def test_the_command_line_submits_shows_and_collects(
    server: BatchServer,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`embed --batch-api`, interrupted; `inspect` of its destination; and the same command again."""
    from embedreg.cli import main

    def shell(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["embedreg", *map(str, words)])
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return int(code or 0), captured.out + captured.err

    monkeypatch.setenv("LOOPBACK_KEY", KEY)
    config = [f"--set=name=m --set=dim={WIDTH} --set=base_url=http://{server.host}/v1", "--set=api_key=$var:key"]
    words = ["embed", source, tmp_path / "out.parquet", "-f", "openai", *config[0].split(), config[1]]
    words += ["--env", "key=LOOPBACK_KEY", "--piece-rows", "12", "--batch-api"]

    def sleep(seconds: float) -> None:
        if server.polls:
            raise KeyboardInterrupt

    monkeypatch.setattr(batches.time, "sleep", sleep)
    server.polls = 10**6
    code, said = shell(*words)
    assert code == 130
    assert "3 batches of the service are left running" in said
    assert "to continue: embedreg embed" in said
    _, said = shell("inspect", tmp_path / "out.parquet")
    assert "0 of 3 pieces" in said
    assert "batch_0: 11 inputs of column vector, submitted 2" in said
    found = json.loads(shell("inspect", tmp_path / "out.parquet", "--json")[1])
    assert [batch["inputs"] for batch in found["job"]["batches"]] == [11, 11, 10]
    server.polls = 0
    code, said = shell(*words)
    assert (code, len(server.batches)) == (0, 3)
    assert vectors(tmp_path / "out.parquet") == ordinary(server, source)
