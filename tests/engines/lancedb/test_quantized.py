"""Quantised columns in LanceDB: one set of ranges for all writers, and searches that are right or refused."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lancedb.pydantic import LanceModel

import embedreg
from embedreg import Schema, Vector, columns
from embedreg.arrow.quantized import Ranges
from embedreg.cli import search as searching
from embedreg.datasets import places
from embedreg.declaration import codec
from embedreg.engines.lancedb import aadd, add, create_table
from embedreg.engines.lancedb.ranges import agreed
from embedreg.errors import ConfigError, SchemaError, VectorError

WIDTH = 64
TEXTS = [f"text number {i} about {w} and {i % 7}" for i, w in enumerate(["sine", "files", "json", "cosine"] * 25)]
ROWS = [{"text": text} for text in TEXTS]


@pytest.fixture
def function() -> Any:
    return embedreg.get("hashing").create(dim=WIDTH)


def notes(fn: Any, dtype: str, **more: Any) -> type[Schema]:
    """Declare a text and its quantised vector."""

    class Notes(Schema):
        text: str | None = fn.SourceField(default=None)
        vector: Vector(fn.ndims, dtype, **more) = fn.VectorField()

    return Notes


def stored(table: Any) -> np.ndarray:
    """Return the stored values: (n, width)."""
    column = table.to_arrow()["vector"].combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)


def quantizer(table: Any) -> Any:
    """Return what a table records."""
    return codec.quantizer(embedreg.functions_in(table.schema)["vector"])


def expected(table: Any, fn: Any, texts: list[str]) -> np.ndarray:
    """Return the values that texts have by the ranges of a table."""
    made: np.ndarray = quantizer(table).encode(embedreg.embed_column(fn, texts).matrix)
    return made


def test_every_writer_uses_the_ranges_of_the_first(db: Any, function: Any, tmp_path: Path) -> None:
    """`add` learns ranges and records them before its rows; `table.add`, a second handle and `aadd` use them."""
    table = create_table(db, "notes", notes(function, "int8"))
    other = db.open_table("notes")
    with pytest.raises(
        RuntimeError,
        match=r"(?s)ranges of these int8 vectors are not known.*engines\.lancedb\.add.*ranges=embedreg\.calibrate",
    ):
        table.add(ROWS)
    add(table, ROWS)
    known = quantizer(table)
    assert known.ranges.rows == len(TEXTS)
    assert np.array_equal(stored(table), expected(table, function, TEXTS))
    more = ["an entirely other text", "and one more of them"]
    table.add([{"text": more[0]}])
    add(other, [{"text": more[1]}])

    async def third() -> None:
        connection = await lancedb.connect_async(db.uri)
        await aadd(await connection.open_table("notes"), [{"text": "a third"}])

    asyncio.run(third())
    table.checkout_latest()
    assert quantizer(table) == known
    assert np.array_equal(stored(table)[len(TEXTS) :], expected(table, function, [*more, "a third"]))


def test_of_two_first_writers_one_sets_the_ranges(db: Any, function: Any) -> None:
    """Two writers that learn at once agree on the ranges of the one whose commit was first."""
    table = create_table(db, "notes", notes(function, "int8"))
    path = f"{db.uri}/notes.lance"
    mine, theirs = Ranges.of([[0.0] * WIDTH, [1.0] * WIDTH]), Ranges.of([[0.0] * WIDTH, [2.0] * WIDTH])
    opened = [lance.dataset(path)]  # what this writer saw before the other one was done

    def newest() -> Any:
        return opened.pop() if opened else lance.dataset(path)

    assert agreed(lambda: lance.dataset(path), "notes", {"vector": theirs}) == {"vector": theirs}
    assert agreed(newest, "notes", {"vector": mine}) == {"vector": theirs}
    add(table, ROWS)
    assert quantizer(table).ranges == theirs
    assert np.array_equal(stored(table), expected(table, function, TEXTS))

    concurrent = create_table(db, "both", notes(function, "int8"))

    async def both() -> None:
        connection = await lancedb.connect_async(db.uri)
        handles = [await connection.open_table("both") for _ in range(2)]
        await asyncio.gather(aadd(handles[0], ROWS[:50]), aadd(handles[1], ROWS[50:]))

    asyncio.run(both())
    concurrent.checkout_latest()
    texts = concurrent.to_arrow()["text"].to_pylist()
    assert sorted(texts) == sorted(TEXTS)
    assert np.array_equal(stored(concurrent), expected(concurrent, function, texts))


def test_bits_are_searched_by_the_engine(db: Any, function: Any) -> None:
    """`table.search(text)` on "ubinary" compares signs, in order of their Hamming distance; so does a LanceModel's."""
    fn = function

    class Bits(LanceModel):
        text: str = fn.SourceField()
        vector: Vector(fn.ndims(), "ubinary") = fn.VectorField()

    table = db.create_table("bits", schema=Bits)
    table.add(ROWS)
    assert np.array_equal(stored(table), expected(table, function, TEXTS))
    query = quantizer(table).encode(embedreg.embed_query(function, TEXTS[9])[None])
    distances = np.unpackbits(stored(table) ^ query, axis=1).sum(axis=1)
    for opened in (table, lancedb.connect(db.uri).open_table("bits")):
        found = opened.search(TEXTS[9]).limit(5).to_arrow()
        assert found["text"][0].as_py() == TEXTS[9]
        assert found["_distance"].to_pylist() == np.sort(distances)[:5].tolist()

    async def search() -> Any:
        connection = await lancedb.connect_async(db.uri)
        opened = await connection.open_table("bits")
        return await (await opened.search(TEXTS[9])).limit(5).to_arrow()

    assert asyncio.run(search())["_distance"].to_pylist() == np.sort(distances)[:5].tolist()


@pytest.mark.parametrize("dtype", ["int8", "binary"])
def test_what_the_engine_cannot_search_is_refused(dtype: str, db: Any, function: Any) -> None:
    """LanceDB keeps int8 columns and cannot search them: the adapter says so, and `embedreg search` finds the rows."""
    table = create_table(db, "notes", notes(function, dtype))
    add(table, ROWS)
    with pytest.raises(ValueError, match="no vector column"):  # what lancedb takes for one is float or uint8
        table.search(TEXTS[3]).to_list()
    with pytest.raises(ConfigError, match=f"does not search {dtype} vectors"):
        table.search(TEXTS[3], vector_column_name="vector").to_list()
    with pytest.raises(ValueError, match="element type Int8 and the query vector is Float32"):  # stock, with a vector
        table.search(stored(table)[3], vector_column_name="vector").to_list()
    hits = searching.find(places.find(f"{db.uri}/notes.lance"), TEXTS[3], limit=2, where="text != ''")
    assert hits.rows["text"][0].as_py() == TEXTS[3]


def test_bytes_that_the_engine_would_compare_bit_by_bit_are_refused(db: Any, function: Any, tmp_path: Path) -> None:
    """LanceDB takes the Hamming distance of any uint8 column: "uint8" vectors would be searched wrongly."""
    with pytest.raises(SchemaError, match="would hold uint8 vectors"):
        create_table(db, "notes", notes(function, "uint8"))
    plain = db.create_table("plain", data=ROWS)
    with pytest.raises(SchemaError, match="would hold uint8 vectors"):
        columns.add(plain, function.bind("text", "vector", dtype="uint8"))
    path = tmp_path / "in.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.schema([("text", pa.string())])) as writer:
        writer.write(pa.record_batch({"text": TEXTS}))
    with pytest.raises(SchemaError, match="would hold uint8 vectors"):
        embedreg.embed(path, tmp_path / "db" / "t.lance", function.bind("text", "vector", dtype="uint8"))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(256, dtype=np.uint8)), 64)
    table = db.create_table("bytes", pa.table({"vector": vectors}))  # why: the engine gives a distance of bits
    [first] = table.search(np.zeros(64), vector_column_name="vector").limit(1).to_list()
    assert first["_distance"] == float(np.unpackbits(np.arange(64, dtype=np.uint8)).sum())


def test_a_column_is_added_refreshed_and_migrated(db: Any, function: Any) -> None:
    """`columns` work on quantised columns; another function learns ranges of its own."""
    table = db.create_table("notes", data=[{"id": n, **row} for n, row in enumerate(ROWS)])
    columns.add(table, function.bind("text", "vector", dtype="int8"))
    assert np.array_equal(stored(table), expected(table, function, TEXTS))
    table.update(where="id = 0", values={"text": "changed since"})
    [report] = columns.refresh(table)
    assert report.written == 1
    texts = table.to_arrow()["text"].to_pylist()
    assert "changed since" in texts
    assert np.array_equal(stored(table), expected(table, function, texts))
    [audit] = columns.audit(table, sample=50)
    assert (audit.agree, audit.compared, audit.storage) == (50, 50, "int8")
    other = embedreg.get("hashing").create(dim=WIDTH, seed=5)
    columns.migrate(table, "vector", other).finish()
    texts = table.to_arrow()["text"].to_pylist()
    assert np.array_equal(stored(table), expected(table, other, texts))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
def test_a_quantised_column_is_audited_identified_and_compared(dtype: str, tmp_path: Path, function: Any) -> None:
    """As the vectors that its values stand for; another function counts as it would be stored. Nothing is guessed."""
    path, other = tmp_path / "t.parquet", embedreg.get("hashing").create(dim=WIDTH, seed=1)
    table = embedreg.embed_table(pa.table({"text": TEXTS}), function.bind("text", "vector", dtype=dtype))
    pq.write_table(table, path)
    [audit] = columns.audit(path)
    assert (audit.verdict, audit.agree, audit.storage) == ("sound", 100, dtype)
    assert "stored" in str(audit)
    best, second = columns.identify(path, "vector", candidates=[other, function])
    assert (best.function, best.agree, best.storage) == ("hashing (dim=64)", 30, dtype)
    assert not second.fits
    same = columns.compare(path, "vector", function, k=3)
    assert (same.overlap, same.bytes_per_row, same.bytes_per_row_now) == (1.0, *[8 if "bin" in dtype else 64] * 2)
    assert f"would store them, in {dtype}" in same.notes[0]
    with pytest.raises(VectorError, match="no declaration records which vectors they stand for"):
        columns.identify(table.replace_schema_metadata(None), "vector")


def test_fill_learns_what_nobody_has_learnt(db: Any, function: Any) -> None:
    """Rows that others added without vectors are filled by ranges that are learnt then, and recorded first."""
    table = create_table(db, "notes", notes(function, "int8"))
    lance.write_dataset(table.to_arrow().schema.empty_table(), f"{db.uri}/notes.lance", mode="append")
    rows = pa.table({"text": TEXTS, "vector": pa.nulls(len(TEXTS), table.schema.field("vector").type)})
    lance.write_dataset(rows.cast(table.schema), f"{db.uri}/notes.lance", mode="append")
    columns.fill(table)
    assert quantizer(table).ranges.rows == len(TEXTS)
    assert np.array_equal(stored(table), expected(table, function, table.to_arrow()["text"].to_pylist()))
