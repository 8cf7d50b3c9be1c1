"""A Lance table as a `ColumnStore`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.columns.declare import settings_of
from embedreg.columns.migration import Migration
from embedreg.columns.results import ColumnReport, ColumnStatus, MigrationStatus
from embedreg.columns.store import ColumnStore, Options, Unstamped
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration import codec
from embedreg.declaration.entries import Entry
from embedreg.embedding.table import BATCH_ROWS
from embedreg.engines.lancedb.columns import adding, declared, declaring, migrating, refreshing
from embedreg.engines.lancedb.columns.commits import lance_errors
from embedreg.engines.lancedb.columns.place import Place
from embedreg.errors import EmbedregError
from embedreg.inspection.attach import Agreement

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LanceColumns"]


class LanceColumns(ColumnStore):
    """The columns of a Lance table on a local disk; what is read comes from the version at opening."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._dataset = place.newest()
        self.shown = f"table {place.name!r}"

    @property
    def schema(self) -> pa.Schema:
        schema: pa.Schema = self._dataset.schema
        return schema

    @property
    def rows(self) -> int:
        return int(self._dataset.count_rows())

    def scan(self, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        with lance_errors(f"{self.shown} cannot be read"):
            yield from self._dataset.scanner(
                columns=list(columns), batch_size=batch_rows, scan_in_order=True
            ).to_batches()

    def take(self, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
        with lance_errors(f"{self.shown} cannot be read"):
            found: pa.Table = self._dataset.take(list(rows), columns=list(columns))
            return found

    def declared(self) -> list[Entry]:
        return codec.entries(self.schema.metadata)

    def previous(self, vector: str) -> Entry | None:
        try:
            mark = declared.mark_of(self.schema)
        except EmbedregError:
            return None
        return mark.before if mark is not None and mark.name == vector else None

    def status(self) -> list[ColumnStatus]:
        dataset = self._place.newest()
        migration: MigrationStatus | None = None
        problem = None
        try:
            found = migrating.found(self._place, Options())
            migration = None if found is None else found.status
        except EmbedregError as exc:
            problem = exc.message
        made = []
        for column in declared.columns_of(dataset.schema).values():
            ours = migration if migration is not None and column.vector in (migration.vector, migration.name) else None
            made.append(_status(dataset, column, ours, problem))
        self._place.follow()
        return made

    def add(self, declaration: EmbeddingFunctionConfig, options: Options) -> ColumnReport:
        report = adding.add(self._place, declaration, options)
        self._place.follow()
        return report

    def fill(self, vector: str, options: Options) -> ColumnReport:
        report = refreshing.fill(self._place, vector, options)
        self._place.follow()
        return report

    def refresh(
        self, vector: str, options: Options, *, unstamped: Unstamped, sample: int, dry_run: bool
    ) -> ColumnReport:
        report = refreshing.refresh(self._place, vector, options, unstamped=unstamped, sample=sample, dry_run=dry_run)
        self._place.follow()
        return report

    def migrate(
        self,
        vector: str,
        function: EmbeddingFunction,
        options: Options,
        *,
        name: str | None,
        switch: bool,
        index: str,
        keep: bool,
    ) -> Migration:
        made = migrating.migrate(
            self._place, vector, function, options, name=name, switch=switch, index=index, keep=keep
        )
        self._place.follow()
        return made

    def migrations(self, options: Options) -> list[Migration]:
        found = migrating.found(self._place, options)
        return [] if found is None else [found]

    def repoint(self, vector: str, function: EmbeddingFunction, *, sample: int, seed: int, dry_run: bool) -> Agreement:
        made = declaring.repoint(self._place, vector, function, sample=sample, seed=seed, dry_run=dry_run)
        self._place.follow()
        return made

    def detach(self, vector: str, *, drop: bool) -> None:
        declaring.detach(self._place, vector, drop=drop)
        self._place.follow()


def _status(
    dataset: Any, column: declared.Column, migration: MigrationStatus | None, problem: str | None
) -> ColumnStatus:
    counts: dict[str, Any] = {}
    why = column.problem
    if why is None:
        try:
            counts = declared.counts_of(dataset, column)
        except EmbedregError as exc:
            why = exc.message
    fingerprint = column.entry.reserved.get("fingerprint")
    return ColumnStatus(
        vector=column.vector,
        source=column.source,
        function=column.entry.name,
        settings=settings_of(column.entry),
        fingerprint=fingerprint if isinstance(fingerprint, str) else None,
        digest=column.digest,
        rows=int(dataset.count_rows()),
        migration=migration,
        problem=why or problem,
        **counts,
    )
