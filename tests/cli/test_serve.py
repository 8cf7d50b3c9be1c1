"""`embedreg serve databend` as a process of its own: what it prints, who may call it, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest

import embedreg
from tests.engines.databend_engine import Engine
from tests.engines.databend_flight import Client, certificate

needs_engine = pytest.mark.skipif(find_spec("databend") is None, reason="the engine has no wheel for this machine")

HASHING = ("-f", "hashing", "--set", "dim=8")
TEXTS = ["water the tomatoes", None, "pay the electricity bill"]

# Several steps in one function; the text "wait" waits until somebody writes to a pipe.
STEPS = '''
import os
import embedreg

@embedreg.register("steps")
class Steps(embedreg.TextEmbeddingFunction):
    """Cleans a text, embeds it, projects it to two axes."""

    def ndims(self):
        return 2

    def generate_embeddings(self, texts):
        cleaned = [text.strip().lower() for text in texts]
        if "wait" in cleaned:
            open("begun", "w").close()
            with open(os.environ["PIPE"]) as pipe:
                pipe.read()
        wide = embedreg.get("hashing").create(dim=64).compute_source_embeddings(cleaned)
        return [[vector[:32].sum() + 2, vector[32:].sum()] for vector in wide]
'''


class Process:
    """A running `embedreg serve databend`.

    Attributes:
        found: what it printed as JSON.
    """

    def __init__(self, folder: Path, *args: object, **env: str) -> None:
        line = [sys.executable, "-m", "embedreg", "serve", "databend", "--bind", "127.0.0.1:0", "--json"]
        self.errors = (folder / "stderr.txt").open("w+")
        self.process = subprocess.Popen(
            [*line, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=folder,
            env={**os.environ, **env},
        )
        assert self.process.stdout is not None
        self.text = ""
        for printed in self.process.stdout:
            self.text += printed
            if printed == "}\n":
                break
        assert self.text, self.stderr()
        self.found: dict[str, Any] = json.loads(self.text)
        self.address: str = self.found["address"]

    def stderr(self) -> str:
        """What it said beside the answer."""
        self.errors.seek(0)
        return self.errors.read()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


Serve = Callable[..., Process]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server in an empty folder; it is ready when this returns, and killed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(*args: object, **env: str) -> Process:
            started = Process(tmp_path, *args, **env)
            stack.callback(started.errors.close)
            assert started.process.stdout is not None
            stack.callback(started.process.stdout.close)
            stack.callback(started.process.wait)
            stack.callback(started.process.kill)
            return started

        yield start


def call_for_ever(client: Client) -> None:
    """Call what is answered at once, until that is refused."""
    while True:
        client.call("builtin_echo", ["a"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_the_functions_and_exits_with_zero(serve: Serve, number: int) -> None:
    """The vectors are the function's own, nulls stay null, and SIGTERM or Ctrl-C is a clean end."""
    running = serve(*HASHING, "--as", "ai_embed", "-f", "hashing", "--set", "dim=4")
    assert [each["name"] for each in running.found["functions"]] == ["ai_embed", "ai_embed_4"]
    got = Client(running.address).call("ai_embed", TEXTS).to_pylist()
    wanted = embedreg.embed_column(embedreg.get("hashing").create(dim=8), TEXTS)
    assert got[1] is None
    np.testing.assert_array_equal(np.array([got[0], got[2]], np.float32), wanted.matrix[[0, 2]])
    assert running.stop(number) == 0
    assert "stopped after 1 calls with 3 rows" in running.stderr()


def test_a_signal_lets_the_calls_in_flight_finish(serve: Serve, tmp_path: Path) -> None:
    """SIGTERM in the middle of a call: new calls are refused, this one gets its rows, then the exit code is 0."""
    (tmp_path / "steps.py").write_text(STEPS)
    os.mkfifo(tmp_path / "pipe")
    running = serve("--import", "steps.py", "-f", "steps", "--as", "steps", PIPE="pipe")
    client, answers = Client(running.address), []
    caller = threading.Thread(target=lambda: answers.append(client.call("steps", ["wait", "other"])))
    caller.start()
    with (tmp_path / "pipe").open("w"):  # opens once the function reads it: the call is under way
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(flight.FlightUnavailableError, match="shutting down"):
            call_for_ever(client)
        assert running.process.poll() is None
        assert not answers
    caller.join(30)
    [answer] = answers
    assert len(answer) == 2
    assert answer.null_count == 0
    assert running.process.wait(30) == 0


def test_a_second_signal_does_not_wait(serve: Serve, tmp_path: Path) -> None:
    """What hangs can be ended without kill -9: the exit code is that of the signal."""
    (tmp_path / "steps.py").write_text(STEPS)
    os.mkfifo(tmp_path / "pipe")
    running = serve("--import", "steps.py", "-f", "steps", "--as", "steps", PIPE="pipe")
    client = Client(running.address)
    problems: list[Exception] = []

    def call() -> None:
        try:
            client.call("steps", ["wait"])
        except flight.FlightError as exc:
            problems.append(exc)

    caller = threading.Thread(target=call)
    caller.start()
    with (tmp_path / "pipe").open("w"):
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(flight.FlightUnavailableError):
            call_for_ever(client)
        assert running.stop(signal.SIGTERM) == 143
        caller.join(30)
    assert len(problems) == 1


SLOW = """
import time, embedreg

@embedreg.register("slow")
class Slow(embedreg.TextEmbeddingFunction):
    def ndims(self):
        return 2

    def generate_embeddings(self, texts):
        time.sleep(WAIT)
        return [[1.0, 2.0] for _ in texts]
"""


@pytest.mark.parametrize("wait", [0, 5])
def test_a_signal_at_the_first_response_is_a_clean_exit(tmp_path: Path, wait: int) -> None:
    """Whoever sees an answer may stop the process, also while a model is still being warmed up."""
    (tmp_path / "slow.py").write_text(SLOW.replace("WAIT", str(wait)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "embedreg", "serve", "databend", "--bind", f"127.0.0.1:{port}"]
    line += ["--import", "slow.py", "-f", "slow", "--as", "f"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        client = Client(f"http://127.0.0.1:{port}")
        while True:
            assert running.poll() is None, running.communicate()
            try:
                client.call("builtin_echo", ["a"], timeout_s=10)
                break
            except flight.FlightError:
                time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, err = running.communicate(timeout=60)
        assert running.returncode == 0, err
    assert ("stopped before it was ready" if wait else "stopped") in err


def test_calls_that_a_shutdown_ended_count_as_failed(serve: Serve, tmp_path: Path) -> None:
    """The last line reports how many queries got no answer."""
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "serve.toml").write_text("[limits]\ndrain_s = 0.2\n")
    os.mkfifo(tmp_path / "pipe")
    running = serve("--config", "serve.toml", "--import", "steps.py", "-f", "steps", "--as", "steps", PIPE="pipe")
    problems: list[Exception] = []

    def call() -> None:
        try:
            Client(running.address).call("steps", ["wait"])
        except flight.FlightError as exc:
            problems.append(exc)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    with (tmp_path / "pipe").open("w"):
        Client(running.address).call("builtin_echo", ["a"])
        time.sleep(1)  # for the other two, which wait for the first
        assert running.stop() == 0
    for caller in callers:
        caller.join(30)
    assert len(problems) == 3
    assert all("steps: the server is shutting down" in str(problem) for problem in problems)
    assert "stopped after 4 calls with 3 rows, 3 of them failed" in running.stderr()


def test_calls_without_the_token_are_rejected(serve: Serve) -> None:
    """The token comes from the environment, and is never printed."""
    running = serve(*HASHING, "--auth-token-env", "TOKEN", "--databend-version", "current", TOKEN="planted-token-123")
    for wrong in (None, "planted", ""):
        with pytest.raises(flight.FlightUnauthenticatedError):
            Client(running.address, wrong).call("ai_embed_8", ["a"])
    assert Client(running.address, "planted-token-123").schema("ai_embed_8").field(1).type == pa.list_(pa.float32(), 8)
    assert running.stop() == 0
    assert "planted" not in running.text + running.stderr()
    assert "'Bearer <the token>'" in running.found["ddl"]


def test_tls_is_tls(serve: Serve, tmp_path: Path) -> None:
    """With a certificate the address is https; a plaintext client gets nothing, one that trusts it is served."""
    cert, key = certificate(tmp_path)
    running = serve(*HASHING, "--tls-cert", cert, "--tls-key", key)
    assert running.address.startswith("https://")
    assert running.address in running.found["server_config"]
    with pytest.raises(flight.FlightError):
        Client(running.address.replace("https://", "http://")).call("ai_embed_8", ["a"], timeout_s=10)
    assert Client(running.address, root=cert.read_bytes()).call("ai_embed_8", ["a"]).null_count == 0


def test_a_file_may_hold_all_settings(serve: Serve, tmp_path: Path, texts: Path, cli: Callable) -> None:
    """Several functions, one of them from data beside the file, a result type, limits, metrics and variables."""
    (tmp_path / "conf").mkdir()
    cli("embed", texts, "conf/embedded.parquet", "--function", "hashing", "--set", "dim=6")
    (tmp_path / "conf/serve.toml").write_text(
        'metrics_bind = "127.0.0.1:0"\n'
        'auth_token_env = "TOKEN"\n'
        'address = "https://embed.example.com:8815"\n'
        "[limits]\nconcurrency = 2\nqueue = 4\ncall_deadline_s = 20\nchunk_rows = 2\ncache_rows = 0\n"
        '[env]\nkey = "TOKEN"\n'
        '[[function]]\nname = "hashing"\nas = "plain"\nset = { dim = 4, word_ngrams = [1, 1] }\n'
        '[[function]]\nlike = "embedded.parquet"\nreturns = "array"\n'
        '[[function]]\nname = "openai"\nas = "remote"\n'
        'set = { name = "text-embedding-3-small", api_key = "$var:key" }\n'
    )
    args = ("--config", "conf/serve.toml", "-f", "hashing", "--set", "dim=3", "--databend-version", "current")
    running = serve(*args, TOKEN="planted-token-123")
    assert {each["name"]: (each["ndims"], each["returns"]) for each in running.found["functions"]} == {
        "plain": (4, "vector"),
        "ai_embed_6": (6, "array"),
        "remote": (1536, "vector"),
        "ai_embed_3": (3, "vector"),
    }
    assert running.found["ddl"].count("ADDRESS = 'https://embed.example.com:8815'") == 4
    answer = Client(f"http://127.0.0.1:{running.found['port']}", "planted-token-123").call("ai_embed_6", TEXTS)
    assert [len(chunk) for chunk in answer.chunks] == [2, 1]
    with urllib.request.urlopen(f"http://127.0.0.1:{running.found['metrics_port']}/metrics", timeout=30) as page:
        assert 'embedreg_databend_rows_total{function="ai_embed_6"} 3.0' in page.read().decode()
    assert running.stop() == 0
    assert "planted" not in running.text + running.stderr()


GOOD = '[[function]]\nname = "hashing"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bind = ", "is not valid TOML"),
        ("\xff".encode("latin-1").decode("latin-1"), "is not valid TOML"),
        ("[function]\nname = 'hashing'", "function is not a list of tables"),
        ("function = ['hashing']", "write [[function]]"),
        ("[[function]]\nas = 'x'", "either name or like"),
        ("[[function]]\nname = 'hashing'\nlike = 'x.parquet'", "either name or like"),
        ("[[function]]\nlike = 'x.parquet'\nset = {dim = 3}", "set cannot be combined with like"),
        ("[[function]]\nname = 'hashing'\nsett = {}", "did you mean 'set'"),
        ("[[function]]\nname = 'hashing'\ninput = 'sound'", "'text' or 'image'"),
        ("[[function]]\nname = 'hashing'\nset = {dimm = 3}", "did you mean"),
        ("[[function]]\nname = 'hashin'", "did you mean 'hashing'"),
        ("[[function]]\nname = 'openai'\nset = {api_key = 'planted-token-123'}", "$var:"),
        (GOOD + "[limits]\nqueu = 3", "did you mean 'queue'"),
        (GOOD + "[limits]\nqueue = -3", "limits.queue=-3"),
        (GOOD + "[limits]\ncall_deadline_s = 'long'", "call_deadline_s"),
        ("metricsbind = 'x'\n" + GOOD, "did you mean 'metrics_bind'"),
        ("warm = 'yes'\n" + GOOD, "warm is not true or false"),
        ("returns = 'list'\n" + GOOD, "'array' or 'vector'"),
        ("auth_token = 'planted-token-123'\n" + GOOD, "auth_token_env"),
        ("tls_cert = 'there_is_none.pem'\n" + GOOD, "its key"),
        ("tls_cert = 'none.pem'\ntls_key = 'none.key'\n" + GOOD, "cannot be read"),
        ("bind = '127.0.0.1'\n" + GOOD, "expected host:port"),
        ("on_error = 'drop'\n" + GOOD, "on_error"),
        ("address = 'here'\n" + GOOD, "write http://host:8815"),
        ("databend_version = '2'\n" + GOOD, "unknown Databend version '2'"),
        ("auth_token_env = 'NOT_SET_HERE'\n" + GOOD, "export NOT_SET_HERE=..."),
        (GOOD + GOOD, "is used twice"),
        ("[env]\nkey = 3\n" + GOOD, "env.key is not a text"),
        ("[env]\nkey = 'sk-planted-token-123'\n" + GOOD, "env.key is not the name of an environment variable"),
        ("[env]\nkey = 'plantedtoken123'\n" + GOOD, "env.key is not the name of an environment variable"),
        ("[env]\nkey = 'AKIA7PLANTED3EXAMPLE'\n" + GOOD, "env.key is not the name of an environment variable"),
        ("[env]\nkey = ''\n" + GOOD, "env.key is not the name of an environment variable"),
        ("[env]\nkey = 'NOT_SET_HERE'\n" + GOOD, "export NOT_SET_HERE=..."),
        ("auth_token_env = 'planted-token-123'\n" + GOOD, "is not the name of an environment variable"),
        ("address = 'http://user:planted@host:8815'\n" + GOOD, "credentials"),
        ("api_key = 'planted-token-123'\n" + GOOD, "a secret must not be written in a file"),
        ("password = 'planted-token-123'\n" + GOOD, "a secret must not be written in a file"),
        (GOOD + "api_key = 'planted-token-123'\n", "a secret must not be written in a file"),
        ("[[function]]\nlike = 's3://bucket/x?secret_key=planted'\n", "credentials"),
        ("", "--config FILE.toml is needed"),
    ],
)
def test_an_invalid_file_is_refused(cli: Callable, tmp_path: Path, text: str, problem: str) -> None:
    """With its name, what is wrong and what would be right, before anything is served; a secret is not repeated."""
    (tmp_path / "serve.toml").write_text(text, encoding="latin-1")
    err = cli("serve", "databend", "--config", "serve.toml", expect=1 if text else 2).err
    assert problem in " ".join(err.split())
    assert "planted" not in err.lower()
    assert "Traceback" not in err


def test_a_file_that_is_not_there(cli: Callable) -> None:
    """Its path, and why."""
    assert "gone.toml cannot be read" in cli("serve", "databend", "--config", "gone.toml", expect=1).err


def test_other_hosts_without_a_token_are_refused(cli: Callable) -> None:
    """Other machines may connect with a token, or with --insecure; the hint is for the command line."""
    err = cli("serve", "databend", *HASHING, "--bind", "0.0.0.0:0", expect=1).err
    assert "accepts calls from other machines" in err
    assert "--auth-token-env EMBEDREG_TOKEN, or --insecure" in err


def test_a_port_that_is_taken_is_refused(cli: Callable, serve: Serve) -> None:
    """Two servers on one port would each get some of the calls."""
    port = serve(*HASHING).found["port"]
    assert "cannot be listened on" in cli("serve", "databend", *HASHING, "--bind", f"127.0.0.1:{port}", expect=1).err


@needs_engine
def test_what_is_printed_is_accepted_by_the_engine_as_printed(
    serve: Serve, cli: Callable, texts: Path, tmp_path: Path
) -> None:
    """Data declares a function; its SQL is pasted, and the nearest row is found by the stored vectors and without."""
    cli("embed", texts, "embedded.parquet", "--function", "hashing", "--set", "dim=64")
    (tmp_path / "steps.py").write_text(STEPS)
    running = serve("--like", "embedded.parquet", "--import", "steps.py", "-f", "steps", "--as", 'it\'s "odd"')
    printed = cli("ddl", "databend", "--like", "embedded.parquet", "--address", running.address).out
    with Engine(tmp_path / "engine", running.address) as engine:
        for statement in running.found["ddl"].split("\n\n"):
            engine.sql(statement)
        [row] = engine.rows('SELECT length("it\'s ""odd"""(\' SOME text \')) AS n')
        assert row["n"] == 2
        answers = []
        for statement in printed.strip().removesuffix(";").split(";\n"):
            if "articles_embedded (" in statement:
                engine.sql("INSERT INTO articles VALUES (1, 'cooking'), (2, 'learn a machine'), (3, NULL), (4, ' ')")
            answers.append(engine.rows(statement))
    for found in answers[-2:]:
        assert [row["id"] for row in found][:2] == [2, 1]
        assert [row["distance"] is None for row in found] == [False, False, True, True]
