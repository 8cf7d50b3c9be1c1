"""`Place`: a table of a DuckDB database file, and short connections to it."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.engines.duckdb import sql
from embedreg.engines.duckdb.functions import commented_columns
from embedreg.errors import ConfigError, EmbedregError, StorageError
from embedreg.support.display import first_line
from embedreg.support.imports import attempt_import_or_raise, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Place", "find"]

_MAGIC = b"DUCK"
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Place:
    """A table of a database file.

    A connection is held for one query or one transaction only: DuckDB lets no other process open a file that is being
    written.

    Attributes:
        file: the database.
        table: the table's name, as SQL has it; None for the only one.
        wait_s: how long to wait for a file that another process has open, or for a transaction of others.
    """

    file: Path
    table: str | None
    wait_s: float = 60.0

    @property
    def shown(self) -> str:
        """The path, as a user would type it."""
        return str(self.file if self.table is None else self.file / self.table)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield a connection that reads."""
        with self._connected(read_only=True) as con:
            yield con

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """Yield a connection in a transaction, which is committed at the end of the block, or rolled back."""
        with self._connected(read_only=False) as con, self._errors():
            con.execute("BEGIN")
            try:
                yield con
                con.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(Exception):  # the original error matters more
                    con.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _connected(self, *, read_only: bool) -> Iterator[Any]:
        duckdb = attempt_import_or_raise("duckdb", extra="duckdb")
        end = time.monotonic() + self.wait_s
        while True:
            try:
                con = duckdb.connect(str(self.file), read_only=read_only)
                break
            except duckdb.ConnectionException:
                if not read_only:
                    raise self._cannot("is open in this process for reading only") from None
                read_only = False  # this process has it open for writing: one more connection of the same kind
            except duckdb.IOException as exc:
                if "lock" not in str(exc).lower():
                    raise self._cannot(f"cannot be opened: {first_line(exc)}") from exc
                if time.monotonic() > end:
                    raise StorageError(
                        f"{self.file} is open in another process.", "close it there, and run this again"
                    ) from exc
                time.sleep(_PAUSE_S * (0.5 + random.random()))
            except duckdb.Error as exc:
                raise self._cannot(f"cannot be opened: {first_line(exc)}") from exc
        try:
            with self._errors():
                yield con
        finally:
            con.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        duckdb = attempt_import_or_raise("duckdb", extra="duckdb")
        try:
            yield
        except EmbedregError:
            raise
        except duckdb.TransactionException as exc:
            raise self._cannot(f"was changed by another transaction: {first_line(exc)}") from exc
        except duckdb.Error as exc:
            raise self._cannot(f"refused a statement: {first_line(exc)}") from exc

    def _cannot(self, why: str) -> StorageError:
        return StorageError(f"{self.shown} {why.rstrip('.')}.", "run the same command again once that is fixed")

    # -- the table ---------------------------------------------------------------------------------------------------

    def named(self) -> Place:
        """Return the same with the table's name, quoted for SQL where it needs that.

        Raises:
            StorageError: there is no such table. ConfigError: none is named, and there are several.
        """
        with self.reading() as con:
            if self.table is not None:
                if not commented_columns(con.execute, sql.parts_of(self.table)):
                    names = _tables(con)
                    hint = f"{did_you_mean(self.table, names)}tables: {', '.join(names) or 'none'}"
                    raise StorageError(f"{self.file} has no table {self.table!r}.", hint)
                return self
            names = _tables(con)
        if len(names) != 1:
            raise ConfigError(
                f"{self.file} has {len(names)} tables: {', '.join(names[:20])}.",
                f"name one: {self.file / (names[0] if names else 'table')}",
            )
        return Place(self.file, names[0], self.wait_s)

    @property
    def quoted(self) -> str:
        """The table's name in SQL."""
        assert self.table is not None
        return sql.table_name(self.table)

    def comments(self, con: Any) -> dict[str, str | None]:
        """Return the columns with their comments."""
        assert self.table is not None
        return commented_columns(con.execute, sql.parts_of(self.table))

    def types(self, con: Any) -> dict[str, str]:
        """Return the columns with their types, in their order."""
        rows = con.execute(f"SELECT column_name, column_type FROM (DESCRIBE {self.quoted})").fetchall()
        return dict(rows)

    def refuse_indexed(self, con: Any) -> None:
        """Raise `StorageError` if the table has an index: DuckDB then renames and adds no column."""
        assert self.table is not None
        last = sql.literal(sql.parts_of(self.table)[-1])
        found = con.execute(
            f"SELECT index_name FROM duckdb_indexes() WHERE lower(table_name) = lower({last})"
        ).fetchall()
        if found:
            names = ", ".join(name for (name,) in found)
            raise StorageError(
                f"{self.shown} has an index ({names}), so DuckDB lets none of its columns be added or renamed.",
                f"DROP INDEX {sql.identifier(found[0][0])}; and create it again afterwards",
            )


def arrow(con: Any, query: str) -> pa.Table:
    """Return the result of a query as an Arrow table."""
    return con.sql(query).to_arrow_table()


def _tables(con: Any) -> list[str]:
    """Return the names of the tables, with the schema where it is not the usual one."""
    rows = con.execute(
        "SELECT schema_name, table_name FROM duckdb_tables() "
        "WHERE NOT internal AND database_name = current_database() ORDER BY ALL"
    ).fetchall()
    return [
        sql.identifier(name) if "." in name else name if schema == "main" else f"{schema}.{name}"
        for schema, name in rows
    ]


def find(path: Path) -> Place | None:
    """Return the table at FILE or FILE/table; None if the path leads to no DuckDB database."""
    for file, table in ((path, None), (path.parent, path.name)):
        if file.is_file() and _is_database(file):
            return Place(file, table)
    return None


def _is_database(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(12)[8:] == _MAGIC
    except OSError:
        return False
