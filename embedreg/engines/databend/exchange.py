"""An embedding function on databend-udf's contract: Arrow in, Arrow out, no row of it in Python."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.flight as flight
from databend_udf.udf import ARROW_EXT_TYPE_VECTOR, EXTENSION_KEY, Headers, UserDefinedFunction

from embedreg.arrow.columns import Accepted, column_of
from embedreg.arrow.vectors import Embedded
from embedreg.embedding.column import distinct_inputs
from embedreg.engines.databend.call import Call, as_flight_error
from embedreg.engines.databend.frames import FRAME_BYTES
from embedreg.engines.databend.message import in_one_line, inputs_of
from embedreg.engines.databend.spec import inputs
from embedreg.engines.databend.worker import FunctionWorker
from embedreg.errors import InputError
from embedreg.support.display import plain

if TYPE_CHECKING:
    from embedreg.engines.databend.spec import Served

__all__ = ["CallHeaders", "SqlFunction"]

log = logging.getLogger("embedreg")

ARROW_INPUT = {"STRING": pa.large_utf8(), "BINARY": pa.large_binary()}
# Bytes of inputs that are embedded at a time: a function may take a hundred times the size of a text.
CHUNK_BYTES = {"STRING": 2**20, "BINARY": 2**26}
SENT_BYTES = 2 * FRAME_BYTES  # of copies: a message, and what gRPC makes of it


class CallHeaders(Headers):  # type: ignore[misc]  # it ships no types
    """The call that rows belong to, which a server passes to a function together with the rows."""

    def __init__(self, call: Call, context: Any = None) -> None:
        super().__init__({}, context=context)
        self.call = call


class SqlFunction(UserDefinedFunction):  # type: ignore[misc]  # it ships no types
    """One SQL function, for databend-udf's `UDFServer` or ours.

    Args:
        served: what is served under which name.
        worker: the embedding function in its role, shared with others that serve the same.
        on_error: what a bad row becomes: a "null", or it "raise"s and fails the call.
    """

    def __init__(self, served: Served, worker: FunctionWorker, on_error: Literal["null", "raise"] = "null") -> None:
        self._name, self.served, self.worker, self.on_error = served.name, served, worker, on_error
        self._input_schema = pa.schema([pa.field("input", ARROW_INPUT[inputs()[served.input]], nullable=True)])
        self._result_schema = pa.schema([_result_field(served.returns, worker.ndims)])

    def eval_batch(self, batch: pa.RecordBatch, headers: Headers | None = None) -> Iterator[pa.RecordBatch]:
        """Embed a batch of inputs, and yield its vectors a chunk at a time.

        Raises:
            FlightError: the call failed, in one line that its SQL user may read.
        """
        try:
            call = headers.call if isinstance(headers, CallHeaders) else _call(self, headers)
            yield from self._chunks(self._input(batch), call)
        except GeneratorExit:
            raise
        except BaseException as exc:  # noqa: BLE001  # pyarrow sends any other error with its traceback
            problem = as_flight_error(self._name, exc)
        else:
            return
        raise problem  # outside the handler, so that it does not carry the original error

    def check(self, schema: pa.Schema) -> None:
        """Raise an InputError unless rows of a schema are what this function takes."""
        wanted = inputs()[self.served.input]
        if len(schema) != 1:
            raise InputError(f"it takes one {wanted}, and got {len(schema)} arguments.", "check CREATE FUNCTION")
        kind = schema.field(0).type
        plainly = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(plainly) or pa.types.is_large_string(plainly) or pa.types.is_string_view(plainly)
        binary = pa.types.is_binary(plainly) or pa.types.is_large_binary(plainly) or pa.types.is_binary_view(plainly)
        if not {"STRING": text, "BINARY": binary}[wanted]:
            raise InputError(f"it takes {wanted}, and got a column of type {plain(kind, 60)}.", "cast it in SQL")

    def _input(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the one column as plain strings or binaries."""
        self.check(batch.schema)
        column = batch.column(0)
        if pa.types.is_binary_view(column.type):
            column = column.cast(pa.large_binary())
        return column_of(column, Accepted(self.served.input))  # whose type has been checked

    # -- chunks -----------------------------------------------------------------------------------------------------

    def _chunks(self, column: pa.Array, call: Call) -> Iterator[pa.RecordBatch]:
        """Embed the rows in their order; a repeated input is embedded once."""
        metrics, worker, n = self.worker.metrics, self.worker, len(column)
        metrics.add(self._name, "rows", n)
        column, long = self._without_long(column)
        distinct, index = distinct_inputs(column)
        reached = np.maximum.accumulate(index) if n else index  # distinct inputs are numbered as they appear
        repeated = _repeated(index, len(distinct))
        sizes = np.cumsum(pc.binary_length(distinct).to_numpy(zero_copy_only=False), dtype=np.int64)
        most = CHUNK_BYTES[inputs()[self.served.input]]
        row = seen = 0
        with call.keeping(int(repeated.sum()) * worker.ndims * 4):
            earlier = _Earlier(index, repeated, worker.ndims)
            while row < n or n == row == 0:
                call.check()
                before = int(sizes[seen - 1]) if seen else 0
                some = int(np.searchsorted(sizes, before + most, "right")) - seen
                fit = int(np.searchsorted(reached, seen + max(1, min(some, worker.chunk_rows))))
                stop = max(min(fit, row + worker.most_rows, n), min(row + 1, n))
                upto = max(int(reached[stop - 1]) + 1, seen) if n else 0
                sent = (stop - row) * worker.ndims * 4  # and some of it copied: messages on their way
                sent += min(sent, SENT_BYTES)
                call.take(sent + (upto - seen) * worker.ndims * 4)
                fresh = self._embed(distinct.slice(seen, upto - seen), call)
                part = index[row:stop]
                chunk = earlier.laid_out(part, seen, fresh)
                too_long = 0 if long is None else int(long[row:stop].sum())
                call.keep(sent)
                metrics.add(self._name, "nulls", int((part < 0).sum()) - too_long)
                metrics.add(self._name, "bad", int((~chunk.valid & (part >= 0)).sum()) + too_long)
                yield self._batch(chunk)
                earlier.keep(seen, fresh, stop)
                row, seen = stop, upto
                if n == 0:
                    return

    def _without_long(self, column: pa.Array) -> tuple[pa.Array, np.ndarray | None]:
        """Take out the inputs that are too long, before anything reads them: each is a bad row.

        Returns:
            The column with nulls in their place, and which rows they were; None for no row.
        """
        limit = self.worker.limits.max_text_bytes
        if column.nbytes <= limit:
            return column, None
        longest = pc.max(pc.binary_length(column)).as_py() if len(column) else None
        if longest is None or longest <= limit:
            return column, None
        long = pc.greater(pc.binary_length(column), limit).fill_null(False)
        count = pc.sum(long).as_py()
        self.worker.metrics.add(self._name, "too_long", count)
        problem = f"{self._name}: {count} input(s) have no vector: over limits.max_text_bytes, {limit:,} bytes"
        if self.on_error == "raise":
            raise flight.FlightServerError(problem)
        log.warning("%s; the longest has %s", problem, f"{longest:,}")
        return pc.replace_with_mask(column, long, pa.scalar(None, column.type)), long.to_numpy(zero_copy_only=False)

    def _embed(self, values: pa.Array, call: Call) -> Embedded:
        """Embed new inputs."""
        if not len(values):
            return Embedded.empty(0, self.worker.ndims)
        made = self.worker.embed(self._name, values, call.check)
        if made.reasons:
            why = in_one_line(next(iter(made.reasons.values())), inputs_of(values))
            problem = f"{self._name}: {len(made.reasons)} input(s) have no vector: {why}"
            if self.on_error == "raise":
                raise flight.FlightServerError(problem)
            log.info("%s", problem)
        return made

    def _batch(self, made: Embedded) -> pa.RecordBatch:
        kind = self._result_schema.field(0).type
        mask = None if made.valid.all() else pa.array(~made.valid)
        if self.served.returns == "vector":
            column = pa.FixedSizeListArray.from_arrays(pa.array(made.matrix.reshape(-1)), type=kind, mask=mask)
        else:
            ends = np.cumsum(made.valid, dtype=np.int32) * np.int32(self.worker.ndims)
            offsets = np.concatenate([np.zeros(1, np.int32), ends])
            values = made.matrix if mask is None else made.matrix[made.valid]
            column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)), type=kind, mask=mask)
        return pa.RecordBatch.from_arrays([column], schema=self._result_schema)


@dataclass
class _Earlier:
    """The vectors of a call that later rows need again; only those are kept until then.

    Args:
        index: (n,) which distinct input each row has, -1 for none.
        repeated: (m,) which distinct inputs come more than once.
        ndims: d.
    """

    index: np.ndarray
    repeated: np.ndarray
    ndims: int
    matrix: np.ndarray = field(init=False)
    valid: np.ndarray = field(init=False)
    kept: int = 0

    def __post_init__(self) -> None:
        repeated = int(self.repeated.sum())
        self.matrix = np.empty((repeated, self.ndims), np.float32)  # untouched pages cost nothing
        self.valid = np.zeros(repeated, bool)
        places = len(self.repeated) if repeated else 0  # unused where no input repeats
        self.last, self.slot = np.full(places, -1), np.full(places, -1)
        if repeated:
            rows = np.flatnonzero(self.index >= 0)
            self.last[self.index[rows]] = rows  # of equal places the last one stays

    def laid_out(self, part: np.ndarray, seen: int, fresh: Embedded) -> Embedded:
        """Return the vectors of a chunk's rows.

        Args:
            part: the places of its rows.
            seen: the first place that is new.
            fresh: the vectors of the new ones.
        """
        if len(part) == len(fresh.valid) and np.array_equal(part, np.arange(seen, seen + len(part))):
            return fresh  # all different, nothing null: as it is
        made = Embedded.empty(len(part), self.ndims)
        new, old = part >= seen, (part >= 0) & (part < seen)
        made.matrix[new], made.valid[new] = fresh.matrix[part[new] - seen], fresh.valid[part[new] - seen]
        slots = self.slot[part[old]]
        made.matrix[old], made.valid[old] = self.matrix[slots], self.valid[slots]
        return made

    def keep(self, seen: int, fresh: Embedded, stop: int) -> None:
        """Keep the new vectors that rows from `stop` on need."""
        if not len(self.matrix):
            return
        again = np.flatnonzero(self.last[seen : seen + len(fresh.valid)] >= stop)
        slots = np.arange(self.kept, self.kept + len(again))
        self.slot[seen + again] = slots
        self.matrix[slots], self.valid[slots] = fresh.matrix[again], fresh.valid[again]
        self.kept += len(again)


def _result_field(returns: str, ndims: int) -> pa.Field:
    """Return the Arrow field that Databend takes for the SQL type.

    ARRAY(FLOAT) is a list of floats that are never null, in a field that may be; VECTOR(n) has a name for it in the
    metadata, as databend-udf writes it.
    """
    if returns == "vector":
        metadata = {EXTENSION_KEY: ARROW_EXT_TYPE_VECTOR, b"vector_size": str(ndims).encode()}
        return pa.field("vector", pa.list_(pa.field("item", pa.float32()), ndims), nullable=True, metadata=metadata)
    return pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=True)


def _call(function: SqlFunction, headers: Headers | None) -> Call:
    """Return the call for a server other than ours."""
    cancelled = headers.query_state.is_cancelled if headers is not None else bool
    return Call(function._name, function.worker.limits.call_deadline_s, cancelled)


def _repeated(index: np.ndarray, distinct: int) -> np.ndarray:
    """Return which of the distinct inputs come more than once, (m,) bool."""
    return np.bincount(index[index >= 0], minlength=distinct) > 1
