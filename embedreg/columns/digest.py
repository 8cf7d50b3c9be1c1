"""Row digests under their name here; `embedreg.declaration.digest` defines them, since whatever embeds writes them."""

from embedreg.declaration.digest import (
    KEY,
    MADE_BY,
    SUFFIX,
    column_name,
    column_of,
    digests,
    prefix_of,
    prefix_stored,
    same,
    sql,
)

__all__ = [
    "KEY",
    "MADE_BY",
    "SUFFIX",
    "column_name",
    "column_of",
    "digests",
    "prefix_of",
    "prefix_stored",
    "same",
    "sql",
]
