"""Tests of the configuration: it is a value, and can be rebuilt from a pickle and from metadata."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from embedreg.arrow.vectors import Embedded, given_vectors
from embedreg.core.base import EmbeddingFunction
from embedreg.core.canonical import registered_name
from embedreg.embedding.table import embed_table
from embedreg.registry import get_registry
from embedreg.security import addresses
from embedreg.testing.checks import Agreement, embed, flaw, require

__all__ = ["FROM_FIELDS", "ValueContract", "name_of"]

MAX_PICKLE_BYTES = 2**20  # a configuration is a few kilobytes; weights are megabytes
GROWTH_BYTES = 1024  # allowed growth of a pickle by use: enough for a cached number, not for vectors

SAME_VALUE = "compare fields only: keep state in private attributes (names with _), and define no __eq__ or __hash__"
FROM_FIELDS = (
    "set fields to the arguments that were passed, or to values that give the same when passed again; "
    "keep derived values in private attributes"
)


class ValueContract:
    """A function is equal by value, hashable, printable, and can be stored and rebuilt."""

    # -- a value ----------------------------------------------------------------------------------------------------

    def test_the_configuration_gives_an_equal_function(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """The output of `safe_model_dump`, through JSON and `create`, is an equal function, before and after use."""
        cls = type(function)
        before = hash(function)
        twin = cls.create(**json.loads(_json(function.safe_model_dump())))
        _require_equal(twin, function, "created from its own configuration")
        embed(function, list(inputs))
        _require_equal(twin, function, "created from the same configuration and not yet used")
        require(hash(function) == before, "use has changed its hash.", SAME_VALUE)
        require(
            function.__eq__(object()) is not True,
            f"an instance of {cls.__name__} equals anything.",
            "define no __eq__: the base compares type and fields",
        )

    def test_unknown_fields_are_refused(self, function: EmbeddingFunction) -> None:
        """A typo in `create(nmae=...)` is an error, never ignored and stored."""
        cls = type(function)
        if cls.model_config.get("extra") == "allow":
            pytest.skip(f"{cls.__name__} has extra='allow': every field is accepted")
        try:
            cls.create(**function.safe_model_dump(), embedreg_no_such_field=1)
        except Exception:  # noqa: BLE001 (any error is accepted: a custom signature raises a TypeError)
            return
        raise flaw(
            f"{cls.__name__}.create(embedreg_no_such_field=1) was accepted.",
            "pass all of **kwargs to super().__init__(**kwargs), which refuses unknown fields",
        )

    def test_copies_are_equal(self, function: EmbeddingFunction) -> None:
        """`copy`, `deepcopy` and `model_copy` return equal functions."""
        for name, twin in (
            ("copy.copy", copy.copy(function)),
            ("copy.deepcopy", copy.deepcopy(function)),
            ("model_copy", function.model_copy()),
        ):
            _require_equal(twin, function, f"made by {name}")

    def test_pickles_rebuild_the_function(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """An unpickled function equals the pickled one and returns the same vectors."""
        twin = pickle.loads(_pickled(function))
        _require_equal(twin, function, "unpickled")
        agree(embed(twin, list(inputs)), embed(function, list(inputs)), "the function and its pickle", FROM_FIELDS)

    def test_pickles_carry_no_weights(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """A pickle contains only the configuration, before and after use."""
        unused = len(_pickled(copy.copy(function)))
        embed(function, list(inputs))
        used = len(_pickled(function))
        hint = (
            "keep the model in a private attribute, or share it with embedreg.runtime.cache.get(key, load); "
            "define no __reduce__ or __getstate__"
        )
        require(used <= unused + GROWTH_BYTES, f"its pickle grows by use, from {unused} to {used} bytes.", hint)
        require(used <= MAX_PICKLE_BYTES, f"its pickle has {used} bytes: more than a configuration.", hint)

    # -- stored and rebuilt -----------------------------------------------------------------------------------------

    def test_it_is_registered(self, function: EmbeddingFunction) -> None:
        """Its class is registered, and its name resolves to it."""
        name = name_of(function)
        found = get_registry().get(name)
        require(
            found is type(function),
            f"{name!r} is registered for {_path(found)}, expected {_path(type(function))}.",
            "register each class under its own name",
        )

    def test_it_describes_itself(self, function: EmbeddingFunction) -> None:
        """Its schema, traits and identity are available and have a JSON form."""
        _json(type(function).model_json_schema())
        _json(function.vector_traits())
        identity = function.model_identity()
        require(
            identity is None or (isinstance(identity, str) and not addresses.is_path(identity)),
            f"model_identity() gave {type(identity).__name__} or a path.",
            "return a revision or a hash of the weights, or None if neither is known: a path is meaningless elsewhere",
        )

    def test_a_table_carries_it(self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement) -> None:
        """`embed_table` fills a column with its vectors and declares it in the table's schema."""
        name_of(function)
        table = embed_table({"source": [*inputs, None]}, function.bind("source", "vector"))
        column: Embedded = given_vectors(table["vector"].combine_chunks(), function.ndims(), "vector")[0]
        agree(
            column.matrix[:-1].astype("float64"),
            embed(function, list(inputs)),
            "the vectors in a table and those of the function",
            "return finite vectors within float32's range",
        )
        declared = get_registry().parse_functions(table.schema.metadata)["vector"].function
        _require_equal(declared, function, "read back from the table")


def _require_equal(twin: EmbeddingFunction, function: EmbeddingFunction, how: str) -> None:
    require(
        type(twin) is type(function), f"a function {how} is a {type(twin).__name__}.", "define no __new__ or __reduce__"
    )
    before, after = function.raw_fields(), twin.raw_fields()
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    require(not changed, f"a function {how} has other values of {', '.join(changed)}.", FROM_FIELDS)
    require(twin == function, f"a function {how} has the same fields but is not equal.", SAME_VALUE)
    require(hash(twin) == hash(function), f"a function {how} is equal but has another hash.", SAME_VALUE)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise flaw(f"its description has no JSON form: {exc}.", "use str, numbers, lists and dicts") from None


def _pickled(function: EmbeddingFunction) -> bytes:
    try:
        return pickle.dumps(function)
    except Exception as exc:
        raise flaw(
            f"{type(function).__name__} cannot be pickled: {exc}.",
            "define the class at the top level of a module: other processes must be able to import it",
        ) from exc


def name_of(function: EmbeddingFunction) -> str:
    """Return the registered name of a function's class, or fail the test."""
    cls = type(function)
    name = registered_name(cls)
    if name is None:
        raise flaw(
            f"{cls.__name__} is registered under no name, so the declaration in a table could never be read back.",
            f"put @embedreg.register('my-name') above class {cls.__name__}; in a plug-in with an entry point, let the "
            "fixture return embedreg.get('my-name').create(...)",
        )
    return name


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
