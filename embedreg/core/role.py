"""The role of what is embedded, source or query, and which of a class's methods embeds a batch in it.

The library calls `compute_embeddings(inputs, role)`. LanceDB's methods are what that falls back to, and the most
derived definition is used: a class written for LanceDB has no such method, and a subclass may override
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
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from embedreg.errors import ConfigError, RowError

__all__ = ["Role", "asked", "compute", "differ", "in_batches", "role_of", "takes_role"]

Role: TypeAlias = Literal["source", "query"]

BATCH = "compute_embeddings"
SOURCE = "compute_source_embeddings"
QUERY = "compute_query_embeddings"
GENERATE = "generate_embeddings"
LANCEDB = (SOURCE, QUERY, GENERATE)
RETRY = "_with_retry"

# What embeds a batch: the class's own `compute_embeddings`; `compute_source_embeddings`; or one query after another.
_Way: TypeAlias = Literal["batch", "source", "each"]
_methods_of = operator.attrgetter(BATCH, BATCH + RETRY, SOURCE, SOURCE + RETRY, QUERY, QUERY + RETRY)
_FILLED = "__embedreg_filled__"
_BASES = "embedreg.core.base"  # what this module's classes define is a fallback, nobody's own

_known: weakref.WeakKeyDictionary[type, _Decided] = weakref.WeakKeyDictionary()
_local = threading.local()


# -- which method ------------------------------------------------------------------------------------------------------


def takes_role(method: Any) -> bool:
    """Return whether a method, as its class holds it, can be called as `(inputs, role=...)`."""
    try:
        signature = inspect.signature(method)
        signature.bind("self", "inputs", role="query")
    except (TypeError, ValueError):
        return False
    return "role" in signature.parameters  # by that name: `**options` are the method's own


@dataclass(frozen=True, slots=True)
class _Decided:
    """What a class's methods come to, worked out once.

    Attributes:
        methods: what `_methods_of` gave, to see whether the class was changed since.
        ways: what embeds a batch, in each role.
        batches: whether it has a method for batches of its own.
        queries: whether it has a query method of its own.
        over_filled: whether it overrides a `generate_embeddings` that was filled in.
        once, again: its method for batches and that one's twin with retries, whatever helper hides them.
    """

    methods: tuple[Any, ...]
    ways: dict[Role, _Way]
    batches: bool
    queries: bool
    over_filled: bool
    once: Any
    again: Any

    def way(self, role: Role) -> _Way:
        """Return what embeds a batch in a role."""
        if role not in self.ways:
            raise ConfigError(f"unknown role {role!r}.", "role='source' or role='query'")
        return self.ways[role]


def _decided(cls: type) -> _Decided:
    now = _methods_of(cls)
    known = _known.get(cls)
    if known is not None and known.methods == now:  # a class can be changed later
        return known
    batch, source, query = _place(cls, BATCH), _place(cls, SOURCE), _place(cls, QUERY)
    over_filled = batch is not None and _overrides_filled(cls, batch)
    ways: dict[Role, _Way]
    if batch is None:
        ways = {"source": "source", "query": "source" if query is None else "each"}
    else:
        over_source, over_query = (place is not None and place < batch for place in (source, query))
        ways = {
            "source": "source" if over_source or over_filled else "batch",
            "query": "each" if over_query else "source" if over_filled else "batch",
        }
    once, again = _own(cls, BATCH), _own(cls, BATCH + RETRY)
    _known[cls] = made = _Decided(now, ways, batch is not None, query is not None, over_filled, once, again)
    return made


def _way(cls: type, role: Role) -> _Way:
    """Return what embeds a batch in a role: the most derived of a class's methods that do.

    Raises:
        ConfigError: an unknown role.
    """
    return _decided(cls).way(role)


def _place(cls: type, name: str) -> int | None:
    """Return where among a class's bases a method or its twin with retries is defined first, but for the fallbacks."""
    places = (_first(cls, each, name == BATCH) for each in (name, name + RETRY))
    return min((place for place in places if place is not None), default=None)


def _first(cls: type, name: str, with_role: bool) -> int | None:
    for place, base in enumerate(cls.__mro__):
        if name in vars(base) and (not with_role or takes_role(vars(base)[name])):
            return None if base.__module__ == _BASES else place
    return None


def _overrides_filled(cls: type, batch: int) -> bool:
    """Return whether a class overrides a `generate_embeddings` that was filled in, which no method for batches calls.

    Args:
        batch: the place of the class that has the method for batches.
    """
    place = _place(cls, GENERATE)
    return place is not None and place < batch and hasattr(vars(cls.__mro__[batch]).get(GENERATE), _FILLED)


def _own(cls: type, name: str) -> Any:
    """Return the first method of a name among a class's bases that takes a role, as its class holds it."""
    return next(vars(base)[name] for base in cls.__mro__ if name in vars(base) and takes_role(vars(base)[name]))


def in_batches(function: Any, role: Role) -> bool:
    """Return whether a function embeds a batch in a role with one call, not one input after another."""
    return _way(type(function), role) != "each"


def differ(function: Any) -> bool:
    """Return whether a function embeds a text as a query in another way than as a source; if it does not say, True."""
    if _way(type(function), "query") == "source":
        return False
    return function.vector_traits().get("prompts", "unknown") is not None


# -- the call ----------------------------------------------------------------------------------------------------------


def compute(function: Any, inputs: Any, role: Role, *, retry: bool = True) -> Any:
    """Embed a batch: the one call that the library makes of a function.

    Args:
        inputs: n inputs, none of them null or blank: an Arrow array or a list.
        retry: whether to try again what may pass by itself, by the function's own policy.
    Returns:
        (n, d), or n vectors with None or a RowError for an input that has none.
    """
    cls = type(function)
    decided = _decided(cls)
    if decided.way(role) != "batch":
        return _fall_back(function, inputs, role, RETRY if retry else "", decided)
    return (decided.again if retry else decided.once).__get__(function, cls)(inputs, role=role)


def compute_with_retry(function: Any, inputs: Any, role: Role) -> Any:
    """Do what `compute_embeddings_with_retry` does where no class overrides it."""
    if _way(type(function), role) == "batch":
        return function._with_retry(functools.partial(compute_once, function), inputs, role)
    return fall_back(function, inputs, role, RETRY)


def compute_once(function: Any, inputs: Any, role: Role) -> Any:
    """Call the `compute_embeddings` of a function that takes a role, whatever helper of that name hides it."""
    cls = type(function)
    return _decided(cls).once.__get__(function, cls)(inputs, role=role)


def fall_back(function: Any, inputs: Any, role: Role, retry: str = "") -> Any:
    """Embed a batch with LanceDB's methods.

    Args:
        retry: the end of the names of the methods to call.
    """
    return _fall_back(function, inputs, role, retry, _decided(type(function)))


def _fall_back(function: Any, inputs: Any, role: Role, retry: str, decided: _Decided) -> Any:
    by_query = decided.way(role) != "source" and role == "query" and decided.queries
    if by_query and not _is_under_way(function, QUERY):  # else it is the class's own method that asks
        return _one_by_one(function, inputs, getattr(function, QUERY + retry))
    with asked(function, role):
        if _is_under_way(function, SOURCE) and hasattr(function, GENERATE):
            return function.generate_embeddings(function.sanitize_input(inputs))
        return getattr(function, SOURCE + retry)(inputs)


def source_texts(function: Any, texts: Any) -> Any:
    """Embed source texts of a class that does not say how: as its own method for batches does, or as they are."""
    decided = _decided(type(function))
    if decided.batches and not decided.over_filled and not _is_under_way(function, BATCH):
        return compute_once(function, texts, role_of(function))
    return function.generate_embeddings(function.sanitize_input(texts))


def query_as_source(function: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    """Embed one query of a class that does not say how: as a batch of one, or as LanceDB does, as a source."""
    if _decided(type(function)).batches:
        return compute_once(function, [query], "query")
    with asked(function, "query"):
        return function.compute_source_embeddings(query, *args, **kwargs)


def _one_by_one(function: Any, queries: Any, embed: Callable[[Any], Any]) -> Any:
    """Embed queries with a method that takes one: (n, d) float32, or a list with RowErrors among the vectors."""
    import numpy as np

    from embedreg.arrow.vectors import as_matrix

    ndims = function.ndims()
    values = [queries] if isinstance(queries, str | bytes) else queries
    found: list[Any] = []
    for value in values.to_pylist() if hasattr(values, "to_pylist") else values:
        rows, valid, why = as_matrix(embed(value), 1, ndims)
        # a copy: the next call may be answered in the same memory
        found.append(rows[0].copy() if valid[0] else RowError(why[0]))
    if any(isinstance(row, RowError) for row in found):
        return found
    return np.stack(found) if found else np.empty((0, ndims), np.float32)


# -- what is under way -------------------------------------------------------------------------------------------------

# LanceDB's methods have no parameter for the role, and a subclass's method calls its parent's. So each thread keeps
# which of them it is in, and in what role: (the instance, the method or "" for a call that is about to be made, role).


def _calls() -> list[tuple[int, str, Role]]:
    """Return this thread's calls, the innermost last; a function, since `entered` is pickled with what it names."""
    calls: list[tuple[int, str, Role]] = _local.__dict__.setdefault("calls", [])
    return calls


class asked:  # noqa: N801 (used as contextlib's are, at a third of a generator's cost)
    """Say in what role `compute_source_embeddings` or `generate_embeddings` is called in this block."""

    __slots__ = ("_call",)

    def __init__(self, function: Any, role: Role) -> None:
        self._call: tuple[int, str, Role] = (id(function), "", role)

    def __enter__(self) -> None:
        _calls().append(self._call)

    def __exit__(self, *exc: object) -> None:
        _calls().pop()


def role_of(function: Any) -> Role:
    """Return the role that the method of a function which calls this embeds in."""
    return next((role for instance, _, role in reversed(_calls()) if instance == id(function)), "source")


def _is_under_way(function: Any, *names: str) -> bool:
    return any(instance == id(function) and method in names for instance, method, _ in _calls())


def _entered_role(function: Any, name: str) -> Role:
    """Return the role of a call of a method: its caller's, unless that is the query's own and asks for sources."""
    if name == QUERY:
        return "query"
    calls, mine = _calls(), id(function)
    last = calls[-1] if calls and calls[-1][0] == mine else next((c for c in reversed(calls) if c[0] == mine), None)
    return "source" if last is None or last[1] == QUERY or (last[1], name) == (BATCH, SOURCE) else last[2]


def entered(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap one of LanceDB's methods so that it is known to be under way, and in what role."""

    @functools.wraps(method)
    def enter(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls = _calls()
        calls.append((id(self), name, _entered_role(self, name)))
        try:
            return method(self, *args, **kwargs)
        finally:
            calls.pop()
            del args, kwargs  # inputs: some tools show the variables of each frame in a traceback

    return enter


def honouring(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a class's own `compute_embeddings`: it gets a batch, unless a subclass's LanceDB method takes its place."""

    @functools.wraps(method)
    def compute_embeddings(self: Any, inputs: Any, role: Role = "source", *args: Any, **kwargs: Any) -> Any:
        way = _way(type(self), role)
        try:
            # the override may come back here, for what it does not do itself
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


# -- what a class with a method for batches need not write -------------------------------------------------------------


def fill(cls: type) -> None:
    """Give a class that has a `compute_embeddings` of its own those of LanceDB's methods that it has not."""
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
