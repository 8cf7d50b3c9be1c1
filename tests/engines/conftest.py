"""An embedded LanceDB database, and new processes that know the functions of these tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import pytest

HERE = Path(__file__).resolve().parent


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
