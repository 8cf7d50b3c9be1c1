"""The options that the commands of `embedreg column` share, and the data that they work on."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedreg.cli import terminal
from embedreg.cli.embed import parse_settings
from embedreg.cli.session import common_arguments
from embedreg.datasets import places

if TYPE_CHECKING:
    from embedreg.columns import Migration
    from embedreg.core.base import EmbeddingFunction

__all__ = [
    "BatchRows",
    "Cache",
    "Data",
    "DryRun",
    "Html",
    "Key",
    "MaxBadRows",
    "OnError",
    "Settings",
    "SwitchTimeout",
    "To",
    "Vector",
    "Vectors",
    "Yes",
    "function_of",
    "migration_of",
    "path_of",
    "progress",
    "try_next",
    "vector_of",
]

Data = Annotated[
    str,
    typer.Argument(
        metavar="TABLE",
        help="DB_DIR/name.lance, a Parquet or Arrow file or a folder of them, or FILE.duckdb/table.",
    ),
]
Vector = Annotated[str | None, typer.Option(help="The vector column, where TABLE declares several.")]
Vectors = Annotated[
    list[str] | None, typer.Option("--vector", help="A vector column; all declared ones by default. Repeatable.")
]
To = Annotated[str, typer.Option("--to", metavar="FUNCTION", help="The new function's name.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A field of the function, as JSON or plain text. Repeatable."),
]
OnError = Annotated[
    Literal["null", "raise"],
    typer.Option(help="A row that cannot be embedded: keep it without a vector, or stop before anything changes."),
]
MaxBadRows = Annotated[int | None, typer.Option(min=0, help="Stop when more rows than this have failed.")]
BatchRows = Annotated[int, typer.Option(min=1, help="Rows held in memory at a time.")]
Cache = Annotated[
    str | None, typer.Option(metavar="PATH", help="Keep vectors in this file, and reuse those that it has.")
]
Key = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that identifies rows, to merge changes.")]
SwitchTimeout = Annotated[
    float, typer.Option(metavar="SECONDS", help="How long a commit is tried again while others write.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Proceed where the command would refuse and ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done; write nothing.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report as one HTML file.")]


def path_of(data: str) -> Path:
    """Return the path of the data that an argument names; a Lance table may be given as DB_DIR/name.

    Raises:
        StorageError: there is no such data. ConfigError: it is on an object store.
    """
    from embedreg.columns.arguments import on_object_store
    from embedreg.columns.opening import is_known
    from embedreg.datasets.storage import is_uri

    name = data.removeprefix("file://")
    if is_uri(name):
        raise on_object_store(name)
    path = Path(name)
    return path if is_known(path) else places.find(name, ("lance", "parquet", "arrow")).path


def function_of(name: str, settings: list[str] | None) -> EmbeddingFunction:
    """Return the function of `--to` or `--function` and `--set`."""
    from embedreg import get

    return get(name).create(**parse_settings(settings or []))


def vector_of(data: Path, vector: str | None) -> str:
    """Return the vector column that is meant: the only declared one by default.

    Raises:
        typer.BadParameter: several are declared, or none is.
    """
    if vector is not None:
        return vector
    from embedreg.columns.opening import opened

    names = [entry.vector_column for entry in opened(data).declared()]
    if len(names) == 1:
        return names[0]
    if not names:
        raise typer.BadParameter(f"{data} declares no vector column; `embedreg column add` adds one.")
    raise typer.BadParameter(f"--vector is needed: {data} declares {', '.join(names)}.")


def migration_of(data: Path, vector: str | None, **options: Any) -> Migration:
    """Return the migration of a column: the only one by default.

    Args:
        options: those of `columns.migrations`.
    Raises:
        typer.BadParameter: there is none, or several and no `--vector`.
    """
    from embedreg.columns import migrations

    found = migrations(data, **options)
    if vector is not None:
        found = [each for each in found if vector in (each.status.vector, each.status.name)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise typer.BadParameter(f"no migration of {data} is in progress; `embedreg column migrate` begins one.")
    raise typer.BadParameter(f"--vector is needed: {', '.join(each.vector for each in found)} are being migrated.")


@contextmanager
def progress(what: str, data: Path) -> Iterator[Callable[[int, int | None], None]]:
    """Show a progress bar; after an interruption, print that the same command continues."""
    try:
        with terminal.rows_progress(what, None) as bar:
            yield bar
    except KeyboardInterrupt:
        terminal.note(f"{data}: finished work is kept; the same command continues")
        raise


def try_next(command: str, data: str, *options: str) -> None:
    """Print a note with the command that comes next."""
    shared = [each for each in common_arguments() if each != "--debug"]
    terminal.note(f"next: embedreg column {shlex.join([command, data, *options, *shared])}")
