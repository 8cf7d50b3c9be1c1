"""The functions to serve and their SQL names, from the command line or a file.

`--function NAME` and `--like DATA` each start a group, to which the following `--set`, `--as` and `--vector` belong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from embedreg.cli.embed import parse_settings
from embedreg.datasets import places

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunctionConfig
    from embedreg.core.role import Role
    from embedreg.engines.databend.spec import Input, Returns, Served

__all__ = [
    "As",
    "Function",
    "Group",
    "Grouped",
    "Like",
    "Set",
    "Vector",
    "Wanted",
    "build",
    "wanted",
]

Function = Annotated[
    list[str] | None, typer.Option("--function", "-f", metavar="NAME", help="Serve this function. Repeatable.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A field of the --function before it, as JSON or plain text. Repeatable."
    ),
]
Like = Annotated[
    list[str] | None,
    typer.Option("--like", metavar="DATA", help="Serve what this Parquet or Lance table declares. Repeatable."),
]
As = Annotated[
    list[str] | None,
    typer.Option(
        "--as", metavar="SQL_NAME", help="The name in SQL of the --function or --like before it; else ai_embed_<width>."
    ),
]
Vector = Annotated[
    list[str] | None,
    typer.Option("--vector", metavar="COLUMN", help="The vector column, if the --like before it has several."),
]

_FLAGS = {"settings": "--set", "as_": "--as", "vector": "--vector"}  # options that belong to a preceding one
_ORDER = "embedreg.cli.served"


class Grouped(TyperCommand):
    """A command that records the order of its repeatable options."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # typer's own Context
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        lists = {name: iter(given) for name, given in values.items() if isinstance(given, list)}
        ctx.meta[_ORDER] = [(each.name, next(lists[each.name])) for each in order if each.name in lists]
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Wanted:
    """A function to serve.

    Attributes:
        function, like: the function's name, or the data that declares it.
        name: the SQL name; None for `ai_embed_<width>`.
        vector: the vector column of `like`.
        settings: the fields of `function`.
        role, input, returns: as in `Served`; None for the function's defaults.
    """

    function: str | None = None
    like: str | None = None
    name: str | None = None
    vector: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    role: Role | None = None
    input: Input | None = None
    returns: Returns | None = None


@dataclass(frozen=True)
class Group:
    """A function with its SQL functions.

    Attributes:
        rows: the SQL function for rows of a table, or for the requested role.
        queries: the SQL function for queries, if they are embedded differently.
        config: the declaration that it was read from, if any.
        place: the data that has it.
    """

    rows: Served
    queries: Served | None
    config: EmbeddingFunctionConfig | None
    place: places.Place | None = None

    @property
    def served(self) -> list[Served]:
        """All SQL functions of the group."""
        return [self.rows] if self.queries is None else [self.rows, self.queries]


def wanted(ctx: typer.Context) -> list[Wanted]:
    """Return the functions requested by the options of a `Grouped` command, in order.

    Raises:
        typer.BadParameter: an option without a preceding --function or --like.
    """
    groups: list[list[tuple[str, str]]] = []
    for option, value in ctx.meta[_ORDER]:
        if option in ("function", "like"):
            groups.append([(option, value)])
        elif option in _FLAGS:
            if not groups:
                raise typer.BadParameter(f"{_FLAGS[option]} {value}: give it after a --function or --like.")
            groups[-1].append((option, value))
    return [_of_group(*group) for group in groups]


def _of_group(first: tuple[str, str], *rest: tuple[str, str]) -> Wanted:
    kind, what = first
    given = {option: [value for each, value in rest if each == option] for option in _FLAGS}
    for option, foreign in (("settings", "like"), ("vector", "function")):
        if given[option] and kind == foreign:
            raise typer.BadParameter(
                f"{_FLAGS[option]} {given[option][0]}: it cannot be combined with --{kind} {what}."
            )
    for option in ("as_", "vector"):
        if len(given[option]) > 1:
            raise typer.BadParameter(f"{_FLAGS[option]} is given twice for --{kind} {what}.")
    name, vector = (next(iter(given[option]), None) for option in ("as_", "vector"))
    settings = parse_settings(given["settings"])
    return Wanted(**{kind: what}, name=name, vector=vector, settings=settings)  # type: ignore[arg-type]  # a name or data


def build(each: Wanted, returns: Returns) -> Group:
    """Create a function, or rebuild the one that data declares, without loading a model.

    Args:
        each: the requested function.
        returns: the default result type.
    Raises:
        EmbedregError: the function cannot be created, or the data declares none or several.
    """
    from embedreg import functions_in, get
    from embedreg.cli.search import choose
    from embedreg.core.modality import TEXT, refusal, sql_modality
    from embedreg.engines.databend.spec import Served, inputs
    from embedreg.engines.databend.worker import queries_differ

    config = place = None
    if each.like is not None:
        place = places.find(each.like)
        config = choose(functions_in(place.path), each.vector, str(place.path))
        function = config.function
    else:
        function = get(str(each.function)).create(**each.settings)
    embedded = sql_modality(function)
    kind = each.input or embedded.name
    if kind not in inputs() and each.input is None:
        raise refusal(function, embedded, "Databend", inputs())
    name = each.name or f"ai_embed_{function.ndims()}"
    returns = each.returns or returns
    rows = Served(name, function, each.role or "source", kind, returns)
    alone = each.role is not None or not (queries_differ(function) or kind != TEXT.name)
    return Group(rows, None if alone else Served(f"{name}_query", function, "query", TEXT.name, returns), config, place)
