"""One column's life: add vectors to data, keep them up to date, change their model, and undo it.

    status(data)                                        # which rows are fresh, stale, foreign, unstamped or empty
    add(data, fn.bind("text", "vector"))                # a new vector column
    refresh(data)                                       # embed what is not fresh
    migrate(data, "vector", other_function)             # another model for the same column, with a way back

`data` is the path of a table or dataset, or a table object of an engine, which is brought to its newest version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.columns.audit import audit, identify
    from embedreg.columns.calls import add, detach, fill, migrate, migrations, refresh, repoint, status
    from embedreg.columns.compare import compare
    from embedreg.columns.migration import Migration
    from embedreg.columns.results import ColumnReport, ColumnStatus
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "ColumnReport": "results",
            "ColumnStatus": "results",
            "Migration": "migration",
            "add": "calls",
            "audit": "audit",
            "compare": "compare",
            "detach": "calls",
            "fill": "calls",
            "identify": "audit",
            "migrate": "calls",
            "migrations": "calls",
            "refresh": "calls",
            "repoint": "calls",
            "status": "calls",
        },
    )

__all__ = [
    "ColumnReport",
    "ColumnStatus",
    "Migration",
    "add",
    "audit",
    "compare",
    "detach",
    "fill",
    "identify",
    "migrate",
    "migrations",
    "refresh",
    "repoint",
    "status",
]
