"""`embedreg column audit`, `identify` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import exits, terminal
from embedreg.cli.column_options import Data, Html, Settings, To, Vector, Vectors, function_of, path_of, vector_of
from embedreg.cli.session import AsJson, command

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction

__all__ = ["audit", "compare", "identify"]

_FINE = ("sound", "unknown")
Candidates = Annotated[
    list[str] | None,
    typer.Option(
        "--candidate",
        metavar="FUNCTION[:K=V,...]",
        help="A function that may have made vectors; by default those that are installed and need no key, host or "
        "download. Repeatable.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Which rows.")]


@command
def audit(
    data: Data,
    vectors: Vectors = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows are embedded again and compared.")] = 300,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the bound.")] = 0.95,
    candidates: Candidates = None,
    no_scan: Annotated[bool, typer.Option("--no-scan", help="Do not read the whole column.")] = False,
    seed: Seed = 0,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Find out whether the declared function made the vectors of the texts that are there now; if not, why.

    Exit code 4 if a column is neither sound nor unknown.
    """
    from embedreg import columns

    path = path_of(data)
    with terminal.status("embedding a sample"):
        found = columns.audit(
            path,
            vectors or None,
            sample=sample,
            confidence=confidence,
            candidates=_functions(candidates),
            scan=not no_scan,
            seed=seed,
        )
    _show(found, html, as_json)
    if any(each.verdict not in _FINE for each in found):
        raise typer.Exit(exits.DRIFT)


@command
def identify(
    data: Data,
    vector: Annotated[str, typer.Option(help="The vector column; it need not be declared.")],
    source: Annotated[
        str | None, typer.Option(help="The column that was embedded; by default each text column is tried.")
    ] = None,
    candidates: Candidates = None,
    sample: Annotated[int, typer.Option(min=1, help="How many rows are embedded with each candidate.")] = 30,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find the function that made undeclared vectors, best guess first; nothing is written."""
    from embedreg import columns

    path = path_of(data)
    with terminal.status("embedding a sample with each candidate"):
        found = columns.identify(
            path, vector, source=source, candidates=_functions(candidates), sample=sample, seed=seed
        )
    _show(found, None, as_json)


@command
def compare(
    data: Data,
    to: To,
    settings: Settings = None,
    vector: Vector = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help='Lines of {"query": "...", "answers": [key or text, ...]}.'),
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that answers name rows by.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many rows a query finds.")] = 10,
    corpus: Annotated[int, typer.Option(min=1, help="The maximum number of rows to search.")] = 20_000,
    sample: Annotated[int, typer.Option(min=1, help="Without pairs: how many rows serve as queries.")] = 200,
    price: Annotated[
        float | None, typer.Option("--price-per-million-tokens", min=0, help="For the cost of embedding all rows.")
    ] = None,
    seed: Seed = 0,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """Compare what another function finds with what the present one finds, before a migration; nothing is written."""
    from embedreg import columns

    path = path_of(data)
    options: dict[str, Any] = {} if key is None else {"key": key}
    options |= {} if price is None else {"price_per_million_tokens": price}
    with terminal.status("embedding"):
        found = columns.compare(
            path,
            vector_of(path, vector),
            function_of(to, settings),
            pairs=pairs,
            k=k,
            corpus=corpus,
            sample=sample,
            seed=seed,
            **options,
        )
    _show([found], html, as_json)


def _show(found: Any, html: Path | None, as_json: bool) -> None:
    if html is not None:
        from embedreg.columns.report import write_report

        write_report(html, found)
    if as_json:
        terminal.print_json([each.as_dict() for each in found])
        return
    for number, each in enumerate(found):
        if number:
            terminal.say()
        terminal.say(terminal.folded(str(each)), lines=True)


def _functions(candidates: list[str] | None) -> list[EmbeddingFunction] | None:
    """Return the functions of `--candidate name:key=value,key=value`; None for the default ones."""
    return [_function(each) for each in candidates] if candidates else None


def _function(text: str) -> EmbeddingFunction:
    name, _, rest = text.partition(":")
    pairs: list[str] = []
    for part in rest.split(",") if rest else []:
        if "=" in part or not pairs:
            pairs.append(part)
        else:
            pairs[-1] += f",{part}"  # a comma in a value
    return function_of(name, pairs)
