"""Everything around the model: 50,000 ready-made vectors of 384 dimensions into LanceDB.

The base writes a table that already has its vectors; embedreg computes them with a function that only looks them up.
Target: at most 1.2x. Peak memory is measured in a process of its own for each case.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import interleaved, machine, peak_mib, ratio, table, versions

ROWS, DIM = 50_000, 384


def cases(folder: Path) -> dict[str, Callable[[], object]]:
    """Make the ways to write the same table, each into a fresh table."""
    import lancedb
    import numpy as np
    import pyarrow as pa

    import embedreg
    from embedreg.engines import lancedb as engine

    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    texts = pa.table({"text": [f"text number {row}" for row in range(ROWS)]})

    @embedreg.register("ready")
    class Ready(embedreg.TextEmbeddingFunction):
        """Looks its vectors up by the number at the end of the text."""

        traits = embedreg.Traits(window=8192, retry=False)

        def ndims(self) -> int:
            return DIM

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            start = int(str(texts[0]).rpartition(" ")[2]) if str(texts[0]).startswith("text number") else 0
            return vectors[start : start + len(texts)]

    fn = Ready.create()
    full = embedreg.embed_table(texts, fn.bind("text", "vector"))
    db = lancedb.connect(folder)
    declared = full.schema
    plain = declared.remove_metadata()
    count = [0]

    def fresh(schema: pa.Schema) -> Any:
        count[0] += 1
        return db.create_table(f"t{count[0]}", schema=schema)

    return {
        "tbl.add, vectors ready": lambda: fresh(plain).add(full.replace_schema_metadata(None)),
        "engines.lancedb.add, vectors computed": lambda: engine.add(fresh(declared), texts),
        "engines.lancedb.add, vectors ready": lambda: engine.add(fresh(declared), full),
        "tbl.add, vectors computed": lambda: fresh(declared).add(texts),
        "embed_table alone": lambda: embedreg.embed_table(texts, fn.bind("text", "vector")),
    }


def one(name: str) -> None:
    """Run one case once and print its peak memory above what was there before, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        call = cases(Path(folder))[name]
        print(json.dumps(peak_mib(call)))


def main(runs: int = 7) -> None:
    """Print the ratios and the peaks."""
    with tempfile.TemporaryDirectory() as folder:
        calls = cases(Path(folder))
        interleaved(calls, 1)
        taken = interleaved(calls, runs)
    base = "tbl.add, vectors ready"
    rows = [("case", "seconds", "ratio", "peak MiB above the input")]
    for name, times in taken.items():
        done = subprocess.run([sys.executable, "-m", __spec__.name, name], check=True, capture_output=True, text=True)
        peak = json.loads(done.stdout)
        rows.append((name, f"{sorted(times)[len(times) // 2]:.3f}", f"{ratio(taken, name, base):.2f}", f"{peak:.0f}"))
    print(machine())
    print(versions("lancedb", "pyarrow", "numpy", "embedreg"))
    table(f"{ROWS:,} x {DIM} into LanceDB, median of {runs} (ratio to ready vectors; target 1.2)", rows)


if __name__ == "__main__":
    one(sys.argv[1]) if len(sys.argv) > 1 else main()
