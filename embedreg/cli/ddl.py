"""`embedreg ddl`: print the SQL that declares embedding functions in a database; nothing is run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import terminal
from embedreg.cli.ddl_declared import EngineGroup
from embedreg.cli.served import As, Function, Group, Grouped, Like, Set, Vector, build, wanted
from embedreg.cli.session import TRUST, AsJson, command
from embedreg.support.display import plain

if TYPE_CHECKING:
    from embedreg.datasets import places
    from embedreg.engines.databend.spec import Returns
    from embedreg.engines.databend.sql import Layout

__all__ = ["ReturnType", "TokenEnv", "Version", "as_comment", "ddl", "described", "notes", "returns_of"]

ddl = typer.Typer(
    cls=EngineGroup,
    help="Print SQL that declares embedding functions in a database; nothing is run.",
    short_help="Print SQL for embedding functions; nothing is run.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Version = Annotated[
    str | None,
    typer.Option(
        "--databend-version", metavar="1.2.453|current", help="The version of Databend; SQL for 1.2.453 runs on both."
    ),
]
ReturnType = Annotated[
    str | None,
    typer.Option(
        "--returns", metavar="array|vector", help="ARRAY(FLOAT), or VECTOR(n), which needs version `current`."
    ),
]
TokenEnv = Annotated[
    str | None, typer.Option(metavar="VARIABLE", help="The environment variable with the token that callers must send.")
]


@command
def databend(
    ctx: typer.Context,
    function: Function = None,
    settings: Set = None,
    like: Like = None,
    as_: As = None,
    vector: Vector = None,
    address: Annotated[str, typer.Option(help="The server's address, as Databend calls it.")] = "http://127.0.0.1:8815",
    table: Annotated[str, typer.Option(help="The table to search: `table` or `database.table`.")] = "articles",
    version: Version = None,
    returns: ReturnType = None,
    auth_token_env: TokenEnv = None,
    as_json: AsJson = False,
) -> None:
    """Print CREATE FUNCTION, a table with its vectors, searches, and Databend's own configuration.

    The tables and the searches are those of the first function. The token itself is never printed.
    """
    from embedreg.engines.databend import sql

    version = version or sql.VERSIONS[0]
    asked = wanted(ctx)
    if not asked:
        raise typer.BadParameter("--function NAME or --like DATA is needed (embedreg functions lists the names).")
    groups = [build(each, returns_of(version, returns)) for each in asked]
    found = _statements(groups, version, address, table, token=auth_token_env is not None)
    if as_json:
        terminal.print_json(found)
        return
    parts = [
        as_comment("databend-query.toml, which Databend needs to call the server:", found["server_config"]),
        as_comment("the functions", *found["notes"]),
        *found["create_functions"],
        as_comment("a table, where there is none, and one with its vectors"),
        *found["create_tables"],
        as_comment("the nearest rows: by the stored vectors, and without any"),
        *found["searches"],
    ]
    sys.stdout.write("\n\n".join(parts) + "\n")


ddl.command("databend", cls=Grouped, epilog=TRUST, short_help="For Databend: external functions, tables, searches.")(
    databend
)


def returns_of(version: str, returns: str | None) -> Returns:
    """Return the default result type of functions: VECTOR(n) for a Databend version that has it.

    Raises:
        typer.BadParameter: it is neither "array" nor "vector".
    """
    if returns not in (None, "array", "vector"):
        raise typer.BadParameter(f"--returns {returns}: array or vector.")
    return returns or ("vector" if version == "current" else "array")  # type: ignore[return-value]  # one of the two


def _statements(groups: list[Group], version: str, address: str, table: str, token: bool) -> dict[str, Any]:
    from embedreg.declaration import templates
    from embedreg.engines.databend import sql

    first = groups[0]
    source, column = ("content", "embedding")
    if first.config is not None:
        source, column = first.config.source_column, first.config.vector_column
    others, lacking = (None, []) if first.place is None else _others(first.place, {source, column})
    template = None if first.config is None else templates.of(first.config)
    layout = sql.Layout(table, source, column, others=others, template=template)
    remarks = notes(version, token)
    if lacking:
        remarks.append(f"columns without a type in Databend are left out: {', '.join(map(plain, lacking))}")
    return {
        "version": version,
        "address": address,
        "functions": described(groups),
        "server_config": sql.server_config(address, version=version),
        "notes": remarks,
        "create_functions": [
            sql.create_function(item, address, version=version, token=token)
            for group in groups
            for item in group.served
        ],
        "create_tables": [
            sql.create_source_table(first.rows, layout),
            sql.create_vector_table(first.rows, layout, first.config, version=version),
        ],
        "searches": _searches(first, layout),
    }


def _others(place: places.Place, without: set[str]) -> tuple[list[tuple[str, str]], list[str]]:
    from embedreg.datasets.sources import open_source
    from embedreg.engines.databend.columns import sql_columns

    return sql_columns(open_source(place).schema, without)


def _searches(group: Group, layout: Layout) -> list[str]:
    from embedreg.engines.databend.sql import search

    return [search(group.rows, layout, group.queries, stored=stored) for stored in (True, False)]


def described(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the served functions as JSON data."""
    return [
        {
            "name": item.name,
            "role": item.role,
            "input": item.input,
            "returns": item.returns,
            "ndims": item.function.ndims(),
        }
        for group in groups
        for item in group.served
    ]


def as_comment(*texts: str) -> str:
    """Return lines of text as lines of SQL comments."""
    return "\n".join(f"-- {line}".rstrip() for text in texts for line in text.splitlines())


def notes(version: str, token: bool) -> list[str]:
    """Return notes about the token for the reader of the statements."""
    if not token:
        return []
    if version == "current":
        from embedreg.engines.databend.sql import TOKEN

        return [f"replace {TOKEN} by the token"]
    return [f"Databend {version} sends no token, so the server will reject its calls: use a newer version, or no token"]
