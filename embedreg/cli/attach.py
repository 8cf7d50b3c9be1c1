"""`embedreg attach`: declare the function that made the vectors of data, after checking it on a sample."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from embedreg.cli import terminal
from embedreg.cli.embed import Template, parse_settings, template_of
from embedreg.cli.session import AsJson, command
from embedreg.datasets import places

__all__ = ["attach_function"]


@command
def attach_function(
    data: Annotated[str, typer.Argument(help="A .lance folder, DB_DIR/name, or a Parquet file or folder of them.")],
    function: Annotated[str, typer.Option("--function", "-f", help="The name of the function that made the vectors.")],
    vector: Annotated[str, typer.Option(help="The column that holds the vectors.")],
    source: Annotated[str | None, typer.Option(help="The column that was embedded.")] = None,
    template: Template = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the function, as JSON or plain text. Repeatable."),
    ] = None,
    sample: Annotated[int, typer.Option(min=1, help="The number of rows to embed again and compare.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the sample.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Declare a function on data that lost its declaration, or never had one.

    A sample of the rows is embedded again. Only where all of it agrees with the stored vectors is the declaration
    written: into the file's or table's schema, or for a folder into its manifest. No vector is changed.
    """
    from embedreg import attach, get

    text = template_of(template, source)
    if source is None and text is None:
        raise typer.BadParameter("--source NAME is needed, or --template.")
    place = places.find(data)
    binding = get(function).create(**parse_settings(settings or [])).bind(source, vector, template=text)
    with terminal.status("embedding a sample"):
        found = attach(place.path, binding, sample=sample, seed=seed)
    if as_json:
        terminal.print_json({**dataclasses.asdict(found), "written": found.written and str(found.written)})
        return
    terminal.say(
        f"{found.compared:,} of {found.rows:,} rows embedded again: cosine {found.lowest:.5f} at the lowest, "
        f"{found.median:.5f} at the median"
    )
    terminal.say("declared already" if found.written is None else f"declared in {found.written}")
