"""Arrow arrays as another Arrow type: every value stays what it is, or an error says which one does not fit."""

from __future__ import annotations

import decimal
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedreg.support.display import plain

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = [
    "Unfit",
    "exactly",
    "kept_rows",
    "kind_of",
    "list_of",
    "plain_array",
    "shown",
    "storable_type",
    "taken",
    "value_at",
]

_SHOWN = 60  # characters of a value that a message quotes


class Unfit(Exception):
    """A value that cannot be kept as it is; whoever knows the column and its first row makes an InputError of it.

    Attributes:
        row: its place in the array that was given.
        why: what is wrong with it, with the value.
        path: where in a nested value it is, such as `.price` or `[]`.
        mixed: whether it is the other values that it does not go with.
    """

    def __init__(self, row: int, why: str, path: str = "", *, mixed: bool = False) -> None:
        super().__init__(why)
        self.row = row
        self.why = why
        self.path = path
        self.mixed = mixed

    def inside(self, row: int, step: str) -> Unfit:
        """Return the same as the row of an outer array has it."""
        return Unfit(row, self.why, step + self.path, mixed=self.mixed)


def shown(value: Any) -> str:
    """Return a value as a message quotes it: one short printable line."""
    if isinstance(value, str | bytes | bytearray):
        value = value[: 4 * _SHOWN]  # the repr of a long text costs no more than what is shown of it
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001  # a stranger's __repr__ may raise anything
        text = f"<{type(value).__name__} whose repr raises {type(exc).__name__}>"
    return plain(text, _SHOWN)


@functools.cache
def kind_of(type_: pa.DataType) -> str:
    """Return what the values of a type are, whatever their width: "text", "number", "list" and so on."""
    import pyarrow as pa

    is_ = pa.types
    kinds: dict[str, tuple[Callable[[Any], bool], ...]] = {
        "text": (is_.is_string, is_.is_large_string, is_.is_string_view),
        "number": (is_.is_integer, is_.is_floating, is_.is_decimal),
        "bytes": (is_.is_binary, is_.is_large_binary, is_.is_binary_view, is_.is_fixed_size_binary),
        "list": (is_.is_list, is_.is_large_list, is_.is_fixed_size_list, is_.is_list_view, is_.is_large_list_view),
        "date": (is_.is_date,),
        "timestamp": (is_.is_timestamp,),
        "time": (is_.is_time,),
        "duration": (is_.is_duration,),
    }
    return next((kind for kind, tests in kinds.items() if any(test(type_) for test in tests)), type_.__class__.__name__)


def plain_array(array: pa.Array) -> pa.Array:
    """Return an array without its dictionary, runs or extension."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array, pa.ExtensionArray):
        return plain_array(array.storage)
    if isinstance(array, pa.DictionaryArray):
        values = plain_array(array.dictionary)
        if (wide := _TAKEN.get(str(values.type))) is not None:  # views cannot be taken from (pyarrow 26)
            values = values.cast(wide)
        return values.take(array.indices)
    if isinstance(array, pa.RunEndEncodedArray):
        return plain_array(pc.run_end_decode(array))
    return array


UUID_TYPE = "extension<arrow.uuid>"
_TAKEN = {"string_view": "large_string", "binary_view": "large_binary"}


def kept_rows(batch: pa.RecordBatch, keep: np.ndarray) -> pa.RecordBatch:
    """Return some rows of a batch, of any types: Arrow's own `filter` has no views, nor dictionaries of them.

    Args:
        keep: (n,) bool.
    """
    import numpy as np
    import pyarrow as pa

    try:
        return batch.filter(pa.array(keep))
    except pa.ArrowNotImplementedError:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
        runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        columns = [pa.concat_arrays([column[start:stop] for start, stop in runs] or [column[:0]]) for column in batch]
        return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def taken(array: pa.Array, rows: np.ndarray) -> pa.Array:
    """Return some rows of an array of texts or bytes, without its dictionary or views."""
    import pyarrow as pa

    simple = plain_array(array)
    wide = _TAKEN.get(str(simple.type))
    return (simple if wide is None else simple.cast(wide)).take(pa.array(rows))


def exactly(array: pa.Array, want: pa.DataType, *, rounds: bool = True) -> pa.Array:
    """Return an array as another type, value by value the same.

    Numbers may change their type where the number stays; times their unit where the time stays; texts, bytes and lists
    their layout.

    Args:
        rounds: whether a float becomes the nearest one of a narrower float type, which is what declaring it means.
    Raises:
        Unfit: a value would not be the same, or is of another kind.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    have = array.type
    if have == want:
        return array
    if array.null_count == len(array) or pa.types.is_null(have):
        return pa.nulls(len(array), want)
    if str(have) == UUID_TYPE:
        if kind_of(want) != "text" or not rounds:  # its text is it where a schema says so, its bytes never are
            raise _unfit(array, _first_valid(array), f"is a UUID, no {want}")
        return pa.array([None if value is None else str(value) for value in array.to_pylist()], want)
    if (simple := plain_array(array)) is not array:
        return exactly(simple, want, rounds=rounds)
    if isinstance(want, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(want, exactly(array, want.storage_type, rounds=rounds))
    if pa.types.is_dictionary(want):
        return _encoded(exactly(array, want.value_type, rounds=rounds), want)
    if pa.types.is_run_end_encoded(want):
        return pc.run_end_encode(exactly(array, want.value_type, rounds=rounds), want.run_end_type)
    kind, other = kind_of(have), kind_of(want)
    if kind != other and {kind, other} != {"text", "bytes"}:
        raise _unfit(array, _first_valid(array), f"is no {want}")
    if kind == "number":
        return _numbers(array, want, rounds)
    if kind == "list":
        return _lists(array, want, rounds)
    if pa.types.is_struct(have):
        return _structs(array, want, rounds)
    if pa.types.is_map(have):
        return _maps(array, want, rounds)
    if kind == "timestamp" and (have.tz is None) != (want.tz is None):
        raise _unfit(
            array,
            _first_valid(array),
            f"{'has no' if have.tz is None else 'has a'} time zone, unlike {want} (pydantic's AwareDatetime has one)",
        )
    return _safely(array, want)


def _safely(array: pa.Array, want: pa.DataType) -> pa.Array:
    """Cast where Arrow itself refuses what does not fit, and find the row that it refused."""
    import pyarrow as pa

    steps = [want]
    if str(array.type) in _TAKEN and str(want) not in ("string", "large_string", "binary", "large_binary"):
        steps.insert(0, pa.type_for_alias(_TAKEN[str(array.type)]))
    if pa.types.is_fixed_size_binary(want) and kind_of(array.type) == "text":
        steps.insert(0, pa.binary())

    def cast(some: pa.Array) -> pa.Array:
        for step in steps:
            some = some.cast(step)
        return some

    try:
        return cast(array)
    except pa.ArrowException:
        raise _unfit(array, _first_failing(array, cast), f"does not fit {want}") from None


def _first_failing(array: Any, call: Callable[[Any], Any]) -> int:
    """Return the first row with which a call fails, which it does on the whole array."""
    import pyarrow as pa

    low, high = 0, len(array)  # a prefix of `low` rows passes, one of `high` rows fails
    while high - low > 1:
        middle = (low + high) // 2
        try:
            call(array[:middle])
            low = middle
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            high = middle
    return low


def _first_valid(array: pa.Array) -> int:
    import numpy as np

    return int(np.argmax(np.asarray(array.is_valid())))


def _unfit(array: pa.Array, row: int, what: str) -> Unfit:
    return Unfit(row, f"{shown(value_at(array, row))} {what}")


def value_at(array: pa.Array, row: int) -> Any:
    """Return a value for a message, as Python has it; a time beyond Python's years as its number and type."""
    import pyarrow as pa

    try:
        return array[row].as_py()
    except (ValueError, OverflowError, ArithmeticError):
        try:
            return f"{array[row].value} ({array.type})"
        except (AttributeError, pa.ArrowException):
            return f"a value of {array.type}"


def _encoded(array: pa.Array, want: pa.DataType) -> pa.Array:
    import pyarrow as pa

    wide = array.cast(_TAKEN[str(array.type)]) if str(array.type) in _TAKEN else array
    made = wide.dictionary_encode()
    try:
        return pa.DictionaryArray.from_arrays(
            made.indices.cast(want.index_type), made.dictionary.cast(want.value_type), ordered=want.ordered
        )
    except pa.ArrowException:
        raise Unfit(0, f"{len(made.dictionary)} different values are more than {want} can number") from None


# -- numbers -----------------------------------------------------------------------------------------------------------


def _numbers(array: pa.Array, want: pa.DataType, rounds: bool) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    have, is_ = array.type, pa.types
    if is_.is_floating(have) and is_.is_floating(want):
        given = array.to_numpy(zero_copy_only=False).astype(np.float64)  # a null is NaN here
        with np.errstate(over="ignore"):
            made = given.astype(want.to_pandas_dtype())
        grown = np.isinf(made) & np.isfinite(given)
        if grown.any():
            raise _unfit(array, int(np.argmax(grown)), f"is too large for {want}")
        changed = (made != given) & ~np.isnan(given)
        if not rounds and changed.any():
            raise _unfit(array, int(np.argmax(changed)), f"is no {want}")
        return pa.array(made, want, mask=_mask(array))
    mixed = (is_.is_decimal(have) or is_.is_decimal(want)) and have.__class__ is not want.__class__
    if not mixed and not is_.is_float16(want):  # Arrow takes 2049 for a half float, which has no such number
        try:
            return array.cast(want)
        except pa.ArrowException:
            pass  # Arrow is right about most, but refuses integers over 2**53 that a double holds exactly
    values = array.to_pylist()
    made_values = [None if value is None else _number(value, want) for value in values]
    for row, (value, made_value) in enumerate(zip(values, made_values, strict=True)):
        if value is not None and made_value is None:
            raise Unfit(row, f"{shown(value)} is no {want}")
    try:
        return pa.array(made_values, want)
    except (pa.ArrowException, OverflowError, ValueError):
        row = _first_failing(made_values, lambda some: pa.array(some, want))
        raise Unfit(row, f"{shown(values[row])} does not fit {want}") from None


def _number(value: Any, want: pa.DataType) -> Any:
    """Return a Python number as what an Arrow type holds, None where that would be another number."""
    import numpy as np
    import pyarrow as pa

    made: Any
    try:
        if pa.types.is_integer(want):
            made = int(value)
        elif pa.types.is_decimal(want):
            made = decimal.Decimal(value)
        else:
            with np.errstate(over="ignore"):
                made = want.to_pandas_dtype()(float(value))
            return made if float(made) == value or made != made else None
        return made if made == value else None
    except (OverflowError, ValueError, ArithmeticError):  # NaN and infinity are no integers; a huge integer no float
        return None


def _mask(array: pa.Array) -> Any:
    import numpy as np

    return np.asarray(array.is_null()) if array.null_count else None


# -- lists, structs, maps ----------------------------------------------------------------------------------------------


def list_of(lengths: np.ndarray, values: pa.Array, missing: np.ndarray | None, want: pa.DataType | None) -> pa.Array:
    """Build a list array.

    Args:
        lengths: (n,) int64, 0 where the list is null.
        values: the items of all lists, one after the other.
        missing: (n,) bool, which lists are null; None for none.
        want: the type; None for a list of the values' type.
    Raises:
        Unfit: a list has another length than the fixed one of its type.
    """
    import numpy as np
    import pyarrow as pa

    want = want if want is not None else pa.list_(values.type)
    mask = pa.array(missing) if missing is not None and missing.any() else None
    if pa.types.is_fixed_size_list(want):
        size = want.list_size
        odd = lengths != size
        if missing is not None:
            odd = odd & ~missing
        if odd.any():
            row = int(np.argmax(odd))
            raise Unfit(row, f"a list of {lengths[row]} is no {want}")
        if mask is not None:  # Arrow wants room for the items of null lists too
            places = np.zeros((len(lengths), size), np.int64)
            places[np.asarray(~missing) if missing is not None else slice(None)] = np.arange(len(values)).reshape(
                -1, size
            )
            room = values if len(values) else pa.nulls(1, values.type)
            values = plain_array(room).take(pa.array(places.reshape(-1))).cast(values.type)
        return pa.FixedSizeListArray.from_arrays(values, type=want, mask=mask)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    large = pa.types.is_large_list(want) or ends[-1] > np.iinfo(np.int32).max
    maker, offsets = (pa.LargeListArray, pa.int64()) if large else (pa.ListArray, pa.int32())
    kind = want
    if not (pa.types.is_list(want) or pa.types.is_large_list(want)) or large != pa.types.is_large_list(want):
        kind = (pa.large_list if large else pa.list_)(want.value_field)
    made = maker.from_arrays(pa.array(ends, offsets), values, type=kind, mask=mask)
    return made if kind == want else _safely(made, want)


def _lists(array: pa.Array, want: pa.DataType, rounds: bool) -> pa.Array:
    import numpy as np
    import pyarrow.compute as pc

    # no cast of list views to lists: pyarrow 26 loses the items of the last one
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    try:
        values = exactly(array.flatten(), want.value_type, rounds=rounds)
    except Unfit as exc:
        raise exc.inside(_row_of(lengths, exc.row), "[]") from None
    if values.null_count and not want.value_field.nullable:
        raise Unfit(_row_of(lengths, _first_null(values)), f"null is not allowed in {want}", "[]")
    return list_of(lengths, values, np.asarray(array.is_null()) if array.null_count else None, want)


def _row_of(lengths: np.ndarray, item: int) -> int:
    """Return the row whose list holds an item of the flat values."""
    import numpy as np

    return int(np.searchsorted(np.cumsum(lengths), item, side="right"))


def _first_null(array: pa.Array) -> int:
    import numpy as np

    return int(np.argmax(np.asarray(array.is_null())))


def _structs(array: pa.Array, want: pa.DataType, rounds: bool) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if len({field.name for field in array.type}) < array.type.num_fields:
        raise Unfit(_first_valid(array), "a struct has two fields of one name")
    given = {field.name: child for field, child in zip(array.type, array.flatten(), strict=True)}
    absent = np.asarray(array.is_null())
    children = []
    for field in want:
        child = given.pop(field.name, None)
        try:
            child = pa.nulls(len(array), field.type) if child is None else exactly(child, field.type, rounds=rounds)
        except Unfit as exc:
            raise exc.inside(exc.row, f".{plain(field.name, _SHOWN)}") from None
        if not field.nullable and (lacking := np.asarray(child.is_null()) & ~absent).any():
            raise Unfit(int(np.argmax(lacking)), "it is missing, and may not be", f".{plain(field.name, _SHOWN)}")
        children.append(child)
    for name, child in given.items():
        if child.null_count < len(child):
            raise Unfit(_first_valid(child), f"it is in no field of {want}", f".{plain(name, _SHOWN)}")
    if not children:
        return pa.array([None if null else {} for null in absent.tolist()], want)
    return pa.StructArray.from_arrays(children, fields=list(want), mask=pa.array(absent) if absent.any() else None)


def _maps(array: pa.Array, want: pa.DataType, rounds: bool) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    offsets = array.offsets.to_numpy()
    start, stop = int(offsets[0]), int(offsets[-1])
    lengths = np.diff(offsets)
    sides = []
    for side, type_ in ((array.keys, want.key_type), (array.items, want.item_type)):
        try:
            sides.append(exactly(side[start:stop], type_, rounds=rounds))
        except Unfit as exc:
            raise exc.inside(_row_of(lengths, exc.row), "[]") from None
    starts = [
        None if null else int(at) for at, null in zip(offsets[:-1] - start, array.is_null().to_pylist(), strict=True)
    ]
    return pa.MapArray.from_arrays(pa.array([*starts, stop - start], pa.int32()), *sides, type=want)


def storable_type(type_: pa.DataType) -> pa.DataType:
    """Return a type with dictionaries of plain texts or bytes in the place of those of views."""
    import pyarrow as pa

    if pa.types.is_dictionary(type_) and (wide := _TAKEN.get(str(type_.value_type))) is not None:
        narrow = pa.type_for_alias(wide.removeprefix("large_"))
        return pa.dictionary(type_.index_type, narrow, ordered=type_.ordered)
    if pa.types.is_struct(type_):
        return pa.struct([item.with_type(storable_type(item.type)) for item in type_])
    if kind_of(type_) == "list":
        inner = type_.value_field.with_type(storable_type(type_.value_type))
        if inner.type == type_.value_type:
            return type_
        if pa.types.is_fixed_size_list(type_):
            return pa.list_(inner, type_.list_size)
        return (pa.large_list if "large" in str(type_) else pa.list_)(inner)
    return type_
