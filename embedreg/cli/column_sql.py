"""`--engine databend --print`: the statements of `embedreg column add`, `refresh` and `migrate`; nothing is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from embedreg.cli import terminal
from embedreg.cli.ddl_declared import refuse_unprintable, statements_text

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction
    from embedreg.engines.databend.changes import Column
    from embedreg.inspection.engines import Statements

__all__ = ["As", "Engine", "Print", "Returns", "Version", "column_of", "is_printed", "show"]

Engine = Annotated[
    Literal["databend"] | None, typer.Option(help="Print the SQL for a table of this database; needs --print.")
]
Print = Annotated[bool, typer.Option("--print", help="With --engine: print the statements; nothing is run.")]
As = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="SQL_NAME", help="With --engine: the SQL function for rows. [default: ai_embed_<width>]"
    ),
]
Version = Annotated[
    str, typer.Option("--databend-version", metavar="1.2.453|current", help="With --engine: whose SQL.")
]
Returns = Annotated[
    Literal["array", "vector"], typer.Option(help="With --engine: the type of the vectors; vector needs `current`.")
]


def is_printed(engine: str | None, print_: bool) -> bool:
    """Return whether statements are printed.

    Raises:
        typer.BadParameter: one of the two options is missing.
    """
    if engine is None and print_:
        raise typer.BadParameter("--print needs --engine databend.")
    if engine is not None and not print_:
        raise typer.BadParameter(f"--engine {engine} runs nothing: add --print.")
    return engine is not None


def column_of(
    table: str,
    function: EmbeddingFunction,
    source: str,
    vector: str,
    name: str | None,
    version: str,
    returns: str,
    template: str | None = None,
) -> Column:
    """Return a vector column of a Databend table."""
    from embedreg.columns.declare import entry_for
    from embedreg.engines.databend.changes import Column
    from embedreg.inspection.locate import refuse_clear_secrets

    entry = entry_for(function.bind(source, vector, template=template), digest=True)
    refuse_clear_secrets(entry)
    refuse_unprintable(table, source, vector, name or "")
    return Column(table, entry, name or f"ai_embed_{function.ndims()}", version, returns)


def show(statements: Sequence[Statements], *, as_json: bool) -> None:
    """Print statements."""
    if as_json:
        terminal.print_json({each.key: each.sql for each in statements})
        return
    sys.stdout.write(statements_text(statements))
