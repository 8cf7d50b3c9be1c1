"""One budget for each host, key and model: limits in every sliding minute, a pause for all, and usage that adds up."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest

import embedreg
from embedreg.core.role import Role
from embedreg.errors import CallError, ConfigError
from embedreg.runtime.remote import RemoteTextFunction, accounts
from embedreg.runtime.remote.answers import Usage, count_of, report_headers, report_usage, usage_reports
from embedreg.runtime.remote.budget import Budget, Limits
from embedreg.runtime.remote.usage import TotalUsage, collect
from tests.servers import EmbeddingServer, Reply, create

WINDOW_S = 1.5  # a "minute" of these tests


@pytest.fixture(autouse=True)
def short_minutes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count limits over a shorter period, and forget the budgets of other tests."""
    monkeypatch.setattr(Budget.__init__, "__defaults__", (WINDOW_S,))
    accounts._budgets.clear()
    yield
    accounts._budgets.clear()
    accounts.set_workers(1)


class Refused(Exception):
    """A service's refusal."""

    def __init__(self, status_code: int, headers: dict[str, str] | None = None) -> None:
        super().__init__("refused")
        self.status_code, self.headers = status_code, headers or {}


class Service(RemoteTextFunction):
    """A service in this process that keeps the times of its requests, and refuses those over its own limit."""

    arrived: ClassVar[list[tuple[float, int]]] = []
    embedded: ClassVar[Counter[str]] = Counter()
    most: ClassVar[int] = 0  # requests at a time
    allowed: ClassVar[int | None] = None  # requests in a quarter of a second
    retry_after: ClassVar[str | None] = None
    lock: ClassVar[threading.Lock] = threading.Lock()
    running: ClassVar[list[int]] = [0]

    name: str = "model"
    host: str = "https://service.example"
    batch_size: int = 4
    concurrency: int = 8

    def ndims(self) -> int:
        return 2

    def request(self, batch: list[str], role: Role) -> Any:
        cls = type(self)
        with cls.lock:
            now = time.monotonic()
            recent = sum(now - when < 0.25 for when, _ in cls.arrived)
            cls.arrived.append((now, len(batch)))
            cls.running[0] += 1
            cls.most = max(cls.most, cls.running[0])
        try:
            time.sleep(0.01)
            if cls.allowed is not None and recent >= cls.allowed:
                raise Refused(429, {} if cls.retry_after is None else {"retry-after": cls.retry_after})
            report_usage(Usage(1, len(batch), 3 * len(batch)))
            cls.embedded.update(batch)
            return [[len(text), 1.0] for text in batch]
        finally:
            with cls.lock:
                cls.running[0] -= 1


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Forget the requests of other tests."""
    Service.arrived, Service.embedded, Service.most, Service.allowed = [], Counter(), 0, None
    Service.retry_after = None


def texts(n: int) -> list[str]:
    """Return n different texts."""
    return [f"text {i}" for i in range(n)]


def most_in_a_window(arrived: list[float], seconds: float) -> int:
    """Return the largest number of requests in any period of this length."""
    return max(sum(0 <= other - start < seconds for other in arrived) for start in arrived)


def embed_in_threads(functions: list[Any], rows: int, threads: int) -> None:
    """Embed rows of its own in each thread, all at the same time."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            made = functions[number % len(functions)].compute_source_embeddings(
                [f"{number}: {text}" for text in texts(rows)]
            )
            assert len(made) == rows
        except BaseException as exc:  # noqa: BLE001  # shown by the test
            failures.append(exc)

    started = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert not failures, failures[0]


def test_never_more_than_rpm_in_any_window_and_most_of_it_is_used() -> None:
    """Two functions and eight threads share one account: 20 requests a window, and no less than 0.9 of that."""
    rpm = 20 * 60 / WINDOW_S
    functions = [Service(rpm=rpm), Service(rpm=rpm, timeout_s=30)]
    began = time.monotonic()
    embed_in_threads(functions, 4 * 10, 8)  # 80 requests: four windows
    took = time.monotonic() - began
    assert len(Service.arrived) == 80
    assert most_in_a_window([when for when, _ in Service.arrived], WINDOW_S) <= 20
    assert took < 3 * WINDOW_S / 0.9 + 0.5  # the first 20 at once, then 20 a window


def test_inputs_tokens_and_concurrency_are_limits_too() -> None:
    """`ipm` and `tpm` hold in each window, and batches are cut so that one fits; `max_concurrency` counts all."""
    per_window = 60 / WINDOW_S
    embed_in_threads([Service(ipm=12 * per_window, max_concurrency=3)], 12, 4)
    for start, _ in Service.arrived:
        assert sum(rows for when, rows in Service.arrived if 0 <= when - start < WINDOW_S) <= 12
    assert Service.most <= 3
    limited = Service(name="other", tpm=30 * per_window, max_batch_tokens=250_000)
    Service.arrived = []
    limited.compute_source_embeddings(["ten letters"] * 10)  # estimated as 6 tokens, reported as 3
    used = [sum(3 * rows for when, rows in Service.arrived if 0 <= when - at < WINDOW_S) for at, _ in Service.arrived]
    assert max(used) <= 30


def test_a_storm_of_429_ends_with_each_row_embedded_once() -> None:
    """A service without known limits refuses most of a burst: the account pauses, slows down, and all rows arrive."""
    Service.allowed, Service.retry_after = 3, "0.1"
    function = Service(max_retries=50)
    total = TotalUsage()
    with collect(total):
        embed_in_threads([function], 1, 1)
        made = function.compute_source_embeddings(texts(80))
    assert np.asarray(made).shape == (80, 2)
    assert set(Service.embedded.values()) == {1}
    refused = len(Service.arrived) - 21
    assert total.requests + 1 >= len(Service.arrived)  # the thread's own call is not in this context
    assert refused == total.retries
    assert refused < 40  # without a common pause, each of eight threads is refused again and again


def test_one_429_pauses_the_account_for_its_retry_after() -> None:
    """No request of any function is sent to the account until the time that the service asked for has passed."""
    one, other = Service(max_retries=3), Service(max_retries=3, timeout_s=5)
    Service.allowed, Service.retry_after = 0, "0.6"
    thread = threading.Thread(target=one.compute_source_embeddings, args=(["a"],))
    thread.start()
    while not Service.arrived:
        time.sleep(0.005)
    time.sleep(0.05)
    Service.allowed = None
    other.compute_source_embeddings(["b"])
    thread.join()
    refused, *rest = [when for when, _ in Service.arrived]
    assert min(rest) - refused >= 0.6
    assert Service.embedded == {"a": 1, "b": 1}


def test_accounts_are_told_apart_by_host_key_and_model() -> None:
    """A limit of one account does not slow another."""
    server = "http://127.0.0.1:9"
    embedreg.get_registry().set_var("one", "key one")
    embedreg.get_registry().set_var("two", "key two")
    kinds = [{"api_key": "$var:one"}, {"api_key": "$var:two"}, {"api_key": "$var:one", "name": "other"}]
    functions = [embedreg.get("openai").create(**{"base_url": server, "dim": 8, "name": "a", **kind}) for kind in kinds]
    accounts = [function.account() for function in functions]
    assert len(set(accounts)) == 3
    assert "key one" not in repr(accounts)
    assert embedreg.budget(functions[0], rpm=10).limits == Limits(rpm=10)
    assert functions[1].budget().limits == Limits()
    assert (
        functions[0].budget()
        is embedreg.get("openai").create(base_url=server, dim=8, name="a", api_key="$var:one", rpm=5).budget()
    )
    assert functions[0].budget().limits == Limits(rpm=5)  # the lowest of all


def test_limits_are_not_stored_nor_part_of_a_function() -> None:
    """A declaration does not change with `rpm`: they say how fast, not what."""
    plain = embedreg.get("openai").create(name="a", dim=8)
    limited = embedreg.get("openai").create(name="a", dim=8, rpm=5, max_concurrency=2)
    schemas = [
        embedreg.embed_batches(
            pa.table({"text": pa.array([], pa.string())}).to_reader(), function.bind("text", "vector")
        ).schema
        for function in (plain, limited)
    ]
    assert schemas[0].metadata == schemas[1].metadata
    assert b"rpm" not in schemas[1].metadata[b"embedding_functions"]
    assert pickle.loads(pickle.dumps(limited)).rpm == 5


def test_limits_are_learnt_from_headers() -> None:
    """The service's limits per minute are used from its first response on; what is used up pauses the account."""
    found = Budget("an account")
    found.learn({"x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "30000"})
    assert found.limits == Limits(rpm=500, tpm=30000)
    found.lower(Limits(rpm=100))
    assert found.limits == Limits(rpm=100, tpm=30000)
    found.learn(
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "250ms",
        }
    )
    _, waited_s = found.reserve(Usage(1, 1, 1))
    assert 0.2 < waited_s < 1
    found.learn({"x-ratelimit-limit-requests": "many", "x-ratelimit-limit-tokens": "nan"})
    assert found.limits == Limits(rpm=100, tpm=30000)


def test_the_openai_client_and_plain_http_report_headers_and_usage() -> None:
    """What a real server answers reaches the budget and the report: through the SDK's client."""
    with EmbeddingServer() as server:
        function = create(server, batch_size=2)
        report = embedreg.Report()
        embedreg.embed_table({"text": texts(5)}, function.bind("text", "vector"), report=report)
        sent = len(server.requests)
    assert report.usage.requests == sent  # the probe included
    assert report.usage.billed_tokens > 0
    assert report.usage.estimated_tokens == 0
    assert report.usage.retries == 0
    assert set(report.usage.to_dict()) == {
        "requests", "retries", "inputs", "billed_tokens", "estimated_tokens", "waited_s",
    }  # fmt: skip
    seen: list[Any] = []
    with usage_reports(seen.append):
        report_headers({"x": "y"})
    assert seen == [{"x": "y"}]


def test_a_failed_request_and_its_retries_are_counted() -> None:
    """Each HTTP request counts, and what repeats a failed one is a retry."""
    with EmbeddingServer() as server:
        server.replies += [Reply(status=429, headers={"retry-after": "0"}), Reply(status=500)]
        function = create(server, max_retries=5)
        total = TotalUsage()
        with collect(total):
            function.compute_source_embeddings(texts(3))
        assert len(server.requests) == 3
    assert (total.requests, total.retries) == (3, 2)


def test_a_wait_for_the_budget_is_not_part_of_the_deadline() -> None:
    """A slow budget is not a failure: `deadline_s` limits retries, not the wait for a turn."""
    function = Service(rpm=60 / WINDOW_S, batch_size=1, deadline_s=1.0, max_retries=2, concurrency=2)
    total = TotalUsage()
    with collect(total):
        assert np.asarray(function.compute_source_embeddings(texts(3))).shape == (3, 2)
    assert total.waited_s > WINDOW_S


def test_a_stopped_call_does_not_wait_on() -> None:
    """Where one request of a call fails, the others that wait for their turn end at once."""

    class Failing(Service):
        def request(self, batch: list[str], role: Role) -> Any:
            time.sleep(0.05)
            raise Refused(401)

    began = time.monotonic()
    with pytest.raises(CallError):
        Failing(rpm=60 / WINDOW_S, batch_size=1, host="https://elsewhere.example").compute_source_embeddings(texts(6))
    assert time.monotonic() - began < WINDOW_S


def test_workers_have_their_share() -> None:
    """A process that is one of four has a quarter of each limit, and at least one request at a time."""
    function = Service(rpm=100, max_concurrency=2)
    assert accounts.shared_limits([function], 4) == [("model at service.example", Limits(rpm=25, max_concurrency=1))]
    accounts.set_workers(4, {function.account(): Limits(tpm=400)})
    assert function.budget().limits == Limits(rpm=25, tpm=100, max_concurrency=1)
    assert embedreg.budget(function, rpm=100, workers=2).limits == Limits(rpm=50, max_concurrency=1)


def test_a_worker_counts_its_part_of_what_was_sent_before_it_started() -> None:
    """Together the workers and the process that started them keep to the limit in their first minute too."""
    function = Service(rpm=2 * 60 / WINDOW_S)
    spent = {function.account(): ([1.0, 1.0, 0.0], 0.05)}
    accounts.set_workers(2, None, spent)
    budget = function.budget()
    begun = time.monotonic()
    reserved, _ = budget.reserve(Usage(1, 1))  # its half is one request, of which half is taken
    assert reserved is not None
    budget.settle(reserved, Usage(1, 1))
    assert 0.04 <= time.monotonic() - begun < 1
    assert accounts.spent()[function.account()][0] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("wrong", [{"rpm": 0}, {"tpm": -1}, {"ipm": float("nan")}, {"workers": 0}])
def test_a_limit_is_a_positive_number(wrong: dict[str, Any]) -> None:
    """A limit of zero would wait for ever."""
    with pytest.raises(ConfigError):
        embedreg.budget(Service(), **wrong)
    if "workers" not in wrong:
        with pytest.raises(ConfigError):
            embedreg.get("openai").create(**wrong)
    with pytest.raises(ConfigError, match="sends no requests"):
        embedreg.budget(embedreg.get("hashing").create(), rpm=1)


@pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning")  # where another test has loaded lance
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # since Python 3.12
def test_a_forked_child_begins_with_no_requests_under_way() -> None:
    """A child keeps the limits, and does not wait for the requests of its parent."""
    found = embedreg.budget(Service(), max_concurrency=1)
    found.reserve(Usage(1, 1, 1))
    child = os.fork()
    if not child:
        signal.alarm(30)
        mine = Service().budget()
        ended = mine.reserve(Usage(1, 1, 1))[0] is not None and mine.limits.max_concurrency == 1
        os._exit(0 if ended else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


RESUMED = """
import sys, embedreg
function = embedreg.get("openai").create(base_url=sys.argv[1], name="a", dim=8, batch_size=2, concurrency=2)
report = embedreg.embed(sys.argv[2], sys.argv[3], function.bind("text", "vector"), piece_rows=20, batch_rows=10)
print(report.usage.requests, report.usage.billed_tokens)
"""


def test_the_usage_of_a_killed_and_resumed_job_is_the_servers_own(tmp_path: Path) -> None:
    """Requests of a run that was killed are in the ledger: the next run's report adds up to what the server counted."""
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": texts(80)}), tmp_path / "in.parquet")
    with EmbeddingServer() as server:
        server.replies += [Reply(kind="slow", delay_s=0.02)] * 100
        command = [sys.executable, "-c", textwrap.dedent(RESUMED), server.url, str(tmp_path / "in.parquet")]
        command.append(str(tmp_path / "out"))
        environment = {**os.environ, "OPENAI_API_KEY": "k" * 20}
        running = subprocess.Popen(command, env=environment)
        while len(server.requests) < 14:  # in its second piece
            time.sleep(0.01)
            assert running.poll() is None
        running.kill()
        running.wait()
        time.sleep(0.2)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
        requests, _ = map(int, done.stdout.split())
        # a request that was recorded, and killed before it was sent, may be counted on top: at most `concurrency`
        assert 0 <= requests - len(server.requests) <= 2


@pytest.mark.parametrize("tokens", [10**400, -1, True, 1.5, "7"])
def test_a_number_of_tokens_that_cannot_be_one_is_ignored(tokens: object) -> None:
    """A server's odd usage does not end a call whose vectors are there: the estimate is kept."""
    assert count_of(tokens) is None
