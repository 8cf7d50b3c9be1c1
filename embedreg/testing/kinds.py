"""`VectorKindContract`: the requirements on functions of multi-vectors and of sparse vectors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from embedreg.arrow.ragged import Ragged
from embedreg.core.base import EmbeddingFunction, metric_of
from embedreg.core.kinds import kind_of
from embedreg.core.modality import source_modality
from embedreg.declaration import drift
from embedreg.embedding.column import embed_column, embed_query
from embedreg.embedding.table import embed_table
from embedreg.inspection.locate import functions_in
from embedreg.testing.checks import flaw, has_text, require
from embedreg.testing.secrecy import SecretContract

__all__ = ["VectorKindContract"]

MANY = 40  # rows: more than the usual batch of 32, and not a multiple of it
MATRIX = 2  # axes of the vectors of one row


class VectorKindContract(SecretContract):
    """The requirements on a function whose rows differ in size: multi-vectors and sparse vectors.

    A subclass overrides the fixture `function`, and for other inputs than texts `inputs` and `query`. A requirement
    that a function cannot meet is overridden as a test, with the reason.
    """

    @pytest.fixture
    def function(self) -> EmbeddingFunction:
        """The function under test; override it, with `scope="class"` if creating one is slow."""
        raise flaw(
            f"{type(self).__name__} has no function to test.",
            "@pytest.fixture\n    def function(self):\n        return MyEmbedder.create(...)",
        )

    @pytest.fixture
    def inputs(self, function: EmbeddingFunction) -> list[Any]:
        """Three or more source rows with different vectors; override it for images, or for a narrow function."""
        from embedreg.testing.contract import TEXTS

        if has_text(function):
            return list(TEXTS)
        raise flaw(
            f"the suite has no rows of the modality {source_modality(function).name!r}.",
            "override the fixture `inputs` to return a list of three or more source rows",
        )

    @pytest.fixture
    def query(self, inputs: list[Any]) -> Any:
        """One query; override it if queries are of another kind than source rows."""
        return inputs[0]

    @pytest.fixture
    def tolerance(self) -> float:
        """The maximum distance of the vectors of one input, over their length; see `EmbeddingFunctionContract`."""
        return 1e-3

    @pytest.fixture
    def secret_values(self, function: EmbeddingFunction) -> list[str]:
        """The secrets that must not appear anywhere."""
        values = function._held_secrets()
        if not values:
            pytest.skip(f"this instance of {type(function).__name__} holds no secret")
        return values

    # -- rows -------------------------------------------------------------------------------------------------------

    def test_it_declares_its_kind(self, function: EmbeddingFunction) -> None:
        """The class names a kind whose rows differ in size."""
        require(
            not kind_of(function).one_size,
            f"{type(function).__name__} declares one vector for each input.",
            "test it with EmbeddingFunctionContract, or declare traits = Traits(vectors='multi')",
        )

    def test_every_row_has_a_vector(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """The function's own result has a valid row for each input, finite and of `ndims()` dimensions."""
        _rows(function, list(inputs))
        require(len(_rows(function, [])) == 0, "no rows gave some.", "return one row for each input")

    def test_no_row_is_padded(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """No result has vectors or weights of zeros, which would fill rows up; they would be left out."""
        result = function.compute_source_embeddings(list(inputs))
        rows = kind_of(function).read(result, len(inputs), function.ndims()).rows
        given = None
        if isinstance(result, Ragged):
            given = len(result.arrays[-1])
        elif isinstance(result, list) and all(getattr(row, "ndim", 0) == MATRIX for row in result):
            given = sum(len(row) for row in result)
        require(
            given is None or given == len(rows.arrays[-1]),
            f"the rows hold {given} entries, {len(rows.arrays[-1])} of which are not zeros.",
            "cut each row by its own mask before it is returned",
        )

    def test_rows_are_told_apart(self, function: EmbeddingFunction, inputs: list[Any], tolerance: float) -> None:
        """Different inputs have different vectors; otherwise the other tests would be meaningless."""
        rows, kind = _rows(function, list(inputs)), kind_of(function)
        first = kind.one(rows, 0)
        others = [kind.apart(first, kind.one(rows, row)) > tolerance for row in range(1, len(rows))]
        require(any(others), "all rows of the inputs have one vector.", "check that a vector depends on its row")

    def test_the_order_of_the_rows(self, function: EmbeddingFunction, inputs: list[Any], tolerance: float) -> None:
        """Reversed rows have the reversed vectors."""
        turned = _rows(function, list(reversed(inputs)))
        _agree(
            function, turned.spread(np.arange(len(turned))[::-1]), _rows(function, list(inputs)), tolerance, "reversed"
        )

    def test_a_row_does_not_depend_on_its_neighbours(
        self, function: EmbeddingFunction, inputs: list[Any], tolerance: float
    ) -> None:
        """A row alone has the same vectors as among others, and as many."""
        alone = [_rows(function, [row]) for row in inputs]
        _agree(
            function,
            kind_of(function).joined(alone, function.ndims()),
            _rows(function, list(inputs)),
            tolerance,
            "alone",
        )

    def test_many_rows(self, function: EmbeddingFunction, inputs: list[Any], tolerance: float) -> None:
        """More rows than one batch are returned completely and in order."""
        places = np.arange(MANY) % len(inputs)
        many = _rows(function, [inputs[place] for place in places])
        _agree(function, many, _rows(function, list(inputs)).spread(places), tolerance, "in a long column")

    def test_the_same_call_gives_the_same(
        self, function: EmbeddingFunction, inputs: list[Any], tolerance: float
    ) -> None:
        """A second call, and another instance of the same configuration, return the same."""
        first = _rows(function, list(inputs))
        _agree(function, _rows(function, list(inputs)), first, tolerance, "in a second call")
        _agree(function, _rows(copy.copy(function), list(inputs)), first, tolerance, "of an equal instance")

    def test_nulls_have_no_vector(self, function: EmbeddingFunction, inputs: list[Any], tolerance: float) -> None:
        """A column with nulls has null rows there, and vectors in the other rows."""
        column = [None, *inputs, None]
        made = embed_column(function, column)
        require(
            made.valid.tolist() == [False, *[True] * len(inputs), False],
            f"of {len(inputs)} inputs {int(made.valid.sum())} have vectors: {made.reasons}",
            "return a row for each input that is passed: nulls do not reach the function",
        )
        inner = made.vectors.spread(np.arange(1, len(inputs) + 1))
        _agree(function, inner, _rows(function, list(inputs)), tolerance, "beside nulls")

    def test_a_query_has_a_vector(self, function: EmbeddingFunction, query: Any, tolerance: float) -> None:
        """A query returns one finite row, the same twice."""
        kind = kind_of(function)
        found = kind.apart(embed_query(function, query), embed_query(function, query))
        require(found <= tolerance, f"one query gave two vectors, apart by {found:.2g}.", "seed random numbers")

    # -- declarations -----------------------------------------------------------------------------------------------

    def test_a_table_carries_the_function(
        self, function: EmbeddingFunction, inputs: list[Any], tolerance: float
    ) -> None:
        """A table declares it, and the rebuilt function makes the stored vectors and agrees with the probe."""
        if not all(isinstance(row, str | bytes) for row in inputs):
            pytest.skip(f"rows of {type(inputs[0]).__name__} cannot be in a table")
        table = embed_table({"source": list(inputs)}, function.bind("source", "vector"))
        config = functions_in(table)["vector"]
        kind, column = kind_of(config.function), table["vector"].combine_chunks()
        require(kind is kind_of(function), "the rebuilt function has another kind.", "keep `vectors` a stored field")
        require(kind.complete(column, function.ndims()), "the stored column has invalid rows.", "look at its rows")
        stored = kind.given(column, function.ndims(), "vector").rows
        _agree(function, stored, _rows(config.function, list(inputs)), tolerance, "of the rebuilt function")
        found = drift.compare(config.function, functions_in(table).entries["vector"].reserved)
        require(found.verdict in ("same", "unknown"), f"the probe disagrees: {found}.", "return the same each time")

    def test_the_metric_is_one_of_the_kind(self, function: EmbeddingFunction, inputs: list[Any], query: Any) -> None:
        """The declared distance exists for the kind, and is finite for a row that matches."""
        rows = _rows(function, list(inputs))
        away = kind_of(function).distances(rows, embed_query(function, query), metric_of(function))
        require(np.isfinite(away).any(), "no row has a distance to the query.", "declare another Traits(metric=...)")


def _rows(function: EmbeddingFunction, inputs: list[Any]) -> Ragged:
    """Return a function's own rows, all of which must be valid."""
    found = kind_of(function).read(function.compute_source_embeddings(inputs), len(inputs), function.ndims())
    require(found.valid.all(), f"rows failed: {found.reasons}.", "override the fixture `inputs` with rows it can embed")
    rows: Ragged = found.rows
    return rows


def _agree(function: EmbeddingFunction, got: Any, expected: Any, tolerance: float, what: str) -> None:
    kind = kind_of(function)
    require(len(got) == len(expected), f"{len(got)} rows {what}, {len(expected)} expected.", "one row for each input")
    for row in range(len(got)):
        found = kind.apart(kind.one(got, row), kind.one(expected, row))
        require(
            found <= tolerance,
            f"row {row} {what} differs by {found:.2g} of its length (tolerance {tolerance:.2g}).",
            "keep padding out of attention and results, undo any sorting, and call model.eval()",
        )
