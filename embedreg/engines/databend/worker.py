"""One embedding function in one role, shared by many calls: recent vectors, and batches that small calls share."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.arrow.vectors import Embedded
from embedreg.core import modality
from embedreg.core import role as contract
from embedreg.core.base import EmbeddingFunction
from embedreg.core.role import Role
from embedreg.embedding.column import ZeroVectors, embed_column, embed_distinct, zero_policy
from embedreg.errors import CallError, EmbedregError
from embedreg.runtime.remote.usage import TotalUsage, collect
from embedreg.runtime.serving.buffers import BufferPool
from embedreg.runtime.serving.micro_batcher import MicroBatch, MicroBatcher
from embedreg.runtime.vectors.memory import RecentVectors, keys_of

if TYPE_CHECKING:
    import pyarrow as pa

    from embedreg.engines.databend.metrics import Metrics
    from embedreg.engines.databend.spec import Limits

__all__ = ["FunctionWorker", "queries_differ"]

log = logging.getLogger("embedreg")

# Seconds of work in a chunk. Calls wait for the chunk of a function that cannot be stopped or runs one batch at a time.
# For any other, a retried call may lose a chunk, while a local model needs enough rows to sort by length.
CHUNK_S = {"waited for": 1.0, "shared": 16.0}
FIRST_CHUNK = {"waited for": 256, "shared": 1024}  # rows, until the speed of the function is known
CHUNK_BYTES = 2**23  # of vectors in a chunk: several chunks must fit in memory and in the processor's caches
BYTES_A_TOKEN = 4  # of English text, about


def queries_differ(function: EmbeddingFunction) -> bool:
    """Return whether a function embeds queries and sources in different ways; True where that is unknown."""
    return not modality.accepted(function).only_texts or contract.differ(function)


@dataclass(frozen=True)
class _Request:
    """Distinct inputs of one call whose vectors are not known, with their keys."""

    name: str
    values: pa.Array
    keys: Sequence[Any]


class FunctionWorker:
    """A function in a role, with its recent vectors and its micro-batcher.

    Args:
        function: the embedding function.
        role: "source" or "query".
        limits: of the server.
        max_bytes: this worker's part of the memory for recent vectors.
        metrics: where its work is counted.
        zero_vectors: what to do with a vector of zeros; as in `embed_column`.
    """

    def __init__(
        self,
        function: EmbeddingFunction,
        role: Role,
        limits: Limits,
        max_bytes: int,
        metrics: Metrics,
        zero_vectors: ZeroVectors | None = None,
    ) -> None:
        self.function, self.role, self.limits, self.metrics = function, role, limits, metrics
        self._zeros = zero_policy(function, zero_vectors)
        self.ndims = function.ndims()
        self.recent = RecentVectors(self.ndims, limits.cache_rows, max_bytes)
        passes = limits.concurrency or function.traits.concurrency
        self._blocks = BufferPool()
        # queries that are embedded one by one cannot be stopped in between
        self._kind = "waited for" if passes == 1 or not contract.in_batches(function, role) else "shared"
        self._rows_a_s: float | None = None
        self.batcher: MicroBatcher[_Request, Embedded] = MicroBatcher(
            self._run,
            max_workers=passes,
            window_s=limits.coalesce_window_s,
            give_up_s=limits.call_deadline_s,
            # an outage fails every request; anything else may be the fault of one input
            isolate=lambda exc: isinstance(exc, Exception) and not isinstance(exc, CallError),
            name=f"embedreg-{type(function).__name__}",
        )

    @property
    def chunk_rows(self) -> int:
        """How many distinct inputs of a large call are embedded at a time."""
        pace = self._rows_a_s
        rows = FIRST_CHUNK[self._kind] if pace is None else int(pace * CHUNK_S[self._kind])
        return max(1, min(rows, self.most_rows))

    @property
    def most_rows(self) -> int:
        """The most rows of a chunk, whatever they cost."""
        return max(1, min(self.limits.chunk_rows, CHUNK_BYTES // (4 * self.ndims)))

    def embed(self, name: str, values: pa.Array, check: Callable[[], None]) -> Embedded:
        """Embed n different inputs, none of them null or blank.

        Args:
            name: of the SQL function that is called.
            check: raises when the call is over.
        """
        used = self.recent.capacity or self._weight(values) < 1  # else neither kept nor compared with other requests'
        keys = keys_of(values) if used else range(len(values))
        found = self.recent.look_up(keys, self._blocks.empty)
        made = None
        if len(found.missing):
            request = _Request(name, found.of_missing(values), found.missing_keys())
            made = self.batcher.submit(request, self._weight(request.values)).wait(check)
        self.metrics.add(name, "cached", len(keys) - len(found.missing))
        return found.joined(made, keep=False)  # the batch that computed them has kept them

    def warm(self, kind: str) -> None:
        """Run a function of this machine on the probe of a modality, which loads its model.

        Raises:
            EmbedregError: it cannot be run at all. Other errors are logged: a user's function may not accept the probe.
        """
        sample = modality.MODALITIES[kind].probe
        if self.function.traits.remote or sample is None:
            return
        try:
            embed_column(self.function, [sample], self.role)
            if isinstance(sample, str):  # a back end may prepare a model for one text and for several separately
                embed_column(self.function, [f"{sample} 1", f"{sample} 2"], self.role)
        except EmbedregError:
            raise
        except Exception as exc:  # noqa: BLE001  # a user's function may raise anything
            log.warning("%s could not be warmed up: %s", type(self.function).__name__, type(exc).__name__)

    def close(self) -> None:
        """Accept no more work."""
        self.batcher.close()

    def _weight(self, values: pa.Array) -> float:
        """Return the share of a micro-batch that inputs take."""
        tokens = values.nbytes / BYTES_A_TOKEN if _is_text(values) else 0
        return max(len(values) / self.limits.coalesce_rows, tokens / self.limits.coalesce_tokens)

    # -- in a worker thread -----------------------------------------------------------------------------------------

    def _run(self, requests: Sequence[_Request], each: MicroBatch[_Request, Embedded]) -> list[Embedded]:
        """Embed the inputs of some requests: shared ones once, and none that an earlier batch embedded."""
        import numpy as np
        import pyarrow as pa

        each.check()
        if len(requests) == 1:
            values, keys = requests[0].values, requests[0].keys
            places = np.arange(len(keys))
        else:
            first: dict[Any, int] = {}
            every = [key for request in requests for key in request.keys]
            places = np.fromiter((first.setdefault(key, len(first)) for key in every), np.int64, len(every))
            joined = pa.concat_arrays([request.values for request in requests])
            keys, values = list(first), joined.take(pa.array(np.unique(places, return_index=True)[1]))
            self.metrics.add(requests[0].name, "shared", len(requests))
        try:
            made = self._distinct(requests[0].name, values, keys, each)
        except EmbedregError as exc:
            from embedreg.engines.databend.message import in_one_line, inputs_of

            # cleaned here, where all inputs are known: every request of the batch gets this error
            exc.message = in_one_line(exc.message, inputs_of(values))
            raise
        if len(requests) == 1:
            return [made]
        results, start = [], 0
        for request in requests:
            own = places[start : start + len(request.keys)]
            start += len(request.keys)
            reasons = {row: made.reasons[place] for row, place in enumerate(own.tolist()) if place in made.reasons}
            results.append(Embedded(made.matrix[own], made.valid[own], reasons))
        return results

    def _distinct(
        self, name: str, values: pa.Array, keys: Sequence[Any], each: MicroBatch[_Request, Embedded]
    ) -> Embedded:
        """Embed different inputs, and keep their vectors."""
        found = self.recent.look_up(keys, self._blocks.empty)
        made = self._compute(name, found.of_missing(values), each) if len(found.missing) else None
        return found.joined(made)

    def _compute(self, name: str, values: pa.Array, each: MicroBatch[_Request, Embedded]) -> Embedded:
        """Run the function."""
        began = time.perf_counter()
        used = TotalUsage()
        try:
            with collect(used):
                made = embed_distinct(
                    self.function,
                    values,
                    self.role,
                    zero_vectors=self._zeros,
                    on_window=lambda rows: each.check(),
                    empty=self._blocks.empty,
                )
        finally:
            for counter in ("requests", "retries", "billed_tokens", "estimated_tokens"):
                self.metrics.add(name, counter, getattr(used, counter))
        took = time.perf_counter() - began
        self._rows_a_s = len(values) / max(took, 1e-6)
        self.metrics.add(name, "passes")
        self.metrics.add(name, "embedded", made.distinct - made.cached)
        if made.zeros is not None:
            what = {"null": "NULL", "keep": "kept", "error": "bad rows"}[self._zeros]
            log.warning("%s: %d input(s) have a vector of zeros: %s", name, int(made.zeros.sum()), what)
        return made


def _is_text(values: pa.Array) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(values.type) or pa.types.is_large_string(values.type))
