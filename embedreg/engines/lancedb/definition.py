"""LanceDB in the table of engines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedreg.declaration.entries import metadata_with_widths
from embedreg.inspection.engines import Attachable, Engine, comes_from

__all__ = ["LanceDB"]


class LanceDB(Engine):
    """LanceDB: the folder of a table. A table object has its Arrow schema, which needs no engine."""

    extra = "lancedb"

    def reads(self, data: Any) -> bool:
        return isinstance(data, Path) and data.is_dir() and (data.suffix == ".lance" or (data / "_versions").is_dir())

    def metadata_of(self, data: Any) -> Mapping[Any, Any]:
        from embedreg.engines.lancedb.folders import schema_at

        return metadata_with_widths(schema_at(data))

    def columns(self, data: Any) -> Any:
        if not self.reads(data) and not (comes_from(data, "lancedb", "lance") and hasattr(data, "schema")):
            return None
        from embedreg.engines.lancedb.columns.place import Place, place_of
        from embedreg.engines.lancedb.columns.store import LanceColumns

        return LanceColumns(Place(data) if isinstance(data, Path) else place_of(data))

    def chunks(self, path: Path) -> Any:
        if path.suffix != ".lance":
            return None
        from embedreg.engines.lancedb.chunks import LanceChild
        from embedreg.engines.lancedb.columns.place import Place

        return LanceChild(Place(path))

    def attachable(self, path: Path) -> Attachable:
        from embedreg.engines.lancedb.folders import Table

        return Table(path)
