"""A dataset's manifest is read where the files' own schema says nothing, and never hides what the schema says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.datasets import places
from embedreg.declaration import codec, manifest
from embedreg.errors import MetadataError, StorageError
from embedreg.inspection import locate


def hashing(**config: Any) -> Any:
    """Return the function of these tests."""
    return embedreg.get("hashing").create(dim=16, **config)


def made(*bindings: Any) -> pa.Table:
    """Return a small table with declared vectors."""
    return embedreg.embed_table({"text": ["one", "two", None]}, list(bindings) or [hashing().bind("text", "vector")])


def text_of(table: pa.Table) -> bytes:
    """Return a table's declarations as they are stored."""
    return bytes(table.schema.metadata[codec.KEY.encode()])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset: a manifest, a declared file, and one more in a partition."""
    path = tmp_path / "data"
    (path / "year=1").mkdir(parents=True)
    for name in ("part-0.parquet", "year=1/part-1.parquet"):
        pq.write_table(made(), path / name)
    manifest.write(path, text_of(made()))
    return path


def test_a_rewrite_by_polars_keeps_the_declaration(folder: Path) -> None:
    """What polars and DuckDB write has no metadata; the folder still declares, and so does each of its files."""
    expected = embedreg.functions_in(folder)["vector"]
    for file in locate.data_files(folder):
        frame = pl.read_parquet(file, hive_partitioning=False).with_columns(length=pl.col("text").str.len_chars())
        frame.write_parquet(file)
        assert not pq.read_schema(file).metadata
    assert embedreg.functions_in(folder)["vector"] == expected
    for file in locate.data_files(folder):
        assert embedreg.functions_in(file)["vector"] == expected
        assert embedreg.inspect(file)[0]["status"] == "ready"
    [drift] = embedreg.check_drift(folder)
    assert drift.verdict == "same"
    with duckdb.connect() as con:
        file = folder / "part-0.parquet"
        con.execute(f"COPY (FROM '{file}') TO '{folder / 'part-2.parquet'}' (FORMAT parquet)")
    assert embedreg.functions_in(folder / "part-2.parquet")["vector"] == expected


def test_the_schema_wins_over_the_manifest(folder: Path) -> None:
    """If file and manifest declare different functions, the file wins, and a note reports it."""
    pq.write_table(made(hashing(seed=3).bind("text", "vector")), folder / "part-0.parquet")
    for path in (folder, folder / "part-0.parquet"):
        found = embedreg.functions_in(path)
        assert found["vector"].function == hashing(seed=3)
        assert found.notes == ["the folder's manifest declares something else; the file's schema counts"]
        assert embedreg.inspect(path)[0]["notes"] == found.notes
    other = embedreg.functions_in(folder / "year=1" / "part-1.parquet")
    assert (other["vector"].function, other.notes) == (hashing(), [])


def test_agreeing_schema_and_manifest_make_no_note(folder: Path) -> None:
    """The same declaration twice is one, whether or not a probe was learnt in both."""
    entry = embedreg.functions_in(folder).entries["vector"]
    assert "probe" in entry.reserved
    fresh = embedreg.get_registry().get_table_metadata([hashing().bind("text", "vector")])
    manifest.write(folder, fresh["embedding_functions"])
    found = embedreg.functions_in(folder)
    assert found.entries["vector"].raw == entry.raw
    assert found.notes == []


def test_columns_of_schema_and_manifest_are_merged(folder: Path) -> None:
    """Each carrier adds the columns that the other lacks; columns that the file lacks are left out."""
    both = made(hashing().bind("text", "vector"), hashing(seed=1).bind("text", "second"))
    manifest.write(folder, text_of(both))
    assert list(embedreg.functions_in(folder)) == ["vector"]
    pq.write_table(both.replace_schema_metadata(made().schema.metadata), folder / "part-0.parquet")
    found = embedreg.functions_in(folder)
    assert {column: found[column].function for column in found} == {"vector": hashing(), "second": hashing(seed=1)}
    assert list(embedreg.functions_in(folder / "year=1" / "part-1.parquet")) == ["vector"]


def test_a_folder_without_files_has_the_manifests_declarations(folder: Path) -> None:
    """A dataset whose first piece is not written yet declares its function."""
    for file in locate.data_files(folder):
        file.unlink()
    assert list(embedreg.functions_in(folder)) == ["vector"]
    (folder / "_embedreg" / "manifest.json").unlink()
    with pytest.raises(StorageError, match="no Parquet or Arrow file"):
        embedreg.functions_in(folder)


def test_a_broken_manifest(folder: Path) -> None:
    """It is an error where it alone could tell, and a note where the file itself declares."""
    (folder / "_embedreg" / "manifest.json").write_text("{")
    found = embedreg.functions_in(folder)
    assert found["vector"].function == hashing()
    assert "cannot be read" in found.notes[0]
    pl.read_parquet(folder / "part-0.parquet").write_parquet(folder / "part-0.parquet")
    with pytest.raises(MetadataError, match=r"manifest\.json cannot be read"):
        embedreg.functions_in(folder)


def test_a_file_outside_the_folder_has_no_manifest(folder: Path, tmp_path: Path) -> None:
    """Only the folders above a file speak for it."""
    pq.write_table(made().replace_schema_metadata(None), tmp_path / "beside.parquet")
    assert not embedreg.functions_in(tmp_path / "beside.parquet")
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    pq.write_table(made().replace_schema_metadata(None), inner / "deep.parquet")
    assert list(embedreg.functions_in(inner / "deep.parquet")) == ["vector"]


def test_there_is_one_rule_of_what_is_data(tmp_path: Path) -> None:
    """Names that begin with a dot or an underscore are markers, for the core and for the command line, at any depth."""
    names = ["b.parquet", "a/c.parquet", "_x.parquet", ".y.parquet", "_d/e.parquet", ".f/g.parquet", "z.pq", "n.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(made(), tmp_path / name)
    expected = [tmp_path / name for name in ("a/c.parquet", "b.parquet", "z.pq")]
    assert locate.data_files(tmp_path) == expected
    (tmp_path / "n.txt").unlink()
    assert [tmp_path / file.path for file in places.find(str(tmp_path)).files] == expected


def test_comments_are_read_by_a_function_of_their_own() -> None:
    """Column comments of any database are read; text before the declaration is for people."""
    table = made(hashing().bind("text", "vector"), hashing(seed=1).bind("text", "second"))
    entries = embedreg.functions_in(table).entries
    from embedreg.declaration.comments import comment_of

    comments = [
        comment_of(entries["vector"], "Vectors of the texts."),
        None,
        "",
        "the text",
        comment_of(entries["second"]),
    ]
    found = embedreg.functions_in_comments(comments)
    assert {column: found[column].function for column in found} == {"vector": hashing(), "second": hashing(seed=1)}
    assert found.entries["vector"].model == entries["vector"].model
    assert comments[0].isascii()
    assert comments[0].startswith("Vectors of the texts. embedding_functions=[{")
    with pytest.raises(MetadataError, match="two entries"):
        embedreg.functions_in_comments([comments[0], comments[0]])
    with pytest.raises(MetadataError):
        embedreg.functions_in_comments([comments[0][:-1]])
