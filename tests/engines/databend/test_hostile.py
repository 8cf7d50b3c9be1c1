"""Clients that mean no good: messages that would become gigabytes, calls that say nothing, connections by the hundred.

The server is a process of its own, with a real model, and its memory is read from outside.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.common import minilm_folder
from embedreg.engines.databend import Limits, serve
from tests.engines.databend_flight import Client
from tests.engines.databend_hostile import KINDS, MOST, RawClient, column, descriptor, flight_data, stream, texts
from tests.fakes import Lengths

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")

MIB = 2**20
ALLOWED = 512 * MIB  # above the model
UNKNOWN = ("ListFlights", "DoGet", "DoPut", "DoAction", "Handshake", "GetSchema", "ListActions", "PollFlightInfo", "No")


class Process:
    """A server process, seen from outside."""

    def __init__(self, folder: Path) -> None:
        functions = ("-f", "hashing", "--set", "dim=384", "--as", "f")
        functions += ("-f", "sentence-transformers", "--set", f"name={minilm_folder()}", "--as", "m")
        line = [sys.executable, "-m", "embedreg", "serve", "databend", *functions, "--json"]
        line += ["--bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0"]
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder, env=env
        )
        assert self.process.stdout is not None
        printed = ""
        for each in self.process.stdout:
            printed += each
            if each == "}\n":
                break
        found = json.loads(printed)
        self.port, self.metrics_port, self.address = found["port"], found["metrics_port"], found["address"]
        self.client = Client(self.address)
        self.raw = RawClient(self.port)
        for name in ("f", "m"):
            self.client.call(name, ["a first call", "of two rows"])
        self.base = self.status("VmRSS")

    def status(self, key: str) -> int:
        """Return a number of /proc/PID/status, sizes in bytes."""
        [line] = [line for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if key in line]
        number, *unit = line.split()[1:]
        return int(number) * (1024 if unit else 1)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Check that a block costs no more memory than is allowed, and that the server still answers."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # the highest RSS is counted anew
        yield
        assert self.process.poll() is None
        assert self.status("VmHWM") - self.base < ALLOWED
        assert self.client.call("f", ["still there"]).null_count == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """One server for all, so that what is left of one attack counts in the next."""
    running = Process(tmp_path_factory.mktemp("server"))
    yield running
    running.raw.close()
    running.process.terminate()
    assert running.process.wait(30) == 0
    assert running.process.stdout is not None
    running.process.stdout.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_4_mib_never_takes_512(server: Process, kind: str) -> None:
    """It is refused in one line, or answered; the memory stays, and the next call is answered."""
    parts = list(KINDS[kind]())
    assert max(map(len, parts)) <= MOST
    with server.bounded():
        answers, error = server.raw.send(parts)
    assert answers > 0 or error
    assert "\n" not in error
    assert "Traceback" not in error
    assert ".py" not in error


@pytest.mark.parametrize("kind", ["views under the bound", "dictionary of many rows", "zstd views", "a long name"])
def test_sixteen_clients_at_once(server: Process, kind: str) -> None:
    """What each may do, all together may not."""
    parts, clients = list(KINDS[kind]()), [RawClient(server.port) for _ in range(16)]
    with server.bounded(), ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda client: client.send(parts), clients))
    for client in clients:
        client.close()


def test_forty_clients_that_read_no_answer(server: Process) -> None:
    """Their vectors wait in bounded memory, and others are answered meanwhile."""
    parts = stream("f", column(pa.concat_arrays([texts(1000, 36)] * 60)))
    with server.bounded(), ExitStack() as stack:
        for _ in range(40):
            client = RawClient(server.port)
            stack.callback(client.close)
            held = client.hold(parts, read=False)
            stack.callback(held.let_go)
        time.sleep(1)
        assert server.client.call("f", ["among them"], timeout_s=30).null_count == 0


def test_what_grpc_itself_would_decompress_is_refused(server: Process) -> None:
    """200 MB of one letter are 200 KB on their way: gRPC compares the size with its limit before it opens them."""
    with server.bounded():
        _, error = server.raw.send(stream("f", column(pa.array(["g" * 200_000_000]))), squeeze=True)
    assert "gzip" in error


def test_a_text_of_400_mb_is_refused_by_its_size(server: Process) -> None:
    """Before anything looks at it, or waits for it; others are answered meanwhile."""
    with server.bounded(), ThreadPoolExecutor(1) as pool:
        sent = pool.submit(server.raw.send, stream("f", column(pa.array(["w" * 400_000_000]))), timeout_s=60)
        while not sent.done():
            assert server.client.call("f", ["meanwhile"], timeout_s=10).null_count == 0
        assert "larger than max" in sent.result()[1]


@pytest.mark.parametrize("method", UNKNOWN)
def test_other_methods_are_answered_in_one_line(server: Process, method: str) -> None:
    """Whatever is sent with them: without a traceback, and without being read."""
    with server.bounded():
        answers, error = server.raw.send([b"\x0a" * 4_000_000], method=method)
    assert (answers, error) == (0, "UNIMPLEMENTED: this server answers DoExchange and GetFlightInfo only")


SAID = {
    "nothing": [],
    "a name": [flight_data(path=descriptor("f"))],
    "a schema": stream("f", column(pa.array(["x"])))[:1],
    "a batch": stream("f", column(pa.array(["x"]))),
    "a dictionary": stream("f", column(pa.array(["x" * 100_000]).dictionary_encode()))[:2],
}


@pytest.mark.parametrize("said", SAID)
def test_two_hundred_silent_calls_block_nobody(server: Process, said: str) -> None:
    """They cost no thread each, and a call among them is answered."""
    with server.bounded(), ExitStack() as stack:
        before = server.status("Threads")
        clients = [RawClient(server.port) for _ in range(20)]
        for client in clients:
            stack.callback(client.close)
        for n in range(200):
            stack.callback(clients[n % 20].hold(SAID[said]).let_go)
        began = time.monotonic()
        if said == "a batch":  # these were let in, and count as open calls: the server is full, and says so
            time.sleep(1)
        else:
            assert server.client.call("f", ["among them"], timeout_s=30).null_count == 0
            assert time.monotonic() - began < 20
            assert server.status("Threads") < before + 30
    deadline = time.monotonic() + 30
    while server.raw.send(stream("f", column(pa.array(["x"]))))[1]:
        assert time.monotonic() < deadline


def test_five_silent_clients_where_two_may_wait() -> None:
    """Each of the five ends with a line that gives the reason; the sixth is served, and the queue is free again."""
    limits = Limits(queue=2, call_deadline_s=20, stall_s=1)
    with serve({"f": Lengths.create()}, bind="127.0.0.1:0", limits=limits) as server:
        clients = [RawClient(server.port) for _ in range(5)]
        held = [client.hold(parts, read=False) for client, parts in zip(clients, SAID.values(), strict=True)]
        began = time.monotonic()
        assert Client(server.address).call("f", ["x"]).to_pylist() == [[1, 0, 1]]
        assert time.monotonic() - began < 1
        reasons = []
        for call in held:
            with pytest.raises(Exception, match="DEADLINE_EXCEEDED") as caught:
                list(call)
            reasons.append(caught.value.details())  # type: ignore[attr-defined]  # gRPC's errors have it
        assert reasons[0] == "the call: the client sent nothing for 1 s. Detail: TimedOut"
        assert set(reasons[1:]) == {"f: the client sent nothing for 1 s. Detail: TimedOut"}
        assert server.counts()["stalled"] == 5
        assert server._flight._admission.open_calls == 0
        for client in clients:
            client.close()


def test_a_call_that_drips_is_over_at_its_deadline() -> None:
    """A row now and then is progress, and no reason to stay for ever."""
    limits = Limits(call_deadline_s=1.5, stall_s=1)
    with serve({"f": Lengths.create()}, bind="127.0.0.1:0", limits=limits) as server:
        client = RawClient(server.port)
        first, batch = stream("f", column(pa.array(["drip"])))

        def dripping() -> Iterator[bytes]:
            yield first
            while True:
                time.sleep(0.3)
                yield batch

        answers, error = client.send(dripping())
        assert "f: the call took longer than the 1.5 s that the server allows" in error
        assert answers > 2
        client.close()


def test_a_client_that_takes_nothing_is_ended() -> None:
    """Its call ends, and what was computed for it is given back."""
    limits = Limits(stall_s=1, chunk_rows=65_536)
    with serve({"f": Lengths.create()}, bind="127.0.0.1:0", limits=limits) as server:
        client = RawClient(server.port)
        held = client.hold(stream("f", column(texts(100_000, 20))), read=False)
        deadline = time.monotonic() + 15
        while server.counts()["stalled"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)
        memory = server._flight._memory
        assert [each._taken for each in (memory.reads, memory.decoding, memory.kept, memory.vectors)] == [0] * 4
        held.let_go()
        client.close()


def test_one_address_has_so_many_calls() -> None:
    """Who serves several engines keeps one of them from taking all."""
    limits = Limits(calls_per_client=3)
    with serve({"f": Lengths.create()}, bind="127.0.0.1:0", limits=limits) as server:
        client = RawClient(server.port)
        held = [client.hold([]) for _ in range(3)]
        deadline = time.monotonic() + 10
        while len(server._flight._calls) < 3:
            assert time.monotonic() < deadline
        error = client.send(stream("f", column(pa.array(["x"]))))[1]
        assert error.startswith("UNAVAILABLE: the server is busy with 3 calls of this client")
        for call in held:
            call.let_go()
        client.close()


def test_three_hundred_silent_connections_to_the_metrics(server: Process) -> None:
    """They cost no thread, do not keep a probe from its answer, and are closed after some seconds."""
    before, silent = server.status("Threads"), []
    with server.bounded(), ExitStack() as stack:
        for n in range(300):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.metrics_port)))
            connection.sendall([b"", b"GET ", b"GET /live HTTP/1.1\r\n", b"\x16\x03\x01"][n % 4])
            silent.append(connection)
        for page in ("/live", "/ready", "/metrics"):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}{page}", timeout=5) as answer:
                assert answer.status == 200
        assert server.status("Threads") <= before + 1
        silent[-1].settimeout(10)
        with suppress(ConnectionResetError):
            assert silent[-1].recv(1) == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /live HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD /ready HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"POST /live HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"\r\n\r\n", b"405"),
        (b"GET /live?" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", b""),
    ],
)
def test_the_metrics_port_answers_what_it_can(server: Process, request_: bytes, status: bytes) -> None:
    """A request that is too long, or none, is closed."""
    with socket.create_connection(("127.0.0.1", server.metrics_port), timeout=10) as connection:
        connection.sendall(request_)
        got: Any = b""
        try:
            while more := connection.recv(4096):
                got += more
        except ConnectionResetError:
            pass
    assert got[9:12] == status
