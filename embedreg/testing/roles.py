"""Tests of roles: a query has the same vector alone and in a batch, and the role is respected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embedreg.core import role as contract
from embedreg.core.base import EmbeddingFunction
from embedreg.core.role import Role
from embedreg.embedding.column import embed_column
from embedreg.testing.checks import Agreement, has_text, read, require

__all__ = ["RoleContract"]

OWN_ROWS = "keep padding out of attention and pooling, compute no statistics over a batch, and call model.eval()"


def _computed(function: EmbeddingFunction, inputs: list[Any], role: Role) -> np.ndarray:
    """Embed a batch as an engine does, and read the result strictly: (n, d) float64."""
    return read(contract.compute(function, inputs, role), len(inputs), function.ndims())


def _one_by_one(function: EmbeddingFunction, queries: list[Any]) -> np.ndarray:
    made = [read(function.compute_query_embeddings(query), 1, function.ndims()) for query in queries]
    return np.concatenate(made)


class RoleContract:
    """Sources and queries are embedded by one method, each in its role."""

    def test_queries_in_a_batch_are_as_alone(
        self, function: EmbeddingFunction, queries: list[Any], agree: Agreement
    ) -> None:
        """A batch of queries has the vectors that `compute_query_embeddings` returns for each."""
        agree(
            _computed(function, list(queries), "query"),
            _one_by_one(function, queries),
            "queries in a batch and one by one",
            "let compute_embeddings(inputs, 'query') and compute_query_embeddings do the same, prompts included",
        )

    def test_a_query_does_not_depend_on_its_neighbours(
        self, function: EmbeddingFunction, queries: list[Any], agree: Agreement
    ) -> None:
        """A query alone, and among others in another order, has the same vector as in a batch."""
        together = _computed(function, list(queries), "query")
        agree(
            _computed(function, list(reversed(queries)), "query")[::-1],
            together,
            "the queries in another order",
            "return vectors in the order of the inputs: undo any sorting",
        )
        alone = np.concatenate([_computed(function, [query], "query") for query in queries])
        agree(alone, together, "each query alone and among the others", OWN_ROWS)

    def test_sources_in_a_batch_are_sources(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """A batch of sources has the vectors that `compute_source_embeddings` returns."""
        agree(
            _computed(function, list(inputs), "source"),
            read(function.compute_source_embeddings(list(inputs)), len(inputs), function.ndims()),
            "a batch of sources by either method",
            "let compute_embeddings(inputs, 'source') and compute_source_embeddings do the same, prompts included",
        )

    def test_a_column_of_queries_has_their_vectors(
        self, function: EmbeddingFunction, queries: list[Any], agree: Agreement
    ) -> None:
        """`embed_column(function, queries, "query")` returns a vector for each query, and none for a null."""
        made = embed_column(function, [None, *queries, queries[0], None], "query")
        full = [False, *[True] * (len(queries) + 1), False]
        require(
            made.valid.tolist() == full,
            f"of {len(full)} queries, {sum(full)} are full and {int(made.valid.sum())} have vectors: {made.reasons}",
            "return a vector for each query that is passed: nulls and blanks do not reach the function",
        )
        expected = _one_by_one(function, [*queries, queries[0]])
        agree(
            made.matrix[full].astype(np.float64),
            expected,
            "a column of queries and each alone",
            "return vectors in the order of the inputs",
        )

    def test_no_queries(self, function: EmbeddingFunction) -> None:
        """An empty batch of queries returns no vectors; an array has shape (0, d)."""
        _computed(function, [], "query")

    def test_the_role_is_respected(self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement) -> None:
        """If `vector_traits()` states the prompts, a text has two vectors exactly if the prompts differ."""
        if not has_text(function) or "prompts" not in function.vector_traits():
            pytest.skip("vector_traits() does not state whether queries and sources are embedded alike")
        prompts = function.vector_traits()["prompts"]
        sources, queries = (_computed(function, list(inputs), role) for role in ("source", "query"))
        if not prompts:
            agree(
                queries,
                sources,
                "a text as a query and as a source, which vector_traits() declares as embedded alike (prompts: None)",
                "state both prompts in vector_traits(): {'query': '...', 'document': '...'}",
            )
        elif prompts.get("query") != prompts.get("document"):
            require(
                not np.allclose(queries, sources),
                f"a text has one vector in both roles, but vector_traits() states the prompts {prompts!r}.",
                "use the role: def compute_embeddings(self, inputs, role)",
            )
