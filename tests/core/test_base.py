"""The contract's base: LanceDB-style subclasses, what is refused, how an instance came to be, declarations."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import PrivateAttr, field_validator

import embedreg
from embedreg import EmbeddingFunctionConfig, get_registry
from embedreg.core.base import from_stored
from embedreg.errors import ConfigError, EmbedregError, MissingVariableError
from tests.function_styles import (
    Cached,
    Checked,
    Guide,
    Heavy,
    Lengths,
    Mixed,
    Named,
    Open,
    Own,
)

registry = get_registry()


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` is set."""
    registry.set_var("key", "sk-live-0123456789")


def test_the_class_of_lancedbs_guide_works_unchanged() -> None:
    """`_ndims`, `cachetools.cached` on a method and lists as results; equal instances share what is cached."""
    Guide.loads.clear()
    function = Guide.create(name="guide-1")
    assert function.ndims() == 2
    assert function.compute_query_embeddings("four") == [[4.0, 1.0]]
    assert function.compute_source_embeddings(pa.array(["a", "bb"])) == [[1.0, 1.0], [2.0, 1.0]]
    assert Guide.create(name="guide-1").ndims() == 2
    assert Guide.loads == ["guide-1"]


def test_a_class_that_loads_in_init_works_unchanged() -> None:
    """`*args`, private attributes with and without default, and Arrow input turned into rows."""
    function = Heavy.create(name="ViT-L-14")
    assert len(function._model) == 10_000
    assert function.compute_source_embeddings(pa.chunked_array([["a"], ["b"]])) == [[0.0], [0.0]]
    assert function.compute_query_embeddings_with_retry("a") == [[0.0]]


def test_caches_on_methods_keep_working() -> None:
    """`cached_property` computes once; lru_cache and cachetools keep their own interface beside the guard."""
    function = Cached(dim=5)
    assert function.client is function.client
    assert (function.ndims(), Cached(dim=5).ndims(), Cached(dim=6).ndims()) == (5, 5, 6)
    assert Cached.ndims.cache_info().hits >= 1  # type: ignore[attr-defined]
    assert function.model() is Cached(dim=5).model()
    assert Cached.model.cache_info().hits == 1  # type: ignore[attr-defined]
    assert function.answer("a") is function.answer("a") is not function.answer("b")


def test_assigning_in_init_and_later_is_allowed() -> None:
    """The base is not frozen: a field may be assigned, and counts in the value from then on."""
    function = Lengths()
    function.dim = 9
    assert function.ndims() == 9
    assert function == Lengths(dim=9)
    assert copy.copy(function).dim == 9
    assert pickle.loads(pickle.dumps(function)).dim == 9


def test_lists_and_dicts_are_the_instances_own() -> None:
    """Reading twice gives one object, changing it in place lasts, and a copy's changes are its own."""
    given = {"a": [1]}
    function = Lengths(options=given)
    assert function.options is function.options
    function.options["b"] = 2
    assert function.options == {"a": [1], "b": 2}
    twin = copy.deepcopy(function)
    twin.options["a"].append(2)
    assert function.options["a"] == [1]
    assert function.safe_model_dump() == {"options": {"a": [1]}}


def test_safe_model_dump_is_what_was_passed() -> None:
    """As LanceDB's: no defaults, references as they were written, and a copy."""
    function = Lengths.create(name="x", api_key="$var:key", options={"a": {"b": 1}})
    dumped = function.safe_model_dump()
    assert dumped == {"name": "x", "api_key": "$var:key", "options": {"a": {"b": 1}}}
    dumped["options"]["a"]["b"] = 2
    assert function.safe_model_dump()["options"]["a"]["b"] == 1
    assert Lengths.create(**function.safe_model_dump()) == function


def test_a_method_from_a_mixin_is_guarded() -> None:
    """Wherever a contract method comes from, no secret leaves through it."""
    with pytest.raises(EmbedregError, match=r"refused \*\*\*"):
        Mixed(api_key="$var:key").generate_embeddings(["a"])


def test_overriding_and_calling_super_keeps_the_order() -> None:
    """A guard adds nothing between a method and the one that it overrides; results pass through as they are."""

    class Louder(Lengths):
        def generate_embeddings(self, texts: Any) -> Any:
            return super().generate_embeddings(texts) * 2

    result = Louder(dim=1).compute_source_embeddings(["abc"])
    assert isinstance(result, np.ndarray)
    assert result.tolist() == [[6.0]]


def test_a_generator_of_vectors_runs_inside_the_guard() -> None:
    """An iterator that a method of the contract returns comes out as a list."""

    class Lazy(Lengths):
        def generate_embeddings(self, texts: Any) -> Iterator[list[float]]:
            return map(lambda text: [float(len(text))] * 2, texts)  # noqa: C417 (an iterator is the point)

    assert Lazy().generate_embeddings(["a", "bb"]) == [[1.0, 1.0], [2.0, 2.0]]


def test_embedregs_own_private_names_cannot_be_taken() -> None:
    """A private attribute of the same name would be overwritten in silence; LanceDB's two may be declared."""

    class Fine(Lengths):
        _ndims: int | None = PrivateAttr(default=3)
        _original_args: dict[str, Any] = PrivateAttr(default_factory=dict)

    assert Fine()._ndims == 3
    with pytest.raises(ConfigError, match="declares _declared, which is embedreg's own"):

        class Taken(Lengths):
            _declared: bool = PrivateAttr(default=False)


def test_vector_traits_ignore_a_method_called_normalize() -> None:
    """`normalized` is a flag where the class has one, else unknown."""

    class Method(Lengths):
        def normalize(self) -> None:
            raise AssertionError

    class Flag(Lengths):
        normalize: bool = True

    assert Method().vector_traits() == {"dtype": "float32", "normalized": None}
    assert Flag().vector_traits()["normalized"] is True


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", [Lengths.create, Lengths, lambda **config: Lengths().model_copy(update=config)])
def test_a_typo_is_refused_with_a_suggestion(door: Any) -> None:
    """In `create`, the constructor and `model_copy`: the field that was meant, and all there are."""
    with pytest.raises(ConfigError) as caught:
        door(nmae="x")
    assert "Lengths has no field 'nmae'" in str(caught.value)
    assert "did you mean 'name'?" in str(caught.value)
    assert "api_key, dim, max_retries, name, options" in str(caught.value)


def test_a_typo_in_a_constructors_own_parameters_is_refused_alike() -> None:
    """Not as a bare TypeError about `__init__`."""
    with pytest.raises(ConfigError, match=r"no field 'sise'\.\nHint: did you mean 'size'"):
        Own(sise=3)  # type: ignore[call-arg]


def test_a_typo_in_an_assignment_is_refused_alike() -> None:
    """Only fields, properties and private attributes can be set."""
    function = Lengths()
    with pytest.raises(ConfigError, match="did you mean 'name'"):
        function.nmae = "x"  # type: ignore[attr-defined]
    Open().nmae = "x"  # type: ignore[attr-defined]


def test_a_recursive_configuration_is_refused() -> None:
    """A dict that holds itself, or is nested some thousand times."""
    circle: dict[str, Any] = {}
    circle["again"] = circle
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"deeper": deep}
    for options in (circle, deep):
        with pytest.raises(ConfigError, match="nested too deeply, or holds itself"):
            Lengths.create(options=options)


def test_a_wrong_value_is_refused_by_the_name_of_its_field() -> None:
    """Every problem is named; a validator's own words are kept; a registered class is described by its alias."""
    with pytest.raises(
        ConfigError, match=r"dim: Input should be a valid integer.*; options: Input should be a valid dict"
    ):
        Lengths(dim="many", options=3)
    with pytest.raises(ConfigError, match="configuration: Value error, low is above high"):
        Checked(low=3)
    embedreg.register("described-lengths")(Lengths)
    with pytest.raises(ConfigError, match=r"describe\('described-lengths'\)"):
        Lengths(dim="many")


def test_an_error_of_embedregs_own_inside_a_validator_stays_itself() -> None:
    """Pydantic would wrap it; callers get what was raised."""

    class Picky(Lengths):
        @field_validator("name")
        @classmethod
        def check(cls, value: str) -> str:
            raise ConfigError("no such model.", "try another")

    with pytest.raises(ConfigError) as caught:
        Picky(name="x")
    assert str(caught.value) == "no such model.\nHint: try another"


@pytest.mark.parametrize("value", [None, 3, "text", ["a"]])
def test_model_validate_takes_mappings_and_instances(value: Any) -> None:
    """An instance comes back as it is; anything else is refused as a ConfigError."""
    function = Lengths()
    assert Lengths.model_validate(function) is function
    assert Lengths.model_validate({"dim": 4}).dim == 4
    with pytest.raises(ConfigError, match="must be a dict"):
        Lengths.model_validate(value)


def test_fields_are_taken_by_name_and_by_alias() -> None:
    """Stored configurations have names, callers may use either; nothing is ignored in silence."""
    assert Named(dimensions=3).size == Named(size=3).size == 3  # type: ignore[call-arg]
    assert Named(model_id="x").model == Named(modelName="x").model == Named(model="x").model == "x"  # type: ignore[call-arg]
    assert Named(dimensions=3).model_copy(update={"size": 4}).size == 4  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="did you mean 'dimensions'"):
        Named(dimension=3)  # type: ignore[call-arg]


def test_extra_fields_count_where_a_class_allows_them() -> None:
    """They are part of the value, of copies and of what was passed."""
    function = Open(colour="red")  # type: ignore[call-arg]
    assert function.colour == "red"  # type: ignore[attr-defined]
    assert function != Open(colour="blue")  # type: ignore[call-arg]
    assert function.model_copy(update={"colour": "blue"}) == Open(colour="blue")  # type: ignore[call-arg]
    assert function.safe_model_dump() == {"colour": "red"}
    assert "colour='red'" in repr(function)
    with pytest.raises(AttributeError):
        _ = function.shape  # type: ignore[attr-defined]


# -- how it came to be -------------------------------------------------------------------------------------------------


def test_from_metadata_is_set_on_instances_from_metadata() -> None:
    """In its own `__init__` too, and its copies; an instance of the user's own does not."""
    seen: list[bool] = []

    class Asking(Lengths):
        def __init__(self, **config: Any) -> None:
            seen.append(self.from_metadata)
            super().__init__(**config)

    function = from_stored(Asking, {"dim": 3}, "asking", {"odd": 1})
    assert seen == [True]
    assert function.from_metadata
    assert copy.copy(function).from_metadata
    assert function.model_copy(update={"dim": 4}).from_metadata
    assert function._unknown == {"odd": 1}
    assert copy.copy(function)._unknown == {"odd": 1}
    assert not Asking().from_metadata


def test_a_missing_variable_in_metadata_fails_only_when_read() -> None:
    """A table can be opened without its key; a user's own `create` fails at once."""
    function = from_stored(Lengths, {"api_key": "$var:nobody"}, "lengths", {})
    with pytest.raises(MissingVariableError, match="'nobody' is not set"):
        _ = function.api_key  # type: ignore[attr-defined]
    registry.set_var("nobody", "set now")
    assert function.api_key == "set now"  # type: ignore[attr-defined]
    with pytest.raises(MissingVariableError):
        Lengths.create(api_key="$var:somebody")


def test_a_helper_of_another_class_belongs_to_the_user() -> None:
    """Instances built inside a constructor do not count as from metadata, unless they are of the same class."""

    class Outer(Lengths):
        _inner: Any = None

        def model_post_init(self, context: Any) -> None:
            self._inner = Heavy()

    function = from_stored(Outer, {}, "outer", {})
    assert function.from_metadata
    assert not function._inner.from_metadata  # type: ignore[attr-defined]


# -- declarations ------------------------------------------------------------------------------------------------------


def test_bind_declares_a_column() -> None:
    """The function itself is kept, not a copy; a declaration is picklable with it."""
    function = Lengths()
    config = function.bind("text", "vector")
    assert config.function is function
    assert (config.source_column, config.vector_column) == ("text", "vector")
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(("source", "vector"), [("", "v"), ("s", ""), (None, "v"), ("s", 3), ("same", "same")])
def test_invalid_column_names_are_refused(source: Any, vector: Any) -> None:
    """Empty names, other types, and one column for both."""
    with pytest.raises(ConfigError):
        Lengths().bind(source, vector)


def test_a_declaration_refuses_unknown_or_missing_values() -> None:
    """A typo, a missing column and an invalid function each raise an embedreg error."""
    function = Lengths()
    with pytest.raises(ConfigError, match="did you mean 'source_column'"):
        EmbeddingFunctionConfig(source_colum="s", vector_column="v", function=function)
    with pytest.raises(ConfigError, match="invalid source_column=None"):
        EmbeddingFunctionConfig(vector_column="v", function=function)
    with pytest.raises(ConfigError, match="needs an embedreg function, not str"):
        EmbeddingFunctionConfig(source_column="s", vector_column="v", function="hashing")
