"""LanceDB tables: made, opened and filled, where its own `create_table`, `open_table` and `add` fall short.

Functions inside lancedb's own schemas, tables and searches need none of this: see `adapter`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.engines.lancedb.folders import dataset_at, declare_at, schema_at
    from embedreg.engines.lancedb.tables import aadd, add, create_table, open_table
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "aadd": "tables",
            "add": "tables",
            "create_table": "tables",
            "dataset_at": "folders",
            "declare_at": "folders",
            "open_table": "tables",
            "schema_at": "folders",
        },
    )

__all__ = ["aadd", "add", "create_table", "dataset_at", "declare_at", "open_table", "schema_at"]
