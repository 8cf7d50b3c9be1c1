"""What the bookkeeping of a resumable job costs, and how much memory a job takes.

`python -m benchmarks.bench_jobs [--rows N] [--runs N]`. Two parts:

- time: the same rows through the bare pipeline (`embed_batches` into one Parquet file) and through `embedreg.embed`,
  to a folder, to one file, to a Lance table, and with a vector cache, cold and warm; interleaved, as ratios;
- memory: datasets of growing size through a job in a process of its own, and by how much that process grew at its peak.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import embedreg
from benchmarks import common
from embedreg.cli import corpus
from embedreg.support.atomic import write_parquet

BATCH, PIECE = 8192, 65_536
MEMORY_BATCH, MEMORY_DIM = 1024, 1024


def texts(rows: int) -> Iterator[pa.RecordBatch]:
    """Docstrings of the standard library, each made distinct, in batches."""
    docs = itertools.cycle([doc.text for doc in corpus.collect(20_000)])
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        numbers = range(start, start + count)
        yield pa.record_batch(
            {"id": list(numbers), "text": [f"{text} {n}" for n, text in zip(numbers, docs, strict=False)]}
        )


def write_source(path: Path, rows: int) -> None:
    """Write the rows as one Parquet file, a row group a batch."""
    batches = texts(rows)
    first = next(batches)
    with pq.ParquetWriter(path, first.schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)


def bare(source: Path, target: Path, config: Any) -> None:
    """Embed without a ledger, as one stream into one file."""
    with pq.ParquetFile(source) as file:
        reader = pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches(BATCH))
        write_parquet(embedreg.embed_batches(reader, config, batch_rows=BATCH), target)


def time_part(folder: Path, rows: int, runs: int, function: Any, name: str) -> None:
    """Print how long each way takes against the bare pipeline."""
    source = folder / f"source-{name}.parquet"
    write_source(source, rows)
    config = function.bind("text", "vector")
    piece = min(PIECE, max(rows // 4, 1))

    def job(target: str, **options: Any) -> Callable[[], object]:
        def run() -> None:
            path = folder / target
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            embedreg.embed(source, path, config, batch_rows=BATCH, piece_rows=piece, **options)

        return run

    def cold() -> None:
        (folder / "cold.cache").unlink(missing_ok=True)
        job("cold", cache=folder / "cold.cache")()

    warm = job("warm", cache=folder / "warm.cache")
    calls: dict[str, Callable[[], object]] = {
        "bare pipeline": lambda: bare(source, folder / "bare.parquet", config),
        "job, folder": job("folder"),
        "job, one file": job("one.parquet"),
        "job, Lance table": job("table.lance"),
        "job, cold cache": cold,
        "job, warm cache": warm,
    }
    for call in calls.values():  # the first time loads what is loaded once
        call()
    taken = common.interleaved(calls, runs)
    lines = [("way", "rows/s", "time against the bare pipeline")]
    for way, seconds in taken.items():
        lines.append((way, f"{rows / min(seconds):,.0f}", f"{common.ratio(taken, way, 'bare pipeline'):.3f}"))
    common.table(f"{name}, {rows:,} rows, {piece:,} a piece, {runs} runs", lines)


MEASURED = """
import sys
from benchmarks import common
import embedreg
source, target, dim, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
config = embedreg.get("hashing").create(dim=dim).bind("text", "vector")
import pyarrow.parquet, numpy
warm = source + ".warm"
embedreg.embed(warm, target + "-warm", config, batch_rows=batch, piece_rows=4 * batch)
print(common.peak_mib(lambda: embedreg.embed(source, target, config, batch_rows=batch, piece_rows=4 * batch)))
"""


def peak(folder: Path, rows: int) -> float:
    """Return by how many MiB a process grew at its peak while it ran a job of so many rows."""
    source, target = folder / f"rows-{rows}.parquet", folder / f"out-{rows}"
    write_source(source, rows)
    pq.write_table(pq.ParquetFile(source).read_row_group(0), f"{source}.warm")
    line = [sys.executable, "-c", MEASURED, str(source), str(target), str(MEMORY_DIM), str(MEMORY_BATCH)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    found = pq.ParquetFile(next(target.glob("*.parquet"))).metadata.num_rows
    assert found
    shutil.rmtree(target)
    return float(done.stdout)


def memory_part(folder: Path, rows: int) -> None:
    """Print the peak over datasets of growing size."""
    lines = [("rows", "vectors, MiB", "peak growth of the process, MiB", "data : memory")]
    for share in (16, 4, 1):
        count = rows // share
        size, grew = count * MEMORY_DIM * 4 / 2**20, peak(folder, count)
        lines.append((f"{count:,}", f"{size:,.0f}", f"{grew:,.0f}", f"{size / grew:.0f}"))
    common.table(f"memory: hashing, {MEMORY_DIM} dimensions, {MEMORY_BATCH:,} rows a batch", lines)


def main() -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="for hashing; MiniLM gets a hundredth")
    parser.add_argument("--memory-rows", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-minilm", action="store_true")
    given = parser.parse_args()
    print(common.machine())
    print(common.versions("embedreg", "pyarrow", "numpy"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        time_part(folder, given.rows, given.runs, embedreg.get("hashing").create(dim=384), "hashing")
        if not given.no_minilm:
            model = embedreg.get("sentence-transformers").create(name="all-MiniLM-L6-v2", device="cpu")
            time_part(folder, given.rows // 100, given.runs, model, "MiniLM")
        memory_part(folder, given.memory_rows)


if __name__ == "__main__":
    main()
