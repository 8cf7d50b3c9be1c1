"""`embedreg.attach`: a declaration is written where a sample of the rows shows that it is true, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import lancedb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.errors import (
    ConfigError,
    DriftError,
    InputError,
    MetadataError,
    MissingColumnError,
    StorageError,
    VectorError,
)
from tests.fakes import Lengths, Picky

ROWS = 1000


def hashing(**config: Any) -> Any:
    """Return the function of most tests."""
    return embedreg.get("hashing").create(dim=32, **config)


def data(fn: Any = None, rows: int = ROWS) -> pa.Table:
    """Return texts and their vectors, declared nowhere; every tenth text is null, every seventh blank."""
    texts = [None if row % 10 == 0 else " " if row % 7 == 0 else f"text number {row}" for row in range(rows)]
    table = pa.table({"id": range(rows), "text": texts, "mark": [row % 3 for row in range(rows)]})
    made = embedreg.embed_table(table, (fn or hashing()).bind("text", "vector"))
    return made.replace_schema_metadata({"mine": "stays"})


def as_file(table: pa.Table, folder: Path) -> Path:
    """Store a table as a Parquet file of many row groups."""
    path = folder / "data.parquet"
    pq.write_table(table, path, row_group_size=100)
    return path


def as_folder(table: pa.Table, folder: Path) -> Path:
    """Store a table as a folder of two Parquet files, one of them in a partition."""
    path = folder / "data"
    (path / "kind=a").mkdir(parents=True)
    pq.write_table(table.slice(0, 300), path / "part-0.parquet", row_group_size=100)
    pq.write_table(table.slice(300), path / "kind=a" / "part-1.parquet")
    (path / "_SUCCESS").touch()
    return path


def as_lance(table: pa.Table, folder: Path) -> Path:
    """Store a table as a Lance table of two fragments."""
    lance.write_dataset(table, folder / "data.lance", max_rows_per_file=600)
    return folder / "data.lance"


KINDS = {"file": as_file, "folder": as_folder, "lance": as_lance}


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[pa.Table], Path]:
    """Store a table as each kind of data in turn."""
    return lambda table: KINDS[request.param](table, tmp_path)


def rows_of(path: Path) -> pa.Table:
    """Return all rows of the data at a path, in order."""
    if path.suffix == ".lance":
        table = lancedb.connect(path.parent).open_table(path.stem).to_arrow()
    elif path.is_dir():
        files = [path / "part-0.parquet", path / "kind=a" / "part-1.parquet"]
        table = pa.concat_tables(pq.ParquetFile(file).read() for file in files)
    else:
        table = pq.read_table(path)
    return table.replace_schema_metadata(None).combine_chunks()


def test_a_true_declaration_is_written_and_the_rows_stay(store: Callable[[pa.Table], Path]) -> None:
    """The sample agrees, so the data declares its function, with a probe; no row differs and other metadata stays."""
    path = store(data())
    before = rows_of(path)
    found = embedreg.attach(path, hashing().bind("text", "vector"))
    assert (found.rows, found.compared) == (ROWS, 100)
    assert found.lowest > 0.99999
    assert found.written is not None
    assert found.written.exists()
    assert rows_of(path).equals(before)
    [drift] = embedreg.check_drift(path)
    assert drift.verdict == "same"
    assert embedreg.functions_in(path)["vector"].function == hashing()
    assert embedreg.functions_in(path)["vector"].source_column == "text"
    [shown] = embedreg.inspect(path)
    assert (shown["ndims"], shown["dtype"], shown["probe"]) == (32, "float32", True)


def test_another_function_is_refused_and_nothing_written(store: Callable[[pa.Table], Path]) -> None:
    """Other settings of the same width: the error has the number of rows that disagree, and the data is unchanged."""
    path = store(data())
    with pytest.raises(DriftError, match="of 100 sampled rows have other vectors") as raised:
        embedreg.attach(path, hashing(seed=1).bind("text", "vector"))
    assert "cosine" in raised.value.message
    assert not embedreg.functions_in(path)
    with pytest.raises(VectorError, match="32 dimensions"):
        embedreg.attach(path, embedreg.get("hashing").create(dim=16).bind("text", "vector"))
    with pytest.raises(DriftError):
        embedreg.attach(
            path, hashing().bind("text", "vector").model_copy(update={"function": hashing(lowercase=False, seed=2)})
        )
    assert not embedreg.functions_in(path)


def test_declarations_of_other_columns_stay(store: Callable[[pa.Table], Path]) -> None:
    """What is declared already is kept byte for byte; a second column joins it; the same again changes nothing."""
    two = embedreg.embed_table(data(), hashing(seed=5).bind("text", "second"))
    path = store(two)
    before = embedreg.functions_in(path).entries.get("second")
    embedreg.attach(path, hashing().bind("text", "vector"))
    if before is not None:
        assert embedreg.functions_in(path).entries["second"].raw == before.raw
    else:  # polars and the like
        embedreg.attach(path, hashing(seed=5).bind("text", "second"))
    declared = embedreg.functions_in(path)
    assert {column: declared[column].function for column in declared} == {
        "vector": hashing(),
        "second": hashing(seed=5),
    }
    again = embedreg.attach(path, hashing().bind("text", "vector"))
    assert again.written is None
    assert [entry.raw for entry in embedreg.functions_in(path).entries.values()] == [
        entry.raw for entry in declared.entries.values()
    ]


def test_a_column_that_is_declared_otherwise_is_refused(store: Callable[[pa.Table], Path]) -> None:
    """One column has one declaration: another function or source for it needs a decision, which is not ours."""
    path = store(embedreg.embed_table(data(), hashing().bind("text", "other")))
    embedreg.attach(path, hashing().bind("text", "vector"))
    for binding in (hashing(seed=1).bind("text", "vector"), hashing().bind("id", "vector")):
        with pytest.raises(MetadataError, match="declared already"):
            embedreg.attach(path, binding)
    assert embedreg.functions_in(path)["vector"].function == hashing()


def test_a_few_wrong_rows_are_found(store: Callable[[pa.Table], Path]) -> None:
    """A tenth of the vectors belongs to other texts, in one stretch of the data: the sample, being spread, hits it."""
    table = data()
    vectors = table["vector"].combine_chunks()
    mixed = pa.concat_arrays([vectors.slice(0, 700), vectors.slice(500, 100), vectors.slice(800)])
    path = store(table.set_column(table.schema.get_field_index("vector"), "vector", mixed))
    for seed in range(3):
        with pytest.raises(DriftError, match="sampled rows have other vectors"):
            embedreg.attach(path, hashing().bind("text", "vector"), seed=seed)
    assert not embedreg.functions_in(path)


def test_data_that_cannot_be_compared(store: Callable[[pa.Table], Path]) -> None:
    """No vectors, no texts, no such column: nothing is shown, so nothing is declared."""
    table = data()
    path = store(table.append_column("empty", pa.nulls(ROWS, pa.list_(pa.float32(), 32))))
    with pytest.raises(InputError, match="nothing can be compared"):
        embedreg.attach(path, hashing().bind("text", "empty"))
    with pytest.raises(MissingColumnError, match="'vectors'") as raised:
        embedreg.attach(path, hashing().bind("text", "vectors"))
    assert "vector" in str(raised.value.hint)
    with pytest.raises(MissingColumnError):
        embedreg.attach(path, hashing().bind("texts", "vector"))
    with pytest.raises(VectorError, match="not a list"):
        embedreg.attach(path, hashing().bind("text", "mark"))
    for sample in (0, -1, True, 1.5):
        with pytest.raises(ConfigError, match="expected a number of rows"):
            embedreg.attach(path, hashing().bind("text", "vector"), sample=sample)


def test_small_data_is_compared_whole(store: Callable[[pa.Table], Path]) -> None:
    """Fewer rows than the sample asks for: each that has a vector is compared."""
    path = store(data(rows=310))
    usable = sum(row % 10 != 0 and row % 7 != 0 for row in range(310))
    found = embedreg.attach(path, hashing().bind("text", "vector"), sample=100_000)
    assert (found.rows, found.compared) == (310, usable)


def test_the_seed_chooses_the_rows(tmp_path: Path) -> None:
    """One seed, one sample, on every run; another seed, another one; all of them spread over the file."""
    Picky.create()
    path = as_file(data(Lengths.create()), tmp_path)
    samples = []
    for seed in (0, 0, 1):
        Lengths.seen.clear()
        with pytest.raises(DriftError):
            embedreg.attach(path, Lengths.create(scale=-1.0).bind("text", "vector"), sample=50, seed=seed)
        samples.append([int(text.split()[-1]) for text in Lengths.seen])
    assert samples[0] == samples[1] != samples[2]
    for sample in samples:
        assert len(sample) == 50
        assert {row // 100 for row in sample} == set(range(10))


def test_vector_length_matters_for_metrics_that_depend_on_it(tmp_path: Path) -> None:
    """Vectors of the right direction and another length are the function's for cosine, and not for dot and l2."""

    @embedreg.register("by-dot")
    class ByDot(Lengths):
        traits = embedreg.Traits(metric="dot")

    path = as_file(data(Lengths.create(scale=2.0)), tmp_path)
    with pytest.raises(DriftError, match="another length"):
        embedreg.attach(path, ByDot.create().bind("text", "vector"))
    assert embedreg.attach(path, Lengths.create().bind("text", "vector")).written == path


def test_a_row_that_the_function_refuses_disagrees(tmp_path: Path) -> None:
    """Data has a vector where the function has none: then the function did not make it."""
    table = pa.table({"text": ["good", "bad"], "vector": pa.FixedSizeListArray.from_arrays([4.0, 2, 1, 3, 1, 1], 3)})
    path = as_file(table, tmp_path)
    with pytest.raises(DriftError, match="1 of 2 sampled rows"):
        embedreg.attach(path, Picky.create().bind("text", "vector"))


def test_half_precision_and_lists_of_other_writers(tmp_path: Path) -> None:
    """float16 vectors, polars' lists and DuckDB's are accepted; the declaration states the stored type."""
    table = data()
    half = table.set_column(3, "vector", table["vector"].cast(pa.list_(pa.float16(), 32)))
    path = as_file(half, tmp_path)
    embedreg.attach(path, hashing().bind("text", "vector"))
    assert embedreg.inspect(path)[0]["dtype"] == "float16"
    frame = pl.from_arrow(table).with_columns(pl.col("vector").arr.to_list())
    frame.write_parquet(tmp_path / "polars.parquet")
    assert not embedreg.functions_in(tmp_path / "polars.parquet")
    embedreg.attach(tmp_path / "polars.parquet", hashing().bind("text", "vector"))
    assert embedreg.functions_in(tmp_path / "polars.parquet")["vector"].function == hashing()
    assert pl.read_parquet(tmp_path / "polars.parquet").equals(frame)
    assert pq.read_schema(tmp_path / "polars.parquet").metadata.keys() >= {b"embedding_functions"}


def test_a_sample_comes_from_the_function_and_not_from_a_cache(tmp_path: Path) -> None:
    """What the vector cache holds shows nothing of the function as it is now."""
    path = as_file(data(Lengths.create()), tmp_path)
    with embedreg.vector_cache(tmp_path / "cache") as cache:
        embedreg.attach(path, Lengths.create().bind("text", "vector"))
        assert (cache.hits, cache.misses) == (0, 0)


def test_the_manifest_is_in_the_folder(tmp_path: Path) -> None:
    """A folder's files are not touched; every file in it is declared by the manifest beside."""
    path = as_folder(data(), tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*.parquet")}
    found = embedreg.attach(path, hashing().bind("text", "vector"))
    assert found.written == path / "_embedreg" / "manifest.json"
    assert {file: file.read_bytes() for file in path.rglob("*.parquet")} == before
    assert embedreg.functions_in(path / "kind=a" / "part-1.parquet")["vector"].function == hashing()


def test_data_that_cannot_hold_a_declaration_is_refused(tmp_path: Path) -> None:
    """A missing path, another kind of file, an empty folder."""
    binding = hashing().bind("text", "vector")
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "empty").mkdir()
    for name in ("missing.parquet", "a.csv", "empty"):
        with pytest.raises(StorageError):
            embedreg.attach(tmp_path / name, binding)
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(StorageError):
        embedreg.attach(tmp_path / "pipe.parquet", binding)


def test_the_memory_of_a_sample_is_small(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """A row group of ninety megabytes is read a piece at a time."""
    texts = pa.array([f"text number {row % 50}" for row in range(60_000)])
    vectors = embedreg.embed_column(embedreg.get("hashing").create(dim=384), texts).to_arrow()
    path = tmp_path / "data.parquet"
    table = pa.table({"text": texts, "vector": vectors})
    pq.write_table(table, path, row_group_size=len(texts), use_dictionary=["text"])
    code = """
import sys, embedreg, pyarrow
embedreg.attach(sys.argv[1], embedreg.get("hashing").create(dim=384).bind("text", "vector"))
print(pyarrow.default_memory_pool().max_memory())
"""
    assert int(run_python(code, path)) < table.nbytes / 2


# -- the command -------------------------------------------------------------------------------------------------------


def run(*args: object) -> tuple[int, str, str]:
    """Call the command line in a process of its own."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "embedreg", *map(str, args)], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_declares_and_refuses(tmp_path: Path) -> None:
    """`embedreg attach` prints how well the sample agrees; what disagrees has the exit code of drift."""
    path = as_file(data(), tmp_path)
    options = ["--function", "hashing", "--set", "dim=32", "--source", "text", "--vector", "vector"]
    code, out, err = run("attach", path, *options, "--set", "seed=1")
    assert (code, out) == (4, "")
    assert "sampled rows have other vectors" in err
    code, out, err = run("attach", path, *options, "--sample", 50)
    assert code == 0, err
    assert "50 of 1,000 rows embedded again: cosine 1.00000" in out
    assert f"declared in {path}" in out.replace("\n", "")
    code, out, err = run("search", path, "text number 123", "--limit", 1)
    assert code == 0, err
    assert "text number 123" in out
