"""Embed one column or one query, with the handling of nulls, blanks and duplicates.

Every engine uses these functions, so the rules are the same everywhere.

Over 400 lines: one pipeline, from distinct inputs to checked vectors.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from embedreg.arrow import columns
from embedreg.arrow.kind import Read
from embedreg.arrow.vectors import Embedded
from embedreg.core import modality
from embedreg.core import role as contract
from embedreg.core.base import EmbeddingFunction, metric_of
from embedreg.core.kinds import kind_of
from embedreg.core.role import Role
from embedreg.declaration import drift
from embedreg.errors import BadRowsError, ConfigError, InputError, changed
from embedreg.runtime import progress
from embedreg.runtime.vectors import disk
from embedreg.security.redaction import guarded, redact
from embedreg.support.display import plain
from embedreg.support.unicode import is_valid

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = [
    "ZeroVectors",
    "broken_texts",
    "distinct_inputs",
    "embed_column",
    "embed_distinct",
    "embed_query",
    "fit_float16",
    "readable",
    "zero_policy",
]

ZeroVectors: TypeAlias = Literal["null", "keep", "error"]

REASON_CHARACTERS = 500  # the longest reason of a failed row
NOT_UNICODE = "it is not valid Unicode"


def embed_column(
    function: EmbeddingFunction,
    values: Any,
    role: Role = "source",
    *,
    zero_vectors: ZeroVectors | None = None,
    on_window: Callable[[int], None] | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Embedded:
    """Embed one column: nulls and blanks are not passed to the model, and equal inputs are embedded once.

    Args:
        function: an embedding function.
        values: n inputs; see `columns.column_of`.
        role: whether they are source rows or queries.
        zero_vectors: the policy for vectors of zeros; see `zero_policy`.
        on_window: called with the number of rows finished by each chunk of work; for functions on embedreg's runtime,
            by each batch.
        declared: the record of the column being filled; by default as in `drift.verify_once`.
    Returns:
        n vectors of the function's kind, a validity mask, and the reasons for failed rows.
    Raises:
        InputError, VectorError: the column, or the function's result as a whole, has the wrong type or shape.
        ConfigError: an unknown `zero_vectors`.
        CallError and the function's own errors: the call failed; a failed row does not raise.
    """
    import numpy as np

    drift.verify_once(function, declared)
    distinct, index = distinct_inputs(columns.column_of(values, modality.accepted(function)))
    counts = np.bincount(index[index >= 0], minlength=len(distinct)) if len(distinct) else np.zeros(0, np.int64)
    if on_window is not None and (blank := int((index < 0).sum())):
        on_window(blank)
    zeros = zero_policy(function, zero_vectors)
    made = _embed_chunks(function, distinct, role, zeros, on_window, counts, None)
    return made.laid_out(index)


def embed_distinct(
    function: EmbeddingFunction,
    distinct: Any,
    role: Role = "source",
    *,
    zero_vectors: ZeroVectors | None = None,
    on_window: Callable[[int], None] | None = None,
    empty: Callable[[int, int], np.ndarray] | None = None,
) -> Embedded:
    """Embed inputs from `distinct_inputs`, for callers that already know the vectors of some.

    Args:
        distinct: m inputs, no two equal, none of them null or blank.
        zero_vectors, on_window: as in `embed_column`.
        empty: allocates the (m, d) float32 result matrix of dense vectors.
    Returns:
        As `embed_column`: m vectors.
    """
    import numpy as np

    drift.verify_once(function)
    zeros = zero_policy(function, zero_vectors)
    return _embed_chunks(function, distinct, role, zeros, on_window, np.ones(len(distinct), np.int64), empty)


def zero_policy(function: EmbeddingFunction, zero_vectors: ZeroVectors | None) -> ZeroVectors:
    """Return the policy for vectors of zeros: for a multi-vector without vectors and a sparse one without weights too.

    "null" replaces the vector by null, without failing the row; "keep" keeps it; "error" fails the row. None selects
    "null" for the cosine metric, since a vector of zeros has no direction (NaN distances sort first), else "keep".

    Raises:
        ConfigError: an unknown value.
    """
    if zero_vectors is None:
        return "null" if metric_of(function) == "cosine" else "keep"
    if zero_vectors not in ("null", "keep", "error"):
        raise ConfigError(
            f"unknown zero_vectors={zero_vectors!r}.",
            "zero_vectors='null', 'keep' or 'error'; None selects by the metric",
        )
    return zero_vectors


def fit_float16(function: EmbeddingFunction, made: Embedded, zero_vectors: ZeroVectors | None) -> None:
    """Fail rows whose vectors overflow float16, for a column of that type, and apply the policy to zeros there."""
    import numpy as np

    large, zero = made.kind.in_half(made.vectors)
    lost = made.valid & large
    if lost.any():
        made.vectors = made.kind.put(made.vectors, lost, made.kind.empty(int(lost.sum()), made.ndims))
        made.reasons |= dict.fromkeys(np.flatnonzero(lost).tolist(), "its vector holds numbers too large for float16")
        made.valid &= ~lost
    zero = zero[made.valid[zero]]
    if made.zeros is not None:
        zero = zero[~made.zeros[zero]]
    _apply_zero_policy(made, zero, zero_policy(function, zero_vectors))


def _apply_zero_policy(made: Embedded, zero: np.ndarray, policy: ZeroVectors) -> None:
    """Apply the policy to rows that are all zeros."""
    import numpy as np

    if not len(zero):
        return
    made.zeros = np.zeros(len(made.valid), bool) if made.zeros is None else made.zeros
    made.zeros[zero] = True
    made.valid[zero] = policy == "keep"
    made.reasons |= dict.fromkeys(zero.tolist(), made.kind.no_direction) if policy == "error" else {}


def _embed_chunks(
    function: EmbeddingFunction,
    distinct: Any,
    role: Role,
    zeros: ZeroVectors,
    on_window: Callable[[int], None] | None,
    counts: np.ndarray,
    empty: Callable[[int, int], np.ndarray] | None,
) -> Embedded:
    """Embed distinct inputs in chunks; `counts` holds the number of rows of each input."""
    import numpy as np

    m, ndims, kind = len(distinct), function.ndims(), kind_of(function)
    window = function._own_traits().window
    several = m > window
    first = _allocated(m if several else 0, ndims, empty) if kind.one_size else kind.empty(0, ndims)
    made, parts = Embedded(first, np.zeros(m, bool), distinct=m, kind=kind), list[Any]()
    call = functools.partial(contract.compute, function, role=role)
    for start in range(0, m, window):
        chunk = distinct[start : start + window]
        with _reporting(on_window, counts[start : start + len(chunk)]):
            (rows, ok, why), known = _embed(function, role, ndims, chunk, call)
        made.cached += known
        stop = start + len(chunk)
        if not kind.one_size:
            parts.append(rows)
        elif several:
            made.matrix[start:stop] = rows
        else:
            ours = rows.flags.owndata and rows.flags.writeable and _references(rows) == _OF_ONE_VARIABLE
            made.matrix = rows if ours else _copied(rows, empty)
        made.valid[start:stop] = ok
        made.reasons |= {start + row: reason for row, reason in why.items()}
        zero = kind.zeros(rows)
        _apply_zero_policy(made, start + zero[ok[zero]], zeros)
    if parts:
        made.vectors = kind.joined(parts, ndims)
    return made


def _allocated(m: int, ndims: int, empty: Callable[[int, int], np.ndarray] | None) -> np.ndarray:
    import numpy as np

    return np.empty((m, ndims), np.float32) if empty is None or not m else empty(m, ndims)


def _copied(rows: np.ndarray, empty: Callable[[int, int], np.ndarray] | None) -> np.ndarray:
    m, ndims = rows.shape
    copy = _allocated(m, ndims, empty)
    copy[:] = rows
    return copy


def _references(value: Any) -> int:
    """Return the number of references to a value, by which a function that keeps what it returned is recognised.

    Its next call may write into that. A view refers to its base, so an array without other references has no views.
    """
    return sys.getrefcount(value)


def _of_one_variable() -> int:
    value = object()
    return _references(value)  # those of this call too, whose number depends on the version of Python


_OF_ONE_VARIABLE = _of_one_variable()


def embed_query(
    function: EmbeddingFunction,
    query: Any,
    *,
    zero_vectors: ZeroVectors | None = None,
    declared: Mapping[str, Any] | None = None,
) -> Any:
    """Embed one query.

    Args:
        function: an embedding function.
        query: a text, or another input that the function accepts as a query.
        zero_vectors: "keep" returns a vector of zeros, otherwise it is an error; see `zero_policy`.
        declared: the record of the searched column; by default as in `drift.verify_once`.
    Returns:
        (d,) float32; of multi-vectors (k, d) float32; of sparse vectors a `SparseEmbedding` (indices, values).
    Raises:
        InputError: a null or blank query. BadRowsError: the function has no vector for it.
    """
    import numpy as np

    if query is None or (isinstance(query, str) and not query.strip()) or (isinstance(query, bytes) and not query):
        raise InputError("the query is empty.", "search for some text")
    _refuse_several(function, query)
    if zero_vectors is not None:
        zero_policy(function, zero_vectors)  # raises for an unknown value
    drift.verify_once(function, declared)
    call, kind = functools.partial(contract.compute, function, role="query"), kind_of(function)
    (rows, valid, why), _ = _embed(function, "query", function.ndims(), [query], call)
    # in this order: a model's metric is read from its files, which takes longer than a cached query
    if valid[0] and len(kind.zeros(rows)) and zero_policy(function, zero_vectors) != "keep":
        valid, why = np.zeros(1, bool), {0: kind.no_direction}
    if not valid[0]:
        message = changed(why.get(0, "no reason was given"), lambda reason: f"the query has no vector: {reason}.")
        raise BadRowsError(message, "try another query", (0,))
    return kind.one(rows, 0)  # a copy: the function may keep what it returned


def _refuse_several(function: EmbeddingFunction, query: Any) -> None:
    """Raise unless the argument is a single query.

    Raises:
        InputError: a list or a column; or, for a function of texts only, another type.
    """
    accepted = modality.accepted(function)
    several = isinstance(query, list | tuple | set | frozenset | dict) or hasattr(query, "__arrow_c_stream__")
    several = several and not (accepted.lists and isinstance(query, list | tuple))
    if several or (accepted.only_texts and not isinstance(query, str)):
        kind = f"{type(query).__name__}" + (f" of {len(query)}" if several and hasattr(query, "__len__") else "")
        raise InputError(
            f"a query is one {' or '.join(modality.query_names(function))}, not a {kind}.",
            columns.IMAGES_HINT if columns.is_picture(query) else "embed_column(fn, queries, 'query') embeds several",
        )


@contextlib.contextmanager
def _reporting(on_window: Callable[[int], None] | None, counts: np.ndarray) -> Iterator[None]:
    """Report the rows of a chunk as the runtime finishes batches, and the remaining rows at the end.

    Args:
        counts: the number of rows of each distinct input of the chunk.
    """
    if on_window is None:
        yield
        return
    total, done, reported = int(counts.sum()), 0, 0

    def on_step(step: progress.Step) -> None:
        nonlocal done, reported
        done = min(done + step.rows, len(counts))
        rows = total * done // len(counts) - reported
        if rows:
            reported += rows
            on_window(rows)

    with progress.watch(on_step):
        yield
    if total > reported:
        on_window(total - reported)


def _embed(
    function: EmbeddingFunction, role: Role, ndims: int, chunk: Any, call: Callable[[Any], Any]
) -> tuple[Read, int]:
    """Embed a chunk: look it up in an open vector cache, call the function for the misses, and check the result.

    A text that is not valid Unicode becomes a bad row first.

    Returns:
        As `VectorKind.read`; and the number of cache hits.
    """
    import numpy as np

    def compute(some: Any) -> Read:
        rows, valid, why = _checked(function, call, some, ndims)
        return Read(rows, valid, _in_words(function, why) if why else why)

    cache = disk.current()

    def through(some: Any) -> tuple[Read, int]:
        return (compute(some), 0) if cache is None else cache.through(function, role, ndims, some, compute)

    broken = broken_texts(chunk) if _is_text(function, role) else None
    if broken is None:
        return through(chunk)
    good = np.flatnonzero(~broken)
    kind = kind_of(function)
    every, valid = kind.empty(len(chunk), ndims), np.zeros(len(chunk), bool)
    reasons, known = dict.fromkeys(np.flatnonzero(broken).tolist(), NOT_UNICODE), 0
    if len(good):
        some = chunk.take(good) if hasattr(chunk, "take") else [chunk[row] for row in good.tolist()]
        (rows, valid[good], why), known = through(some)
        every = kind.put(every, good, rows)
        reasons |= {int(good[row]): reason for row, reason in why.items()}
    return Read(every, valid, reasons), known


@guarded  # the outermost call of the function: redacts secrets and names the function in errors
def _checked(function: EmbeddingFunction, call: Callable[[Any], Any], some: Any, ndims: int) -> Read:
    """Call a function and check its result, inside the guard: a lazy result may fail while it is read."""
    return kind_of(function).read(call(some), len(some), ndims, control=lambda: _is_available(function))


def _is_available(function: EmbeddingFunction) -> bool:
    """Return whether a function returns a finite vector for the probe's input."""
    try:
        return drift.probe_vector(function) is not None
    except Exception:  # noqa: BLE001  # any failure means that the function is not available
        return False


def _in_words(function: EmbeddingFunction, reasons: dict[int, str]) -> dict[int, str]:
    """Return the reasons of failed rows, redacted, on one line each and of bounded length."""
    held = function._held_secrets()
    cleaned = {
        reason: changed(reason, lambda text: plain(redact(text, held), REASON_CHARACTERS))
        for reason in set(reasons.values())
    }
    return {row: cleaned[reason] for row, reason in reasons.items()}


def _is_text(function: EmbeddingFunction, role: Role) -> bool:
    """Return whether strings are texts for the function, not file names, which need not be valid Unicode."""
    return role == "query" or modality.source_modality(function).by_content


def broken_texts(chunk: Any) -> np.ndarray | None:
    """Return a mask of texts that are not valid Unicode; None if all are valid."""
    import numpy as np
    import pyarrow as pa

    if not isinstance(chunk, pa.Array):
        found = [isinstance(value, str) and not is_valid(value) for value in chunk]
        return np.array(found) if any(found) else None
    if not (pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type)):
        return None
    try:
        chunk.validate(full=True)
    except pa.ArrowInvalid:
        return np.array([value is not None and not _decodes(value) for value in _raw(chunk)])
    return None


def readable(column: pa.Array) -> pa.Array:
    """Return texts with invalid Unicode replaced by U+FFFD."""
    import pyarrow as pa

    return pa.array([None if raw is None else raw.decode(errors="replace") for raw in _raw(column)], column.type)


def _raw(column: pa.Array) -> list[bytes | None]:
    """Return the bytes of texts, valid Unicode or not."""
    import pyarrow as pa

    wide = pa.types.is_large_string(column.type)
    values: list[bytes | None] = column.view(pa.large_binary() if wide else pa.binary()).to_pylist()
    return values


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def distinct_inputs(column: Any) -> tuple[Any, np.ndarray]:
    """Return the distinct inputs in order of appearance, and the index of each row's input; -1 for null or blank."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(column, pa.Array):
        return _distinct_objects(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
        except pa.ArrowInvalid:  # not valid Unicode: reported later, before the function is called
            texts = (None if raw is None else raw.decode(errors="replace") for raw in _raw(column))
            blank = pa.array([None if text is None else not text.strip() for text in texts], pa.bool_())
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return _distinct_bytes(column)
    else:
        return column.drop_null(), np.where(column.is_valid(), np.cumsum(column.is_valid()) - 1, -1)
    if pc.any(blank).as_py():
        # not if_else, which reads wrong bytes of a slice in pyarrow before 24
        column = pc.replace_with_mask(column, blank.fill_null(False), pa.scalar(None, column.type))
    encoded = column.dictionary_encode()
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return encoded.dictionary, index


def _distinct_objects(column: list[Any]) -> tuple[list[Any], np.ndarray]:
    """Find distinct Python objects: texts, bytes and paths by content, others by identity."""
    import numpy as np

    places: dict[Any, int] = {}
    distinct: list[Any] = []
    index = np.full(len(column), -1, np.int64)
    for row, value in enumerate(column):
        if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, bytes) and not value):
            continue
        by_content = isinstance(value, str | bytes | PurePath)
        key = (type(value), value) if by_content else (None, id(value))
        place = index[row] = places.setdefault(key, len(distinct))
        if place == len(distinct):
            distinct.append(value)
    return distinct, index


def _distinct_bytes(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Find distinct binaries, without a copy if all are different, since images take gigabytes.

    Only values of equal length are compared, by a digest.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    full = np.flatnonzero(sizes)  # null and empty values have no bytes
    values, counts = np.unique(sizes[full], return_counts=True)
    alike = np.isin(sizes[full], values[counts > 1])
    places: dict[bytes, int] = {}
    index = np.full(len(column), -1, np.int64)
    first: list[int] = []
    for row, unsure in zip(full.tolist(), alike.tolist(), strict=True):
        place = len(first)
        if unsure:
            place = places.setdefault(hashlib.sha256(column[row].as_buffer()).digest(), place)
        if place == len(first):
            first.append(row)
        index[row] = place
    return (column if len(first) == len(column) else column.take(pa.array(first, pa.int64()))), index
