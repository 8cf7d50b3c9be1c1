"""`column_of`: convert one column of inputs to an Arrow array or a list; inputs that a function does not accept raise.

`Accepted` describes what a function accepts; the table of modalities has one for each modality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.arrow.layouts import plain_array
from embedreg.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["IMAGES_HINT", "Accepted", "column_of", "images_of", "is_picture", "recordings_of"]
__all__ += ["rows_of_media", "texts_of", "unstacked"]

IMAGES_HINT = "images need an image function, such as 'open-clip': see get_registry().describe(name)['modality']"
_MAX_STRING_BYTES = 2**31 - 1
_WIDER = {"string": "large_string", "binary": "large_binary"}


@dataclass(frozen=True)
class Accepted:
    """The inputs that a column may contain.

    Attributes:
        name: of the modality in messages: "text" for a text function.
        types: Arrow types, by the names of `pyarrow.types.is_*`, after views and fixed sizes were converted to plain
            ones; empty for every type.
        objects: whether an input may be a Python object without an Arrow type, such as an image in memory.
        hint: the hint for a column of another type.
        rows_of: splits an array of several axes into rows; without it, each entry of the first axis is a row.
        read: converts a column of another type to inputs, or raises.
    """

    name: str
    types: tuple[str, ...] = ()
    objects: bool = False
    hint: str = "choose another column"
    rows_of: Callable[[Any], list[Any]] | None = None
    read: Callable[[pa.Array], Any] | None = None

    @property
    def only_texts(self) -> bool:
        """Whether only texts are accepted."""
        return not self.objects and set(self.types) == {"string", "large_string"}

    @property
    def lists(self) -> bool:
        """Whether a list is one input rather than a column of inputs."""
        return any(name.endswith("list") for name in self.types)

    def takes(self, kind: pa.DataType) -> bool:
        """Return whether a column may have an Arrow type."""
        import pyarrow as pa

        return not self.types or any(getattr(pa.types, f"is_{name}")(kind) for name in self.types)

    def refusal(self, values: Iterable[Any]) -> InputError:
        """Return the error for values that are not accepted."""
        if self.only_texts:
            values = [value for value in values if not isinstance(value, str | None)]
        others = [value for value in values if value is not None]
        kinds = ", ".join(sorted({type(value).__name__ for value in others}))
        if any(map(is_picture, others)) and not self.objects:
            what = f"{self._function} got {kinds}, which may be images, not {self.name}s."
            return InputError(what, IMAGES_HINT)
        return InputError(
            f"{self._function} got {kinds}.",
            "pass str values, and None for a null" if self.only_texts else self.hint,
        )

    def refusal_of_type(self, kind: pa.DataType) -> InputError:
        """Return the error for a column of another Arrow type."""
        return InputError(f"{self._function} cannot embed a column of type {kind}.", self.hint)

    @property
    def _function(self) -> str:
        return f"{'an' if self.name[:1] in 'aeiou' else 'a'} {self.name} function"


def column_of(values: Any, accepted: Accepted) -> Any:
    """Convert one column to an Arrow array if its type has one, else to a list.

    Args:
        values: a list, tuple, numpy array, pandas or polars series, Arrow array or chunked array; one text or image
            is a column of one row. For images, an array of four axes is a stack, and one of three a stack of grey ones.
        accepted: the inputs that the function accepts.
    Returns:
        A `pa.Array` of one of the accepted types, or a list of Python objects with None for nulls.
    Raises:
        InputError: the function does not accept the values.
    """
    import pyarrow as pa

    if isinstance(values, str | bytes) or _is_one(values):
        values = [values]
    if isinstance(values, pa.ChunkedArray):
        wider = _WIDER.get(str(values.type))
        if wider is not None and values.nbytes > _MAX_STRING_BYTES:
            values = values.cast(wider)  # 32-bit offsets would overflow
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return _decoded(values, accepted)
    objects = str(getattr(values, "dtype", "")).lower() == "object"  # pandas' and polars' dtype of arbitrary objects
    if not objects and (hasattr(values, "__arrow_c_stream__") or hasattr(values, "__arrow_c_array__")):
        return column_of(pa.chunked_array(values), accepted)
    if getattr(values, "ndim", 1) > 1:
        if accepted.only_texts:
            raise accepted.refusal([values])
        if accepted.rows_of is not None:
            return accepted.rows_of(values)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if not accepted.objects and any(map(_is_one, listed[:1])):
        raise accepted.refusal(listed)
    if accepted.objects and _is_mixed(listed):
        return _without_nulls(listed)
    try:
        return _decoded(pa.array(listed, from_pandas=True), accepted)
    except pa.ArrowCapacityError:
        raise
    except UnicodeEncodeError:  # half a surrogate pair: the caller checks it row by row
        if accepted.objects:
            return _without_nulls(listed)
        texts = _without_nulls(listed)
        if (made := texts_of(texts)) is not None:
            return made
        raise accepted.refusal(texts) from None
    except (pa.ArrowException, TypeError) as exc:
        if accepted.only_texts:
            raise accepted.refusal(listed) from None
        if isinstance(exc, InputError):  # a subclass of TypeError
            raise
        if not accepted.objects:
            raise accepted.refusal(listed) from None
        return _without_nulls(listed)


def is_picture(value: Any) -> bool:
    """Return whether a value other than text may be an image."""
    return isinstance(value, bytes) or _is_one(value) or getattr(value, "ndim", 1) > 1


def _is_one(values: Any) -> bool:
    """Return whether this is one image, not a column; Pillow's images have `__arrow_c_array__` for their pixels."""
    return isinstance(values, bytearray | memoryview | Path) or type(values).__module__.partition(".")[0] == "PIL"


def texts_of(values: list[Any], want: pa.DataType | None = None) -> pa.Array | None:
    """Convert texts that may contain half a surrogate pair, for a later check of the rows; None for other values."""
    import pyarrow as pa

    if not all(isinstance(value, str | None) for value in values):
        return None
    raw = [None if value is None else value.encode("utf-8", "surrogatepass") for value in values]
    wide = pa.types.is_large_string(want) if want is not None else sum(map(len, filter(None, raw))) > _MAX_STRING_BYTES
    return pa.array(raw, pa.large_binary()).view(pa.large_string()) if wide else pa.array(raw).view(pa.string())


def rows_of_media(inputs: Any) -> Any:
    """Convert the inputs of an engine to rows: one value becomes a list of one, a chunked array one array."""
    if isinstance(inputs, str | bytes):
        return [inputs]
    return inputs.combine_chunks() if hasattr(inputs, "combine_chunks") else inputs


def unstacked(values: Any) -> list[Any]:
    """Split an array of several axes into its images.

    Raises:
        InputError: it is not a stack of images, or may also be one image.
    """
    if values.ndim == 4 or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        return list(values)
    what = ": it may be one image, or a stack of grey ones." if values.ndim == 3 else "."
    raise InputError(
        f"an array of shape {values.shape} is not a column of images{what}",
        "pass a list of images, [image], or an array (n, h, w, 3)",
    )


def _is_mixed(values: list[Any]) -> bool:
    """Return whether Arrow would convert these wrongly: names mixed with bytes to bytes, and arrays to lists."""
    import numpy as np

    kinds = {type(value) for value in values}
    names, arrays = (any(issubclass(kind, base) for kind in kinds) for base in (str, np.ndarray))
    return arrays or (names and any(issubclass(kind, bytes | bytearray | memoryview) for kind in kinds))


def _without_nulls(values: list[Any]) -> list[Any]:
    """Replace pandas' own nulls by None."""
    nulls = {"NAType", "NaTType"}
    return [
        None if type(value).__name__ in nulls or (isinstance(value, float) and value != value) else value
        for value in values
    ]


def _decoded(array: pa.Array, accepted: Accepted) -> Any:
    import pyarrow as pa

    array = plain_array(array)
    kind = array.type
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    for view, plain in _plain_types():
        if view(kind):
            array = array.cast(plain)
            break
    if accepted.takes(array.type):
        return array
    if accepted.read is not None:
        return accepted.read(array)
    raise accepted.refusal_of_type(kind)


def _plain_types() -> list[tuple[Callable[[pa.DataType], bool], pa.DataType]]:
    """Return (test, plain type) of the types that are another layout of a plain type."""
    import pyarrow as pa

    return [
        (pa.types.is_string_view, pa.large_string()),
        (pa.types.is_binary_view, pa.large_binary()),
        (pa.types.is_fixed_size_binary, pa.binary()),
    ]


def images_of(array: pa.Array) -> Any:
    """Return the images of a column of structs of bytes and path, as in Hugging Face's datasets.

    Raises:
        InputError: the column has another type.
    """
    return _held(array, "an image", "images")


def recordings_of(array: pa.Array) -> Any:
    """Return the recordings of such a column, as `images_of`."""
    return _held(array, "an audio", "recordings")


def _held(array: pa.Array, function: str, plural: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        raise InputError(
            f"{function} function cannot embed a column of type {kind}.",
            f"{plural} are bytes, paths or URLs (binary or string), or structs of both, {{bytes, path}}",
        )
    content, names = (_decoded(pc.struct_field(array, name), Accepted(plural)) for name in ("bytes", "path"))
    if content.null_count in (array.null_count, len(array)):
        return content if content.null_count == array.null_count else names
    return [
        one if one is not None else other for one, other in zip(content.to_pylist(), names.to_pylist(), strict=True)
    ]
