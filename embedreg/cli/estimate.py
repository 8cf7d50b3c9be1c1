"""`embedreg embed --estimate`: estimate a run by reading the text once and embedding a sample."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from embedreg.cli import terminal
from embedreg.datasets.sources import Source
from embedreg.declaration import templates

if TYPE_CHECKING:
    from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig

__all__ = ["Distinct", "estimate", "show"]

SAMPLE_ROWS = 2048  # tokens are counted on these
TIMED_S = 5.0  # the time limit of the timed sample; at least one batch is run
_TIMED_BATCH = 128


class Distinct:
    """A counter of distinct values in bounded memory: exact up to `keep`, then by Wegman's adaptive sampling.

    Only hashes that end in `level` zero bits are kept; whenever there are too many, `level` is increased. Each kept
    hash represents 2**level values.
    Source: Flajolet, "On adaptive sampling", Computing 43 (1990).
    """

    def __init__(self, keep: int = 1 << 20) -> None:
        self._keep, self._level, self._seen = keep, 0, set[int]()

    def add(self, text: str) -> None:
        """Count one value."""
        digest = int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        if digest & ((1 << self._level) - 1):
            return
        self._seen.add(digest)
        while len(self._seen) > self._keep:
            self._level += 1
            self._seen = {value for value in self._seen if not value & ((1 << self._level) - 1)}

    @property
    def exact(self) -> bool:
        """Whether `count` is exact instead of an estimate."""
        return self._level == 0

    @property
    def count(self) -> int:
        """The number of distinct values."""
        return len(self._seen) << self._level


def estimate(
    source: Source, config: EmbeddingFunctionConfig, batch_rows: int, price_per_million: float | None = None
) -> dict[str, Any]:
    """Read the source column once and embed a sample of it.

    Args:
        price_per_million: of a million tokens, in any currency.
    Returns:
        `rows`, `filled` (rows with something to embed), `empty` (null or blank), `to_embed` (distinct within each
        batch: what reaches the function), `duplicates` (in the whole; `exact` is False if they were estimated),
        `tokens`, `tokens_per_row`, `max_tokens`, `truncated_share` (None where the function cannot count tokens),
        `load_s`, `sample_rows`, `rows_per_s`, `seconds` (None for a remote service, which is not called).
    """
    rows, empty, to_run, distinct, sample = _read(source, config, batch_rows)
    filled = rows - empty
    tokens = _tokens(config.function, sample, filled)
    load_s, timed, rows_per_s = _time(config.function, sample)
    seconds = None if rows_per_s is None else load_s + to_run / rows_per_s
    per_row = tokens["tokens_per_row"]
    cost = None if price_per_million is None or per_row is None else per_row * to_run * price_per_million / 1e6
    return {
        "rows": rows,
        "filled": filled,
        "empty": empty,
        "to_embed": to_run,
        "duplicates": max(filled - distinct.count, 0),
        "exact": distinct.exact,
        **tokens,
        "cost": cost,
        "load_s": load_s,
        "sample_rows": timed,
        "rows_per_s": rows_per_s,
        "seconds": seconds,
    }


def _read(
    source: Source, config: EmbeddingFunctionConfig, batch_rows: int
) -> tuple[int, int, int, Distinct, list[Any]]:
    """Return (rows, empty rows, values distinct in their batch, distinct values, uniform sample of filled rows)."""
    distinct, chance = Distinct(), random.Random(0)  # seeded, so that estimates of one file agree
    rows = empty = to_run = 0
    sample: list[Any] = []
    with terminal.rows_progress("reading", source.rows) as progress:
        template = templates.of(config)
        columns = [config.source_column] if template is None else [*template.columns]
        for batch in source.batches(columns, batch_rows):
            in_batch = set[Any]()
            values = batch.column(0) if template is None else template.render(batch)
            for value in values.to_pylist():
                rows += 1
                if value is None or (isinstance(value, str) and not value.strip()):
                    empty += 1
                    continue
                text = value if isinstance(value, str) else repr(value)
                distinct.add(text)
                in_batch.add(text)
                # Reservoir sampling (Vitter's algorithm R): every row is kept with the same probability.
                if len(sample) < SAMPLE_ROWS:
                    sample.append(value)
                elif (place := chance.randrange(rows - empty)) < SAMPLE_ROWS:
                    sample[place] = value
            to_run += len(in_batch)
            progress(rows, source.rows)
    chance.shuffle(sample)
    return rows, empty, to_run, distinct, sample


def _tokens(function: EmbeddingFunction, sample: list[Any], rows: int) -> dict[str, Any]:
    count = getattr(function, "count_tokens", None)
    if count is None or not sample:
        return {"tokens": None, "tokens_per_row": None, "max_tokens": None, "truncated_share": None}
    with terminal.status("counting tokens"):
        counted = [int(count(text)) for text in sample]
        limit = getattr(function, "max_tokens", lambda: None)()
    mean = sum(counted) / len(counted)
    truncated = None if limit is None else sum(n > limit for n in counted) / len(counted)
    return {"tokens": round(mean * rows), "tokens_per_row": mean, "max_tokens": limit, "truncated_share": truncated}


def _distinct(values: list[Any]) -> list[Any]:
    """Return values without repetitions; lists have no hash."""
    return list({value if isinstance(value, str | bytes) else repr(value): value for value in values}.values())


def _time(function: EmbeddingFunction, sample: list[Any]) -> tuple[float, int, float | None]:
    """Return (seconds until the first vector, rows timed, rows per second)."""
    from embedreg.embedding.table import embed_column

    if not sample or function.traits.remote:  # a remote service would charge for the sample
        return 0.0, 0, None
    with terminal.status("timing a sample"):
        start = time.perf_counter()
        embed_column(function, sample[:1])
        load_s = time.perf_counter() - start
        done, start, took = 0, time.perf_counter(), 0.0
        for batch in _batched(_distinct(sample), _TIMED_BATCH):
            embed_column(function, batch)
            done += len(batch)
            took = time.perf_counter() - start
            if took > TIMED_S:
                break
    return load_s, done, done / max(took, 1e-9)


def _batched(values: list[Any], size: int) -> Iterable[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def show(found: dict[str, Any]) -> None:
    """Print an estimate in words."""
    about = "" if found["exact"] else "about "
    share = found["duplicates"] / found["filled"] if found["filled"] else 0.0
    lines = {
        "rows": f"{found['rows']:,}, of which {found['empty']:,} are null or blank and get no vector",
        "duplicates": f"{about}{found['duplicates']:,} ({share:.1%}); {found['to_embed']:,} inputs reach the function",
    }
    if found["tokens"] is None:
        lines["tokens"] = "this function does not count them"
    else:
        lines["tokens"] = f"about {found['tokens']:,}, {found['tokens_per_row']:.0f} a row"
        if found["truncated_share"] is not None:
            lines["truncated"] = (
                f"{found['truncated_share']:.1%} of the rows are longer than {found['max_tokens']} tokens"
            )
    if found["cost"] is not None:
        lines["cost"] = f"about {found['cost']:,.2f} for the inputs that reach the function"
    if found["seconds"] is None:
        lines["time"] = "not measured: remote services are not called here" if found["filled"] else "none"
    else:
        speed = f"{terminal.number(found['rows_per_s'])} rows/s on a sample of {found['sample_rows']:,}"
        lines["time"] = f"about {terminal.seconds(found['seconds'])} ({speed})"
    for key, value in lines.items():
        terminal.say(f"{key:<11}{value}")
    terminal.note("nothing was written")
