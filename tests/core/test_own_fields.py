"""Fields that a class sets by itself are the class's, not the file's; what a schema states, no model is asked for."""

import json
from typing import Any

import pyarrow as pa
import pytest

import embedreg
from embedreg import TextEmbeddingFunction, register
from embedreg.core import vouched
from embedreg.errors import ConfigError, EmbedregError, UntrustedError
from tests.declared import LENGTHS, stored

HOSTS = {"prod": "https://prod.example.com/v1", "test": "https://test.example.com/v1"}
asked: list[str] = []


class Service(TextEmbeddingFunction):
    """A service's class as people write them for LanceDB."""

    url: str | None = None
    dim: int | None = None
    max_retries: int = 0

    def ndims(self) -> int:
        if self.dim is None:
            self.dim = 3
        return self.dim

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(str(self.url))
        return [[1.0, 2.0, 3.0] for _ in texts]


@register("own-ndims")
class SetsInNdims(Service):
    """Learns its width when it is asked for it."""


@register("own-init")
class SetsInInit(Service):
    """Takes its address from its own table."""

    stage: str = "prod"

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.url = HOSTS[self.stage]


@register("own-late")
class SetsLate(Service):
    """Takes its address from its own table when it is first asked for its width."""

    stage: str = "prod"

    def ndims(self) -> int:
        self.url = HOSTS[self.stage]
        return 3


def entry(name: str, **model: Any) -> dict[Any, Any]:
    """Declare a function in metadata."""
    return stored({**LENGTHS, "name": name, "model": model})


def test_a_created_instance_is_vouched_for_before_and_after_it_sets_fields() -> None:
    """Declared before its width was known, or after; the last one created wins; others are refused."""
    made = SetsInNdims.create(url="https://mine.example.com")
    declared = entry("own-ndims", url="https://mine.example.com")
    assert embedreg.functions_in(declared)["vector"].function is made
    assert made.ndims() == 3
    for model in ({}, {"dim": None}, {"dim": 3}):
        told = entry("own-ndims", url="https://mine.example.com", **model)
        assert embedreg.functions_in(told)["vector"].function is made
    for model in ({"dim": 4}, {"url": "https://evil.example.com"}):
        told = entry("own-ndims", **{"url": "https://mine.example.com", "dim": 3, **model})
        assert isinstance(embedreg.functions_in(told).problems["vector"], UntrustedError)


def test_fields_assigned_by_the_reader_are_part_of_the_configuration() -> None:
    """The declaration as it was created with is another function now."""
    made = SetsInNdims.create(url="https://mine.example.com")
    made.url = "https://other.example.com"
    assert embedreg.functions_in(entry("own-ndims", url="https://other.example.com"))["vector"].function is made
    assert "vector" in embedreg.functions_in(entry("own-ndims", url="https://mine.example.com")).problems


def test_a_table_of_lancedbs_takes_it_in_the_same_process(tmp_path: Any) -> None:
    """`create_table`, `add` and `search` by lancedb, which rebuilds the function each time."""
    lancedb = pytest.importorskip("lancedb")
    made = SetsInNdims.create(url="https://mine.example.com")

    class Notes(embedreg.Schema):
        text: str = made.SourceField()
        vector: embedreg.Vector(made.ndims()) = made.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("notes", schema=Notes.to_arrow_schema())
    table.add([{"text": "a"}])
    assert table.search("a").limit(1).to_list()[0]["text"] == "a"


@pytest.mark.parametrize("stage", ["prod", "test"])
@pytest.mark.parametrize("name", ["own-init", "own-late"])
def test_a_field_that_the_class_sets_needs_no_grant(name: str, stage: str) -> None:
    """In a process that created nothing: no stored value is used, and the class's own is."""
    vouched.reset()
    found = embedreg.functions_in(entry(name, stage=stage, url=HOSTS[stage]))
    assert not found.problems
    function = found["vector"].function
    again = embedreg.functions_in(entry(name, stage=stage, url=HOSTS[stage]))["vector"].function
    assert again is function  # a class may load its model in `__init__`
    asked.clear()
    assert embedreg.embed_table({"text": ["a"]}, found["vector"])["vector"].null_count == 0
    assert function.url == HOSTS[stage]
    assert set(asked) == {HOSTS[stage]}


@pytest.mark.parametrize("url", ["https://evil.example.com/v1", HOSTS["test"], "file:///etc", "/etc/passwd"])
def test_another_value_than_the_classs_is_refused(url: str) -> None:
    """When it is read, or where the class sets it in `ndims()` only, before anything is embedded."""
    vouched.reset()
    assert isinstance(embedreg.functions_in(entry("own-init", url=url)).problems["vector"], UntrustedError)
    assert isinstance(embedreg.functions_in(entry("own-ndims", url=url)).problems["vector"], UntrustedError)
    late = embedreg.functions_in(entry("own-late", url=url))["vector"]
    assert late.function.url is None
    asked.clear()
    for _ in range(2):
        with pytest.raises(UntrustedError):
            embedreg.embed_table({"text": ["a"]}, late)
    assert asked == []


# -- the width ---------------------------------------------------------------------------------------------------------


@register("own-absent")
class Absent(Service):
    """A model that is not here."""

    def ndims(self) -> int:
        raise OSError("no such model")


def test_a_width_in_the_schema_needs_no_model(tmp_path: Any) -> None:
    """The class, its Arrow schema, the declaration, LanceDB's table and model; embedding asks, and fails as it does."""
    lancedb = pytest.importorskip("lancedb")
    from lancedb.pydantic import LanceModel

    absent = Absent.create()

    class Notes(embedreg.Schema):
        text: str = absent.SourceField()
        vector: embedreg.Vector(3) = absent.VectorField()  # type: ignore[valid-type]

    class Theirs(LanceModel):
        text: str = absent.SourceField()
        vector: embedreg.Vector(3) = absent.VectorField()  # type: ignore[valid-type]

    [told] = json.loads(Notes.to_arrow_schema().metadata[b"embedding_functions"])
    assert told["model"]["embedreg"]["ndims"] == 3
    assert Notes.to_arrow_schema().field("vector").type == pa.list_(pa.float32(), 3)
    db = lancedb.connect(tmp_path)
    for name, schema in (("ours", Notes.to_arrow_schema()), ("theirs", Theirs)):
        assert db.create_table(name, schema=schema).schema.field("vector").type == pa.list_(pa.float32(), 3)
    with pytest.raises((EmbedregError, OSError)):
        embedreg.embed_table({"text": ["a"]}, Notes)


def test_without_a_width_in_the_schema_the_model_is_loaded() -> None:
    """`list[float]` says none."""
    absent = Absent.create()
    with pytest.raises(OSError, match="no such model"):

        class Notes(embedreg.Schema):
            text: str = absent.SourceField()
            vector: list[float] = absent.VectorField()


# -- JavaScript's spelling ---------------------------------------------------------------------------------------------


def test_options_of_a_users_own_function_are_stored_in_both_spellings() -> None:
    """JavaScript's client reads its own spelling only; both are read back as one, and must agree."""

    @register("own-prompts")
    class Prompts(Service):
        query_prompt: str = ""
        apikey: str | None = None

    function = Prompts.create(query_prompt="q: ", dim=3)
    [told] = json.loads(next(iter(embedreg.get_registry().get_table_metadata([function.bind("a", "b")]).values())))  # type: ignore[union-attr]
    assert told["model"]["query_prompt"] == told["model"]["queryPrompt"] == "q: "
    assert "maxRetries" not in told["model"]
    assert embedreg.functions_in(stored(told))["b"].function is function
    vouched.reset()
    del told["model"]["query_prompt"]
    again = embedreg.functions_in(stored(told))["b"].function
    assert again == function
    told["model"]["query_prompt"] = "other"
    assert isinstance(embedreg.functions_in(stored(told)).problems["b"], EmbedregError)
    assert not isinstance(embedreg.functions_in(stored(told)).problems["b"], ConfigError)
