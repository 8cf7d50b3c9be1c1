"""Python values as Arrow arrays: each stays what it is, or an error says which one cannot.

No type is decided from the first values and forced on the others. A type that somebody declared wins; else the values
settle it together: integers beside floats become floats where that is exact, dicts become structs of all their keys.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import types
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from embedreg.arrow.casting import Unfit, exactly, kind_of, list_of, shown
from embedreg.support.display import plain

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["NO_DEFAULTS", "Defaults", "array_of", "items_of", "keys_of", "numpy_array"]


class Defaults(NamedTuple):
    """What stands for a key that a dict lacks.

    Attributes:
        made: key -> a function of the dict that makes the value.
        inner: key -> the same for the dicts in it, or in its list.
    """

    made: Mapping[str, Callable[[Mapping[str, Any]], Any]]
    inner: Mapping[str, Defaults]


NO_DEFAULTS = Defaults({}, {})


class _Nanos(NamedTuple):
    """A time or a span that microseconds do not hold."""

    value: int
    zone: Any = None


# What Arrow's own conversion is exact about, by its type; every other value is made one of these first.
_KINDS: dict[type, str] = {
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


def array_of(values: list[Any], want: pa.DataType | None = None, defaults: Defaults = NO_DEFAULTS) -> pa.Array:
    """Turn Python values into an Arrow array.

    Args:
        values: n values; None is a null, NaN is a float.
        want: the declared type, None for the one that holds all of them.
        defaults: for keys that dicts among the values lack.
    Raises:
        Unfit: a value has no Arrow counterpart, is of another kind than the others, or is not what was declared.
    """
    import pyarrow as pa

    found = set(map(type, values)) - {types.NoneType}
    if len(found) == 1 and next(iter(found)).__module__ == "numpy" and (made := _arrays(values, want)) is not None:
        return made
    if not found <= _KINDS.keys():
        values = _simplified(values, found)
        found = set(map(type, values)) - {types.NoneType}
    if not found:
        return pa.nulls(len(values), want if want is not None else pa.null())
    kinds = {_KINDS.get(kind, _fine_kind(kind)) for kind in found}
    if want is not None and pa.types.is_map(want) and kinds <= {"struct", "list"}:
        return _map(values, want)
    if kinds == {"list"}:
        return _list(values, want, defaults)
    if kinds == {"struct"}:
        return _struct(values, want, defaults)
    made = _leaf(values, kinds, want)
    if want is None or made.type == want:
        return made
    if {kind_of(made.type), kind_of(_within(want))} == {"text", "bytes"}:
        row = next(row for row, value in enumerate(values) if value is not None)
        raise Unfit(row, f"{shown(values[row])} is no {want}")
    return exactly(made, want)


def _fine_kind(kind: type) -> str:
    return "timestamp" if kind is _Nanos else "duration"


class _NanoSpan(int):
    """A span of time in nanoseconds."""


def _within(type_: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if isinstance(type_, pa.BaseExtensionType):
        return _within(type_.storage_type)
    return _within(type_.value_type) if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_) else type_


# -- values that Arrow does not know, or knows too loosely -------------------------------------------------------------


def _simplified(values: list[Any], found: set[type]) -> list[Any]:
    """Return the values as types of `_KINDS`."""
    ways = {kind: _way(kind) for kind in found - _KINDS.keys()}
    made = list(values)
    for row, value in enumerate(made):
        for _ in range(8):  # an enum of enums, a scalar of an array: each step makes it simpler
            kind = type(value)
            if value is None or kind in _KINDS or kind in (_Nanos, _NanoSpan):
                break
            way = ways[kind] if kind in ways else ways.setdefault(kind, _way(kind))
            try:
                value = way(value)
            except Unfit as exc:
                raise Unfit(row, exc.why) from None
            except (TypeError, ValueError, ArithmeticError, AttributeError) as exc:
                raise Unfit(row, f"a {_named(kind)} cannot be read: {plain(exc, 100)}") from None
        else:
            raise Unfit(row, f"a {_named(type(value))} cannot be read")
        made[row] = value
    return made


def _named(kind: type) -> str:
    return plain(kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}", 80)


def _way(kind: type) -> Callable[[Any], Any]:
    """Return how the values of a type become simpler."""
    if kind.__name__ in ("NAType", "NaTType"):  # pandas' own nulls
        return lambda value: None
    if issubclass(kind, enum.Enum):
        return lambda value: value.value
    root = kind.__module__.partition(".")[0]
    if root == "numpy" and (way := _numpy_way(kind)) is not None:
        return way
    if root == "pandas" and kind.__name__ in ("Timestamp", "Timedelta"):
        return _pandas_time if kind.__name__ == "Timestamp" else _pandas_span
    for base, way in _WAYS.items():
        if issubclass(kind, base):
            return way
    for name in ("model_dump", "as_py", "to_pylist", "to_list", "tolist"):
        if callable(getattr(kind, name, None)):
            return lambda value: getattr(value, name)()
    if dataclasses.is_dataclass(kind):
        return lambda value: {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return _refused


# a subclass may print or convert itself as it likes: what it holds is what counts
_WAYS: dict[type | tuple[type, ...], Callable[[Any], Any]] = {
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
    raise Unfit(0, f"a {_named(type(value))} has no Arrow counterpart{hint}")


def _numpy_way(kind: type) -> Callable[[Any], Any] | None:
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
    # tolist would make integers of times, and keeps a long double as it is
    return array.tolist() if array.dtype.kind in "biufOSUT" else list(array)


def _float_or_refused(value: Any) -> float:
    made = float(value)
    if made != value and value == value:
        raise Unfit(0, f"{shown(value)} does not fit a float of 64 bits")
    return made


def _numpy_time(value: Any) -> Any:
    """Return a numpy time or span as Python's, or in nanoseconds where that would lose some."""
    import numpy as np

    if np.isnat(value):
        return None
    span = isinstance(value, np.timedelta64)
    unit = np.datetime_data(value)[0]
    if unit == "D" and not span:
        made = value.item()
    elif unit in ("ps", "fs", "as", "generic") or (span and unit in "YM"):
        raise Unfit(0, f"{shown(value)} has a unit that Arrow lacks")
    else:
        kind = "timedelta64" if span else "datetime64"
        try:
            micros = value.astype(f"{kind}[us]")
        except OverflowError:  # numpy from 2.4 or so on; older ones let it run over
            raise Unfit(0, f"{shown(value)} is beyond what 64 bits of microseconds hold") from None
        if unit == "ns" and (nanos := int(value.astype(f"{kind}[ns]").astype("int64"))) % 1000:
            return _NanoSpan(nanos) if span else _Nanos(nanos)
        if micros.astype(value.dtype) != value:  # numpy lets what is too large for 64 bits run over
            raise Unfit(0, f"{shown(value)} is beyond what 64 bits of microseconds hold")
        made = micros.item()
    if not isinstance(made, dt.date | dt.timedelta):
        raise Unfit(0, f"{shown(value)} is beyond the years 1 to 9999")
    return made


def _pandas_time(value: Any) -> Any:
    return _Nanos(int(value.value), value.tzinfo) if value.nanosecond else value.to_pydatetime()


def _pandas_span(value: Any) -> Any:
    return _NanoSpan(value.value) if value.nanoseconds else value.to_pytimedelta()


# -- plain values ------------------------------------------------------------------------------------------------------


def _leaf(values: list[Any], kinds: set[str], want: pa.DataType | None) -> pa.Array:
    """Return values that hold no others as the array of their own type."""
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
        _refuse(values, lambda value: value.tzinfo is not None, "has a time zone, which Arrow's times of day lack")
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
        _refuse(values, lambda value: not _is_unicode(value), "is not valid Unicode")
        raise
    # more than 2 GiB of text come in several chunks
    return made if isinstance(made, pa.Array) else pa.array(values, plain_types[-1])


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(values: Iterable[Any], wrong: Callable[[Any], bool], why: str) -> None:
    for row, value in enumerate(values):
        if value is not None and wrong(value):
            raise Unfit(row, f"{shown(value)} {why}")


def _other_kind(values: list[Any]) -> Unfit:
    """Return the first value that is of another kind than those before it."""
    seen: set[str] = set()
    first = ""
    for row, value in enumerate(values):
        if value is None:
            continue
        seen.add(_KINDS.get(type(value), _fine_kind(type(value))))
        first = first or type(value).__name__
        if len(seen) > 1 and not seen <= {"int", "float"} and not seen <= {"int", "decimal"}:
            return Unfit(row, f"{shown(value)} is {type(value).__name__}, others are {first}", mixed=True)
    raise AssertionError("the values are of one kind")  # _leaf has seen two


def _floats(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, pa.float64())
    except (pa.ArrowException, OverflowError):  # Arrow refuses every integer over 2**53
        _refuse(
            values, lambda value: isinstance(value, int) and not _is_float(value), "has no exact float, as others need"
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
    _refuse(made, lambda value: not value.is_finite(), "is no number that Arrow's decimals hold")
    before = after = 1
    for row, value in enumerate(made):
        if value is None:
            continue
        digits = value.as_tuple()
        after_this = max(-int(digits.exponent), 0)
        before_this = max(len(digits.digits) + int(digits.exponent), 1)
        if before_this + after_this > 76:
            raise Unfit(row, f"{shown(value)} has more than the 76 digits of Arrow's decimals")
        before, after = max(before, before_this), max(after, after_this)
        if before + after > 76:
            raise Unfit(row, f"{shown(value)} and others have more than the 76 digits of Arrow's decimals")
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
            f"{'has no' if aware else 'has a'} time zone, unlike others",
        )
    zone = None if zones == {None} else "UTC"
    if zone is not None and len(zones) == 1:
        try:
            zone = pa.lib.tzinfo_to_string(next(iter(zones)))
        except (pa.ArrowException, ValueError, TypeError, AttributeError):
            zone = "UTC"  # a zone without a name; the instants stay
    if not any(type(value) is _Nanos for value in values):
        try:
            return pa.array(values, pa.timestamp("us", zone))
        except (pa.ArrowException, OverflowError, ValueError) as exc:
            for row, value in enumerate(values):
                try:
                    pa.array([value], pa.timestamp("us", zone))
                except (pa.ArrowException, OverflowError, ValueError):
                    raise Unfit(row, f"{shown(value)} is no time that Arrow holds: {plain(exc, 100)}") from None
            raise
    counted = [None if value is None else _nanos(value) for value in values]
    _refuse(counted, lambda value: not -(2**63) < value < 2**63, "ns is beyond what 64 bits of nanoseconds hold")
    return pa.array(counted, pa.int64()).cast(pa.timestamp("ns", zone))


def _zone(value: Any) -> Any:
    return value.zone if type(value) is _Nanos else value.tzinfo


def _beyond_utc(value: Any) -> bool:
    """Return whether a time with a zone is one that Arrow holds and Python cannot read again."""
    if type(value) is _Nanos or value.tzinfo is None or value.year not in (1, 9999):
        return False
    try:
        value.astimezone(dt.UTC)
    except (OverflowError, ValueError):
        return True
    return False


def _nanos(value: Any) -> int:
    if type(value) is _Nanos:
        return value.value
    epoch = dt.datetime(1970, 1, 1, tzinfo=None if value.tzinfo is None else dt.UTC)
    return int((value - epoch) // dt.timedelta(microseconds=1)) * 1000


def _durations(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    fine = any(type(value) is _NanoSpan for value in values)
    tick = dt.timedelta(microseconds=1)
    counted = [
        None if value is None else int(value) if type(value) is _NanoSpan else value // tick * (1000 if fine else 1)
        for value in values
    ]
    unit = "ns" if fine else "us"
    _refuse(counted, lambda value: not -(2**63) < value < 2**63, f"{unit} are beyond what 64 bits hold")
    return pa.array(counted, pa.int64()).cast(pa.duration(unit))


# -- lists, structs, maps ----------------------------------------------------------------------------------------------


def _list(values: list[Any], want: pa.DataType | None, defaults: Defaults) -> pa.Array:
    import numpy as np

    inner = _within(want) if want is not None else None
    if inner is not None and kind_of(inner) != "list":
        row = next(row for row, value in enumerate(values) if value is not None)
        raise Unfit(row, f"{shown(values[row])} is no {want}")
    if (made := _simple_lists(values)) is not None:
        return made if want is None else exactly(made, want)
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    flat = list(itertools.chain.from_iterable(value for value in values if value is not None))
    try:
        items = array_of(flat, inner.value_type if inner is not None else None, defaults)
    except Unfit as exc:
        raise exc.inside(int(np.searchsorted(np.cumsum(lengths), exc.row, side="right")), "[]") from None
    missing = np.fromiter((value is None for value in values), bool, len(values))
    made = list_of(lengths, items, missing, inner)
    if inner is not None and items.null_count and not inner.value_field.nullable:
        row = int(np.argmax(np.asarray(items.is_null())))
        raise Unfit(int(np.searchsorted(np.cumsum(lengths), row, side="right")), f"null is not allowed in {want}", "[]")
    return made if want is None or made.type == want else exactly(made, want)


def _simple_lists(values: list[Any]) -> pa.Array | None:
    """Return lists of floats, of texts or of flags by Arrow's own conversion, which is exact for these; else None."""
    import pyarrow as pa

    found = set(map(type, itertools.chain.from_iterable(value for value in values if value is not None)))
    found.discard(types.NoneType)
    if len(found) != 1 or (kind := found.pop()) not in (float, str, bool):
        return None
    try:
        made = pa.array(values, pa.list_({float: pa.float64(), str: pa.string(), bool: pa.bool_()}[kind]))
    except UnicodeEncodeError:
        return None
    return made if isinstance(made, pa.Array) else None  # several chunks: over 2 GiB


def _struct(values: list[Any], want: pa.DataType | None, defaults: Defaults) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    inner = _within(want) if want is not None else None
    if inner is not None and not pa.types.is_struct(inner):
        row = next(row for row, value in enumerate(values) if value is not None)
        raise Unfit(row, f"{shown(values[row])} is no {want}")
    names = keys_of([value for value in values if value is not None])
    if odd := [name for name in names if type(name) is not str]:
        renamed = {name: str.__str__(name) for name in odd if isinstance(name, str)}
        if len(renamed) < len(odd):
            name = next(name for name in odd if name not in renamed)
            row = next(row for row, value in enumerate(values) if value is not None and name in value)
            raise Unfit(row, f"its key {shown(name)} is {type(name).__name__}, not str")
        values = [v if v is None else {renamed.get(key, key): item for key, item in v.items()} for v in values]
        names = dict.fromkeys(renamed.get(name, name) for name in names)
    fields = {field.name: field for field in inner} if inner is not None else {}
    if inner is not None:
        for name in names.keys() - fields.keys():
            for row, value in enumerate(values):
                if value is not None and value.get(name) is not None:
                    raise Unfit(row, f"it is in no field of {want}", f".{plain(name, 60)}")
        names = dict.fromkeys(fields)
    missing = [value is None for value in values]
    lacking = any(missing)
    if not names:
        return pa.array(values, pa.struct([]) if inner is None else inner)
    children = []
    for name in names:
        make = defaults.made.get(name)
        if not lacking:
            column = items_of(values, name, make)
        else:
            column = [None if value is None else items_of([value], name, make)[0] for value in values]
        try:
            child = array_of(column, fields[name].type if fields else None, defaults.inner.get(name, NO_DEFAULTS))
        except Unfit as exc:
            raise exc.inside(exc.row, f".{plain(name, 60)}") from None
        if fields and not fields[name].nullable and child.null_count:
            absent = np.asarray(child.is_null()) & ~np.array(missing)
            if absent.any():
                raise Unfit(int(np.argmax(absent)), "it is missing, and may not be", f".{plain(name, 60)}")
        children.append(child)
    made = pa.StructArray.from_arrays(
        children,
        fields=list(inner)
        if inner is not None
        else [pa.field(n, c.type) for n, c in zip(names, children, strict=True)],
        mask=pa.array(missing) if lacking else None,
    )
    return made if want is None or made.type == want else exactly(made, want)


def keys_of(dicts: list[Any]) -> dict[Any, None]:
    """Return the keys of all dicts, in the order in which they first appear."""
    first = dict.fromkeys(dicts[0]) if dicts else {}
    # most often all dicts have the same keys, which a set tells fastest
    return first if set().union(*dicts) == first.keys() else dict.fromkeys(itertools.chain.from_iterable(dicts))


def items_of(dicts: list[Any], key: Any, make: Callable[[Mapping[str, Any]], Any] | None = None) -> list[Any]:
    """Return what dicts hold under a key; where they lack it, what `make` makes of the dict, or None."""
    if make is None:
        return [one.get(key) for one in dicts]
    return [one[key] if key in one else make(one) for one in dicts]


def _map(values: list[Any], want: pa.DataType) -> pa.Array:
    import pyarrow as pa

    pairs = pa.struct([pa.field("key", want.key_type, nullable=False), pa.field("value", want.item_type)])
    values = [list(value.items()) if isinstance(value, dict) else value for value in values]
    for row, value in enumerate(values):
        if value is not None and not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
            raise Unfit(row, f"{shown(value)} is no {want}")
    dicts = [None if value is None else [{"key": key, "value": item} for key, item in value] for value in values]
    made = _list(dicts, pa.list_(pairs), NO_DEFAULTS)
    starts = [
        None if null else int(at)
        for at, null in zip(made.offsets.to_pylist()[:-1], made.is_null().to_pylist(), strict=True)
    ]
    offsets = pa.array([*starts, made.offsets.to_pylist()[-1]], pa.int32())
    return pa.MapArray.from_arrays(offsets, *made.values.flatten(), type=want)


def _arrays(values: list[Any], want: pa.DataType | None) -> pa.Array | None:
    """Return numpy arrays of one axis and one type as lists, without a Python number for each of theirs; else None."""
    import numpy as np

    present = [value for value in values if value is not None]
    inner = _within(want) if want is not None else None
    if not all(type(value) is np.ndarray and value.ndim == 1 for value in present):
        return None
    dtype = present[0].dtype
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or any(value.dtype != dtype for value in present):
        return None
    if inner is not None and kind_of(inner) != "list":
        return None
    lengths = np.fromiter((0 if value is None else len(value) for value in values), np.int64, len(values))
    items = numpy_array(np.concatenate(present))
    missing = np.fromiter((value is None for value in values), bool, len(values))
    made = list_of(lengths, items, missing, None)
    return made if want is None else exactly(made, want)


def numpy_array(array: Any) -> pa.Array:
    """Turn a numpy array of one axis into Arrow; NaN stays, NaT is null, what a mask hides is null.

    Raises:
        Unfit: its values have no Arrow counterpart.
    """
    import numpy as np
    import pyarrow as pa

    mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    data = np.ma.getdata(array) if mask is not None else np.asarray(array)
    kind = data.dtype.kind
    if kind in "biuf" and data.dtype.itemsize <= 8:
        return pa.array(data.astype(data.dtype.newbyteorder("="), copy=False), mask=mask, from_pandas=False)
    if kind in "mM" and np.datetime_data(data.dtype) in (("s", 1), ("ms", 1), ("us", 1), ("ns", 1)):
        return pa.array(data.astype(data.dtype.newbyteorder("="), copy=False), mask=mask)
    values = list(data) if kind in "mMfcV" else data.tolist()
    if mask is not None:
        values = [None if hidden else value for value, hidden in zip(values, mask.tolist(), strict=True)]
    return array_of(values)
