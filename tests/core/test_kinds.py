"""The table of kinds of vectors: what a function returns, how it lies in Arrow, and what is stored of it."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import sparse as scipy_sparse

import embedreg
from embedreg.arrow.multi import MULTI, MultiVectors
from embedreg.arrow.sparse import SPARSE, SparseVectors
from embedreg.arrow.vectors import DENSE, Embedded
from embedreg.core.kinds import KINDS, kind_of, kind_of_type, kind_recorded
from embedreg.declaration import drift
from embedreg.embedding.column import fit_float16
from embedreg.errors import BadRowsError, ConfigError, MetadataError, RowError, SchemaError, VectorError
from tests.fakes import Lengths
from tests.kinds import D, Letters, WordVectors, word_vectors

PACKAGE = Path(embedreg.__file__).parent
TEXTS = ["a quick fox", None, "one", "a quick fox", "  ", "the lazy dog sleeps long"]
MULTI_TYPE = pa.list_(pa.list_(pa.float32(), D))
SPARSE_TYPE = pa.struct({"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float32())})


def letters(text: str) -> dict[str, list[Any]]:
    """Return the stored form of a text's letters."""
    indices, values = Letters.create()._counts(text)
    return {"indices": indices, "values": values}


@pytest.fixture(params=["multi", "sparse"])
def function(request: pytest.FixtureRequest) -> embedreg.EmbeddingFunction:
    """One of each kind but the usual one."""
    return WordVectors.create() if request.param == "multi" else Letters.create()


def expected(function: embedreg.EmbeddingFunction, text: str) -> Any:
    """Return the stored form of a text's vector."""
    return word_vectors(text).tolist() if isinstance(function, WordVectors) else letters(text)


def same(one: Any, other: Any) -> bool:
    """Compare two values of a column, whose numbers are float32."""
    if isinstance(one, dict):
        return one["indices"] == other["indices"] and np.allclose(one["values"], other["values"])
    return (
        one is other if one is None or other is None else np.shape(one) == np.shape(other) and np.allclose(one, other)
    )


# -- columns and tables ------------------------------------------------------------------------------------------------


def test_a_column_keeps_rows_of_different_sizes(function: embedreg.EmbeddingFunction) -> None:
    """Nulls and blanks are null, equal inputs are embedded once, nothing is padded."""
    made = embedreg.embed_column(function, TEXTS)
    column = made.to_arrow()
    assert column.type == {"multi": MULTI_TYPE, "sparse": SPARSE_TYPE}[made.kind.name]
    assert (made.distinct, made.valid.tolist()) == (3, [True, False, True, True, False, True])
    rows = column.to_pylist()
    assert [row is None for row in rows] == [False, True, False, False, True, False]
    assert all(same(row, expected(function, text)) for row, text in zip(rows, TEXTS, strict=True) if row is not None)
    column.validate(full=True)
    with pytest.raises(VectorError, match="are not one matrix, since their rows differ in size"):
        _ = made.matrix


def test_more_rows_than_a_window(function: embedreg.EmbeddingFunction) -> None:
    """Chunks are put together in order, also where texts are not valid Unicode."""
    texts = [f"word {'x' * (row % 5)} {row}" for row in range(150)]
    made = embedreg.embed_column(function, [*texts, "broken \ud800"])
    assert made.reasons == {150: "it is not valid Unicode"}
    assert all(
        same(row, expected(function, text)) for row, text in zip(made.to_arrow().to_pylist(), texts, strict=False)
    )


def test_a_bad_row_fails_alone(function: embedreg.EmbeddingFunction) -> None:
    """No vector, a refusal, numbers that are not finite and another width, each among valid rows."""
    made = embedreg.embed_column(function, ["one", "none", "bad", "nan", "wide", "two words"])
    assert sorted(made.reasons) == [1, 2, 3, 4]
    assert (
        made.reasons[1:3]
        if False
        else (made.reasons[1], made.reasons[2])
        == (
            "the function returned no vector",
            "refused by hand",
        )
    )
    assert "not finite" in made.reasons[3]
    assert made.valid.tolist() == [True, False, False, False, False, True]
    assert same(made.to_arrow()[5].as_py(), expected(function, "two words"))


def test_a_failed_call_raises(function: embedreg.EmbeddingFunction) -> None:
    """No row of the right width, or none that is finite where a good input fails too: an outage, not bad rows."""
    with pytest.raises(VectorError):
        embedreg.embed_column(function, ["wide"])
    broken = function.model_copy(update={"scale": float("nan")})
    with pytest.raises(VectorError, match="is finite"):
        embedreg.embed_column(broken, ["one two", "three", "four"])


def test_rows_without_a_direction_follow_the_policy() -> None:
    """A multi-vector without vectors and a sparse one without weights are what zeros are to dense vectors."""
    multi, sparse = WordVectors.create(), Letters.create()
    for function, text, usual in ((multi, "nothing", None), (sparse, "123", {"indices": [], "values": []})):
        assert embedreg.embed_column(function, [text, "a b"]).to_arrow()[0].as_py() == usual
        kept = embedreg.embed_column(function, [text], zero_vectors="keep")
        assert kept.to_arrow().to_pylist() == [[] if usual is None else usual]
        assert kept.zeros is not None
        assert kept.zeros.all()
        assert embedreg.embed_column(function, [text], zero_vectors="null").to_arrow().to_pylist() == [None]
        failed = embedreg.embed_column(function, [text], zero_vectors="error")
        assert failed.reasons == {0: kind_of(function).no_direction}
    with pytest.raises(BadRowsError, match="it has no vectors"):
        embedreg.embed_query(multi, "nothing")
    assert [each.tolist() for each in embedreg.embed_query(sparse, "123")] == [[], []]


def test_queries() -> None:
    """(k, d) float32, and a pair of indices and weights."""
    assert np.allclose(embedreg.embed_query(WordVectors.create(), "a quick fox"), word_vectors("a quick fox"))
    indices, values = embedreg.embed_query(Letters.create(), "abba")
    assert (indices.dtype, indices.tolist(), values.dtype, values.tolist()) == (np.int32, [0, 1], np.float32, [2, 2])


def test_a_table_and_its_file(function: embedreg.EmbeddingFunction, tmp_path: Path) -> None:
    """Filled, written to Parquet, read by its declaration, extended: given vectors stay as they are."""
    table = embedreg.embed_table({"text": TEXTS}, function.bind("text", "v"))
    pq.write_table(table, tmp_path / "t.parquet")
    read = pq.read_table(tmp_path / "t.parquet")
    assert read.schema.field("v").type == table.schema.field("v").type
    reserved = embedreg.functions_in(read).entries["v"].reserved
    assert (reserved["vectors"], reserved["ndims"]) == (kind_of(function).name, function.ndims())
    rows = pa.concat_tables([read, pa.table({"text": ["two more"], "v": pa.nulls(1, read.schema.field("v").type)})])
    report = embedreg.Report()
    again = embedreg.embed_table(rows.replace_schema_metadata(read.schema.metadata), report=report)
    assert (report.given, report.embedded) == (4, 1)
    assert again["v"].to_pylist()[:6] == table["v"].to_pylist()
    assert same(again["v"][6].as_py(), expected(function, "two more"))
    whole = embedreg.embed_table(again.take([0, 2]))
    assert whole["v"].to_pylist() == again.take([0, 2])["v"].to_pylist()


def test_given_vectors_of_other_writers() -> None:
    """Large and plain lists are read; wrong widths are refused, wrong rows embedded as bad ones."""
    wide = pa.array([[[1.0, 0, 0, 0]], None], pa.large_list(pa.list_(pa.float64())))
    table = embedreg.embed_table(pa.table({"t": ["x", "yy"], "v": wide}), WordVectors.create().bind("t", "v"))
    assert table["v"].type == MULTI_TYPE
    assert table["v"].to_pylist()[0] == [[1, 0, 0, 0]]
    rows = {"t": ["x"], "v": pa.array([[[1.0, 2, 3]]])}
    with pytest.raises(VectorError, match="holds vectors of 3 dimensions, its function returns 4"):
        embedreg.embed_table(pa.table(rows), WordVectors.create().bind("t", "v"))
    given = pa.array(
        [
            {"indices": [3, 1], "values": [1.0, 2.0]},
            {"indices": [1, 1], "values": [1.0, 2.0]},
            {"indices": [26], "values": [1.0]},
            {"indices": [1], "values": []},
            {"indices": [2, 4], "values": [float("nan"), 1]},
            {"indices": [2, 4], "values": [0.0, 1]},
            None,
        ]
    )
    reasons = SPARSE.given(given, 26, "v").reasons
    assert _arrow(SPARSE.given(given, 26, "v")).to_pylist()[0] == {"indices": [1, 3], "values": [2, 1]}
    assert sorted(reasons) == [1, 2, 3, 4]
    assert _arrow(SPARSE.given(given, 26, "v")).to_pylist()[5:] == [{"indices": [4], "values": [1]}, None]
    assert _arrow(SPARSE.given(given.slice(5, 1), 26, "v")).to_pylist() == [{"indices": [4], "values": [1]}]
    nulls = pa.array([[[1.0, 0, 0, 0], None], [[1, 2, 3, 4]]], MULTI_TYPE)
    assert MULTI.given(nulls, D, "v").reasons == {0: "its given vectors are not finite"}


def _arrow(given: Any) -> pa.Array:
    return SPARSE.to_arrow(given.rows, given.valid, SPARSE_TYPE)


def test_float16() -> None:
    """Multi-vectors are stored as float16 where the schema says so; too large numbers fail their row."""
    fn = WordVectors.create()

    class Half(embedreg.Schema):
        t: str = fn.SourceField()
        v: embedreg.MultiVector(D, "float16") = fn.VectorField()  # type: ignore[valid-type]

    table = embedreg.embed_table({"t": ["a bb", "c"]}, Half)
    assert table["v"].type == pa.list_(pa.list_(pa.float16(), D))
    assert embedreg.functions_in(table).entries["v"].reserved["dtype"] == "float16"
    again = embedreg.embed_table(table)
    assert again["v"].to_pylist() == table["v"].to_pylist()
    made = Embedded(MultiVectors(np.full((2, D), 1e6, np.float32), np.array([0, 1, 2])), np.ones(2, bool), kind=MULTI)
    fit_float16(fn, made, None)
    assert made.reasons == dict.fromkeys((0, 1), "its vector holds numbers too large for float16")
    assert MULTI.to_arrow(made.vectors, made.valid, pa.list_(pa.list_(pa.float16(), D))).to_pylist() == [None, None]


# -- what a function returns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        [word_vectors("a b c"), word_vectors("dd")],
        (word_vectors("a b c").tolist(), torch.tensor(word_vectors("dd"))),
        np.array([word_vectors("a b c"), word_vectors("dd")], object),
        (each for each in [word_vectors("a b c"), word_vectors("dd").astype(np.float64)]),
        torch.nested.nested_tensor(
            [torch.tensor(word_vectors("a b c")), torch.tensor(word_vectors("dd"))], layout=torch.jagged
        ),
        MultiVectors(np.concatenate([word_vectors("a b c"), word_vectors("dd")]), np.array([0, 3, 4])),
        [np.concatenate([word_vectors("a b c"), np.zeros((2, D))]), word_vectors("dd")],
    ],
)
def test_forms_of_multi_vectors(result: Any) -> None:
    """Arrays of any library in a list, and the runtime's own form; vectors of zeros are padding and left out."""
    rows, valid, reasons = MULTI.read(result, 2, D)
    assert (valid.all(), reasons, rows.offsets.tolist()) == (True, {}, [0, 3, 4])
    assert np.allclose(rows.values, np.concatenate([word_vectors("a b c"), word_vectors("dd")]))


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (np.ones((2, 3, D)), "an array of shape .2, 3, 4. for 2 inputs, in which padding cannot be recognised"),
        (torch.ones((2, 3, D)), "padding cannot be recognised"),
        (np.ones((2, D)), "arrays of shape .4,. for 2 inputs; .k, 4. expected"),
        ([word_vectors("a")], "shape .1, .*for 2 inputs"),
        (MultiVectors(np.ones((3, D), np.float32), np.array([0, 3])), "1 rows of .4,. for 2 inputs"),
        (MultiVectors(np.ones((3, D), np.float32), np.array([0, 2, 1])), "offsets are not ascending"),
        (["text", "text"], "rows that are not arrays of numbers, but a str"),
        ({"a": 1}, "a dict for 2 inputs; a list of 2 arrays of shape .k, 4. was expected"),
    ],
)
def test_refused_multi_vectors(result: Any, why: str) -> None:
    """Padded arrays, another width, too few rows, and what is no numbers."""
    with pytest.raises(VectorError, match=why) as caught:
        MULTI.read(result, 2, D)
    assert caught.value.hint or "offsets" in why


ROWS = np.array([[0, 1.5, 0, -2], [0, 0, 0, 0], [3, 0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    "result",
    [
        ROWS,
        scipy_sparse.csr_matrix(ROWS),
        scipy_sparse.coo_array(ROWS.astype(np.float64)),
        torch.tensor(ROWS),
        torch.tensor(ROWS).to_sparse(),
        pytest.param("csr", marks=pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")),
        torch.tensor(ROWS).bfloat16().to_sparse(),
        [([3, 1], [-2, 1.5]), (np.empty(0, int), []), {0: 3.0}],
        [torch.tensor(row).to_sparse() for row in ROWS],
        SparseVectors(np.array([1, 3, 0]), np.array([1.5, -2, 3], np.float32), np.array([0, 2, 2, 3]), 4),
        [({1: 1.5, 3: -2.0, 2: 0.0}), ([0], [0.0]), ([0], [3])],
    ],
)
def test_forms_of_sparse_vectors(result: Any) -> None:
    """CSR matrices, torch's layouts, pairs, dicts: indices are sorted, zeros left out."""
    result = torch.tensor(ROWS).to_sparse_csr() if isinstance(result, str) else result
    rows, valid, reasons = SPARSE.read(result, 3, 4)
    assert (valid.all(), reasons, rows.offsets.tolist()) == (True, {}, [0, 2, 2, 3])
    assert (rows.indices.tolist(), rows.values.tolist()) == ([1, 3, 0], [1.5, -2, 3])
    assert (rows.indices.dtype, rows.values.dtype) == (np.int32, np.float32)


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (ROWS[:2], r"sparse vectors of shape \(2, 4\) for 3 inputs; \(3, 4\) was expected"),
        (scipy_sparse.csr_matrix((3, 5)), r"shape \(3, 5\)"),
        ([[0.1, 0.2, 0.3]] * 3, "not pairs .indices, weights., but a list"),
        ([([0.5], [1])] * 3, "pairs that are not indices and weights of one length"),
        ([([1, 2], [1])] * 3, "pairs that are not indices and weights of one length"),
        ([([4], [1])] * 3, "the index 4, which is not in 0..3"),
        ([([-1], [1])] * 3, "the index -1"),
        ([([1, 1], [1, 2])] * 3, "an index twice"),
        ([([1], [np.inf])] * 3, "none of the 3 vectors"),
        ("text", "a str for 3 inputs; a CSR matrix of shape .3, 4. was expected"),
    ],
)
def test_refused_sparse_vectors(result: Any, why: str) -> None:
    """Another width, indices that are none, and lists of floats."""
    with pytest.raises(VectorError, match=why):
        SPARSE.read(result, 3, 4)


def test_one_wrong_sparse_row_fails_alone() -> None:
    """Its reason names what is wrong with it."""
    rows, valid, reasons = SPARSE.read([([1], [1]), ([9], [1]), ([1, 1], [1, 2]), RowError("why")], 4, 4)
    assert (valid.tolist(), rows.offsets.tolist()) == ([True, False, False, False], [0, 1, 1, 1, 1])
    assert reasons[1] == "the function returned the index 9, which is not in 0..3"
    assert reasons[3] == "why"


# -- declarations ------------------------------------------------------------------------------------------------------


def test_schemas(function: embedreg.EmbeddingFunction) -> None:
    """The field types give the Arrow types; the wrong kind and width are refused with the right one."""
    kind = kind_of(function)
    fields = {"multi": embedreg.MultiVector, "sparse": embedreg.SparseVector}

    def schema(vector: Any) -> type[embedreg.Schema]:
        namespace = {"__annotations__": {"t": str, "v": vector}, "__module__": __name__}
        return type("S", (embedreg.Schema,), {**namespace, "t": function.SourceField(), "v": function.VectorField()})

    made = schema(fields[kind.name](function.ndims))
    assert made.to_arrow_schema().field("v").type == kind.arrow_type(function.ndims())
    value = expected(function, "a fox")
    assert made(t="x", v=value).model_dump()["v"] == value
    assert made(t="x", v=embedreg.embed_query(function, "a fox")).v is not None
    assert "properties" in made.model_json_schema()
    filled = embedreg.embed_table([{"t": "a fox"}], made)
    assert same(filled["v"][0].as_py(), value)
    with pytest.raises(SchemaError, match=f"declared as vectors, its function returns {kind.plural}"):
        schema(embedreg.Vector(3))
    with pytest.raises(SchemaError, match=f"its function returns {function.ndims()}"):
        schema(fields[kind.name](3))
    with pytest.raises(SchemaError, match="is a vector field of type"):
        schema(list[float])
    with pytest.raises(SchemaError, match="positive number"):
        fields[kind.name](0)


def test_plain_fields_of_each_kind() -> None:
    """Columns without a function have the types too."""

    class Plain(embedreg.Schema):
        m: embedreg.MultiVector(3)  # type: ignore[valid-type]
        s: embedreg.SparseVector(9, nullable=False)  # type: ignore[valid-type]

    schema = Plain.to_arrow_schema()
    assert schema.types == [pa.list_(pa.list_(pa.float32(), 3)), SPARSE_TYPE]
    assert [field.nullable for field in schema] == [True, False]
    with pytest.raises(ValueError, match="less than 9"):
        Plain(m=None, s={"indices": [9], "values": [1]})
    with pytest.raises(SchemaError, match="cannot hold 'float64'"):
        embedreg.MultiVector(3, "float64")


def test_the_probe_and_drift(function: embedreg.EmbeddingFunction) -> None:
    """It is stored at the first write, compact, and compared in `check_drift`; another kind is drift."""
    table = embedreg.embed_table({"t": ["a fox"]}, function.bind("t", "v"))
    [found] = embedreg.check_drift(table)
    assert (found.verdict, found.cosine) == ("same", pytest.approx(1))
    reserved = embedreg.functions_in(table).entries["v"].reserved
    other = Letters.create() if isinstance(function, WordVectors) else WordVectors.create()
    assert "the function returns" in drift.compare(other, reserved).changed[-1]
    assert "the function returns vectors, stored are" in drift.compare(Lengths.create(), reserved).changed[-1]
    assert drift.compare(function, {**reserved, "vectors": "later"}).verdict == "drift"
    longer = function.model_copy(update={"scale": 2.0})
    verdict = drift.compare(longer, reserved)
    assert verdict.verdict == ("note" if isinstance(function, WordVectors) else "drift"), "by its metric"
    assert drift.compare(function, {**reserved, "probe": "AAAA"}).verdict == "unknown"


def test_probes_are_bounded() -> None:
    """Of many vectors 32 are kept, evenly spaced; of many weights the 1024 largest; compared alike."""
    many = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    data = MULTI.probe_bytes(many)
    assert len(data) == 32 * 8 * 4
    assert MULTI.agreement(many, MULTI.probe_read(data, 8)).cosine == pytest.approx(1)
    assert MULTI.agreement(many[:31], MULTI.probe_read(data, 8)).cosine is None
    assert MULTI.probe_read(data[:-4], 8) is None
    assert MULTI.probe_read(data + data, 8) is None
    dense = np.random.default_rng(0).normal(size=(1, 5000)).astype(np.float32)
    vector = SPARSE.one(SPARSE.read(dense, 1, 5000).rows, 0)
    data = SPARSE.probe_bytes(vector)
    assert len(data) == 8 * 1024
    assert SPARSE.agreement(vector, SPARSE.probe_read(data, 5000)).cosine == pytest.approx(1)
    assert SPARSE.probe_read(data, 100) is None, "indices beyond the width"
    assert SPARSE.probe_read(data[4:], 5000) is None
    assert SPARSE.probe_read(b"\0" * 8, 5000) is None, "a weight of zero"


def test_a_function_may_choose_its_kind() -> None:
    """A class names several kinds, and an instance's field `vectors` one of them."""

    class Either(Lengths):
        traits = embedreg.Traits(vectors="dense + multi")
        vectors: str = "dense"

    assert [kind_of(Either.create(vectors=name)) for name in ("dense", "multi", "other")] == [DENSE, MULTI, DENSE]
    odd = type("Odd", (Lengths,), {"traits": embedreg.Traits(vectors="cubes")})
    with pytest.raises(
        ConfigError, match="Odd returns 'cubes', an unknown kind of vectors; known: dense, multi, sparse"
    ):
        odd.create().ndims()
    with pytest.raises(MetadataError, match="of 'later', an unknown kind of vectors"):
        kind_recorded({"vectors": "later"})


def test_widths_are_bounded_by_the_kind() -> None:
    """A sparse vector may have the width of any vocabulary, since no memory is allocated for it."""
    assert embedreg.get("hashing-sparse").create(dim=2**31 - 1).ndims() == 2**31 - 1
    made = embedreg.embed_column(embedreg.get("hashing-sparse").create(dim=2**31 - 1), ["a b c"])
    assert len(made.to_arrow()[0].as_py()["indices"]) == 3


def test_values_are_pickled(function: embedreg.EmbeddingFunction) -> None:
    """A column's vectors and their kind, as Ray passes them."""
    made = embedreg.embed_column(function, TEXTS)
    again = pickle.loads(pickle.dumps(made))
    assert again.kind is made.kind
    assert again.to_arrow() == made.to_arrow()
    state = {"matrix": np.ones((1, 2), np.float32), "valid": np.ones(1, bool), "reasons": {}, "distinct": 1}
    old = Embedded.__new__(Embedded)
    old.__setstate__({**state, "cached": 0, "zeros": None})
    assert (old.kind, old.matrix.shape) == (DENSE, (1, 2))


def test_the_vector_cache(function: embedreg.EmbeddingFunction, tmp_path: Path) -> None:
    """Rows of any size are read back as they were, beside computed ones."""
    with embedreg.vector_cache(tmp_path / "c.db"):
        first = embedreg.embed_column(function, ["a fox", "one two three", "none"])
    with embedreg.vector_cache(tmp_path / "c.db") as cache:
        again = embedreg.embed_column(function, ["new", "one two three", "a fox", "none"])
    assert (cache.hits, cache.misses, again.cached) == (2, 2, 2)
    assert again.to_arrow().to_pylist()[1:3] == first.to_arrow().to_pylist()[1::-1]
    assert same(again.to_arrow()[0].as_py(), expected(function, "new"))


def test_hashing_sparse_weights() -> None:
    """BM25's saturation and length normalization, by hand; a query counts its words."""
    plain = embedreg.get("hashing-sparse").create(k1=2.0)
    weights = sorted(embedreg.embed_column(plain, ["one two two three three three"]).vectors.values.tolist())
    assert weights == pytest.approx([1, 2 * 3 / (2 + 2), 3 * 3 / (3 + 2)])
    assert sorted(embedreg.embed_query(plain, "one two two").values.tolist()) == [1, 2]
    known = embedreg.get("hashing-sparse").create(k1=2.0, b=0.5, average_words=3)
    [weight] = embedreg.embed_column(known, ["one one one one one one"]).vectors.values.tolist()
    assert weight == pytest.approx(6 * 3 / (6 + 2 * (0.5 + 0.5 * 6 / 3)))
    long = "word " * 20_000
    assert embedreg.embed_column(plain, [long]).vectors.values.tolist() == pytest.approx([20_000 * 3 / 20_002])
    assert embedreg.embed_query(plain, "two").indices.tolist() == embedreg.embed_query(plain, "TWO").indices.tolist()


# -- the table ---------------------------------------------------------------------------------------------------------


def test_arrow_types_name_their_kind() -> None:
    """Each kind recognises its own types, of any writer, and no other's."""
    for kind, types in {
        MULTI: [MULTI_TYPE, pa.large_list(pa.list_(pa.float16())), pa.list_(pa.large_list(pa.float64()))],
        SPARSE: [SPARSE_TYPE, pa.struct({"indices": pa.large_list(pa.uint32()), "values": pa.list_(pa.float16())})],
        DENSE: [pa.list_(pa.float32(), 3), pa.list_(pa.float64())],
    }.items():
        assert [kind_of_type(each) for each in types] == [kind] * len(types)
    others = (pa.string(), pa.struct({"a": pa.int8()}), pa.list_(pa.string()), pa.list_(pa.list_(pa.string())))
    assert [kind_of_type(each) for each in others] == [None] * len(others)


NAMES = {"dense", "multi", "sparse"}


def comparisons(source: str) -> list[int]:
    """Return the lines that compare the name of a kind, or hold a table by such names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.match_case):
            parts = [node.pattern]
        elif isinstance(node, ast.Dict):
            parts = [key for key in node.keys if key is not None]
        words = {
            each.value
            for part in parts
            for each in ast.walk(part)
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        }
        if words & NAMES:
            found.append(getattr(node, "lineno", 0))
    return found


def test_no_other_module_compares_kinds() -> None:
    """A kind is a value: who needs to know something of it asks the table."""
    files = {str(file.relative_to(PACKAGE)): file for file in PACKAGE.rglob("*.py")}
    found = {name: comparisons(file.read_text()) for name, file in files.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert comparisons('x = kind.name == "multi"')
    assert comparisons('T = {"sparse": 1}')
    assert [*KINDS] == ["dense", "multi", "sparse"]
