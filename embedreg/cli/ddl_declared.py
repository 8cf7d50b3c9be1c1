"""`embedreg ddl <engine>`: print the SQL that stores the declarations of data in an engine; nothing is run.

Every engine with a `ddl` has a command. Plug-ins are loaded only when `embedreg ddl` is used.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperGroup

from embedreg.cli import terminal
from embedreg.cli.session import TRUST, AsJson, command
from embedreg.datasets import places
from embedreg.errors import MetadataError
from embedreg.inspection.engines import Declared, Engine, Statements, engines
from embedreg.support.display import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedreg.declaration.entries import Entry

__all__ = ["EngineGroup", "refuse_unprintable", "statements_text"]

_Data = Annotated[str, typer.Argument(help="What declares the functions: a Parquet file or folder, a Lance table.")]


class EngineGroup(TyperGroup):
    """The commands of `embedreg ddl`: its own, and one for each engine that writes DDL."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_engines()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self._add_engines()
        return super().get_command(ctx, cmd_name)

    def _add_engines(self) -> None:
        for name, engine in engines().items():
            if engine.ddl is not None and name not in self.commands:
                self.add_command(_command(name, engine), name)


def _command(name: str, engine: Engine) -> Any:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, epilog=TRUST, short_help=engine.ddl_help)(_body(engine))
    return typer.main.get_command(app)


def _body(engine: Engine) -> Any:
    """Return a command function with the options of the engine's `ddl`."""
    write = engine.ddl
    assert write is not None  # guaranteed by `EngineGroup`

    def body(data: str, as_json: bool, **options: Any) -> None:
        place = places.find(data)
        declared = Declared(place.path, place.kind, _entries(place.path))
        statements = write(declared, **options)
        if as_json:
            terminal.print_json({each.key: each.sql for each in statements})
            return
        texts = [value for value in options.values() if isinstance(value, str)]
        refuse_unprintable(*texts, str(place.path), *(entry.vector_column for entry in declared.entries))
        sys.stdout.write(statements_text(statements))

    shared = {"data": _Data, "as_json": AsJson}
    options = [_option(each) for each in inspect.signature(write, eval_str=True).parameters.values()]
    first, last = (
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind, default=default)
        for (name, kind), default in zip(shared.items(), (inspect.Parameter.empty, False), strict=True)
    )
    parameters = [first, *filter(None, options), last]
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typeshed has no such attribute
    body.__doc__ = inspect.getdoc(write)
    return command(body)


def _option(parameter: inspect.Parameter) -> inspect.Parameter | None:
    """Return a keyword-only parameter as a command-line option with its help; None for other parameters."""
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return None
    annotation = parameter.annotation
    if get_origin(annotation) is Annotated:
        kind, help_text, *_ = get_args(annotation)
        annotation = Annotated[kind, typer.Option(help=help_text)]
    return parameter.replace(annotation=annotation, kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)


def statements_text(statements: Sequence[Statements]) -> str:
    """Return statements as text to paste, each purpose under a comment."""
    parts = [part for each in statements for part in (f"-- {each.heading}", *each.listed)]
    return "\n".join(f"\n{part}" if part.startswith("--") else part for part in parts).strip() + "\n"


def refuse_unprintable(*names: str) -> None:
    """Raise for names with control characters, which SQL cannot escape in quotes.

    Raises:
        MetadataError: the message names it.
    """
    for name in names:
        if printable(name) != name or "\n" in name:
            raise MetadataError(
                f"the name {name!r} holds characters that cannot be shown in SQL.", "rename it, or read --json"
            )


def _entries(path: Path) -> list[Entry]:
    """Return the declarations of data.

    Raises:
        MetadataError: there are none, or one contains a secret.
    """
    from embedreg import functions_in
    from embedreg.inspection.locate import refuse_clear_secrets

    entries = functions_in(path).entries
    for entry in entries.values():
        refuse_clear_secrets(entry)
    return list(entries.values())
