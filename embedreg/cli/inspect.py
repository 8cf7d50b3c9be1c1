"""`embedreg inspect`: show the declarations of a file or a table."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import exits, terminal
from embedreg.cli.hints import trusting
from embedreg.cli.session import AsJson, command
from embedreg.datasets import places
from embedreg.errors import EmbedregError, Grant, StorageError, in_shell
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.jobs.unfinished import Unfinished

__all__ = ["inspect_data"]

COUNTED_BYTES = 256 * 2**20  # largest vector column that is read to count nulls and zeros without --check


@command
def inspect_data(
    data: Annotated[str, typer.Argument(help="A .lance folder, DB_DIR/name, or a Parquet file or folder of them.")],
    check: Annotated[
        bool, typer.Option("--check", help="Run each function once: does it still return the stored vectors?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the embedding functions that data declares, and whether they can be used here.

    At the destination of an unfinished job it also shows what is done, and the batches that it waits for.
    """
    from embedreg import check_drift, inspect
    from embedreg.jobs.unfinished import unfinished

    job = unfinished(data)
    try:
        place = places.find(data)
    except StorageError:
        if job is None:
            raise
        shown: dict[str, Any] = {
            "path": data,
            "kind": None,
            "rows": None,
            "columns": {},
            "functions": [],
            "job": vars(job),
        }
        terminal.print_json(shown) if as_json else _print_job(data, job)
        return
    schema, rows = _schema_and_rows(place)
    functions = inspect(place.path, backends=True)
    drifts = {drift.column: drift for drift in check_drift(place.path)} if check else {}
    for function in functions:
        for role in ("vector", "source"):
            column = function[f"{role}_column"]
            function[f"{role}_type"] = str(schema.field(column).type) if column in schema.names else None
        drift = drifts.get(function["vector_column"])
        function["drift"] = None if drift is None else dataclasses.asdict(drift)
        function["stored"] = _stored(place, schema, rows, function["vector_column"], function["ndims"], check)
    found = {
        "path": str(place.path),
        "kind": place.kind,
        "rows": rows,
        "columns": {field.name: str(field.type) for field in schema},
        "functions": functions,
        "job": None if job is None else vars(job),
    }
    terminal.print_json(found) if as_json else _print(found)
    if job is not None and not as_json:
        terminal.say()
        _print_job(data, job)
    if any(drift.verdict == "drift" for drift in drifts.values()):
        raise typer.Exit(exits.DRIFT)
    problems = [function["status"] for function in functions if function["status"] != "ready"]
    if check and problems:
        raise typer.Exit(exits.code_of_name(problems[0]))


def _schema_and_rows(place: places.Place) -> tuple[pa.Schema, int | None]:
    if place.kind == "lance":
        from embedreg.cli import lance

        table = lance.open_untouched(place)
        return table.schema, table.count_rows()
    from embedreg.datasets.sources import open_source

    source = open_source(place)
    return source.schema, source.rows


def _stored(
    place: places.Place, schema: pa.Schema, rows: int | None, column: str, ndims: Any, check: bool
) -> dict[str, int] | None:
    """Return the counts of vectors, nulls and zeros of a column; None if not requested.

    The whole column is read, so a large one is counted only with `--check`.
    """
    import pyarrow as pa

    from embedreg.core.kinds import kind_of_type
    from embedreg.datasets.sources import open_source

    if column not in schema.names:
        return None
    kind = kind_of_type(schema.field(column).type)
    width = None if kind is None else kind.width_of(schema.field(column).type) or _width(ndims)
    if kind is None or width is None or not (check or (rows is not None and rows * width * 4 <= COUNTED_BYTES)):
        return None
    found = {"vectors": 0, "null": 0, "zeros": 0}
    try:
        for batch in open_source(place).batches([column]):
            vectors = batch.column(column)
            stored, valid, _ = kind.given(vectors, width, column)
            floats = pa.types.is_floating(kind.value_type(vectors.type))
            zero = kind.zeros(stored if floats else stored[:0])  # bytes need their ranges
            found["null"] += vectors.null_count
            found["vectors"] += len(vectors) - vectors.null_count
            found["zeros"] += int(valid[zero].sum())
    except (EmbedregError, pa.ArrowException, OSError):
        return None  # the metadata is shown anyway
    return found


def _width(ndims: Any) -> int | None:
    return ndims if isinstance(ndims, int) and not isinstance(ndims, bool) and ndims > 0 else None


def _print(found: dict[str, Any]) -> None:
    kind = {"lance": "a Lance table", "parquet": "Parquet"}[found["kind"]]
    rows = "" if found["rows"] is None else f", {terminal.count(found['rows'], 'row')}"
    terminal.say(f"{found['path']}: {kind}{rows}, {terminal.count(len(found['columns']), 'column')}")
    if not found["functions"]:
        terminal.say("It declares no embedding function.")
    for function in found["functions"]:
        terminal.say()
        terminal.say(f"{function['vector_column']} is filled from {function['source_column']}", style="bold")
        for line in _lines(function):
            terminal.say(f"  {line[:11]}{plain(line[11:])}")
    needs = [needed for function in found["functions"] if (needed := Grant(**function["needed"]))]
    if len(set(needs)) > 1:
        terminal.say()
        terminal.say(plain(f"For all columns, {trusting(Grant.union(needs))}"))


def _print_job(path: str, job: Unfinished) -> None:
    """Show an unfinished job."""
    rows = terminal.count(job.rows, "row")
    terminal.say(f"{path}: an unfinished job", style="bold")
    terminal.say(f"  source     {plain(job.source)}")
    terminal.say(f"  done       {job.done:,} of {terminal.count(job.pieces, 'piece')}, {rows}")
    for batch in job.batches:
        terminal.say(f"  batch      {plain(_batch_in_words(batch))}")
    going_on = ", with --batch-api" if job.batches else ""
    terminal.note(f"to continue: the command that began it{going_on}")


def _batch_in_words(batch: dict[str, Any]) -> str:
    inputs = f"{terminal.count(batch['inputs'], 'input')} of column {batch['column']}"
    if batch["sent"] is None:
        return f"{inputs}, not submitted yet"
    since = dt.datetime.fromtimestamp(batch["sent"], dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    if batch["handle"] is None:
        return f"{inputs}, sent {since}; whether the service has it is looked up by the next run"
    state = "ended" if batch["ended"] else "submitted"
    return f"{batch['handle']}: {inputs}, {state if batch['ended'] else f'{state} {since}'}"


def _lines(function: dict[str, Any]) -> list[str]:
    config = ", ".join(
        f"{key}={terminal.as_json(value)}" for key, value in function["config"].items() if value is not None
    )
    lines = [f"function   {function['function']}", f"set to     {config or 'its defaults'}"]
    if function["ndims"]:
        stored = function["normalized"]  # by whoever wrote the metadata
        normalized = ("normalized" if stored else "not normalized") if isinstance(stored, bool) else ""
        traits = [
            function["vectors"],
            f"{function['ndims']} dimensions",
            function["dtype"],
            normalized,
            function["metric"],
        ]
        lines.append(f"vectors    {', '.join(str(trait) for trait in traits if trait)}")
        if (rows := function["calibration_rows"]) is not None:
            learnt = f"learnt from {terminal.count(rows, 'vector')}" if rows else "given"
            lines.append(f"ranges     {learnt}")
    else:
        lines.append("vectors    nothing recorded beyond the configuration: another client wrote it")
    if (stored := function["stored"]) is not None:
        lines.append(
            f"stored     {stored['vectors']:,} vectors, {stored['null']:,} null, {stored['zeros']:,} all zeros"
        )
    if isinstance(function["producer"], dict):
        lines.append(f"made by    {', '.join(f'{k} {v}' for k, v in function['producer'].items())}")
    if function["identity"]:
        lines.append(f"weights    {function['identity']}")
    if isinstance(function["template"], str):
        lines.append(f"template   {terminal.as_json(function['template'])}")
    for role in ("source", "vector"):
        kind, column = function[f"{role}_type"], function[f"{role}_column"]
        lines.append(f"{role:<10} {column}: {kind or 'MISSING, the data has no such column'}")
    if function["status"] == "ready":
        lines.append("usable     yes: it can be rebuilt here")
    else:
        lines.append(f"usable     no: {function['problem']}")
        needed = Grant(**function["needed"])
        hint = trusting(needed) if needed else in_shell(function["hint"] or "")
        lines += [f"           Hint: {hint}"] if hint else []
    if function["backend"] is not None:
        lines.append(f"backend    {function['backend']}")
    if function["drift"] is not None:
        lines.append(f"drift      {_verdict(function['drift'])}")
    elif function["status"] == "ready":
        lines.append(f"probe      {'stored; --check runs it' if function['probe'] else 'none stored'}")
    return lines + [f"note       {note}" for note in function["notes"]]


def _verdict(drift: dict[str, Any]) -> str:
    words = {
        "same": "none: it returns the stored vectors",
        "note": "none in the vectors, though the configuration differs",
        "drift": "YES: it returns other vectors than those stored",
        "unknown": "unknown",
    }
    cosine = "" if drift["cosine"] is None else f" (cosine {drift['cosine']:.5f})"
    return f"{words[drift['verdict']]}{cosine}" + (f": {'; '.join(drift['changed'])}" if drift["changed"] else "")
