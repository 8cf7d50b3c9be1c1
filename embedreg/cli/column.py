"""`embedreg column`: the life of a vector column; its commands are imported when one of them is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from embedreg.cli.session import TRUST

__all__ = ["column"]

# name: (module, function, one line of help)
_COMMANDS = {
    "status": ("data", "status", "Count fresh, stale, foreign and missing vectors; no model runs."),
    "add": ("data", "add", "Add a vector column to a table or dataset."),
    "fill": ("data", "fill", "Embed the rows that have no vector."),
    "refresh": ("data", "refresh", "Embed the rows that are not up to date."),
    "audit": ("check", "audit", "Find out whether the declared function made the vectors."),
    "identify": ("check", "identify", "Find the function that made undeclared vectors."),
    "compare": ("check", "compare", "Compare another function with the present one."),
    "migrate": ("migrate", "migrate", "Change the function of a column, with a way back."),
    "switch": ("migrate", "switch", "Publish the staged vectors of a migration."),
    "settle": ("migrate", "settle", "Embed what other writers changed during a migration."),
    "finish": ("migrate", "finish", "Remove what a rollback needs."),
    "rollback": ("migrate", "rollback", "Restore the old vectors and function."),
    "abandon": ("migrate", "abandon", "Remove what was staged, before a switch."),
    "repoint": ("data", "repoint", "Declare the same model at another place."),
    "detach": ("data", "detach", "Remove a declaration; --drop removes the column."),
}


class _Group(TyperGroup):
    """The group; `embedreg --help` must not pay for its commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in _COMMANDS and cmd_name not in self.commands:
            module, function, words = _COMMANDS[cmd_name]
            body = getattr(import_module(f"embedreg.cli.column_{module}"), function)
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(cmd_name, epilog=TRUST, short_help=words)(body)
            self.add_command(typer.main.get_command(app), cmd_name)
        return super().get_command(ctx, cmd_name)


column = typer.Typer(
    cls=_Group,
    help="Add vectors to data, keep them up to date, change their function, and undo it.",
    short_help="Change the function of vectors, refresh them, undo it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@column.callback()
def _of_columns() -> None:
    """Add vectors to data, keep them up to date, change their function, and undo it."""
