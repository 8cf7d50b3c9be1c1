"""An embedded LanceDB database, a Ray cluster, and new processes that know the functions of these tests."""

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import pytest

HERE = Path(__file__).resolve().parent

RAY_WARNS = [
    # Ray starts its processes by a fork with an exec behind it; lance warns of every fork.
    pytest.mark.filterwarnings("ignore:lance is not fork-safe:UserWarning"),
    # Ray's own settings, which it sets by itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]
"""For the modules that use the cluster: warnings that nobody but Ray could avoid."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the database."""
    return tmp_path / "db"


@pytest.fixture
def db(folder: Path) -> Any:
    """A database on disk."""
    return lancedb.connect(folder)


@pytest.fixture
def new_process(run_python: Callable[..., str], folder: Path) -> Callable[..., str]:
    """Run code in a new process: `folder` is the database's, and `lancedb_functions` can be imported."""

    def run(code: str, *args: object, **kwargs: Any) -> str:
        prologue = f"import sys; sys.path.insert(0, {str(HERE)!r}); folder = {str(folder)!r}\n"
        return run_python(prologue + code, *args, **kwargs)

    return run


class Cluster:
    """A Ray cluster of this machine.

    Attributes:
        address: of it, for other processes.
        key: the secret that its workers have in their environment, as `ray_functions.KEY`; this process has it too.
        folder: where it keeps its logs.
    """

    key = "planted-5ecr3t-of-the-workers"

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster that this process is connected to; four CPUs in name, so that reading finds room beside actors."""
    import ray
    import ray.data

    from tests.engines.ray_functions import KEY

    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # Ray's is 15: beside other tests its workers would hardly get on
        patch.setenv(KEY, Cluster.key)
        patch.setattr(sys, "path", [str(HERE), *sys.path])  # the workers get the driver's
        info = ray.init(
            address="local",
            num_cpus=4,
            num_gpus=0,
            object_store_memory=200 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            yield Cluster(info.address_info["address"], folder)
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
