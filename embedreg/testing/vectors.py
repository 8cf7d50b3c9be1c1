"""Tests of vectors: their shape and values, and that each depends only on its own row."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embedreg.arrow.vectors import _to_numpy
from embedreg.core.base import EmbeddingFunction, metric_of
from embedreg.embedding.column import embed_column, embed_query
from embedreg.testing.checks import FORMS, Agreement, embed, flaw, has_text, read, require

__all__ = ["VectorContract"]

MANY = 40  # rows: more than the usual batch of 32, and not a multiple of it
THREADS = 4
TIMEOUT_S = 300.0  # for all threads together; a deadlock would otherwise hang the suite


class VectorContract:
    """The vectors of a function have the required shape and values."""

    # -- shape and values -------------------------------------------------------------------------------------------

    def test_ndims_is_a_number_that_stays(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """`ndims()` is a positive int, the same before and after use."""
        before = function.ndims()
        require(
            type(before) is int and before > 0,
            f"ndims() gave {before!r} ({type(before).__name__}).",
            "return a positive int; wrap numpy's and torch's numbers in int(...)",
        )
        function.compute_source_embeddings(list(inputs))
        after = function.ndims()
        require(
            after == before, f"ndims() gave {before}, but {after} after use.", "return one number for one configuration"
        )

    def test_one_vector_of_ndims_numbers_a_row(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """The function returns one vector of `ndims()` numbers per row."""
        require(
            len(inputs) > 2, f"the fixture `inputs` has {len(inputs)} row(s).", "return three or more: order needs them"
        )
        embed(function, list(inputs))

    def test_arrays_have_the_declared_dtype(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """An array has the dtype of `vector_traits()`, float32 unless overridden; lists are not checked."""
        declared = str(function.vector_traits().get("dtype", "float32"))
        array = _to_numpy(function.compute_source_embeddings(list(inputs)))
        if isinstance(array, np.ndarray) and array.dtype != object:
            require(
                array.dtype.name == declared,
                f"the array has dtype {array.dtype}, the declaration {declared}.",
                f"return np.asarray(vectors, np.{declared}): a wider dtype costs every caller memory; "
                "or declare another 'dtype' in vector_traits()",
            )

    def test_vectors_are_finite(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """No vector contains NaN or infinity."""
        broken = np.flatnonzero(~np.isfinite(embed(function, list(inputs))).all(axis=1))
        require(
            not len(broken),
            f"row(s) {broken.tolist()} have vectors with NaN or infinity.",
            "look for a division by a length of 0; for a row without a vector, return None or embedreg.RowError('why')",
        )

    def test_no_vector_is_zero(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """With the cosine metric no vector is all zeros: it has no direction, and engines sort its NaN first."""
        if metric_of(function) == "cosine":
            zero = np.flatnonzero(~embed(function, list(inputs)).any(axis=1))
            require(
                not len(zero),
                f"row(s) {zero.tolist()} have vectors of zeros.",
                "return None or embedreg.RowError('why') for a row without one, or set traits = Traits(metric='l2')",
            )

    def test_rows_are_told_apart(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """The inputs have three or more different vectors; otherwise the other tests would be meaningless."""
        found = len(np.unique(embed(function, list(inputs)), axis=0))
        require(
            found > 2,
            f"the {len(inputs)} rows of the inputs have {found} different vector(s).",
            "check that a vector depends on its row; else override the fixture `inputs` with more different rows",
        )

    def test_unit_length_where_declared(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """If `vector_traits()` declares that vectors are normalized, they have length 1."""
        if function.vector_traits().get("normalized"):
            lengths = np.linalg.norm(embed(function, list(inputs)), axis=1)
            off = np.flatnonzero(~(np.abs(lengths - 1) < 0.01))  # half precision stays within 0.01
            require(
                not len(off),
                f"vectors are declared normalized, but row(s) {off.tolist()} have another length than 1.",
                "divide by np.linalg.norm(vectors, axis=1, keepdims=True), or set normalized=False in vector_traits()",
            )

    # -- few rows and many ------------------------------------------------------------------------------------------

    def test_no_rows(self, function: EmbeddingFunction) -> None:
        """Zero rows return zero vectors; an array has shape (0, d)."""
        embed(function, [])
        shape = embed_column(function, []).matrix.shape
        require(shape == (0, function.ndims()), f"an empty column gave {shape}.", "return one number from ndims()")

    def test_one_row_keeps_two_axes(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """One row returns (1, d), not (d,)."""
        embed(function, [inputs[1]])

    def test_a_bare_text_is_one_row(self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement) -> None:
        """A str instead of a list is one row, not one row per letter."""
        if has_text(function):
            got = embed(function, inputs[1], 1)
            agree(
                got,
                embed(function, [inputs[1]]),
                "a text alone and in a list of one",
                "begin with texts = self.sanitize_input(texts)",
            )

    def test_many_rows(self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement) -> None:
        """More rows than one batch are returned completely and in order, for any batch size."""
        rows = [inputs[number % len(inputs)] for number in range(MANY)]
        alone = embed(function, list(inputs))
        expected = np.stack([alone[number % len(inputs)] for number in range(MANY)])
        hint = "concatenate the vectors of all batches in the order of the rows; undo any sorting by length"
        agree(embed(function, list(rows)), expected, f"{MANY} rows at once and {len(inputs)}", hint)
        if "batch_size" in type(function).model_fields:
            small = function.model_copy(update={"batch_size": 2})
            agree(embed(small, list(inputs)), alone, "a batch_size of 2 and the configured one", hint)

    # -- each row on its own ----------------------------------------------------------------------------------------

    def test_vectors_are_in_the_order_of_the_rows(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """Reversed rows have the reversed vectors."""
        agree(
            embed(function, list(reversed(inputs))),
            embed(function, list(inputs))[::-1],
            "the rows in another order",
            "return vectors in the order of the rows: undo any sorting, and gather results by their row",
        )

    def test_a_vector_does_not_depend_on_its_neighbours(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """A row alone has the same vector as among others."""
        agree(
            np.concatenate([embed(function, [row]) for row in inputs]),
            embed(function, list(inputs)),
            "each row alone and among the others",
            "keep padding out of attention and pooling, compute no statistics over a batch, and call model.eval()",
        )

    def test_the_same_call_gives_the_same_vectors(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """A second call, and another instance of the same configuration, return the same vectors."""
        first = embed(function, list(inputs))
        hint = (
            "call model.eval(), and seed random numbers from the configuration; else raise `tolerance`, with the reason"
        )
        agree(embed(function, list(inputs)), first, "the same call twice", hint)
        agree(embed(copy.copy(function), list(inputs)), first, "two equal instances", hint)

    def test_threads(self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement) -> None:
        """Threads that share a new instance get the vectors of their own rows."""
        shared = copy.copy(function)
        orders = [np.roll(np.arange(len(inputs)), number) for number in range(THREADS)]
        found = _in_threads(lambda order: [embed(shared, [inputs[row] for row in order]) for _ in range(2)], orders)
        expected = embed(function, list(inputs))
        for order, answers in zip(orders, found, strict=True):
            for answer in answers:
                agree(
                    answer,
                    expected[order],
                    f"{THREADS} threads and one",
                    "keep the state of a call in local variables, not on self; lock what cannot be shared",
                )

    # -- inputs and results -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("form", FORMS)
    def test_kinds_of_input_are_equal(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement, form: str
    ) -> None:
        """A list, an Arrow array or chunked array and a numpy array of the same rows have the same vectors."""
        rows = list(inputs[:4])
        if form != "tuple" and not all(isinstance(row, str | bytes) for row in rows):
            pytest.skip(f"rows of {type(rows[0]).__name__} come in lists only")
        if form == "numpy" and not all(isinstance(row, str) for row in rows):
            pytest.skip("numpy's bytes dtype strips trailing zeros")
        agree(
            embed(function, FORMS[form](rows)),
            embed(function, rows),
            f"the rows as {form} and as a list",
            "begin with texts = self.sanitize_input(texts), which converts any of these to a list",
        )

    def test_inputs_are_left_as_they_were(self, function: EmbeddingFunction, inputs: list[Any]) -> None:
        """The caller's list is neither changed nor reordered."""
        given = list(inputs)
        function.compute_source_embeddings(given)
        require(
            len(given) == len(inputs) and all(a is b for a, b in zip(given, inputs, strict=True)),
            "the call has changed the list that was passed.",
            "build a new list: texts = [clean(text) for text in texts], sorted(texts) and not texts.sort()",
        )

    def test_results_belong_to_the_caller(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """A later call does not change an earlier result, and writing into a result does not change a later one."""
        first = function.compute_source_embeddings(list(inputs))
        n, d = len(inputs), function.ndims()
        before = read(first, n, d)
        embed(function, list(reversed(inputs)))
        hint = "return a new array for each call, not an internal buffer or a cached array: vectors.copy()"
        require(np.array_equal(read(first, n, d), before), "a second call changed the first one's result.", hint)
        _spoil(first)
        agree(embed(function, list(inputs)), before, "a call before and after its result was written into", hint)

    def test_nulls_and_blanks_have_no_vector(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """A column with nulls and blanks has null vectors there, and vectors in the other rows."""
        gaps = [None, "", " \n"] if has_text(function) else [None]
        column = [inputs[0], *gaps, *inputs[1:], None]
        full = [True, *[False] * len(gaps), *[True] * (len(inputs) - 1), False]
        embedded = embed_column(function, column)
        found = int(embedded.valid.sum())
        require(
            embedded.valid.tolist() == full,
            f"of {len(column)} rows, {sum(full)} are full and {found} have vectors: {embedded.reasons}",
            "return a vector for each row that is passed: nulls and blanks do not reach the function",
        )
        agree(
            embedded.matrix[full].astype(np.float64),
            embed(function, list(inputs)),
            "a column with nulls and one without",
            "return vectors in the order of the rows",
        )

    def test_engines_get_the_same_vectors(
        self, function: EmbeddingFunction, inputs: list[Any], agree: Agreement
    ) -> None:
        """The methods with retries, which engines call, return the same vectors."""
        got = read(function.compute_source_embeddings_with_retry(list(inputs)), len(inputs), function.ndims())
        agree(
            got,
            embed(function, list(inputs)),
            "with and without retries",
            "leave the two *_with_retry methods to the base",
        )

    # -- queries ----------------------------------------------------------------------------------------------------

    def test_a_query_gives_one_vector(self, function: EmbeddingFunction, query: Any, agree: Agreement) -> None:
        """A query returns a list or an array of one finite vector, as wide as that of a row."""
        got = read(function.compute_query_embeddings(query), 1, function.ndims())
        require(np.isfinite(got).all(), "the query's vector contains NaN or infinity.", "look for a division by 0")
        agree(
            embed_query(function, query).astype(np.float64)[None, :],
            got,
            "the same query twice",
            "return [vector] from compute_query_embeddings",
        )

    def test_queries_can_be_awaited(self, function: EmbeddingFunction, query: Any, agree: Agreement) -> None:
        """Queries awaited together return the same as one query alone."""

        async def together() -> list[Any]:
            return await asyncio.gather(*(function.acompute_query_embeddings(query) for _ in range(2)))

        expected = read(function.compute_query_embeddings(query), 1, function.ndims())
        for found in asyncio.run(together()):
            agree(
                read(found, 1, function.ndims()),
                expected,
                "an awaited query and a plain one",
                "leave acompute_query_embeddings to the base, or return the same as compute_query_embeddings",
            )


def _spoil(result: Any) -> None:
    """Write into a result as a careless caller would, if it is writable."""
    if isinstance(result, np.ndarray):
        if result.flags.writeable:
            result[...] = 7
    elif isinstance(result, list):
        for number, row in enumerate(result):
            if isinstance(row, list):
                row[:] = [7.0] * len(row)
            elif isinstance(row, np.ndarray) and row.flags.writeable:
                row[...] = 7
            result[number] = None


def _in_threads(job: Callable[[Any], Any], arguments: list[Any]) -> list[Any]:
    """Call a job with each argument, all at once in threads; return the results, or raise the first error."""
    results: list[Any] = [None] * len(arguments)
    errors: list[BaseException] = []
    start = threading.Barrier(len(arguments))

    def run(number: int) -> None:
        try:
            start.wait()
            results[number] = job(arguments[number])
        except BaseException as exc:  # noqa: BLE001 (every error is raised in the test's own thread)
            errors.append(exc)

    # Each in a copy of this thread's context, which holds scoped variables.
    contexts = [contextvars.copy_context() for _ in arguments]
    threads = [
        threading.Thread(target=context.run, args=(run, number), daemon=True) for number, context in enumerate(contexts)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # Python's default of 5 ms would hide most races
    end = time.monotonic() + TIMEOUT_S
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        raise flaw(
            f"{len(threads)} threads have not ended after {TIMEOUT_S:.0f} s.",
            "look for a lock that a thread acquires twice, or that two threads acquire in different order",
        )
    return results
