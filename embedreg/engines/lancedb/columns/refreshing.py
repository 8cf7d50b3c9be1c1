"""`fill` and `refresh`: embed the rows whose digest is not that of their source and function, and only these.

Where they are more than a fifth of a fragment, its column is rewritten, and that commit is refused if the fragment's
rows changed meanwhile. Elsewhere rows are merged by their source itself, or by a key if one is given: a row whose
source changed meanwhile does not match, so it never gets the vector of its old source.

Over 400 lines: one class, whose ways of writing share the version, the counts and the sources that failed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embedreg.columns.arguments import no_column
from embedreg.columns.declare import rebuilt
from embedreg.columns.results import ColumnReport
from embedreg.columns.sources import Source
from embedreg.columns.store import Options, Unstamped, without_digests
from embedreg.declaration import codec, digest
from embedreg.declaration.quantization import quantizer_of
from embedreg.embedding.quantizing import learn_from
from embedreg.engines.lancedb.columns import adding
from embedreg.engines.lancedb.columns.commits import Attempts, lance, lance_errors
from embedreg.engines.lancedb.columns.comparing import agrees
from embedreg.engines.lancedb.columns.declared import Column, chosen, columns_of, counts_of, predicate
from embedreg.engines.lancedb.columns.making import Maker
from embedreg.engines.lancedb.columns.place import Place
from embedreg.engines.lancedb.columns.staging import data_files
from embedreg.engines.lancedb.names import quoted
from embedreg.engines.lancedb.ranges import agreed
from embedreg.errors import StorageError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["fill", "refresh", "rewrite"]

WHOLE = 0.2  # of a fragment's rows, from which on its column is rewritten (measured: docs/benchmarks.md)
_CHUNK = 20_000  # rows of one merge
_ROUNDS = 5


def fill(place: Place, vector: str, options: Options) -> ColumnReport:
    """Embed the rows with a source and no vector."""
    return _Refresh(place, vector, options, "fill").run(["empty"])


def refresh(
    place: Place, vector: str, options: Options, *, unstamped: Unstamped, sample: int, dry_run: bool = False
) -> ColumnReport:
    """Embed the rows that are not fresh; arguments and errors as `embedreg.columns.refresh`."""
    work = _Refresh(place, vector, options, "refresh")
    if work.column.digest is None:
        wanted, note = without_digests(unstamped, templated=work.templated)
        some = sorted(wanted)
        every = unstamped == "recompute"
        report = work.counted(some) if dry_run else work.anew(some) if every else work.run(some)
        return replace(report, notes=(*report.notes, *note))
    classes = ["stale", "foreign", "empty"]
    if unstamped == "recompute":
        classes.append("unstamped")
    if dry_run:
        return work.counted([*classes, *(["unstamped"] if unstamped == "verify" else [])])
    notes: list[str] = []
    stamped = 0
    if unstamped != "recompute":
        waiting = counts_of(work.dataset, work.column)["unstamped"]
        if waiting and (unstamped == "trust" or work.sample_agrees(sample, notes)):
            stamped = work.stamp()
        elif waiting:
            classes.append("unstamped")
    report = work.run(classes)
    return replace(report, stamped=stamped, notes=(*report.notes, *notes))


def rewrite(place: Place, vector: str, options: Options, sources: pa.Table) -> int:
    """Embed some sources regardless of their rows' digests, and write these rows; return how many."""
    work = _Refresh(place, vector, options, "settle")
    work._merge(sources)
    return work.written


@dataclass
class _Refresh:
    """One run on one column."""

    place: Place
    vector: str
    options: Options
    what: str
    commits: int = 0
    retries: int = 0
    written: int = 0
    passed: int = 0
    bytes_written: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.dataset = self.place.newest()
        self.column: Column = chosen(self.dataset.schema, self.vector, f"table {self.place.name!r}")
        if self.options.key is not None and self.options.key not in self.dataset.schema.names:
            raise no_column(f"table {self.place.name!r}", self.options.key, self.dataset.schema.names)
        self._maker: Maker | None = None
        self._failed: set[str] = set()

    def _newest(self) -> Any:
        """Return the newest version.

        Raises:
            StorageError: the column has another declaration now: its rows would get vectors of the old one.
        """
        dataset = self.place.newest()
        now = columns_of(dataset.schema).get(self.column.vector)
        if now is None or _said(now) != _said(self.column):
            raise StorageError(
                f"the declaration of column {self.column.vector!r} was changed meanwhile.", "run the same call again"
            )
        return dataset

    @property
    def templated(self) -> bool:
        """Whether the sources are rendered from a template, and written together with the vectors."""
        return self.column.origin.template is not None

    @property
    def maker(self) -> Maker:
        """The maker of vectors; created on first use, since a run that finds nothing needs no function."""
        how = quantizer_of(self.column.entry.reserved)
        if how is not None and not how.known:
            self._learn_ranges()
        if self._maker is None:
            self._maker = Maker(
                lambda: rebuilt(self.column.entry),
                self.column.entry,
                self.options,
                self.dataset.schema.field(self.column.vector),
            )
        return self._maker

    def _learn_ranges(self) -> None:
        """Learn the ranges of a quantised column from the first rows, or take those of another writer."""
        made = learn_from(rebuilt(self.column.entry), adding.sources_of(self.dataset, Source.of(self.column.entry)))
        if made.ranges is not None:
            agreed(self.place.newest, self.place.name, {self.column.vector: made.ranges})
            self.dataset = self.place.newest()
            self.column = chosen(self.dataset.schema, self.vector, f"table {self.place.name!r}")

    # -- counting ----------------------------------------------------------------------------------------------------

    def counted(self, classes: Sequence[str]) -> ColumnReport:
        """Return the report of a dry run."""
        counts = counts_of(self.dataset, self.column)
        todo = sum(counts[each] for each in classes)
        rows = int(self.dataset.count_rows())
        return ColumnReport(self.vector, self.what, rows=rows, written=todo, seconds=self._seconds(), dry_run=True)

    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    # -- vectors without a digest --------------------------------------------------------------------------------------

    def sample_agrees(self, sample: int, notes: list[str]) -> bool:
        """Return whether a sample of the vectors without a digest is what the function returns."""
        import numpy as np

        column = self.column
        found = self._scan(["unstamped"], [column.source], None)
        addresses = np.concatenate([np.asarray(batch.column("_rowaddr")) for batch in found])
        places = np.sort(np.random.default_rng(0).permutation(len(addresses))[:sample])
        rows = self._rows(addresses[places], [column.source, column.vector])
        good, seen = agrees(self.maker, rows[column.source], rows[column.vector])
        notes.append(
            f"{good} of {seen} sampled vectors agreed, of {len(addresses):,} without a digest: all were "
            + ("stamped" if good == seen else "embedded again")
        )
        return good == seen

    def _rows(self, addresses: np.ndarray, columns: list[str]) -> pa.Table:
        """Return columns of rows by their addresses, of this run's version."""
        import numpy as np
        import pyarrow as pa

        parts = []
        for fragment, wanted in _by_fragment(addresses):
            found = self.dataset.scanner(
                columns=self._read(columns), fragments=[self.dataset.get_fragment(fragment)], with_row_address=True
            ).to_batches()
            for batch in found:
                inside = np.isin(np.asarray(batch.column("_rowaddr")), wanted)
                if inside.any():
                    some = self._rendered(batch, columns)
                    parts.append(pa.Table.from_batches([some]).filter(pa.array(inside)))
        return pa.concat_tables(parts)

    def stamp(self) -> int:
        """Write the missing digests of vectors, one file of digests for each fragment."""
        import pyarrow as pa

        column, done = self.column, 0
        attempts = Attempts(self.options.switch_timeout_s)
        while True:
            self.dataset = self._newest()
            scanned = (
                (each, list(self._scan(["unstamped"], [column.source], each))) for each in self.dataset.get_fragments()
            )
            fragment, batches = next((pair for pair in scanned if pair[1]), (None, []))
            if fragment is None:
                return done
            found = pa.Table.from_batches(batches)
            marks = digest.digests(found[column.source], column.prefix or "")
            table = pa.table({"_rowaddr": found["_rowaddr"], column.digest or "": marks})
            if self._rewrite(fragment, table, attempts):
                done += len(table)

    # -- embedding -----------------------------------------------------------------------------------------------------

    def run(self, classes: Sequence[str]) -> ColumnReport:
        """Embed the rows of some classes; repeat while others write, up to a few rounds."""
        attempts = Attempts(self.options.switch_timeout_s)
        for _ in range(_ROUNDS):
            self.dataset = self._newest()
            left = self._round(classes, attempts)
            if not left:
                break
        return self._report()

    def anew(self, classes: Sequence[str]) -> ColumnReport:
        """Embed all rows of some classes once, where nothing in a row shows that this has been done.

        Fragments that others add meanwhile are embedded too: they may hold rows of earlier ones, with their vectors.
        """
        attempts, done = Attempts(self.options.switch_timeout_s), set[int]()
        column = self.column
        self._clear_where(f"{column.value} is null and {quoted(column.vector)} is not null")
        done_rows, total = 0, self.dataset.count_rows(predicate(column, classes))
        for _ in range(_ROUNDS):
            found = [each.fragment_id for each in self._newest().get_fragments() if each.fragment_id not in done]
            if not found:
                break
            for number in found:
                self.dataset = self._newest()
                if (fragment := self.dataset.get_fragment(number)) is None:
                    continue
                batches = list(self._scan(classes, [column.source], fragment))
                if batches and not self._embed_whole(fragment, batches, attempts):
                    continue
                done.add(number)
                done_rows += sum(batch.num_rows for batch in batches)
                if self.options.progress is not None:
                    self.options.progress(min(done_rows, total), total)
        return self._report()

    def _report(self) -> ColumnReport:
        report = ColumnReport(self.vector, self.what, rows=int(self.dataset.count_rows()), seconds=self._seconds())
        if self._maker is not None:
            report = adding.reported(self.vector, self.what, self._maker, self.dataset, self.started)
        return replace(
            report,
            written=self.written,
            changed_meanwhile=self.passed,
            bytes_written=self.bytes_written,
            commits=self.commits,
            retries=self.retries,
        )

    def _round(self, classes: Sequence[str], attempts: Attempts) -> bool:
        """Work on the newest version once; return whether another round may find more."""
        import pyarrow as pa

        column, again = self.column, False
        self._clear(classes)
        total = self.dataset.count_rows(predicate(column, classes))
        if not total:
            return False
        done = 0
        names = [column.source, *([self.options.key] if self.options.key is not None else [])]
        waiting: list[pa.Table] = []
        for number in [each.fragment_id for each in self.dataset.get_fragments()]:
            self.dataset = self._newest()  # a commit of this run, too, is one that others must be based on
            if (fragment := self.dataset.get_fragment(number)) is None:
                again = True
                continue
            batches = [self._unfailed(batch) for batch in self._scan(classes, names, fragment)]
            rows = sum(batch.num_rows for batch in batches)
            if not rows:
                continue
            found = pa.Table.from_batches(batches)
            if self.templated or rows > WHOLE * fragment.count_rows():
                self._embed_whole(fragment, batches, attempts)
                again = True
            else:
                waiting.append(found)
                if sum(map(len, waiting)) >= _CHUNK:
                    again |= self._merge(pa.concat_tables(waiting))
                    waiting = []
            done += rows
            if self.options.progress is not None:
                self.options.progress(min(done, total), total)
        if waiting:
            again |= self._merge(pa.concat_tables(waiting))
        return again

    def _embed_whole(self, fragment: Any, batches: list[pa.RecordBatch], attempts: Attempts) -> bool:
        """Embed rows of a fragment and rewrite its column; return False if another writer was first."""
        import pyarrow as pa

        column, found = self.column, pa.Table.from_batches(batches)
        vectors, marks = self._made(found[column.source])
        columns = {"_rowaddr": found["_rowaddr"], column.vector: vectors}
        if column.digest is not None:
            columns[column.digest] = marks
        if self.templated:
            columns[column.source] = found[column.source]
        if not self._rewrite(fragment, pa.table(columns), attempts):
            return False
        self.written += len(found)
        return True

    def _made(self, source: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
        """Embed sources, and remember those that failed: another round would fail too."""
        vectors, marks = self.maker.make(source.combine_chunks())
        stamps = digest.digests(source, self.maker.prefix)
        for mark, stamp in zip(marks.to_pylist(), stamps.to_pylist(), strict=True):
            if mark is None and stamp is not None:
                self._failed.add(stamp)
        return vectors, marks

    def _unfailed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows whose source has not failed in this run."""
        import pyarrow as pa

        if not self._failed:
            return batch
        stamps = digest.digests(batch.column(self.column.source), self.maker.prefix).to_pylist()
        return batch.filter(pa.array([stamp not in self._failed for stamp in stamps], pa.bool_()))

    def _scan(self, classes: Sequence[str], columns: Sequence[str], fragment: Any | None) -> Iterator[pa.RecordBatch]:
        """Yield columns and addresses of the rows of some classes."""
        with lance_errors(f"table {self.place.name!r} cannot be read"):
            for batch in self.dataset.scanner(
                columns=self._read(columns),
                filter=predicate(self.column, classes),
                fragments=None if fragment is None else [fragment],
                with_row_address=True,
            ).to_batches():
                yield self._rendered(batch, columns)

    def _read(self, columns: Sequence[str]) -> list[str]:
        """Return the columns to read: instead of a template's texts, those that it reads."""
        others = [name for name in columns if name != self.column.source]
        wanted = self.column.origin.columns if self.column.source in columns else ()
        return list(dict.fromkeys([*wanted, *others]))

    def _rendered(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        """Return a batch as it was requested, with the texts of the template instead of the source column."""
        import pyarrow as pa

        if not self.templated:
            return batch
        kind = self.dataset.schema.field(self.column.source).type
        made = {name: batch.column(name) for name in batch.schema.names if name in {*columns, "_rowaddr"}}
        if self.column.source in columns:
            made[self.column.source] = self.column.origin.values(batch).cast(kind)
        return pa.RecordBatch.from_pydict(made)

    def _clear(self, classes: Sequence[str]) -> None:
        """Remove vector and digest from rows that no longer have a source."""
        column = self.column
        if column.digest is not None and "stale" in classes:
            self._clear_where(f"{column.value} is null and {quoted(column.digest)} is not null")

    def _clear_where(self, where: str) -> None:
        column = self.column
        with lance_errors(f"table {self.place.name!r} cannot be written"):
            if self.dataset.count_rows(where):
                before = data_files(self.dataset)
                names = [column.vector, *([column.digest] if column.digest is not None else [])]
                names += [column.source] if self.templated else []
                made = self.dataset.update(dict.fromkeys(names, "null"), where=where)
                self.written += int(made["num_rows_updated"])
                self._count(before)

    def _merge(self, found: pa.Table) -> bool:
        """Write the vectors of rows by merging; return whether something was written."""
        import pyarrow as pa

        column, key = self.column, self.options.key
        vectors, marks = self._made(found[column.source])
        values = {column.source: found[column.source], column.vector: vectors}
        if column.digest is not None:
            values[column.digest] = marks
        if key is not None:
            values[key] = found[key]
        table = pa.table(values)
        by = key or column.source
        table = table.take(pa.array(_first_of_each(found[by]), pa.int64()))
        before = self._newest()
        if table.schema.field(column.source).type != before.schema.field(column.source).type:
            table = table.cast(pa.schema([before.schema.field(name) for name in table.schema.names]))
        same = f"target.{quoted(column.source)} = source.{quoted(column.source)}"
        with lance_errors(f"table {self.place.name!r} cannot be written"):
            made = (
                before.merge_insert(by)
                .when_matched_update_all(same if key is not None else None)
                .conflict_retries(20)
                .execute(table)
            )
        updated = int(made["num_updated_rows"])
        self.written += updated
        self.passed += max(0, len(table) - updated)
        self._count(data_files(before))
        return True

    def _rewrite(self, fragment: Any, table: pa.Table, attempts: Attempts) -> bool:
        """Rewrite columns of a fragment with values of some of its rows; return False if another writer was first."""
        name = f"table {self.place.name!r} cannot be written"
        with lance_errors(name):
            changed, modified = fragment.update_columns(table.to_reader(), left_on="_rowaddr", right_on="_rowaddr")
        version = int(self.dataset.version)
        before = data_files(self.dataset)
        operation = lance().LanceOperation.Update(updated_fragments=[changed], fields_modified=modified)
        try:
            lance().LanceDataset.commit(
                str(self.place.path), operation, read_version=version, max_retries=0, commit_message="embedreg refresh"
            )
        except (OSError, RuntimeError, ValueError) as exc:
            self.retries += 1
            attempts.failed(self.place, version, exc)
            return False
        self._count(before)
        return True

    def _count(self, before: set[str]) -> None:
        self.commits += 1
        self.bytes_written += self.place.size_of(data_files(self.place.newest()) - before)


def _said(column: Column) -> tuple[Any, ...]:
    """Return the part of a declaration that must stay while its column is written; the probe may be added."""
    model = {key: value for key, value in column.entry.model.items() if key != codec.RESERVED}
    return column.prefix, column.digest, column.source, column.entry.name, model


def _by_fragment(addresses: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    import numpy as np

    fragments = (addresses >> np.uint64(32)).astype(np.int64)
    for fragment in np.unique(fragments).tolist():
        yield fragment, addresses[fragments == fragment]


def _first_of_each(values: pa.ChunkedArray) -> list[int]:
    """Return the index of the first row of each distinct value."""
    seen: dict[Any, int] = {}
    for row, value in enumerate(values.to_pylist()):
        if value is not None:
            seen.setdefault(value, row)
    return list(seen.values())
