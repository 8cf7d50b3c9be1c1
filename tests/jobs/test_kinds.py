"""Every kind of source, in pieces, and every kind of destination."""

from __future__ import annotations

import csv
import io
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg.datasets import formats, places, sources, texts
from embedreg.errors import StorageError
from embedreg.jobs import Job, opening, pieces
from tests.jobs import children
from tests.jobs.children import Logged
from tests.jobs.conftest import texts as rows_of

ROWS = 400


def table() -> pa.Table:
    """Return rows that are hard for text files: line breaks, quotes, commas, nulls, blanks, multi-byte letters."""
    hard = ["plain", 'with "quotes"', "with, commas", "with\nline breaks\r\nof both kinds", "", "größer", '"', "\n"]
    rows = [f"{hard[n % len(hard)]} {n}" if n % 7 else None for n in range(ROWS)]
    return pa.table({"id": range(ROWS), "text": rows, "weight": [n / 4 for n in range(ROWS)]})


def write(kind: str, path: Path, data: pa.Table) -> None:
    """Write one file of a kind, in parts where it has such."""
    if kind == "parquet":
        pq.write_table(data, path, row_group_size=37)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data.to_pylist()), "utf-8")
    elif kind == "csv":
        pc.write_csv(data, path)
    else:
        opened = pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as file, opened(file, data.schema) as writer:
            for batch in data.to_batches(max_chunksize=37):
                writer.write_batch(batch)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read text in chunks of a few rows, as a large file is."""
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 600)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream", "jsonl", "csv"])
@pytest.mark.parametrize("out", ["out", "out.parquet", "out.arrow", "out.lance"])
def test_every_kind_becomes_every_kind(small: None, tmp_path: Path, kind: str, out: str) -> None:
    """The joined pieces have the rows of the source, in order, with their vectors."""
    data, log = table(), tmp_path / "log"
    suffix = {"stream": "arrows"}.get(kind, kind)
    (tmp_path / "in").mkdir()
    write(kind, tmp_path / "in" / f"a.{suffix}", data.slice(0, 300))
    write(kind, tmp_path / "in" / f"b.{suffix}", data.slice(300))
    declaration = Logged(log=str(log)).bind("text", "vector")
    report = embedreg.embed(tmp_path / "in", tmp_path / out, declaration, piece_rows=50, batch_rows=20)
    assert report.pieces >= (7 if kind != "stream" else 2)
    if out == "out":
        found = ds.dataset(tmp_path / out, format="parquet").to_table()
    elif out == "out.lance":
        found = lance.dataset(tmp_path / out).to_table()
        assert lancedb.connect(tmp_path).open_table("out").count_rows() == ROWS
    else:
        found = pq.read_table(tmp_path / out) if out == "out.parquet" else pa.ipc.open_file(tmp_path / out).read_all()
    if kind == "csv":  # which has no null
        data = data.set_column(1, "text", data.column("text").fill_null(""))
    assert found.select(data.column_names).to_pylist() == data.to_pylist()
    want = [
        None if not (text or "").strip() else [float(len(text)), float(sum(text.encode()))]
        for text in data.column("text").to_pylist()
    ]
    assert found.column("vector").to_pylist() == want
    assert embedreg.functions_in(found.schema)["vector"].function == Logged()
    assert (tmp_path / out).name in {path.name for path in tmp_path.iterdir()}
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_lance_table_is_read_by_fragments(tmp_path: Path) -> None:
    """Each fragment is an input: a job continues with a table that grew, and deleted rows are not embedded."""
    log = tmp_path / "log"
    lance.write_dataset(rows_of(0, 400), tmp_path / "in.lance", max_rows_per_file=150)
    lance.dataset(tmp_path / "in.lance").delete("id = 5")
    declaration = Logged(log=str(log)).bind("text", "vector")
    first = embedreg.embed(tmp_path / "in.lance", tmp_path / "out", declaration, piece_rows=60)
    assert (first.rows, first.pieces) == (399, 7)
    lance.write_dataset(rows_of(1000, 10), tmp_path / "in.lance", mode="append")
    second = embedreg.embed(tmp_path / "in.lance", tmp_path / "out", declaration, piece_rows=60)
    assert (second.rows, second.reused) == (409, 7)
    wanted = [n for n in range(400) if n != 5] + list(range(1000, 1010))
    assert ds.dataset(tmp_path / "out", format="parquet").to_table().column("id").to_pylist() == wanted
    assert children.embedded(log) == [f"text number {n}" for n in wanted]


def test_a_lance_table_appears_in_one_version(tmp_path: Path, dataset: Path) -> None:
    """In any order of the pieces, and with repetitions, there is one commit, with ordered rows and no extra file."""
    declaration = Logged().bind("text", "vector")
    target = tmp_path / "db" / "out.lance"
    with Job.open(dataset, target, declaration, piece_rows=100) as job:
        job.work.run(job.pending()[0])  # done, and never recorded
        for piece in reversed(job.pending()[2:]):
            job.record(job.work.run(piece))
        assert not target.exists()
    embedreg.embed(dataset, target, declaration, piece_rows=100)
    made = lance.dataset(target)
    assert made.to_table().column("id").to_pylist() == list(range(600))
    assert len(list((target / "data").iterdir())) == len(made.get_fragments()) == 7
    assert [path.name for path in target.parent.iterdir()] == ["out.lance"]
    assert made.to_table(nearest={"column": "vector", "q": [13.0, 1200.0], "k": 1}).num_rows == 1


# -- patterns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in/*.parquet", ["a.parquet", "b1.parquet"]),
        ("in/**/*.parquet", ["a.parquet", "b1.parquet", "deep/c.parquet", "deep/er/d.parquet"]),
        ("in/**/er/*", ["deep/er/d.parquet"]),
        ("in/?.parquet", ["a.parquet"]),
        ("in/[!a]*.parquet", ["b1.parquet"]),
        ("in/[a-c]*", ["a.parquet", "b1.parquet"]),
        ("in/deep/*/d.parquet", ["er/d.parquet"]),
        ("in/odd[1].parquet", ["odd[1].parquet"]),
        ("*/a.parquet", ["in/a.parquet"]),
    ],
)
def test_a_pattern_names_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, names: list[str]) -> None:
    """`*` stays in a folder, `**` does not; an existing file of that name is itself; marker files are skipped."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b1", "deep/c", "deep/er/d", "_x", ".y", "odd[1]"):
        (tmp_path / "in" / f"{name}.parquet").parent.mkdir(parents=True, exist_ok=True)
        if name != "odd[1]" or "odd" in pattern:
            pq.write_table(table(), tmp_path / "in" / f"{name}.parquet")
    for base in ("", f"{tmp_path}/"):
        place = places.find(base + pattern, opening.KINDS)
        assert [file.path for file in place.files] == names


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("at", range(3))
def test_a_signal_while_lances_thread_starts_leaves_nothing(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, started: bool, at: int
) -> None:
    """After a signal before or after the thread starts, Lance does not write anything more."""
    start, met = threading.Thread.start, []

    def interrupted(self: threading.Thread) -> None:
        stop = self.name == "embedreg-lance" and len(met) == at
        if self.name == "embedreg-lance":
            met.append(self)
        if not stop or started:
            start(self)
        if stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedreg.embed(dataset, tmp_path / "db/out.lance", Logged().bind("text", "vector"), piece_rows=100)
    assert not any(thread.is_alive() for thread in met)
    left = sorted(path.name for path in tmp_path.glob("db/.out.lance.embedreg/_embedreg/lock/*"))
    assert left == []
    assert at == 2 or not (tmp_path / "db").exists(), "nothing was done yet, so nothing stays"


def test_a_pattern_without_matches_is_refused(tmp_path: Path) -> None:
    """A folder of several kinds is refused too, and the hint is a pattern for one of them."""
    with pytest.raises(StorageError, match="no file of a known kind"):
        places.find(f"{tmp_path}/*.parquet", opening.KINDS)
    write("csv", tmp_path / "a.csv", table())
    write("jsonl", tmp_path / "a.jsonl", table())
    with pytest.raises(StorageError, match="several kinds: csv, jsonl") as caught:
        places.find(str(tmp_path), opening.KINDS)
    assert "*.csv" in str(caught.value)
    assert [file.path for file in places.find(f"{tmp_path}/**/*.csv", opening.KINDS).files] == ["a.csv"]


def test_links_are_read_and_loops_of_links_end(tmp_path: Path) -> None:
    """A link to a file is that file; one to a folder is not followed, since it may lead to its own parent."""
    (tmp_path / "in").mkdir()
    write("parquet", tmp_path / "real.parquet", table())
    (tmp_path / "in" / "a.parquet").symlink_to(tmp_path / "real.parquet")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert [file.path for file in places.find(str(tmp_path / "in"), opening.KINDS).files] == ["a.parquet"]


# -- schemas -----------------------------------------------------------------------------------------------------------


def test_files_with_different_schemas_are_unified(tmp_path: Path) -> None:
    """A column that only some files have is null in the others; of two types the wider one holds both."""
    pq.write_table(pa.table({"text": ["a"], "n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "n": pa.array([2**40], pa.int64()), "x": [1.5]}), tmp_path / "b.parquet")
    embedreg.embed(f"{tmp_path}/*.parquet", tmp_path / "out", Logged().bind("text", "vector"))
    found = [pq.read_table(tmp_path / "out" / name) for name in ("a.parquet", "b.parquet")]
    assert found[0].schema.equals(found[1].schema)
    assert [row.select(["text", "n", "x"]).to_pylist()[0] for row in found] == [
        {"text": "a", "n": 1, "x": None},
        {"text": "b", "n": 2**40, "x": 1.5},
    ]


def test_files_with_incompatible_types_are_named(tmp_path: Path) -> None:
    """A column of text in one file and numbers in another raises an error that names both files."""
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "n": ["two"]}), tmp_path / "b.parquet")
    with pytest.raises(embedreg.EmbedregError, match=r"b\.parquet does not fit a\.parquet: .*n"):
        embedreg.embed(f"{tmp_path}/*.parquet", tmp_path / "out", Logged().bind("text", "vector"))
    assert not (tmp_path / "out").exists()


def test_a_schema_class_declares_types_too(tmp_path: Path) -> None:
    """Declared as halves, the vectors are stored as halves, in every piece."""
    function = Logged()

    class Article(embedreg.Schema):
        text: str = function.SourceField()
        vector: embedreg.Vector(2, value_type=pa.float16()) = function.VectorField()  # type: ignore[valid-type]

    pq.write_table(pa.table({"text": [f"t{n}" for n in range(100)]}), tmp_path / "in.parquet", row_group_size=10)
    embedreg.embed(tmp_path / "in.parquet", tmp_path / "out", Article, piece_rows=30)
    for path in (tmp_path / "out").glob("*.parquet"):
        assert pq.read_schema(path).field("vector").type == pa.list_(pa.float16(), 2)


# -- pieces ------------------------------------------------------------------------------------------------------------


def spans(path: Path, piece_rows: int) -> tuple[sources.Source, list[pieces.Piece]]:
    """A source, and its pieces."""
    source = sources.open_source(places.find(str(path), opening.KINDS))
    return source, pieces.cut_up(source.inputs, piece_rows)


def test_row_groups_are_joined_and_cut(tmp_path: Path) -> None:
    """Small row groups are joined, and one much larger than a piece is split; each row is in one piece."""
    path = tmp_path / "a.parquet"
    schema = pa.schema({"id": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        at = 0
        for rows in (10, 10, 10, 500, 10, 90, 120):
            writer.write_table(pa.table({"id": range(at, at + rows)}), row_group_size=rows)
            at += rows
    source, found = spans(path, 100)
    assert [piece.rows for piece in found] == [30, 100, 100, 100, 100, 100, 100, 120]
    read = [
        row["id"]
        for piece in found
        for batch in source.read(piece.input.path, piece.span, batch_rows=33)
        for row in batch.to_pylist()
    ]
    assert read == list(range(at))
    assert [piece.span.first_row for piece in found] == [0, 30, 130, 230, 330, 430, 530, 630]


def test_batches_and_pieces_of_large_rows_have_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of images are bounded by their bytes, not by their number of rows."""
    monkeypatch.setattr(formats, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 50_000)
    path = tmp_path / "a.parquet"
    blobs = [random.Random(n).randbytes(1000) for n in range(300)]
    pq.write_table(pa.table({"blob": blobs}), path, use_dictionary=False, compression="none")
    source, found = spans(path, 65_536)
    assert max(piece.rows or 0 for piece in found) <= 50
    batches = [batch for piece in found for batch in source.read(piece.input.path, piece.span)]
    assert max(batch.num_rows for batch in batches) <= 10
    assert [row["blob"] for batch in batches for row in batch.to_pylist()] == blobs


def rows_in(source: sources.Source, piece: pieces.Piece) -> list[dict[str, Any]]:
    """The rows of a piece."""
    return [row for batch in source.read(piece.input.path, piece.span) for row in batch.to_pylist()]


def csv_text(rows: list[tuple[str, ...]], end: str = "\n") -> str:
    """Return rows as written by Python's csv module."""
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(8))
def test_csv_is_cut_only_where_rows_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, end: str) -> None:
    """With any text inside quotes, the rows of the pieces are those of Python's csv reader."""
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 64)
    chance = random.Random(seed)
    cells = ['a"b', '""', "x,y", "1\n2", "1\r\n2", "plain", "ü", '"quoted"', "end\n", "\nstart"]
    rows = [("text", "other")] + [
        (f"{chance.choice(cells)}{n}", "".join(chance.choices(cells, k=chance.randrange(4)))) for n in range(60)
    ]
    path = tmp_path / "a.csv"
    path.write_bytes(csv_text(rows, end).encode())
    source, found = spans(path, 7)
    assert len(found) >= 6
    assert source.rows == 60
    read = [
        (row["text"], row["other"])
        for piece in found
        for batch in source.read(piece.input.path, piece.span)
        for row in batch.to_pylist()
    ]
    with path.open(newline="", encoding="utf-8") as file:
        assert read == [tuple(row) for row in csv.reader(file)][1:]
    assert [piece.span.first_row for piece in found][1] == sum(1 for _ in range(found[0].rows or 0))


@pytest.mark.parametrize(
    "content",
    ['text,n\n5" pipe,1\nplain,2\n6" pipe,3\n', "text,n\ra,1\rb,2\r", 'text,n\n"a, ""b""",1\n5" x,2\n'],
    ids=["a quote inside", "old line ends", "quotes of both sorts"],
)
def test_csv_with_stray_quotes_and_old_line_ends_is_cut_by_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """A quote inside an unquoted field is a character; the rows are those of Python's csv reader."""
    path = tmp_path / "a.csv"
    path.write_text(content, newline="")
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 16)
    source, found = spans(path, 1)
    assert [piece.rows for piece in found] == [1] * (source.rows or 0)
    read = [tuple(row.values()) for piece in found for row in rows_in(source, piece)]
    with path.open(newline="") as file:
        assert read == [(text, int(n)) for text, n in [*csv.reader(file)][1:]]


@pytest.mark.parametrize(
    ("content", "line"),
    [('text,n\nx,1\n"a"b",1\nx,2\n', 3), ('text,n\n"a\nb",1\n"open,2\nx,3\n', 4), ('text,n\nx,1\n"', 3)],
)
def test_a_quote_that_is_not_closed_is_an_error_at_its_line(tmp_path: Path, content: str, line: int) -> None:
    """Otherwise the following rows would become part of one text, or a quote would be lost."""
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(StorageError, match=rf"a\.csv, line {line}: the quote that opens here"):
        sources.open_source(places.find(str(path), opening.KINDS))


@pytest.mark.parametrize(
    ("content", "rows"),
    [("text\n", 0), ("text\na", 1), ("text\n\n\na\n\nb\n\n", 2), ("\n\ntext\na\n", 1), ("text\r\n\r\na\r\n", 1)],
)
def test_csv_rows_are_counted_as_they_are_read(tmp_path: Path, content: str, rows: int) -> None:
    """Empty lines are skipped, and the last line may lack a line break."""
    path = tmp_path / "a.csv"
    path.write_text(content, newline="")
    source = sources.open_source(places.find(str(path), opening.KINDS))
    assert source.rows == rows
    assert sum(batch.num_rows for batch in source.batches()) == rows


def test_an_input_that_changes_while_it_is_read_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece never mixes rows of two versions of a file; the next run repeats it."""
    path = dataset / "lang=de" / "a.parquet"
    declaration = Logged().bind("text", "vector")
    with Job.open(dataset, tmp_path / "out", declaration, piece_rows=1000) as job:
        piece = job.pending()[0]
        pq.write_table(pq.read_table(path).slice(0, 200), path, row_group_size=40)
        with pytest.raises(StorageError, match="changed while it was read"):
            job.work.run(piece)
    assert not list((tmp_path / "out").rglob("*.parquet"))
    assert embedreg.embed(dataset, tmp_path / "out", declaration, piece_rows=1000).rows == 550


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_plan_is_not_trusted_longer_than_its_inputs(
    dataset: Path, tmp_path: Path, change: str, run_once: Callable[..., Any]
) -> None:
    """A file that has changed is scanned again."""
    run_once()
    path = dataset / "lang=en" / "a.parquet"
    if change == "replaced":
        pq.write_table(pq.read_table(path), path, row_group_size=300)
    else:
        path.unlink()
    report = run_once(prune=True)
    assert report.rows == (600 if change == "replaced" else 300)


@pytest.fixture
def run_once(dataset: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run a job from the dataset."""

    def run(**options: Any) -> Any:
        return embedreg.embed(dataset, tmp_path / "out", Logged().bind("text", "vector"), piece_rows=100, **options)

    return run


@pytest.mark.parametrize("out", ["out", "out.parquet", "out.lance"])
def test_errors_of_embedding_are_raised_unchanged(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    """An error of the function is not reported as one of the disk, and a scope of secrets applies while embedding."""
    names = []

    def before(some: list[str]) -> None:
        names.append(threading.current_thread())
        if "text number 130" in some:
            raise ConnectionResetError("the service hung up")

    monkeypatch.setattr(Logged, "before", staticmethod(before))
    with pytest.raises(ConnectionResetError, match="hung up"):
        embedreg.embed(dataset, tmp_path / out, Logged(max_retries=0).bind("text", "vector"), piece_rows=100)
    assert set(names) == {threading.current_thread()}
    monkeypatch.undo()
    assert embedreg.embed(dataset, tmp_path / out, Logged().bind("text", "vector"), piece_rows=100).reused == 1
