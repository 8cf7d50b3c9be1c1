"""The call paths in docs/architecture.md are those that calls take, and no folder is met twice on one.

A path is the stack at the moment when the function's batch reaches the runtime. Decorators are not shown: redaction
(`security/redaction.py`) and retries (`support/retry.py`) are wrapped around each contract method.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.pydantic import LanceModel

import embedreg
from embedreg.cli import main
from embedreg.engines.databend import serve
from embedreg.runtime.local import text
from tests.engines.databend_flight import Client

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "embedreg"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
LEAVES = {  # where texts become vectors
    "embed_texts": ("runtime/text/execute.py", "embed_texts"),
    "alone": ("runtime/hardware/workers.py", "alone"),
}
# Decorators, and the writer of a file, which pulls the batches that it writes.
WRAPPERS = {"security/redaction.py", "support/retry.py", "support/atomic.py"}


def listed() -> dict[str, list[tuple[str, str]]]:
    """Return the paths on the page: entry -> (file, function) from the top down."""
    block = PAGE[PAGE.index("## The path of a call") :]
    found: dict[str, list[tuple[str, str]]] = {}
    for line in block[block.index("```text\n") + 8 :].partition("```")[0].splitlines():
        if line and not line.startswith(" "):
            steps = found[line.strip()] = []
        elif line.strip():
            file, names = line.split(maxsplit=1)
            steps += [(file, name) for name in names.split(" > ")]
    return found


class Recorder:
    """Keeps the stack when texts first reach the runtime, in whatever thread; that of the probe does not count."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []

    def wrap(self, leaf: tuple[str, str], call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that records who called it."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            if not self.steps:
                steps = [*self._callers(sys._getframe(1)), leaf]
                self.steps = [] if any(name == "probe_vector" for _, name in steps) else steps
            return call(*args, **kwargs)

        return recorded

    @staticmethod
    def _callers(frame: FrameType | None) -> list[tuple[str, str]]:
        """Return this package's functions on the stack, from the top down, without wrappers and generators."""
        found = []
        while frame is not None:
            file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
            if file.is_relative_to(PACKAGE) and not name.startswith("<"):
                found.append((str(file.relative_to(PACKAGE)), name))
            frame = frame.f_back
        return [step for step in reversed(found) if step[0] not in WRAPPERS]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Record where the runtime is called from: a batch of texts, or a query in a thread of its own."""
    recorder = Recorder()
    for name, leaf in LEAVES.items():
        owner: Any = text if hasattr(text, name) else text.workers
        monkeypatch.setattr(owner, name, recorder.wrap(leaf, getattr(owner, name)))
    return recorder


@pytest.fixture
def fn() -> embedreg.EmbeddingFunction:
    """MiniLM, loaded and compared with itself, so that nothing but the call itself is on the stack."""
    function = embedreg.get("sentence-transformers").create(name=MODEL, device="cpu")
    embedreg.embed_table(pa.table({"text": ["warm", "warmer"]}), function.bind("text", "vector"))
    embedreg.embed_query(function, "warm")
    return function


TEXTS = ["first text of a path", "second text of a path"]


def embed_table(fn: Any, tmp_path: Path) -> Callable[[], Any]:
    """A table in memory."""
    return lambda: embedreg.embed_table(pa.table({"text": TEXTS}), fn.bind("text", "vector"))


def query(fn: Any, tmp_path: Path) -> Callable[[], Any]:
    """One query."""
    return lambda: embedreg.embed_query(fn, "a query of a path")


def add(fn: Any, tmp_path: Path) -> Callable[[], Any]:
    """Rows that lancedb embeds."""

    class Row(LanceModel):
        text: str = fn.SourceField()
        vector: embedreg.Vector(384) = fn.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path / "db").create_table("rows", schema=Row)
    return lambda: table.add([{"text": text} for text in TEXTS])


def command(fn: Any, tmp_path: Path) -> Callable[[], Any]:
    """The command line."""
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    arguments = ["embed", tmp_path / "in.parquet", tmp_path / "out.parquet", "--function", "sentence-transformers"]
    arguments += ["--set", f"name={MODEL}", "--set", "device=cpu", "--source", "text"]
    return lambda: main([*map(str, arguments)])


def sql(fn: Any, tmp_path: Path) -> Callable[[], Any]:
    """A call as Databend makes it."""

    def call() -> None:
        with serve({"ai_embed": fn}, bind="127.0.0.1:0", warm=False) as server:
            assert len(Client(server.address).call("ai_embed", TEXTS)) == len(TEXTS)

    return call


ENTRIES = {
    "embedreg.embed_table(table, declaration)": embed_table,
    "table.add(rows), in LanceDB": add,
    "embedreg embed SRC DST": command,
    "SELECT ai_embed(text), in Databend": sql,
    "embedreg.embed_query(fn, text)": query,
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_call_passes_through_what_the_page_lists(
    entry: str, fn: embedreg.EmbeddingFunction, recorded: Recorder, tmp_path: Path
) -> None:
    """The functions on the stack are those of the page, in its order; and no folder is met twice."""
    call = ENTRIES[entry](fn, tmp_path)
    call()
    path = recorded.steps
    assert path == listed()[entry]
    folders = [folder for folder, _ in itertools.groupby(str(Path(file).parent) for file, _ in path)]
    assert len(folders) == len({*folders})


def test_the_page_lists_each_entry() -> None:
    """No path on the page is left without a test."""
    assert listed().keys() == ENTRIES.keys()
    assert re.search(r"^runtime/", "\n".join(file for steps in listed().values() for file, _ in steps), re.M)
