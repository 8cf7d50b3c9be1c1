"""Downloads from a hub that answers, refuses, talks nonsense, breaks off, or is killed in the middle of."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from embedreg.runtime.models import hub as ours
from tests.hub_server import Hub, hub

FILES: dict[str, str] = {
    "modules.json": json.dumps(
        [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    ),
    "config.json": json.dumps({"hidden_size": 4}),
    "config_sentence_transformers.json": "{}",
    "sentence_bert_config.json": "{}",
    "tokenizer.json": "{}",
    "model.safetensors": "weights " * 100_000,
}

FETCH = """
import json, sys, time
from embedreg.runtime import progress
from embedreg.runtime.models import hub, weights
hub.CONNECT_TIMEOUT_S = 2.0
hub.LOOK_EVERY_S = 0.01
stages = []
try:
    with progress.watch_stages(stages.append):
        found = weights.resolve_model("me/small", allow_local=False)
    told = {"origin": found.origin, "path": str(found.path)}
except weights.ModelNotFoundError as exc:
    told = {"error": exc.message, "hint": exc.hint}
print(json.dumps(told | {"stages": [[each.what, each.done, each.total, each.over] for each in stages]}))
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one model, whose weights are 800 kB."""
    folder = tmp_path / "hub" / "me" / "small"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    with hub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def environment(server: Hub, tmp_path: Path) -> dict[str, str]:
    """What leads the hub's client to that hub, with an empty cache and ten seconds of patience at most."""
    return {
        "HF_ENDPOINT": server.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "10",
        "SENTENCE_TRANSFORMERS_HOME": str(tmp_path / "cache"),
    }


@pytest.fixture
def fetch(environment: dict[str, str], run_python: Callable[..., str]) -> Callable[..., Any]:
    """Look for the model in a process of its own."""
    return lambda **more: json.loads(run_python(FETCH, env={**environment, **more}))


def assert_whole(told: dict[str, Any]) -> None:
    """Every file of the model is there, byte for byte."""
    for name, content in FILES.items():
        assert (Path(told["path"]) / name).read_text() == content


def test_a_download_tells_how_far_it_is(fetch: Callable[..., Any]) -> None:
    """Its stage begins, moves up to all bytes of the files that are wanted, and ends; a second look has none."""
    told = fetch()
    assert_whole(told)
    total = sum(map(len, FILES.values()))
    what, done, of, over = zip(*told["stages"], strict=True)
    assert set(what) == {"downloading me/small"}
    assert (done[0], of[0], over[0]) == (0, None, False)
    assert list(done) == sorted(done)
    assert told["stages"][-2:] == [
        ["downloading me/small", total, total, False],
        ["downloading me/small", total, total, True],
    ]
    assert fetch() | {"origin": "hub"} == told | {"stages": []}


def test_a_connection_that_breaks_off_is_taken_up_again(server: Hub, fetch: Callable[..., Any]) -> None:
    """A file that is cut off in the middle is fetched to its end, and is whole."""
    server.cuts = 1
    assert_whole(fetch())
    assert server.cuts == 0


@pytest.mark.parametrize(
    ("status", "body", "error", "hint"),
    [
        (401, b"{}", "the hub refused it (HTTP 401)", "hf auth login"),
        (403, b"{}", "the hub refused it (HTTP 403)", "hf auth login"),
        (503, b"{}", "the hub failed (HTTP 503)", "try again later"),
        (429, b"{}", "the hub failed (HTTP 429)", "try again later"),
        (200, b"<html>please log in</html>", "the response is not from the hub", "HF_ENDPOINT"),
    ],
)
def test_a_refusal_says_what_it_is(
    server: Hub, fetch: Callable[..., Any], status: int, body: bytes, error: str, hint: str
) -> None:
    """Answers of a hub, or of a proxy before it, are distinguished, and each has its own hint."""
    server.answer = (status, body)
    told = fetch()
    assert told["error"] == f"the model 'me/small' was not found locally, and {error}."
    assert hint in told["hint"]


def test_a_download_that_was_killed_leaves_nothing_broken(
    server: Hub, environment: dict[str, str], fetch: Callable[..., Any]
) -> None:
    """Killed with a part of the weights here, the model is not whole offline, and the next download completes it."""
    server.held = threading.Event()
    process = subprocess.Popen([sys.executable, "-c", FETCH], env={**os.environ, **environment})
    try:
        assert server.stopped.wait(60)
    finally:
        process.kill()
        process.wait()
    server.held.set()
    server.held = None
    offline = fetch(HF_HUB_OFFLINE="1")
    assert "was not found locally, and the hub can't be reached (HF_HUB_OFFLINE is set)" in offline["error"]
    told = fetch()
    assert told["origin"] == "hub"
    assert_whole(told)


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere, and Windows has other rights"
)
def test_a_cache_that_cannot_be_written_is_named(fetch: Callable[..., Any], tmp_path: Path) -> None:
    """A folder without the right to write is not blamed on the network."""
    (tmp_path / "cache").mkdir(mode=0o500)
    assert "cannot be written here" in fetch()["error"]


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (OSError(28, "No space left on device"), "cannot be written here (No space left on device)"),
        (ConnectionRefusedError(111, "refused"), "can't be reached (ConnectionRefusedError)"),
        (TimeoutError(), "can't be reached (TimeoutError)"),
    ],
)
def test_a_full_disk_is_not_called_the_hubs_fault(failure: OSError, why: str) -> None:
    """The same family of errors comes from disks and from sockets: the number distinguishes them."""
    assert ours._is_network(failure)
    assert why in ours._refusal(failure).why
