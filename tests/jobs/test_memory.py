"""Memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

JOB = """
import sys
from benchmarks import common
import embedreg
config = embedreg.get("hashing").create(dim=2048, word_ngrams=(1, 1), char_ngrams=None).bind("text", "vector")
small, large, out, kind = sys.argv[1:]

def run(source, target):
    return lambda: embedreg.embed(source, target, config, batch_rows=512, piece_rows=5000)

run(small, f"{out}/small{kind}")()
print(common.peak_mib(run(large, f"{out}/large{kind}")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", ".parquet", ".lance"])
def test_a_dataset_larger_than_the_memory_passes(run_python: Callable[..., str], tmp_path: Path, kind: str) -> None:
    """400 MiB of vectors, from a file of one row group, take a process less than a third of that."""
    paths = [tmp_path / "small.parquet", tmp_path / "large.parquet"]
    for path, rows in zip(paths, (2000, 50_000), strict=True):
        pq.write_table(pa.table({"text": [f"text number {n}" for n in range(rows)]}), path)
    grew = float(run_python(JOB, *paths, tmp_path / "out", kind, path=[ROOT]))
    assert grew < 130, f"{grew:.0f} MiB"
