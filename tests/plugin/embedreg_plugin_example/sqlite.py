"""SQLite: declarations lie in a table of the database file, one a row."""

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from embedreg.engines import Declared, Engine, Statements
from embedreg.errors import StorageError


class SQLite(Engine):
    """The declarations of a `.sqlite` file, and the SQL that writes them there."""

    requires = ()  # its library comes with Python
    ddl_help = "For SQLite: a table of declarations."

    def reads(self, data: Any) -> bool:
        """Return whether it is a file of ours."""
        return isinstance(data, Path) and data.suffix == ".sqlite" and data.is_file()

    def metadata_of(self, data: Any) -> dict[str, str]:
        """Return the declarations as Arrow's schema metadata has them."""
        import sqlite3

        try:
            with closing(sqlite3.connect(f"{data.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                rows = connection.execute("SELECT declaration FROM embedding_functions").fetchall()
        except sqlite3.Error as problem:
            raise StorageError(f"{str(data)!r} cannot be read: {problem}", "embedreg ddl sqlite DATA") from problem
        return {"embedding_functions": f"[{', '.join(declaration for (declaration,) in rows)}]"}

    def ddl(
        self,
        declared: Declared,
        *,
        table: Annotated[str, "The table for the declarations."] = "embedding_functions",
    ) -> list[Statements]:
        """Print the table of what DATA declares."""
        name = '"' + table.replace('"', '""') + '"'
        texts = [json.dumps(json.loads(entry.raw)).replace("'", "''") for entry in declared.entries]
        inserts = [f"INSERT INTO {name} VALUES ('{text}');" for text in texts]
        return [
            Statements("create_table", "the declarations", f"CREATE TABLE IF NOT EXISTS {name} (declaration TEXT);"),
            Statements("inserts", "what made the vectors", inserts),
        ]
