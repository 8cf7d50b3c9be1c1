"""A Parquet file's key-value metadata changes, and not one byte of its data does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from embedreg.declaration import parquet_footer
from embedreg.errors import StorageError

TABLE = pa.table(
    {
        "id": pa.array(range(500), pa.int64()),
        "text": [None if row % 7 == 0 else f"text {row} ü" for row in range(500)],
        "at": pa.array(range(500), pa.timestamp("us", "UTC")),
        "kind": pa.array(["a", "b"] * 250).dictionary_encode(),
        "nested": [{"x": [row], "y": {"z": float(row)}} for row in range(500)],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 2000, pa.float32()), 4),
    },
    metadata={"mine": "stays", "embedding_functions": "[]"},
)


def by_duckdb(path: Path) -> None:
    """Write the table as DuckDB does."""
    with duckdb.connect() as con:
        con.register("rows", TABLE)
        con.execute(f"COPY rows TO '{path}' (FORMAT parquet, KV_METADATA {{mine: 'stays'}})")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "pyarrow": lambda path: pq.write_table(TABLE, path, row_group_size=50, write_page_index=True),
    "pyarrow, no schema": lambda path: pq.write_table(TABLE, path, store_schema=False, compression="zstd"),
    "pyarrow, old": lambda path: pq.write_table(
        TABLE.drop_columns("nested"), path, version="1.0", use_deprecated_int96_timestamps=True
    ),
    "pyarrow, bare": lambda path: pq.write_table(TABLE.replace_schema_metadata(None), path, store_schema=False),
    "pyarrow, many keys": lambda path: pq.write_table(
        TABLE.replace_schema_metadata({f"key {number}": "v" * number for number in range(40)} | {"mine": "stays"}), path
    ),
    "polars": lambda path: pl.from_arrow(TABLE).write_parquet(path),
    "DuckDB": by_duckdb,
    "no rows": lambda path: pq.write_table(TABLE.slice(0, 0), path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_only_the_pairs_change(tmp_path: Path, writer: str) -> None:
    """Whoever wrote the file: its data's bytes, row groups, statistics and schema are the same, for every reader."""
    path = tmp_path / "data.parquet"
    WRITERS[writer](path)
    path.chmod(0o640)
    content, table, footer = path.read_bytes(), pq.read_table(path), pq.read_metadata(path)
    value = "né[1]".encode() * 300
    parquet_footer.write_metadata(path, {b"embedding_functions": value, b"new": b""})
    start = len(content) - 8 - footer.serialized_size
    now = pq.read_metadata(path)
    assert path.read_bytes()[:start] == content[:start]
    assert pq.read_table(path).equals(table)
    assert now.schema.equals(footer.schema)
    assert now.created_by == footer.created_by
    assert [now.row_group(i) for i in range(now.num_row_groups)] == [
        footer.row_group(i) for i in range(footer.num_row_groups)
    ]
    assert now.metadata[b"embedding_functions"] == value
    for schema in (pq.read_schema(path), ds.dataset(path).schema):
        assert schema.metadata[b"embedding_functions"] == value
        if b"mine" in (table.schema.metadata or {}):
            assert schema.metadata[b"mine"] == b"stays"
    assert set(now.metadata) == {*(footer.metadata or {}), b"embedding_functions", b"new"}
    assert path.stat().st_mode & 0o777 == 0o640
    assert pl.read_parquet(path).height == len(table)
    with duckdb.connect() as con:
        assert con.execute("SELECT count(*) FROM read_parquet(?)", [str(path)]).fetchall() == [(len(table),)]
    assert os.listdir(tmp_path) == ["data.parquet"]


def test_changing_back_gives_the_same_footer(tmp_path: Path) -> None:
    """Setting a key to what it was is no change at all, byte for byte."""
    path = tmp_path / "data.parquet"
    pq.write_table(TABLE, path)
    parquet_footer.write_metadata(path, {b"mine": b"stays"})
    before = path.read_bytes()
    parquet_footer.write_metadata(path, {b"mine": b"other"})
    assert path.read_bytes() != before
    parquet_footer.write_metadata(path, {b"mine": b"stays"})
    assert path.read_bytes() == before


def test_a_symbolic_link_is_kept(tmp_path: Path) -> None:
    """A symbolic link is followed: its target changes, and it stays a link."""
    path, link = tmp_path / "data.parquet", tmp_path / "link.parquet"
    pq.write_table(TABLE, path)
    link.symlink_to(path)
    parquet_footer.write_metadata(link, {b"new": b"1"})
    assert link.is_symlink()
    assert pq.read_metadata(path).metadata[b"new"] == b"1"


def test_a_file_that_is_not_parquet_is_left_unchanged(tmp_path: Path) -> None:
    """Cut off, of another kind, encrypted, or with a footer of noise: an error, and every byte as it was."""
    path = tmp_path / "data.parquet"
    pq.write_table(TABLE, path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    noise = whole[: -8 - length] + bytes(range(255, 255 - 200, -1)) + (200).to_bytes(4, "little") + b"PAR1"
    deep = b"\x1c" * 300
    for content in (
        b"",
        b"PAR1",
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:-8] + (2**31).to_bytes(4, "little") + b"PAR1",
        whole[:-4] + b"PARE",
        noise,
        whole[: -8 - length] + deep + len(deep).to_bytes(4, "little") + b"PAR1",
    ):
        path.write_bytes(content)
        with pytest.raises(StorageError):
            parquet_footer.write_metadata(path, {b"new": b"1"})
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["data.parquet"]


def test_a_footer_that_ends_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    """Every cut of a footer is an error of ours or gives a footer again: nothing else, and no endless loop."""
    path = tmp_path / "data.parquet"
    pq.write_table(TABLE.select(["id", "text"]), path)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    for stop in range(len(footer)):
        with pytest.raises((IndexError, ValueError)):
            parquet_footer.with_pairs(footer[:stop], {})
    assert len(parquet_footer.with_pairs(footer, {})) < len(footer)
