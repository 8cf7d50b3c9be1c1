"""The typer application with all commands."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from embedreg import __version__
from embedreg.cli import exits
from embedreg.cli.session import TRUST, report

__all__ = ["app"]

# \b in the first line preserves the line breaks of the paragraph.
_EPILOG = "\n".join(
    [
        "\b",
        "Examples:",
        "  embedreg embed notes.jsonl notes.parquet -f sentence-transformers",
        '  embedreg search notes.parquet "pay the bill"',
        "  embedreg inspect notes.parquet --check",
        "",
        "\b",
        "Exit codes: 0 done, 1 error, 2 usage, 3 not granted, 4 drift, 5 missing",
        "library or model; the others: docs/command-line.md",
        "",
        "\b",
        "Every command takes --import, --config, --env and --debug, and what data",
        "may ask for: --trust-path, --trust-host, --trust-variable, --trust-field,",
        "--trust-remote-code, --allow-dir, --allow-host, --allow-private-host:",
        "docs/trust.md",
    ]
)

# name -> (module of this package, function or group of commands, short help)
_COMMANDS = {
    "demo": ("demo", "demo", "Run the demo on real data."),
    "search": ("search", "search", "Search a table or a Parquet file with plain text."),
    "embed": ("embed", "embed", "Fill a file or a LanceDB table with vectors."),
    "chunk": ("chunk", "chunk", "Cut long texts into chunks with vectors, kept up to date."),
    "bench": ("bench", "bench", "Measure how fast a function is, and where the time goes."),
    "inspect": ("inspect", "inspect_data", "Show what made the vectors of data; --check for drift."),
    "attach": ("attach", "attach_function", "Declare the function that made data's vectors, after a check."),
    "functions": ("functions", "functions", "List the embedding functions, or show one."),
    "doctor": ("doctor", "doctor", "Show what is installed, what is missing, how to get it."),
    "column": ("column", "column", "Change the function of vectors, refresh them, undo it."),
    "serve": ("serve", "serve", "Serve embedding functions to a database."),
    "ddl": ("ddl", "ddl", "Print SQL for embedding functions; nothing is run."),
}


class _Group(TyperGroup):
    """The group of all commands; a command is imported when it is used."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _COMMANDS:
            self.commands[args[0]] = _loaded(args[0])
        return super().resolve_command(ctx, args)


def _loaded(name: str) -> Any:
    """Return a command with its options."""
    module, attribute, words = _COMMANDS[name]
    body = getattr(import_module(f"embedreg.cli.{module}"), attribute)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    if isinstance(body, typer.Typer):
        alone.add_typer(body, name=name)
    else:
        alone.command(name, short_help=words, epilog=TRUST)(body)
    return typer.main.get_group(alone).commands[name]


_commands = typer.Typer(
    name="embedreg",
    cls=_Group,
    help="Embedding functions that travel with the data: declare one, fill a table, search it with plain text.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,  # completion would write to the user's shell files
    pretty_exceptions_enable=False,  # errors are printed by session.py
    rich_markup_mode=None,  # plain text, for programs and narrow terminals
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"embedreg {__version__}")
        raise typer.Exit


@_commands.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Define the options of `embedreg` itself."""


def _unloaded() -> None:
    """Stand in for a command in the list of `embedreg --help`."""


for _name, (_, _, _help) in _COMMANDS.items():
    _commands.command(_name, short_help=_help)(_unloaded)


def app(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    try:
        _commands(args=None if argv is None else list(argv), prog_name="embedreg")
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else int(exc.code is not None)
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001  # errors before or after a command's session
        return report(exc)
    return exits.OK
