"""The rows of a column in SQL: their classes by digest, and the vectors of those that need one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from embedreg.arrow.templates import Template
from embedreg.columns.results import ROW_CLASSES
from embedreg.columns.store import Options
from embedreg.core.base import EmbeddingFunctionConfig
from embedreg.declaration import codec, templates
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.embedding.column import embed_column
from embedreg.embedding.table import BadRow
from embedreg.engines.duckdb.columns.place import Place, arrow
from embedreg.engines.duckdb.sql import identifier, rendered
from embedreg.errors import BadRowsError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Columns", "Counts", "counts", "fill", "kind_of", "pairs"]

SHOWN_BAD_ROWS = 100
_CHUNK_BYTES = 64 << 20  # of vectors that one transaction writes


@dataclass
class Counts:
    """Counts of the rows that were changed."""

    written: int = 0
    embedded: int = 0
    cached: int = 0
    bad_rows: int = 0
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True)
class Columns:
    """The columns of some vectors, under the names that they have now.

    Attributes:
        source, vector: the columns.
        digest: of the digests; None for none.
        prefix: the part of a digest that names the function; None if that is not known.
        template: what renders the source; None for a plain column, and where vectors are staged, of texts as they are.
    """

    source: str
    vector: str
    digest: str | None
    prefix: str | None
    template: Template | None = None

    @classmethod
    def of(cls, entry: Entry, vector: str | None = None, digest: str | None = None) -> Columns:
        """Return the columns of a declaration, with other names where they are given."""
        own = digests.column_of(entry.reserved)
        name = None if own is None else digest or own
        template = templates.stored(entry) if vector is None else None
        prefix = digests.prefix_stored(entry.reserved)
        return cls(entry.source_column, vector or entry.vector_column, name, prefix, template)

    @property
    def value(self) -> str:
        """The source in SQL; the table is `t`."""
        if self.template is None:
            return f"t.{identifier(self.source)}"
        return f"({rendered(self.template, 't.')})"

    @property
    def expected(self) -> str:
        """The digest that a fresh row has, in SQL."""
        return digests.sql(self.value, self.prefix or "", "duckdb")

    def where(self, name: str) -> str:
        """Return the condition of a class of rows; the table is `t`."""
        source, vector = self.value, f"t.{identifier(self.vector)}"
        something = f"({source} IS NOT NULL OR {vector} IS NOT NULL)"
        if self.digest is None or self.prefix is None:
            fresh = ours = stamped = "FALSE"
        else:
            digest = f"t.{identifier(self.digest)}"
            stamped = f"{digest} IS NOT NULL"
            ours = f"starts_with({digest}, '{self.prefix}')"
            fresh = f"({stamped} AND coalesce({digest} = {self.expected}, FALSE))"
        changed = "FALSE"
        if self.template is not None:
            changed = f"t.{identifier(self.source)} IS DISTINCT FROM {source}"
            fresh = f"({fresh} AND NOT {changed})"
        old = f"(NOT ({stamped}) AND {vector} IS NOT NULL AND {changed})"
        return {
            "fresh": fresh,
            "stale": f"((NOT {fresh} AND {something} AND {stamped} AND {ours}) OR {old})",
            "foreign": f"(NOT {fresh} AND {something} AND {stamped} AND NOT {ours})",
            "unstamped": f"(NOT ({stamped}) AND {vector} IS NOT NULL AND NOT {changed})",
            "empty": f"(NOT ({stamped}) AND {vector} IS NULL AND {source} IS NOT NULL)",
            "null_source": f"(NOT {fresh} AND NOT {something})",
            "missing": f"(NOT {fresh} AND {source} IS NOT NULL AND {vector} IS NULL)",
        }[name]

    def any_of(self, names: frozenset[str]) -> str:
        """Return the condition of rows of one of these classes."""
        return f"({' OR '.join(self.where(name) for name in sorted(names)) or 'FALSE'})"


def counts(con: Any, place: Place, columns: Columns) -> dict[str, int]:
    """Return the rows of each class."""
    picked = ", ".join(f"count(*) FILTER ({columns.where(name)})" for name in ROW_CLASSES)
    found = con.execute(f"SELECT {picked} FROM {place.quoted} AS t").fetchone()
    return dict(zip(ROW_CLASSES, found, strict=True))


def pairs(place: Place, columns: Columns, where: str, sample: int, seed: int) -> pa.Table:
    """Return `source` and `vector` of some rows that have both.

    Args:
        where: a condition with an AND behind it, or "".
    """
    source, vector = columns.value, f"t.{identifier(columns.vector)}"
    with place.reading() as con:
        return arrow(
            con,
            f"SELECT {source} AS source, {vector} AS vector FROM {place.quoted} AS t WHERE {where} "
            f"{source} IS NOT NULL AND {vector} IS NOT NULL ORDER BY hash(t.rowid + {seed:d}) LIMIT {sample:d}",
        )


def kind_of(entry: Entry, ndims: int) -> str:
    """Return the SQL type of a new column of vectors."""
    from embedreg.declaration.entries import value_type

    return f"{'DOUBLE' if value_type(entry.reserved) == 'float64' else 'FLOAT'}[{ndims:d}]"


def fill(
    place: Place,
    columns: Columns,
    config: Callable[[], EmbeddingFunctionConfig],
    wanted: frozenset[str],
    options: Options,
) -> Counts:
    """Embed the rows of some classes, and write their vectors and digests a chunk of distinct sources at a time.

    A row is written only if its source is still the one that was embedded, and it still needs a vector.

    Args:
        config: returns the declaration; called if a row has to be embedded.
    Raises:
        BadRowsError: rows failed under "raise", when nothing is written yet; or too many.
        EmbedregError: as `embed_column`; StorageError: it cannot be written.
    """
    made = Counts()
    needed = columns.any_of(wanted)
    source = columns.value
    with place.reading() as con:
        todo = arrow(
            con,
            f"SELECT {source} AS source, min(t.rowid) AS row, count(*) AS rows FROM {place.quoted} AS t "
            f"WHERE {needed} AND {source} IS NOT NULL GROUP BY ALL ORDER BY row",
        )
        total = sum(todo["rows"].to_pylist())
    clear = _without_source(columns, needed)
    done = 0
    declared = config() if len(todo) else None
    for chunk in _chunks(todo, declared, options):
        assert declared is not None  # there is no chunk without rows
        vectors = _embedded(chunk, declared, made, options)
        with place.writing() as con:
            con.register("embedreg_made", vectors)
            made.written += con.execute(_update(place, columns, needed)).fetchone()[0]
            con.unregister("embedreg_made")
        done += sum(chunk["rows"].to_pylist())
        if options.progress is not None:
            options.progress(done, total)
    with place.writing() as con:
        con.execute(f"UPDATE {place.quoted} AS t SET {clear}")
    return made


def _chunks(todo: pa.Table, config: EmbeddingFunctionConfig | None, options: Options) -> Iterator[pa.Table]:
    size = 1 if config is None else max(1, _CHUNK_BYTES // (4 * config.function.ndims()))
    if options.on_error == "raise":  # all is embedded before anything is written
        size = max(1, len(todo))
    for start in range(0, len(todo), size):
        yield todo.slice(start, size).combine_chunks()


def _embedded(chunk: pa.Table, config: EmbeddingFunctionConfig, made: Counts, options: Options) -> pa.Table:
    """Embed distinct sources: a table of `source` and `vector`."""
    import pyarrow as pa

    vectors: list[Any] = []
    limit = 0 if options.on_error == "raise" else options.max_bad_rows
    for start in range(0, len(chunk), options.batch_rows):
        part = chunk.slice(start, options.batch_rows).combine_chunks()
        new = embed_column(config.function, part["source"].combine_chunks(), declared=codec.declared_by(config))
        made.embedded += new.distinct
        made.cached += new.cached
        rows, numbers = part["rows"].to_pylist(), part["row"].to_pylist()
        for place, reason in sorted(new.reasons.items()):
            made.bad_rows += rows[place]
            if len(made.bad) < SHOWN_BAD_ROWS:
                made.bad.append(BadRow(numbers[place], config.source_column, str(reason)))
        if limit is not None and made.bad_rows > limit:
            raise BadRowsError(
                f"{made.bad_rows:,} row(s) have no vector, such as row {made.bad[-1].row:,}: {made.bad[-1].reason}.",
                "on_error='null' keeps such rows with a null vector; max_bad_rows allows more",
                tuple(each.row for each in made.bad),
            ).for_shell("--on-error null keeps such rows with a null vector; --max-bad-rows allows more")
        vectors.append(new.to_arrow())
    return pa.table({"source": chunk["source"], "vector": pa.chunked_array(vectors)})


def _update(place: Place, columns: Columns, needed: str) -> str:
    digest = "" if columns.digest is None else f", {identifier(columns.digest)} = {columns.expected}"
    text = "" if columns.template is None else f", {identifier(columns.source)} = {columns.value}"
    return (
        f"UPDATE {place.quoted} AS t SET {identifier(columns.vector)} = s.vector{digest}{text} "
        f"FROM embedreg_made AS s WHERE {columns.value} = s.source AND {needed}"
    )


def _without_source(columns: Columns, needed: str) -> str:
    """Return the assignments that clear rows which lost their source, and a condition for them."""
    digest = "" if columns.digest is None else f", {identifier(columns.digest)} = NULL"
    text = "" if columns.template is None else f", {identifier(columns.source)} = NULL"
    return f"{identifier(columns.vector)} = NULL{digest}{text} WHERE {columns.value} IS NULL AND {needed}"
