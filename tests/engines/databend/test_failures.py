"""Whatever goes wrong, on the real engine: one clear line or NULL, no hang, no wrong row, and the server lives on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow.flight as flight
import pytest

from embedreg.engines.databend import Limits, Server, serve
from tests.engines.databend_engine import Engine, SqlError
from tests.engines.databend_flight import SECRET, Behaviour, Client, Scripted, certificate, expected, vector_of

pytestmark = pytest.mark.skipif(find_spec("databend") is None, reason="the engine has no wheel for this machine")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One server for what does not end it."""
    with serve({"f": Scripted.create(script="failures")}, bind="127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def engine(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that knows the function f, and a table whose first row is bad in some way."""
    with Engine(tmp_path_factory.mktemp("engine"), server.address) as running:
        running.create("f", server.address)
        running.sql("CREATE TABLE fruit (id INT, text STRING NULL)")
        running.sql("INSERT INTO fruit VALUES (1, 'apple'), (2, NULL), (3, '  '), (4, 'a melon')")
        yield running


def works(engine: Engine, name: str = "f") -> bool:
    """Say whether a function still gives the right vectors."""
    text = f"fine {time.monotonic_ns()}"
    return engine.rows(f"SELECT {name}('{text}') AS v") == [{"v": vector_of(text)}]


def line_of(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """Return the one line of ours in what a client or a SQL user reads."""
    text = str(caught.value)
    if isinstance(caught.value, SqlError):
        text = text.partition('message: "')[2]
    return text.partition(". Detail:")[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise", "f: the function failed with ValueError; see the server's log"),
        ("call of a long private input", "f: the service at <path> said no to '...'"),
        ("wide", "f: the function returned vectors of shape (1, 4) for 1 inputs; (1, 3) was expected"),
    ],
)
def test_a_failed_call_fails_the_query_in_one_line(
    engine: Engine, server: Server, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    """The SQL user reads the function's name and what failed: no traceback, path, input or secret.

    The log names where it failed, and no input or secret either.
    """
    before = server.counts()["failed"]
    with caplog.at_level(logging.DEBUG, "embedreg"), pytest.raises(SqlError) as caught:
        engine.sql(f"SELECT f('{text}')")
    assert line_of(caught) == said
    assert server.counts()["failed"] == before + 1
    for private in (SECRET, "/home/someone", "/srv", "private input", "Traceback"):
        assert private not in str(caught.value)
    for private in (SECRET, "private input"):
        assert private not in caplog.text
    assert works(engine)


def test_an_outage_is_no_column_of_nulls(engine: Engine) -> None:
    """One failing text fails the whole statement: nothing is written."""
    engine.sql("CREATE TABLE failing (text STRING)")
    engine.sql("INSERT INTO failing VALUES ('apple'), ('raise'), ('pear')")
    with pytest.raises(SqlError, match="f: the function failed with ValueError"):
        engine.sql("CREATE TABLE made AS SELECT text, f(text) AS v FROM failing")
    with pytest.raises(SqlError, match="made"):
        engine.sql("SELECT * FROM made")


@pytest.mark.parametrize("text", ["nan", "zero", "none", "bad"])
def test_a_bad_row_is_null_among_good_ones(engine: Engine, server: Server, text: str) -> None:
    """A vector that is not finite or has no direction would be sorted first; as NULL the row comes last."""
    before = server.counts()["bad"]
    engine.sql(f"CREATE OR REPLACE TABLE mixed AS SELECT * FROM fruit UNION ALL SELECT 9, '{text}'")
    made = engine.rows("SELECT id, f(text) AS v FROM mixed ORDER BY id")
    assert [row["v"] for row in made] == [vector_of("apple"), None, None, vector_of("a melon"), None]
    near = engine.rows("SELECT id, cosine_distance(f(text), f('a lemon')) AS d FROM mixed ORDER BY d, id")
    assert [row["id"] for row in near] == [4, 1, 2, 3, 9]
    assert server.counts()["bad"] >= before + 2


def test_bad_rows_raise_where_that_is_the_policy(tmp_path: Path) -> None:
    """`on_error="raise"`: the query fails with the reason, without the row."""
    with serve({"g": Scripted.create(script="raising")}, bind="127.0.0.1:0", on_error="raise") as server:
        with pytest.raises(flight.FlightServerError) as caught:
            Client(server.address).call("g", ["fine", "bad", None])
        assert line_of(caught) == "g: 1 input(s) have no vector: refused by hand"
        assert Client(server.address).call("g", ["fine", None]).to_pylist() == expected(["fine", None])


@pytest.fixture
def stuck(request: pytest.FixtureRequest) -> Iterator[Behaviour]:
    """A function of which a call stays as long as the test wants."""
    behaviour = Scripted.create(script=request.node.name).behaviour
    yield behaviour
    behaviour.go.set()


def test_a_call_over_its_deadline_ends(stuck: Behaviour, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The engine itself would wait for ever: its timeout is over with the first answer. Others are served meanwhile."""
    functions = {"slow": Scripted.create(script=request.node.name), "quick": Scripted.create(script="quick")}
    with (
        serve(functions, bind="127.0.0.1:0", limits=Limits(call_deadline_s=0.5), warm=False) as server,
        Engine(tmp_path / "engine", server.address) as engine,
    ):
        engine.create("slow", server.address)
        engine.create("quick", server.address)
        engine.send("SELECT slow('wait')")
        assert stuck.started.acquire(timeout=10)
        assert Client(server.address).call("quick", ["meanwhile"]).to_pylist() == [vector_of("meanwhile")]
        with pytest.raises(SqlError) as caught:
            engine.receive()
        assert line_of(caught) == "slow: the call took longer than the 0.5 s that the server allows"
        # the model hangs still: another worker takes over
        assert works(engine, "slow")
        assert server.counts("slow")["expired"] == 1


def test_a_cancelled_query_stops_within_a_chunk(
    stuck: Behaviour, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The engine goes away in the middle of a table: what was not begun is never embedded."""
    fn = Scripted.create(script=request.node.name)
    limits = Limits(chunk_rows=10)
    with serve({"f": fn}, bind="127.0.0.1:0", limits=limits, warm=False) as server:
        with Engine(tmp_path / "engine", server.address) as engine:
            engine.create("f", server.address)
            engine.send("SELECT f(if(number = 25, 'wait', number::STRING)) FROM numbers(200)")
            while "wait" not in stuck.seen:
                assert stuck.started.acquire(timeout=10)
            engine.kill()
            over = time.monotonic() + 10
            while server.counts()["cancelled"] == 0:
                assert time.monotonic() < over
                time.sleep(0.01)
        stuck.go.set()
        assert Client(server.address).call("f", ["after"]).to_pylist() == [vector_of("after")]
        assert server.counts()["failed"] == 0
        assert len(stuck.seen) == 31


def test_what_a_retried_call_had_embedded_is_not_embedded_again(request: pytest.FixtureRequest) -> None:
    """Newer engines try a failed call again, up to eight times: it goes on where it failed."""
    fn = Scripted.create(script=request.node.name)
    texts = [f"text {k}" for k in range(50)]
    with serve({"f": fn}, bind="127.0.0.1:0", limits=Limits(chunk_rows=10), warm=False) as server:
        for _ in range(3):
            with pytest.raises(flight.FlightServerError, match="f: the function failed with ValueError"):
                Client(server.address).call("f", [*texts, "raise"])
        assert Client(server.address).call("f", texts).to_pylist() == expected(texts)
    assert sorted(set(fn.behaviour.seen) - {"raise"}) == sorted(texts)
    assert sum(text.startswith("text") for text in fn.behaviour.seen) == 50


def test_too_many_calls_are_refused(stuck: Behaviour, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """One line reports that the server is busy; who was let in gets the right answer."""
    limits = Limits(concurrency=1, queue=1)
    fn = Scripted.create(script=request.node.name)
    with (
        serve({"f": fn}, bind="127.0.0.1:0", limits=limits, warm=False) as server,
        Engine(tmp_path / "engine", server.address) as engine,
        Engine(tmp_path / "another", server.address) as another,
    ):
        for each in (engine, another):
            each.create("f", server.address)
        engine.send("SELECT f('wait') AS v")
        assert stuck.started.acquire(timeout=10)
        waiting = threading.Thread(target=Client(server.address).call, args=("f", ["one that waits"]))
        waiting.start()
        over = time.monotonic() + 10
        while server._flight._admission.open_calls < 2:
            assert time.monotonic() < over
            time.sleep(0.001)
        with pytest.raises(SqlError) as caught:
            another.sql("SELECT f('one too many')")
        assert line_of(caught) == "f: the server is busy with 2 calls; run the query again later"
        stuck.go.set()
        assert engine.receive().to_pylist() == [{"v": vector_of("wait")}]
        waiting.join(10)
        assert works(another)
        assert server.counts()["refused"] == 1


def test_a_shutdown_lets_calls_end(stuck: Behaviour, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A query in flight gets its vectors; a new one is refused; then nothing listens any more."""
    fn = Scripted.create(script=request.node.name)
    with (
        serve({"f": fn}, bind="127.0.0.1:0", warm=False) as server,
        Engine(tmp_path / "engine", server.address) as engine,
    ):
        engine.create("f", server.address)
        engine.send("SELECT f('wait') AS v")
        assert stuck.started.acquire(timeout=10)
        client = Client(server.address)
        stopping = threading.Thread(target=server.shutdown)
        stopping.start()
        over = time.monotonic() + 10
        while not server._flight._admission.closed:
            assert time.monotonic() < over
            time.sleep(0.001)
        with pytest.raises(flight.FlightUnavailableError, match="f: the server is shutting down"):
            client.call("f", ["new"])
        assert not server.wait(0)
        stuck.go.set()
        assert engine.receive().to_pylist() == [{"v": vector_of("wait")}]
        stopping.join(10)
        assert server.wait(0)
        with pytest.raises(SqlError):
            engine.sql("SELECT f('too late')")


def test_a_shutdown_does_not_wait_for_ever(stuck: Behaviour, request: pytest.FixtureRequest) -> None:
    """A call whose model hangs is ended with an error, a client that keeps an idle call open is cut off."""
    fn = Scripted.create(script=request.node.name)
    with serve({"f": fn}, bind="127.0.0.1:0", warm=False) as server:
        client = Client(server.address)
        idle = client.open_call("builtin_echo")
        problems: list[BaseException] = []

        def hang() -> None:
            try:
                client.call("f", ["wait"])
            except flight.FlightError as exc:
                problems.append(exc)

        hanging = threading.Thread(target=hang)
        hanging.start()
        assert stuck.started.acquire(timeout=10)
        began = time.monotonic()
        server.shutdown(drain_s=0.2)
        assert time.monotonic() - began < 5
        hanging.join(10)
        assert "f: the server is shutting down" in str(problems[0])
        del idle


def test_without_the_token_nothing_is_served(tmp_path: Path) -> None:
    """No call, no schema: neither without a token nor with a wrong one; the message does not tell the right one."""
    with (
        serve({"f": Scripted.create()}, bind="127.0.0.1:0", auth_token="right-and-long") as server,
        Engine(tmp_path / "engine", server.address) as engine,
    ):
        with pytest.raises(SqlError, match="requires a token"):
            engine.create("f", server.address)
        for token in (None, "", "wrong", "right-and-lon", "right-and-long ", "right-and-longer"):
            stranger = Client(server.address, token=token)
            for call in (lambda: stranger.call("f", ["x"]), lambda: stranger.schema("f")):  # noqa: B023 - called at once
                with pytest.raises(flight.FlightUnauthenticatedError) as caught:
                    call()
                assert "right-and-long" not in str(caught.value)
        assert Client(server.address, token="right-and-long").call("f", ["x"]).to_pylist() == [vector_of("x")]
        assert server.counts()["unauthenticated"] > 10
        assert server.counts()["calls"] == 1


def test_tls_encrypts_and_plaintext_is_refused(tmp_path: Path) -> None:
    """Who trusts the certificate is served; a plaintext client and the engine without TLS fail, and nothing hangs."""
    cert, key = certificate(tmp_path)
    with serve({"f": Scripted.create()}, bind="127.0.0.1:0", tls_cert=cert, tls_key=key) as server:
        assert server.address == f"https://127.0.0.1:{server.port}"
        plain = server.address.replace("https", "http")
        with pytest.raises(flight.FlightUnavailableError):
            Client(plain).call("f", ["x"], timeout_s=10)
        with Engine(tmp_path / "engine", plain) as engine, pytest.raises(SqlError):
            engine.create("f", plain)
        with pytest.raises(flight.FlightUnavailableError):
            Client(server.address).call("f", ["x"], timeout_s=10)  # it trusts nobody
        assert Client(server.address, root=cert.read_bytes()).call("f", ["x"]).to_pylist() == [vector_of("x")]
