"""`embedreg embed`: embed a column of a dataset, a file or a LanceDB table, and write the vectors.

Over 400 lines: the options of one command, and what is printed of its run.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedreg.cli import estimate as estimates
from embedreg.cli import terminal
from embedreg.cli.session import AsJson, Dtype, command, common_arguments
from embedreg.datasets import places
from embedreg.datasets.reading import Reading
from embedreg.declaration import templates
from embedreg.errors import EmbedregError, MissingColumnError, in_shell
from embedreg.media.allowances import allow_images

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunctionConfig
    from embedreg.datasets.sources import Source
    from embedreg.embedding.table import BadRow, Progress
    from embedreg.jobs import Engine, JobReport
    from embedreg.runtime.remote.usage import TotalUsage

__all__ = ["Template", "embed", "parse_settings", "template_of"]

_SHOWN_BAD_ROWS = 5

Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help=r"Instead of --source: text to embed with columns in braces, such as '{title}: {body}'; \n is a new "
        "line.",
    ),
]


@command
def embed(
    src: Annotated[
        str,
        typer.Argument(
            help="A .parquet, .arrow, .jsonl or .csv file, a folder or a pattern of them, a .lance table, or a folder "
            "of images; here or at an address such as s3://bucket/folder."
        ),
    ],
    dst: Annotated[
        str | None,
        typer.Argument(help="A folder, one .parquet or .arrow file, or DB_DIR/name.lance for a LanceDB table."),
    ] = None,
    function: Annotated[
        str | None, typer.Option("--function", "-f", help="The function's name; without it, those that SRC declares.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the function, as JSON or plain text. Repeatable."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The column to embed. [default: text; path for a folder of images]")
    ] = None,
    vector: Annotated[str, typer.Option(help="The column for the vectors.")] = "vector",
    template: Template = None,
    dtype: Dtype = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=TYPE",
            help="For text files: a column's type (text, int, uint64, float, bool, date, timestamp). Repeatable.",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="The encoding of text files, such as latin-1. [default: UTF-8, or that of the byte order mark]"
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="The delimiter of CSV files, such as ';' or tab. [default: a comma; a tab in .tsv]"),
    ] = None,
    on_error: Annotated[
        Literal["raise", "null", "drop"],
        typer.Option(help="When a row cannot be embedded: stop, keep it without a vector, or leave it out."),
    ] = "raise",
    zero_vectors: Annotated[
        Literal["null", "keep", "error"] | None,
        typer.Option(
            help="For vectors of zeros: store null, keep them, or count a bad row. [default: null if the metric is "
            "cosine, else keep]"
        ),
    ] = None,
    max_bad_rows: Annotated[
        int | None, typer.Option(min=0, help="Stop when more rows than this have failed (with null or drop).")
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows held in memory at a time.")] = 8192,
    piece_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows published at a time: what an interruption can cost. [default: 65536]"),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="PATH", help="A vector cache: a file with the vectors of earlier runs.")
    ] = None,
    storage_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="An option of the filesystem of an address, secrets as $var:NAME. Repeatable."
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Estimate tokens, duplicates and time; write nothing.")
    ] = False,
    price_per_million: Annotated[
        float | None, typer.Option(min=0, help="With --estimate: the price of a million tokens, for the cost.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", "--no-resume", help="Discard the work of an interrupted run, and start again.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace DST where it exists.")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where the pieces are run: here, or on the actors of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="With ray: the cluster, such as auto; without it one is started on this machine.")
    ] = None,
    actors: Annotated[int, typer.Option(min=1, help="With ray: how many actors, each with one model.")] = 1,
    gpus_per_actor: Annotated[float, typer.Option(min=0, help="With ray: GPUs for each actor, or a share of one.")] = 0,
    cpus_per_actor: Annotated[
        float, typer.Option(min=0, help="With ray: CPUs for each actor; without a GPU, the threads of its model.")
    ] = 1,
    batch_api: Annotated[
        bool,
        typer.Option(
            "--batch-api",
            help="Submit the inputs to the service's batch API, at its lower price, and wait: up to a day. Ctrl-C "
            "leaves the batches running; the same command collects them.",
        ),
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove the outputs of inputs that no longer exist.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a column of SRC and write all of its columns, with the vectors, to DST.

    Work is done in pieces. After an interruption the same command continues with the pieces that are left. A folder
    contains complete pieces at any time; a file or a table appears when it is complete.

    The function's declaration is written into the metadata of DST, so that `embedreg search DST` needs nothing else.
    """
    if dst is None and not estimate:
        raise typer.BadParameter("give DST, or --estimate to write nothing.")
    if price_per_million is not None and not estimate:
        raise typer.BadParameter("--price-per-million is for --estimate.")
    if batch_api and engine != "local":
        raise typer.BadParameter("--batch-api and --engine ray exclude each other.")
    options = parse_settings(storage_option or [], "--storage-option")
    text_options: dict[str, Any] = {"types": _pairs(types or []), "encoding": encoding, "delimiter": delimiter}
    text = template_of(template, source)
    source = source or _column_of_files(src, options) or "text"
    if function is not None and source == vector:
        raise typer.BadParameter(f"--source and --vector are both {source!r}: vectors need a column of their own.")
    if text is not None and function is None:
        raise typer.BadParameter("--template needs --function.")
    if dtype is not None and function is None:
        raise typer.BadParameter("--dtype needs --function: what SRC declares has its type.")
    declared = _declared(function, settings or [], None if text is not None else source, vector, text, dtype)
    if estimate or declared is None:
        read = [config.source_column for config in declared or () if config.template is None]
        data = _look(src, options, Reading.of(**text_options, sources=read))
        if declared is None:
            declared = _stored(data, settings or [])
        if estimate:
            _estimate(data, declared, batch_rows, price_per_million, as_json)
            return
    from embedreg.jobs import embed as run

    elsewhere = None if engine == "local" else _on_ray(address, actors, gpus_per_actor, cpus_per_actor)
    # Ray logs about its workers on stdout, which is reserved for our output.
    quiet = redirect_stdout(sys.stderr) if elsewhere is not None else nullcontext(sys.stdout)
    with quiet, _column_hint(), _going_on(str(dst), options), _progress() as progress:
        report = run(
            src,
            str(dst),
            declared,
            on_error=on_error,
            zero_vectors=zero_vectors,
            max_bad_rows=max_bad_rows,
            batch_rows=batch_rows,
            piece_rows=piece_rows,
            progress=progress,
            storage_options=options,
            cache=cache,
            resume=not fresh,
            force=force,
            prune=prune,
            engine=elsewhere,
            batch_api=batch_api,
            **text_options,
        )
    for note in report.notes:
        terminal.note(in_shell(note))
    terminal.print_json(_summary(report)) if as_json else _print(report)


def _on_ray(address: str | None, actors: int, gpus_per_actor: float, cpus_per_actor: float) -> Engine:
    from embedreg.engines import ray

    return ray.engine(address=address, actors=actors, gpus_per_actor=gpus_per_actor, cpus_per_actor=cpus_per_actor)


def template_of(template: str | None, source: str | None) -> str | None:
    r"""Return the template of `--template`, in which `\n` and `\t` stand for a new line and a tab; None without one.

    Raises:
        typer.BadParameter: a source column is named, too.
    """
    if template is None:
        return None
    if source is not None:
        raise typer.BadParameter("--source and --template exclude each other.")
    return template.replace("\\n", "\n").replace("\\t", "\t")


def _declared(
    function: str | None,
    settings: list[str],
    source: str | None,
    vector: str,
    template: str | None,
    dtype: str | None,
) -> list[EmbeddingFunctionConfig] | None:
    """Return the declaration from the options; None if the data's own declarations are used."""
    if function is None:
        return None
    from embedreg import get

    return [get(function).create(**parse_settings(settings)).bind(source, vector, template=template, dtype=dtype)]


def _stored(data: Source, settings: list[str]) -> list[EmbeddingFunctionConfig]:
    """Return the declarations in the data."""
    from embedreg import functions_in

    stored = functions_in(data.schema)
    if settings or not stored.entries:
        raise typer.BadParameter("--function NAME is needed (embedreg functions lists the names).")
    return stored.every()


def _look(src: str, options: dict[str, Any], reading: Reading) -> Source:
    from embedreg.datasets.sources import open_source
    from embedreg.jobs.opening import KINDS

    return open_source(places.find(src, KINDS, remote=True, options=options), None, reading)


def _column_of_files(src: str, options: dict[str, Any]) -> str | None:
    """Return the column to embed if each file is one input, such as an image; None for data files."""
    from embedreg.core.modality import files_of
    from embedreg.jobs.opening import KINDS

    try:
        files = None if "://" in src else files_of(places.find(src, KINDS, options=options).kind)
    except EmbedregError:  # reported by the run itself
        return None
    return None if files is None else files.column


def _pairs(texts: list[str]) -> dict[str, str]:
    """Parse `COLUMN=TYPE` pairs; a column's name may contain `=`."""
    found = {}
    for text in texts:
        column, equals, kind = text.rpartition("=")
        if not (column and equals and kind):
            raise typer.BadParameter(f"--types {text}: write it as COLUMN=TYPE.")
        found[column] = kind
    return found


def _estimate(
    data: Source, configs: list[EmbeddingFunctionConfig], batch_rows: int, price: float | None, as_json: bool
) -> None:
    with _column_hint():
        for config in configs:
            if (template := templates.of(config)) is not None:
                template.refuse_missing(data.schema.names, config.vector_column)
            elif config.source_column not in data.schema.names:
                raise MissingColumnError(
                    f"{data.place} has no column {config.source_column!r}.", f"columns: {', '.join(data.schema.names)}"
                )
    from embedreg.core.modality import files_of

    folders = [data.place.storage.full("")] if files_of(data.place.kind) is not None else []
    with allow_images(dirs=folders):
        found = [{"vector_column": c.vector_column, **estimates.estimate(data, c, batch_rows, price)} for c in configs]
    if as_json:
        terminal.print_json(found)
        return
    for note in data.notes:
        terminal.note(in_shell(note))
    for each in found:
        estimates.show(each)


def parse_settings(pairs: list[str], option: str = "--set") -> dict[str, Any]:
    """Parse `key=value` pairs: values are JSON if valid, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{option} {pair}: write it as KEY=VALUE.")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found


@contextmanager
def _column_hint() -> Iterator[None]:
    """Add the option that names the source column to the hint of an error."""
    try:
        yield
    except MissingColumnError as exc:
        if exc.shell_hint is None:
            exc.for_shell(f"{exc.hint + '; ' if exc.hint else ''}--source NAME names the column of texts")
        raise


@contextmanager
def _going_on(dst: str, options: dict[str, Any]) -> Iterator[None]:
    """Print a note about kept work after an interruption."""
    try:
        yield
    except BaseException:
        from embedreg.jobs.opening import kept_rows
        from embedreg.jobs.unfinished import unfinished

        kept, left = kept_rows(dst, options), unfinished(dst, options)
        if left is not None and left.batches:
            terminal.note(f"{terminal.count(len(left.batches), 'batch', 'batches')} of the service are left running")
        if kept is not None:
            terminal.note(f"finished work is kept ({terminal.count(kept, 'row')}); to continue: {_this_command()}")
        raise


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a progress bar of this run, without the work of earlier runs."""
    before: int | None = None
    with terminal.rows_progress("embedding", None) as bar:

        def progress(rows: int, total: int | None) -> None:
            nonlocal before
            if before is None:
                before = rows
                if rows:
                    terminal.note(f"{terminal.count(rows, 'row')} embedded by an earlier run")
            bar(rows - before, None if total is None else total - before)

        yield progress


def _summary(report: JobReport) -> dict[str, Any]:
    bad = [
        {"input": name, "row": row.row, "column": row.column, "key": row.key, "reason": row.reason}
        for name, row in report.bad
    ]
    counts = {
        name: getattr(report, name)
        for name in ("rows", "written", "embedded", "cached", "given", "nulls", "zeros", "clipped")
    }
    pieces = {name: getattr(report, name) for name in ("pieces", "reused", "removed")}
    found = {"path": report.path, **counts, "bad_rows": report.bad_rows, "bad": bad, **pieces}
    found["usage"] = report.usage.to_dict()
    return found | {"bad_rows_path": report.bad_rows_path, "seconds": report.seconds, "notes": [*report.notes]}


def _print(report: JobReport) -> None:
    done = "given to the function" if report.bad_rows else "embedded"  # of bad rows too
    facts = [terminal.count(report.rows, "row"), f"{terminal.count(report.embedded, 'distinct input')} {done}"]
    facts += [f"{report.cached:,} of them from the cache"] if report.cached else []
    facts += [f"{terminal.count(report.given, 'vector')} given"] if report.given else []
    facts += [f"{report.nulls:,} null or blank"] if report.nulls else []
    facts += [f"{report.zeros:,} vector{'s' if report.zeros > 1 else ''} of zeros"] if report.zeros else []
    facts += [f"{report.bad_rows:,} bad"] if report.bad_rows else []
    facts += [f"{terminal.count(report.clipped, 'number')} outside the ranges, clipped"] if report.clipped else []
    if report.reused:
        pieces = f"{report.reused:,} of {terminal.count(report.pieces, 'piece')}"
        facts += [f"{report.reused_rows:,} of the rows ({pieces}) done before"]
    facts += [f"{terminal.count(len(report.removed), 'output')} removed"] if report.removed else []
    if report.pieces and report.nothing_to_do:
        terminal.say(f"{report.path}: nothing to do, {terminal.count(report.rows, 'row')} done before")
    else:
        terminal.say(f"{report.path}: {', '.join(facts)}")
    if report.usage:
        terminal.note(_in_words(report.usage))
    for line in _bad_lines(report.bad):
        terminal.note(line)
    if report.bad_rows_path is not None:
        terminal.note(f"bad rows are listed in {report.bad_rows_path}")
    if "://" not in report.path and not report.path.endswith((".arrow", ".feather")):
        shared = "".join(f" {shlex.quote(each)}" for each in common_arguments() if each != "--debug")
        terminal.note(f'try: embedreg search {shlex.quote(report.path)} "some text"{shared}')


def _in_words(usage: TotalUsage) -> str:
    """Return what remote functions cost as one line."""
    facts = [terminal.count(usage.requests, "request")]
    facts += [f"{usage.retries:,} of them retries"] if usage.retries else []
    facts += [f"{usage.billed_tokens:,} tokens billed"] if usage.billed_tokens else []
    facts += [f"about {usage.estimated_tokens:,} more tokens, not reported"] if usage.estimated_tokens else []
    facts += [f"{terminal.seconds(usage.waited_s)} waited for the budget"] if usage.waited_s >= 0.1 else []
    return ", ".join(facts)


def _bad_lines(bad: Sequence[tuple[str, BadRow]]) -> list[str]:
    """Return a line for each reason of failed rows, the most frequent first, with some of the rows."""
    from embedreg.embedding.table import rows_in_words

    reasons: dict[tuple[str, str], list[BadRow]] = {}
    for name, row in bad:
        reasons.setdefault((name, row.reason), []).append(row)
    ordered = sorted(reasons.items(), key=lambda item: -len(item[1]))
    lines = []
    for (name, reason), rows in ordered[:_SHOWN_BAD_ROWS]:
        numbers = [f"{row.row:,}" + (f" ({row.key})" if row.key else "") for row in rows]
        lines.append(f"{name}, {rows_in_words(numbers)}: {in_shell(reason)}")
    if len(ordered) > _SHOWN_BAD_ROWS:
        lines.append(f"and {terminal.count(len(ordered) - _SHOWN_BAD_ROWS, 'other reason')}")
    return lines


def _this_command() -> str:
    """Return the command line of this process, quoted for a shell."""
    return shlex.join(["embedreg", *sys.argv[1:]])
