"""Every file in a folder is read, or a note or error reports that it is not."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.datasets import places, sources
from embedreg.datasets.reading import Reading
from embedreg.errors import EmbedregError, SchemaError, StorageError
from embedreg.jobs.opening import KINDS

LINE = '{"text": "a"}\n'


def bound(source: str = "text") -> embedreg.EmbeddingFunctionConfig:
    """A declaration."""
    return embedreg.get("hashing").create(dim=4).bind(source, "vector")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder."""
    made = tmp_path / "in"
    made.mkdir()
    return made


def test_all_spellings_of_json_lines_are_read(folder: Path, tmp_path: Path) -> None:
    """`.json`, `.gz`, `.zst` and upper case are common; what is of another kind is counted and named."""
    for name in ("a.jsonl", "b.json", "C.JSONL", "e.ndjson"):
        (folder / name).write_text(LINE)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(LINE.encode()))
    (folder / "d.json.ZST").write_bytes(pa.compress(LINE.encode(), "zstd", asbytes=True))
    for name in ("notes.txt", "README", "e.zip", ".hidden.jsonl", "_old.jsonl"):
        (folder / name).write_text("x")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.jsonl").write_text(LINE)
    report = embedreg.embed(folder, tmp_path / "out", bound())
    assert report.rows == 6
    assert "3 file(s) of other kinds are left out: README, e.zip, notes.txt" in report.notes[0]
    assert "3 file(s) are left out whose name, or folder, begins with . or _" in report.notes[1]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 6


def test_files_of_one_stem_keep_their_rows_apart(folder: Path, tmp_path: Path) -> None:
    """`a.csv`, `a.csv.gz` and `A.csv` are three outputs."""
    (folder / "a.csv").write_text("text\nplain\n")
    (folder / "a.csv.gz").write_bytes(gzip.compress(b"text\npacked\n"))
    (folder / "a.tsv").write_text("text\ntabs\n")
    embedreg.embed(folder, tmp_path / "out", bound())
    found = [pq.read_table(path).column("text").to_pylist() for path in (tmp_path / "out").glob("*.parquet")]
    assert sorted(found) == [["packed"], ["plain"], ["tabs"]]
    embedreg.embed(f"{folder}/a.csv*", tmp_path / "two", bound())
    (folder / "b.csv").write_text("text\nb\n")
    embedreg.embed(f"{folder}/b.csv*", tmp_path / "late", bound())
    (folder / "b.csv.gz").write_bytes(gzip.compress(b"text\nlate\n"))
    with pytest.raises(StorageError, match=r"b\.csv and b\.csv\.gz would have one output"):
        embedreg.embed(f"{folder}/b.csv*", tmp_path / "late", bound())
    assert pq.read_table(tmp_path / "late" / "b.parquet").column("text").to_pylist() == ["b"]


def test_links_are_named_or_refused(folder: Path, tmp_path: Path) -> None:
    """A linked folder is noted; a link to nothing, or round in a circle, is an error."""
    (folder / "a.jsonl").write_text(LINE)
    (folder / "again").symlink_to(folder)
    assert "1 linked folder(s) are not followed: again" in places.find(str(folder), KINDS).notes[0]
    (folder / "b.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(StorageError, match=r"b\.jsonl is a link to a missing file"):
        places.find(str(folder), KINDS)
    (folder / "b.jsonl").unlink()
    (folder / "c.jsonl").symlink_to(folder / "c.jsonl")
    with pytest.raises(StorageError, match=r"c\.jsonl"):
        places.find(str(folder), KINDS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_pipes_are_refused_and_not_waited_for(folder: Path, name: str) -> None:
    """By themselves, in a folder, and under a pattern: regular files only."""
    os.mkfifo(folder / name)
    for text in (folder / name, folder, f"{folder}/*"):
        with pytest.raises(StorageError, match="is a pipe"):
            places.find(str(text), KINDS)
    (folder / "b.jsonl").write_text(LINE)
    with pytest.raises(StorageError, match="is a pipe"):
        places.find(str(folder), KINDS)


@pytest.mark.parametrize("text", ["-", "/dev/stdin", "/dev/fd/0", "/dev/zero", "/proc/self/fd/0"])
def test_streams_are_refused_with_what_to_do(text: str) -> None:
    """A job that may be interrupted reads its input more than once."""
    with pytest.raises(StorageError, match="cannot be read twice") as caught:
        places.find(text, KINDS)
    assert "save it first" in (caught.value.hint or "")


def test_nothing_is_written_to_a_dash(folder: Path) -> None:
    """No folder called `-`."""
    (folder / "a.jsonl").write_text(LINE)
    with pytest.raises(StorageError, match="cannot be written to a pipe"):
        embedreg.embed(folder, "-", bound())


def test_hints_name_what_is_read_there(folder: Path) -> None:
    """`embed` reads more than `search` does."""
    for kinds, has in ((KINDS, True), (("lance", "parquet"), False)):
        with pytest.raises(StorageError) as caught:
            places.find(str(folder / "missing.jsonl"), kinds)  # type: ignore[arg-type]  # both are tuples of kinds
        assert (".jsonl" in (caught.value.hint or "")) is has


def test_an_empty_file_stops_no_folder(folder: Path, tmp_path: Path) -> None:
    """A zero-byte CSV or JSON lines file among others is noted; alone it is an error."""
    for suffix, line in (("csv", "text\na\n"), ("jsonl", LINE)):
        (folder / f"a.{suffix}").touch()
        with pytest.raises(StorageError, match="is empty"):
            embedreg.embed(f"{folder}/*.{suffix}", tmp_path / suffix, bound())
        (folder / f"b.{suffix}").write_text(line)
        report = embedreg.embed(f"{folder}/*.{suffix}", tmp_path / suffix, bound())
        assert report.rows == 1
        assert any(f"a.{suffix} is empty" in note for note in report.notes)


def test_columns_that_differ_in_case_are_named(folder: Path) -> None:
    """They stay two columns, with a note; a source column that some files lack so is an error."""
    (folder / "a.csv").write_text("text,Id\nx,1\n")
    (folder / "b.csv").write_text("text,ID\ny,2\n")
    source = sources.open_source(places.find(str(folder), KINDS), None, Reading.of(sources=["text"]))
    assert "'Id' in 1 file(s), 'ID' in 1 file(s)" in source.notes[0]
    (folder / "b.csv").write_text("Text,ID\ny,2\n")
    with pytest.raises(SchemaError, match=r"'text' in 1 file\(s\), 'Text' in 1 file\(s\)"):
        embedreg.embed(folder, folder.parent / "out", bound())


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("out", ["out.parquet", "out.arrow", "out.lance"])
def test_hive_partitions_become_columns_of_one_file(folder: Path, tmp_path: Path, kind: str, out: str) -> None:
    """Integers where all are so, null for Hive's null; a folder of files keeps them as folders."""
    for year, lang in ((2023, "de"), (2024, "a%20b"), (2024, "__HIVE_DEFAULT_PARTITION__")):
        place = folder / f"year={year}" / f"lang={lang}"
        place.mkdir(parents=True)
        if kind == "parquet":
            pq.write_table(pa.table({"text": [f"{year}{lang}"]}), place / "a.parquet")
        else:
            text = f"{year}{lang}"
            (place / f"a.{kind}").write_text(f"text\n{text}\n" if kind == "csv" else f'{{"text": "{text}"}}\n')
    embedreg.embed(folder, tmp_path / out, bound())
    if out == "out.lance":
        found = lancedb.connect(tmp_path).open_table("out").to_arrow()
    else:
        found = pq.read_table(tmp_path / out) if out == "out.parquet" else pa.ipc.open_file(tmp_path / out).read_all()
    rows = sorted((row["year"], row["lang"] or "") for row in found.to_pylist())
    assert rows == [(2023, "de"), (2024, ""), (2024, "a b")]
    embedreg.embed(folder, tmp_path / "folder", bound())
    assert "year" not in pq.ParquetFile(next((tmp_path / "folder").rglob("*.parquet"))).schema_arrow.names


@pytest.mark.parametrize(
    ("name", "works"),
    [
        ("my notes.lance", "my_notes.lance"),
        ("größe.lance", "grosse.lance"),
        ("日本.lance", "table.lance"),
        ("a+b.lance", "a_b.lance"),
        ("up.LANCE", "up.lance"),
        (".lance", "table.lance"),
    ],
)
def test_a_table_that_lancedb_could_not_open_is_refused_first(folder: Path, name: str, works: str) -> None:
    """With a name that works: it does."""
    (folder / "a.jsonl").write_text(LINE)
    with pytest.raises(StorageError, match="LanceDB cannot open") as caught:
        embedreg.embed(folder / "a.jsonl", f"{folder}/db/{name}", bound())
    assert not (folder / "db").exists()
    assert caught.value.hint == f"{folder}/db/{works}"
    embedreg.embed(folder / "a.jsonl", caught.value.hint, bound())
    assert lancedb.connect(folder / "db").open_table(works.removesuffix(".lance")).count_rows() == 1


def test_options_for_text_are_refused_elsewhere(folder: Path) -> None:
    """A type for Parquet would have no effect."""
    pq.write_table(pa.table({"text": ["a"]}), folder / "a.parquet")
    with pytest.raises(EmbedregError, match="types is for text files"):
        embedreg.embed(folder / "a.parquet", folder / "out", bound(), types={"text": "text"})


def test_a_file_name_that_is_not_utf8_is_an_error(folder: Path) -> None:
    """No ledger could name it."""
    (folder / "a.jsonl").write_text(LINE)
    (folder / os.fsdecode(b"b\xff.jsonl")).write_text(LINE)
    with pytest.raises(StorageError, match="not valid UTF-8"):
        places.find(str(folder), KINDS)


def test_a_folder_of_images_is_rows_of_paths(folder: Path, tmp_path: Path) -> None:
    """Its images are read without a further word, at any depth; a function of texts is refused."""
    image = pytest.importorskip("PIL.Image")
    from tests.image_fakes import PixelMeans

    (folder / "deep").mkdir()
    for number, name in enumerate(["a.png", "b.JPG", "deep/c.png"]):
        image.new("RGB", (4, 4), (80 * number, 0, 0)).save(folder / name)
    (folder / "Thumbs.db").write_text("x")
    report = embedreg.embed(folder, tmp_path / "out.parquet", PixelMeans().bind("path", "vector"))
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.column("name").to_pylist() == ["a.png", "b.JPG", "deep/c.png"]
    assert found.column("path").to_pylist() == [str(folder / name) for name in ("a.png", "b.JPG", "deep/c.png")]
    assert (report.embedded, report.bad_rows) == (3, 0)
    assert "Thumbs.db" in report.notes[0]
    with pytest.raises(EmbedregError, match=r"holds images, and .* embeds texts"):
        embedreg.embed(folder, tmp_path / "no", bound("path"))


def test_files_without_the_source_column_are_counted(tmp_path: Path) -> None:
    """Their rows are kept without a vector, and a note has the number of files."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("text,v\nx,1\n")
    (tmp_path / "in/b.csv").write_text("v\n2\n")
    report = embedreg.embed(tmp_path / "in", tmp_path / "o.parquet", bound())
    assert "1 file(s) have no column 'text': their rows get no vector" in report.notes
    assert pq.read_table(tmp_path / "o.parquet")["vector"].null_count == 1


def test_a_folder_that_says_what_a_column_cannot_hold_is_named(tmp_path: Path) -> None:
    """What the file has stays; only where it has nothing the folder's value is needed."""
    (tmp_path / "in/y=abc").mkdir(parents=True)
    (tmp_path / "in/y=abc/a.jsonl").write_text('{"text":"a","y":5}\n')
    embedreg.embed(tmp_path / "in", tmp_path / "o.parquet", bound())
    assert pq.read_table(tmp_path / "o.parquet")["y"].to_pylist() == [5]
    (tmp_path / "in/y=abc/a.jsonl").write_text('{"text":"a","y":5}\n{"text":"b"}\n')
    with pytest.raises(SchemaError, match="a folder is named 'y=abc', but column 'y' is int64"):
        embedreg.embed(tmp_path / "in", tmp_path / "p.parquet", bound())
