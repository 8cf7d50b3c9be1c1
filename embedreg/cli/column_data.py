"""`embedreg column status`, `add`, `fill`, `refresh`, `repoint` and `detach`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import typer

from embedreg.cli import column_sql, column_words, terminal
from embedreg.cli.column_options import (
    BatchRows,
    Cache,
    Data,
    DryRun,
    Key,
    MaxBadRows,
    OnError,
    Settings,
    SwitchTimeout,
    To,
    Vector,
    Vectors,
    Yes,
    function_of,
    path_of,
    progress,
    try_next,
    vector_of,
)
from embedreg.cli.embed import Template, template_of
from embedreg.cli.session import AsJson, Dtype, command

_NEXT = {"ready": "switch", "switched": "settle"}  # by the state of a migration

__all__ = ["add", "detach", "fill", "refresh", "repoint", "status"]


@command
def status(data: Data, as_json: AsJson = False) -> None:
    """Count the rows of each vector column by class, from row digests alone; no model runs.

    fresh: up to date. stale: the source changed since. foreign: another function made the vector. unstamped: a vector
    without a digest. empty: a source without a vector.
    """
    from embedreg import columns

    path = path_of(data)
    with terminal.status("reading"):
        found = columns.status(path)
    column_words.print_statuses(data, found, as_json=as_json)
    moving = next((each.migration.state for each in found if each.migration is not None), None)
    if as_json:
        return
    if not found:
        try_next("add", data, "-f", "FUNCTION")
    elif moving in _NEXT:
        try_next(_NEXT[moving], data)
    elif any((each.todo if each.digest else each.empty) and each.problem is None for each in found):
        try_next("refresh", data)


@command
def add(
    data: Data,
    function: Annotated[str, typer.Option("--function", "-f", help="The function's name.")],
    settings: Settings = None,
    source: Annotated[str | None, typer.Option(help="The column to embed. [default: text]")] = None,
    vector: Annotated[str, typer.Option(help="The new column.")] = "vector",
    template: Template = None,
    dtype: Dtype = None,
    no_digest: Annotated[
        bool, typer.Option("--no-digest", help="Add no row digests; changed sources cannot be found then.")
    ] = False,
    on_error: OnError = "null",
    max_bad_rows: MaxBadRows = None,
    batch_rows: BatchRows = 8192,
    cache: Cache = None,
    key: Key = None,
    switch_timeout: SwitchTimeout = 60.0,
    yes: Yes = False,
    engine: column_sql.Engine = None,
    print_: column_sql.Print = False,
    as_: column_sql.As = None,
    version: column_sql.Version = "1.2.453",
    returns: column_sql.Returns = "array",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Add a vector column, embedded from another column, to a table or dataset in place.

    Other columns are not changed. After an interruption, the same command continues. Beside the vectors comes a column
    of row digests, by which `status` and `refresh` find the rows that are not up to date.
    """
    from embedreg import columns

    text = template_of(template, source)
    source = source or ("text" if text is None else None)
    declaration = function_of(function, settings).bind(source, vector, template=text, dtype=dtype)
    if column_sql.is_printed(engine, print_):
        from embedreg.engines.databend.changes import add as statements

        if dtype not in (None, "float32"):
            raise typer.BadParameter(f"--dtype {dtype}: Databend's vectors and the UDFs that fill them are float32.")
        named = declaration.source_column, vector, as_, version, returns, text
        column_sql.show(statements(column_sql.column_of(data, declaration.function, *named)), as_json=as_json)
        return
    path = path_of(data)
    if dry_run:
        _would_add(data, path, declaration, as_json)
        return
    with progress("embedding", path) as bar:
        report = columns.add(
            path,
            declaration,
            digest=not no_digest,
            on_error=on_error,
            max_bad_rows=max_bad_rows,
            batch_rows=batch_rows,
            cache=cache,
            key=key,
            switch_timeout_s=switch_timeout,
            yes=yes,
            progress=bar,
        )
    column_words.print_reports(data, [report], as_json=as_json)


def _statuses(path: Any, vectors: list[str] | None) -> list[Any]:
    """Return the statuses of some columns, or of all.

    Raises:
        MissingColumnError: one is not declared, or none is. SchemaError: the rows of one cannot be classified.
    """
    from embedreg import columns
    from embedreg.columns.calls import chosen
    from embedreg.columns.opening import opened
    from embedreg.errors import SchemaError

    wanted = chosen(opened(path), vectors or None)
    found = [each for each in columns.status(path) if each.vector in wanted]
    for each in found:
        if each.problem is not None:
            raise SchemaError(f"column {each.vector!r}: {each.problem}")
    return found


def _would_add(data: str, path: Any, declaration: Any, as_json: bool) -> None:
    from embedreg.columns import ColumnReport
    from embedreg.columns.opening import opened
    from embedreg.columns.sources import Source
    from embedreg.declaration import templates
    from embedreg.errors import MissingColumnError, SchemaError

    store = opened(path)
    names = store.schema.names
    source = Source(declaration.source_column, templates.of(declaration))
    if source.template is not None:
        source.template.refuse_missing(names, declaration.vector_column)
    elif declaration.source_column not in names:
        raise MissingColumnError(
            f"{data} has no column {declaration.source_column!r}.",
            f"--source NAME names the column to embed: {', '.join(names)}",
        )
    if declaration.vector_column in names:
        raise SchemaError(
            f"{data} has a column {declaration.vector_column!r} already.", "--vector NAME adds another column"
        )
    values = (source.values(batch) for batch in store.scan(source.columns))
    filled = sum(len(each) - each.null_count for each in values)
    report = ColumnReport(declaration.vector_column, "add", store.rows, filled, filled, dry_run=True)
    column_words.print_reports(data, [report], as_json=as_json)


@command
def fill(
    data: Data,
    vectors: Vectors = None,
    on_error: OnError = "null",
    max_bad_rows: MaxBadRows = None,
    batch_rows: BatchRows = 8192,
    cache: Cache = None,
    key: Key = None,
    switch_timeout: SwitchTimeout = 60.0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Embed the rows that have a source and no vector; other rows stay as they are."""
    from embedreg import columns

    path = path_of(data)
    if dry_run:
        found = _statuses(path, vectors)
        made = [columns.ColumnReport(e.vector, "fill", e.rows, e.empty, e.empty, dry_run=True) for e in found]
        column_words.print_reports(data, made, as_json=as_json)
        return
    with progress("checking", path) as bar:
        reports = columns.fill(
            path,
            vectors or None,
            on_error=on_error,
            max_bad_rows=max_bad_rows,
            batch_rows=batch_rows,
            cache=cache,
            key=key,
            switch_timeout_s=switch_timeout,
            progress=bar,
        )
    column_words.print_reports(data, reports, as_json=as_json)


@command
def refresh(
    data: Data,
    vectors: Vectors = None,
    unstamped: Annotated[
        Literal["verify", "recompute", "trust"],
        typer.Option(help="Vectors without a digest: embed a sample to check them, embed all again, or trust them."),
    ] = "verify",
    sample: Annotated[int, typer.Option(min=1, help="With verify: how many rows are embedded.")] = 300,
    on_error: OnError = "null",
    max_bad_rows: MaxBadRows = None,
    batch_rows: BatchRows = 8192,
    cache: Cache = None,
    key: Key = None,
    switch_timeout: SwitchTimeout = 60.0,
    engine: column_sql.Engine = None,
    print_: column_sql.Print = False,
    function: Annotated[
        str | None, typer.Option("--function", "-f", help="With --engine: the declared function's name.")
    ] = None,
    settings: Settings = None,
    source: Annotated[
        str | None, typer.Option(help="With --engine: the column that is embedded. [default: text]")
    ] = None,
    template: Template = None,
    as_: column_sql.As = None,
    version: column_sql.Version = "1.2.453",
    returns: column_sql.Returns = "array",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Embed the rows that are not up to date: their source changed, their vector is missing or another function's.

    Rows that are up to date are neither embedded nor written.
    """
    from embedreg import columns

    if column_sql.is_printed(engine, print_):
        from embedreg.engines.databend.changes import refresh as statements

        if function is None:
            raise typer.BadParameter("--function NAME is needed: nothing is read from the database.")
        text = template_of(template, source)
        source = source or ("text" if text is None else None)
        declared = function_of(function, settings).bind(source, (vectors or ["vector"])[0], template=text)
        named = declared.source_column, declared.vector_column, as_, version, returns, text
        column_sql.show(statements(column_sql.column_of(data, declared.function, *named)), as_json=as_json)
        return
    path = path_of(data)
    with progress("checking", path) as bar:
        reports = columns.refresh(
            path,
            vectors or None,
            unstamped=unstamped,
            sample=sample,
            dry_run=dry_run,
            on_error=on_error,
            max_bad_rows=max_bad_rows,
            batch_rows=batch_rows,
            cache=cache,
            key=key,
            switch_timeout_s=switch_timeout,
            progress=bar,
        )
    column_words.print_reports(data, reports, as_json=as_json)


@command
def repoint(
    data: Data,
    to: To,
    settings: Settings = None,
    vector: Vector = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows to embed again and compare.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Which rows.")] = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Declare another function of the same vectors, such as the same model at another host.

    A sample of the rows is embedded again. Only where all of it agrees is the declaration replaced; no vector changes.
    """
    from embedreg import columns

    path = path_of(data)
    with terminal.status("embedding a sample"):
        found = columns.repoint(
            path, vector_of(path, vector), function_of(to, settings), sample=sample, seed=seed, dry_run=dry_run
        )
    if as_json:
        terminal.print_json({**dataclasses.asdict(found), "written": found.written and str(found.written)})
        return
    terminal.say(
        f"{found.compared:,} of {found.rows:,} rows embedded again: cosine {found.lowest:.5f} at the lowest, "
        f"{found.median:.5f} at the median"
    )
    terminal.say(f"{data} would declare {to}" if dry_run else f"{data} declares {to} now; no vector changed")
    if dry_run:
        terminal.note("nothing was written")


@command
def detach(
    data: Data,
    vector: Vector = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove the column and its digests too.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove the declaration of a column; with --drop the column too. Other declarations stay byte for byte."""
    from embedreg import columns

    path = path_of(data)
    name = vector_of(path, vector)
    if dry_run:
        _statuses(path, [name])
    else:
        columns.detach(path, name, drop=drop)
    if as_json:
        terminal.print_json({"path": str(path), "vector": name, "dropped": drop, "dry_run": dry_run})
        return
    what = f"column {name} and its declaration" if drop else f"the declaration of {name}"
    verb = "would be" if dry_run else "are" if drop else "is"
    terminal.say(f"{data}: {what} {verb} removed")
    if dry_run:
        terminal.note("nothing was written")
