"""Reading rows in bounded memory."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest

from embedreg.datasets import places, sources, texts
from embedreg.errors import StorageError

KINDS: tuple[places.Kind, ...] = ("parquet", "jsonl", "csv")


def read(path: Path, **options: object) -> tuple[sources.Source, list[dict[str, object]]]:
    """A source and all of its rows."""
    source = sources.open_source(places.find(str(path), KINDS))
    return source, [row for batch in source.batches(**options) for row in batch.to_pylist()]  # type: ignore[arg-type]


def test_json_lines_get_one_schema_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that appears late, or is a float only later, is read alike in every chunk."""
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 20)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"t": "a", "n": 1}\n\n{"t": null, "n": 1.5, "late": ["x"]}\n{"t": "c"}', "utf-8")
    source, rows = read(path)
    assert source.rows == 3
    assert rows == [
        {"t": "a", "n": 1.0, "late": None},
        {"t": None, "n": 1.5, "late": ["x"]},
        {"t": "c", "n": None, "late": None},
    ]


def test_a_line_longer_than_a_chunk_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks end at line ends, however long a line is."""
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 64)
    path = tmp_path / "rows.ndjson"
    path.write_text(f'{{"t": "{"x" * 1000}"}}\n{{"t": "y"}}\n', "utf-8")
    assert [len(str(row["t"])) for row in read(path)[1]] == [1000, 1]


def test_a_text_that_looks_like_a_date_stays_that_text(tmp_path: Path) -> None:
    """Arrow would read such texts as timestamps; they are embedded as they were written."""
    (tmp_path / "rows.jsonl").write_text('{"t": "2024-01-01", "deep": {"t": ["2024-01-01"]}}\n', "utf-8")
    (tmp_path / "rows.csv").write_text("t\n2024-01-01 10:00:00\n", "utf-8")
    assert read(tmp_path / "rows.jsonl")[1] == [{"t": "2024-01-01", "deep": {"t": ["2024-01-01"]}}]
    assert read(tmp_path / "rows.csv")[1] == [{"t": "2024-01-01 10:00:00"}]


def test_a_byte_order_mark_and_windows_line_ends_are_no_content(tmp_path: Path) -> None:
    """Files from Windows programs read like any other."""
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"t": "a"}\r\n{"t": "b"}\r\n')
    assert read(tmp_path / "rows.jsonl")[1] == [{"t": "a"}, {"t": "b"}]


def test_csv_keeps_line_breaks_inside_quotes(tmp_path: Path) -> None:
    """A quoted cell may hold several lines."""
    (tmp_path / "rows.csv").write_text('t,n\n"a\nb",1\n"c, d",2\n', "utf-8")
    assert read(tmp_path / "rows.csv")[1] == [{"t": "a\nb", "n": 1}, {"t": "c, d", "n": 2}]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_batches_are_bounded_and_keep_the_order(tmp_path: Path, suffix: str) -> None:
    """No batch is larger than requested, and the rows keep their order."""
    path, table = tmp_path / f"rows.{suffix}", pa.table({"n": range(1000)})
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=300)
    elif suffix == "csv":
        pc.write_csv(table, path)
    else:
        path.write_text("".join(f'{{"n": {n}}}\n' for n in range(1000)), "utf-8")
    source = sources.open_source(places.find(str(path), KINDS))
    batches = list(source.batches(batch_rows=64))
    assert max(batch.num_rows for batch in batches) <= 64
    assert [row["n"] for batch in batches for row in batch.to_pylist()] == list(range(1000))


def test_a_folder_of_parquet_files_is_read_in_order_without_markers(tmp_path: Path) -> None:
    """Files are read sorted by path, at any depth; names that start with "_" or "." are skipped."""
    for name in ("b.parquet", "a/z.parquet", "_tmp/x.parquet", ".half.parquet", "_meta.parquet"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"name": [name]}), tmp_path / "data" / name)
    source, rows = read(tmp_path / "data")
    assert [row["name"] for row in rows] == ["a/z.parquet", "b.parquet"]
    assert source.rows == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"t": 1}\n{"t": \n', "line 2: not a JSON object"),
        ("a.jsonl", "[1, 2]\n", "line 1: not a JSON object"),
        ("a.jsonl", '{"t": ' + "[" * 5000 + "\n", "line 1: not a JSON object"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", "\n\n", "is empty"),
        ("a.csv", "", "cannot be read as csv"),
        ("a.csv", "t,n\n1\n", "cannot be read as csv"),
        ("a.parquet", "PAR1", "cannot be read as parquet"),
        ("a.parquet", "", "cannot be read as parquet"),
        ("a.parquet", "PAR1" + "x" * 100 + "PAR1", "cannot be read as parquet"),
        ("a.txt", "some text", "unknown kind of file"),
    ],
)
def test_a_corrupt_file_is_one_error_that_names_it(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Any error in a file is a StorageError that names the file."""
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(StorageError, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "Hint:" in str(caught.value)


def test_a_parquet_file_that_breaks_off_in_the_middle_is_an_error(tmp_path: Path) -> None:
    """Damage inside the data is found while reading, and is an error like any other."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"t": [str(n) * 50 for n in range(5000)]}), path, compression="zstd", use_dictionary=False)
    damaged = bytearray(path.read_bytes())
    damaged[1000:3000] = bytes(2000)
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match=r"rows\.parquet"):
        read(path)


def test_a_field_of_two_types_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers here and texts there cannot be one column."""
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 10)
    (tmp_path / "rows.jsonl").write_text('{"t": 1}\n{"t": "x"}\n', "utf-8")
    with pytest.raises(StorageError, match="field t has incompatible types"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "path is empty"),
        ("txets.parquet", "did you mean 'texts.parquet'"),
        ("nowhere/texts.parquet", "there is no folder"),
        ("s3://bucket/texts.parquet", "only local paths"),
        ("empty", "holds neither Lance tables nor Parquet files"),
        ("db", "name one: db/one, db/two"),
    ],
)
def test_a_place_that_is_none_is_answered_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """A wrong path gets the closest name, or the tables of the database that was named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.parquet").touch()
    for folder in ("empty", "db/one.lance", "db/two.lance"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(StorageError, match=message):
        places.find(text)


@pytest.mark.parametrize("text", ["db/one", "db/one.lance"])
def test_a_lance_table_has_two_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """DB_DIR/name and DB_DIR/name.lance are one table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "db" / "one.lance").mkdir(parents=True)
    place = places.find(text)
    assert (place.kind, place.database, place.table) == ("lance", Path("db"), "one")
