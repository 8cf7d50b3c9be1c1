"""Rows/s into a LanceDB table: embedreg against LanceDB's own `sentence-transformers`, same texts, same weights.

Each way runs in processes of its own, since embedreg takes the name over where it is imported; model loading is outside
the timing, and the rounds are interleaved.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import machine, minilm_folder, table, versions

WAYS = {
    "lancedb's own function, tbl.add": "stock",
    "embedreg, tbl.add": "plain",
    "embedreg, engines.lancedb.add": "engine",
}


def texts(rows: int) -> list[str]:
    """Return docstrings of the standard library: mixed lengths, every tenth one twice."""
    from embedreg.cli.corpus import collect

    found = [doc.text for doc in collect(rows)]
    return [found[row - 1] if row % 10 == 9 else text for row, text in enumerate(found)]


def one(way: str, corpus: Path) -> None:
    """Ingest once and print the seconds it took, as JSON."""
    import lancedb
    import pyarrow as pa
    from lancedb.pydantic import LanceModel, Vector

    data = pa.table({"text": json.loads(corpus.read_text())})
    function: Any
    if way == "stock":
        from lancedb.embeddings import get_registry

        function = get_registry().get("sentence-transformers").create(name=minilm_folder(), trust_remote_code=False)
    else:
        import embedreg

        function = embedreg.get("sentence-transformers").create(name=minilm_folder(), device="cpu")

    class Docs(LanceModel):
        text: str = function.SourceField()
        vector: Vector(384) = function.VectorField()  # type: ignore[valid-type]

    with tempfile.TemporaryDirectory() as folder:
        target = lancedb.connect(folder).create_table("docs", schema=Docs)
        function.compute_query_embeddings_with_retry("load the model")
        start = time.perf_counter()
        if way == "engine":
            from embedreg.engines import lancedb as engine

            engine.add(target, data)
        else:
            target.add(data)
        print(json.dumps(time.perf_counter() - start))
        assert target.count_rows() == data.num_rows


def main(rows: int = 2000, runs: int = 3) -> None:
    """Print the ratios."""
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts(rows), file)
        file.flush()
        for _ in range(runs):
            for name, way in WAYS.items():
                command = [sys.executable, "-m", "benchmarks.bench_lancedb", way, file.name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                taken[name].append(float(done.stdout.splitlines()[-1]))
    base = next(iter(WAYS))
    lines = [("way", "rows/s", "ratio")]
    for name, times in taken.items():
        faster = statistics.median(b / a for a, b in zip(times, taken[base], strict=True))
        lines.append((name, f"{rows / statistics.median(times):.0f}", f"{faster:.2f}"))
    print(machine())
    print(versions("lancedb", "sentence-transformers", "torch", "embedreg"))
    table(f"{rows:,} docstrings into LanceDB with all-MiniLM-L6-v2, median of {runs} (ratio to lancedb's own)", lines)


if __name__ == "__main__":
    one(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 2 else main()
