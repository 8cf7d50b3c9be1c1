"""One column's life: add vectors to data, keep them up to date, change their model, and undo it.

    status(data)                                        # which rows are fresh, stale, foreign, unstamped or empty
    add(data, fn.bind("text", "vector"))                # a new vector column
    refresh(data)                                       # embed what is not fresh
    audit(data)                                         # whether the declared function made the vectors; if not, why
    compare(data, "vector", other_function)             # what another model would find, and cost
    migrate(data, "vector", other_function)             # another model for the same column, with a way back

`data` is a path, or a table object of an engine, which is brought to its newest version: `DB_DIR/name.lance`, a Parquet
or Arrow IPC file or a folder of them, or `FILE.duckdb/table`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.columns.auditing import audit
    from embedreg.columns.calls import add, detach, fill, migrate, migrations, refresh, repoint, status
    from embedreg.columns.comparing import compare
    from embedreg.columns.comparison import Comparison
    from embedreg.columns.findings import Audit
    from embedreg.columns.identifying import Guess, identify
    from embedreg.columns.migration import Migration
    from embedreg.columns.report import html_report, write_report
    from embedreg.columns.results import ColumnReport, ColumnStatus
else:
    __getattr__, __dir__ = index(
        __name__,
        {
            "Audit": "findings",
            "ColumnReport": "results",
            "ColumnStatus": "results",
            "Comparison": "comparison",
            "Guess": "identifying",
            "Migration": "migration",
            "add": "calls",
            "audit": "auditing",
            "compare": "comparing",
            "detach": "calls",
            "fill": "calls",
            "html_report": "report",
            "identify": "identifying",
            "migrate": "calls",
            "migrations": "calls",
            "refresh": "calls",
            "repoint": "calls",
            "status": "calls",
            "write_report": "report",
        },
    )

__all__ = [
    "Audit",
    "ColumnReport",
    "ColumnStatus",
    "Comparison",
    "Guess",
    "Migration",
    "add",
    "audit",
    "compare",
    "detach",
    "fill",
    "html_report",
    "identify",
    "migrate",
    "migrations",
    "refresh",
    "repoint",
    "status",
    "write_report",
]
