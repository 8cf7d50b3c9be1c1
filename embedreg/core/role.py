"""Roles: whether a batch holds sources or queries, and which method of a class embeds it.

The library calls `compute_embeddings(inputs, role)`, which falls back to LanceDB's methods. The most derived
definition is used: a class written for LanceDB has no such method, and a subclass may override
`compute_query_embeddings` of a parent that has one. A user's own helper of that name, with other parameters, is never
called.
"""

from __future__ import annotations

import abc
import functools
import inspect
import operator
import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

from embedreg.errors import ConfigError, RowError

__all__ = ["Role", "asked", "compute", "differ", "in_batches", "role_of", "takes_role"]

Role: TypeAlias = Literal["source", "query"]

BATCH = "compute_embeddings"
SOURCE = "compute_source_embeddings"
QUERY = "compute_query_embeddings"
GENERATE = "generate_embeddings"
LANCEDB = (SOURCE, QUERY, GENERATE)
RETRY = "_with_retry"

# The call for a batch: the class's own `compute_embeddings`, `compute_source_embeddings`, or one call per query.
_Call: TypeAlias = Literal["batch", "source", "each"]
_methods_of = operator.attrgetter(BATCH, BATCH + RETRY, SOURCE, SOURCE + RETRY, QUERY, QUERY + RETRY)
_FILLED = "__embedreg_filled__"
_BASES = "embedreg.core.base"  # methods of this module's classes are fallbacks, not definitions of a subclass

_known: weakref.WeakKeyDictionary[type, _Resolved] = weakref.WeakKeyDictionary()


# -- which method ------------------------------------------------------------------------------------------------------


def takes_role(method: Any) -> bool:
    """Return whether an unbound method can be called as `(inputs, role=...)`."""
    try:
        signature = inspect.signature(method)
        signature.bind("self", "inputs", role="query")
    except (TypeError, ValueError):
        return False
    return "role" in signature.parameters  # by name: `**options` does not count


class _Resolved(NamedTuple):
    """The methods that a class defines, resolved once.

    Attributes:
        methods: the result of `_methods_of`, to detect changes of the class.
        calls_by_role: the call for a batch, by role.
        batches: whether it defines a batch method.
        queries: whether it defines a query method.
        over_filled: whether it overrides a filled-in `generate_embeddings`.
        once, again: its batch method without and with retries, even if a helper hides them.
    """

    methods: tuple[Any, ...]
    calls_by_role: dict[Role, _Call]
    batches: bool
    queries: bool
    over_filled: bool
    once: Any
    again: Any

    def call_for(self, role: Role) -> _Call:
        """Return what embeds a batch in a role."""
        if role not in self.calls_by_role:
            raise ConfigError(f"unknown role {role!r}.", "role='source' or role='query'")
        return self.calls_by_role[role]


def _resolved(cls: type) -> _Resolved:
    now = _methods_of(cls)
    known = _known.get(cls)
    if known is not None and known.methods == now:  # a class can be modified later
        return known
    batch, source, query = _mro_index(cls, BATCH), _mro_index(cls, SOURCE), _mro_index(cls, QUERY)
    over_filled = batch is not None and _overrides_filled(cls, batch)
    calls_by_role: dict[Role, _Call]
    if batch is None:
        calls_by_role = {"source": "source", "query": "source" if query is None else "each"}
    else:
        over_source, over_query = (place is not None and place < batch for place in (source, query))
        calls_by_role = {
            "source": "source" if over_source or over_filled else "batch",
            "query": "each" if over_query else "source" if over_filled else "batch",
        }
    once, again = _own(cls, BATCH), _own(cls, BATCH + RETRY)
    _known[cls] = made = _Resolved(now, calls_by_role, batch is not None, query is not None, over_filled, once, again)
    return made


def _call_for(cls: type, role: Role) -> _Call:
    """Return the kind of method that embeds a batch in a role: the most derived one of a class.

    Raises:
        ConfigError: an unknown role.
    """
    return _resolved(cls).call_for(role)


def _mro_index(cls: type, name: str) -> int | None:
    """Return the MRO index where a method, or its variant with retries, is first defined, without fallbacks."""
    places = (_first(cls, each, name == BATCH) for each in (name, name + RETRY))
    return min((place for place in places if place is not None), default=None)


def _first(cls: type, name: str, with_role: bool) -> int | None:
    for place, base in enumerate(cls.__mro__):
        if name in vars(base) and (not with_role or takes_role(vars(base)[name])):
            return None if base.__module__ == _BASES else place
    return None


def _overrides_filled(cls: type, batch: int) -> bool:
    """Return whether a class overrides a filled-in `generate_embeddings`, which batch methods do not call.

    Args:
        batch: the MRO index of the class that defines the batch method.
    """
    place = _mro_index(cls, GENERATE)
    return place is not None and place < batch and hasattr(vars(cls.__mro__[batch]).get(GENERATE), _FILLED)


def _own(cls: type, name: str) -> Any:
    """Return the first unbound method of a name in a class's MRO that takes a role."""
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base) and takes_role(vars(base)[name]))


def in_batches(function: Any, role: Role) -> bool:
    """Return whether a function embeds a batch in a role with one call, instead of one call per input."""
    return _call_for(type(function), role) != "each"


def differ(function: Any) -> bool:
    """Return whether a function embeds queries differently from sources; True if unknown."""
    if _call_for(type(function), "query") == "source":
        return False
    return function.vector_traits().get("prompts", "unknown") is not None


# -- the call ----------------------------------------------------------------------------------------------------------


def compute(function: Any, inputs: Any, role: Role, *, retry: bool = True) -> Any:
    """Embed a batch: the call through which the library uses a function.

    Args:
        inputs: n inputs, none of them null or blank: an Arrow array or a list.
        retry: whether to retry transient errors, by the function's own policy.
    Returns:
        (n, d), or n vectors with None or a RowError for each failed input.
    """
    cls = type(function)
    resolved = _resolved(cls)
    if resolved.call_for(role) != "batch":
        return fall_back(function, inputs, role, RETRY if retry else "")
    return (resolved.again if retry else resolved.once).__get__(function, cls)(inputs, role=role)


def compute_with_retry(function: Any, inputs: Any, role: Role) -> Any:
    """Embed a batch with retries: the default of `compute_embeddings_with_retry`."""
    cls = type(function)
    resolved = _resolved(cls)
    if resolved.call_for(role) == "batch":
        return function._with_retry(resolved.once.__get__(function, cls), inputs, role=role)
    return fall_back(function, inputs, role, RETRY)


def compute_once(function: Any, inputs: Any, role: Role) -> Any:
    """Call the `compute_embeddings` of a function that takes a role, even if a helper of that name hides it."""
    cls = type(function)
    return _resolved(cls).once.__get__(function, cls)(inputs, role=role)


def fall_back(function: Any, inputs: Any, role: Role, retry: str = "") -> Any:
    """Embed a batch with LanceDB's methods.

    Args:
        retry: the suffix of the method names to call.
    """
    resolved = _resolved(type(function))
    by_query = resolved.call_for(role) != "source" and role == "query" and resolved.queries
    if by_query and not _is_under_way(function, QUERY):  # otherwise the class's own method is calling
        return _one_by_one(function, inputs, getattr(function, QUERY + retry))
    with asked(function, role):
        if _is_under_way(function, SOURCE) and hasattr(function, GENERATE):
            return function.generate_embeddings(function.sanitize_input(inputs))
        return getattr(function, SOURCE + retry)(inputs)


def source_texts(function: Any, texts: Any) -> Any:
    """Embed source texts by default: with the class's batch method, or with `generate_embeddings`."""
    resolved = _resolved(type(function))
    if resolved.batches and not resolved.over_filled and not _is_under_way(function, BATCH):
        return compute_once(function, texts, role_of(function))
    return function.generate_embeddings(function.sanitize_input(texts))


def query_as_source(function: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    """Embed one query by default: as a batch of one, or, as LanceDB does, as a source."""
    if _resolved(type(function)).batches:
        return compute_once(function, [query], "query")
    with asked(function, "query"):
        return function.compute_source_embeddings(query, *args, **kwargs)


def _one_by_one(function: Any, queries: Any, embed: Callable[[Any], Any]) -> Any:
    """Embed queries with a method for single queries: (n, d) float32, or a list that may contain RowErrors."""
    import numpy as np

    from embedreg.core.kinds import kind_of

    ndims, kind = function.ndims(), kind_of(function)
    values = [queries] if isinstance(queries, str | bytes) else queries
    found: list[Any] = []
    for value in values.to_pylist() if hasattr(values, "to_pylist") else values:
        rows, valid, why = kind.read(embed(value), 1, ndims)
        # a copy: the next call may reuse the same memory
        found.append(kind.one(rows, 0) if valid[0] else RowError(why[0]))
    if not kind.one_size or any(isinstance(row, RowError) for row in found):
        return found
    return np.stack(found) if found else np.empty((0, ndims), np.float32)


# -- calls in progress -------------------------------------------------------------------------------------------------

# LanceDB's methods have no parameter for the role, and a subclass's method calls its parent's. So each thread keeps a
# stack of its calls: (instance, method name or "" for a call that is about to start, role).


class _Local(threading.local):
    def __init__(self) -> None:
        self.calls: list[tuple[int, str, Role]] = []


_local = _Local()


def _calls() -> list[tuple[int, str, Role]]:
    """Return this thread's calls, the innermost last; a function, since `entered` is pickled with its globals."""
    return _local.calls


class asked:  # noqa: N801 (used as contextlib's are, at a third of a generator's cost)
    """Set the role of calls of `compute_source_embeddings` and `generate_embeddings` in this block."""

    __slots__ = ("_call",)

    def __init__(self, function: Any, role: Role) -> None:
        self._call: tuple[int, str, Role] = (id(function), "", role)

    def __enter__(self) -> None:
        _calls().append(self._call)

    def __exit__(self, *exc: object) -> None:
        _calls().pop()


def role_of(function: Any) -> Role:
    """Return the role of the current call of a function's method."""
    return next((role for instance, _, role in reversed(_calls()) if instance == id(function)), "source")


def _is_under_way(function: Any, *names: str) -> bool:
    mine = id(function)
    return any(instance == mine and method in names for instance, method, _ in _calls())


def _entered_role(function: Any, name: str) -> Role:
    """Return the role of a method call: the caller's, unless the query method calls the source method."""
    if name == QUERY:
        return "query"
    calls, mine = _calls(), id(function)
    last = calls[-1] if calls and calls[-1][0] == mine else next((c for c in reversed(calls) if c[0] == mine), None)
    return "source" if last is None or last[1] == QUERY or (last[1], name) == (BATCH, SOURCE) else last[2]


def entered(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap one of LanceDB's methods to record the call and its role."""

    @functools.wraps(method)
    def enter(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls = _calls()
        calls.append((id(self), name, _entered_role(self, name)))
        try:
            return method(self, *args, **kwargs)
        finally:
            calls.pop()
            del args, kwargs  # inputs: some tools show each frame's variables in a traceback

    return enter


def honouring(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a class's `compute_embeddings`, to call a subclass's override of a LanceDB method instead, if any."""

    @functools.wraps(method)
    def compute_embeddings(self: Any, inputs: Any, role: Role = "source", *args: Any, **kwargs: Any) -> Any:
        way = _call_for(type(self), role)
        try:
            # the override may call this method again
            if way != "batch" and not _is_under_way(self, *((QUERY,) if way == "each" else (SOURCE, GENERATE))):
                return fall_back(self, inputs, role)
            calls = _calls()
            calls.append((id(self), BATCH, role))
            try:
                return method(self, self.sanitize_input(inputs), *args, role=role, **kwargs)
            finally:
                calls.pop()
        finally:
            del inputs, args, kwargs

    return compute_embeddings


# -- methods filled in for a class with a batch method -----------------------------------------------------------------


def fill(cls: type) -> None:
    """Add the missing LanceDB methods to a class that defines `compute_embeddings`."""
    if cls.__module__ == _BASES or BATCH not in vars(cls) or not takes_role(vars(cls)[BATCH]):
        return
    for name, method in ((SOURCE, _source), (QUERY, _query), (GENERATE, _generate)):
        if getattr(inspect.getattr_static(cls, name, None), "__isabstractmethod__", False):
            setattr(cls, name, method)
    abc.update_abstractmethods(cls)


def _source(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Embed source rows, as `compute_embeddings` does."""
    return compute_once(self, inputs, "source")


def _query(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    """Embed one query, as `compute_embeddings` does."""
    return compute_once(self, [query], "query")


def _generate(self: Any, texts: Any, *args: Any, **kwargs: Any) -> Any:
    """Embed texts, as `compute_embeddings` does."""
    return compute_once(self, texts, role_of(self))


setattr(_generate, _FILLED, True)
