"""Ray in the table of engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedreg.errors import InputError
from embedreg.inspection.engines import Engine, comes_from

__all__ = ["Ray"]


class Ray(Engine):
    """Ray Data: a dataset's Arrow schema, which Ray wraps, may declare functions."""

    extra = "ray"

    def reads(self, data: Any) -> bool:
        return comes_from(data, "ray")

    def metadata_of(self, data: Any) -> Mapping[Any, Any]:
        schema = getattr(data, "schema", data)
        schema = schema() if callable(schema) else schema
        schema = getattr(schema, "base_schema", schema)
        if not hasattr(schema, "metadata"):  # no rows, or blocks of pandas
            raise InputError(f"a {type(data).__name__} of Ray carries no schema metadata.", "pass an Arrow schema")
        return schema.metadata or {}
