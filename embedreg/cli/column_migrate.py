"""`embedreg column migrate`, `switch`, `settle`, `finish`, `rollback` and `abandon`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

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
    Yes,
    function_of,
    migration_of,
    path_of,
    progress,
    try_next,
    vector_of,
)
from embedreg.cli.session import AsJson, command

if TYPE_CHECKING:
    from embedreg.columns import Migration
    from embedreg.columns.results import MigrationStatus
    from embedreg.core.base import EmbeddingFunction

__all__ = ["abandon", "finish", "migrate", "rollback", "settle", "switch"]

_NEXT = {"ready": ("switch",), "switched": ("settle",), "settled": ("finish", "rollback")}


@command
def migrate(
    data: Data,
    to: To,
    settings: Settings = None,
    vector: Vector = None,
    name: Annotated[
        str | None,
        typer.Option(help="Another name for the column: readers of the old one then fail instead of mixing models."),
    ] = None,
    no_switch: Annotated[bool, typer.Option("--no-switch", help="Stage only; `switch` follows.")] = False,
    index: Annotated[
        Literal["like", "none"], typer.Option(help="Build the old column's vector index for the new vectors, or none.")
    ] = "like",
    no_keep: Annotated[
        bool, typer.Option("--no-keep", help="Keep no copy of the old vectors; a rollback may have to embed them.")
    ] = False,
    no_digest: Annotated[bool, typer.Option("--no-digest", help="Write no row digests.")] = False,
    on_error: OnError = "null",
    max_bad_rows: MaxBadRows = None,
    batch_rows: BatchRows = 8192,
    cache: Cache = None,
    key: Key = None,
    switch_timeout: SwitchTimeout = 60.0,
    yes: Yes = False,
    engine: column_sql.Engine = None,
    print_: column_sql.Print = False,
    source: Annotated[str, typer.Option(help="With --engine: the column that is embedded.")] = "text",
    view: Annotated[
        str | None, typer.Option(help="With --engine: the view that readers query. [default: TABLE_current]")
    ] = None,
    as_: column_sql.As = None,
    version: column_sql.Version = "1.2.453",
    returns: column_sql.Returns = "array",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Change the function of a vector column. `embedreg column rollback` restores the old vectors.

    All rows are embedded beside the data first, which stays as it is. Then vectors and declaration are switched, and
    what others wrote meanwhile is embedded. After an interruption, the same command continues.
    """
    from embedreg import columns

    if column_sql.is_printed(engine, print_):
        from embedreg.engines.databend.changes import migrate as statements

        old = vector or "vector"
        beside = name or f"{old}_2"
        made = column_sql.column_of(data, function_of(to, settings), source, beside, as_, version, returns)
        column_sql.show(statements(made, old, view or f"{data}_current"), as_json=as_json)
        return
    path = path_of(data)
    column = vector_of(path, vector)
    function = function_of(to, settings)
    if dry_run:
        _would_migrate(data, path, column, function, name, as_json)
        return
    with progress("embedding", path) as bar:
        found = columns.migrate(
            path,
            column,
            function,
            name=name,
            switch=not no_switch,
            index=index,
            keep=not no_keep,
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
    _print(data, found.status, vector, as_json)


def _would_migrate(
    data: str, path: Path, column: str, function: EmbeddingFunction, name: str | None, as_json: bool
) -> None:
    """Print what a migration would do, or raise where it would be refused."""
    from embedreg import columns
    from embedreg.columns.declare import bound_like, differing, entry_for
    from embedreg.columns.migration import declared_already
    from embedreg.columns.opening import opened
    from embedreg.errors import SchemaError

    store = opened(path)
    old = store.entry(column)
    new = entry_for(bound_like(old, function, name or column), digest=True)
    found = next(each for each in columns.status(path) if each.vector == column)
    if found.migration is None and name in (None, column):
        if old.reserved.get("fingerprint") == new.reserved.get("fingerprint"):
            raise declared_already(column)
    elif found.migration is None and name in store.schema.names:
        raise SchemaError(f"{data} has a column {name!r} already.", "choose another name")
    todo = found.rows - found.null_source
    made = columns.ColumnReport(column, "stage", found.rows, todo, todo, dry_run=True)
    if not as_json:
        if found.migration is not None:
            terminal.say(column_words.migration_line(found.migration))
        changed = differing(old, new)
        terminal.say(f"{data}: {column} would change from {old.name} to {new.name}{f' ({changed})' if changed else ''}")
    column_words.print_reports(data, [made], as_json=as_json)


def _print(data: str, found: MigrationStatus, vector: str | None, as_json: bool) -> None:
    column_words.print_migration(data, found, as_json=as_json)
    if not as_json:
        options = [] if vector is None else ["--vector", vector]
        for each in _NEXT.get(found.state, ()):
            try_next(each, data, *options)


def _step(
    data: str,
    vector: str | None,
    dry_run: bool,
    as_json: bool,
    name: str,
    call: Callable[[Migration], object],
    **options: Any,
) -> None:
    """Take one step of the migration in progress, and print its state.

    Args:
        name: of the step, a key of `_WOULD`.
        options: those of `columns.migrations`; a step that has some embeds rows, and shows their number.
    """
    from embedreg.columns.results import ColumnReport

    path = path_of(data)
    if dry_run:
        _would(data, path, migration_of(path, vector).status, name, as_json)
        return
    with progress("embedding", path) if options else terminal.status(_WOULD[name].doing) as bar:
        found = migration_of(path, vector, **options, **({"progress": bar} if options else {}))
        report = call(found)
    if isinstance(report, ColumnReport) and not as_json:
        column_words.print_reports(data, [report], as_json=False)
    _print(data, found.status, vector, as_json)


class _Would(NamedTuple):
    states: tuple[str, ...]  # those in which the step is possible
    words: str  # what it would do
    doing: str = ""


_BEFORE, _AFTER = ("begun", "staging", "ready"), ("switched", "settled")
_WOULD = {
    "switch": _Would(_BEFORE, "the new vectors and their declaration would take the place of the old ones"),
    "settle": _Would(_AFTER, "{rows} would be embedded"),
    "finish": _Would(
        ("settled",), "the old vectors would be removed; a rollback is not possible afterwards", "finishing"
    ),
    "rollback": _Would(_AFTER, "the old vectors and their declaration would be restored"),
    "abandon": _Would(_BEFORE, "what was staged would be removed", "removing"),
}


def _would(data: str, path: Path, now: MigrationStatus, name: str, as_json: bool) -> None:
    """Print what a step would do, or raise where it would be refused."""
    from embedreg import columns
    from embedreg.columns.migration import not_settled, wrong_state

    step = _WOULD[name]
    if now.state not in step.states and (now.state, name) != ("settled", "switch"):
        raise (not_settled if (now.state, name) == ("switched", "finish") else wrong_state)(now.vector, now.state)
    words = step.words
    if name == "settle":
        [column] = [each for each in columns.status(path) if each.vector == now.name]
        words = words.format(rows=terminal.count(column.todo if column.digest else column.empty, "row"))
    column_words.print_migration(data, replace(now, notes=(*now.notes, words, "nothing was written")), as_json=as_json)


@command
def switch(
    data: Data,
    vector: Vector = None,
    cache: Cache = None,
    switch_timeout: SwitchTimeout = 60.0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Publish the staged vectors of `migrate --no-switch`, or complete a switch that was interrupted."""
    options = {"cache": cache, "switch_timeout_s": switch_timeout}
    _step(data, vector, dry_run, as_json, "switch", lambda found: found.switch(), **options)


@command
def settle(
    data: Data,
    vector: Vector = None,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Check again after this long, for writers that opened the data before the switch.",
        ),
    ] = 0.0,
    cache: Cache = None,
    switch_timeout: SwitchTimeout = 60.0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Embed what other writers changed since it was staged; the migration can then be finished."""
    options = {"cache": cache, "switch_timeout_s": switch_timeout}
    _step(data, vector, dry_run, as_json, "settle", lambda found: found.settle(grace_s=grace), **options)


@command
def finish(data: Data, vector: Vector = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """End a settled migration: remove the old vectors and everything else that a rollback needs."""
    _step(data, vector, dry_run, as_json, "finish", lambda found: found.finish())


@command
def rollback(
    data: Data,
    vector: Vector = None,
    cache: Cache = None,
    switch_timeout: SwitchTimeout = 60.0,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Restore the old vectors and the old function; rows written since the switch are embedded with it.

    More than 100 rows that have no old vector are embedded with `--yes` only.
    """
    options = {"cache": cache, "switch_timeout_s": switch_timeout}
    _step(data, vector, dry_run, as_json, "rollback", lambda found: found.rollback(yes=yes), **options)


@command
def abandon(data: Data, vector: Vector = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove what a migration has staged, before its switch; the data stays as it is."""
    _step(data, vector, dry_run, as_json, "abandon", lambda found: found.abandon())
