"""Convert columns of plain Python values (numbers, texts, bytes, dates, times) to Arrow arrays."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from embedreg.arrow.casting import ConversionError, shown
from embedreg.support.display import plain
from embedreg.support.unicode import is_valid

if TYPE_CHECKING:
    import pyarrow as pa

from embedreg.arrow.objects import KINDS, Nanos, NanoSpan, kind_of_value

__all__ = ["plain_column"]


def plain_column(values: list[Any], kinds: set[str], want: pa.DataType | None) -> pa.Array:
    """Convert values that are not nested to an array of their own type."""
    import pyarrow as pa

    if kinds == {"int", "float"}:
        return _floats(values)
    if kinds == {"decimal"} or kinds == {"int", "decimal"}:
        return _decimals(values)
    if len(kinds) > 1:
        raise _other_kind(values)
    kind = kinds.pop()
    if kind == "int":
        return _integers(values, want)
    if kind == "timestamp":
        return _timestamps(values)
    if kind == "duration":
        return _durations(values)
    if kind == "uuid":
        made = pa.array([None if value is None else value.bytes for value in values], pa.binary(16))
        return pa.ExtensionArray.from_storage(pa.uuid(), made)
    if kind == "time":
        _refuse(
            values, lambda value: value.tzinfo is not None, "has a time zone, which Arrow's times of day cannot hold"
        )
    plain_types = {
        "text": (pa.string(), pa.large_string()),
        "bytes": (pa.binary(), pa.large_binary()),
        "float": (pa.float64(),),
        "bool": (pa.bool_(),),
        "date": (pa.date32(),),
        "time": (pa.time64("us"),),
    }[kind]
    try:
        made = pa.array(values, plain_types[0])
    except UnicodeEncodeError:
        _refuse(values, lambda value: not is_valid(value), "is not valid Unicode")
        raise
    # more than 2 GiB of text are returned as several chunks
    return made if isinstance(made, pa.Array) else pa.array(values, plain_types[-1])


def _refuse(values: Iterable[Any], wrong: Callable[[Any], bool], why: str) -> None:
    for row, value in enumerate(values):
        if value is not None and wrong(value):
            raise ConversionError(row, f"{shown(value)} {why}")


def _other_kind(values: list[Any]) -> ConversionError:
    """Return the error for the first value that is of another kind than those before it."""
    seen: set[str] = set()
    first = ""
    for row, value in enumerate(values):
        if value is None:
            continue
        seen.add(KINDS.get(type(value), kind_of_value(type(value))))
        first = first or type(value).__name__
        if len(seen) > 1 and not seen <= {"int", "float"} and not seen <= {"int", "decimal"}:
            return ConversionError(row, f"{shown(value)} is {type(value).__name__}, others are {first}", mixed=True)
    raise AssertionError("the values are of one kind")  # plain_column found two kinds


def _floats(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, pa.float64())
    except (pa.ArrowException, OverflowError):  # Arrow refuses every integer over 2**53
        _refuse(
            values,
            lambda value: isinstance(value, int) and not _is_float(value),
            "is not exact as a float, which other values need",
        )
        return pa.array([None if value is None else float(value) for value in values], pa.float64())


def _is_float(value: int) -> bool:
    try:
        return float(value) == value
    except OverflowError:
        return False


def _integers(values: list[Any], want: pa.DataType | None) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, pa.int64())
    except (pa.ArrowException, OverflowError):
        present = [value for value in values if value is not None]
        if want is not None and pa.types.is_decimal(want):
            return _decimals(values)
        if want is not None and pa.types.is_floating(want):
            return _floats(values)
        if min(present) < 0 or (want is not None and not pa.types.is_uint64(want)):
            _refuse(values, lambda value: not -(2**63) <= value < 2**63, "does not fit an integer of 64 bits")
        _refuse(values, lambda value: value >= 2**64, "does not fit an integer of 64 bits")
        return pa.array(values, pa.uint64())


def _decimals(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    made = [decimal.Decimal(value) if isinstance(value, int) else value for value in values]
    _refuse(made, lambda value: not value.is_finite(), "is not a finite decimal")
    before = after = 1
    for row, value in enumerate(made):
        if value is None:
            continue
        digits = value.as_tuple()
        after_this = max(-int(digits.exponent), 0)
        before_this = max(len(digits.digits) + int(digits.exponent), 1)
        if before_this + after_this > 76:
            raise ConversionError(row, f"{shown(value)} has more than 76 digits, the maximum of Arrow's decimals")
        before, after = max(before, before_this), max(after, after_this)
        if before + after > 76:
            raise ConversionError(
                row, f"{shown(value)} and other values need more than 76 digits, the maximum of Arrow's decimals"
            )
    scale = max((max(-int(value.as_tuple().exponent), 0) for value in made if value is not None), default=0)
    precision = min(max(before + scale, 1), 76)
    kind = pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)
    return pa.array(made, kind)


def _timestamps(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    _refuse(values, _beyond_utc, "is beyond the years 1 to 9999 in UTC")
    zones = {_zone(value) for value in values if value is not None}
    if None in zones and len(zones) > 1:
        first = next(value for value in values if value is not None)
        aware = _zone(first) is not None
        _refuse(
            values,
            lambda value: (_zone(value) is not None) != aware,
            f"{'has no' if aware else 'has a'} time zone, unlike other values",
        )
    zone = None if zones == {None} else "UTC"
    if zone is not None and len(zones) == 1:
        try:
            zone = pa.lib.tzinfo_to_string(next(iter(zones)))
        except (pa.ArrowException, ValueError, TypeError, AttributeError):
            zone = "UTC"  # a zone without a name; the instants stay the same
    if not any(type(value) is Nanos for value in values):
        try:
            return pa.array(values, pa.timestamp("us", zone))
        except (pa.ArrowException, OverflowError, ValueError) as exc:
            for row, value in enumerate(values):
                try:
                    pa.array([value], pa.timestamp("us", zone))
                except (pa.ArrowException, OverflowError, ValueError):
                    raise ConversionError(row, f"{shown(value)} is not a valid Arrow time: {plain(exc, 100)}") from None
            raise
    counted = [None if value is None else _nanos(value) for value in values]
    _refuse(counted, lambda value: not -(2**63) < value < 2**63, "ns is out of range for 64 bits of nanoseconds")
    return pa.array(counted, pa.int64()).cast(pa.timestamp("ns", zone))


def _zone(value: Any) -> Any:
    return value.zone if type(value) is Nanos else value.tzinfo


def _beyond_utc(value: Any) -> bool:
    """Return whether Arrow can hold a time with a zone but Python could not read it back."""
    if type(value) is Nanos or value.tzinfo is None or value.year not in (1, 9999):
        return False
    try:
        value.astimezone(dt.UTC)
    except (OverflowError, ValueError):
        return True
    return False


def _nanos(value: Any) -> int:
    if type(value) is Nanos:
        return value.value
    epoch = dt.datetime(1970, 1, 1, tzinfo=None if value.tzinfo is None else dt.UTC)
    return int((value - epoch) // dt.timedelta(microseconds=1)) * 1000


def _durations(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    fine = any(type(value) is NanoSpan for value in values)
    tick = dt.timedelta(microseconds=1)
    counted = [
        None if value is None else int(value) if type(value) is NanoSpan else value // tick * (1000 if fine else 1)
        for value in values
    ]
    unit = "ns" if fine else "us"
    _refuse(counted, lambda value: not -(2**63) < value < 2**63, f"{unit} are out of range for 64 bits")
    return pa.array(counted, pa.int64()).cast(pa.duration(unit))
