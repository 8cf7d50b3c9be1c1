"""Embed one column or one query: the only door to a model, and the one home of nulls, blanks and dedupe.

Every engine comes through here; none has an idea of its own of any of this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from embedreg import identity, inputs
from embedreg.base import EmbeddingFunction, TextEmbeddingFunction
from embedreg.errors import BadRowsError, InputError
from embedreg.runtime import progress
from embedreg.vectors import Embedded, as_matrix, scatter

if TYPE_CHECKING:
    import numpy as np

__all__ = ["embed_column", "embed_query"]


def embed_column(
    function: EmbeddingFunction,
    values: Any,
    role: Literal["source", "query"] = "source",
    *,
    on_window: Callable[[int], None] | None = None,
    probing: bool = False,
) -> Embedded:
    """Embed one column: nulls and blanks never reach the model, equal inputs reach it once.

    Args:
        function: an embedding function.
        values: n inputs; see `inputs.column_of`.
        role: whether they are source rows or queries.
        on_window: called with the number of rows that each window of work settled, and within a window with those of
            each batch, where the function runs on embedreg's runtime.
        probing: for the drift check itself, which must not check again.
    Returns:
        (n, d) vectors, which of them are valid, and why the others are not.
    Raises:
        InputError, VectorError: the column or what the function gave for all of it is of the wrong kind.
        CallError and the function's own errors: the call failed; a failed row does not raise.
    """
    import numpy as np

    if not probing:
        identity.verify_once(function)
    column = inputs.column_of(values, function.traits.modality)
    distinct, index = _distinct(column)
    ndims = function.ndims()
    embedded = Embedded.empty(len(index), ndims)
    embedded.distinct = len(distinct)
    counts = np.bincount(index[index >= 0], minlength=len(distinct)) if len(distinct) else np.zeros(0, np.int64)
    if on_window is not None and (blank := int((index < 0).sum())):
        on_window(blank)
    matrix = np.empty((len(distinct), ndims), np.float32)
    valid = np.zeros(len(distinct), bool)
    reasons: dict[int, str] = {}
    for start in range(0, len(distinct), function.traits.window):
        window = distinct[start : start + function.traits.window]
        with _told(on_window, counts[start : start + len(window)]):
            rows, ok, why = as_matrix(_compute(function, window, role), len(window), ndims)
        stop = start + len(window)
        matrix[start:stop], valid[start:stop] = rows, ok
        reasons |= {start + row: reason for row, reason in why.items()}
    scatter(embedded, matrix, valid, reasons, index)
    return embedded


def embed_query(function: EmbeddingFunction, query: Any) -> np.ndarray:
    """Embed one query.

    Returns:
        (d,) float32.
    Raises:
        InputError: a null or blank query. BadRowsError: the function has no vector for it.
    """
    import numpy as np

    if query is None or (isinstance(query, str) and not query.strip()):
        raise InputError("the query is empty.", "search for some text")
    identity.verify_once(function)
    rows, valid, why = as_matrix(function.compute_query_embeddings_with_retry(query), 1, function.ndims())
    if not valid[0]:
        raise BadRowsError(f"the query has no vector: {why.get(0, 'no reason was given')}.", "try another query", (0,))
    return np.asarray(rows[0], np.float32)


@contextlib.contextmanager
def _told(on_window: Callable[[int], None] | None, counts: np.ndarray) -> Iterator[None]:
    """Tell of a window's rows as the runtime settles them, and at the end of those that it has not told of.

    Args:
        counts: how many rows each distinct input of the window stands for.
    """
    if on_window is None:
        yield
        return
    total, done, told = int(counts.sum()), 0, 0

    def on_step(step: progress.Step) -> None:
        nonlocal done, told
        done = min(done + step.rows, len(counts))
        rows = total * done // len(counts) - told
        if rows:
            told += rows
            on_window(rows)

    with progress.watch(on_step):
        yield
    if total > told:
        on_window(total - told)


def _compute(function: EmbeddingFunction, window: Any, role: str) -> Any:
    if role == "source" or type(function).compute_query_embeddings is TextEmbeddingFunction.compute_query_embeddings:
        return function.compute_source_embeddings_with_retry(window)
    values = window.to_pylist() if hasattr(window, "to_pylist") else window
    return [function.compute_query_embeddings_with_retry(value)[0] for value in values]


def _distinct(column: Any) -> tuple[Any, np.ndarray]:
    """Return the distinct inputs, in order of appearance, and for each row its place among them; -1 for none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(column, pa.Array):
        present = [value is not None for value in column]
        index = np.where(present, np.cumsum(present) - 1, -1)
        return [value for value in column if value is not None], index
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        blank = pc.equal(pc.binary_length(column), 0)
    else:
        return column.drop_null(), np.where(column.is_valid(), np.cumsum(column.is_valid()) - 1, -1)
    # not if_else, which reads the wrong bytes of a slice in pyarrow before 24
    column = pc.replace_with_mask(column, blank.fill_null(False), pa.scalar(None, column.type))
    encoded = column.dictionary_encode()
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return encoded.dictionary, index
