"""Convert columns to their declared types: each value is kept exactly, or an error names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.arrow.casting import ConversionError, cast_exactly, shown
from embedreg.arrow.columns import texts_of
from embedreg.arrow.values import NO_DEFAULTS, Defaults, array_of
from embedreg.errors import InputError
from embedreg.support.display import plain
from embedreg.support.unicode import is_valid

if TYPE_CHECKING:
    import pyarrow as pa


__all__ = ["Expected", "as_declared", "column", "conversion_error", "made_column", "named"]


@dataclass(frozen=True)
class Expected:
    """The declared types and defaults of rows that carry no types.

    Attributes:
        schema: the declared types, if any.
        defaults: values for keys that rows lack.
        sources: the columns to embed.
        vectors: the columns to fill.
        texts: the sources that hold texts for text functions.
    """

    schema: pa.Schema | None = None
    defaults: Defaults = NO_DEFAULTS
    sources: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()

    def types(self) -> dict[str, Any]:
        """Return the declared types; vectors of floats as doubles, since `given_vectors` checks each of them."""
        import pyarrow as pa

        found = {}
        for item in self.schema if self.schema is not None else []:
            found[item.name] = item.type
            if item.name not in self.vectors or not pa.types.is_fixed_size_list(item.type):
                continue
            if pa.types.is_floating(item.type.value_type):
                found[item.name] = pa.list_(pa.float64(), item.type.list_size)
        return found

    def required(self) -> set[str]:
        """Return the columns that must not contain nulls, except those to be filled."""
        return {item.name for item in self.schema or [] if not item.nullable} - self.vectors


def conversion_error(name: str, exc: ConversionError, first_row: int, want: pa.DataType | None) -> InputError:
    """Return the error that names the column, the row and the value."""
    import pyarrow as pa

    if want is not None and pa.types.is_null(want):
        return InputError(
            f"column {plain(name, 80)!r} has no common type: row {first_row + exc.row} is the first with a value, but "
            "the schema of the stream was already returned.",
            "declare it in a Schema, or pass list(rows), so that all rows are known",
        )
    what = (
        f"does not fit {want}"
        if want is not None
        else "has no common type"
        if exc.mixed
        else "cannot be stored exactly"
    )
    where = f"column {plain(name, 80)!r} {what}"
    return InputError(
        f"{where}: row {first_row + exc.row}{f' at {exc.path}' if exc.path else ''}: {exc.why}.",
        "convert the value, or declare a type that holds it"
        if want is not None
        else "convert the values to one type, or declare it in a Schema"
        if exc.mixed
        else "convert the value",
    )


def column(
    name: str,
    values: list[Any],
    expected: Expected,
    want: pa.DataType | None,
    first_row: int = 0,
    *,
    settled: bool = False,
) -> pa.Array:
    """Convert the Python values of one column to Arrow.

    Args:
        settled: whether `want` is the type of earlier rows of a stream, not declared: floats are not rounded to it.
    """
    import pyarrow as pa

    defaults = expected.defaults.inner.get(name, NO_DEFAULTS)
    if name in expected.vectors and want is not None:
        _refuse_floats(name, values, want, first_row)
    try:
        if settled and want is not None and _narrow(want):
            return cast_exactly(array_of(values, None, defaults), want, rounds=False)
        return array_of(values, want, defaults)
    except ConversionError as exc:
        if name in expected.texts and (want is None or pa.types.is_string(want) or pa.types.is_large_string(want)):
            texts = texts_of(values, want)
            if texts is not None:
                return texts
        raise conversion_error(name, exc, first_row, want) from None
    except RecursionError:
        raise InputError(
            f"column {plain(name, 80)!r}: a value from row {first_row} on is nested too deeply, or contains itself.",
            "flatten it, or store it as JSON text",
        ) from None
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError) as exc:
        raise InputError(
            f"column {plain(name, 80)!r} from row {first_row} on cannot be converted to Arrow: {plain(exc, 200)}.",
            "convert its values, or declare it in a Schema",
        ) from None


def _refuse_floats(name: str, values: list[Any], want: pa.DataType, first_row: int) -> None:
    """Raise `InputError` for a vector of floats where quantised values are stored: 1.0 is not the stored value 1."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(want) or not pa.types.is_integer(want.value_type):
        return
    for row, value in enumerate(values):
        kind = getattr(getattr(value, "dtype", None), "kind", None)
        if kind == "f" or (isinstance(value, list | tuple) and any(isinstance(each, float) for each in value)):
            raise InputError(
                f"column {plain(name, 80)!r} holds {want.value_type} values, and the vector of row {first_row + row} "
                "is of floats.",
                "leave the vector out; or give floats as an Arrow column, which are quantised by the column's ranges",
            )


def _narrow(type_: pa.DataType) -> bool:
    """Return whether a type contains floats of fewer than 64 bits."""
    import pyarrow as pa

    if pa.types.is_floating(type_):
        return not pa.types.is_float64(type_)
    return any(_narrow(type_.field(at).type) for at in range(type_.num_fields))


def as_declared(array: pa.Array, item: pa.Field, first_row: int) -> pa.Array:
    """Convert a column to its declared field: its type, and nulls only if they are allowed.

    Raises:
        InputError: a value would change, or is null; it names the row.
    """
    import numpy as np

    made = array
    if array.type != item.type:
        try:
            made = cast_exactly(array, item.type)
        except ConversionError as exc:
            raise InputError(
                f"column {plain(item.name, 80)!r} is {array.type}, the schema has {item.type}: "
                f"row {first_row + exc.row}{f' at {exc.path}' if exc.path else ''}: {exc.why}.",
                "cast it, or change the schema",
            ) from None
    if not item.nullable and made.null_count:
        row = first_row + int(np.argmax(np.asarray(made.is_null())))
        raise InputError(
            f"column {plain(item.name, 80)!r}: row {row} is null, which the schema does not allow.",
            f"fill it, or declare {item.name}: ... | None",
        )
    return made


def made_column(item: pa.Field, values: list[Any]) -> pa.Array:
    """Return the array of a column's default values."""
    return column(item.name, values, Expected(), item.type)


def named(name: Any) -> str:
    """Return a column's name, or raise if it is not a str, or not valid Unicode."""
    if not isinstance(name, str):
        raise InputError(f"the column name {shown(name)} is not a str.", "name columns with str")
    if not is_valid(name):
        raise InputError(f"the column name {name[:80]!r} is not valid Unicode.", "rename the column")
    return str.__str__(name)
