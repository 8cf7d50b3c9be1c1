"""The contract as one class, and what an author may say about a function before it is tested."""

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

# Very short, long, repeated, with accents, without letters: what pads, truncates and normalises differently.
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
    """What every embedding function promises.

    A subclass overrides the fixture `function`, and others where a function needs it. A promise that one function
    cannot keep is overridden as a test, with the reason: `def test_...(self): pytest.skip("...")`.
    """

    @pytest.fixture
    def function(self) -> EmbeddingFunction:
        """The function under test; override it. With `scope="class"` where making one is slow."""
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
        """One query; override it where queries are of another kind than source rows."""
        return inputs[0]

    @pytest.fixture
    def queries(self, inputs: list[Any], query: Any) -> list[Any]:
        """Several queries, `query` among them: the rows of `inputs` that are of its kind; override it for others."""
        return [query, *(row for row in inputs if type(row) is type(query) and row != query)]

    @pytest.fixture
    def tolerance(self) -> float:
        """How far two vectors of one input may be apart: |a - b| over the longer of the two.

        0.001 is a cosine of 0.9999995, which float32 keeps whatever the batch. Override it, with the reason, for half
        precision (0.02) or a service whose answers vary a little.
        """
        return 1e-3

    @pytest.fixture
    def deterministic(self) -> bool:
        """Whether two equal calls give the same vectors; False skips each test that compares two calls."""
        return True

    @pytest.fixture
    def secret_values(self, function: EmbeddingFunction) -> list[str]:
        """The secrets that must appear nowhere; override it to add those that a library reads by itself."""
        values = function._held_secrets()
        if not values and (named := sensitive_fields(type(function))):
            field = min(named)
            pytest.skip(
                f"{type(function).__name__} has the sensitive field {field!r}, and this instance no value for it.\n"
                f"Hint: get_registry().set_var('contract', 'any text') and create({field}='$var:contract')"
            )
        return values

    @pytest.fixture
    def agree(self, tolerance: float, deterministic: bool) -> Agreement:
        """Compares the vectors of two calls; not to be overridden."""
        return Agreement(tolerance, deterministic)
