"""`embedreg bench`: measure a function's speed on this machine, its time by stage, and its share of the peak."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedreg.cli import corpus, terminal
from embedreg.cli.embed import parse_settings
from embedreg.cli.session import AsJson, command
from embedreg.datasets import places
from embedreg.datasets.sources import open_source
from embedreg.errors import InputError, MissingColumnError, StorageError
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction
    from embedreg.runtime.progress import Step

__all__ = ["bench"]

_LINEAR = "as torch does them; attention, which is left out, adds some percent"


@command
def bench(
    src: Annotated[
        str | None,
        typer.Argument(help="A .parquet file or folder, .jsonl, .ndjson or .csv; without it, Python's docstrings."),
    ] = None,
    function: Annotated[str, typer.Option("--function", "-f", help="The function's name.")] = "sentence-transformers",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A field of the function, as JSON or plain text. Repeatable."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Short for --set device=...")] = None,
    source: Annotated[str, typer.Option(help="The column to embed.")] = "text",
    rows: Annotated[int, typer.Option(min=1, help="The number of distinct rows, sampled from all.")] = 2000,
    runs: Annotated[int, typer.Option(min=1, help="The number of runs; the fastest one counts.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Embed a sample of a file and report the speed; nothing is written.

    A remote service is called, and may cost money, only when --function names one.
    """
    from embedreg import get

    config = parse_settings(settings or [])
    made = get(function).create(**config, **({} if device is None else {"device": device}))
    if src is None:
        _refuse_others(made)
    texts = _texts(src, source, rows)
    found = _measure(made, texts, runs)
    if as_json:
        terminal.print_json(found)
    else:
        _show(found)


def _refuse_others(function: EmbeddingFunction) -> None:
    """Raise for a function that does not embed texts, since the default sample is Python's docstrings.

    Raises:
        InputError: the message names its modality.
    """
    from embedreg.core.modality import ANY, source_modality

    embedded = source_modality(function)
    if not embedded.by_content and embedded is not ANY:
        raise InputError(
            f"the sample is texts, and {type(function).__name__} embeds {embedded.plural}.",
            "name a file with a column of them: embedreg bench SRC --source COLUMN",
        )


def _texts(src: str | None, column: str, rows: int) -> list[Any]:
    """Return distinct non-blank rows in random order."""
    if src is None:
        values: list[Any] = [doc.text for doc in corpus.collect()]
    else:
        data = open_source(places.find(src, ("parquet", "jsonl", "csv")))
        if column not in data.schema.names:
            hint = f"{did_you_mean(column, data.schema.names)}--source one of: {', '.join(data.schema.names)}"
            raise MissingColumnError(f"{data.place.path} has no column {column!r}.", hint)
        with terminal.rows_progress("reading", data.rows) as progress:
            values = []
            for batch in data.batches([column]):
                values += batch.column(0).to_pylist()
                progress(len(values), data.rows)
    some = (value for value in values if value is not None and str(value).strip())
    filled = list({value if isinstance(value, str | bytes) else repr(value): value for value in some}.values())
    if not filled:
        raise StorageError("there is nothing to embed: every row is null or blank.", "choose another --source")
    random.Random(0).shuffle(filled)  # seeded, so that every run measures the same rows
    return filled[:rows]


def _measure(function: EmbeddingFunction, texts: list[Any], runs: int) -> dict[str, Any]:
    """Measure the runs of a function.

    Returns:
        `rows`, `load_s` (until the first vector), `seconds` and `rows_per_s` (of the fastest run). For a function on
        embedreg's runtime also `tokens`, `tokens_per_s`, `padding` (padded / real tokens - 1), `tokenize_s`, `model_s`,
        `rest_s`, and, if the model's size is known, `share_of_matmul_peak`; otherwise these are None.
    """
    from embedreg.embedding.table import embed_column
    from embedreg.runtime import progress

    start = time.perf_counter()
    embed_column(function, texts[:1])
    found: dict[str, Any] = {"rows": len(texts), "load_s": time.perf_counter() - start, "runs": runs}
    taken: list[tuple[float, list[Step]]] = []
    for number in range(runs):
        steps: list[Step] = []
        with terminal.rows_progress(f"run {number + 1}", len(texts)) as bar, progress.watch(steps.append):
            done = [0]

            def on_window(settled: int, done: list[int] = done, bar: Any = bar) -> None:
                done[0] += settled
                bar(done[0], len(texts))

            start = time.perf_counter()
            embed_column(function, texts, on_window=on_window)
            taken.append((time.perf_counter() - start, steps))
    seconds, steps = min(taken, key=lambda run: run[0])
    found |= {"seconds": seconds, "rows_per_s": len(texts) / seconds}
    return found | _split(function, seconds, steps)


def _split(function: EmbeddingFunction, seconds: float, steps: list[Step]) -> dict[str, Any]:
    """Return the time by stage."""
    names = ("tokens", "tokens_per_s", "padding", "tokenize_s", "model_s", "rest_s", "share_of_matmul_peak")
    tokens = sum(step.tokens for step in steps)
    if not tokens:
        return dict.fromkeys(names)
    tokenize_s = sum(step.tokenize_s for step in steps)
    model_s = sum(step.model_s / step.workers for step in steps)
    flops = getattr(function, "flops_per_token", None)
    share = None
    if flops is not None and (per_token := flops()):
        from embedreg.runtime.hardware.device import resolve_all
        from embedreg.runtime.hardware.peak import matmul_flops

        with terminal.status("measuring matrix products"):
            devices = resolve_all(getattr(function, "device", "cpu"))
            peak = len(devices) * matmul_flops(devices[0], getattr(function, "precision", "float32"))
        share = tokens * per_token / seconds / peak
    values = (
        tokens,
        tokens / seconds,
        sum(step.padded for step in steps) / tokens - 1,
        tokenize_s,
        model_s,
        max(seconds - tokenize_s - model_s, 0.0),
        share,
    )
    return dict(zip(names, values, strict=True))


def _show(found: dict[str, Any]) -> None:
    speed = f"{terminal.number(found['rows_per_s'])} rows/s"
    if found["tokens_per_s"] is not None:
        speed += (
            f", {terminal.number(found['tokens_per_s'])} tokens/s, {found['tokens'] / found['rows']:.0f} tokens a row"
        )
    lines = {
        "speed": f"{speed} (the fastest of {found['runs']} runs over {found['rows']:,} distinct rows)",
        "first": f"{terminal.seconds(found['load_s'])} until the first vector",
    }
    if found["tokens_per_s"] is None:
        lines["time"] = f"{terminal.seconds(found['seconds'])}; its parts are not available for this function"
    else:
        parts = {"tokenizing": found["tokenize_s"], "the model": found["model_s"], "the rest": found["rest_s"]}
        lines["time"] = ", ".join(f"{name} {value / found['seconds']:.0%}" for name, value in parts.items())
        lines["padding"] = f"{found['padding']:.1%} of the tokens"
    if found["share_of_matmul_peak"] is not None:
        lines["limit"] = f"{found['share_of_matmul_peak']:.0%} of this machine's measured matrix products ({_LINEAR})"
    for key, value in lines.items():
        terminal.say(f"{key:<11}{value}")
