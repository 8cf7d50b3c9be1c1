"""What callers bring is kept value by value, or an error names the column, the row and the value."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import math
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel, Field

import embedreg
from embedreg import Schema, Vector, embed_batches, embed_table
from embedreg.arrow.casting import ConversionError, cast_exactly
from embedreg.arrow.common_types import common_type
from embedreg.arrow.values import array_of
from embedreg.engines import lancedb as engine
from embedreg.errors import BadRowsError, InputError, MissingColumnError, SchemaError, VectorError

FN = embedreg.get("hashing").create(dim=4)
BIND = FN.bind("text", "vector")
NAN = float("nan")
HOLDS_ITSELF: list[Any] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)
LAST = dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=-12)))
F32, F64 = pa.float32(), pa.float64()
UTC = dt.UTC
FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Row(Schema):
    """A text, a number that may lack, and a language with a default."""

    text: str | None = FN.SourceField()
    vector: Vector(4) = FN.VectorField()  # type: ignore[valid-type]
    n: int | None = None
    lang: str = "en"


def kept(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table without their vectors."""
    table.validate(full=True)
    return table.drop_columns(["vector"]).to_pylist()  # type: ignore[no-any-return]


def same(given: Any, found: Any) -> bool:
    """Return whether two values are the same; a key that a dict lacks is a null."""
    if given is None or found is None:
        return given is found
    if isinstance(given, bool) or isinstance(found, bool):
        return given is found
    if isinstance(given, dict):
        return isinstance(found, dict) and all(same(given.get(key), found.get(key)) for key in given.keys() | found)
    if isinstance(given, list | tuple | np.ndarray):
        return isinstance(found, list) and len(given) == len(found) and all(map(same, given, found))
    if isinstance(given, float | np.floating) and math.isnan(given):
        return isinstance(found, float) and math.isnan(found)
    if isinstance(given, dt.datetime) and isinstance(found, dt.datetime):
        return (given.tzinfo is None) == (found.tzinfo is None) and given == found
    if isinstance(given, dt.timedelta) and isinstance(found, dt.timedelta):
        return given == found
    numbers = (int, float, decimal.Decimal, np.number)
    return ((isinstance(given, numbers) and isinstance(found, numbers)) or type(given) is type(found)) and bool(
        given == found
    )


def tried(call: Callable[[], Any]) -> tuple[Any, Any]:
    """Return what a call gave, and the error with which it refused a value."""
    try:
        return call(), None
    except (InputError, ConversionError) as exc:
        return None, exc


# -- any values --------------------------------------------------------------------------------------------------------

SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(st.characters(codec="utf-8"), max_size=5),
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=5),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9),
    "naive": st.datetimes(),
    "aware": st.datetimes(
        dt.datetime(1900, 1, 1),
        dt.datetime(2100, 1, 1),
        timezones=st.sampled_from([UTC, dt.timezone(dt.timedelta(hours=5))]),
    ),
    "date": st.dates(),
    "time": st.times(),
    "span": st.timedeltas(dt.timedelta(days=-(10**6)), dt.timedelta(days=10**6)),
    "uuid": st.uuids(),
}
ANY = st.recursive(
    st.one_of(st.none(), *SCALARS.values(), st.integers(-(2**70), 2**70), st.decimals(), st.text(max_size=2)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)
ROWS = st.lists(st.dictionaries(st.sampled_from("xyz"), ANY, max_size=3), min_size=1, max_size=6)


def homogeneous() -> st.SearchStrategy[list[Any]]:
    """Return columns of one kind, nested or not, with nulls."""
    kinds = list(SCALARS.values())
    kinds += [st.lists(st.none() | kind, max_size=3) for kind in kinds]
    kinds += [st.fixed_dictionaries({}, optional={"a": kind, "b": st.none() | SCALARS["int"]}) for kind in kinds]
    return st.one_of(*(st.lists(st.none() | kind, min_size=1, max_size=6) for kind in kinds))


@given(homogeneous())
@FAST
def test_columns_of_one_kind_are_kept(values: list[Any]) -> None:
    """Values of one kind, in lists and structs, with nulls and missing keys, survive a round trip."""
    rows = [{"text": "a", "x": value} for value in values]
    found = [row["x"] for row in kept(embed_table(rows, BIND))]
    assert all(map(same, values, found)), found


@given(ROWS)
@FAST
def test_any_rows_are_kept_or_an_error_names_the_row(rows: list[dict[str, Any]]) -> None:
    """Any mixture of values comes back as it went in, or the error names a column of them and the row."""
    rows = [{"text": "a", **row} for row in rows]
    found, refusal = tried(lambda: kept(embed_table(rows, BIND)))
    if refusal is None:
        assert all(map(same, rows, found)), found
        return
    matched = re.search(r"column '([xyz])'.* row (\d+)", refusal.message, re.DOTALL)
    assert matched, refusal.message
    assert rows[int(matched[2])].get(matched[1]) is not None


@given(ROWS, st.integers(1, 3))
@FAST
def test_a_stream_gives_what_the_whole_gives_or_an_error_names_the_row(rows: list[dict[str, Any]], size: int) -> None:
    """A stream never changes a value to fit the types of its first rows: it is kept, or its row is named."""
    rows = [{"text": "a", **row} for row in rows]
    found, refusal = tried(lambda: kept(embed_batches(iter(rows), BIND, batch_rows=size).read_all()))
    if refusal is None:
        assert all(map(same, rows, found)), found
        return
    matched = re.search(r"row (\d+)", refusal.message)
    assert matched, refusal.message
    assert int(matched[1]) < len(rows)


NUMBERS = [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64(), pa.float16(), pa.float32(), pa.float64()]
NUMBERS += [pa.decimal128(10, 2), pa.decimal128(38, 18), pa.decimal256(60, 5)]
TIMES = [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Tokyo")]
OTHERS = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.bool_(), pa.date32(), pa.duration("s")]
OTHERS += [pa.duration("ns"), pa.time32("s"), pa.time64("us"), pa.dictionary(pa.int8(), pa.string())]
TYPES = NUMBERS + TIMES + OTHERS
TYPES += [pa.list_(kind) for kind in (*NUMBERS[:8], pa.string())] + [
    pa.list_(pa.int64(), 2),
    pa.large_list(pa.float64()),
]
TYPES += [pa.struct({"a": pa.int64(), "b": pa.float32()}), pa.struct({"a": pa.float64()})]


@given(
    st.one_of(homogeneous(), *(st.lists(st.integers(-300, 300) | st.floats(width=16), max_size=5) for _ in "ab")),
    st.sampled_from(TYPES),
)
@settings(FAST, max_examples=400)
def test_a_declared_type_holds_the_same_values_or_names_one(values: list[Any], want: pa.DataType) -> None:
    """Python values as any declared type are the same values, or one is named; floats may be the nearest ones."""
    array, refusal = tried(lambda: array_of(values, want))
    if refusal is not None:
        assert values[refusal.row] is not None
        return
    assert array.type == want
    array.validate(full=True)
    assert all(same(rounded(value, want), found) for value, found in zip(values, array.to_pylist(), strict=True))


def rounded(value: Any, want: pa.DataType) -> Any:
    """Return a value with its floats as a declared type of floats holds them, and UUIDs as their texts."""
    if isinstance(value, float) and pa.types.is_floating(want):
        return float(want.to_pandas_dtype()(value))
    if isinstance(value, list):
        return [rounded(item, want.value_type) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item, want.field(key).type) for key, item in value.items() if item is not None}
    return str(value) if isinstance(value, uuid.UUID) else value


@given(homogeneous(), st.sampled_from(TYPES), st.sampled_from(TYPES))
@settings(FAST, max_examples=400)
def test_arrow_columns_are_cast_exactly_or_a_row_is_named(
    values: list[Any], have: pa.DataType, want: pa.DataType
) -> None:
    """Between any two Arrow types, a column keeps values, slices and nulls, or the row that cannot be is named."""
    array = tried(lambda: array_of([None, *values], have)[1:])[0]
    if array is None:
        return
    given = array.to_pylist()
    made, refusal = tried(lambda: cast_exactly(array, want))
    if refusal is not None:
        assert given[refusal.row] is not None
        return
    assert made.type == want
    made.validate(full=True)
    if {have, want} & {pa.binary()}:
        return  # texts and their UTF-8 are one value to Arrow
    assert all(same(rounded(value, want), found) for value, found in zip(given, made.to_pylist(), strict=True))


@given(st.lists(homogeneous(), min_size=2, max_size=3))
@FAST
def test_the_common_type_of_tables_keeps_all_their_values(columns: list[list[Any]]) -> None:
    """Tables of other types follow one another: each column gets a type for all, or the error names the row."""
    tables = [pa.table({"text": ["a"] * len(column), "x": array_of(column)}) for column in columns]
    found, refusal = tried(lambda: [row["x"] for row in kept(embed_table(iter(tables), BIND))])
    if refusal is not None:
        assert re.search(r"column 'x'.* row \d+", refusal.message), refusal.message
        return
    assert all(map(same, [value for column in columns for value in column], found)), found


def test_common_types() -> None:
    """Numbers and times widen, layouts join, kinds do not mix."""
    assert common_type(pa.int8(), pa.int32()) == pa.int32()
    assert common_type(pa.int64(), pa.float32()) == pa.float64()
    assert common_type(pa.timestamp("s", "UTC"), pa.timestamp("ns", "Asia/Tokyo")) == pa.timestamp("ns", "UTC")
    assert common_type(pa.struct({"a": pa.int8()}), pa.struct({"b": pa.string()})) == pa.struct(
        {"a": pa.int8(), "b": pa.string()}
    )
    for one, other in (
        (pa.string(), pa.int8()),
        (pa.bool_(), pa.int8()),
        (pa.timestamp("s"), pa.timestamp("s", "UTC")),
    ):
        assert common_type(one, other) is None


PANDAS: dict[str, Callable[[list[Any]], Any]] = {
    "float64": lambda values: pd.Series(values, dtype="float64"),
    "Int64": lambda values: pd.Series(values, dtype="Int64"),
    "object": lambda values: pd.Series(values, dtype=object),
    "str": lambda values: pd.Series(values, dtype="str"),
    "arrow": lambda values: pd.Series(values, dtype=pd.ArrowDtype(pa.int64())),
    "datetime": lambda values: pd.Series(values, dtype="datetime64[ns]"),
    "category": lambda values: pd.Series(values, dtype="category"),
}
PANDAS_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float64": st.floats(),
    "Int64": st.none() | SCALARS["int"],
    "object": st.none() | SCALARS["bytes"],
    "str": st.none() | SCALARS["text"],
    "arrow": st.none() | SCALARS["int"],
    "datetime": st.none() | st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2100, 1, 1)),
    "category": st.none() | SCALARS["text"],
}


@pytest.mark.parametrize("dtype", PANDAS)
@given(data=st.data())
@settings(FAST, max_examples=25)
def test_pandas_columns_are_kept(dtype: str, data: st.DataObject) -> None:
    """A pandas column of any dtype is kept: NaN is a float in a column of floats, NA and None are nulls."""
    values = data.draw(st.lists(PANDAS_VALUES[dtype], min_size=1, max_size=5))
    frame = pd.DataFrame({"text": ["a"] * len(values), "x": PANDAS[dtype](values)})
    assert all(map(same, values, [row["x"] for row in kept(embed_table(frame, BIND))]))


# -- what was lost -----------------------------------------------------------------------------------------------------

LATE = [{"text": "a"}] * 8192 + [{"text": "late", "n": 7}]


@pytest.fixture
def db(tmp_path: Any) -> Any:
    """Return an empty database."""
    return lancedb.connect(tmp_path)


@pytest.mark.parametrize("schema", [BIND, Row], ids=["binding", "Schema"])
@pytest.mark.parametrize("form", [list, iter], ids=["list", "generator"])
def test_a_late_key_is_read(schema: Any, form: Callable[[Any], Any]) -> None:
    """A key that the first 8192 rows lack is a column like any other, declared or not."""
    assert embed_table(form(LATE), schema)["n"].to_pylist()[-2:] == [None, 7]


def test_a_late_key_of_a_stream_is_read_if_declared_else_named(db: Any) -> None:
    """A stream reads declared keys wherever they come; an undeclared one is an error, in LanceDB too."""
    assert embed_batches(iter(LATE), Row).read_all()["n"].to_pylist()[-1] == 7
    with pytest.raises(InputError, match=r"row 8192 has 'n', which neither the schema nor"):
        embed_batches(iter(LATE), BIND).read_all()
    table = engine.create_table(db, "t", Row)
    engine.add(table, [{"lang": "de", **row} for row in LATE])
    engine.add(table, ({"lang": "de", **row} for row in LATE))
    assert sorted(filter(None, table.to_arrow()["n"].to_pylist())) == [7, 7]
    with pytest.raises(InputError, match=r"row 8192 has 'm'"):
        engine.add(table, iter([{"text": "a", "lang": "x"}] * 8192 + [{"text": "b", "lang": "x", "m": 1}]))
    assert table.count_rows() == 2 * len(LATE)


def test_late_given_vectors_stay() -> None:
    """A given vector that comes late, or of floats after integers, stays, in a stream too."""
    for first in ({"text": "a"}, {"text": "a", "vector": [1, 0, 0, 0]}):
        rows = [first] * 8192 + [{"text": "b", "vector": [0.5] * 4}]
        assert embed_table(rows, BIND)["vector"].to_pylist()[-1] == [0.5] * 4
        assert embed_batches(iter(rows), BIND).read_all()["vector"].to_pylist()[-1] == [0.5] * 4


def test_a_float_after_integers_widens_or_is_named() -> None:
    """9.99 after 8192 times 1 is 9.99; in a stream, whose type is out, or against a declared integer it is an error."""
    rows = [{"text": "a", "price": 1}] * 8192 + [{"text": "a", "price": 9.99}]
    assert embed_table(rows, BIND)["price"].to_pylist()[-1] == 9.99
    with pytest.raises(InputError, match=r"column 'price' does not fit int64: row 8192: 9.99"):
        embed_batches(iter(rows), BIND).read_all()
    with pytest.raises(InputError, match=r"column 'n' does not fit int64: row 1: 1.9"):
        embed_table([{"text": "a", "n": 1.0}, {"text": "a", "n": 1.9}], Row)


@pytest.mark.parametrize(
    "wrong", ["abc", b"abc", {0: "a"}, {"a"}, 5, None, np.array(3)], ids=lambda one: type(one).__name__
)
def test_one_value_is_no_column(wrong: Any, db: Any) -> None:
    """A str or another single value in place of a column raises an error; it is not a column of letters."""
    with pytest.raises(InputError, match="column 'text' is one"):
        embed_table({"text": wrong}, BIND)
    with pytest.raises(InputError, match="column 'text' is one"):
        engine.add(engine.create_table(db, "t", BIND_SCHEMA), {"text": wrong})


BIND_SCHEMA = Row.to_arrow_schema()


def test_no_declaration_is_an_error(db: Any) -> None:
    """Data, schemas and tables without a declaration are refused: nothing is written with null vectors."""
    plain = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), 4))])
    for data, schema in (
        (pa.table({"text": ["a"]}), None),
        ([{"text": "a"}], None),
        ([{"text": "a"}], plain),
        ([], []),
    ):
        with pytest.raises(SchemaError, match="declares no embedding function"):
            embed_table(data, schema)
        with pytest.raises(SchemaError, match="declares no embedding function"):
            embed_batches(data, schema)
    table = engine.create_table(db, "t", Row)
    table = db.create_table("t", data=[{"text": "a", "vector": [1.0, 2, 3, 4]}], mode="overwrite")
    with pytest.raises(SchemaError, match="declares no embedding function"):
        engine.add(table, [{"text": "b"}])
    assert table.count_rows() == 1


def test_nan_is_a_float() -> None:
    """NaN stays NaN in rows, lists, structs, columns, arrays and pandas' floats; a null stays a null."""
    rows = [{"text": "a", "f": NAN, "l": [NAN, None], "s": {"x": NAN}}, {"text": "b", "f": None, "l": None, "s": None}]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for data in (rows, iter(rows), columns, {**columns, "f": np.array([NAN, 1])}):
        first = kept(embed_table(data, BIND))[0]
        assert same(rows[0], first), first
    frame = pd.DataFrame(
        {"text": ["a", "b"], "f": [NAN, 1.0], "l": [[NAN], [1.0]], "o": pd.Series([NAN, "x"], dtype=object)}
    )
    first = kept(embed_table(frame, BIND))[0]
    assert same({"text": "a", "f": NAN, "l": [NAN], "o": None}, first)


def test_pandas_missing_numbers_are_nulls_of_declared_integers() -> None:
    """Pandas spells a missing integer NaN; where an integer is declared it is the null that was meant."""
    frame = pd.DataFrame({"text": ["a", "b"], "n": [1.0, NAN]})
    assert embed_table(frame, Row)["n"].to_pylist() == [1, None]
    with pytest.raises(InputError, match="column 'n' does not fit int64: row 1: nan"):
        embed_table([{"text": "a", "n": 1}, {"text": "b", "n": NAN}], Row)


@pytest.mark.parametrize("bad", [[NAN, 1, 2, 3], [1, None, 2, 3], [1, 2, 3, 1e300], [float("inf"), 0, 0, 0]], ids=str)
@pytest.mark.parametrize("schema", [BIND, Row], ids=["binding", "Schema"])
def test_a_given_vector_with_one_odd_number_is_one_bad_row(bad: list[Any], schema: Any) -> None:
    """NaN, a null or what float32 cannot hold in a given vector fails its own row only."""
    rows = [{"text": "a", "vector": bad}, {"text": "b", "vector": [1.0, 2, 3, 4]}, {"text": None, "vector": None}]
    frame = pd.DataFrame(rows)
    for data in (rows, frame, iter(rows)):
        report = embedreg.Report()
        table = embed_table(data, schema, on_error="null", report=report)
        assert table["vector"].to_pylist() == [None, [1, 2, 3, 4], None]
        assert [(row.row, row.reason) for row in report.bad] == [(0, "its given vector is not finite")]


def test_defaults_of_the_schema() -> None:
    """A key that a dict lacks gets the schema's default, created for each row, in nested models too."""

    class Inner(BaseModel):
        size: int = 3
        tag: str

    class Defaulted(Schema):
        text: str = FN.SourceField()
        vector: Vector(4) = FN.VectorField()  # type: ignore[valid-type]
        lang: str = "en"
        key: uuid.UUID = Field(default_factory=uuid.uuid4)
        inner: Inner
        inners: list[Inner] = Field(default_factory=list)

    rows = [
        {"text": "a", "inner": {"tag": "x"}},
        {"text": "b", "lang": "de", "inner": {"tag": "y", "size": 4}, "inners": [{"tag": "z"}]},
    ]
    for data in (rows, iter(rows)):
        found = kept(embed_table(data, Defaulted))
        assert [row["lang"] for row in found] == ["en", "de"]
        assert [row["inner"] for row in found] == [{"size": 3, "tag": "x"}, {"size": 4, "tag": "y"}]
        assert [row["inners"] for row in found] == [[], [{"size": 3, "tag": "z"}]]
        assert found[0]["key"] != found[1]["key"]
    assert kept(embed_table(pa.table({"text": ["a"], "n": [1]}), Row)) == [{"text": "a", "n": 1, "lang": "en"}]
    with pytest.raises(InputError, match=r"column 'inner' does not fit struct.*row 1 at \.tag: it is missing"):
        embed_table([rows[0], {"text": "c", "inner": {"size": 1}}], Defaulted)


def test_required_means_required() -> None:
    """A required key that one row lacks, and a null where none may be, are errors naming the row; in frames too."""

    class Strict(Schema):
        text: str = FN.SourceField()
        vector: Vector(4) = FN.VectorField()  # type: ignore[valid-type]
        must: int

    with pytest.raises(MissingColumnError, match="row 1: 'must' is missing"):
        embed_table([{"text": "a", "must": 1}, {"text": "b"}], Strict)
    with pytest.raises(InputError, match="row 1: 'must' is None"):
        embed_table([{"text": "a", "must": 1}, {"text": "b", "must": None}], Strict)
    for data in (
        pa.table({"text": ["a", "b"], "must": [1, None]}),
        pl.DataFrame({"text": ["a", "b"], "must": [1, None]}),
    ):
        with pytest.raises(InputError, match="column 'must': row 1 is null"):
            embed_table(data, Strict)
    assert not embed_table([{"text": "a", "must": 1}], Strict).schema.field("must").nullable


def test_a_vector_that_allows_no_null() -> None:
    """`Vector(n, nullable=False)` is a column without nulls: such rows fail or are dropped under any policy."""

    class Strict(Schema):
        text: str | None = FN.SourceField()
        vector: Vector(4, nullable=False) = FN.VectorField()  # type: ignore[valid-type]

    assert not Strict.to_arrow_schema().field("vector").nullable
    rows = [{"text": "a"}, {"text": None}]
    for policy in ("raise", "null"):
        with pytest.raises(BadRowsError, match=r"row 1 \(text\): null or blank where the vector column allows no null"):
            embed_table(rows, Strict, on_error=policy)  # type: ignore[arg-type]
    assert embed_table(rows, Strict, on_error="drop")["text"].to_pylist() == ["a"]


def test_a_pandas_index_that_means_something_is_kept() -> None:
    """A named index or level is a column, an unnamed one of anything but integers too; row numbers are none."""
    texts = {"text": ["a", "b"]}
    named = pd.DataFrame(texts, index=pd.Index([7, 8], name="id"))
    assert kept(embed_table(named, BIND)) == [{"id": 7, "text": "a"}, {"id": 8, "text": "b"}]
    assert embed_table(pd.DataFrame(texts, index=["x", "y"]), BIND)["index"].to_pylist() == ["x", "y"]
    levels = pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["k", "n"])
    assert kept(embed_table(pd.DataFrame(texts, index=levels), BIND))[1] == {"k": "y", "n": 2, "text": "b"}
    assert kept(embed_table(pd.DataFrame(texts)[1:], BIND)) == [{"text": "b"}]
    with pytest.raises(SchemaError, match="two columns of one name: 'id'"):
        embed_table(named.assign(id=1), BIND)


class Colour(enum.Enum):
    """One colour."""

    RED = "red"


class Odd(Schema):
    """Fields that Arrow has no type of its own for."""

    text: str = FN.SourceField()
    vector: Vector(4) = FN.VectorField()  # type: ignore[valid-type]
    colour: Colour
    key: uuid.UUID
    colours: list[Colour]
    words: frozenset[str]
    fallback: Colour = Colour.RED


def test_enums_uuids_and_sets_of_a_schema(db: Any) -> None:
    """A Schema takes its own rows: the value of an enum, the text of a UUID, the items of a set."""
    values = {"colour": Colour.RED, "key": uuid.UUID(int=1), "colours": [Colour.RED], "words": frozenset(["w"])}
    expected = {"colour": "red", "key": str(uuid.UUID(int=1)), "colours": ["red"], "words": ["w"], "fallback": "red"}
    for row in ({"text": "a", **values}, Odd(text="a", **values)):
        assert kept(embed_table([row], Odd)) == [{"text": "a", **expected}]
    table = engine.create_table(db, "t", Odd)
    engine.add(table, [Odd(text="a", **values)])
    assert kept(table.to_arrow()) == [{"text": "a", **expected}]


def test_a_datetime_with_a_zone_needs_a_declared_one() -> None:
    """A field of AwareDatetime keeps instants; one of datetime refuses a zone that it would drop."""

    class Timed(Schema):
        text: str = FN.SourceField()
        vector: Vector(4) = FN.VectorField()  # type: ignore[valid-type]
        aware: AwareDatetime | None = None
        naive: dt.datetime | None = None

    now = dt.datetime(2026, 1, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    assert kept(embed_table([{"text": "a", "aware": now}], Timed))[0]["aware"] == now
    for name, value in (("naive", now), ("aware", now.replace(tzinfo=None))):
        with pytest.raises(InputError, match=f"column '{name}' does not fit timestamp.*time zone, unlike timestamp"):
            embed_table([{"text": "a", name: value}], Timed)


def test_a_stream_of_nulls_has_no_type() -> None:
    """A column of nothing but nulls so far cannot take a value once the schema is given out; a declared one can."""
    rows = [{"text": "a", "x": None, "n": None}, {"text": "b", "n": 1}]
    assert embed_batches(iter(rows), Row, batch_rows=1).read_all()["n"].to_pylist() == [None, 1]
    with pytest.raises(InputError, match="row 1 is the first with a value"):
        embed_batches(iter([*rows[:1], {"text": "b", "x": "x"}]), BIND, batch_rows=1).read_all()
    assert embed_table(iter([*rows[:1], {"text": "b", "x": "x"}]), BIND)["x"].to_pylist() == [None, "x"]


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pd.Series(["a", "b"], name="text"),
        pl.Series("text", ["a", "b"]),
        {"text": (letter for letter in "ab")},
        {"text": np.array(["a", "b"])},
        {"text": pd.Series(["a", "b"])},
        {"text": pl.Series(["a", "b"])},
        pl.DataFrame({"text": pl.Series(["a", "b"], dtype=pl.Categorical)}),
        pl.DataFrame({"text": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"]))}),
        pd.DataFrame({"text": pd.Categorical(["a", "b"])}),
        pa.table({"text": pa.array(["a", "b"], pa.string_view()).cast(pa.large_string()).dictionary_encode()}),
        iter([[{"text": "a"}], [{"text": "b"}]]),
    ],
    ids=lambda data: type(data).__module__.partition(".")[0] + " " + type(data).__name__,
)
def test_forms_of_a_text_column(data: Any) -> None:
    """A series is a column, a generator and an array are columns, categories are texts."""
    table = embed_table(data, BIND)
    assert table["text"].to_pylist() == ["a", "b"]
    assert table["vector"].null_count == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.float16])
def test_a_matrix_is_a_column_of_vectors(dtype: Any) -> None:
    """A numpy array of two axes is a column of given vectors."""
    table = embed_table({"text": ["a", "b"], "vector": np.arange(8).reshape(2, 4).astype(dtype)}, BIND)
    assert table["vector"].to_pylist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pd.Series(["a"]), "a series without a name"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "two columns of one name: 'text'"),
        (pd.DataFrame({"text": ["a"], 0: [1], "0": [2]}), "two columns of one name: '0'"),
        ([{"text": "a", "n": 2**70}], "column 'n' cannot be stored exactly: row 0: 1180591620717411303424"),
        (pd.DataFrame({"text": ["a"], "n": [2**70]}), "column 'n' cannot be stored exactly: row 0"),
        ([{"text": "a", 1: 2}], "the column name 1 is not a str"),
        ([{"text": "a", "x": "b"}, {"text": "a", "x": "\ud800"}], "row 1: .* is not valid Unicode"),
        ([{"text": "a", "x": 1j}], "column 'x' cannot be stored exactly: row 0: a complex has no Arrow counterpart"),
        ([{"text": "a", "x": [b"a", "b"]}], r"column 'x' has no common type: row 0 at \[\]: 'b' is str"),
        ([{"text": "a", "x": True}, {"text": "b", "x": 1}], "row 1: 1 is int, others are bool"),
        ([{"text": "a", "x": HOLDS_ITSELF}], "column 'x': a value from row 0 on is nested too deep"),
        (
            [{"text": "a", "x": LAST}],
            "column 'x' cannot be stored exactly: row 0: .* beyond the years 1 to 9999 in UTC",
        ),
        ([("a",)], "row 0 is a tuple"),
        ([None], "row 0 is a NoneType"),
        (np.ones((2, 2)), "row 0 is a ndarray"),
        (pa.array(["a"]), "StringArray is not a table"),
        (pl.DataFrame({"text": ["a"], "x": pl.Series([object()], dtype=pl.Object)}), "row 0: a object has no Arrow"),
    ],
)
def test_what_cannot_be_kept_is_named(data: Any, message: str) -> None:
    """What has no counterpart is one line of ours, with the column, the row and the value."""
    with pytest.raises((InputError, SchemaError), match=message):
        embed_table(data, BIND)


def test_objects_of_polars_are_their_values() -> None:
    """A polars column of Python objects is read as those, never as their addresses."""
    frame = pl.DataFrame({"text": ["a", "b"], "x": pl.Series([uuid.UUID(int=1), uuid.UUID(int=2)], dtype=pl.Object)})
    assert embed_table(frame, BIND)["x"].to_pylist() == [uuid.UUID(int=1), uuid.UUID(int=2)]


def test_polars_frames_are_filled_and_dropped_from() -> None:
    """Rows of a polars frame can be filled and dropped, views and categories among them."""
    frame = pl.DataFrame(
        {
            "text": ["a", "b", "c"],
            "kind": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
            "vector": [[1.0, 2, 3, 4], [NAN] * 4, None],
        }
    )
    table = embed_table(frame, BIND, on_error="drop")
    assert kept(table) == [{"text": "a", "kind": "x"}, {"text": "c", "kind": "x"}]
    assert table["vector"].to_pylist()[0] == [1, 2, 3, 4]


def test_categories_of_polars_can_be_written(db: Any, tmp_path: Any) -> None:
    """Categories, from memory and from a file of polars' own, go into Parquet, IPC and Lance with their values."""
    frame = pl.DataFrame(
        {
            "text": pl.Series(["a", "b", None], dtype=pl.Categorical),
            "kind": pl.Series(["x", None, "y"], dtype=pl.Enum(["x", "y"])),
            "kinds": pl.Series([["x"], [], ["y", "x"]], dtype=pl.List(pl.Categorical)),
        }
    )
    table = embed_table(frame, BIND)
    assert kept(table) == frame.to_dicts()
    pq.write_table(table, tmp_path / "memory.parquet")
    frame.write_ipc(tmp_path / "file.arrow")
    for name in ("out.parquet", "out.arrow"):
        embedreg.embed(tmp_path / "file.arrow", tmp_path / name, BIND)
    assert pq.read_table(tmp_path / "out.parquet").drop_columns(["vector"]).to_pylist() == frame.to_dicts()
    assert kept(pa.ipc.open_file(tmp_path / "out.arrow").read_all()) == frame.to_dicts()
    engine.add(engine.create_table(db, "t", table.schema), frame)
    assert db.open_table("t").count_rows() == 3


@pytest.mark.parametrize(
    ("column", "want"),
    [
        (pa.array([1.5]), pa.int64()),
        (pa.array([300]), pa.int8()),
        (pa.array([2**53 + 1]), pa.float64()),
        (pa.array([2049]), pa.float16()),
        (pa.array([dt.datetime(2026, 1, 1, 0, 0, 0, 1)]), pa.timestamp("s")),
        (pa.array([dt.datetime(2026, 1, 1)]), pa.timestamp("us", "UTC")),
        (pa.array(["007"]), pa.int64()),
        (pa.array([1]), pa.string()),
        (pa.array([decimal.Decimal("1.005")]), pa.decimal128(5, 2)),
        (pa.array([{"a": 1, "b": 2}]), pa.struct({"a": pa.int64()})),
        (pa.array([b"\xff"]), pa.string()),
    ],
    ids=lambda one: str(getattr(one, "type", one)),
)
def test_arrow_columns_against_declared_types(column: pa.Array, want: pa.DataType) -> None:
    """A column that the declared type would change is an error that names column, row and value."""
    declared = pa.schema(
        [*Row.to_arrow_schema().remove(2).remove(2), pa.field("x", want)], metadata=Row.to_arrow_schema().metadata
    )
    table = pa.table({"text": [None, "a"], "x": pa.concat_arrays([pa.nulls(1, column.type), column])})
    with pytest.raises(InputError, match=r"column 'x' is .*, the schema has .*: row 1"):
        embed_table(table, declared)


def test_a_query_is_one_text() -> None:
    """Several queries, or none at all, are refused by name."""
    for wrong in (["a", "b"], ("a",), pl.Series(["a"]), {"a": 1}, 5, b"a"):
        with pytest.raises(InputError, match="a query is one text, not a"):
            embedreg.embed_query(FN, wrong)


def test_embed_takes_files() -> None:
    """A frame is not a path; the error names the function that accepts it."""
    with pytest.raises(InputError, match="src is a DataFrame") as caught:
        embedreg.embed(pd.DataFrame({"text": ["a"]}), "out", BIND)  # type: ignore[arg-type]
    assert "embed_table" in str(caught.value.hint)


def test_a_given_column_that_holds_no_vectors() -> None:
    """Vectors of another width are refused with both widths, by row if the schema has the width."""
    rows = [{"text": "a", "vector": [1, 2, 3, 4]}, {"text": "b", "vector": [1, 2]}]
    with pytest.raises(VectorError, match="vectors of 2 dimensions"):
        embed_table(rows, BIND)
    with pytest.raises(InputError, match="row 1: a list of 2"):
        embed_table(rows, Row)


def test_models_of_several_classes() -> None:
    """Rows of several models and dicts have the keys of all of them."""

    class One(BaseModel):
        text: str
        a: int = 1

    class Two(BaseModel):
        text: str
        b: float = 0.5

    def rows() -> Iterator[Any]:
        yield from (One(text="x"), Two(text="y"), {"text": "z", "a": 2.5})

    assert kept(embed_table(rows(), BIND)) == [
        {"text": "x", "a": 1, "b": None},
        {"text": "y", "a": None, "b": 0.5},
        {"text": "z", "a": 2.5, "b": None},
    ]


@pytest.mark.parametrize("form", ["rows", "column"])
@pytest.mark.parametrize(
    "value",
    [
        np.datetime64(2**61, "s"),
        np.datetime64(2**61, "Y"),
        np.datetime64(2**63 - 1, "W"),
        np.timedelta64(2**40, "D"),
        np.timedelta64(-(2**62), "h"),
    ],
    ids=repr,
)
def test_a_time_of_numpy_that_64_bits_do_not_hold_is_named(value: Any, form: str) -> None:
    """Of itself, numpy makes a time near 1970 of it without a word."""
    array = np.array([value])
    if form == "rows":
        with pytest.raises(InputError, match=r"row 0: .* is out of range"):
            embed_table([{"text": "a", "at": value}], BIND)
    elif np.datetime_data(array.dtype)[0] == "s":  # Arrow has a type for it
        assert embed_table({"text": ["a"], "at": array}, BIND)["at"][0].value == 2**61
    else:
        with pytest.raises(InputError, match=r"row 0: .* is out of range"):
            embed_table({"text": ["a"], "at": array}, BIND)


def test_a_time_in_steps_of_several_units_is_that_time() -> None:
    """A `datetime64[25s]` counts 25 seconds."""
    times = np.array([2], "datetime64[25s]")
    for data in ({"text": ["a"], "at": times}, [{"text": "a", "at": times[0]}]):
        assert embed_table(data, BIND)["at"].to_pylist() == [dt.datetime(1970, 1, 1, 0, 0, 50)]
    fine = embed_table([{"text": "a", "at": np.datetime64(5, "7ns")}], BIND)
    assert fine["at"][0].value == 35


@pytest.mark.parametrize("view", [pa.list_view, pa.large_list_view])
def test_list_views_keep_their_items(view: Any) -> None:
    """As a declared list, and beside a table with lists of another type; Arrow's own cast loses some."""
    array = pa.array([[9], [1, 2], None, [], [3]], view(pa.int8()))[1:]
    assert cast_exactly(array, pa.list_(pa.int64())).to_pylist() == [[1, 2], None, [], [3]]
    tables = [pa.table({"text": ["a"], "v": pa.array([items])}) for items in ([1000], [7])]
    given = pa.table({"text": ["b"] * 4, "v": array})
    assert embed_table([given, *tables], BIND)["v"].to_pylist() == [[1, 2], None, [], [3], [1000], [7]]


def test_a_stream_rounds_no_float_to_a_type_that_nobody_declared() -> None:
    """Its first rows happened to be narrow floats; the vectors and what a Schema declares are rounded as ever."""
    narrow, wide = (pa.table({"text": ["a"], "v": pa.array([0.1], kind)}) for kind in (pa.float32(), pa.float64()))
    with pytest.raises(InputError, match=r"'v' .* row 1: 0\.1 is not float"):
        embed_batches(iter([narrow, wide]), BIND).read_all()
    assert embed_table(iter([narrow, wide]), BIND)["v"].to_pylist() == [float(np.float32(0.1)), 0.1]
    rows = [{"text": "a", "v": np.ones(2, np.float32)}] * 3
    with pytest.raises(InputError, match=r"'v' .* row 3 at \[\]: 0\.1 is not float"):
        embed_batches(iter([*rows, {"text": "b", "v": [1, 0.1]}]), BIND, batch_rows=2).read_all()
    made = embed_batches(iter([*rows, {"text": "b", "v": [1, 0.5]}]), BIND, batch_rows=2).read_all()
    assert made["v"].to_pylist() == [[1.0, 1.0]] * 3 + [[1.0, 0.5]]
    vectors = [pa.table({"text": ["a"], "vector": pa.array([[0.1] * 4], pa.list_(kind, 4))}) for kind in (F32, F64)]
    assert embed_batches(iter(vectors), BIND).read_all()["vector"].to_pylist() == [[float(np.float32(0.1))] * 4] * 2


def test_times_beyond_pythons_years_are_named_as_numbers() -> None:
    """They cannot be printed, but be kept, or be named."""
    seconds = pa.table({"text": ["a"], "id": pa.array([2**50], pa.timestamp("s"))})
    nanos = pa.table({"text": ["b"], "id": pa.array([1], pa.timestamp("ns"))})
    with pytest.raises(InputError, match="1125899906842624"):
        embed_table([seconds, nanos], BIND)
    with pytest.raises(InputError, match="1125899906842624"):
        embed_table([pa.table({"text": ["a"], "id": [1]}), seconds], BIND)
    broken = seconds.set_column(0, "text", pa.array([b"\xff"]).view(pa.string()))
    with pytest.raises(BadRowsError):
        embed_table(broken, BIND)


def test_a_memoryview_of_two_axes_is_a_column_of_lists() -> None:
    """As the numpy array over the same memory is."""
    assert embed_table({"text": ["a"], "v": memoryview(np.array([[1, 2]]))}, BIND)["v"].to_pylist() == [[1, 2]]


def test_declared_columns_of_a_stream_of_tables_are_read_wherever_they_come() -> None:
    """The first table need not have them; a default stands where a table lacks its column."""
    tables = [pa.table({"text": ["a"]}), pa.table({"text": ["b"], "n": [2], "lang": ["de"]}), pa.table({"text": ["c"]})]
    for data in (tables, iter(tables)):
        made = embed_batches(data, Row).read_all()
        assert (made["n"].to_pylist(), made["lang"].to_pylist()) == ([None, 2, None], ["en", "de", "en"])
    rows = [{"text": "a"}] * 8192 + [{"text": "b", "lang": "de"}] + [{"text": "a"}] * 8192
    assert embed_table(rows, Row)["lang"].to_pylist() == ["en"] * 8192 + ["de"] + ["en"] * 8192
    with pytest.raises(InputError, match="row 1 has 'other'"):
        embed_batches(iter([tables[0], pa.table({"text": ["b"], "other": [1]})]), Row).read_all()


@pytest.mark.parametrize(
    "data",
    [
        [{"text": "a", "\ud800": 1}],
        {"text": ["a"], "x\udfff": [1]},
        iter([{"text": "a", "\ud800": 1}]),
    ],
)
def test_a_column_name_that_is_not_unicode_is_named(data: Any) -> None:
    """In rows and columns, and as a column that is declared; pandas makes no such frame."""
    with pytest.raises(InputError, match=r"the column name '.*' is not valid Unicode"):
        list(embed_batches(data, BIND))
    with pytest.raises(embedreg.errors.ConfigError, match="expected a column name"):
        FN.bind("text", "\ud800")
