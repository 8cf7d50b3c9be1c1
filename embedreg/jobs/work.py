"""The work on one piece of a job, from its input to the destination, in any process."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.core.modality import files_of
from embedreg.datasets.schemas import conformed
from embedreg.datasets.sources import Source
from embedreg.declaration import codec
from embedreg.embedding import schema as schemas
from embedreg.embedding.column import ZeroVectors
from embedreg.embedding.quantizing import is_unknown
from embedreg.embedding.table import OnError, Report, embed_batches
from embedreg.errors import BadRowsError, StorageError, changed, option
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.jobs.sinks import Sink
from embedreg.runtime.remote.usage import TotalUsage

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JobSpec"]


@dataclass(frozen=True)
class JobSpec:
    """Everything that is needed to run a piece.

    It can be pickled, is small and holds no secret: references are included, and the environment bindings behind them.

    Attributes:
        source: where rows are read.
        sink: where they are written.
        schema: of the output, including the declarations and their probes; equal for all pieces.
        functions: vector column -> its function.
        on_error: as in `embed_batches`, but with another default.
        batch_rows: as in `embed_batches`.
        zero_vectors: as in `embed_batches`.
        cache: the path of the vector cache, or None; an engine that runs pieces elsewhere opens it there.
    """

    source: Source
    sink: Sink
    schema: pa.Schema
    functions: dict[str, EmbeddingFunction]
    on_error: OnError
    batch_rows: int
    cache: str | None = None
    zero_vectors: ZeroVectors | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        place = self.source.place
        if files_of(place.kind) is None:  # otherwise the files are the rows
            place = dataclasses.replace(place, files=())
        return state | {"source": dataclasses.replace(self.source, inputs=(), place=place)}  # a piece has its own

    @functools.cached_property
    def configs(self) -> list[EmbeddingFunctionConfig]:
        """The declarations as recorded, so that no process computes its own probe, and each checks the recorded one."""
        entries = {entry.vector_column: entry for entry in codec.entries(self.schema.metadata)}
        return [codec.recorded(entries[column], function) for column, function in self.functions.items()]

    @functools.cached_property
    def _read(self) -> pa.Schema:
        """The schema to read: that of the output, with vectors as the source has them, or null if it has none."""
        import pyarrow as pa

        own = self.source.schema
        given = [column for column in self.functions if column in own.names]
        return pa.schema([own.field(item.name) if item.name in given else item for item in self.schema])

    def gather(self, piece: Piece) -> None:
        """Read a piece and call its functions, and write nothing; see `runtime.remote.offline.Gathered`."""
        made = embed_batches(
            self._reader(piece, {"read": 0}),
            schemas.Resolved(None, self.configs),
            on_error="drop",  # no row has a vector yet
            zero_vectors=self.zero_vectors,
            batch_rows=self.batch_rows,
        )
        for _ in made:
            pass

    def run(
        self,
        piece: Piece,
        progress: Callable[[int], None] | None = None,
        *,
        max_bad_rows: int | None = None,
        usage: TotalUsage | None = None,
    ) -> Outcome:
        """Embed a piece and publish it, without recording it.

        Args:
            progress: called with the number of rows of the piece that are done.
            max_bad_rows: how many of its rows may fail.
            usage: what earlier, interrupted attempts cost; this one is added to it.
        Raises:
            BadRowsError: rows failed under "raise", or too many. StorageError: it cannot be read or written.
            EmbedregError: any error of embedding.
        """
        if piece.rows != 0 and any(map(is_unknown, self.configs)):
            raise StorageError(
                "the job was begun without rows, so that the ranges of its quantised vectors are not known.",
                option("start over with --fresh", "resume=False"),
            )
        start, counted = time.perf_counter(), {"read": 0, "written": 0}
        report = Report(rows=piece.span.first_row)  # so that rows are numbered as in their input
        report.usage = usage if usage is not None else report.usage

        def on_rows(rows: int, _: int | None) -> None:
            if progress is not None:
                progress(rows - piece.span.first_row)

        made = embed_batches(
            self._reader(piece, counted),
            schemas.Resolved(None, self.configs),  # unchanged: bound again, they would lose what is recorded
            on_error=self.on_error,
            zero_vectors=self.zero_vectors,
            report=report,
            progress=on_rows,
            max_bad_rows=max_bad_rows,
            batch_rows=self.batch_rows,
        )

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in made:
                counted["written"] += batch.num_rows
                yield conformed(batch, self.schema, piece.input.path)
            if piece.rows is not None and counted["read"] != piece.rows:
                raise StorageError(
                    f"{self.source.place.storage.shown(piece.input.path)} changed while it was read: "
                    f"expected {piece.rows:,} rows, got {counted['read']:,}.",
                    "run the same command again, once it is no longer being written",
                )

        try:
            stored = self.sink.write(piece, self.schema, batches())
        except BadRowsError as exc:
            named = changed(exc.message, lambda message: f"{piece.input.path}: {message}")
            raise BadRowsError(named, exc.hint, exc.rows) from exc
        return Outcome(
            piece=piece,
            rows=counted["read"],
            written=counted["written"],
            embedded=report.embedded,
            cached=report.cached,
            given=report.given,
            nulls=report.nulls,
            zeros=report.zeros,
            clipped=report.clipped,
            zero_vectors=self.zero_vectors,
            bad_rows=len(report.bad),
            bad=tuple(report.bad),
            stored=stored,
            usage=report.usage,
            seconds=time.perf_counter() - start,
        )

    def _reader(self, piece: Piece, counted: dict[str, int]) -> pa.RecordBatchReader:
        import pyarrow as pa

        def batches() -> Iterator[pa.RecordBatch]:
            if piece.rows == 0:
                return
            try:
                for batch in self.source.read(piece.input.path, piece.span, self._read, self.batch_rows):
                    counted["read"] += batch.num_rows
                    yield batch.replace_schema_metadata(schema.metadata)
            except (IndexError, OverflowError) as exc:  # the span comes from an earlier listing or a stored plan
                raise StorageError(
                    f"{self.source.place.storage.shown(piece.input.path)} changed since it was listed.",
                    option("run the same command again; if that does not help, --fresh starts over", "resume=False"),
                ) from exc

        schema = self._read
        if any(column in self.source.schema.names for column in self.functions):
            # keep the source's own declarations: this function must not fill a column of another function's vectors
            schema = schema.with_metadata(self.source.metadata(piece.input.path))
        return pa.RecordBatchReader.from_batches(schema, batches())
