"""Convert Python objects of any class to plain Python values that Arrow converts exactly."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from embedreg.arrow.casting import ConversionError, shown
from embedreg.support.display import plain

if TYPE_CHECKING:
    pass

__all__ = ["KINDS", "NanoSpan", "Nanos", "kind_of_value", "simplified"]


class Nanos(NamedTuple):
    """A time in nanoseconds, which `datetime` cannot hold."""

    value: int
    zone: Any = None


# The types that Arrow's own conversion keeps exactly; other values are converted to one of these first.
KINDS: dict[type, str] = {
    str: "text",
    int: "int",
    float: "float",
    bool: "bool",
    bytes: "bytes",
    decimal.Decimal: "decimal",
    dt.datetime: "timestamp",
    dt.date: "date",
    dt.time: "time",
    dt.timedelta: "duration",
    uuid.UUID: "uuid",
    list: "list",
    dict: "struct",
}


class NanoSpan(int):
    """A duration in nanoseconds."""


def kind_of_value(kind: type) -> str:
    """Return the kind of values of `Nanos` or `NanoSpan`."""
    return "timestamp" if kind is Nanos else "duration"


def simplified(values: list[Any], found: set[type]) -> list[Any]:
    """Convert the values to types of `KINDS`."""
    converters = {kind: _converter(kind) for kind in found - KINDS.keys()}
    made = list(values)
    for row, value in enumerate(made):
        for _ in range(8):  # an enum of enums, a scalar of an array: each step simplifies it
            kind = type(value)
            if value is None or kind in KINDS or kind in (Nanos, NanoSpan):
                break
            convert = converters[kind] if kind in converters else converters.setdefault(kind, _converter(kind))
            try:
                value = convert(value)
            except ConversionError as exc:
                raise ConversionError(row, exc.why) from None
            except (TypeError, ValueError, ArithmeticError, AttributeError) as exc:
                raise ConversionError(row, f"a {_named(kind)} cannot be read: {plain(exc, 100)}") from None
        else:
            raise ConversionError(row, f"a {_named(type(value))} cannot be read")
        made[row] = value
    return made


def _named(kind: type) -> str:
    return plain(kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}", 80)


def _converter(kind: type) -> Callable[[Any], Any]:
    """Return the function that simplifies values of a type."""
    if kind.__name__ in ("NAType", "NaTType"):  # pandas' own nulls
        return lambda value: None
    if issubclass(kind, enum.Enum):
        return lambda value: value.value
    root = kind.__module__.partition(".")[0]
    if root == "numpy" and (convert := _numpy_converter(kind)) is not None:
        return convert
    if root == "pandas" and kind.__name__ in ("Timestamp", "Timedelta"):
        return _pandas_time if kind.__name__ == "Timestamp" else _pandas_span
    for base, convert in _CONVERTERS.items():
        if issubclass(kind, base):
            return convert
    for name in ("model_dump", "as_py", "to_pylist", "to_list", "tolist"):
        if callable(getattr(kind, name, None)):
            return lambda value: getattr(value, name)()
    if dataclasses.is_dataclass(kind):
        return lambda value: {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return _refused


# subclasses may override how they print or convert themselves: only their content counts
_CONVERTERS: dict[type | tuple[type, ...], Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__index__,
    float: float.__float__,
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: bytes,
    memoryview: lambda value: value.tobytes(),
    decimal.Decimal: lambda value: decimal.Decimal(value.as_tuple()),
    dt.datetime: lambda value: dt.datetime.combine(
        dt.date(value.year, value.month, value.day), value.timetz(), value.tzinfo
    ),
    dt.date: lambda value: dt.date(value.year, value.month, value.day),
    dt.timedelta: lambda value: dt.timedelta(value.days, value.seconds, value.microseconds),
    PurePath: str,
    (list, tuple, set, frozenset, collections.deque, range): list,
    Mapping: dict,
}


def _refused(value: Any) -> Any:
    hint = "; embed_column takes a list of images" if type(value).__module__.startswith("PIL") else ""
    raise ConversionError(0, f"a {_named(type(value))} has no Arrow counterpart{hint}")


def _numpy_converter(kind: type) -> Callable[[Any], Any] | None:
    import numpy as np

    if issubclass(kind, np.ndarray):
        return _listed
    if issubclass(kind, np.bool_):
        return bool
    if issubclass(kind, np.datetime64 | np.timedelta64):
        return _numpy_time
    if issubclass(kind, np.longdouble | np.complexfloating | np.void):
        return _float_or_refused if issubclass(kind, np.longdouble) else _refused
    if issubclass(kind, np.integer):
        return int
    return float if issubclass(kind, np.floating) else None


def _listed(array: Any) -> Any:
    if array.ndim == 0:
        return array[()] if array.dtype != object else array.item()
    # tolist would turn times into integers, and would not convert a long double
    return array.tolist() if array.dtype.kind in "biufOSUT" else list(array)


def _float_or_refused(value: Any) -> float:
    made = float(value)
    if made != value and value == value:
        raise ConversionError(0, f"{shown(value)} does not fit a float of 64 bits")
    return made


def _numpy_time(value: Any) -> Any:
    """Convert a numpy time or duration to Python's, or to nanoseconds if that would lose precision."""
    import numpy as np

    if np.isnat(value):
        return None
    span = isinstance(value, np.timedelta64)
    unit = np.datetime_data(value)[0]
    if unit == "D" and not span:
        made = value.item()
    elif unit in ("ps", "fs", "as", "generic") or (span and unit in "YM"):
        raise ConversionError(0, f"{shown(value)} has a unit that Arrow does not support")
    else:
        kind = "timedelta64" if span else "datetime64"
        try:
            micros = value.astype(f"{kind}[us]")
        except OverflowError:  # from about numpy 2.4 on; older versions overflow silently
            raise ConversionError(0, f"{shown(value)} is out of range for 64 bits of microseconds") from None
        if unit == "ns" and (nanos := int(value.astype(f"{kind}[ns]").astype("int64"))) % 1000:
            return NanoSpan(nanos) if span else Nanos(nanos)
        if micros.astype(value.dtype) != value:  # numpy overflows silently beyond 64 bits
            raise ConversionError(0, f"{shown(value)} is out of range for 64 bits of microseconds")
        made = micros.item()
    if not isinstance(made, dt.date | dt.timedelta):
        raise ConversionError(0, f"{shown(value)} is beyond the years 1 to 9999")
    return made


def _pandas_time(value: Any) -> Any:
    return Nanos(int(value.value), value.tzinfo) if value.nanosecond else value.to_pydatetime()


def _pandas_span(value: Any) -> Any:
    return NanoSpan(value.value) if value.nanoseconds else value.to_pytimedelta()
