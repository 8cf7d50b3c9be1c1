"""Declarations in LanceDB's own models: what a field says is what the table holds, and what is ambiguous is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional

import lancedb.embeddings
import lancedb.pydantic
import numpy as np
import pyarrow as pa
import pytest
from lancedb.pydantic import LanceModel
from pydantic import Field

import embedreg
from embedreg import EmbeddingFunctionConfig, Vector
from embedreg.declaration import codec
from embedreg.errors import ConfigError, SchemaError
from tests.engines.lancedb_functions import Letters, counts

FN = embedreg.get("letter-counts").create()
WIDTH = FN.ndims()


def filled(db: Any, model: Any, **row: Any) -> dict[str, Any]:
    """Create a table for a model, add one row, and return what is stored."""
    table = db.create_table("t", schema=model)
    table.add([row])
    [stored] = table.to_arrow().to_pylist()
    return stored


class OurVector(LanceModel):
    """The usual form; annotations are strings in this module."""

    text: str = FN.SourceField()
    vector: Vector(WIDTH) = FN.VectorField()


class CallableWidth(LanceModel):
    """The number of dimensions is given as something to call."""

    text: str = FN.SourceField()
    vector: Vector(FN.ndims) = FN.VectorField()


class TheirVector(LanceModel):
    """The vector type is lancedb's own."""

    text: str = FN.SourceField()
    vector: lancedb.pydantic.Vector(WIDTH) = FN.VectorField()


class PlainList(LanceModel):
    """The vector is a list of floats, as static type checkers like it."""

    text: str = FN.SourceField()
    vector: list[float] = FN.VectorField()


class OptionalFields(LanceModel):
    """Text and vector may be missing."""

    text: Optional[str] = FN.SourceField(default=None)  # noqa: UP045 - the older spelling, which users have
    vector: Vector(WIDTH) | None = FN.VectorField()


class InAnnotations(LanceModel):
    """The markers stand in the annotations."""

    text: Annotated[str, FN.SourceField()]
    vector: Annotated[Vector(WIDTH) | None, FN.VectorField()] = None


class Merged(LanceModel):
    """Two sets of extras on each field, which pydantic merges."""

    text: Annotated[str, Field(json_schema_extra={"x": 1})] = FN.SourceField(json_schema_extra={"y": 2})
    vector: Annotated[Vector(WIDTH) | None, Field(json_schema_extra={"x": 1})] = FN.VectorField()


class Inherited(OurVector):
    """Fields and pairs come from the parent."""

    title: str | None = None


ALL = [OurVector, CallableWidth, TheirVector, PlainList, OptionalFields, InAnnotations, Merged, Inherited]


@pytest.mark.parametrize("model", ALL)
def test_a_lance_model_fills_its_vector_and_answers_text(db: Any, model: Any) -> None:
    """Every spelling of the two fields makes a table that embeds rows and queries."""
    table = db.create_table("t", schema=model)
    table.add([{"text": "banana"}, {"text": "pepper"}])
    assert table.to_arrow()["vector"].to_pylist() == [counts("banana"), counts("pepper")]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), WIDTH)
    [hit] = table.search("a pepper").limit(1).to_list()
    assert hit["text"] == "pepper"
    [found] = table.search("a pepper").limit(1).to_pydantic(model)
    assert found.text == "pepper"
    assert list(found.vector) == counts("pepper")


@pytest.mark.parametrize("model", ALL)
def test_the_declaration_is_in_the_schema(model: Any) -> None:
    """A model's Arrow schema carries one entry per vector column, in the persisted form."""
    [entry] = codec.entries(model.to_arrow_schema().metadata)
    assert (entry.name, entry.source_column, entry.vector_column) == ("letter-counts", "text", "vector")
    assert entry.model["first"] == WIDTH
    assert entry.reserved["ndims"] == WIDTH


@pytest.mark.parametrize("model", [model for model in ALL if model is not Merged])
def test_the_json_schema_shows_no_function(model: Any) -> None:
    """A model's JSON schema holds nothing of embedreg; the user's own extras stay."""
    text = json.dumps(model.model_json_schema())
    for word in ("source_column_for", "vector_column_for", "embedreg", "letter-counts", "function"):
        assert word not in text.lower()


def test_the_users_own_extras_stay() -> None:
    """`json_schema_extra` of a marked field goes on into the JSON schema, merged or not."""

    class Extra(LanceModel):
        text: str = FN.SourceField(json_schema_extra={"note": "kept"}, description="prose")

    assert Extra.model_json_schema()["properties"]["text"]["note"] == "kept"
    assert Extra.model_json_schema()["properties"]["text"]["description"] == "prose"
    assert {"x": 1, "y": 2}.items() <= Merged.model_json_schema()["properties"]["text"].items()


def test_models_are_rows(db: Any) -> None:
    """Instances of the model can be added; a vector that they bring is left alone."""
    table = db.create_table("t", schema=OurVector)
    own = [1.0] * WIDTH
    table.add([OurVector(text="halo", vector=own)])
    table.add([OurVector(text="halo")])
    assert table.to_arrow()["vector"].to_pylist() == [own, counts("halo")]


# -- pairs -------------------------------------------------------------------------------------------------------------


class TwoSources(LanceModel):
    """One function, two sources, and a vector that does not say which."""

    title: str = FN.SourceField()
    body: str = FN.SourceField()
    vector: Vector(WIDTH) = FN.VectorField()


class TwoAnnotatedSources(LanceModel):
    """The same, in annotations."""

    title: Annotated[str, FN.SourceField()]
    body: Annotated[str, FN.SourceField()]
    vector: Annotated[list[float], FN.VectorField()]


class InheritedSource(OurVector):
    """The parent's vector became ambiguous."""

    body: str = FN.SourceField()


@pytest.mark.parametrize("model", [TwoSources, TwoAnnotatedSources, InheritedSource])
def test_ambiguous_pairs_are_refused(db: Any, model: Any) -> None:
    """The user sees our error itself, not one that lancedb has wrapped, and how to say which source is meant."""
    with pytest.raises(SchemaError, match=r"could belong to any of the sources .*\nHint: .*VectorField\(source="):
        db.create_table("t", schema=model)
    assert db.list_tables().tables == []


def test_a_refused_child_leaves_its_parent_as_it_was(db: Any) -> None:
    """Inheritance shares fields; the parent's own pair holds all the same."""
    with pytest.raises(SchemaError):
        InheritedSource.to_arrow_schema()
    assert filled(db, OurVector, text="halo")["vector"] == counts("halo")


def test_a_vector_without_a_source_is_refused() -> None:
    """Two equal functions are not one: the source must be marked with the very instance."""
    twin = Letters.create()

    class Strangers(LanceModel):
        text: str = twin.SourceField()
        vector: Vector(WIDTH) = FN.VectorField()

    with pytest.raises(SchemaError, match="no source field of the same function instance"):
        Strangers.to_arrow_schema()


def test_a_vector_of_another_width_is_refused() -> None:
    """LanceDB would store nulls; we refuse."""

    class Narrow(LanceModel):
        text: str = FN.SourceField()
        vector: Vector(3) = FN.VectorField()

    with pytest.raises(SchemaError, match=r"Narrow\.vector is stored as .*its function returns 26 dimensions"):
        Narrow.to_arrow_schema()


def test_several_sources_and_vectors_are_paired_as_said(db: Any) -> None:
    """Each vector is made from the source that it names, in defaults and in annotations."""

    class Said(LanceModel):
        title: str = FN.SourceField()
        body: Annotated[str, FN.SourceField()]
        title_vector: Vector(WIDTH) = FN.VectorField(source="title")
        body_vector: Annotated[list[float] | None, FN.VectorField(source="body")] = None

    row = filled(db, Said, title="ape", body="bee")
    assert (row["title_vector"], row["body_vector"]) == (counts("ape"), counts("bee"))


def test_one_source_fills_several_vectors_each_in_its_type(db: Any) -> None:
    """One function, one source, a precise and a compact vector."""

    class Both(LanceModel):
        text: str = FN.SourceField()
        precise: Vector(WIDTH) = FN.VectorField()
        compact: Vector(WIDTH, "float16") = FN.VectorField()

    row = filled(db, Both, text="banana")
    assert row["precise"] == row["compact"] == counts("banana")
    types = {field.name: field.type for field in db.open_table("t").schema}
    assert types["compact"].value_type == pa.float16()
    assert types["precise"].value_type == pa.float32()


def test_two_functions_in_one_model(db: Any) -> None:
    """Two functions pair their own columns, beside a function of lancedb's own."""
    short = Letters.create(first=3)

    @lancedb.embeddings.register("their-ones")
    class Ones(lancedb.embeddings.TextEmbeddingFunction):
        def ndims(self) -> int:
            return 2

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            return [np.ones(2, np.float32) for _ in texts]

    ones = lancedb.embeddings.get_registry().get("their-ones").create()

    class Two(LanceModel):
        text: str = FN.SourceField()
        title: str = short.SourceField()
        note: str = ones.SourceField()
        vector: Vector(WIDTH) = FN.VectorField()
        title_vector: Vector(3) = short.VectorField()
        note_vector: lancedb.pydantic.Vector(2) = ones.VectorField()

    row = filled(db, Two, text="ape", title="cab", note="x")
    assert (row["vector"], row["title_vector"], row["note_vector"]) == (counts("ape"), counts("cab", 3), [1, 1])


def test_an_unregistered_class_cannot_be_stored(db: Any) -> None:
    """Stock LanceDB would store no name, or the parent's, and the table could never be reopened."""

    class Unregistered(Letters):
        pass

    fn = Unregistered()

    class Model(LanceModel):
        text: str = fn.SourceField()
        vector: Vector(WIDTH) = fn.VectorField()

    with pytest.raises(ConfigError, match="Unregistered is not registered"):
        db.create_table("t", schema=Model)
    with pytest.raises(ConfigError, match="Unregistered is not registered"):
        db.create_table(
            "t",
            schema=pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float32(), WIDTH))]),
            embedding_functions=[EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=fn)],
        )


# -- float16 -----------------------------------------------------------------------------------------------------------


class Half(LanceModel):
    """float16 by default value."""

    text: str = FN.SourceField()
    vector: Vector(WIDTH, "float16") = FN.VectorField()


class OptionalHalf(LanceModel):
    """float16 within an Optional."""

    text: str = FN.SourceField()
    vector: Optional[Vector(WIDTH, pa.float16())] = FN.VectorField()  # noqa: UP045 - the older spelling


class AnnotatedHalf(LanceModel):
    """float16 in an annotation that holds the marker."""

    text: Annotated[str, FN.SourceField()]
    vector: Annotated[Vector(WIDTH, np.float16), FN.VectorField()]


class TheirHalf(LanceModel):
    """float16 in lancedb's own vector type."""

    text: str = FN.SourceField()
    vector: lancedb.pydantic.Vector(WIDTH, pa.float16()) = FN.VectorField()


def test_float16_columns_are_filled_before_and_after_reopening(db: Any, new_process: Any) -> None:
    """The column's own type decides what lancedb is handed, in this process and in a new one."""
    for model in (Half, OptionalHalf, AnnotatedHalf, TheirHalf):
        table = db.create_table(model.__name__, data=[{"text": "banana"}], schema=model)
        assert table.to_arrow()["vector"].to_pylist() == [counts("banana")]
    new_process(
        """
import embedreg, lancedb, lancedb_functions
db = lancedb.connect(folder)
for name in db.list_tables().tables:
    table = db.open_table(name)
    table.add([{"text": "pepper"}])
    assert str(table.schema.field("vector").type.value_type) == "halffloat"
    assert table.to_arrow()["vector"].to_pylist()[1] == lancedb_functions.counts("pepper")
    assert table.search("a pepper").limit(1).to_list()[0]["text"] == "pepper"
assert len(db.list_tables().tables) == 4
"""
    )


def test_float16_columns_declared_apart_from_their_type_are_filled(db: Any) -> None:
    """`embedding_functions=[...]` beside a float16 schema: nothing but the column says its type."""
    schema = pa.schema([("text", pa.string()), ("vector", pa.list_(pa.float16(), WIDTH))])
    table = db.create_table("t", schema=schema, embedding_functions=[FN.bind("text", "vector")])
    table.add([{"text": "banana"}])
    assert table.to_arrow()["vector"].to_pylist() == [counts("banana")]
