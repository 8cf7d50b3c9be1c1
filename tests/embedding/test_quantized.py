"""Quantised columns: values as `quantize_embeddings` of sentence-transformers makes them, by ranges learnt once."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedreg
from embedreg import columns
from embedreg.arrow.quantized import QUANTIZED, Quantizer, Ranges
from embedreg.cli import main
from embedreg.cli import search as searching
from embedreg.datasets import places
from embedreg.declaration import codec
from embedreg.errors import ConfigError, DriftError, InputError, MetadataError, SchemaError, VectorError

WIDTH = 32
TEXTS = [f"text number {i} about {w} and {i % 7}" for i, w in enumerate(["sine", "files", "json", "cosine"] * 40)]
FEW = TEXTS[:40]


@pytest.fixture
def function() -> Any:
    return embedreg.get("hashing").create(dim=WIDTH)


def floats(function: Any, texts: Any = TEXTS) -> np.ndarray:
    """Return the function's own vectors: (n, d) float32."""
    return embedreg.embed_column(function, texts).matrix


def numbers(table: pa.Table, name: str = "vector") -> np.ndarray:
    """Return the stored values of a column: (n, width)."""
    column = table[name].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def ranges_in(data: Any) -> np.ndarray:
    """Return the ranges that a declaration records: (2, d)."""
    record = embedreg.functions_in(data).entries["vector"].reserved["quantization"]
    return np.frombuffer(base64.b64decode(record["ranges"]), "<f4").reshape(2, -1)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_values_are_bit_for_bit_those_of_the_library(dtype: str) -> None:
    """Stored values equal the library's for the same ranges, also for constants, zeros and numbers outside."""
    library = pytest.importorskip("sentence_transformers.util.quantization")
    rng = np.random.default_rng(0)
    some = rng.normal(size=(200, 64)).astype(np.float32)
    some[:, 3] = 0.25  # a constant dimension
    more = np.concatenate([3 * rng.normal(size=(50, 64)).astype(np.float32), np.zeros((1, 64), np.float32), some[:9]])
    ranges = Ranges.learnt(some)
    quantizer = Quantizer(dtype, 64, ranges if dtype.endswith("int8") else None)
    for matrix in (some, more):
        made = quantizer.encode(matrix)
        expected = library.quantize_embeddings(matrix, dtype, ranges=ranges.array())
        assert made.dtype == expected.dtype
        assert np.array_equal(made, expected)
        assert np.array_equal(quantizer.encode(quantizer.decode(made)), made)  # a stored value stands for itself
        assert np.array_equal(quantizer.settled(matrix, made), quantizer.decode(made))
    if dtype.endswith("int8"):
        assert quantizer.outside(some) == 0 < quantizer.outside(more)
        low, high = ranges.array()
        assert (np.abs(quantizer.decode(quantizer.encode(some)) - some) <= (high - low) / 255 * 0.501 + 1e-6).all()


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_a_table_goes_out_and_back(dtype: str, function: Any) -> None:
    """A declaration is read back with its dtype and ranges, and a later writer uses them."""
    report = embedreg.Report()
    made = embedreg.embed_table({"text": TEXTS}, function.bind("text", "vector", dtype=dtype), report=report)
    value = {"int8": pa.int8(), "binary": pa.int8()}.get(dtype, pa.uint8())
    assert made.schema.field("vector").type == pa.list_(value, WIDTH // 8 if "binary" in dtype else WIDTH)
    config = embedreg.functions_in(made)["vector"]
    assert config.value_type == dtype
    assert (report.embedded, report.clipped) == (len(set(TEXTS)), 0)
    quantizer = codec.quantizer(config)
    assert quantizer is not None
    assert np.array_equal(numbers(made), quantizer.encode(floats(function)))
    [shown] = embedreg.inspect(made)
    assert (shown["dtype"], shown["ndims"]) == (dtype, WIDTH)
    assert shown["calibration_rows"] == (None if "binary" in dtype else len(TEXTS))
    assert shown["function"] == "embedreg:hashing"  # stock LanceDB would write floats under the plain name
    [drift] = embedreg.check_drift(made)
    assert drift.verdict == "same"
    # a later writer: the values that are there stay, the missing ones are made by the stored ranges
    more = pa.concat_tables(
        [made.select(["text", "vector"]), pa.table({"text": ["something new"]})], promote_options="default"
    )
    again = embedreg.embed_table(more.replace_schema_metadata(made.schema.metadata), function.bind("text", "vector"))
    assert np.array_equal(numbers(again)[:-1], numbers(made))
    assert np.array_equal(numbers(again)[-1:], quantizer.encode(floats(function, ["something new"])))
    assert embedreg.functions_in(again).entries["vector"].raw == embedreg.functions_in(made).entries["vector"].raw


def test_a_schema_class_declares_them(function: Any) -> None:
    """`Vector(n, dtype)` declares what `bind(dtype=)` does."""

    class Small(embedreg.Schema):
        text: str = function.SourceField()
        byte: embedreg.Vector(function.ndims(), "int8") = function.VectorField()  # type: ignore[valid-type]
        bit: embedreg.Vector(function.ndims(), "ubinary") = function.VectorField()  # type: ignore[valid-type]

    made = embedreg.embed_table([{"text": text} for text in TEXTS], Small)
    assert made.schema.field("bit").type == pa.list_(pa.uint8(), WIDTH // 8)
    by_hand = embedreg.embed_table({"text": TEXTS}, function.bind("text", "byte", dtype="int8"))
    assert np.array_equal(numbers(made, "byte"), numbers(by_hand, "byte"))
    assert Small(text="a", byte=[1] * WIDTH, bit=[255] * 4).bit == [255] * 4


def test_ranges_can_be_given(function: Any) -> None:
    """Given ranges are used and stored, and what they clip is counted."""
    ranges = embedreg.calibrate(function, FEW)
    config = function.bind("text", "vector", dtype="uint8", ranges=ranges)
    report = embedreg.Report()
    made = embedreg.embed_table({"text": TEXTS}, config, report=report)
    assert np.array_equal(ranges_in(made), ranges)
    assert embedreg.inspect(made)[0]["calibration_rows"] == 0
    matrix = floats(function)
    assert report.clipped == int(((matrix < ranges[0]) | (matrix > ranges[1])).sum()) > 0
    one = embedreg.embed_table({"text": ["one row"]}, config)
    assert np.array_equal(
        numbers(one), Quantizer("uint8", WIDTH, Ranges.of(ranges)).encode(floats(function, ["one row"]))
    )


def test_given_floats_are_quantised_as_they_are(function: Any) -> None:
    """A column of floats is quantised without the model."""
    plain = embedreg.embed_table({"text": TEXTS}, function.bind("text", "vector"))
    report = embedreg.Report()
    made = embedreg.embed_table(plain, function.bind("text", "vector", dtype="int8"), report=report)
    assert (report.given, report.embedded) == (len(TEXTS), 0)
    assert np.array_equal(
        numbers(made), numbers(embedreg.embed_table({"text": TEXTS}, function.bind("text", "vector", dtype="int8")))
    )


def test_what_does_not_fit_is_refused(function: Any) -> None:
    """Another dtype, other ranges, one row, a width that bits do not divide: refused by name."""
    made = embedreg.embed_table({"text": FEW}, function.bind("text", "vector", dtype="int8"))
    with pytest.raises(SchemaError, match="holds int8 values, and is declared as binary"):
        embedreg.embed_table(made, function.bind("text", "vector", dtype="binary"))
    with pytest.raises(SchemaError, match="other ranges"):
        embedreg.embed_table(made, function.bind("text", "vector", dtype="int8", ranges=[[0] * WIDTH, [1] * WIDTH]))
    with pytest.raises(VectorError, match="cannot be learnt from 1 vector"):
        embedreg.embed_table({"text": ["one"]}, function.bind("text", "vector", dtype="int8"))
    with pytest.raises(VectorError, match="cannot be learnt from 3 equal vectors"):
        embedreg.embed_table({"text": ["one"] * 3}, function.bind("text", "vector", dtype="int8"))
    with pytest.raises(ConfigError, match="a vector column cannot hold 'int4'"):
        function.bind("text", "vector", dtype="int4")
    with pytest.raises(ConfigError, match="has no ranges"):
        function.bind("text", "vector", dtype="binary", ranges=[[0] * WIDTH, [1] * WIDTH])
    with pytest.raises(VectorError, match="the lowest of each dimension first"):
        function.bind("text", "vector", dtype="int8", ranges=[[1] * WIDTH, [0] * WIDTH])
    odd = embedreg.get("hashing").create(dim=12)
    with pytest.raises(SchemaError, match="12 is not divisible by 8"):
        embedreg.embed_table({"text": FEW}, odd.bind("text", "vector", dtype="ubinary"))
    bare = made.replace_schema_metadata(None)
    with pytest.raises((SchemaError, VectorError), match="int8"):
        embedreg.embed_table(bare, function.bind("text", "vector", dtype="int8"))


@pytest.mark.parametrize(
    "record",
    [
        {"quantization": {"ranges": "AAAA", "rows": 1}},
        {"quantization": {"ranges": "not base64!", "rows": 1}},
        {
            "quantization": {
                "ranges": base64.b64encode(np.full((2, WIDTH), np.nan, "<f4").tobytes()).decode(),
                "rows": 1,
            }
        },
        {"quantization": {"ranges": base64.b64encode(np.zeros((2, WIDTH), "<f4").tobytes()).decode(), "rows": -1}},
        {"quantization": [1]},
        {"ndims": 10**9},
        {"ndims": 12, "dtype": "binary", "quantization": None},
    ],
)
def test_an_invalid_record_is_a_problem_of_its_column(record: dict[str, Any], function: Any) -> None:
    """A forged record is a problem of its column, and nothing is computed with it."""
    made = embedreg.embed_table({"text": FEW}, function.bind("text", "vector", dtype="int8"))
    [item] = json.loads(made.schema.metadata[codec.KEY.encode()])
    item["model"]["embedreg"] |= record
    found = embedreg.functions_in({codec.KEY: json.dumps([item])})
    assert isinstance(found.problems["vector"], MetadataError | SchemaError)
    assert embedreg.inspect({codec.KEY: json.dumps([item])})[0]["calibration_rows"] is None


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_a_stopped_job_goes_on_with_its_ranges(tmp_path: Path, function: Any) -> None:
    """Pieces made before and after an interruption have the same ranges."""
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet", row_group_size=40)
    config = function.bind("text", "vector", dtype="int8")

    def stop_after_one(job: Any) -> Any:
        yield job.work.run(job.pending()[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedreg.embed(tmp_path / "in.parquet", tmp_path / "out", config, piece_rows=40, engine=stop_after_one)
    begun = ranges_in(pq.read_table(next((tmp_path / "out").glob("*.parquet"))))
    with pytest.raises(DriftError, match="begun with int8 values"):
        embedreg.embed(tmp_path / "in.parquet", tmp_path / "out", function.bind("text", "vector", dtype="binary"))
    report = embedreg.embed(tmp_path / "in.parquet", tmp_path / "out", function.bind("text", "vector"), piece_rows=40)
    assert (report.reused, report.pieces) == (1, 4)
    for path in (tmp_path / "out").glob("*.parquet"):
        assert np.array_equal(ranges_in(pq.read_table(path)), begun)
    made = pq.read_table(tmp_path / "out")
    assert np.array_equal(numbers(made), Quantizer("int8", WIDTH, Ranges.of(begun)).encode(floats(function)))


def test_a_job_counts_what_it_clips(tmp_path: Path, function: Any) -> None:
    """A job's report counts clipped numbers as `embed_table` does."""
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    config = function.bind("text", "vector", dtype="int8", ranges=embedreg.calibrate(function, FEW))
    report = embedreg.embed(tmp_path / "in.parquet", tmp_path / "out.parquet", config)
    made = embedreg.Report()
    embedreg.embed_table({"text": TEXTS}, config, report=made)
    assert report.clipped == made.clipped > 0


def test_templates_are_quantised_too(tmp_path: Path, function: Any) -> None:
    """Ranges are learnt of the texts that a template makes, in a table, a job and a column of a file."""
    data = pa.table({"title": [f"title {n}" for n in range(len(TEXTS))], "body": TEXTS})
    config = function.bind(template="{title}: {body}", vector="vector", dtype="int8")
    texts = [f"title {n}: {text}" for n, text in enumerate(TEXTS)]
    wanted = Quantizer("int8", WIDTH, Ranges.learnt(floats(function, texts))).encode(floats(function, texts))
    assert np.array_equal(numbers(embedreg.embed_table(data, config)), wanted)
    pq.write_table(data, tmp_path / "in.parquet")
    embedreg.embed(tmp_path / "in.parquet", tmp_path / "out.parquet", config)
    assert np.array_equal(numbers(pq.read_table(tmp_path / "out.parquet")), wanted)
    columns.add(tmp_path / "in.parquet", config)
    assert np.array_equal(numbers(pq.read_table(tmp_path / "in.parquet")), wanted)


# -- columns of files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "ubinary"])
def test_a_column_of_a_file_lives_with_its_ranges(dtype: str, tmp_path: Path, function: Any) -> None:
    """add, refresh, status, audit and migrate keep to the ranges; another function gets its own."""
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path)
    columns.add(path, function.bind("text", "vector", dtype=dtype))
    first = pq.read_table(path)
    quantizer = codec.quantizer(embedreg.functions_in(path)["vector"])
    assert quantizer is not None
    assert np.array_equal(numbers(first), quantizer.encode(floats(function)))
    changed = ["another text altogether", *TEXTS[1:]]
    pq.write_table(first.set_column(0, "text", pa.array(changed)), path)
    [report] = columns.refresh(path)
    assert report.embedded == 1
    made = pq.read_table(path)
    assert np.array_equal(numbers(made), quantizer.encode(floats(function, changed)))
    [status] = columns.status(path)
    assert (status.fresh, status.rows) == (len(TEXTS), len(TEXTS))
    [found] = columns.audit(path, sample=60)
    assert (found.agree, found.compared, found.storage) == (60, 60, dtype)
    other = embedreg.get("hashing").create(dim=WIDTH, seed=3)
    [wrong] = columns.audit(
        embedreg.embed_table(
            pa.table({"text": TEXTS, "vector": first["vector"]}).replace_schema_metadata(first.schema.metadata)
        ),
        sample=60,
    )
    assert wrong.agree == 60
    moved = columns.migrate(path, "vector", other)
    moved.finish()
    again = codec.quantizer(embedreg.functions_in(path)["vector"])
    assert again is not None
    assert again.dtype == dtype
    assert np.array_equal(numbers(pq.read_table(path)), again.encode(floats(other, changed)))


def test_an_audit_sees_another_function(function: Any) -> None:
    """Values of other rows do not agree."""
    made = embedreg.embed_table({"text": TEXTS}, function.bind("text", "vector", dtype="int8"))
    values = numbers(made)[::-1].reshape(-1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), WIDTH)
    [found] = columns.audit(made.set_column(1, made.schema.field("vector"), column), sample=60)
    assert found.agree == 0


# -- searching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_a_search_finds_the_row_itself(dtype: str, tmp_path: Path, function: Any) -> None:
    """Search compares what stored values stand for; signs first, where those are stored."""
    made = embedreg.embed_table({"text": TEXTS}, function.bind("text", "vector", dtype=dtype))
    pq.write_table(made, tmp_path / "t.parquet")
    place = places.find(str(tmp_path / "t.parquet"))
    hits = searching.find(place, TEXTS[17], limit=3)
    assert hits.rows["text"][0].as_py() == TEXTS[17]
    assert hits.rows.column_names == ["text"]
    quantizer = codec.quantizer(embedreg.functions_in(made)["vector"])
    assert quantizer is not None
    stored, query = quantizer.decode(numbers(made)), embedreg.embed_query(function, TEXTS[17])
    cosine = 1 - stored @ query / np.linalg.norm(stored, axis=1) / np.linalg.norm(query)
    if dtype.endswith("int8"):
        assert np.allclose(hits.distances, np.sort(cosine)[:3], atol=1e-5)
    else:
        signs = searching.find(place, TEXTS[17], limit=3, rescore=0)
        assert signs.metric == "hamming"
        different = np.unpackbits(numbers(made).view(np.uint8) ^ quantizer.encode(query[None]).view(np.uint8), axis=1)
        assert signs.distances.tolist() == np.sort(different.sum(axis=1))[:3].tolist()
        everything = searching.find(place, TEXTS[17], limit=3, rescore=len(TEXTS))
        assert np.allclose(everything.distances, np.sort(cosine)[:3], atol=1e-5)


# -- engines that do not search them -----------------------------------------------------------------------------------


def test_duckdb_keeps_them_and_databend_refuses_them(
    tmp_path: Path, function: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """DuckDB's SQL carries the values and their declaration, and has no search; Databend's is refused by name."""
    duckdb = pytest.importorskip("duckdb")
    from embedreg.engines.duckdb import sql

    made = embedreg.embed_table({"text": FEW}, function.bind("text", "vector", dtype="ubinary"))
    path = tmp_path / "t.parquet"
    pq.write_table(made, path)
    entries = codec.entries(made.schema.metadata)
    con = duckdb.connect()
    con.execute(sql.create_table_statement("t", str(path), entries))
    assert con.execute("SELECT typeof(vector) FROM t LIMIT 1").fetchone() == (f"UTINYINT[{WIDTH // 8}]",)
    con.execute(sql.copy_statement("t", str(tmp_path / "copy.parquet"), entries))
    copied = pq.read_table(tmp_path / "copy.parquet")
    assert copied["vector"].to_pylist() == made["vector"].to_pylist()
    assert embedreg.functions_in(tmp_path / "copy.parquet")["vector"].value_type == "ubinary"
    with pytest.raises(ConfigError, match=r"holds ubinary vectors: DuckDB's array functions compute with FLOAT"):
        sql.search_statement("t", entries[0])
    with duckdb.connect(str(tmp_path / "d.duckdb")) as data:
        data.execute("CREATE TABLE t AS SELECT 'a' AS text")
    with pytest.raises(ConfigError, match="holds int8 vectors"):
        columns.add(tmp_path / "d.duckdb" / "t", function.bind("text", "vector", dtype="int8"))
    assert main(["ddl", "databend", "--like", str(path)]) != 0
    assert "Databend's vectors" in capsys.readouterr().err


@pytest.mark.parametrize("vector", [[1.0] + [0.0] * (WIDTH - 1), np.full(WIDTH, 0.5, np.float32), (0.5,) * WIDTH])
def test_floats_are_never_taken_for_stored_values(function: Any, vector: Any) -> None:
    """A declared column of rows: 1.0 stored as 1 would be another vector than the Arrow column gives."""
    ranges = [[-1.0] * WIDTH, [1.0] * WIDTH]

    class Small(embedreg.Schema):
        text: str = function.SourceField()
        vector: embedreg.Vector(WIDTH, "int8", ranges=ranges) | None = function.VectorField()

    with pytest.raises(InputError, match="holds int8 values, and the vector of row 1 is of floats"):
        embedreg.embed_table([{"text": "a"}, {"text": "a", "vector": vector}], Small)
    given = embedreg.embed_table([{"text": "a", "vector": [7] * WIDTH}], Small)
    assert given["vector"].to_pylist() == [[7] * WIDTH]
