"""The SQL by which a Databend user adds, refreshes and migrates a vector column; nothing here runs it.

Databend commits each ALTER by itself, so a switch by renames would take two steps. It is one statement if readers query
a view: CREATE OR REPLACE VIEW. 1.2.453 refuses an external function in UPDATE, so there the vectors of distinct sources
are made in a table of their own, and merged.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedreg.declaration import comments, templates
from embedreg.declaration import digest as digests
from embedreg.declaration.entries import Entry
from embedreg.engines.databend.sql import CURRENT, VERSIONS, identifier, literal, rendered, table_name
from embedreg.errors import ConfigError
from embedreg.inspection.engines import Statements
from embedreg.support.imports import did_you_mean

__all__ = ["Column", "add", "migrate", "refresh"]


@dataclass(frozen=True)
class Column:
    """A vector column of a table.

    Attributes:
        table: as `sql.table_name` takes it.
        entry: its declaration, with the column of digests.
        function: the SQL function for rows.
        version: of Databend; see `sql.VERSIONS`.
        returns: "array", or "vector" for newer versions.
    """

    table: str
    entry: Entry
    function: str
    version: str = VERSIONS[0]
    returns: str = "array"

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            hint = f"{did_you_mean(self.version, VERSIONS)}write {' or '.join(map(repr, VERSIONS))}"
            raise ConfigError(f"unknown Databend version {self.version!r}.", hint)
        if self.returns == "vector" and self.version != CURRENT:
            raise ConfigError(f"Databend {self.version} has no VECTOR type.", "--returns array")

    @property
    def source(self) -> str:
        """The source column, quoted."""
        return identifier(self.entry.source_column)

    @property
    def vector(self) -> str:
        """The vector column, quoted."""
        return identifier(self.entry.vector_column)

    @property
    def digest(self) -> str:
        """The column of digests, quoted."""
        name = digests.column_of(self.entry.reserved)
        return identifier(name or digests.column_name(self.entry.vector_column))

    @property
    def kind(self) -> str:
        """The SQL type of the vectors."""
        if self.returns == "vector":
            return f"VECTOR({int(self.entry.reserved['ndims']):d}) NULL"
        return "ARRAY(FLOAT NOT NULL) NULL"  # cosine_distance takes no items that may be null

    @property
    def expected(self) -> str:
        """The digest of a fresh row."""
        return digests.sql(self.source, digests.prefix_stored(self.entry.reserved) or "", "databend")

    @property
    def rendered(self) -> str | None:
        """The text of the declaration's template as an expression; None for a plain source column."""
        template = templates.stored(self.entry)
        return None if template is None else rendered(template)

    @property
    def needed(self) -> str:
        """The condition of rows that have a source and are not fresh."""
        return (
            f"{self.source} IS NOT NULL AND ({self.vector} IS NULL OR {self.digest} IS DISTINCT FROM {self.expected})"
        )


def add(column: Column) -> list[Statements]:
    """Return the statements that add a vector column with its digests, and fill it."""
    return [_columns(column, "the columns: vectors, and digests of their sources"), *refresh(column)]


def refresh(column: Column) -> list[Statements]:
    """Return the statements that embed the rows which are not fresh."""
    table = table_name(column.table)
    cleared = (
        f"UPDATE {table} SET {column.vector} = NULL, {column.digest} = NULL "
        f"WHERE {column.source} IS NULL AND {column.vector} IS NOT NULL;"
    )
    left = f"SELECT count(*) AS rows_left FROM {table} WHERE {column.needed};"
    if column.version == CURRENT:
        filled = [
            f"UPDATE {table} SET {column.vector} = {identifier(column.function)}({column.source}), "
            f"{column.digest} = {column.expected} WHERE {column.needed};"
        ]
    else:
        *above, last = column.table.split(".")
        made = table_name([*above, f"{last}__made"])
        own = column.source
        inner = f"SELECT DISTINCT {own} FROM {table} WHERE {column.needed}"
        call = f"{identifier(column.function)}({own})"
        filled = [
            f"CREATE OR REPLACE TABLE {made} AS SELECT {own} AS source, {call} AS vector FROM ({inner});",
            f"MERGE INTO {table} AS t USING {made} AS m ON t.{own} = m.source WHEN MATCHED THEN UPDATE SET "
            f"t.{column.vector} = m.vector, t.{column.digest} = {_of_t(column)};",
            f"DROP TABLE {made};",
        ]
    return [
        *_texts(column, table),
        Statements("fill", "rows without a vector, and rows whose source changed since", filled),
        Statements("clear", "rows that lost their source", cleared),
        Statements("check", "run the statements above again until this is 0", left),
    ]


def _texts(column: Column, table: str) -> list[Statements]:
    """Return the statement that renders the texts of a template again, where their columns have changed."""
    if column.rendered is None:
        return []
    update = f"UPDATE {table} SET {column.source} = {column.rendered}"
    where = f"{column.source} IS DISTINCT FROM ({column.rendered})"
    return [Statements("texts", "the texts of the template, where they changed", f"{update} WHERE {where};")]


def _of_t(column: Column) -> str:
    return digests.sql(f"t.{column.source}", digests.prefix_stored(column.entry.reserved) or "", "databend")


def migrate(column: Column, old: str, view: str) -> list[Statements]:
    """Return the statements that change the model of a column, for readers that query a view.

    Args:
        column: the new column, beside the old one.
        old: the old vector column.
        view: what readers query: it shows the table with one vector column, under the old name.
    Raises:
        ConfigError: both columns have one name, or a name cannot be quoted.
    """
    if old == column.entry.vector_column:
        raise ConfigError(f"the new column needs another name than {old!r}.", "--name NAME")
    table, shown, before = table_name(column.table), table_name(view), identifier(old)
    mine = f"{column.vector}, {column.digest}"
    back = f"CREATE OR REPLACE VIEW {shown} AS SELECT * EXCLUDE ({mine}) FROM {table};"
    columns = f"* EXCLUDE ({before}, {mine}), {column.vector} AS {before}"
    switch = f"CREATE OR REPLACE VIEW {shown} AS SELECT {columns} FROM {table};"
    return [
        _columns(column, "columns for the new vectors, beside the old ones"),
        Statements("view", "what readers query, with the old vectors, until the new ones exist", back),
        *refresh(column),
        Statements("switch", f"one statement; queries are embedded with {column.function} from now on", switch),
        Statements("rollback", "the rollback", back),
        Statements(
            "finish",
            "once no rollback is needed; its digests too, if it has any",
            f"ALTER TABLE {table} DROP COLUMN {before};",
        ),
    ]


def _columns(column: Column, heading: str) -> Statements:
    table = table_name(column.table)
    comment = literal(comments.comment_of(column.entry))
    return Statements(
        "columns",
        heading,
        [
            *([] if column.rendered is None else [f"ALTER TABLE {table} ADD COLUMN {column.source} STRING NULL;"]),
            f"ALTER TABLE {table} ADD COLUMN {column.vector} {column.kind} COMMENT {comment};",
            f"ALTER TABLE {table} ADD COLUMN {column.digest} STRING NULL;",
        ],
    )
