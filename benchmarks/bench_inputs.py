"""Rows into Arrow: 50,000 dicts through embedreg's inputs, which check each value, against `Table.from_pylist`.

Both are measured in processor time, in one process, in turns. `embed_table` adds the vectors of `hashing` with dim=4.
`from_pylist` takes the keys of the first row and drops the others, and converts values silently where it can.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import machine, table, versions

ROWS = 50_000


def shapes() -> dict[str, list[dict[str, Any]]]:
    """Make rows of a few shapes."""
    numbers = range(ROWS)
    return {
        "text and number": [{"text": f"text number {n}", "n": n} for n in numbers],
        "seven columns": [
            {"text": "same", "n": n, "f": n / 2, "b": n % 2 == 0, "s": str(n), "t": ["a", "b"], "m": {"x": n, "y": "z"}}
            for n in numbers
        ],
        "a list of 64 floats": [{"text": "same", "v": [n / 3] * 64} for n in numbers],
    }


def cases(rows: list[dict[str, Any]]) -> dict[str, Callable[[], object]]:
    """Make the ways to turn the same rows into a table."""
    import pyarrow as pa

    import embedreg
    from embedreg.arrow import inputs

    bound = embedreg.get("hashing").create(dim=4).bind("text", "vector")

    def door() -> object:
        schema, batches = inputs.batches_of(rows, inputs.Expected(), ROWS, whole=True)
        return pa.Table.from_batches(batches, schema)

    return {
        "pa.Table.from_pylist": lambda: pa.Table.from_pylist(rows),
        "inputs": door,
        "embed_table": lambda: embedreg.embed_table(rows, bound),
    }


def processor_seconds(call: Callable[[], object]) -> float:
    """Run once and return the processor time, in seconds."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main(runs: int = 7) -> None:
    """Print the ratios to `from_pylist`."""
    print(machine())
    print(versions("pyarrow", "embedreg"))
    for shape, rows in shapes().items():
        calls = cases(rows)
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for round_ in range(runs + 1):
            for name in calls if round_ % 2 == 0 else reversed(calls):
                taken[name].append(processor_seconds(calls[name]))
        base = taken["pa.Table.from_pylist"][1:]  # the first round warms up
        lines = [("case", "processor seconds", "ratio")]
        for name, times in taken.items():
            ratio = statistics.median(one / other for one, other in zip(times[1:], base, strict=True))
            lines.append((name, f"{statistics.median(times[1:]):.3f}", f"{ratio:.2f}"))
        table(f"{ROWS:,} dicts, {shape}, median of {runs}", lines)


if __name__ == "__main__":
    main()
