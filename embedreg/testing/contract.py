"""`EmbeddingFunctionContract`: all tests of the contract in one class, with the fixtures that authors override."""

from __future__ import annotations

from typing import Any

import pytest

from embedreg.core.base import EmbeddingFunction
from embedreg.core.fields import sensitive_fields
from embedreg.core.modality import source_modality
from embedreg.testing.checks import Agreement, flaw, has_text
from embedreg.testing.processes import ProcessContract
from embedreg.testing.roles import RoleContract
from embedreg.testing.secrecy import SecretContract
from embedreg.testing.values import ValueContract
from embedreg.testing.vectors import VectorContract

__all__ = ["EmbeddingFunctionContract"]

# Very short, long, repeated, with accents, without letters: texts that pad, truncate and normalise differently.
TEXTS = (
    "wait",
    "The quick brown fox jumps over the lazy dog.",
    "Wait until the thread terminates.",
    "Größe, naïveté, 東京 and 🚀",
    "3.14 != 42; x[0] = {'a': 1}",
    "two\nlines,\tand a tab",
    "Return the sine of x, measured in radians. " * 6,
)


class EmbeddingFunctionContract(VectorContract, RoleContract, ValueContract, SecretContract, ProcessContract):
    """The requirements on every embedding function.

    A subclass overrides the fixture `function`, and others if needed. A requirement that a function cannot meet is
    overridden as a test, with the reason: `def test_...(self): pytest.skip("...")`.
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
    def queries(self, inputs: list[Any], query: Any) -> list[Any]:
        """Several queries, including `query`: the rows of `inputs` of its type; override it for others."""
        return [query, *(row for row in inputs if type(row) is type(query) and row != query)]

    @pytest.fixture
    def tolerance(self) -> float:
        """The maximum distance of two vectors of one input: |a - b| over the length of the longer one.

        0.001 is a cosine of 0.9999995, which float32 keeps for any batch. Override it, with the reason, for half
        precision (0.02) or a service whose results vary slightly.
        """
        return 1e-3

    @pytest.fixture
    def deterministic(self) -> bool:
        """Whether two equal calls return the same vectors; False skips each test that compares two calls."""
        return True

    @pytest.fixture
    def secret_values(self, function: EmbeddingFunction) -> list[str]:
        """The secrets that must not appear anywhere; override it to add those that a library reads itself."""
        values = function._held_secrets()
        if not values and (named := sensitive_fields(type(function))):
            field = min(named)
            pytest.skip(
                f"{type(function).__name__} has the sensitive field {field!r}, but this instance has no value for it.\n"
                f"Hint: get_registry().set_var('contract', 'any text') and create({field}='$var:contract')"
            )
        return values

    @pytest.fixture
    def agree(self, tolerance: float, deterministic: bool) -> Agreement:
        """Compares the vectors of two calls; do not override it."""
        return Agreement(tolerance, deterministic)
