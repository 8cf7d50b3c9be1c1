"""Text files are read exactly: what was written comes back, or an error names the file and the line."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedreg
from embedreg.datasets import places, sources, texts
from embedreg.datasets.reading import Reading
from embedreg.errors import EmbedregError, SchemaError, StorageError
from embedreg.jobs import opening, pieces

BIND = embedreg.get("hashing").create(dim=4).bind("text", "vector")
EXACT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

word = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_ODD = "007 +49123 12345678901234567890 1.10 1.1 1e5 1e400 -0 -0.0 0 NaN NA null true 2024-1-5 0x10 .5 5. 1,5 é -7"
numberlike = st.sampled_from([*_ODD.split(" "), "9007199254740993", " 5", "5 ", "0.1", "1e-07", ""])
number = st.integers(-(2**70), 2**70).map(str) | st.floats(allow_nan=False, allow_infinity=False).map(repr)
cell = word | numberlike | number


def opened(path: Path, **options: Any) -> sources.Source:
    """A source, and how its text is read."""
    return sources.open_source(places.find(str(path), opening.KINDS), None, Reading.of(**options))


def rows_of(source: sources.Source, piece_rows: int | None = None) -> list[dict[str, Any]]:
    """All rows, read at once or piece by piece."""
    if piece_rows is None:
        return [row for batch in source.batches(batch_rows=7) for row in batch.to_pylist()]
    cut = pieces.cut_up(source.inputs, piece_rows)
    assert [piece.rows for piece in cut[:-1]] == [piece_rows] * (len(cut) - 1)
    return [row for p in cut for batch in source.read(p.input.path, p.span) for row in batch.to_pylist()]


def same(read: Any, written: str) -> bool:
    """The text, or a number that is the text."""
    if read is None:
        return written == ""
    if isinstance(read, str):
        return read == written
    exact = isinstance(read, float) and written.lstrip("-").isdigit() and Decimal(read) == int(written)
    return exact or repr(read) == written


@pytest.fixture(params=[64, 1 << 20], ids=["small chunks", "one chunk"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in chunks of a few bytes, as a large file is, or at once."""
    monkeypatch.setattr(texts, "_CHUNK_BYTES", request.param)


@pytest.mark.parametrize("form", [".csv", ".tsv", ".csv.gz", ".tsv.zst", "utf-16", "all quoted", ";"])
@given(
    rows=st.lists(st.tuples(cell, cell, cell), max_size=12),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    piece_rows=st.integers(1, 5),
)
@EXACT
def test_csv_comes_back_as_python_wrote_it(
    tmp_path: Path, chunks: None, form: str, rows: list[tuple[str, ...]], end: str, piece_rows: int
) -> None:
    """Each cell is its text, or a number that would be written as that text; in pieces or at once."""
    out = io.StringIO()
    mark = "\t" if form.startswith(".tsv") else ";" if form == ";" else ","
    # Python's writer leaves a line break of another kind than its own without quotes: nobody could read that
    broken = any(mark in cell for row in rows for cell in row for mark in "\r\n")
    quoting = csv.QUOTE_ALL if broken or form == "all quoted" else csv.QUOTE_MINIMAL
    writer = csv.writer(out, delimiter=mark, lineterminator=end, quoting=quoting)
    writer.writerows([("a", "b", "c"), *rows])
    data = out.getvalue().encode("utf-16" if form == "utf-16" else "utf-8")
    path = tmp_path / f"rows{form if form.startswith('.') else '.csv'}"
    if form.endswith(".gz"):
        data = gzip.compress(data)
    elif form.endswith(".zst"):
        data = pa.compress(data, "zstd", asbytes=True)
    path.write_bytes(data)
    source = opened(path, **({"delimiter": ";"} if form == ";" else {}))
    for read in (rows_of(source), rows_of(source, piece_rows)):
        assert len(read) == len(rows)
        for one, other in zip(read, rows, strict=True):
            assert all(same(value, text) for value, text in zip(one.values(), other, strict=True)), (one, other)
    if form == "all quoted":
        assert [item.type for item in source.schema] == [pa.string()] * 3


scalar = st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats(allow_nan=False, allow_infinity=False)
value = st.recursive(
    scalar | word,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
    max_leaves=5,
)


def json_same(read: Any, written: Any) -> bool:
    """Equal; what a row lacks is null, and a number that no type holds is its text."""
    if isinstance(written, dict):
        if not written and read in ("{}", None):
            return True
        return isinstance(read, dict) and all(json_same(read[name], written.get(name)) for name in read | written)
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(map(json_same, read, written))
    if isinstance(read, str) and isinstance(written, int | float) and not isinstance(written, bool):
        return json.loads(read) == written
    return (
        read == written and (read is None) == (written is None) and isinstance(read, bool) == isinstance(written, bool)
    )


@pytest.mark.parametrize("form", [".jsonl", ".ndjson", ".json", ".jsonl.gz", "array", "latin"])
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["a", "b", "long name"]), value, max_size=3), min_size=1, max_size=8),
    ascii_only=st.booleans(),
    piece_rows=st.integers(1, 4),
)
@EXACT
def test_json_comes_back_as_python_wrote_it(
    tmp_path: Path, chunks: None, form: str, rows: list[dict[str, Any]], ascii_only: bool, piece_rows: int
) -> None:
    """Each value is equal, or fields that have no one type are an error that names both lines."""
    if form == "array":
        text = json.dumps(rows, ensure_ascii=ascii_only, indent=1)
    else:
        text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    path = tmp_path / f"rows{'.json' if form == 'array' else form if form.startswith('.') else '.jsonl'}"
    try:
        data = text.encode("latin-1" if form == "latin" else "utf-8")
    except UnicodeEncodeError:
        return
    path.write_bytes(gzip.compress(data) if form.endswith(".gz") else data)
    source, told = None, ""
    try:
        source = opened(path, **({"encoding": "latin-1"} if form == "latin" else {}))
    except StorageError as exc:
        told = exc.message
    if source is None:
        assert not any(rows) or ("incompatible types" in told and told.count("line ") == 2), told
        return
    for read in (rows_of(source), rows_of(source, piece_rows)):
        assert len(read) == len(rows)
        for one, other in zip(read, rows, strict=True):
            assert all(json_same(one[name], other.get(name)) for name in one | other), (one, other)


@given(
    garbage=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".jsonl", ".json", ".tsv", ".csv.gz", ".parquet"])
)
@EXACT
def test_garbage_is_read_or_refused_by_name(tmp_path: Path, garbage: bytes, suffix: str) -> None:
    """Whatever bytes a file holds: rows, or an error of one line that names it."""
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(garbage)
    told = "garbage"
    try:
        rows_of(opened(path))
    except EmbedregError as exc:
        told = exc.message
    assert "garbage" in told
    assert "\n" not in told


# -- examples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "why"),
    [
        (["007", "8"], "string", "would not read back the same"),
        (["+49123", "5"], "string", "would not read back the same"),
        (["12345678901234567890"], "string", "would not read back the same"),
        (["9223372036854775808", "1"], "string", "would not read back the same"),
        (["9223372036854775807", "-9223372036854775808"], "int64", None),
        (["9007199254740993", "0.5"], "string", "too large for a float column"),
        (["1.10"], "string", "would not read back the same"),
        (["1e400"], "string", "would not read back the same"),
        (["1e5"], "string", "would not read back the same"),
        (["-0"], "string", "would not read back the same"),
        (["NaN", "1.5"], "string", "is not a number"),
        (["NA", "1"], "string", "is not a number"),
        (["null", "1"], "string", "is not a number"),
        (["true", "false"], "string", "is not a number"),
        (["2024-1-5", "2024-01-06"], "string", "would not read back the same"),
        (['"5"', "6"], "string", "is in quotes"),
        ([" 5", "6"], "string", "is not a number"),
        (["1", "", "2"], "int64", None),
        (["1", "2.5", ""], "double", None),
        (["0.1", "1e-07", "1e+20", "-1.5"], "double", None),
        ([*map(str, range(3000)), "A17"], "string", "is not a number"),
        (["some", "words", "1"], "string", None),
        (["", ""], "string", None),
    ],
)
def test_a_csv_column_is_a_number_only_where_nothing_is_lost(
    tmp_path: Path, chunks: None, values: list[str], kind: str, why: str | None
) -> None:
    """Types come from the whole file; a column that looks like numbers and stays text is noted with line and value."""
    path = tmp_path / "rows.csv"
    path.write_text("text,v\n" + "".join(f"t{n},{value}\n" for n, value in enumerate(values)))
    source = opened(path, sources=["text"])
    assert str(source.schema.field("v").type) == kind
    assert (why is not None) == bool(source.notes)
    assert why is None or (why in source.notes[0] and "'v'" in source.notes[0])
    if kind == "string":
        assert [row["v"] for row in rows_of(source)] == [value.strip('"') for value in values]


def test_the_note_names_the_line(tmp_path: Path, chunks: None) -> None:
    """Lines are counted as an editor counts them, line breaks inside of quotes included."""
    path = tmp_path / "rows.csv"
    path.write_text('text,n\r\n"two\nlines",1\r\n\r\nx,2\r\n"three\r\nof\nthem",A17\r\n', newline="")
    assert "'A17' is not a number" in opened(path).notes[0]
    assert "line 6)" in opened(path).notes[0]


def test_the_source_column_is_text(tmp_path: Path) -> None:
    """Numbers in an embedded column of CSV are text, as written; so are JSON's, but only where that is declared."""
    (tmp_path / "a.csv").write_text("text,n\n1,1\n2,2\n")
    (tmp_path / "b.jsonl").write_text(
        '{"text": 1.50, "n": 1}\n{"text": "x", "n": 2}\n{"text": true}\n{"text": {"a": 1}}\n'
    )
    fn = embedreg.get("hashing").create(dim=4)
    for name, types, want in (("a.csv", None, ["1", "2"]), ("b.jsonl", TEXT, ["1.50", "x", "true", '{"a": 1}'])):
        embedreg.embed(tmp_path / name, tmp_path / f"{name}.parquet", fn.bind("text", "vector"), types=types)
        found = pq.read_table(tmp_path / f"{name}.parquet")
        assert found.column("text").to_pylist() == want
        assert found.schema.field("n").type == pa.int64()


TEXT = {"text": "text"}


@pytest.mark.parametrize("value", ["5", "1.50", "true", '["a"]', '{"a": 1}'])
def test_a_json_source_of_another_type_is_an_error(tmp_path: Path, value: str) -> None:
    """It names the column, the line and the value, and how to embed it as text; a null has no vector."""
    path, fn = tmp_path / "a.jsonl", embedreg.get("hashing").create(dim=4)
    path.write_text(f'{{"text": null}}\n{{"text": {value}}}\n')
    shown = re.escape("1.5" if value == "1.50" else value)
    with pytest.raises(
        StorageError, match=rf"line 2: column 'text' is embedded as text, but holds {shown}\."
    ) as caught:
        embedreg.embed(path, tmp_path / "out.parquet", fn.bind("text", "vector"))
    assert "types={'text': 'text'}" in str(caught.value)
    assert "--types text=text" in str(caught.value.shell_hint)
    embedreg.embed(path, tmp_path / "out.parquet", fn.bind("text", "vector"), types=TEXT)
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist() == [None, value]


def test_json_numbers_that_no_type_holds_stay_text(tmp_path: Path) -> None:
    """Over 64 bits, over a float's range or digits, or large integers beside fractions: the text that was written."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id": 9223372036854775808, "f": 1e400, "g": 0.12345678901234567890123, "h": 9007199254740993, "ok": 1.10}\n'
        '{"id": 1, "f": 1.5, "g": 1.0, "h": 0.5, "ok": 2}\n'
    )
    source = opened(path)
    assert rows_of(source) == [
        {
            "id": "9223372036854775808",
            "f": "1e400",
            "g": "0.12345678901234567890123",
            "h": "9007199254740993",
            "ok": 1.1,
        },
        {"id": "1", "f": "1.5", "g": "1.0", "h": "0.5", "ok": 2.0},
    ]
    assert [note.split("'")[1] for note in source.notes[:4]] == ["id", "f", "g", "h"]


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        ("int", "007", 7),
        ("float", "1.10", 1.1),
        ("float", "NaN", math.nan),
        ("bool", "true", True),
        ("text", "5", "5"),
        ("uint64", "18446744073709551615", 2**64 - 1),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_declared_type_wins(tmp_path: Path, form: str, kind: str, text: str, want: Any) -> None:
    """`types` reads a column as the declared type, including quoted text and empty fields."""
    path = tmp_path / f"rows.{form}"
    path.write_text(f'v,w\n"{text}",1\n,2\n' if form == "csv" else f'{{"v": "{text}"}}\n{{"v": null}}\n')
    found = [row["v"] for row in rows_of(opened(path, types={"v": kind}))]
    assert found[0] == want or (want != want and found[0] != found[0])
    assert found[1] == ("" if kind == "text" and form == "csv" else None)


@pytest.mark.parametrize(("kind", "text"), [("int", "x"), ("int", "1.5"), ("date", "2024-1-5"), ("bool", "maybe")])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_is_not_of_a_declared_type_is_named(tmp_path: Path, form: str, kind: str, text: str) -> None:
    """File, line, column and value, before anything is embedded."""
    path = tmp_path / f"rows.{form}"
    path.write_text(f"v,w\n,1\n{text},2\n" if form == "csv" else f'{{"v": null}}\n\n{{"v": "{text}"}}\n')
    with pytest.raises(StorageError, match=rf"rows\.{form}, line 3: column 'v': '{text}' is not"):
        opened(path, types={"v": kind})


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", b"text,n\nok,1\nb\xe9te,2\n", {}, r"line 3: column 'text' holds the byte 0xE9"),
        ("a.jsonl", b'{"text": "ok"}\n{"n": 1, "text": "b\xe9te"}\n', {}, r"line 2: column 'text' holds the byte 0xE9"),
        ("a.csv", b"t\xe9xt\nok\n", {}, r"line 1: the name of column 1"),
        ("a.csv", "a,b\n".encode("utf-16-le"), {}, r"the header holds NUL bytes"),
        ("a.csv", b"a,b\n1,2\n\x81,3\n", {"encoding": "cp1252"}, r"line 3: this is not valid cp1252"),
        ("a.csv", b"a,b,a\n", {}, r"line 1: the header names 'a' more than once"),
        ("a.csv", b"a,b\n1,2\n\n3\n", {}, r"line 4: .*1 field\(s\), the header 2"),
        ("a.csv", b"a,b\n1,2,\n", {}, r"line 2: .*3 field\(s\), the header 2"),
        ("a.jsonl", b'{"a": 1, "a": 2}\n', {}, r"line 1: the key 'a' appears twice"),
        ("a.jsonl", b'{"a": {"b": 1, "b": 2}}\n', {}, r"line 1: the key 'b' appears twice"),
        ("a.jsonl", b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", {}, r"line 1: .*nested deeper"),
        ("a.jsonl", b'{"a": ' + b'{"b":' * 70 + b"1" + b"}" * 70 + b"}\n", {}, r"line 1: .*nested deeper"),
        ("a.json", b"[" * 200_000, {}, r"element 1 of the array: .*nested too deeply"),
        ("a.json", b'[{"a": 1}, 2]', {}, r"element 2 of the array: not a JSON object, but"),
        ("a.json", b'[{"a": 1}', {}, r"element 2 of the array"),
        ("a.json", b'[{"a": 1},]', {}, r"element 2 of the array"),
        ("a.json", b'[{"a": 1}] x', {}, r"element 1 of the array"),
        ("a.json", b'{\n "a": 1\n}\n', {}, r"line 1: not a JSON object"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', {}, r"line 1: column 'a' is not valid Unicode"),
        ("a.jsonl", b'\n{"a": 1}\n{"a": "x"}\n', {}, r"'x' \(.*a\.jsonl, line 3\) and 1 \(.*line 2\)"),
        ("a.jsonl", b'{"a": [1]}\n{"a": ["x"]}\n', {}, r"field a\[\] has incompatible types"),
        ("a.jsonl", b'{"a": "x\0y"}\n', {}, r"line 1: not a JSON object"),
        ("a.csv.gz", gzip.compress(b"a,b\n" * 9000, mtime=0)[:-30], {}, r"a\.csv\.gz"),
        ("a.csv", b"a,b\n1,2\n", {"types": {"c": "int"}}, r"has no column 'c'"),
        ("a.csv", b"a,b\n1,2\n", {"types": {"a": "integer"}}, r"unknown type 'integer'"),
        ("a.csv", b"a,b\n1,2\n", {"encoding": "klingon"}, r"unknown encoding"),
        ("a.csv", b"a,b\n1,2\n", {"encoding": "hex"}, r"unknown encoding"),
        ("a.csv", b"a,b\n1,2\n", {"delimiter": "ab"}, r"invalid delimiter"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], message: str
) -> None:
    """One error of one line; nothing is read in part."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EmbedregError, match=message) as caught:
        opened(tmp_path / name, **options)
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "options", "text"),
    [
        ("größe".encode("latin-1"), {"encoding": "latin-1"}, "größe"),
        ("€".encode("cp1252"), {"encoding": "cp1252"}, "€"),
        ("größe".encode("utf-16-le"), {"encoding": "utf-16-le"}, "größe"),
        ("größe".encode(), {"encoding": "utf-8-sig"}, "größe"),
    ],
)
def test_encodings(tmp_path: Path, content: bytes, options: dict[str, str], text: str) -> None:
    """`encoding` is used to decode bytes."""
    (tmp_path / "a.csv").write_bytes("text\n".encode(options["encoding"]) + content)
    assert rows_of(opened(tmp_path / "a.csv", **options)) == [{"text": text}]


def test_columns_without_a_name_get_one(tmp_path: Path) -> None:
    """As pandas writes its index, and where a comma ends each row."""
    (tmp_path / "a.csv").write_text(",text,\n0,a,\n1,b,\n")
    source = opened(tmp_path / "a.csv")
    assert source.schema.names == ["column_1", "text", "column_3"]
    assert "'column_1', 'column_3'" in source.notes[0]


def test_files_of_one_folder_agree_on_a_type(tmp_path: Path) -> None:
    """What is text in one file is text in all, as it stands in each."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("text,zip,n\nx,10115,1\n")
    (tmp_path / "in" / "b.csv").write_text("text,zip,n\ny,01234,2.5\n")
    source = opened(tmp_path / "in")
    assert [(row["zip"], row["n"]) for row in rows_of(source)] == [("10115", 1.0), ("01234", 2.5)]
    assert "b.csv, line 2" in source.notes[0]


def test_other_options_are_another_job(tmp_path: Path) -> None:
    """A half-done job is not gone on with under types that its pieces do not have; the same types go on."""
    path, fn = tmp_path / "in.csv", embedreg.get("hashing").create(dim=4)
    path.write_text("text,n\n" + "".join(f"t{n},{n}\n" for n in range(50)))
    bound = fn.bind("text", "vector")
    embedreg.embed(path, tmp_path / "out", bound, piece_rows=20)
    assert embedreg.embed(path, tmp_path / "out", bound, piece_rows=20).reused == 3
    with pytest.raises(EmbedregError, match=r"columns of .* are not those"):
        embedreg.embed(path, tmp_path / "out", bound, types={"n": "text"})
    assert embedreg.embed(path, tmp_path / "out", bound, types={"n": "text"}, resume=False).reused == 0
    assert embedreg.embed(path, tmp_path / "out", bound, types={"n": "text"}).pieces == 1


@pytest.mark.parametrize("form", ["csv", "csv.gz", "jsonl"])
def test_a_stream_is_gone_on_with_where_the_piece_before_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Pieces are cut by rows; a compressed file is unpacked once for its types and once for its pieces."""
    monkeypatch.setattr(texts, "_CHUNK_BYTES", 256)
    begun = []
    begin = texts.Text._begin
    monkeypatch.setattr(texts.Text, "_begin", lambda self: (begun.append(self._path), begin(self))[1])
    path = tmp_path / f"in.{form}"
    if form == "jsonl":
        data = "".join(f'{{"text": "text {n}"}}\n' for n in range(500))
    else:
        data = "text\n" + "".join(f"text {n}\n" for n in range(500))
    path.write_bytes(gzip.compress(data.encode()) if form.endswith("gz") else data.encode())
    report = embedreg.embed(
        path, tmp_path / "out", embedreg.get("hashing").create(dim=4).bind("text", "vector"), piece_rows=20
    )
    assert report.pieces == 25
    found = [pq.read_table(each).column("text").to_pylist() for each in sorted((tmp_path / "out").glob("*.parquet"))]
    assert found == [[f"text {n}" for n in range(at, at + 20)] for at in range(0, 500, 20)]
    assert form != "csv.gz" or len(begun) <= 3


def test_a_quote_that_is_never_closed_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is bounded, and the error names the line where it begins."""
    monkeypatch.setattr(texts, "MAX_ROW_BYTES", 4 << 20)
    (tmp_path / "a.csv").write_text('text,n\nok,1\n"open,2\n' + "x,3\n" * 4_000_000)
    with pytest.raises(StorageError, match="line 3: a row that begins here is longer than 4 MiB"):
        opened(tmp_path / "a.csv")


def test_parquet_texts_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    """Invalid UTF-8 in a string column, also in lists, raises an error with file, row and column."""
    bad = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"b\xff", b"c"], pa.binary()).buffers())
    for name, column in (("a", bad), ("b", pa.ListArray.from_arrays([0, 1, 2, 3], bad))):
        pq.write_table(pa.table({"id": range(3), "text": column}), tmp_path / f"{name}.parquet")
        with pytest.raises(
            StorageError, match=rf"{name}\.parquet, row 1: column 'text' holds bytes that are not valid UTF-8"
        ):
            rows_of(opened(tmp_path / f"{name}.parquet"))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("number", ["9007199254740993", "1e400", "-1e999"])
def test_a_float_that_is_declared_holds_the_number_or_names_it(tmp_path: Path, form: str, number: str) -> None:
    """Fractions are rounded to a declared float type; an integer or a power of ten is never changed."""
    file = tmp_path / f"a.{form}"
    line = '"a",{}\n' if form == "csv" else '{{"text":"a","v":{}}}\n'
    head = "text,v\n" if form == "csv" else ""
    fine = ["0.1234567890123456789", "9007199254740992", "1e300"]
    file.write_text(head + "".join(line.format(value) for value in fine))
    made = opened(file, types={"v": "float"})
    assert [row["v"] for row in rows_of(made)] == [0.12345678901234568, 9007199254740992.0, 1e300]
    file.write_text(head + "".join(line.format(value) for value in [*fine, number]))
    with pytest.raises(StorageError, match=rf"line {5 - (form != 'csv')}: column 'v': '{number}' is not double"):
        rows_of(opened(file, types={"v": "float"}))


def test_files_of_a_folder_agree_value_by_value(tmp_path: Path) -> None:
    """Integers of one Parquet file become the floats of another where that is exact; else the value is named."""
    pq.write_table(pa.table({"text": ["a"], "v": [2**60]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "v": [0.5]}), tmp_path / "b.parquet")
    assert [row["v"] for row in rows_of(opened(tmp_path))] == [float(2**60), 0.5]
    pq.write_table(pa.table({"text": ["a"], "v": [2**60 + 1]}), tmp_path / "a.parquet")
    with pytest.raises(EmbedregError, match=rf"a\.parquet: column 'v' is int64 .* double: {2**60 + 1} "):
        rows_of(opened(tmp_path))


def write_ipc(path: Path, column: Any) -> None:
    """Write texts and one column as an Arrow IPC file."""
    table = pa.table({"text": [f"t{row}" for row in range(len(column))], "v": column})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([5, None], pa.timestamp("s")),
        pa.array([5], pa.timestamp("s", "Asia/Tokyo")),
        pa.array([5], pa.time32("s")),
        pa.array([5], pa.duration("s")),
        pa.array([86400000], pa.date64()),
        pa.array([7, None, 7]).dictionary_encode(),
        pa.array([[1], None, [2]], pa.list_view(pa.int8())),
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8.0).reshape(2, 2, 2)),
    ],
    ids=lambda column: str(column.type),
)
def test_an_arrow_file_comes_back_with_its_types(tmp_path: Path, column: Any) -> None:
    """Its pieces are Parquet, which has no seconds and no dictionary of integers."""
    write_ipc(tmp_path / "a.arrow", column)
    embedreg.embed(tmp_path / "a.arrow", tmp_path / "b.arrow", BIND)
    made = pa.ipc.open_file(str(tmp_path / "b.arrow")).read_all()["v"].combine_chunks()
    assert made.type == column.type
    assert made.to_pylist() == column.to_pylist()


def test_views_of_an_arrow_file_can_be_a_lance_table(tmp_path: Path) -> None:
    """Arrow aligns them less than Lance wants."""
    texts_ = ["a" * 20, None, "b"]
    write_ipc(tmp_path / "a.arrow", pa.array(texts_, pa.string_view()))
    embedreg.embed(tmp_path / "a.arrow", tmp_path / "db/t.lance", BIND)
    assert lance.dataset(tmp_path / "db/t.lance").to_table()["v"].to_pylist() == texts_


@pytest.mark.parametrize(
    "column",
    [
        pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
        pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array([1])),
        pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
        pa.array([[], None], pa.list_(pa.int8(), 0)),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("target", ["b.parquet", "b.arrow", "folder"])
def test_a_type_that_parquet_lacks_is_named_before_any_work(tmp_path: Path, column: Any, target: str) -> None:
    """Nothing of the destination is there afterwards."""
    write_ipc(tmp_path / "a.arrow", column)
    with pytest.raises(SchemaError, match=r"column 'v' is .*, which Parquet cannot hold"):
        embedreg.embed(tmp_path / "a.arrow", tmp_path / target, BIND)
    assert not list(tmp_path.glob(f"{target}/*.parquet"))
    assert not (tmp_path / target).is_file()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "punycode"])
def test_a_file_of_another_encoding_is_one_line(tmp_path: Path, encoding: str) -> None:
    """A fault in the very first bytes is an error that names the file."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(StorageError, match=rf"a\.jsonl, .*not valid {encoding}"):
        embedreg.embed(
            tmp_path / "a.jsonl",
            tmp_path / "out",
            embedreg.get("hashing").create(dim=4).bind("text", "vector"),
            encoding=encoding,
        )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.b", [1]),
        ("a`b", [1]),
        ("", [1]),
        ("_rowid", [1]),
        ("a\0b", [1]),
        ("v", pa.array([[1]], pa.list_view(pa.int32()))),
        ("v", pa.array([(1, 2, 3)], pa.month_day_nano_interval())),
        ("v", pa.RunEndEncodedArray.from_arrays([1], ["x"])),
        ("v", pa.array([{}], pa.struct([]))),
    ],
)
def test_what_lance_does_not_store_is_refused_before_anything_is_embedded(
    tmp_path: Path, name: str, values: Any
) -> None:
    """Types, and names under which Lance does not find a column again: the column is named, nothing is left."""
    table = pa.table({"text": ["a"], name: values})
    with pa.OSFile(str(tmp_path / "in.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(SchemaError, match=r"column '.*' of type .* cannot be stored in a Lance table"):
        embedreg.embed(tmp_path / "in.arrow", tmp_path / "out.lance", BIND)
    assert [path.name for path in tmp_path.iterdir()] == ["in.arrow"]
