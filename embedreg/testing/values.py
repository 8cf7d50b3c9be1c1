"""The promises about the configuration: it is a value, and it finds its way back from a pickle and from metadata."""

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
GROWTH_BYTES = 1024  # of a pickle by use: room for a number that is remembered, not for vectors

SAME_VALUE = (
    "let fields alone decide: keep state in private attributes (names with _), and define no __eq__ or __hash__"
)
FROM_FIELDS = (
    "set fields to what was passed, or to what gives the same when passed again; "
    "keep what is derived from them in private attributes"
)


class ValueContract:
    """Equal, hashable, printable, stored and rebuilt."""

    # -- a value ----------------------------------------------------------------------------------------------------

    def test_the_configuration_gives_an_equal_function(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """What `safe_model_dump` gives, through JSON and `create`, is an equal function, before use and after."""
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
            pytest.skip(f"{cls.__name__} says extra='allow': every field is known")
        try:
            cls.create(**function.safe_model_dump(), embedreg_no_such_field=1)
        except Exception:  # noqa: BLE001 (any refusal will do: a signature of its own gives a TypeError)
            return
        raise flaw(
            f"{cls.__name__}.create(embedreg_no_such_field=1) was accepted.",
            "hand all of **kwargs to super().__init__(**kwargs), which refuses what is no field",
        )

    def test_copies_are_equal(self, function: EmbeddingFunction) -> None:
        """`copy`, `deepcopy` and `model_copy` give equal functions."""
        for name, twin in (
            ("copy.copy", copy.copy(function)),
            ("copy.deepcopy", copy.deepcopy(function)),
            ("model_copy", function.model_copy()),
        ):
            _require_equal(twin, function, f"made by {name}")

    def test_pickles_rebuild_the_function(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """An unpickled function equals the pickled one and gives the same vectors."""
        twin = pickle.loads(_pickled(function))
        _require_equal(twin, function, "unpickled")
        agree(embed(twin, list(inputs)), embed(function, list(inputs)), "the function and its pickle", FROM_FIELDS)

    def test_pickles_carry_no_weights(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """A pickle holds the configuration alone, before use and after."""
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
        """Its class is registered, and its name leads back to it."""
        name = name_of(function)
        found = get_registry().get(name)
        require(
            found is type(function),
            f"{name!r} leads to {_path(found)}, not to {_path(type(function))}.",
            "register each class under a name of its own",
        )

    def test_it_describes_itself(self, function: EmbeddingFunction) -> None:
        """What people and programs read about it can be had: its schema, its traits, its identity."""
        _json(type(function).model_json_schema())
        _json(function.vector_traits())
        identity = function.model_identity()
        require(
            identity is None or (isinstance(identity, str) and not addresses.is_path(identity)),
            f"model_identity() gave {type(identity).__name__} or a path.",
            "return a revision or a hash of the weights, or None where neither is known: a path says nothing elsewhere",
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
    require(twin == function, f"a function {how} has the same fields and is not equal.", SAME_VALUE)
    require(hash(twin) == hash(function), f"a function {how} is equal and has another hash.", SAME_VALUE)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise flaw(f"what describes it has no JSON form: {exc}.", "use str, numbers, lists and dicts") from None


def _pickled(function: EmbeddingFunction) -> bytes:
    try:
        return pickle.dumps(function)
    except Exception as exc:
        raise flaw(
            f"{type(function).__name__} cannot be pickled: {exc}.",
            "define the class at the top level of a module: other processes must be able to import it",
        ) from exc


def name_of(function: EmbeddingFunction) -> str:
    """Return the name that a function's class is registered under, or fail the test."""
    cls = type(function)
    name = registered_name(cls)
    if name is None:
        raise flaw(
            f"{cls.__name__} is registered under no name, so a table that it fills could never be read back.",
            f"put @embedreg.register('my-name') above class {cls.__name__}; in a plug-in with an entry point, let the "
            "fixture return embedreg.get('my-name').create(...)",
        )
    return name


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
