"""DuckDB in the table of engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from embedreg.declaration.quantization import is_quantized
from embedreg.inspection.engines import Declared, Engine, Statements, comes_from

__all__ = ["DuckDB"]


class DuckDB(Engine):
    """DuckDB: column comments behind a relation, and the SQL that keeps declarations."""

    extra = "duckdb"
    ddl_help = "For DuckDB: comments and a COPY that keep declarations."

    def reads(self, data: Any) -> bool:
        return comes_from(data, "duckdb", "_duckdb") and hasattr(data, "sql_query")

    def metadata_of(self, data: Any) -> Mapping[Any, Any]:
        from embedreg.engines.duckdb.functions import metadata_of

        return metadata_of(data)

    def columns(self, data: Any) -> Any:
        if not isinstance(data, Path):
            return None
        from embedreg.engines.duckdb.columns.place import find

        if (place := find(data)) is None:
            return None
        from embedreg.engines.duckdb.columns.store import DuckDBColumns

        return DuckDBColumns(place)

    def ddl(
        self,
        declared: Declared,
        *,
        table: Annotated[str, 'The table in DuckDB: `articles`, `main.articles` or `"my table"`.'] = "",
        to: Annotated[str | None, "The Parquet file that COPY writes; by default TABLE.parquet."] = None,
        name: Annotated[str, "The SQL function of the search: engines.duckdb.install(..., name=...)."] = "ai_embed",
    ) -> list[Statements]:
        """Print the table, its COMMENTs, a COPY and a search that keep or use what DATA declares.

        DuckDB drops the schema's metadata. Column comments keep a declaration in a database, and the KV_METADATA
        clause of COPY keeps it in a Parquet file; `embedreg.functions_in` reads both. What cannot be rebuilt here is
        carried too.
        """
        from embedreg.declaration import templates
        from embedreg.engines.duckdb import sql

        path, entries = declared.path, declared.entries
        table = table or sql.identifier(path.stem)
        made = []
        if declared.kind == "parquet":
            source = path / "**" / "*.parquet" if path.is_dir() else path
            create = sql.create_table_statement(table, str(source), entries)
            made.append(Statements("create_table", "the table, its vectors with their length", create))
        rendered = [
            f"SELECT {sql.rendered(template)} AS {sql.identifier(entry.source_column)} FROM {sql.table_name(table)};"
            for entry in entries
            if (template := templates.stored(entry)) is not None
        ]
        if rendered:
            made.append(Statements("texts", "the texts of the template, which are embedded", rendered))
        target = to or f"{sql.parts_of(table)[-1]}.parquet"
        floats = [entry for entry in entries if not is_quantized(entry.reserved)]  # DuckDB does not search the others
        found = [sql.search_statement(table, entry, name) for entry in floats if sql.is_known(entry)]
        made += [
            Statements("comments", "what made the vectors, in the database", sql.comment_statements(table, entries)),
            Statements("copy", "the same in a Parquet file", sql.copy_statement(table, target, entries)),
            Statements("searches", f"after embedreg.engines.duckdb.install(con, ..., name={name!r}) in Python", found),
        ]
        return made
