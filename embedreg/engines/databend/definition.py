"""Databend in the table of engines."""

from __future__ import annotations

from embedreg.inspection.engines import Engine

__all__ = ["Databend"]


class Databend(Engine):
    """Databend SQL. Its DDL is about the functions of a server, so `embedreg ddl databend` is a command of its own."""

    extra = "databend"
