"""`embedreg ddl duckdb`: the SQL that carries the declarations of data through DuckDB, printed and never run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import terminal
from embedreg.cli.session import AsJson, command
from embedreg.datasets import places
from embedreg.errors import MetadataError
from embedreg.support.display import printable

if TYPE_CHECKING:
    from embedreg.declaration.entries import Entry

__all__ = ["duckdb"]


@command
def duckdb(
    data: Annotated[str, typer.Argument(help="What declares the functions: a Parquet file or folder, a Lance table.")],
    table: Annotated[str, typer.Option(help='The table in DuckDB: `articles`, `main.articles` or `"my table"`.')] = "",
    to: Annotated[str | None, typer.Option(help="The Parquet file that COPY writes; by default TABLE.parquet.")] = None,
    name: Annotated[
        str, typer.Option(help="The SQL function of the search: engines.duckdb.install(..., name=...).")
    ] = ("ai_embed"),
    as_json: AsJson = False,
) -> None:
    """Print the table, its COMMENTs, a COPY and a search that keep or use what DATA declares.

    DuckDB drops the schema's metadata. Column comments keep a declaration in a database, and the KV_METADATA clause of
    COPY keeps it in a Parquet file; `embedreg.functions_in` reads both. What cannot be rebuilt here is carried too.
    """
    from embedreg.engines.duckdb import sql

    place = places.find(data)
    entries = _entries(place.path)
    table = table or sql.identifier(place.path.stem)
    created = {}
    if place.kind == "parquet":
        source = place.path / "**" / "*.parquet" if place.path.is_dir() else place.path
        created = {"create_table": sql.create_table_statement(table, str(source), entries)}
    found: dict[str, Any] = {
        **created,
        "comments": sql.comment_statements(table, entries),
        "copy": sql.copy_statement(table, to or f"{sql.parts_of(table)[-1]}.parquet", entries),
        "searches": [sql.search_statement(table, entry, name) for entry in entries],
    }
    if as_json:
        terminal.print_json(found)
        return
    _refuse_unprintable(table, to or "", name, str(place.path), *(entry.vector_column for entry in entries))
    parts = ["-- the table, its vectors with their length", created["create_table"]] if created else []
    parts += ["-- what made the vectors, in the database", *found["comments"]]
    parts += ["-- the same in a Parquet file", found["copy"]]
    parts += [f"-- after embedreg.engines.duckdb.install(con, ..., name={name!r}) in Python", *found["searches"]]
    sys.stdout.write("\n".join(f"\n{part}" if part.startswith("--") else part for part in parts).strip() + "\n")


def _refuse_unprintable(*names: str) -> None:
    """Refuse names that would steer the terminal or break a line: in quotes, DuckDB's SQL has no escapes for them.

    Raises:
        MetadataError: naming it.
    """
    for name in names:
        if printable(name) != name or "\n" in name:
            raise MetadataError(
                f"the name {name!r} holds characters that cannot be shown in SQL.", "rename it, or read --json"
            )


def _entries(path: Path) -> list[Entry]:
    """Return the declarations of data.

    Raises:
        MetadataError: there are none, or one of them holds what must not be printed.
    """
    from embedreg import functions_in
    from embedreg.inspection.locate import refuse_clear_secrets

    entries = functions_in(path).entries
    for entry in entries.values():
        refuse_clear_secrets(entry)
    return list(entries.values())
