"""`Run`: reads the parents, cuts those that changed, embeds what is new of their chunks, and writes whole parents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from embedreg.chunks import settings as stored
from embedreg.chunks.child import Child
from embedreg.chunks.cutting import Cutter
from embedreg.chunks.settings import CHUNK, END, PARENT_DIGEST, START, Settings, digest_of
from embedreg.columns.declare import entry_for
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.datasets.sources import Source
from embedreg.declaration import codec
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.embedding.quantizing import is_unknown
from embedreg.embedding.table import BadRow, Progress, Report, embed_batches
from embedreg.errors import ConfigError, InputError, MissingColumnError, SchemaError, StorageError
from embedreg.runtime.remote.usage import TotalUsage
from embedreg.support.imports import did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ChunkReport", "OnError", "Run"]

PARENTS = 1000  # of one commit
_CHARACTERS = 16 << 20  # of the parents of one commit, unless one has more
_COLUMNS = (CHUNK, START, END, PARENT_DIGEST)
OnError = Literal["raise", "null"]


@dataclass
class ChunkReport:
    """The report of `chunk` or `sync`.

    Attributes:
        path: of the child.
        parents: rows read.
        cut: parents that were cut: new ones, and those whose text or way of cutting changed.
        removed: parents that are gone.
        chunks: of the child afterwards.
        written: chunks written.
        reused: of these, chunks whose text was there before with its vector.
        embedded, cached: as in `Report`.
        bad: chunks that failed, by their number among those written.
        size, overlap: in tokens.
        exact: whether the function itself counted the tokens; else four bytes of text count as one.
        seconds: duration.
        usage: what a remote function cost.
    """

    path: str
    parents: int = 0
    cut: int = 0
    removed: int = 0
    chunks: int = 0
    written: int = 0
    reused: int = 0
    embedded: int = 0
    cached: int = 0
    bad: list[BadRow] = field(default_factory=list)
    size: int = 0
    overlap: int = 0
    exact: bool = True
    seconds: float = 0.0
    usage: TotalUsage = field(default_factory=TotalUsage)


class Run:
    """One run over the parents."""

    def __init__(
        self,
        child: Child,
        source: Source,
        settings: Settings,
        cutter: Cutter,
        config: EmbeddingFunctionConfig,
        on_error: OnError,
        progress: Progress | None,
    ) -> None:
        self.child, self.source, self.settings, self.cutter = child, source, settings, cutter
        self.config, self.on_error, self.progress = config, on_error, progress
        self.text, self.vector, self.key = config.source_column, config.vector_column, settings.key
        self._refuse_columns()

    def _refuse_columns(self) -> None:
        import pyarrow as pa

        names = self.source.schema.names
        for what, name in (("key", self.key), ("source", self.settings.source)):
            if name not in names:
                raise MissingColumnError(
                    f"{self.source.place} has no column {name!r}.",
                    f"{did_you_mean(name, names)}{what}=... names another: {', '.join(names)}",
                ).for_shell(f"{did_you_mean(name, names)}--{what} names another: {', '.join(names)}")
        kind = self.source.schema.field(self.key).type
        if not (pa.types.is_integer(kind) or kind in (pa.string(), pa.large_string())):
            raise InputError(f"the key column {self.key!r} is {kind}; keys are integers or texts.", "key='id'")
        kind = self.source.schema.field(self.settings.source).type
        if kind not in (pa.string(), pa.large_string(), pa.string_view()):
            raise InputError(f"column {self.settings.source!r} is {kind}; only texts are cut.", "source='text'")
        taken = [self.key, *_COLUMNS, self.text, self.vector, digests.column_name(self.vector)]
        if len(set(taken)) < len(taken):
            raise SchemaError(
                f"two columns of the chunks would have the same name: {', '.join(taken)}.",
                "fn.bind('text', 'vector'), key='id'",
            )

    # -- the child's schema --------------------------------------------------------------------------------------------

    def _schema(self, own: pa.Schema | None) -> pa.Schema:
        """Return the child's schema; an existing child keeps its own declarations.

        Raises:
            StorageError: a table of other columns is there. SchemaError: another function made its vectors.
        """
        import pyarrow as pa

        if own is None:
            if is_unknown(self.config):
                raise ConfigError(
                    f"the ranges of the {self.config.value_type} chunks are not known before they are cut.",
                    "fn.bind('text', 'vector', dtype='int8', ranges=embedreg.calibrate(fn, texts))",
                )
            dtype, ranges = self.config.value_type, self.config.ranges
            config = self.config.function.bind(self.text, self.vector, dtype=dtype, ranges=ranges)
            entry = entry_for(config, digest=True)
            self._use(entry)
            made = embed_batches(self._bare().empty_table(), [self.config]).schema
        else:
            if stored.read(own.metadata, self.child.shown) is None:
                raise StorageError(f"{self.child.shown} exists and holds no chunks.", "choose another name")
            entries = {each.vector_column: each for each in codec.entries(own.metadata)}
            same = self.vector in entries and codec.says_same(self.config, entries[self.vector])
            if not same or entries[self.vector].source_column != self.text:
                raise SchemaError(
                    f"{self.child.shown} has vectors of another function or for other columns.",
                    "embedreg.columns.migrate changes its function; or choose another name",
                ).for_shell("embedreg column migrate changes its function; or choose another name")
            self._use(entries[self.vector])
            made = embed_batches(own.empty_table(), [self.config]).schema
            if not made.equals(own) or not self._holds_chunks(own):
                raise StorageError(f"{self.child.shown} has other columns than its chunks need.", "choose another name")
        text = self.settings.encoded.encode()
        return pa.schema(list(made), {**(made.metadata or {}), stored.KEY.encode(): text})

    def _holds_chunks(self, own: pa.Schema) -> bool:
        """Return whether a table has the columns of chunks; keys of texts may be of either size."""
        import pyarrow as pa

        texts = pa.string(), pa.large_string()
        return all(
            item.name in own.names
            and (item.type == own.field(item.name).type or {item.type, own.field(item.name).type} == {*texts})
            for item in self._bare()
        )

    def _bare(self) -> pa.Schema:
        """Return the columns of chunks before they are embedded."""
        import pyarrow as pa

        kind = self.source.schema.field(self.key).type
        return pa.schema(
            [
                pa.field(self.key, kind),
                pa.field(CHUNK, pa.int32()),
                pa.field(START, pa.int64()),
                pa.field(END, pa.int64()),
                pa.field(self.text, pa.string()),
                pa.field(PARENT_DIGEST, pa.string()),
            ]
        )

    def _use(self, entry: Entry) -> None:
        self.config = codec.recorded(entry, self.config.function)
        self.prefix = digests.prefix_stored(entry.reserved) or ""
        self.digest = digests.column_of(entry.reserved) or digests.column_name(self.vector)

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, path: str, *, resume: bool) -> ChunkReport:
        """Cut and embed what has changed."""
        started, report = time.perf_counter(), Report()
        cutter = self.cutter
        made = ChunkReport(path, size=cutter.size, overlap=cutter.overlap, exact=cutter.measure.exact)
        with self.child.locked(resume=resume):
            self.schema = self._schema(self.child.schema())
            self.child.begin(self.schema)
            done = self.child.parents(self.key)
            seen: set[Any] = set()
            for group in self._changed(done, seen, made):
                self._write(group, done, report, made)
            made.parents = len(seen)
            gone = [key for key in done if key not in seen]
            if gone:
                self.child.remove(self.key, gone)
            made.removed = len(gone)
            self.child.finish()
            made.chunks = self.child.count()
        made.embedded, made.cached, made.bad, made.usage = report.embedded, report.cached, report.bad, report.usage
        made.seconds = time.perf_counter() - started
        return made

    def _changed(
        self, done: dict[Any, str | None], seen: set[Any], made: ChunkReport
    ) -> Iterator[list[tuple[Any, str]]]:
        """Yield groups of parents to cut: (key, text), the text "" for one that no longer has a text."""
        prefix, total = self.settings.prefix, self.source.rows
        group: list[tuple[Any, str]] = []
        characters = 0
        for batch in self.source.batches([self.key, self.settings.source]):
            keys, texts = (batch.column(n).to_pylist() for n in range(2))
            for key, text in zip(keys, texts, strict=True):
                if key is None or key in seen:
                    raise InputError(
                        f"the key {key!r} of row {len(seen):,} of {self.source.place} is "
                        f"{'null' if key is None else 'a duplicate'}.",
                        f"each parent needs a {self.key!r} of its own",
                    )
                seen.add(key)
                blank = text is None or not text.strip()
                if (key not in done) if blank else (done.get(key) == digest_of(text, prefix)):
                    continue
                group.append((key, "" if blank else text))
                characters += len(text or "")
                if len(group) == PARENTS or characters >= _CHARACTERS:
                    yield group
                    group, characters = [], 0
            if self.progress is not None:
                self.progress(len(seen), total)
        if group:
            yield group

    def _write(
        self, group: list[tuple[Any, str]], done: dict[Any, str | None], report: Report, made: ChunkReport
    ) -> None:
        keys = [key for key, _ in group]
        rows = self._cut(group)
        known = [key for key in keys if key in done]
        if len(rows):
            rows = self._with_vectors(rows, known)
            given = report.given
            rows = embed_batches(
                rows, [self.config], on_error=self.on_error, report=report, batch_rows=len(rows)
            ).read_all()
            made.reused += report.given - given
            rows = rows.select(self.schema.names).cast(self.schema)
        else:
            rows = self.schema.empty_table()
        self.child.write(self.key, keys, rows, known=bool(known))
        made.cut += sum(bool(text) for _, text in group)
        made.written += len(rows)

    def _cut(self, group: list[tuple[Any, str]]) -> pa.Table:
        import pyarrow as pa

        bare, columns = self._bare(), [list[Any]() for _ in range(6)]
        for key, text in group:
            mark = digest_of(text, self.settings.prefix)
            for number, (start, stop) in enumerate(self.cutter.spans(text) if text else ()):
                values = (key, number, start, stop, text[start:stop], mark)
                for column, value in zip(columns, values, strict=True):
                    column.append(value)
        return pa.Table.from_arrays(
            [pa.array(column, item.type) for column, item in zip(columns, bare, strict=True)], schema=bare
        )

    def _with_vectors(self, rows: pa.Table, known: list[Any]) -> pa.Table:
        """Return chunks with the vectors that the child has for their texts, of the same parents."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not known:
            return rows
        before = self.child.rows(self.key, known, [self.digest, self.vector])
        before = before.filter(pc.and_(before[self.digest].is_valid(), before[self.vector].is_valid()))
        before = before.combine_chunks()
        places = {mark: place for place, mark in enumerate(before[self.digest].to_pylist())}
        marks = digests.digests(rows[self.text], self.prefix).to_pylist()
        found = [places.get(mark) for mark in marks]
        if not any(place is not None for place in found):
            return rows
        vectors = before[self.vector].combine_chunks().take(pa.array(found, pa.int64()))
        kept = [mark if place is not None else None for mark, place in zip(marks, found, strict=True)]
        return rows.append_column(self.schema.field(self.vector), vectors).append_column(
            self.schema.field(self.digest), pa.array(kept, pa.string())
        )
