"""The server around the functions: who may come in, what it reports about itself, and many clients at once."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import embedreg
from embedreg.engines.databend import Limits, Served, serve
from embedreg.errors import ConfigError, StorageError
from tests.engines.databend_flight import Client, Scripted, certificate, expected, vector_of
from tests.fakes import Lengths

HERE = "127.0.0.1:0"


def get(port: int | None, page: str) -> tuple[int, str]:
    """Return the status and the text of a page."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


# -- the door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
def test_other_machines_come_in_with_a_token_only(bind: str) -> None:
    """Databend's own server binds everywhere without one."""
    with pytest.raises(ConfigError, match="accepts calls from other machines, and there is no token") as caught:
        serve({"f": Lengths.create()}, bind=bind)
    assert "insecure=True" in str(caught.value.hint)


@pytest.mark.parametrize("options", [{"insecure": True}, {"auth_token": "a-token"}])
def test_the_door_is_opened_on_purpose(options: dict[str, Any]) -> None:
    """The address then names this machine, since nobody can call 0.0.0.0."""
    with serve({"f": Lengths.create()}, bind="0.0.0.0:0", **options) as server:
        assert server.address == f"http://{socket.gethostname()}:{server.port}"
        client = Client(f"http://127.0.0.1:{server.port}", token=options.get("auth_token"))
        assert client.call("f", ["x"]).to_pylist() == [[1, 0, 1]]
        assert "a-token" not in server.ddl() + server.ddl(version="current") + repr(server)


@pytest.mark.parametrize(
    "bind", ["127.0.0.1", "127.0.0.1:", ":8815", "127.0.0.1:99999", "::1:8815", "127.0.0.1:x", 8815, None]
)
def test_what_is_no_address_is_refused(bind: Any) -> None:
    """With one that can be pasted."""
    with pytest.raises(ConfigError, match="expected host:port") as caught:
        serve({"f": Lengths.create()}, bind=bind)
    assert caught.value.hint == "bind='127.0.0.1:8815'"


def test_ipv6_is_an_address_too() -> None:
    """In brackets, as everywhere."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve({"f": Lengths.create()}, bind="[::1]:0") as server:
        assert server.address == f"http://[::1]:{server.port}"
        assert Client(server.address).call("f", ["x"]).to_pylist() == [[1, 0, 1]]


def test_an_address_is_not_shared() -> None:
    """By itself gRPC would let two servers listen on one port, and each would get some of the calls."""
    with serve({"f": Lengths.create()}, bind=HERE) as server:
        for options in (
            {"bind": f"127.0.0.1:{server.port}"},
            {"bind": HERE, "metrics_bind": f"127.0.0.1:{server.port}"},
        ):
            with pytest.raises(StorageError, match=f"127.0.0.1:{server.port} cannot be listened on"):
                serve({"g": Lengths.create()}, **options)


def test_a_certificate_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """At the door, with what is wrong: one file of two, no file, no certificate, another's key."""
    cert, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    for options, error in (
        ({"tls_cert": cert}, ConfigError),
        ({"tls_cert": tmp_path / "none.pem", "tls_key": key}, StorageError),
        ({"tls_cert": key, "tls_key": key}, ConfigError),
        ({"tls_cert": cert, "tls_key": other}, ConfigError),
    ):
        with pytest.raises(error):
            serve({"f": Lengths.create()}, bind=HERE, **options)


@pytest.mark.parametrize("token", ["", "  ", "line\nbreak", "schlüssel"])
def test_a_token_that_no_header_carries_is_refused(token: str) -> None:
    """Without showing it."""
    with pytest.raises(ConfigError, match="the token is empty") as caught:
        serve({"f": Lengths.create()}, bind=HERE, auth_token=token)
    assert token.strip() == "" or token not in str(caught.value)


def test_a_function_that_cannot_run_is_refused_at_the_door() -> None:
    """And what listened already is closed again."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    missing = embedreg.get("sentence-transformers").create(name="/no/such/model")
    with pytest.raises(embedreg.EmbedregError, match="no/such/model"):
        serve({"f": missing}, bind=f"127.0.0.1:{port}")
    with serve({"f": Lengths.create()}, bind=f"127.0.0.1:{port}") as server:
        assert server.port == port


# -- what it reports of itself -----------------------------------------------------------------------------------------


def test_metrics_and_health() -> None:
    """Live from the start; ready once warm, and no longer when it shuts down; counters under the function's name."""
    fn = Scripted.create(script="health")
    with serve({"f": fn, "g": Lengths.create()}, bind=HERE, metrics_bind=HERE) as server:
        port = server.metrics_port
        assert get(port, "/live") == (200, "live\n")
        assert get(port, "/ready") == (200, "ready\n")
        assert get(port, "/nothing")[0] == 404
        Client(server.address).call("f", ["a", "bad", None, "a"])
        status, text = get(port, "/metrics")
        assert status == 200
        for line in (
            'embedreg_databend_calls_total{function="f"} 1.0',
            'embedreg_databend_rows_total{function="f"} 4.0',
            'embedreg_databend_embedded_total{function="f"} 2.0',
            'embedreg_databend_nulls_total{function="f"} 1.0',
            'embedreg_databend_bad_total{function="f"} 1.0',
            'embedreg_databend_call_seconds_count{function="f"} 1.0',
            "embedreg_databend_ready 1.0",
            "embedreg_databend_open_calls 0.0",
        ):
            assert line in text.splitlines()
        assert {k: n for k, n in server.counts("f").items() if n} == {
            "calls": 1, "rows": 4, "embedded": 2, "nulls": 1, "bad": 1, "passes": 1
        }  # fmt: skip
        client = Client(server.address)
        call = threading.Thread(target=client.call, args=("f", ["wait"]))
        call.start()
        while "wait" not in fn.behaviour.seen:
            assert fn.behaviour.started.acquire(timeout=10)
        stopping = threading.Thread(target=server.shutdown)
        stopping.start()
        over = time.monotonic() + 10
        while get(port, "/ready")[0] != 503:
            assert time.monotonic() < over
        assert get(port, "/live") == (200, "live\n")
        fn.behaviour.go.set()
        call.join(10)
        stopping.join(10)
        assert server.wait(0)
    with pytest.raises(OSError, match="refused"):
        get(port, "/live")


def test_it_is_not_ready_before_it_is_warm() -> None:
    """`serve` returns with the models loaded; until then the probe reports it."""
    fn = Scripted.create(script="warming")

    class Slow(Lengths):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            fn.behaviour.started.release()
            assert fn.behaviour.go.wait(10)
            return super().generate_embeddings(texts)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(serve, {"f": Slow.create()}, bind=HERE, metrics_bind=f"127.0.0.1:{port}")
        assert fn.behaviour.started.acquire(timeout=10)
        assert get(port, "/live")[0] == 200
        assert get(port, "/ready") == (503, "not ready\n")
        fn.behaviour.go.set()
        with coming.result(10):
            assert get(port, "/ready")[0] == 200


def test_wait_ends_with_the_server() -> None:
    """Whoever waits continues, and a second shutdown does nothing."""
    server = serve({"f": Lengths.create()}, bind=HERE)
    assert not server.wait(0.01)
    waiting = threading.Thread(target=server.wait)
    waiting.start()
    server.shutdown()
    server.shutdown()
    waiting.join(10)
    assert not waiting.is_alive()
    assert server.address.endswith(str(server.port))


def test_the_sql_that_it_prints_names_its_address() -> None:
    """For the functions as they are served, in the form of either version."""
    functions = [Served("ai_a", Lengths.create()), Served("ai_v", Lengths.create(), returns="vector")]
    with serve(functions, bind=HERE, auth_token="a-token") as server:
        current = server.ddl(version="current")
        assert current.count(f"ADDRESS = '{server.address}'") == 2
        assert "RETURNS VECTOR(3)" in current
        assert "HEADERS" in current
        with pytest.raises(ConfigError, match="VECTOR"):
            server.ddl()


def test_it_can_be_the_last_thing_of_a_program(run_python: Any) -> None:
    """A program that never shuts its server down ends all the same, also with a call in flight."""
    done = run_python(
        "import sys, threading\n"
        "from embedreg.engines.databend import serve\n"
        "from tests.engines.databend_flight import Client, Scripted\n"
        "fn = Scripted.create()\n"
        "server = serve({'f': fn}, bind='127.0.0.1:0', warm=False)\n"
        "threading.Thread(target=Client(server.address).call, args=('f', ['wait']), daemon=True).start()\n"
        "assert fn.behaviour.started.acquire(timeout=10)\n"
        "server.shutdown(drain_s=0)\n"
        "print('over')\n",
        path=[Path(__file__).parents[2]],
    )
    assert done == "over\n"


# -- many clients ------------------------------------------------------------------------------------------------------


def test_small_calls_share_runs_and_each_gets_its_own_vectors() -> None:
    """Sixteen clients with one-row calls, of runs that take longer than the wait: far fewer runs than calls."""
    texts = [[f"slow client {k} asks number {turn}" for turn in range(20)] for k in range(16)]
    fn = Scripted.create(script="sharing")
    with serve({"f": fn}, bind=HERE, limits=Limits(coalesce_window_s=0.005)) as server:

        def ask(own: list[str]) -> list[Any]:
            client = Client(server.address)
            return [client.call("f", [text]).to_pylist()[0] for text in own]

        with ThreadPoolExecutor(16) as clients:
            made = list(clients.map(ask, texts))
        counts = server.counts()
    assert made == [expected(own) for own in texts]
    assert counts["calls"] == counts["embedded"] == 320
    assert counts["passes"] < 160
    assert counts["shared"] > 160


def test_one_clients_bad_call_is_its_own() -> None:
    """In a shared run, an input that makes the function raise fails its own query; the others are run again."""
    fn = Scripted.create(script="isolated")
    with serve({"f": fn}, bind=HERE, limits=Limits(coalesce_window_s=0.2), warm=False) as server:
        client = Client(server.address)
        with ThreadPoolExecutor(4) as clients:
            first = clients.submit(client.call, "f", ["wait"])
            assert fn.behaviour.started.acquire(timeout=10)
            good = [clients.submit(Client(server.address).call, "f", [text]) for text in ("one", "three")]
            bad = clients.submit(Client(server.address).call, "f", ["raise"])
            over = time.monotonic() + 10
            while server._workers[0].batcher.waiting < 3:
                assert time.monotonic() < over
                time.sleep(0.001)
            fn.behaviour.go.set()
            assert first.result(10).to_pylist() == [vector_of("wait")]
            assert [each.result(10).to_pylist() for each in good] == [[vector_of("one")], [vector_of("three")]]
            with pytest.raises(Exception, match="f: the function failed with ValueError"):
                bad.result(10)


def test_no_client_reads_anothers_input() -> None:
    """An outage that quotes one input of a shared run reaches all who shared it, without the quotation."""
    fn = Scripted.create(script="shared outage")
    limits = Limits(coalesce_window_s=0.2)
    with serve({"f": fn}, bind=HERE, limits=limits, warm=False) as server, ThreadPoolExecutor(3) as clients:
        first = clients.submit(Client(server.address).call, "f", ["wait"])
        assert fn.behaviour.started.acquire(timeout=10)
        texts = ["call of a long private input", "an innocent neighbour"]
        calls = [clients.submit(Client(server.address).call, "f", [text]) for text in texts]
        over = time.monotonic() + 10
        while server._workers[0].batcher.waiting < 2:
            assert time.monotonic() < over
            time.sleep(0.001)
        fn.behaviour.go.set()
        assert first.result(10).to_pylist() == [vector_of("wait")]
        for call in calls:
            with pytest.raises(Exception, match=r"f: the service at <path> said no to '...'"):
                call.result(10)


def test_tables_and_queries_at_once() -> None:
    """Large and small calls, equal and different texts, bad rows among them, from many threads: every row is right."""
    fn = Scripted.create(script="mixed")
    limits = Limits(chunk_rows=50, cache_rows=300, coalesce_rows=20, coalesce_window_s=0.001, queue=64)

    def ask(k: int) -> None:
        client = Client(server.address)
        for turn in range(6):
            rows = 1 if k % 2 else 400
            texts = [None if n % 13 == 5 else f"text {(k * turn + n) % 500}" for n in range(rows)]
            texts[0] = "bad" if turn == 3 else texts[0]
            wanted = [None if text == "bad" else vector for text, vector in zip(texts, expected(texts), strict=True)]
            assert client.call("f", texts).to_pylist() == wanted

    with serve({"f": fn}, bind=HERE, limits=limits) as server, ThreadPoolExecutor(12) as clients:
        list(clients.map(ask, range(12)))
        assert server.counts()["failed"] == server.counts()["refused"] == 0


def test_a_slow_function_is_given_smaller_pieces() -> None:
    """Others wait for a piece of it, and a cancelled query stops after one: it takes about a second."""

    class Slow(Lengths):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.01 * len(texts))
            return super().generate_embeddings(texts)

    functions = {"slow": Slow.create(), "quick": Lengths.create()}
    with serve(functions, bind=HERE, warm=False) as server:
        workers = {type(worker.function).__name__: worker for worker in server._workers}
        assert workers["Slow"].chunk_rows == workers["Lengths"].chunk_rows == 256
        for name in functions:
            Client(server.address).call(name, [f"text {k}" for k in range(30)])
        assert workers["Slow"].chunk_rows <= 100
        assert workers["Lengths"].chunk_rows > 256


def test_the_engine_costs_nothing_until_it_serves(run_python: Any) -> None:
    """Importing the module loads neither Flight nor databend-udf; a missing extra is asked for by name."""
    run_python(
        "import sys, embedreg.engines.databend as d\n"
        "assert not {'pyarrow.flight', 'databend_udf', 'prometheus_client'} & sys.modules.keys()\n"
        "sys.modules['databend_udf'] = None\n"
        "import embedreg, pytest\n"
        "with pytest.raises(embedreg.EmbedregError, match='databend'):\n"
        "    d.serve({'f': embedreg.get('hashing').create()})\n"
    )


WAITING = """
import embedreg, os, signal, threading
from embedreg.engines.databend import serve

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
with serve({"ai_embed": embedreg.get("hashing").create(dim=8)}, bind="127.0.0.1:0") as server:
    # to another thread than the one that waits, as the kernel may choose to
    threading.Timer(0.5, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
    try:
        server.wait()
    except KeyboardInterrupt:
        print("interrupted", server.wait(0.01))
print(server.wait(0))
"""


def test_ctrl_c_ends_the_wait_whichever_thread_it_comes_to(run_python: Callable[..., str]) -> None:
    """A script that waits for its server can be stopped; the server is up until then, and down behind its block."""
    assert run_python(WAITING).split() == ["interrupted", "False", "True"]
