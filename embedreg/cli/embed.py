"""`embedreg embed`: a column of texts in a file becomes a column of vectors in a file or a LanceDB table."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedreg.cli import estimate as estimates
from embedreg.cli import places, terminal
from embedreg.cli.session import AsJson, command
from embedreg.cli.sources import Source, open_source
from embedreg.cli.writing import write_parquet
from embedreg.errors import MissingColumnError, StorageError
from embedreg.imports import did_you_mean

if TYPE_CHECKING:
    from embedreg import Report
    from embedreg.base import EmbeddingFunctionConfig

__all__ = ["embed"]

_SHOWN_BAD_ROWS = 5


@command
def embed(
    src: Annotated[str, typer.Argument(help="A .parquet file or a folder of them, .jsonl, .ndjson or .csv.")],
    dst: Annotated[
        str | None, typer.Argument(help="A .parquet file, or DB_DIR/name.lance for a LanceDB table.")
    ] = None,
    function: Annotated[
        str | None, typer.Option("--function", "-f", help="The function's name; without it, those that SRC declares.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the function, as JSON or plain text. Repeatable."),
    ] = None,
    source: Annotated[str, typer.Option(help="The column to embed.")] = "text",
    vector: Annotated[str, typer.Option(help="The column for the vectors.")] = "vector",
    on_error: Annotated[
        Literal["raise", "null", "drop"],
        typer.Option(help="A row that fails by its own fault: stop, keep it without a vector, or leave it out."),
    ] = "raise",
    max_bad_rows: Annotated[
        int | None, typer.Option(min=0, help="Stop when more rows than this have failed (with null or drop).")
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows held in memory at a time.")] = 8192,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it would take (tokens, duplicates, time); write nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST where it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a column of SRC and write all of its columns, with the vectors, to DST.

    The function's declaration is written into the metadata of DST, so that `embedreg search DST` needs nothing else.
    DST appears when it is whole; what stood there stays until then.
    """
    if dst is None and not estimate:
        raise typer.BadParameter("give DST, or --estimate to write nothing.")
    data = open_source(places.find(src, ("parquet", "jsonl", "csv")))
    configs = _declarations(data, function, settings or [], source, vector)
    if estimate:
        found = [{"vector_column": c.vector_column, **estimates.estimate(data, c, batch_rows)} for c in configs]
        for each in found if not as_json else ():
            estimates.show(each)
        if as_json:
            terminal.print_json(found)
        return
    target = _target(str(dst), data, force)
    report, took = _run(data, target, configs, batch_rows, on_error=on_error, max_bad_rows=max_bad_rows)
    if as_json:
        terminal.print_json(_summary(target, report, took))
    else:
        _print(target, report)


def _declarations(
    data: Source, function: str | None, settings: list[str], source: str, vector: str
) -> list[EmbeddingFunctionConfig]:
    """Make the declaration that the options describe, or take those that the data brings."""
    if function is None:
        from embedreg import functions_in

        stored = functions_in(data.schema)
        if settings or not stored.entries:
            raise typer.BadParameter("--function NAME is needed (embedreg functions lists the names).")
        return [stored[column] for column in stored.entries]
    from embedreg import get

    if source not in data.schema.names:
        hint = f"{did_you_mean(source, data.schema.names)}--source one of: {', '.join(data.schema.names)}"
        raise MissingColumnError(f"{data.place.path} has no column {source!r}.", hint)
    if source == vector:
        raise typer.BadParameter(f"--source and --vector are both {source!r}: vectors need a column of their own.")
    return [get(function).create(**parse_settings(settings)).bind(source, vector)]


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """Read `key=value` pairs: a value that is JSON is what it says, any other is text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--set {key}: write it as KEY=VALUE.")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found


def _target(dst: str, data: Source, force: bool) -> places.Place:
    target = places.destination(dst)
    if target.path.exists():
        if target.path.samefile(data.place.path):
            raise StorageError(f"{dst} is what is being read.", "write to another name")
        if not force:
            raise StorageError(f"{dst} exists.", "--force replaces it")
    return target


def _run(
    data: Source,
    target: places.Place,
    configs: list[EmbeddingFunctionConfig],
    batch_rows: int,
    **policy: Any,
) -> tuple[Report, float]:
    """Embed and write; `policy` is `on_error` and `max_bad_rows`."""
    from embedreg import Report, embed_batches

    report = Report()
    start = time.perf_counter()
    with terminal.rows_progress("embedding", data.rows) as progress:
        policy |= {"report": report, "progress": progress, "batch_rows": batch_rows}
        if target.kind == "parquet":
            write_parquet(embed_batches(data.reader(batch_rows), configs, **policy), target.path)
        else:
            from embedreg.cli.lance import new_table
            from embedreg.engines import lancedb

            # What no rows become is the schema of what the rows become.
            schema = embed_batches(data.schema.empty_table(), configs).schema
            with new_table(target.path, schema) as table:
                lancedb.add(table, data.reader(batch_rows), **policy)
    return report, time.perf_counter() - start


def _summary(target: places.Place, report: Report, took: float) -> dict[str, Any]:
    bad = [{"row": each.row, "column": each.column, "reason": each.reason} for each in report.bad]
    counts = {"rows": report.rows, "embedded": report.embedded, "given": report.given, "nulls": report.nulls}
    return {"path": str(target.path), **counts, "bad": bad, "seconds": took}


def _print(target: places.Place, report: Report) -> None:
    facts = [f"{report.rows:,} rows", f"{report.embedded:,} distinct inputs embedded"]
    facts += [f"{report.given:,} vectors were given"] if report.given else []
    facts += [f"{report.nulls:,} null or blank"] if report.nulls else []
    facts += [f"{len(report.bad):,} bad"] if report.bad else []
    terminal.say(f"{target.path}: {', '.join(facts)}")
    for each in report.bad[:_SHOWN_BAD_ROWS]:
        terminal.note(f"row {each.row}: {each.reason}")
    if len(report.bad) > _SHOWN_BAD_ROWS:
        terminal.note(f"... and {len(report.bad) - _SHOWN_BAD_ROWS:,} more: --json lists them")
    terminal.note(f'try: embedreg search {target.path} "some text"')
