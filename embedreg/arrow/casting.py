"""Cast Arrow arrays exactly: every value stays the same, or an error names the one that does not fit."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedreg.arrow.layouts import WITHOUT_VIEWS, kind_of, plain_array
from embedreg.support.display import plain

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["UUID_TYPE", "ConversionError", "cast_exactly", "list_of", "shown", "value_at"]

_SHOWN = 60  # maximum characters of a value in a message


class ConversionError(Exception):
    """A value that cannot be converted exactly; the caller who knows the column converts it to an `InputError`.

    Attributes:
        row: its index in the array.
        why: the reason, including the value.
        path: its position in a nested value, such as `.price` or `[]`.
        mixed: whether the reason is that other values are of another kind.
    """

    def __init__(self, row: int, why: str, path: str = "", *, mixed: bool = False) -> None:
        super().__init__(why)
        self.row = row
        self.why = why
        self.path = path
        self.mixed = mixed

    def inside(self, row: int, step: str) -> ConversionError:
        """Return the same error for the row of an outer array."""
        return ConversionError(row, self.why, step + self.path, mixed=self.mixed)


def shown(value: Any) -> str:
    """Return a value as one short printable line for a message."""
    if isinstance(value, str | bytes | bytearray):
        value = value[: 4 * _SHOWN]  # avoids the repr of a long text
    try:
        text = repr(value)
    except Exception as exc:  # noqa: BLE001  # a user's __repr__ may raise any error
        text = f"<{type(value).__name__} whose repr raises {type(exc).__name__}>"
    return plain(text, _SHOWN)


UUID_TYPE = "extension<arrow.uuid>"


def cast_exactly(array: pa.Array, want: pa.DataType, *, rounds: bool = True) -> pa.Array:
    """Cast an array to another type without changing any value.

    Numbers may change their type if the number stays the same, times their unit if the time stays the same, and texts,
    bytes and lists their layout.

    Args:
        rounds: whether floats may be rounded to a narrower float type, as its declaration implies.
    Raises:
        ConversionError: a value would change, or is of another kind.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    have = array.type
    if have == want:
        return array
    if array.null_count == len(array) or pa.types.is_null(have):
        return pa.nulls(len(array), want)
    if str(have) == UUID_TYPE:
        if kind_of(want) != "text" or not rounds:  # only a declared type converts it, and only to text
            raise _conversion_error(array, _first_valid(array), f"is a UUID, not {want}")
        return pa.array([None if value is None else str(value) for value in array.to_pylist()], want)
    if (simple := plain_array(array)) is not array:
        return cast_exactly(simple, want, rounds=rounds)
    if isinstance(want, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(want, cast_exactly(array, want.storage_type, rounds=rounds))
    if pa.types.is_dictionary(want):
        return _encoded(cast_exactly(array, want.value_type, rounds=rounds), want)
    if pa.types.is_run_end_encoded(want):
        return pc.run_end_encode(cast_exactly(array, want.value_type, rounds=rounds), want.run_end_type)
    kind, other = kind_of(have), kind_of(want)
    if kind != other and {kind, other} != {"text", "bytes"}:
        raise _conversion_error(array, _first_valid(array), f"is not {want}")
    if kind == "number":
        return _numbers(array, want, rounds)
    if kind == "list":
        return _lists(array, want, rounds)
    if pa.types.is_struct(have):
        return _structs(array, want, rounds)
    if pa.types.is_map(have):
        return _maps(array, want, rounds)
    if kind == "timestamp" and (have.tz is None) != (want.tz is None):
        raise _conversion_error(
            array,
            _first_valid(array),
            f"{'has no' if have.tz is None else 'has a'} time zone, unlike {want} (pydantic's AwareDatetime has one)",
        )
    return _safely(array, want)


def _safely(array: pa.Array, want: pa.DataType) -> pa.Array:
    """Cast with Arrow's own check, and find the row that it refused."""
    import pyarrow as pa

    steps = [want]
    if str(array.type) in WITHOUT_VIEWS and str(want) not in ("string", "large_string", "binary", "large_binary"):
        steps.insert(0, pa.type_for_alias(WITHOUT_VIEWS[str(array.type)]))
    if pa.types.is_fixed_size_binary(want) and kind_of(array.type) == "text":
        steps.insert(0, pa.binary())

    def cast(some: pa.Array) -> pa.Array:
        for step in steps:
            some = some.cast(step)
        return some

    try:
        return cast(array)
    except pa.ArrowException:
        raise _conversion_error(array, _first_failing(array, cast), f"does not fit {want}") from None


def _first_failing(array: Any, call: Callable[[Any], Any]) -> int:
    """Return the first row that makes a call fail; it fails on the whole array."""
    import pyarrow as pa

    low, high = 0, len(array)  # a prefix of `low` rows succeeds, one of `high` rows fails
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


def _conversion_error(array: pa.Array, row: int, what: str) -> ConversionError:
    return ConversionError(row, f"{shown(value_at(array, row))} {what}")


def value_at(array: pa.Array, row: int) -> Any:
    """Return a value for a message as a Python object; a time outside Python's range as its number and type."""
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

    wide = array.cast(WITHOUT_VIEWS[str(array.type)]) if str(array.type) in WITHOUT_VIEWS else array
    made = wide.dictionary_encode()
    try:
        return pa.DictionaryArray.from_arrays(
            made.indices.cast(want.index_type), made.dictionary.cast(want.value_type), ordered=want.ordered
        )
    except pa.ArrowException:
        raise ConversionError(0, f"{len(made.dictionary)} distinct values are too many for {want}") from None


# -- numbers -----------------------------------------------------------------------------------------------------------


def _numbers(array: pa.Array, want: pa.DataType, rounds: bool) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    have, is_ = array.type, pa.types
    if is_.is_floating(have) and is_.is_floating(want):
        given = array.to_numpy(zero_copy_only=False).astype(np.float64)  # nulls become NaN
        with np.errstate(over="ignore"):
            made = given.astype(want.to_pandas_dtype())
        overflow = np.isinf(made) & np.isfinite(given)
        if overflow.any():
            raise _conversion_error(array, int(np.argmax(overflow)), f"is too large for {want}")
        changed = (made != given) & ~np.isnan(given)
        if not rounds and changed.any():
            raise _conversion_error(array, int(np.argmax(changed)), f"is not {want}")
        return pa.array(made, want, mask=_mask(array))
    mixed = (is_.is_decimal(have) or is_.is_decimal(want)) and have.__class__ is not want.__class__
    if not mixed and not is_.is_float16(want):  # Arrow casts 2049 to float16, which cannot hold it
        try:
            return array.cast(want)
        except pa.ArrowException:
            pass  # Arrow also refuses integers over 2**53 that a double holds exactly
    values = array.to_pylist()
    made_values = [None if value is None else _number(value, want) for value in values]
    for row, (value, made_value) in enumerate(zip(values, made_values, strict=True)):
        if value is not None and made_value is None:
            raise ConversionError(row, f"{shown(value)} is not {want}")
    try:
        return pa.array(made_values, want)
    except (pa.ArrowException, OverflowError, ValueError):
        row = _first_failing(made_values, lambda some: pa.array(some, want))
        raise ConversionError(row, f"{shown(values[row])} does not fit {want}") from None


def _number(value: Any, want: pa.DataType) -> Any:
    """Convert a Python number for an Arrow type; None if that would change the number."""
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
    except (OverflowError, ValueError, ArithmeticError):  # NaN or infinity as an integer; a huge integer as a float
        return None


def _mask(array: pa.Array) -> Any:
    import numpy as np

    return np.asarray(array.is_null()) if array.null_count else None


# -- lists, structs, maps ----------------------------------------------------------------------------------------------


def list_of(lengths: np.ndarray, values: pa.Array, missing: np.ndarray | None, want: pa.DataType | None) -> pa.Array:
    """Build a list array.

    Args:
        lengths: (n,) int64, 0 where the list is null.
        values: the items of all lists, concatenated.
        missing: (n,) bool, which lists are null; None for none.
        want: the type; None for a list of the values' type.
    Raises:
        ConversionError: a list does not have the fixed length of its type.
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
            raise ConversionError(row, f"a list of {lengths[row]} is not {want}")
        if mask is not None:  # Arrow needs items for null lists too
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

    # list views are not cast to lists: pyarrow 26 loses the items of the last one
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    try:
        values = cast_exactly(array.flatten(), want.value_type, rounds=rounds)
    except ConversionError as exc:
        raise exc.inside(_row_of(lengths, exc.row), "[]") from None
    if values.null_count and not want.value_field.nullable:
        raise ConversionError(_row_of(lengths, _first_null(values)), f"null is not allowed in {want}", "[]")
    return list_of(lengths, values, np.asarray(array.is_null()) if array.null_count else None, want)


def _row_of(lengths: np.ndarray, item: int) -> int:
    """Return the row whose list contains an item of the flat values."""
    import numpy as np

    return int(np.searchsorted(np.cumsum(lengths), item, side="right"))


def _first_null(array: pa.Array) -> int:
    import numpy as np

    return int(np.argmax(np.asarray(array.is_null())))


def _structs(array: pa.Array, want: pa.DataType, rounds: bool) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if len({field.name for field in array.type}) < array.type.num_fields:
        raise ConversionError(_first_valid(array), "a struct has two fields of the same name")
    given = {field.name: child for field, child in zip(array.type, array.flatten(), strict=True)}
    absent = np.asarray(array.is_null())
    children = []
    for field in want:
        child = given.pop(field.name, None)
        try:
            child = (
                pa.nulls(len(array), field.type) if child is None else cast_exactly(child, field.type, rounds=rounds)
            )
        except ConversionError as exc:
            raise exc.inside(exc.row, f".{plain(field.name, _SHOWN)}") from None
        if not field.nullable and (lacking := np.asarray(child.is_null()) & ~absent).any():
            raise ConversionError(
                int(np.argmax(lacking)), "it is missing, but required", f".{plain(field.name, _SHOWN)}"
            )
        children.append(child)
    for name, child in given.items():
        if child.null_count < len(child):
            raise ConversionError(_first_valid(child), f"it is not a field of {want}", f".{plain(name, _SHOWN)}")
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
            sides.append(cast_exactly(side[start:stop], type_, rounds=rounds))
        except ConversionError as exc:
            raise exc.inside(_row_of(lengths, exc.row), "[]") from None
    starts = [
        None if null else int(at) for at, null in zip(offsets[:-1] - start, array.is_null().to_pylist(), strict=True)
    ]
    return pa.MapArray.from_arrays(pa.array([*starts, stop - start], pa.int32()), *sides, type=want)
