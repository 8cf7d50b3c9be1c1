"""Helpers to convert pandas and polars frames and series to Arrow, without importing either library."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

from embedreg.errors import InputError

__all__ = ["columns_of", "is_pandas", "is_polars", "odd_columns", "pandas_metadata", "series_of", "without_missing"]

log = logging.getLogger("embedreg")


def is_pandas(data: Any, *names: str) -> bool:
    """Return whether `data` is an instance of the named pandas classes."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, tuple(getattr(pandas, name) for name in names))


def is_polars(data: Any, *names: str) -> bool:
    """Return whether `data` is an instance of the named polars classes."""
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(data, tuple(getattr(polars, name) for name in names))


def series_of(data: Any) -> Any:
    """Return a named series as a frame of one column; None for anything else.

    Raises:
        InputError: the series has no name.
    """
    if not is_pandas(data, "Series") and not (is_polars(data, "Series") and str(data.dtype).split("(")[0] != "Struct"):
        return None
    if data.name is None or data.name == "":
        raise InputError("a series without a name is not a table.", "series.to_frame('text'), or series.rename('text')")
    return data.to_frame()


def columns_of(frame: Any) -> Iterator[tuple[str, Any]]:
    """Yield the columns of a pandas frame, including its index unless that only numbers the rows.

    A named level of the index is a column. An unnamed one is a column named as by pandas' `reset_index`, unless it
    holds integers, which are row numbers left by filtering, sorting and joining.
    """
    index = frame.index
    for level in range(index.nlevels):
        values = index.get_level_values(level)
        name = values.name
        if name is None:
            if values.dtype.kind in "iu" if hasattr(values.dtype, "kind") else False:
                continue
            if not len(values):
                continue
            name = "index" if index.nlevels == 1 else f"level_{level}"
        yield str(name), values.to_series(index=range(len(values)))
    for place, name in enumerate(frame.columns):
        yield name if type(name) is str else str(name), frame.iloc[:, place]


def pandas_metadata(frame: Any) -> Any:
    """Return the schema metadata with which Arrow restores pandas' own types; None if there is none."""
    import pyarrow as pa

    if any(type(name) is not str for name in frame.columns):
        return None
    try:
        return pa.Table.from_pandas(frame.iloc[:0], preserve_index=False).schema.metadata
    except (pa.ArrowException, TypeError, ValueError, AttributeError):
        return None


def without_missing(values: list[Any]) -> list[Any]:
    """Return the objects of a pandas column with None for pandas' missing values.

    NaN is a number in a column of numbers, and a missing value among anything else.
    """
    names = {type(value).__name__ for value in values}
    numbers = names <= {"float", "int", "NoneType", "NAType", "NaTType", "float64", "float32", "float16", "int64"}
    nulls = {"NAType", "NaTType"}
    if not names & nulls and (numbers or not names & {"float", "float64", "float32", "float16"}):
        return values
    return [
        None
        if type(value).__name__ in nulls or (not numbers and isinstance(value, float) and value != value)
        else value
        for value in values
    ]


def odd_columns(frame: Any) -> dict[str, Any] | None:
    """Return a polars frame as a dict of columns if Arrow cannot read it directly; else None.

    For a column of Python objects polars would export their addresses, and Arrow does not know some of its types.
    """
    types = [str(dtype) for dtype in frame.dtypes]
    if not any(name in kind for kind in types for name in ("Object", "Int128", "UInt128", "Unknown")):
        return None
    return {
        name: frame[name].to_list() if any(odd in kind for odd in ("Object", "Int128", "UInt128")) else frame[name]
        for name, kind in zip(frame.columns, types, strict=True)
    }
