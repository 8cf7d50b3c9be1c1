"""Single queries that wait together share a forward pass: what `acompute_query_embeddings` of local functions does.

The first query of a function starts at once. Those that come while it runs form the next micro-batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

from embedreg.core import role as contract
from embedreg.core.base import EmbeddingFunction
from embedreg.core.held import verify_first
from embedreg.errors import CallError
from embedreg.runtime.serving.micro_batcher import MicroBatch, MicroBatcher, Ticket
from embedreg.support import forks

__all__ = ["embed_shared"]

MAX_QUERIES = 32  # of a micro-batch: a few hundred tokens

_Batcher: TypeAlias = MicroBatcher[Any, Any]

# by identity: of two equal instances, one may have drifted
_batchers: dict[int, _Batcher] = {}
forks.in_child(_batchers.clear)  # a forked child has none of their threads


async def embed_shared(function: EmbeddingFunction, query: Any) -> Any:
    """Embed a query of a function that embeds queries in batches, together with others that wait.

    Returns:
        As `compute_query_embeddings_with_retry`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(ticket: Ticket[Any, Any]) -> None:
        if future.cancelled():
            return
        try:
            future.set_result(ticket.result())
        except BaseException as exc:  # noqa: BLE001  # every error belongs to the caller
            future.set_exception(exc)

    def done(ticket: Ticket[Any, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, ticket)

    batcher = _batcher(function)
    ticket = batcher.submit(query, 1 / MAX_QUERIES, done)
    batcher.supervise()
    try:
        return await future
    finally:
        if future.cancelled():
            batcher.leave(ticket)


def _batcher(function: EmbeddingFunction) -> _Batcher:
    """Return the micro-batcher of a function, which ends with it."""
    key = id(function)
    if key not in _batchers:
        weak = weakref.ref(function, lambda _: _close(key))

        def run(queries: Sequence[Any], each: MicroBatch[Any, Any]) -> list[Any]:
            alive = weak()
            if alive is None:
                raise RuntimeError("the function was deleted before its queries were embedded")
            return _embed(alive, list(queries))

        _batchers.setdefault(key, MicroBatcher(run, isolate=_may_be_one_query, name="embedreg-query"))
    return _batchers[key]


def _close(key: int) -> None:
    batcher = _batchers.pop(key, None)
    if batcher is not None:
        batcher.close()


def _may_be_one_query(exc: BaseException) -> bool:
    """Return whether an error may be caused by one query; an outage fails all of them."""
    return isinstance(exc, Exception) and not isinstance(exc, CallError)


def _embed(function: EmbeddingFunction, queries: list[Any]) -> list[Any]:
    verify_first(function)
    if len(queries) == 1:
        return [function.compute_query_embeddings_with_retry(queries[0])]
    made = contract.compute(function, queries, "query")
    return [made[row : row + 1] for row in range(len(queries))]
