"""Schemas: types, vectors, and which source fills which vector."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from pydantic import BaseModel, Field, ValidationError

import embedreg
from embedreg import Schema, Vector
from embedreg.errors import SchemaError
from tests.fakes import Lengths

fn = Lengths.create()
V3 = Vector(fn.ndims)
V3half = Vector(3, "float16")


class Colour(enum.Enum):
    """Two colours."""

    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    """A nested model."""

    a: int
    b: str | None = None


class Everything(Schema):
    """One field of each type."""

    text: str = fn.SourceField(description="what is embedded")
    vector: V3 = fn.VectorField()
    i: int
    f: float
    flag: bool
    data: bytes
    day: dt.date
    when: dt.datetime
    clock: dt.time
    span: dt.timedelta
    price: decimal.Decimal
    key: uuid.UUID
    words: list[str]
    numbers: tuple[int, ...]
    maybe: list[int | None] | None
    inner: Inner
    inners: list[Inner]
    colour: Colour
    mode: Literal["a", "b"]
    noted: Annotated[str, Field(max_length=3)]
    optional: str | None = None
    plain: V3half | None = None


def test_each_type_has_its_arrow_counterpart() -> None:
    """A Schema's Arrow types are those of its annotations, nullable where None may stand."""
    inner = pa.struct([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())])
    expected = {
        "text": pa.string(),
        "vector": pa.list_(pa.float32(), 3),
        "i": pa.int64(),
        "f": pa.float64(),
        "flag": pa.bool_(),
        "data": pa.binary(),
        "day": pa.date32(),
        "when": pa.timestamp("us"),
        "clock": pa.time64("us"),
        "span": pa.duration("us"),
        "price": pa.decimal128(38, 18),
        "key": pa.string(),
        "words": pa.list_(pa.field("item", pa.string())),
        "numbers": pa.list_(pa.field("item", pa.int64())),
        "maybe": pa.list_(pa.field("item", pa.int64())),
        "inner": inner,
        "inners": pa.list_(pa.field("item", inner)),
        "colour": pa.string(),
        "mode": pa.string(),
        "noted": pa.string(),
        "optional": pa.string(),
        "plain": pa.list_(pa.float16(), 3),
    }
    schema = Everything.to_arrow_schema()
    assert {field.name: field.type for field in schema} == expected
    assert {field.name for field in schema if field.nullable} == {"vector", "maybe", "optional", "plain"}
    assert b"embedding_functions" in schema.metadata


def test_pydantic_still_validates_and_describes() -> None:
    """A Schema is a pydantic model: numpy vectors are taken, wrong widths refused, no marker is in its JSON schema."""

    class Row(Schema):
        text: str = fn.SourceField()
        vector: V3 = fn.VectorField()

    assert Row(text="x", vector=np.array([1, 2, 3.0])).vector == [1.0, 2.0, 3.0]
    assert Row(text="x").vector is None
    with pytest.raises(ValidationError):
        Row(text="x", vector=[1.0])
    described = Row.model_json_schema()
    assert set(described["properties"]["text"]) == {"title", "type"}
    assert "column_for" not in str(described)
    assert described["properties"]["vector"]["maxItems"] == 3


@pytest.mark.parametrize("dim", [0, -1, True, 2.5, "3", None])
def test_a_vector_needs_a_positive_number_of_dimensions(dim: Any) -> None:
    """Vector() refuses invalid dimensions, also as the result of a callable."""
    with pytest.raises(SchemaError, match="positive number of dimensions"):
        Vector(dim)
    with pytest.raises(SchemaError, match="positive number of dimensions"):
        Vector(lambda: dim)


@pytest.mark.parametrize("value_type", ["float16", np.float16, pa.float16()])
def test_value_types_are_named_as_the_user_likes(value_type: Any) -> None:
    """A float16 vector can be declared by name, by numpy type and by Arrow type."""
    assert Vector(2, value_type).value_arrow_type() == pa.float16()


def test_other_value_types_are_refused() -> None:
    """A list of integers is not a vector, but for quantised ones."""
    with pytest.raises(SchemaError, match="cannot hold 'int16'"):
        Vector(3, "int16")


def test_list_of_float_takes_the_width_of_the_function() -> None:
    """`list[float]`, which type checkers understand, gets the function's own width."""

    class Row(Schema):
        text: str = fn.SourceField()
        vector: list[float] = fn.VectorField()

    assert Row.to_arrow_schema().field("vector").type == pa.list_(pa.float32(), 3)


def test_a_wrong_width_is_refused_when_the_class_is_made() -> None:
    """Vector(4) for a function of three dimensions never becomes a class."""
    four = Vector(4)
    with pytest.raises(SchemaError, match=r"Row\.vector is declared with 4 dimensions, its function returns 3"):

        class Row(Schema):
            text: str = fn.SourceField()
            vector: four = fn.VectorField()  # type: ignore[valid-type]


@pytest.mark.parametrize("annotation", [dict[str, int], Any, complex, list, int | str, Literal["a", 1]])
def test_types_without_a_counterpart_are_refused(annotation: Any) -> None:
    """A type that Arrow cannot hold is named when the class is made, with what can be used."""
    with pytest.raises(SchemaError, match=r"Row\.odd|mixes values"):
        type("Row", (Schema,), {"__annotations__": {"odd": annotation}, "__module__": __name__})


def test_ambiguous_pairs_are_refused_with_a_hint() -> None:
    """Two sources of one function and a vector that does not say which are refused, with how to say it."""
    with pytest.raises(SchemaError, match="could belong to any of the sources 'title', 'body'") as caught:

        class Row(Schema):
            title: str = fn.SourceField()
            body: str = fn.SourceField()
            vector: V3 = fn.VectorField()

    assert caught.value.hint == "name it: vector: ... = fn.VectorField(source='title')"


def test_explicit_pairs_work() -> None:
    """Several sources and several vectors of one function pair as declared."""

    class Row(Schema):
        title: str = fn.SourceField()
        body: str = fn.SourceField()
        title_vector: V3 = fn.VectorField(source="title")
        body_vector: V3 = fn.VectorField(source="body")

    assert [(c.source_column, c.vector_column) for c in Row.parse_embedding_functions()] == [
        ("title", "title_vector"),
        ("body", "body_vector"),
    ]
    table = embedreg.embed_table([{"title": "ab", "body": "one two"}], Row)
    assert table["title_vector"].to_pylist() == [[2, 1, 1]]
    assert table["body_vector"].to_pylist() == [[7, 3, 2]]


def test_one_source_may_fill_several_vectors() -> None:
    """One source with two vectors of one function, or of two functions, is not ambiguous."""
    double = Lengths.create(scale=2)

    class Row(Schema):
        text: str = fn.SourceField()
        a: V3 = fn.VectorField()
        b: V3 = fn.VectorField()

    assert {c.source_column for c in Row.parse_embedding_functions()} == {"text"}
    made = embedreg.embed_table([{"text": "ab"}], [fn.bind("text", "a"), double.bind("text", "b")])
    assert (made["a"].to_pylist(), made["b"].to_pylist()) == ([[2, 1, 1]], [[4, 2, 2]])


def test_pairing_is_by_instance_not_by_equality() -> None:
    """Two equal instances are two functions to a schema, as in LanceDB."""
    one, two = Lengths.create(), Lengths.create()

    class Row(Schema):
        a: str = one.SourceField()
        b: str = two.SourceField()
        va: V3 = one.VectorField()
        vb: V3 = two.VectorField()

    assert one == two
    assert [(c.source_column, c.vector_column) for c in Row.parse_embedding_functions()] == [("a", "va"), ("b", "vb")]


def test_a_vector_without_a_source_is_refused() -> None:
    """A vector field whose function has no source field, or that names a field which is not a source, is refused."""
    with pytest.raises(SchemaError, match="has no source field of the same function instance"):

        class Alone(Schema):
            vector: V3 = fn.VectorField()

    with pytest.raises(SchemaError, match="names the source 'txt', which is not a source field of its function"):

        class Wrong(Schema):
            text: str = fn.SourceField()
            vector: V3 = fn.VectorField(source="txt")


def test_schemas_inherit_their_pairs() -> None:
    """A subclass of a Schema keeps the declarations and may add to them."""

    class Base(Schema):
        text: str = fn.SourceField()
        vector: V3 = fn.VectorField()

    class More(Base):
        title: str
        second: V3 = fn.VectorField(source="text")

    assert [c.vector_column for c in More.parse_embedding_functions()] == ["vector", "second"]


def test_other_types_are_not_schemas() -> None:
    """What declares no function is refused by name, with what may be passed."""
    for wrong in ("text", 3, {"a": 1}, [1, 2], object()):
        with pytest.raises(SchemaError, match="declares no embedding functions"):
            embedreg.embed_table([{"text": "a"}], wrong)


def test_a_column_is_declared_once() -> None:
    """Two declarations of one vector column are refused."""
    with pytest.raises(embedreg.EmbedregError, match="two functions are declared for the vector column 'v'"):
        embedreg.embed_table([{"text": "a"}], [fn.bind("text", "v"), fn.bind("text", "v")])
