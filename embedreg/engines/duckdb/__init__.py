"""DuckDB: embedding functions as SQL functions, and the declarations in its column comments.

`sql` makes the SQL that carries a declaration; both only ever see the user's own connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.engines.duckdb.functions import functions_in, install, metadata_of
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "functions_in": "functions",
            "install": "functions",
            "metadata_of": "functions",
        },
    )

__all__ = ["functions_in", "install", "metadata_of"]
