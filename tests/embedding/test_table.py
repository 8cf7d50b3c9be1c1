"""Filling vector columns: what is given stays, what is missing is computed once, what failed is reported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import embedreg
from embedreg import Report, Schema, TextEmbeddingFunction, Vector, embed_batches, embed_column, embed_table
from embedreg.core import held
from embedreg.errors import (
    BadRowsError,
    ConfigError,
    DriftError,
    InputError,
    MissingColumnError,
    SchemaError,
    VectorError,
)
from tests.fakes import Lengths, Picky, lengths

FN = Lengths.create()
BIND = FN.bind("text", "vector")
TEXTS = ["one", "two three", None, "  ", "one", "", "four"]
VECTORS = [lengths(text) if text and text.strip() else None for text in TEXTS]


class Articles(Schema):
    """A text, its vector and a number."""

    text: str | None = FN.SourceField()
    vector: Vector(3) = FN.VectorField()  # type: ignore[valid-type]
    n: int | None = None


def rows_of(texts: list[str | None] = TEXTS) -> list[dict[str, Any]]:
    """Return rows with a number each."""
    return [{"text": text, "n": number} for number, text in enumerate(texts)]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget what reached the function, and the probe that it learnt."""
    held.forget(FN)
    Lengths.seen.clear()
    yield
    Lengths.seen.clear()


FORMS = {
    "rows": lambda: rows_of(),
    "iterator of rows": lambda: iter(rows_of()),
    "models": lambda: [Articles(**row) for row in rows_of()],
    "dict of columns": lambda: {"text": TEXTS, "n": list(range(7))},
    "Arrow table": lambda: pa.table({"text": TEXTS, "n": range(7)}),
    "Arrow table of three chunks": lambda: pa.concat_tables(
        [pa.table({"text": TEXTS, "n": range(7)}).slice(start, size) for start, size in ((0, 2), (2, 3), (5, 2))]
    ),
    "Arrow batch": lambda: pa.RecordBatch.from_pydict({"text": TEXTS, "n": list(range(7))}),
    "Arrow reader": lambda: pa.table({"text": TEXTS, "n": range(7)}).to_reader(max_chunksize=2),
    "iterator of tables": lambda: iter(
        [pa.table({"text": TEXTS[:3], "n": range(3)}), pa.table({"text": TEXTS[3:], "n": range(3, 7)})]
    ),
    "large strings": lambda: pa.table({"text": pa.array(TEXTS, pa.large_string()), "n": range(7)}),
    "string views": lambda: pa.table({"text": pa.array(TEXTS, pa.string_view()), "n": range(7)}),
    "dictionary": lambda: pa.table({"text": pa.array(TEXTS).dictionary_encode(), "n": range(7)}),
    "pandas": lambda: pd.DataFrame({"text": TEXTS, "n": range(7)}),
    "pandas objects": lambda: pd.DataFrame({"text": pd.Series(TEXTS, dtype=object), "n": range(7)}),
    "polars": lambda: pl.DataFrame({"text": TEXTS, "n": range(7)}),
    "polars lazy": lambda: pl.LazyFrame({"text": TEXTS, "n": range(7)}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("declared", [True, False], ids=["Schema", "binding"])
def test_every_form_of_data_gives_the_same_vectors(form: str, declared: bool) -> None:
    """Rows, models, columns, Arrow, pandas and polars are embedded alike; null and blank rows have null vectors."""
    table = embed_table(FORMS[form](), Articles if declared else BIND)
    assert isinstance(table, pa.Table)
    assert table["vector"].to_pylist() == VECTORS
    assert table["vector"].type == pa.list_(pa.float32(), 3)
    assert table["n"].to_pylist() == list(range(7))
    assert embedreg.functions_in(table)["vector"].function == FN


def test_each_distinct_text_reaches_the_model_once_and_blanks_never() -> None:
    """Nulls, blanks and repetitions do not reach the function; the probe of a new column does, once."""
    report = Report()
    embed_table(rows_of(), Articles, report=report)
    assert sorted(Lengths.seen[1:]) == ["four", "one", "two three"]
    assert (report.rows, report.embedded, report.nulls, report.given, report.bad) == (7, 3, 3, 0, [])
    Lengths.seen.clear()
    embed_table(rows_of(), Articles)
    assert sorted(Lengths.seen) == ["four", "one", "two three"]


def test_a_table_embeds_a_text_once_however_long_it_is() -> None:
    """Equal texts far apart, in other chunks and beyond any batch, reach the function once."""
    chunk = pa.table({"text": ["one", "two", "three"] * 5000})
    report = Report()
    table = embed_table(pa.concat_tables([chunk, chunk]), BIND, report=report)
    assert (report.rows, report.embedded) == (30_000, 3)
    assert table["vector"].to_pylist()[-1] == lengths("three")


@pytest.mark.parametrize("blank", ["", " ", "\t\n", "\u3000\u2003", "\xa0"])
def test_blank_means_unicode_white_space(blank: str) -> None:
    """A text of nothing but white space of any script is blank."""
    assert embed_table([{"text": blank}, {"text": "a"}], BIND)["vector"].to_pylist() == [None, lengths("a")]


def test_given_vectors_stay_and_missing_ones_are_filled() -> None:
    """Absent, all-null and partly-null vector columns are filled; a given vector is never computed again."""
    rows = [
        {"text": "one", "vector": [9.0, 9.0, 9.0]},
        {"text": "two", "vector": None},
        {"text": None, "vector": [8, 8, 8]},
    ]
    report = Report()
    table = embed_table(rows, BIND, report=report)
    assert table["vector"].to_pylist() == [[9, 9, 9], lengths("two"), [8, 8, 8]]
    assert Lengths.seen[:1] == ["two"]
    assert (report.given, report.embedded, report.nulls) == (2, 1, 0)
    assert embed_table([{"text": "one", "vector": None}], BIND)["vector"].to_pylist() == [lengths("one")]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32(), 3), pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), 3)],
    ids=str,
)
def test_given_vectors_of_any_list_type_are_kept(kind: pa.DataType) -> None:
    """Lists of any width type and float type count as given; sliced and null ones too."""
    given = pa.array([[0, 0, 0], [1, 2, 3], None, [4, 5, 6]], pa.list_(pa.float32(), 3)).cast(kind)
    table = pa.table({"text": ["x", "one", "two", "three"], "vector": given}).slice(1)
    assert embed_table(table, BIND)["vector"].to_pylist() == [[1, 2, 3], lengths("two"), [4, 5, 6]]


def test_ready_vectors_need_no_model() -> None:
    """A table whose vectors are all there is passed on without calling the function, not even for a probe."""
    table = pa.table({"text": ["a", "b"], "vector": pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.float32(), 3))})
    made = embed_table(table, BIND)
    assert made["vector"].to_pylist() == [[1, 2, 3], [4, 5, 6]]
    assert Lengths.seen == []


def test_zero_rows_and_zero_batches() -> None:
    """No rows give an empty vector column of the right type, without a model."""
    for empty in (pa.table({"text": pa.array([], pa.string())}), [], pd.DataFrame({"text": []}, dtype=str)):
        table = embed_table(empty, Articles)
        assert table.num_rows == 0
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 3)
    assert Lengths.seen == []


def test_a_stream_is_filled_a_batch_at_a_time() -> None:
    """embed_batches reads only the requested batch of its input, so memory is bounded by the batch."""
    pulled = []

    def endless() -> Iterator[dict[str, Any]]:
        number = 0
        while True:
            pulled.append(number)
            yield {"text": f"row {number}", "n": number}
            number += 1

    reader = embed_batches(endless(), Articles, batch_rows=100)
    assert len(pulled) == 100
    batch = reader.read_next_batch()
    assert (batch.num_rows, len(pulled)) == (100, 100)
    assert reader.read_next_batch()["vector"].to_pylist()[0] == lengths("row 100")
    assert len(pulled) <= 300


def test_memory_of_a_stream_does_not_grow_with_its_length() -> None:
    """A stream forty times longer keeps no more Arrow memory."""

    def peak(batches: int) -> int:
        gc.collect()
        before = pa.total_allocated_bytes()
        text = pa.array([f"text number {row}" for row in range(1000)])
        source = (pa.record_batch({"text": text}) for _ in range(batches))
        most = 0
        for _ in embed_batches(
            pa.RecordBatchReader.from_batches(pa.schema([("text", pa.string())]), source), BIND, batch_rows=1000
        ):
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    peak(2)
    assert peak(200) < 2 * peak(5)


def test_batches_are_never_larger_than_asked() -> None:
    """A one-chunk table is cut into batches of batch_rows."""
    sizes = [batch.num_rows for batch in embed_batches(pa.table({"text": ["a"] * 25}), BIND, batch_rows=10)]
    assert sizes == [10, 10, 5]


def test_vectors_reach_arrow_without_a_copy() -> None:
    """The Arrow column of a float32 matrix is the matrix: the same memory."""
    embedded = embed_column(FN, ["one", "two", "three"])
    column = embedded.to_arrow()
    assert np.shares_memory(column.values.to_numpy(zero_copy_only=True), embedded.matrix)


def test_progress_ends_at_the_last_row() -> None:
    """Progress grows, never passes the number of rows, and ends there; a stream has no total."""
    seen: list[tuple[int, int | None]] = []
    embed_table(rows_of(), Articles, progress=lambda done, total: seen.append((done, total)), batch_rows=3)
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    seen.clear()
    embed_batches(iter(rows_of()), Articles, progress=lambda done, total: seen.append((done, total))).read_all()
    assert seen[-1] == (7, None)


# -- what goes wrong ---------------------------------------------------------------------------------------------------

PICKY = Picky.create()
BAD = ["fine", "none", "bad", "nan", "inf", None, "bad"]


def test_failed_rows_raise_before_anything_is_given_out() -> None:
    """By default a failed row raises, naming the rows and the reasons, never the input."""
    with pytest.raises(BadRowsError) as caught:
        embed_table([{"text": text} for text in BAD], PICKY.bind("text", "vector"))
    assert caught.value.rows == (1, 2, 3, 4, 6)
    message = str(caught.value)
    assert (
        "5 row(s) have no vector: row 1 (text): the function returned no vector; rows 2, 6 (text): refused by hand"
        in message
    )
    assert "rows 3, 4 (text): its vector is not finite" in message
    assert "on_error='null'" in message


def test_a_reason_shared_by_many_rows_is_printed_once() -> None:
    """The message of an error stays one line, however many rows failed."""
    with pytest.raises(BadRowsError) as caught:
        embed_table([{"text": "bad"}] * 500, PICKY.bind("text", "vector"))
    assert caught.value.message == (
        "500 row(s) have no vector: rows 0, 1, 2, 3, 4 and 495 more (text): refused by hand."
    )


def test_failed_rows_can_be_null_or_dropped() -> None:
    """A failed row never takes its batch with it; the report lists rows and reasons; nulls are not failures."""
    report = Report()
    table = embed_table([{"text": text} for text in BAD], PICKY.bind("text", "vector"), on_error="null", report=report)
    assert table["vector"].to_pylist() == [lengths("fine"), None, None, None, None, None, None]
    assert [(bad.row, bad.reason) for bad in report.bad] == [
        (1, "the function returned no vector"),
        (2, "refused by hand"),
        (3, "its vector is not finite"),
        (4, "its vector is not finite"),
        (6, "refused by hand"),
    ]
    assert (report.rows, report.nulls) == (7, 1)
    dropped = embed_table([{"text": text} for text in BAD], PICKY.bind("text", "vector"), on_error="drop", batch_rows=3)
    assert dropped["text"].to_pylist() == ["fine", None]


def test_row_numbers_count_through_the_stream() -> None:
    """A bad row is numbered by its place in all the data, not in its batch."""
    report = Report()
    rows = [{"text": "fine"}] * 10 + [{"text": "bad"}]
    embed_table(rows, PICKY.bind("text", "vector"), on_error="null", report=report, batch_rows=4)
    assert [bad.row for bad in report.bad] == [10]


def test_max_bad_rows_stops_a_run() -> None:
    """More failed rows than max_bad_rows stop the run."""
    rows = [{"text": "bad"}] * 3
    embed_table(rows, PICKY.bind("text", "vector"), on_error="null", max_bad_rows=3)
    with pytest.raises(BadRowsError, match="over max_bad_rows=2"):
        embed_table(rows, PICKY.bind("text", "vector"), on_error="null", max_bad_rows=2)


def test_a_failed_call_always_raises() -> None:
    """An outage is not a bad row: the error is raised unchanged under every policy."""

    class Down(Lengths):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            raise ConnectionError("no route")

    embedreg.register("down")(Down)
    for policy in ("raise", "null", "drop"):
        with pytest.raises(ConnectionError, match="no route"):
            embed_table([{"text": "a"}], Down.create().bind("text", "vector"), on_error=policy)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros((1, 4), np.float32), r"shape \(1, 4\) for 1 inputs; \(1, 3\) was expected"),
        (np.zeros((2, 3), np.float32), r"shape \(2, 3\) for 1 inputs"),
        (np.zeros((1, 3, 1), np.float32), r"shape \(1, 3, 1\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
        ([[1.0, 2.0, 3.0]] * 2, r"for 1 inputs"),
        ([["a", "b", "c"]], "not numbers"),
        (np.array([["a", "b", "c"]]), "vectors of <U1"),
        (np.array([[1j, 0, 0]]), "vectors of complex128"),
    ],
)
def test_vectors_of_the_wrong_kind_are_refused(result: Any, message: str) -> None:
    """A function that returns another shape, another number or no numbers at all has failed as a call."""

    class Odd(Lengths):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return result

    with pytest.raises(VectorError, match=message):
        embed_column(Odd(), ["a"])


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m,
        lambda m: m.astype(np.float64),
        lambda m: m.astype(np.float16),
        lambda m: m.astype(int),
        lambda m: m.tolist(),
        lambda m: list(m),
        lambda m: tuple(map(tuple, m)),
        lambda m: np.asfortranarray(m),
        lambda m: pa.FixedSizeListArray.from_arrays(pa.array(m.reshape(-1)), 3),
        lambda m: pa.array(m.tolist()),
        lambda m: __import__("torch").tensor(m),
        lambda m: __import__("torch").tensor(m).bfloat16(),
        lambda m: list(__import__("torch").tensor(m)),
    ],
)
def test_whatever_a_function_returns_becomes_float32(convert: Any) -> None:
    """Arrays, lists, tuples, Arrow and torch, of any float type, become one float32 matrix."""

    class Converting(TextEmbeddingFunction):
        def ndims(self) -> int:
            return 3

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return convert(np.array([lengths(str(text)) for text in texts], np.float32))

    matrix = embed_column(Converting(), ["a", "bcd e"]).matrix
    assert matrix.dtype == np.float32
    assert matrix.tolist() == [lengths("a"), lengths("bcd e")]


def test_one_squeezed_vector_keeps_two_axes() -> None:
    """A function that squeezes the answer for one input, as LanceDB-style ones do, still gives (1, d)."""

    class Squeezed(Lengths):
        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return super().generate_embeddings(texts).squeeze()

    assert embed_column(Squeezed(), ["abc"]).matrix.tolist() == [lengths("abc")]
    assert embed_column(Squeezed(), []).matrix.shape == (0, 3)


def test_a_missing_source_column_is_named() -> None:
    """A missing source is refused before anything is computed, with the columns there are."""
    with pytest.raises(MissingColumnError, match=r"no column 'text' to fill 'vector' from \(columns: body\)"):
        embed_table([{"body": "a"}], BIND)


def test_a_missing_required_column_is_named() -> None:
    """A column that the Schema requires and the data lacks is refused; an optional one becomes null."""

    class Strict(Schema):
        text: str = FN.SourceField()
        vector: Vector(3) = FN.VectorField()  # type: ignore[valid-type]
        must: int

    with pytest.raises(MissingColumnError, match="no column 'must', which the schema requires"):
        embed_table([{"text": "a"}], Strict)
    assert embed_table([{"text": "a"}], Articles)["n"].to_pylist() == [None]


@pytest.mark.parametrize("column", [[1, 2], [b"a"], [["a"]], [1.5], [{"a": 1}]])
def test_a_text_function_takes_text_only(column: list[Any]) -> None:
    """A column of another type is refused by name and type, never turned into text."""
    with pytest.raises(InputError, match=r"column 'text': a text function cannot embed a column of type"):
        embed_table(pa.table({"text": column}), BIND)


def test_values_that_are_not_tables_are_refused() -> None:
    """A string, a number or a mixture of rows is not a table."""
    for wrong in ("text", b"x", 3, None):
        with pytest.raises(InputError, match="is not a table"):
            embed_table(wrong, BIND)
    with pytest.raises(InputError, match="the rows mix dicts with int"):
        embed_table([{"text": "a"}, 3], BIND)
    with pytest.raises(InputError, match="column 'n' has no common type"):
        embed_table([{"text": "a", "n": 1}, {"text": "b", "n": "x"}], BIND)
    with pytest.raises(InputError, match="column 'n' does not fit int64"):
        embed_table([{"text": "a", "n": "x"}], Articles)
    with pytest.raises(InputError, match=r"column 'vector' does not fit fixed_size_list<.*>\[3\]"):
        embed_table([{"text": "a", "vector": [1.0, 2.0]}], Articles)
    with pytest.raises(InputError, match="the columns do not form a table"):
        embed_table({"text": ["a"], "n": [1, 2]}, BIND)


def test_given_vectors_of_another_width_are_refused() -> None:
    """A column of vectors that the function cannot have made is refused with both widths."""
    with pytest.raises(VectorError, match="holds vectors of 2 dimensions, its function returns 3"):
        embed_table([{"text": "a", "vector": [1.0, 2.0]}], BIND)
    with pytest.raises(SchemaError, match=r"declared as fixed_size_list<.*>\[2\], its function returns 3"):
        embed_table(pa.table({"text": ["a"], "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}), BIND)
    with pytest.raises(VectorError, match="is string, not a list of floats"):
        embed_table([{"text": "a", "vector": "x"}], BIND)


def test_given_vectors_that_are_not_finite_are_bad_rows() -> None:
    """NaN or infinity in a given vector fails that row, on every code path."""
    for vectors in ([[1.0, 2.0, float("nan")], [1, 1, 1]], [[float("inf"), 0, 0], None]):
        table = pa.table({"text": ["a", "b"], "vector": pa.array(vectors, pa.list_(pa.float32(), 3))})
        with pytest.raises(BadRowsError, match=r"row 0 \(text\): its given vector is not finite"):
            embed_table(table, BIND)


def test_a_column_never_holds_the_vectors_of_two_functions() -> None:
    """A partly filled column that another configuration made is refused; an empty one is taken over."""
    table = embed_table([{"text": "a"}, {"text": None}], BIND)
    other = Lengths.create(scale=2).bind("text", "vector")
    half = pa.table({"text": ["a", "b"], "vector": table["vector"].combine_chunks()}, metadata=table.schema.metadata)
    with pytest.raises(DriftError, match="already holds vectors of 'lengths' with another configuration"):
        embed_table(half, other)
    empty = half.set_column(1, "vector", pa.nulls(2, pa.list_(pa.float32(), 3)))
    assert embed_table(empty, other)["vector"].to_pylist() == [[2, 2, 2], [2, 0, 2]]


def test_a_vector_column_that_allows_no_null_fails_its_null_rows() -> None:
    """Where the Schema allows no null vector, a null or blank input is a failed row."""

    class Strict(Schema):
        text: str | None = FN.SourceField()
        vector: Vector(3, nullable=False) = FN.VectorField()  # type: ignore[valid-type]

    schema = Strict.to_arrow_schema()
    schema = schema.set(1, schema.field("vector").with_nullable(False))
    with pytest.raises(BadRowsError, match="null or blank where the vector column allows no null"):
        embed_table([{"text": "a"}, {"text": ""}], schema)


def test_unknown_policies_are_refused() -> None:
    """A typo in on_error or a batch of no rows is refused at the door."""
    with pytest.raises(ConfigError, match="invalid on_error='ignore'"):
        embed_table([], BIND, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_rows=0"):
        embed_table([], BIND, batch_rows=0)


def test_two_columns_of_one_name_are_refused() -> None:
    """Arrow allows two columns of one name; a declaration could not say which it means."""
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(SchemaError, match="two columns of one name"):
        embed_table(table, BIND)


def test_float16_columns_are_written_as_declared() -> None:
    """A float16 vector column holds float16, as its declaration states."""

    class Half(Schema):
        text: str = FN.SourceField()
        vector: Vector(3, "float16") = FN.VectorField()  # type: ignore[valid-type]

    table = embed_table([{"text": "one two"}], Half)
    assert table.schema.field("vector").type == pa.list_(pa.float16(), 3)
    assert table["vector"].to_pylist() == [lengths("one two")]
    assert embedreg.inspect(table)[0]["dtype"] == "float16"


def test_a_query_is_one_vector_and_never_empty() -> None:
    """embed_query gives (d,) float32; an empty query is refused."""
    vector = embedreg.embed_query(FN, "one")
    assert (vector.shape, vector.dtype, vector.tolist()) == ((3,), np.float32, lengths("one"))
    for empty in (None, "", " "):
        with pytest.raises(InputError, match="the query is empty"):
            embedreg.embed_query(FN, empty)
    with pytest.raises(BadRowsError, match="the query has no vector: refused by hand"):
        embedreg.embed_query(PICKY, "bad")


def test_the_query_role_is_the_functions_own() -> None:
    """Where queries differ from sources, the role decides; where they do not, queries are batched."""

    class Asymmetric(Lengths):
        def compute_query_embeddings(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return [[-value for value in lengths(query)]]

    assert embed_column(Asymmetric(), ["ab", "ab", "c"], "query").matrix.tolist() == [
        [-2, -1, -1],
        [-2, -1, -1],
        [-1, 0, -1],
    ]
    assert embed_column(Asymmetric(), ["ab"]).matrix.tolist() == [[2, 1, 1]]
    assert embed_column(FN, ["ab", "c"], "query").matrix.tolist() == [lengths("ab"), lengths("c")]
