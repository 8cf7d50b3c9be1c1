"""Memory of multi-vectors: a Parquet job whose rows have 32 vectors each, in a process of its own for each size.

    python -m benchmarks.bench_kinds                    10,000 and 40,000 rows of 32 vectors of 128 dimensions
    python -m benchmarks.bench_kinds --rows 10000 --batch-rows 256

Peak memory must follow the batch and not the number of rows. Each run also prints what the rows would take as Python
lists of floats, and counts such lists while the job runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import embedreg
from benchmarks.common import table
from embedreg.arrow.multi import MultiVectors

K, D = 32, 128
FLOAT_BYTES = 8 + 24  # of a float in a list: its place, and the object


@embedreg.register("bench-tokens")
class Tokens(embedreg.TextEmbeddingFunction):
    """Random vectors of length 1 from a text's number, K for each; counts lists of floats that are alive meanwhile."""

    traits: ClassVar[embedreg.Traits] = embedreg.Traits(vectors="multi", retry=False)
    lists: ClassVar[int] = 0

    def ndims(self) -> int:
        return D

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> MultiVectors:
        values = np.random.default_rng(len(texts)).normal(size=(len(texts) * K, D)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        type(self).lists = max(type(self).lists, _lists_of_floats())
        return MultiVectors(values, np.arange(len(texts) + 1) * K)


def _lists_of_floats() -> int:
    return sum(type(each) is list and len(each) == D and type(each[0]) is float for each in gc.get_objects())


def job(rows: int, batch_rows: int) -> dict[str, float]:
    """Run one job; return its peak memory beyond the start, its time, and the lists of floats seen."""
    with tempfile.TemporaryDirectory() as folder:
        src, dst = Path(folder, "in.parquet"), Path(folder, "out.parquet")
        pq.write_table(pa.table({"text": [f"text number {row}" for row in range(rows)]}), src)
        warm = Path(folder, "warm.parquet")
        pq.write_table(pa.table({"text": ["one", "two"]}), warm)
        declared = Tokens.create().bind("text", "vector")
        embedreg.embed(warm, Path(folder, "warm-out.parquet"), declared, batch_rows=batch_rows)
        before, used = _peak_mb(), time.process_time()
        embedreg.embed(src, dst, declared, batch_rows=batch_rows)
        file = pq.ParquetFile(dst)
        assert file.metadata.num_rows == rows
        first = next(file.iter_batches(2)).column("vector")
        assert [len(row) for row in first.to_pylist()] == [K, K]
        return {
            "peak_mb": _peak_mb() - before,
            "cpu_s": time.process_time() - used,
            "lists": Tokens.lists,
            "file_mb": dst.stat().st_size / 2**20,
        }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run each job in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--batch-rows", type=int, action="append")
    parser.add_argument("--child", action="store_true", help="run one job here and print JSON")
    args = parser.parse_args()
    sizes, batches = args.rows or [10_000, 40_000], args.batch_rows or [256, 1024]
    if args.child:
        print(json.dumps(job(sizes[0], batches[0])))
        return
    lines: list[tuple[str, ...]] = [("rows", "batch", "vectors MB", "peak MB more", "as lists MB", "lists", "CPU s")]
    for batch in batches:
        for rows in sizes:
            line = [sys.executable, "-m", "benchmarks.bench_kinds", "--child", "--rows", str(rows)]
            done = subprocess.run([*line, "--batch-rows", str(batch)], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            size = rows * K * D
            lines.append(
                (
                    f"{rows:,}",
                    str(batch),
                    f"{size * 4 / 2**20:.0f}",
                    f"{found['peak_mb']:.0f}",
                    f"{size * FLOAT_BYTES / 2**20:.0f}",
                    str(found["lists"]),
                    f"{found['cpu_s']:.1f}",
                )
            )
    table("a Parquet job of multi-vectors", lines)


if __name__ == "__main__":
    main()
