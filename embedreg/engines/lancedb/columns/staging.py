"""Staging: for each fragment a file with its new vectors and digests, outside the schema until one commit adds it.

A fragment's rows never change: updates and deletes mark rows as deleted and write others to new fragments. So a staged
file stays valid as long as its fragment keeps the data file of the source column; compaction ends that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.declaration import digest
from embedreg.embedding.table import Progress
from embedreg.engines.lancedb.columns.commits import field_ids, lance, lance_errors
from embedreg.engines.lancedb.columns.declared import Column
from embedreg.engines.lancedb.columns.making import NO_FUNCTION, Files, Maker, keys_of
from embedreg.engines.lancedb.columns.place import FILES, PIECES, Place
from embedreg.engines.lancedb.columns.writing import CHUNK, Writer
from embedreg.errors import StorageError, option

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Staging", "data_files", "file_of", "offsets_of"]

ROUNDS = 20
_ENOUGH = 0.01  # of the rows may be left for the switch itself, which stages them at once


@dataclass
class Staging:
    """The staged files of one operation.

    Attributes:
        place: the table.
        source: the source column.
        maker: makes vectors and digests; None for reading only.
        keep: the column whose fresh vectors are kept beside the new ones, by the digests of their sources; or None.
        old_fields: ids of fields whose files are listed again, where a fragment still has them, instead of staging.
        last_old: the last fragment whose files of old fields are trusted.
        progress: called with rows staged and in all.
        batch_rows: rows that are embedded at a time.
        check: raises if this run no longer holds the lock.
        folder: where its records are.
        staged: fragments staged by this run.
        nulls: files of nulls that this run published.
    """

    place: Place
    source: str
    maker: Maker | None
    keep: Column | None = None
    old_fields: tuple[int, ...] = ()
    last_old: int = -1
    progress: Progress | None = None
    batch_rows: int = CHUNK
    check: Callable[[], object] = bool
    folder: str = PIECES
    staged: int = 0
    nulls: list[str] = field(default_factory=list)
    _pieces: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for piece in self.place.kept.pieces(self.folder):
            entry = self.place.beside.entry(f"{FILES}/{piece['file']}")
            if entry is not None and entry.kind == "file" and entry.size == piece["size"]:
                self._pieces[piece["fragment"], piece["source_file"]] = piece

    @property
    def _using(self) -> Maker:
        if self.maker is None:
            raise StorageError("nothing can be staged without a function.", "run the command again")
        return self.maker

    # -- what is staged ----------------------------------------------------------------------------------------------

    def piece(self, dataset: Any, fragment: Any) -> dict[str, Any] | None:
        """Return the record of a fragment's staged file; None if it has none that is valid."""
        found = self._pieces.get((fragment.fragment_id, self._source_file(dataset, fragment)))
        return found if found is not None and found["rows"] == fragment.metadata.physical_rows else None

    def _source_file(self, dataset: Any, fragment: Any) -> str:
        ids = field_ids(dataset.lance_schema)
        if self.source not in ids:
            raise StorageError(
                f"the source column {self.source!r} is no longer in the table.",
                option(
                    "rename it back; before a switch `embedreg column abandon` ends the migration",
                    "rename it back; before a switch Migration.abandon() ends the migration",
                ),
            )
        return file_of(fragment.metadata, ids[self.source])[0]

    def _old(self, fragment: Any) -> list[tuple[str, int]]:
        """Return the files and columns of the old fields, if the fragment still has all of them."""
        if fragment.fragment_id > self.last_old:
            return []
        found = [file_of(fragment.metadata, each) for each in self.old_fields]
        return found if all(path for path, _ in found) else []

    def missing(self, dataset: Any) -> list[Any]:
        """Return the fragments of a version that have neither a staged nor an old file."""
        found = dataset.get_fragments()
        return [each for each in found if not self._old(each) and self.piece(dataset, each) is None]

    def counts(self, dataset: Any) -> tuple[int, int, int, int]:
        """Return rows staged and in all, fragments staged and in all; none is staged of a column that is gone."""
        found = dataset.get_fragments()
        missing = self.missing(dataset) if self.source in dataset.schema.names else found
        total = sum(each.count_rows() for each in found)
        return total - sum(each.count_rows() for each in missing), total, len(found) - len(missing), len(found)

    def files(self) -> list[Path]:
        """Return the staged files, kept vectors not counted."""
        return [Path(self.place.beside.uri, FILES, piece["file"]) for piece in self._pieces.values()]

    def previous(self) -> list[Path]:
        """Return the files of kept vectors, in no order."""
        named = [piece["previous"] for piece in self._pieces.values() if piece["previous"] is not None]
        return [Path(self.place.beside.uri, FILES, name) for name in named]

    # -- staging -----------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        """Stage the newest version, again and again until little is left; return the last version that was seen."""
        for number in range(ROUNDS):
            dataset = self.place.newest()
            missing = self.missing(dataset)
            rows, total = sum(each.count_rows() for each in missing), dataset.count_rows()
            if not missing or (number and rows < _ENOUGH * total):
                return dataset
            self.stage_all(dataset, missing)
        return self.place.newest()

    def stage_all(self, dataset: Any, fragments: Sequence[Any]) -> bool:
        """Stage some fragments of a version; return False if another writer's clean-up removed files of it meanwhile.

        What was staged until then is kept; the newest version has the rows.
        """
        self._reuse(dataset)
        try:
            total = dataset.count_rows()
            done = total - sum(each.count_rows() for each in fragments)
            for fragment in fragments:
                self._stage(dataset, fragment, done, total)
                done += fragment.count_rows()
        except (StorageError, OSError, RuntimeError, ValueError):
            if not self._removed(dataset):
                raise
            return False
        return True

    def _removed(self, dataset: Any) -> bool:
        """Return whether data files of a version are gone, and the newest version does not need them."""
        newest = self.place.newest()
        gone = {name for name in data_files(dataset) if not (self.place.path / "data" / name).exists()}
        return bool(gone) and not gone & data_files(newest)

    def _reuse(self, dataset: Any) -> None:
        """Take vectors from staged files of fragments that are gone, by the digests of their sources."""
        here = {each.fragment_id for each in dataset.get_fragments()}
        gone = [piece["file"] for (fragment, _), piece in self._pieces.items() if fragment not in here]
        maker = self._using
        known = [each for each in maker.earlier if not isinstance(each, _Gone)]
        again = next((each for each in maker.earlier if isinstance(each, _Gone) and each.names == gone), None)
        if gone:
            known.append(again or _Gone([Path(self.place.beside.uri, FILES, name) for name in gone], gone))
        maker.earlier = known

    def _stage(self, dataset: Any, fragment: Any, done: int, total: int) -> None:
        """Write and record the file of one fragment."""
        self.check()
        source_file, version = self._source_file(dataset, fragment), dataset.data_storage_version
        maker = self._using
        rows, name, previous = fragment.metadata.physical_rows, f"{uuid.uuid4().hex}.lance", None
        with contextlib.ExitStack() as stack:
            new = stack.enter_context(self._writing(name, maker.field.type, version))
            old = None
            if self.keep is not None:
                previous = f"{uuid.uuid4().hex}.lance"
                kind = dataset.schema.field(self.keep.vector).type
                old = stack.enter_context(self._writing(previous, kind, version))
            for batch, offsets in self._rows(dataset, fragment):
                source = batch.column(0)
                vectors, digests = maker.make(source)
                new.place(vectors, digests, offsets)
                if old is not None and self.keep is not None:
                    old.put(batch.column(1), self._kept(self.keep, batch))
                done += len(source)
                if self.progress is not None:
                    self.progress(done, total)
            new.end(rows)
        piece = {
            "format": 1,
            "fragment": fragment.fragment_id,
            "source_file": source_file,
            "rows": rows,
            "file": name,
            "size": self.place.staged(name).stat().st_size,
            "previous": previous,
        }
        self.check()
        self.place.kept.keep(piece, self.folder)
        self._pieces[fragment.fragment_id, source_file] = piece
        self.staged += 1

    def _kept(self, column: Column, batch: pa.RecordBatch) -> pa.Array:
        """Return the digests by which old vectors are found again: none for a row that is not fresh.

        A stale vector is not that of its row's text, nor is another function's.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        stamps = digest.digests(batch.column(0), column.prefix or NO_FUNCTION)
        if column.digest is None:
            return stamps
        fresh = pa.array(digest.same(stamps, batch.column(2).cast(pa.string())))
        return pc.if_else(fresh, stamps, pa.scalar(None, pa.string()))

    def _rows(self, dataset: Any, fragment: Any) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Yield the live rows of a fragment, source and kept column, with their places in it."""
        import pyarrow as pa

        kept = (self.keep.vector, self.keep.digest) if self.keep is not None else ()
        wanted = [self.source, *(name for name in kept if name is not None)]
        what = f"table {self.place.name!r} cannot be read"
        with lance_errors(what):
            scanner = dataset.scanner(
                columns=wanted, fragments=[fragment], with_row_address=True, batch_size=self.batch_rows
            )
            batches = iter(scanner.to_batches())
        while True:
            with lance_errors(what):
                batch = next(batches, None)
            if batch is None:
                return
            columns = [batch.column(name) for name in wanted]
            yield pa.RecordBatch.from_arrays(columns, wanted), offsets_of(batch.column("_rowaddr"))

    def unknown(self, kept: Files | None, some: int) -> tuple[int, pa.Array]:
        """Return how many rows of the newest version would be embedded, and the sources of some of them.

        Args:
            kept: where vectors are found by the digests of sources; None for nowhere.
        """
        import numpy as np
        import pyarrow as pa

        dataset, total, sample = self.place.newest(), 0, pa.nulls(0, pa.string())
        prefix = self._using.prefix
        for fragment in self.missing(dataset):
            for batch, _ in self._rows(dataset, fragment):
                source = batch.column(0)
                keys, valid = keys_of(digest.digests(source, prefix))
                rows = np.flatnonzero(valid)
                if kept is not None:
                    rows = rows[~kept.holds(keys[rows])]
                if not len(sample):
                    sample = source.take(pa.array(rows[:some]))
                total += len(rows)
        return total, sample

    @contextlib.contextmanager
    def _writing(self, name: str, kind: pa.DataType, version: str) -> Iterator[Writer]:
        """Write a file of `vector` and `digest` beside the table; it has its name once it is whole and on the disk."""
        import pyarrow as pa

        lance()
        from lance.file import LanceFileWriter

        schema = pa.schema({"vector": kind, "digest": pa.string()})
        with self.place.beside.publish(f"{FILES}/{name}", self.check) as growing:
            with lance_errors("a staged file cannot be written"):
                writer = LanceFileWriter(str(growing), schema, version=version)
            yield Writer(writer, schema)
            with lance_errors("a staged file cannot be written"):
                writer.close()

    # -- publishing --------------------------------------------------------------------------------------------------

    def published(self, dataset: Any, ids: Sequence[int], *, nulls: bool = False, onto: Any | None = None) -> list[Any]:
        """Publish the staged files of a version's fragments; return these fragments with the files added.

        Args:
            ids: the new field ids: of the vector alone, or of vector and digest.
            nulls: whether a fragment that is not staged gets a file of nulls, which are filled later.
            onto: a branch of this version, whose fragments are returned instead.
        Raises:
            StorageError: a fragment is not staged, or a staged file is missing.
        """
        lance()
        from lance.fragment import DataFile

        made = []
        for fragment in dataset.get_fragments():
            metadata = fragment.metadata if onto is None else onto.get_fragment(fragment.fragment_id).metadata
            like, added = metadata.files[0], []
            version = like.file_major_version, like.file_minor_version
            if old := self._old(fragment):
                sizes = {str(each.path): each.file_size_bytes for each in fragment.metadata.files}
                pairs = list(zip(ids, old, strict=False))  # fewer ids where the vector alone is wanted
                for path in dict.fromkeys(path for _, (path, _) in pairs):
                    new, at = zip(*((one, place) for one, (other, place) in pairs if other == path), strict=True)
                    added.append(DataFile(path, list(new), list(at), *version, sizes[path], like.base_id))
            else:
                piece = self.piece(dataset, fragment)
                if piece is None and nulls:
                    piece = self._empty(dataset, fragment)
                if piece is None:
                    raise StorageError("a fragment is not staged.", "run the same command again")
                self.place.publish(piece["file"])
                columns = list(range(len(ids)))
                added.append(DataFile(piece["file"], list(ids), columns, *version, piece["size"], like.base_id))
            made.append(dataclasses.replace(metadata, files=[*metadata.files, *added]))
        return made

    def _empty(self, dataset: Any, fragment: Any) -> dict[str, Any]:
        """Write a file of nulls for a fragment; it is not recorded, so that it never counts as staged."""
        name = f"{uuid.uuid4().hex}.lance"
        with self._writing(name, self._using.field.type, dataset.data_storage_version) as new:
            new.end(fragment.metadata.physical_rows)
        self.nulls.append(name)
        return {"file": name, "size": self.place.staged(name).stat().st_size}

    def republish(self, dataset: Any) -> None:
        """Restore published files that another writer's clean-up took for unused, right after the commit."""
        used = data_files(dataset)
        for name in (*(piece["file"] for piece in self._pieces.values()), *self.nulls):
            if name in used:
                self.place.publish(name)

    def withdraw(self, used: set[str]) -> None:
        """Remove published files that no version names.

        Args:
            used: the data files of the newest version.
        """
        for name in (*(piece["file"] for piece in self._pieces.values()), *self.nulls):
            if name not in used:
                self.place.withdraw(name)

    def sampled(self, dataset: Any, rows: int) -> Iterator[tuple[pa.Array, pa.Array]]:
        """Yield sources and staged vectors of about `rows` rows, spread over the fragments."""
        import pyarrow as pa

        lance()
        from lance.file import LanceFileReader

        found = [(each, self.piece(dataset, each)) for each in dataset.get_fragments()]
        staged = [(each, piece) for each, piece in found if piece is not None and each.count_rows()]
        some = staged[:: max(1, len(staged) // rows)][:rows]
        for fragment, piece in some:
            count = max(1, rows // len(some))
            start = max(0, fragment.count_rows() // 2 - count // 2)
            with lance_errors(f"table {self.place.name!r} cannot be read"):
                taken = dataset.scanner(
                    columns=[self.source], fragments=[fragment], with_row_address=True, limit=count, offset=start
                ).to_table()
            places = offsets_of(taken["_rowaddr"].combine_chunks())
            reader = LanceFileReader(str(self.place.staged(piece["file"])), columns=["vector"])
            vectors = [each.column(0) for each in reader.take_rows(places.tolist()).to_batches()]
            yield taken[self.source].combine_chunks(), pa.concat_arrays(vectors)


class _Gone(Files):
    """Vectors in staged files of fragments that are gone."""

    def __init__(self, paths: Sequence[Path], names: list[str]) -> None:
        super().__init__(paths)
        self.names = names


def offsets_of(addresses: pa.Array) -> np.ndarray:
    """Return the places in their fragment of row addresses: (n,) int64."""
    import numpy as np

    return (np.asarray(addresses).astype(np.uint64) & np.uint64(0xFFFFFFFF)).astype(np.int64)


def file_of(metadata: Any, field_id: int) -> tuple[str, int]:
    """Return the data file of a fragment that holds a field, and the column's index in it; "" if none does."""
    for each in metadata.files:
        if field_id in each.fields:
            return str(each.path), int(each.column_indices[list(each.fields).index(field_id)])
    return "", 0


def data_files(dataset: Any) -> set[str]:
    """Return the names of the data files of a version."""
    return {str(each.path) for fragment in dataset.get_fragments() for each in fragment.metadata.files}
