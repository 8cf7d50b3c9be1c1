"""`embedreg chunk`: cut long texts into chunks, embed these, and keep them up to date."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embedreg.cli import terminal
from embedreg.cli.embed import parse_settings
from embedreg.cli.session import AsJson, command

if TYPE_CHECKING:
    from embedreg.chunks import ChunkReport

__all__ = ["chunk"]


@command
def chunk(
    src: Annotated[
        str,
        typer.Argument(help="The parents: a file, a folder or a pattern as for `embedreg embed`, or a Lance table."),
    ],
    dst: Annotated[
        str, typer.Argument(help="The chunks: one .parquet or .arrow file, or DB_DIR/name.lance for a LanceDB table.")
    ],
    function: Annotated[
        str | None,
        typer.Option("--function", "-f", help="The function's name; without it, DST is updated as it was made."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the function, as JSON or plain text. Repeatable."),
    ] = None,
    key: Annotated[str, typer.Option(help="The column that identifies parents.")] = "id",
    source: Annotated[str, typer.Option(help="The column of their texts.")] = "text",
    splitter: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="sentences, markdown, tokens, semchunk, or a callable as module:function. [default: sentences]",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of a chunk. [default: 256, or what the model takes]")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=0, help="The most tokens that neighbours share. [default: an eighth, at most 32]")
    ] = None,
    text: Annotated[str, typer.Option(help="The column for the chunks' texts in DST.")] = "text",
    vector: Annotated[str, typer.Option(help="The column for their vectors in DST.")] = "vector",
    on_error: Annotated[
        Literal["raise", "null"],
        typer.Option(help="When a chunk cannot be embedded: stop, or store null."),
    ] = "raise",
    cache: Annotated[
        str | None, typer.Option(metavar="PATH", help="A vector cache: a file with the vectors of earlier runs.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Drop what an interrupted run left beside a file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Cut the texts of SRC into chunks and write them with their vectors to DST, a row per chunk.

    A later run applies the changes of SRC: changed, new and removed parents. Chunks whose text is unchanged are not
    embedded again, and no reader sees chunks of two versions of a parent. After an interruption, the same command
    continues.
    """
    from embedreg import chunks, get

    shared: dict[str, Any] = {"on_error": on_error, "cache": cache}
    with terminal.rows_progress("cutting", None) as bar:
        if function is None:
            if settings or size is not None or overlap is not None:
                raise typer.BadParameter("--function NAME is needed with --set, --size and --overlap.")
            report = chunks.sync(dst, parent=src, splitter=splitter, progress=bar, **shared)
        else:
            declaration = get(function).create(**parse_settings(settings or [])).bind(text, vector)
            report = chunks.chunk(
                src,
                dst,
                declaration,
                key=key,
                source=source,
                splitter=splitter or "sentences",
                size=size,
                overlap=overlap,
                progress=bar,
                resume=not fresh,
                **shared,
            )
    if as_json:
        found = {each.name: getattr(report, each.name) for each in dataclasses.fields(report)}
        bad = [{"row": row.row, "reason": str(row.reason)} for row in report.bad]
        terminal.print_json({**found, "bad": bad, "usage": report.usage.to_dict()})
        return
    _print(report)


def _print(report: ChunkReport) -> None:
    if not report.cut and not report.removed and not report.written:
        terminal.say(f"{report.path}: nothing to do, {terminal.count(report.chunks, 'chunk')} are up to date")
        return
    facts = [f"{report.cut:,} of {terminal.count(report.parents, 'parent')} cut"]
    facts += [f"{terminal.count(report.removed, 'parent')} removed"] if report.removed else []
    facts += [f"{terminal.count(report.written, 'chunk')} written"]
    facts += [f"{report.reused:,} with the vectors that they had"] if report.reused else []
    facts += [f"{terminal.count(report.embedded, 'distinct text')} embedded"]
    facts += [f"{len(report.bad):,} bad"] if report.bad else []
    terminal.say(f"{report.path}: {', '.join(facts)}; {terminal.count(report.chunks, 'chunk')} in all")
    if not report.exact:
        terminal.note("the function counts no tokens: four bytes of text were taken for one")
