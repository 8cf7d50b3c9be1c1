"""What the life of a column costs on a LanceDB table: bytes and time, beside LanceDB's `merge_insert` of all rows.

`python -m benchmarks.bench_columns [--rows N] [--dim D]`. Vectors of `hashing`: the time is mostly that of the storage.
Bytes are those of all files that are new below the table and beside it; a hard link counts once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa

import embedreg
from embedreg import columns

PIECE = 50_000  # rows of a fragment
NAME = "t"


def batches(rows: int) -> Iterator[pa.RecordBatch]:
    """Yield ids and distinct texts of some 70 characters."""
    for start in range(0, rows, 8192):
        some = range(start, min(rows, start + 8192))
        texts = [f"the text number {i} of a table whose column of vectors has a life of its own" for i in some]
        yield pa.RecordBatch.from_arrays([pa.array(some, pa.int64()), pa.array(texts)], ["id", "text"])


class Bytes:
    """Counts the bytes of files that were not there before, by their inode."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, dict(self._files(folder))

    @staticmethod
    def _files(folder: Path) -> Iterator[tuple[tuple[int, int], int]]:
        for current, _, names in os.walk(folder):
            for name in names:
                found = os.stat(os.path.join(current, name))
                yield (found.st_ino, found.st_mtime_ns), found.st_size

    def new(self) -> int:
        """Return the size of what is new since the last call."""
        now = dict(self._files(self.folder))
        total = sum(size for key, size in now.items() if key not in self.seen)
        self.seen = now
        return total


def main() -> None:
    """Print a table of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    given = parser.parse_args()
    rows, folder = given.rows, Path(tempfile.mkdtemp(prefix="embedreg-columns-"))
    one, two = (embedreg.get("hashing").create(dim=given.dim, seed=seed) for seed in (1, 2))
    path = folder / f"{NAME}.lance"
    schema = pa.schema({"id": pa.int64(), "text": pa.string()})
    reader = pa.RecordBatchReader.from_batches(schema, batches(rows))
    lance.write_dataset(reader, str(path), max_rows_per_file=PIECE, enable_v2_manifest_paths=True)
    table = lancedb.connect(folder).open_table(NAME)
    written = Bytes(folder)
    column = rows * given.dim * 4
    print(f"{rows:,} rows x {given.dim}: a column of vectors has {column / 1e6:,.0f} MB\n")
    print(f"{'':36} {'s':>7} {'CPU s':>7} {'MB written':>11} {'of a column':>12}")

    def step(name: str, call: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        size = written.new()
        print(f"{name:36} {seconds[0]:7.2f} {seconds[1]:7.2f} {size / 1e6:11.1f} {size / column:11.0%}")
        return result

    step("add", lambda: columns.add(table, one.bind("text", "vector")))
    table.update(where=f"id % 100 = 7 and id < {rows}", values_sql={"text": "text || ' changed'"})
    written.new()
    step("status", lambda: columns.status(table))
    step("refresh of 1%", lambda: columns.refresh(table))
    migration = step("migrate: stage", lambda: columns.migrate(table, "vector", two, switch=False))
    step("migrate: switch", migration.switch)
    step("migrate: settle", migration.settle)
    step("rollback", migration.rollback)
    kept = columns.migrate(table, "vector", two)
    table.optimize()
    written.new()
    step("rollback after compaction", kept.rollback)
    bare = columns.migrate(table, "vector", two, keep=False, switch=False)
    written.new()
    bare.abandon()
    step("migrate with keep=False", lambda: columns.migrate(table, "vector", two, keep=False).finish())

    def merged() -> None:
        """Write every vector as one would without this: all rows, merged by their key."""
        made = embedreg.embed_table(table.to_lance().to_table(columns=["id", "text"]), one.bind("text", "vector"))
        made = made.select(["id", "vector"]).replace_schema_metadata(None)
        table.merge_insert("id").when_matched_update_all().execute(made)

    step("merge_insert of all vectors", merged)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
