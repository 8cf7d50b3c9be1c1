"""Sinks write the pieces of a job: into a folder of Parquet files or one file, always as atomic writes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from embedreg.arrow.casting import cast_exactly
from embedreg.datasets.storage import AGAIN, File, Storage
from embedreg.datasets.targets import Target
from embedreg.declaration import codec
from embedreg.errors import StorageError
from embedreg.jobs import stored
from embedreg.jobs.lock import Held
from embedreg.jobs.pieces import Outcome, Piece
from embedreg.support.atomic import fill_arrow, fill_parquet

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FileSink", "FolderSink", "Sink", "beside"]

T = TypeVar("T")


class Sink(ABC):
    """A destination.

    It is pickled to other processes, which call `write`; everything else is called by the driver.
    """

    root: Storage
    """The folder that holds pieces and records while the job runs."""

    right: Held | None
    """The lock of this run, once it is acquired; checked before anything is published."""

    def check(self) -> None:
        """Raise `StorageError` if another run has taken over the destination."""
        if self.right is not None:
            self.right.check()

    def held(self, right: Held) -> Self:
        """Return this destination with the lock of the run that holds it."""
        return dataclasses.replace(self, right=right)  # type: ignore[type-var]  # every subclass is a dataclass

    def prepare(self, schema: pa.Schema) -> None:  # noqa: B027  # most need no preparation
        """Prepare the destination, once the job's lock is held."""

    @abstractmethod
    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        """Write a piece; return what `present` needs to find it again."""

    def listing(self) -> dict[str, File]:
        """Return the files that `present` searches."""
        return {file.path: file for file in self.root.listing()}

    @abstractmethod
    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        """Return whether a recorded piece still exists and is complete; `files` comes from `listing`."""

    @abstractmethod
    def drop(self, output: str) -> None:
        """Remove a piece, if it exists.

        Raises:
            StorageError: the file of that name is not a piece.
        """

    def reset(self) -> None:  # noqa: B027  # most have only their pieces
        """Remove everything that is left once all pieces are dropped."""

    @abstractmethod
    def finish(
        self, schema: pa.Schema, outcomes: Sequence[Outcome], making: Callable[[list[Any]], object] = bool
    ) -> None:
        """Publish the destination, made of all pieces in their order.

        Args:
            making: called with the stamp of a file or table on this machine, right before it is published.
        """

    def list_bad_rows(self, target: Target, path: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a new path for the list of bad rows, which is published in the target's folder."""
        return target.storage.publish(path, self.check)


@dataclass(frozen=True)
class FolderSink(Sink):
    """A folder with a Parquet file for each piece, under its final name from the start."""

    root: Storage
    right: Held | None = None

    def write(self, piece: Piece, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> dict[str, Any]:
        with self.root.publish(piece.output, self.check) as path:
            fill_parquet(path, schema, batches, self.root.shown(piece.output))
            return {"size": path.stat().st_size}

    def present(self, outcome: Outcome, files: dict[str, File]) -> bool:
        found = files.get(outcome.piece.output)
        return found is not None and found.size == outcome.stored.get("size")

    def drop(self, output: str) -> None:
        if not stored.is_output(output):
            raise StorageError(f"{output!r} is not the name of a piece.", "start over in another folder")
        if self.root.local is not None and not self._is_ours(output):
            raise StorageError(
                f"{self.root.shown(output)!r} would be removed, but embedreg did not write it.",
                "move it elsewhere, or write to another folder",
            )
        self.root.remove(output)

    def _is_ours(self, output: str) -> bool:
        """Return whether a name is free, or belongs to a Parquet file that carries a declaration.

        The records are untrusted, and may name a file that another program wrote.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        found = self.root.entry(output)
        if found is None or found.kind != "file":
            return found is None or found.kind == "link"  # removing a link does not touch its target
        try:
            with self.root.open(output) as file:
                return codec.KEY.encode() in (pq.read_schema(file).metadata or {})
        except (pa.ArrowException, OSError):
            return False

    def finish(
        self, schema: pa.Schema, outcomes: Sequence[Outcome], making: Callable[[list[Any]], object] = bool
    ) -> None:
        pass


@dataclass(frozen=True)
class FileSink(FolderSink):
    """One file: pieces are written to a hidden folder beside it, and joined at the end."""

    root: Storage
    target: Target = dataclasses.field(kw_only=True)

    def finish(
        self, schema: pa.Schema, outcomes: Sequence[Outcome], making: Callable[[list[Any]], object] = bool
    ) -> None:
        names = [outcome.piece.output for outcome in outcomes]
        to, name = self.target.storage, self.target.name
        if self.root.local is None:
            with to.publish(name, self.check) as growing:
                self._fill(growing, schema, names)
            return
        with self.root.scratch_file(self.check) as growing:
            if not (len(names) == 1 and self.target.kind == "parquet" and self._linked(names[0], growing)):
                self._fill(growing, schema, names)
            stat = growing.stat()
            making([stat.st_ino, stat.st_mtime_ns, stat.st_size])
            self.root.rename(growing, to, name, self.check)

    def _linked(self, piece: str, growing: Path) -> bool:
        """Hard-link the only piece as the new file; return whether this filesystem supports it."""
        self._refuse_other_than_a_file(piece)
        with contextlib.suppress(OSError):
            os.link(Path(self.root.uri, piece), growing, follow_symlinks=False)
            return True
        return False

    def list_bad_rows(self, target: Target, path: str) -> contextlib.AbstractContextManager[Path]:
        return beside(self, target, path)

    def _refuse_other_than_a_file(self, piece: str) -> None:
        found = self.root.entry(piece)
        if found is None or found.kind != "file":
            raise StorageError(f"{self.root.shown(piece)!r} is missing or is not a regular file.", AGAIN)

    def _fill(self, path: Path, schema: pa.Schema, names: Sequence[str]) -> None:
        fill = {"parquet": fill_parquet, "arrow": fill_arrow}[self.target.kind]
        fill(path, schema, (_restored(batch, schema) for batch in self._batches(names)), str(self.target))

    def _batches(self, pieces: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Read the pieces back, one batch per row group."""
        import pyarrow.parquet as pq

        for name in pieces:
            if self.root.local is not None:
                self._refuse_other_than_a_file(name)
            with self.root.open(name) as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)
                for group in range(parquet.num_row_groups):
                    yield from parquet.read_row_group(group, use_threads=False).combine_chunks().to_batches()


def _restored(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with its original types: Parquet pieces keep neither seconds nor dictionary index types."""
    import pyarrow as pa

    if batch.schema.types == schema.types:
        return batch
    columns = [
        cast_exactly(column, item.type, rounds=False) for column, item in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@contextlib.contextmanager
def beside(sink: Sink, target: Target, path: str) -> Iterator[Path]:
    """Yield a path in the job's scratch folder, and publish it as a file beside the destination."""
    if sink.root.local is None:
        with target.storage.publish(path, sink.check) as growing:
            yield growing
        return
    with sink.root.scratch_file(sink.check) as growing:
        yield growing
        sink.root.rename(growing, target.storage, path, sink.check)
