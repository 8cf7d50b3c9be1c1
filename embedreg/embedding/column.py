"""Embed one column or one query: the only door to a model, and the one home of nulls, blanks and dedupe.

Every engine comes through here; none has an idea of its own of any of this.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from embedreg.arrow import columns
from embedreg.arrow.vectors import Embedded, as_matrix, zero_rows
from embedreg.core import modality
from embedreg.core import role as contract
from embedreg.core.base import EmbeddingFunction, metric_of
from embedreg.core.role import Role
from embedreg.declaration import drift
from embedreg.errors import BadRowsError, ConfigError, InputError, changed
from embedreg.runtime import progress
from embedreg.runtime.vectors import disk
from embedreg.security.redaction import guarded, redact
from embedreg.support.display import plain

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

REASON_CHARACTERS = 500  # of why a row failed
ALL_ZEROS = "its vector is all zeros"
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
    """Embed one column: nulls and blanks never reach the model, equal inputs reach it once.

    Args:
        function: an embedding function.
        values: n inputs; see `columns.column_of`.
        role: whether they are source rows or queries.
        zero_vectors: what becomes of a vector of zeros; see `zero_policy`.
        on_window: called with the number of rows that each window of work settled, and within a window with those of
            each batch, where the function runs on embedreg's runtime.
        declared: what is recorded of the column that they are for; by default as of `drift.verify_once`.
    Returns:
        (n, d) vectors, which of them are valid, and why the others are not.
    Raises:
        InputError, VectorError: the column or what the function gave for all of it is of the wrong kind.
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
    made = _windows(function, distinct, role, zeros, on_window, counts, None)
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
    """Embed inputs that `distinct_inputs` gave, for callers that know some of them already.

    Args:
        distinct: m inputs, no two equal, none of them null or blank.
        zero_vectors, on_window: as of `embed_column`.
        empty: makes the (m, d) float32 matrix that the vectors are put into.
    Returns:
        As `embed_column`: (m, d) vectors.
    """
    import numpy as np

    drift.verify_once(function)
    zeros = zero_policy(function, zero_vectors)
    return _windows(function, distinct, role, zeros, on_window, np.ones(len(distinct), np.int64), empty)


def zero_policy(function: EmbeddingFunction, zero_vectors: ZeroVectors | None) -> ZeroVectors:
    """Return what becomes of a vector of zeros that a function gives: the one place that decides it.

    It is made "null", which is no failure of the row; it is "keep"-ed; or it is an "error", which is one. None stands
    for "null" where vectors are compared by their direction, which such a vector lacks (NaN distances sort first), and
    for "keep" under another metric.

    Raises:
        ConfigError: another value.
    """
    if zero_vectors is None:
        return "null" if metric_of(function) == "cosine" else "keep"
    if zero_vectors not in ("null", "keep", "error"):
        raise ConfigError(
            f"unknown zero_vectors={zero_vectors!r}.", "zero_vectors='null', 'keep' or 'error'; None goes by the metric"
        )
    return zero_vectors


def fit_float16(function: EmbeddingFunction, made: Embedded, zero_vectors: ZeroVectors | None) -> None:
    """Fail the rows whose vectors float16 cannot hold, for a column of that type; all zeros there is all zeros."""
    import numpy as np

    with np.errstate(over="ignore"):
        half = made.matrix.astype(np.float16)
    lost = made.valid & ~np.isfinite(half).all(axis=1)
    if lost.any():
        made.matrix[lost] = 0
        made.reasons |= dict.fromkeys(np.flatnonzero(lost).tolist(), "its vector holds numbers too large for float16")
        made.valid &= ~lost
    zero = zero_rows(half)
    zero = zero[made.valid[zero]]
    if made.zeros is not None:
        zero = zero[~made.zeros[zero]]
    _settle_zeros(made, zero, zero_policy(function, zero_vectors))


def _settle_zeros(made: Embedded, zero: np.ndarray, policy: ZeroVectors) -> None:
    """Do with rows that are all zeros what the policy says."""
    import numpy as np

    if not len(zero):
        return
    made.zeros = np.zeros(len(made.valid), bool) if made.zeros is None else made.zeros
    made.zeros[zero] = True
    made.valid[zero] = policy == "keep"
    made.reasons |= dict.fromkeys(zero.tolist(), ALL_ZEROS) if policy == "error" else {}


def _windows(
    function: EmbeddingFunction,
    distinct: Any,
    role: Role,
    zeros: ZeroVectors,
    on_window: Callable[[int], None] | None,
    counts: np.ndarray,
    empty: Callable[[int, int], np.ndarray] | None,
) -> Embedded:
    """Embed distinct inputs, each of which stands for `counts` rows, a window at a time."""
    import numpy as np

    m, ndims = len(distinct), function.ndims()
    matrix = np.empty((m, ndims), np.float32) if empty is None else empty(m, ndims)
    made = Embedded(matrix, np.zeros(m, bool), distinct=m)
    call = functools.partial(contract.compute, function, role=role)
    for start in range(0, m, function.traits.window):
        window = distinct[start : start + function.traits.window]
        with _told(on_window, counts[start : start + len(window)]):
            (rows, ok, why), known = _embed(function, role, ndims, window, call)
        made.cached += known
        stop = start + len(window)
        made.matrix[start:stop], made.valid[start:stop] = rows, ok
        made.reasons |= {start + row: reason for row, reason in why.items()}
        zero = zero_rows(rows)
        _settle_zeros(made, start + zero[ok[zero]], zeros)
    return made


def embed_query(
    function: EmbeddingFunction,
    query: Any,
    *,
    zero_vectors: ZeroVectors | None = None,
    declared: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Embed one query.

    Args:
        function: an embedding function.
        query: a text, or what else the function searches by.
        zero_vectors: "keep" returns a vector of zeros, else it is none; see `zero_policy`.
        declared: what is recorded of the column that is searched; by default as of `drift.verify_once`.
    Returns:
        (d,) float32.
    Raises:
        InputError: a null or blank query. BadRowsError: the function has no vector for it.
    """
    import numpy as np

    if query is None or (isinstance(query, str) and not query.strip()) or (isinstance(query, bytes) and not query):
        raise InputError("the query is empty.", "search for some text")
    _refuse_several(function, query)
    zeros = zero_policy(function, zero_vectors)
    drift.verify_once(function, declared)
    call = functools.partial(contract.compute, function, role="query")
    (rows, valid, why), _ = _embed(function, "query", function.ndims(), [query], call)
    if valid[0] and zeros != "keep" and len(zero_rows(rows)):
        valid, why = np.zeros(1, bool), {0: ALL_ZEROS}
    if not valid[0]:
        message = changed(why.get(0, "no reason was given"), lambda reason: f"the query has no vector: {reason}.")
        raise BadRowsError(message, "try another query", (0,))
    return np.array(rows[0], np.float32)  # a copy: the function may keep what it returned


def _refuse_several(function: EmbeddingFunction, query: Any) -> None:
    """Refuse what is no single query.

    Raises:
        InputError: a list or a column; or for a function of texts alone something else than a text.
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


def _embed(
    function: EmbeddingFunction, role: Role, ndims: int, window: Any, call: Callable[[Any], Any]
) -> tuple[tuple[np.ndarray, np.ndarray, dict[int, str]], int]:
    """Call a function with what an open vector cache does not know of a window, and check what it returns.

    A text that is not valid Unicode reaches neither: it is a bad row.

    Returns:
        As `as_matrix`; and how many vectors the cache knew.
    """
    import numpy as np

    def compute(some: Any) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        rows, valid, why = _checked(function, call, some, ndims)
        return rows, valid, _in_words(function, why) if why else why

    cache = disk.current()

    def through(some: Any) -> tuple[tuple[np.ndarray, np.ndarray, dict[int, str]], int]:
        return (compute(some), 0) if cache is None else cache.through(function, role, ndims, some, compute)

    broken = broken_texts(window) if _is_text(function, role) else None
    if broken is None:
        return through(window)
    good = np.flatnonzero(~broken)
    matrix, valid = np.zeros((len(window), ndims), np.float32), np.zeros(len(window), bool)
    reasons, known = dict.fromkeys(np.flatnonzero(broken).tolist(), NOT_UNICODE), 0
    if len(good):
        some = window.take(good) if hasattr(window, "take") else [window[row] for row in good.tolist()]
        (matrix[good], valid[good], why), known = through(some)
        reasons |= {int(good[row]): reason for row, reason in why.items()}
    return (matrix, valid, reasons), known


@guarded  # the outermost call of the function: no secret leaves it, and errors name it
def _checked(
    function: EmbeddingFunction, call: Callable[[Any], Any], some: Any, ndims: int
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Call a function and check what it returns; a result that is read only now may fail only now."""
    return as_matrix(call(some), len(some), ndims, control=lambda: _answers(function))


def _answers(function: EmbeddingFunction) -> bool:
    """Say whether a function gives a finite vector for the probe's input."""
    try:
        return drift.probe_vector(function) is not None
    except Exception:  # noqa: BLE001  # whatever it is: the function does not answer
        return False


def _in_words(function: EmbeddingFunction, reasons: dict[int, str]) -> dict[int, str]:
    """Return why rows failed without the function's secrets, each in a line of bounded length."""
    held = function._held_secrets()
    cleaned = {
        reason: changed(reason, lambda text: plain(redact(text, held), REASON_CHARACTERS))
        for reason in set(reasons.values())
    }
    return {row: cleaned[reason] for row, reason in reasons.items()}


def _is_text(function: EmbeddingFunction, role: Role) -> bool:
    """Say whether a string is a text to the function, not the name of a file: such a name need not be Unicode."""
    return role == "query" or modality.source_modality(function).by_content


def broken_texts(window: Any) -> np.ndarray | None:
    """Return which of n inputs are texts that are not valid Unicode, or None where none is."""
    import numpy as np
    import pyarrow as pa

    if not isinstance(window, pa.Array):
        found = [isinstance(value, str) and not value.isascii() and not _encodes(value) for value in window]
        return np.array(found) if any(found) else None
    if not (pa.types.is_string(window.type) or pa.types.is_large_string(window.type)):
        return None
    try:
        window.validate(full=True)
    except pa.ArrowInvalid:
        return np.array([value is not None and not _decodes(value) for value in _raw(window)])
    return None


def readable(column: pa.Array) -> pa.Array:
    """Return texts with U+FFFD for what is not valid Unicode in them."""
    import pyarrow as pa

    return pa.array([None if raw is None else raw.decode(errors="replace") for raw in _raw(column)], column.type)


def _raw(column: pa.Array) -> list[bytes | None]:
    """Return the bytes of texts, be they Unicode or not."""
    import pyarrow as pa

    wide = pa.types.is_large_string(column.type)
    values: list[bytes | None] = column.view(pa.large_binary() if wide else pa.binary()).to_pylist()
    return values


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decodes(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def distinct_inputs(column: Any) -> tuple[Any, np.ndarray]:
    """Return the distinct inputs, in order of appearance, and for each row its place among them; -1 for none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not isinstance(column, pa.Array):
        return _distinct_objects(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
        except pa.ArrowInvalid:  # not valid Unicode, which is found out where it would reach the function
            texts = (None if raw is None else raw.decode(errors="replace") for raw in _raw(column))
            blank = pa.array([None if text is None else not text.strip() for text in texts], pa.bool_())
    elif pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return _distinct_bytes(column)
    else:
        return column.drop_null(), np.where(column.is_valid(), np.cumsum(column.is_valid()) - 1, -1)
    if pc.any(blank).as_py():
        # not if_else, which reads the wrong bytes of a slice in pyarrow before 24
        column = pc.replace_with_mask(column, blank.fill_null(False), pa.scalar(None, column.type))
    encoded = column.dictionary_encode()
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return encoded.dictionary, index


def _distinct_objects(column: list[Any]) -> tuple[list[Any], np.ndarray]:
    """Tell Python objects apart: texts, bytes and paths by their content, others by what they are."""
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
    """Tell binaries apart without a copy where all are different: images fill gigabytes.

    Only those of one length can be equal, so only these are looked into, by a digest.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    sizes = pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    full = np.flatnonzero(sizes)  # null and empty ones have no bytes
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
