"""The SQL that carries declarations through DuckDB, which drops Arrow's schema metadata: `COPY` and `COMMENT`.

Nothing here runs SQL: the text is for the user to read and run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from embedreg.arrow.templates import Template
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.kinds import kind_recorded
from embedreg.declaration.comments import comment_of, one_line
from embedreg.declaration.entries import KEY, Entry, value_type
from embedreg.declaration.quantization import is_quantized, quantizer_of
from embedreg.errors import ConfigError, MetadataError

__all__ = [
    "comment_statements",
    "copy_clause",
    "copy_statement",
    "create_table_statement",
    "identifier",
    "is_known",
    "literal",
    "parts_of",
    "refused",
    "rendered",
    "search_statement",
    "table_name",
]

DISTANCES = {"cosine": "array_cosine_distance", "l2": "array_distance", "dot": "array_negative_inner_product"}
_SIMILARITIES = {"cosine": "array_cosine_similarity", "l2": "-array_distance", "dot": "array_inner_product"}
_NUMBERS = {"float64": "DOUBLE", "int8": "TINYINT", "binary": "TINYINT", "uint8": "UTINYINT", "ubinary": "UTINYINT"}
_PART = r'("(?:[^"]|"")+"|[^".]+)'
_NAME = re.compile(rf"{_PART}(?:\.{_PART})?(?:\.{_PART})?")


def copy_clause(entries: Sequence[Entry]) -> str:
    """Return the clause of `COPY ... TO '...' (FORMAT parquet, ...)` that keeps declarations in the file.

    Raises:
        MetadataError: there are none.
    """
    if not entries:
        raise _nothing()
    listed = f"[{', '.join(one_line(entry) for entry in entries)}]"
    return f"KV_METADATA {{{KEY}: {literal(listed)}}}"


def copy_statement(table: str, path: str, entries: Sequence[Entry]) -> str:
    """Return a `COPY` of a table into a Parquet file that declares what the table's vectors are.

    The vectors are written as lists: of an array that is NULL, DuckDB writes what no other reader understands
    (duckdb/duckdb issue 24731, seen with 2.0).

    Args:
        table: its name, as `table_name` takes it.
        path: of the file.
    Raises:
        MetadataError: there is no declaration. ConfigError: the table's name is invalid.
    """
    lists = [
        f"{identifier(entry.vector_column)}::{kind.replace('[{d}]', '[]')} AS {identifier(entry.vector_column)}"
        for entry in entries
        if (kind := _type(entry)) is not None
    ]
    query = f"SELECT *{_replaced(lists)} FROM {table_name(table)}"
    return f"COPY ({query}) TO {literal(path)} (FORMAT parquet, {copy_clause(entries)});"


def _type(entry: Entry) -> str | None:
    """Return the type of a column, with `{d}` for its width; None for a kind of vectors that is not known here."""
    try:
        kind = kind_recorded(entry.reserved)
    except MetadataError:
        return None
    return kind.sql["duckdb"].replace("FLOAT", _NUMBERS.get(str(value_type(entry.reserved)), "FLOAT"))


def is_known(entry: Entry) -> bool:
    """Return whether the kind of vectors that a column declares is known to this version."""
    return _type(entry) is not None


def _replaced(columns: Sequence[str]) -> str:
    return f" REPLACE ({', '.join(columns)})" if columns else ""


def comment_statements(table: str, entries: Sequence[Entry], words: str = "") -> list[str]:
    """Return a `COMMENT ON COLUMN` for each vector column; `engines.duckdb.functions_in` reads them.

    Args:
        table: its name, as `table_name` takes it.
        words: text for people, before the declaration.
    Raises:
        MetadataError: there is no declaration. ConfigError: the table's name is invalid.
    """
    if not entries:
        raise _nothing()
    named = table_name(table)
    return [
        f"COMMENT ON COLUMN {named}.{identifier(entry.vector_column)} IS {literal(comment_of(entry, words))};"
        for entry in entries
    ]


def create_table_statement(table: str, path: str, entries: Sequence[Entry]) -> str:
    """Return a `CREATE TABLE` of Parquet files whose vectors are arrays: DuckDB reads them as lists without a length.

    Args:
        table: its name, as `table_name` takes it.
        path: of a file, or a pattern.
    """
    widths = [(entry, _width(entry)) for entry in entries]
    arrays = [
        f"{identifier(entry.vector_column)}::{kind.format(d=ndims)} AS {identifier(entry.vector_column)}"
        for entry, ndims in widths
        if isinstance(ndims, int) and not isinstance(ndims, bool) and 0 < ndims <= MAX_NDIMS
        if (kind := _type(entry)) is not None
    ]
    return f"CREATE TABLE {table_name(table)} AS SELECT *{_replaced(arrays)} FROM read_parquet({literal(path)});"


def _width(entry: Entry) -> object:
    quantizer = quantizer_of(entry.reserved)
    return entry.reserved.get("ndims") if quantizer is None else quantizer.width


def refused(column: str, dtype: str) -> ConfigError:
    """Return the error for a quantised column: DuckDB keeps such values, and has no distance for them."""
    return ConfigError(
        f"column {column[:80]!r} holds {dtype} vectors: DuckDB's array functions compute with FLOAT and DOUBLE only, "
        "and know no ranges.",
        "search them with `embedreg search`; or embed a column of floats for DuckDB: dtype='float32'",
    ).for_shell("search them with `embedreg search`; or embed a column of floats for DuckDB: --dtype float32")


def search_statement(table: str, entry: Entry, name: str = "ai_embed", limit: int = 5) -> str:
    """Return a search of a table for the rows nearest to a text, by the distance that the vectors are meant for.

    Multi-vectors are compared by MaxSim, sparse vectors by their dot product.

    Args:
        table: its name, as `table_name` takes it.
        name: of the SQL function that `engines.duckdb.install` made.
    Raises:
        ConfigError: the vectors are quantised. MetadataError: they are of an unknown kind.
    """
    if is_quantized(entry.reserved):
        raise refused(entry.vector_column, str(entry.reserved["dtype"]))
    metric = str(entry.reserved.get("metric"))
    query = f"{identifier(name + '_query')}('what you look for')"
    score = kind_recorded(entry.reserved).sql_score.get("duckdb")
    if score is not None:
        similarity = _SIMILARITIES.get(metric, _SIMILARITIES["cosine"])
        by = score.format(v=f"t.{identifier(entry.vector_column)}", q="asked.q", similarity=similarity)
        return (
            f"SELECT t.* EXCLUDE ({identifier(entry.vector_column)}) FROM {table_name(table)} AS t, "
            f"(SELECT {query} AS q) AS asked\nORDER BY {by} DESC NULLS LAST LIMIT {limit:d};"
        )
    distance = DISTANCES.get(metric, DISTANCES["cosine"])
    return (
        f"SELECT * EXCLUDE ({identifier(entry.vector_column)}) FROM {table_name(table)}\n"
        f"ORDER BY {distance}({identifier(entry.vector_column)}, {query}) LIMIT {limit:d};"
    )


def _nothing() -> MetadataError:
    return MetadataError("there is no declaration to carry.", "declare a function first: fn.bind('source', 'vector')")


def literal(text: str) -> str:
    """Quote a text for DuckDB, where a backslash in quotes is a plain character.

    Raises:
        ConfigError: it holds NUL, which no SQL text can hold.
    """
    return f"'{_checked(text).replace(chr(39), 2 * chr(39))}'"


def identifier(name: str) -> str:
    """Quote a column's name."""
    return '"' + _checked(name).replace('"', '""') + '"'


def rendered(template: Template, prefix: str = "") -> str:
    """Return the text of a template as an expression.

    Args:
        prefix: before each column, such as "t.".
    """
    return template.sql(lambda name: f"{prefix}{identifier(name)}", literal)


def table_name(name: str) -> str:
    """Quote a table's name; dots outside double quotes separate database, schema and table.

    Raises:
        ConfigError: it is invalid.
    """
    return ".".join(identifier(part) for part in parts_of(name))


def parts_of(name: str) -> list[str]:
    """Split a table's name, `schema.table` or `"my schema"."my table"`, into its parts.

    Raises:
        ConfigError: it is invalid.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ConfigError(f"invalid table name {name!r}.", 'write articles, main.articles or "my table"')
    parts = [part for part in match.groups() if part is not None]
    return [part[1:-1].replace('""', '"') if part.startswith('"') else part for part in parts]


def _checked(text: str) -> str:
    if "\0" in text:
        raise ConfigError("SQL cannot hold a NUL character.", "rename the column")
    return text
