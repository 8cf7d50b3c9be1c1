"""DuckDB: embedding functions as SQL functions, and the declarations in its column comments.

`sql` makes the SQL that carries a declaration; both only ever see the user's own connection.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow.vectors import Embedded
from embedreg.core import modality
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.core.canonical import registered_name
from embedreg.core.kinds import kind_of
from embedreg.core.lancedb_hooks import unwrap
from embedreg.core.role import Role
from embedreg.declaration.codec import Functions
from embedreg.declaration.comments import metadata_in_comments
from embedreg.embedding.column import ZeroVectors, distinct_inputs, embed_distinct, zero_policy
from embedreg.engines.duckdb import sql as duckdb_sql
from embedreg.errors import CallError, ConfigError, EmbedregError, MetadataError, StorageError
from embedreg.inspection import locate
from embedreg.inspection.locate import functions_in_comments
from embedreg.runtime.vectors.memory import RecentVectors, keys_of
from embedreg.support.display import first_line
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["commented_columns", "functions_in", "install", "metadata_of"]

log = logging.getLogger("embedreg")

_PLAIN = re.compile(r'SELECT \* FROM (?P<name>(?:(?:"(?:[^"]|"")+"|\w+)\.?)+)')
KNOWN_BYTES = 64 * 2**20  # of vectors that a function keeps: DuckDB calls it for 2048 rows at a time


def install(
    con: Any,
    fn_or_data: Any,
    name: str = "ai_embed",
    *,
    vector: str | None = None,
    zero_vectors: ZeroVectors | None = None,
) -> EmbeddingFunction:
    """Make an embedding function callable in SQL: `name(source)` and `name_query(query)`, both `FLOAT[n]`.

    Multi-vectors are `FLOAT[n][]`, sparse vectors `STRUCT(indices INTEGER[], values FLOAT[])`.

    Null, blank and bad rows give NULL, the latter with a line in the log; a failed call fails the query. Recent inputs
    are not embedded again. Installing again under one name replaces both, through the connection that installed them.

    Args:
        con: a DuckDB connection; its cursors have the functions too.
        fn_or_data: a function, a declaration, or what declares one; see `embedreg.functions_in`.
        name: of the SQL function; a text function takes VARCHAR, one of images takes BLOB as source.
        vector: which vector column's function, where the data declares several.
        zero_vectors: what a vector of zeros becomes: "null", "keep", or "error", a bad row; as in `embed_batches`.
    Returns:
        The function that was installed.
    Raises:
        MetadataError: the data declares no function, or several. StorageError: DuckDB refuses the name.
    """
    attempt_import_or_raise("duckdb", extra="duckdb")
    if not name:
        raise ConfigError("the SQL function has no name.", "install(con, fn, name='ai_embed')")
    function = _function_of(fn_or_data, vector)
    roles: dict[Role, str] = {"source": name, "query": f"{name}_query"}
    types = {role: _sql_type(function, role) for role in roles}  # of both, before either is there
    for role, called in roles.items():
        _register(con, called, _Call(function, role, called, zero_vectors), types[role])
    return function


def functions_in(con: Any, table: str) -> Functions:
    """Find the functions that the column comments of a table or view declare; `sql` writes such comments.

    Args:
        con: a DuckDB connection.
        table: its name, as SQL has it: `articles`, `main.articles`, `"my table"`.
    Raises:
        StorageError: there is no such table. MetadataError: a comment that cannot be read.
    """
    columns = commented_columns(con.execute, duckdb_sql.parts_of(table))
    if not columns:
        raise StorageError(f"there is no table {table!r}.", "SHOW ALL TABLES lists them")
    return functions_in_comments(columns.values())


def metadata_of(relation: Any) -> dict[str, Any]:
    """Return what the column comments behind a relation declare; nothing if it is not a plain table or view."""
    table = _PLAIN.fullmatch(relation.sql_query())
    if table is None:
        return {}
    columns = commented_columns(
        lambda sql: relation.query("embedreg_relation", sql), duckdb_sql.parts_of(table["name"])
    )
    return metadata_in_comments(columns.values())


def commented_columns(run: Callable[[str], Any], parts: Sequence[str]) -> dict[str, str | None]:
    """Return the columns of a table or view with their comments, by the parts of its name as DuckDB resolves them."""
    names = [duckdb_sql.literal(part) for part in parts]
    here = "current_database()"
    if len(names) == 1:
        places = [("'temp'", "'main'"), (here, "current_schema()")]
    elif len(names) == 2:
        places = [(here, names[0]), ("'temp'", names[0]), (names[0], "'main'")]
    else:
        places = [(names[0], names[1])]
    for database, schema in places:
        wanted = {"database_name": database, "schema_name": schema, "table_name": names[-1]}
        where = " AND ".join(f"lower({column}) = lower({value})" for column, value in wanted.items())
        rows = run(f"SELECT column_name, comment FROM duckdb_columns() WHERE {where}").fetchall()
        if rows:
            return dict(rows)
    return {}


def _function_of(fn_or_data: Any, vector: str | None) -> EmbeddingFunction:
    found = unwrap(fn_or_data)
    if isinstance(found, EmbeddingFunctionConfig):
        found = found.function
    if isinstance(found, EmbeddingFunction):
        return found
    functions = locate.functions_in(found)
    if vector is None:
        if not functions.entries:
            raise MetadataError("the data declares no embedding function.", "install(con, fn), or `embedreg attach`")
        if len(functions.entries) > 1:
            names = list(functions.entries)
            raise MetadataError(
                f"the data has {len(names)} vector columns.", f"install(con, data, vector={names[0]!r})"
            )
        [vector] = functions.entries
    return functions[vector].function


def _register(con: Any, name: str, call: _Call, kind: str) -> None:
    duckdb = attempt_import_or_raise("duckdb", extra="duckdb")
    with contextlib.suppress(duckdb.InvalidInputException):  # there is none yet
        con.remove_function(name)
    try:
        con.create_function(name, call, [kind], call.returns, type="arrow", null_handling="special")
    except duckdb.Error as exc:
        raise StorageError(
            f"DuckDB does not take the function {name!r}: {first_line(exc)}",
            "install it through the connection that installed it before, or under another name",
        ) from exc


def _sql_type(function: EmbeddingFunction, role: Role) -> str:
    """Return the modality that a role is called with: images in tables are bytes, and are queried by text if possible.

    Raises:
        ConfigError: DuckDB has no type for it.
    """
    asked = modality.sql_modality(function, role)
    if "duckdb" not in asked.sql:
        raise modality.refusal(function, asked, "DuckDB", modality.sql_types("duckdb"))
    return asked.sql["duckdb"]


# -- the calls ---------------------------------------------------------------------------------------------------------


class _Call:
    """One SQL function: DuckDB's Arrow columns in, a FixedSizeListArray out, from whatever thread."""

    def __init__(
        self, function: EmbeddingFunction, role: Role, name: str, zero_vectors: ZeroVectors | None = None
    ) -> None:
        self._function = function
        self._role: Role = role
        self._name = name
        self._zeros = zero_policy(function, zero_vectors)
        self.ndims, self._kind = function.ndims(), kind_of(function)
        self.returns = self._kind.sql["duckdb"].format(d=self.ndims)
        # those whose rows differ in size are not kept
        self._known = RecentVectors(self.ndims, KNOWN_BYTES, KNOWN_BYTES) if self._kind.one_size else None

    def __call__(self, values: Any) -> Any:  # DuckDB evaluates these annotations
        try:
            return self._embed(values)
        except EmbedregError as exc:
            # DuckDB forwards the class's name and the text only
            hint = f" Hint: {exc.hint}" if exc.hint else ""
            raise type(exc)(" ".join(f"{exc.message}{hint}".split())) from None
        except Exception as exc:  # noqa: BLE001  # whatever a user's own function raises
            name = registered_name(type(self._function)) or type(self._function).__name__
            raise CallError(f"{name!r} failed: {type(exc).__name__}: {first_line(exc)}") from None

    def _embed(self, values: pa.ChunkedArray) -> pa.Array:
        distinct, index = distinct_inputs(values.combine_chunks())
        if self._known is None:
            return self._made(distinct).laid_out(index).to_arrow()
        found = self._known.look_up(keys_of(distinct))
        made = self._made(found.of_missing(distinct)) if len(found.missing) else None
        return found.joined(made).laid_out(index).to_arrow()

    def _made(self, distinct: pa.Array) -> Embedded:
        made = embed_distinct(self._function, distinct, self._role, zero_vectors=self._zeros)
        if made.reasons:
            why = next(iter(made.reasons.values()))
            log.warning("%s: %d input(s) have no vector: %s", self._name, len(made.reasons), why)
        if made.zeros is not None and self._zeros == "null":
            log.warning("%s: %d input(s) have a vector of zeros: NULL", self._name, int(made.zeros.sum()))
        return made
