"""The vector cache around a model: what a cold one costs, what a warm one saves, and queries.

384-dimensional vectors: `all-MiniLM-L6-v2` itself on short texts, and ready-made vectors, where nothing hides the cost
of the cache. All ratios are to the same call without a cache, in interleaved rounds. Targets: a cold cache at most 1.1x
of the model; a warm one at least twenty times as fast.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import interleaved, machine, ratio, seconds, table, versions

DIM = 384
READY_ROWS, MODEL_ROWS, QUERIES = 50_000, 1_000, 50


def ready() -> Any:
    """Make a function that looks its vectors up by the number at the end of the text."""
    import numpy as np

    import embedreg

    vectors = np.random.default_rng(0).standard_normal((READY_ROWS, DIM), np.float32)

    @embedreg.register("ready-for-the-cache")
    class Ready(embedreg.TextEmbeddingFunction):
        """Looks its vectors up."""

        traits = embedreg.Traits(window=8192, retry=False)

        def ndims(self) -> int:
            return DIM

        def model_identity(self) -> str:
            return "ready"

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            start = int(str(texts[0]).rpartition(" ")[2])
            return vectors[start : start + len(texts)]

    return Ready.create()


def cases(folder: Path, fn: Any, texts: list[str]) -> dict[str, Callable[[], object]]:
    """Embed the same texts without a cache, into a new one, and from a full one."""
    import embedreg

    numbers = itertools.count()
    full = folder / f"full-{id(fn)}"

    def through(path: Path) -> object:
        with embedreg.vector_cache(path):
            return embedreg.embed_column(fn, texts)

    through(full)
    return {
        "no cache": lambda: embedreg.embed_column(fn, texts),
        "cold cache": lambda: through(folder / f"cold-{next(numbers)}"),
        "warm cache": lambda: through(full),
    }


def measure(folder: Path, name: str, fn: Any, texts: list[str], runs: int) -> list[tuple[str, ...]]:
    """Return a line for each case."""
    calls = cases(folder, fn, texts)
    interleaved(calls, 1)
    taken = interleaved(calls, runs)
    return [
        (f"{name}, {case}", f"{sorted(times)[len(times) // 2]:.3f}", f"{ratio(taken, case, 'no cache'):.3f}")
        for case, times in taken.items()
    ]


def queries(folder: Path, fn: Any) -> list[tuple[str, ...]]:
    """Return the time of one query that the cache knows, and of one that it does not."""
    import embedreg

    texts = [f"how to do the thing number {number}" for number in range(QUERIES)]
    with embedreg.vector_cache(folder / "queries"):
        times = [[seconds(lambda text=text: embedreg.embed_query(fn, text)) for text in texts] for _ in range(2)]
    first, again = (sorted(each)[QUERIES // 2] for each in times)
    return [("one query, new", f"{first:.5f}", "1"), ("one query, known", f"{again:.5f}", f"{again / first:.3f}")]


def main(runs: int = 5) -> None:
    """Print the ratios."""
    import embedreg

    model = embedreg.get("sentence-transformers").create(name="all-MiniLM-L6-v2")
    words = [f"a short text about the matter number {row}, of some fifteen words or so" for row in range(MODEL_ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = [("case", "seconds", "ratio")]
        rows += measure(place, "MiniLM", model, words, runs)
        rows += measure(place, "ready vectors", ready(), [f"text {row}" for row in range(READY_ROWS)], runs)
        rows += queries(place, model)
    print(machine())
    print(versions("numpy", "pyarrow", "sentence-transformers", "embedreg"))
    table(f"{MODEL_ROWS:,} texts with MiniLM, {READY_ROWS:,} ready-made vectors; median of {runs}", rows)


if __name__ == "__main__":
    main()
