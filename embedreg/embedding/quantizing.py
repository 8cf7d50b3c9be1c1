"""Quantised columns while they are filled: their type, given values, and the ranges that are learnt once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from embedreg.arrow.quantized import Quantizer, Ranges
from embedreg.arrow.vectors import Embedded, given_vectors
from embedreg.core.base import EmbeddingFunction, EmbeddingFunctionConfig
from embedreg.declaration import codec
from embedreg.embedding.column import embed_column
from embedreg.errors import SchemaError, VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["CALIBRATION_ROWS", "Agree", "calibrate", "field_of", "given_floats", "given_values", "is_unknown"]
__all__ += ["learn_from"]

CALIBRATION_ROWS = 1000
"""The rows that ranges are learnt from, or all where there are fewer. The batches that hold them count whole."""

Agree: TypeAlias = Callable[[Mapping[str, Ranges]], Mapping[str, Ranges]]


def calibrate(function: EmbeddingFunction, values: Any) -> np.ndarray:
    """Return the ranges of "int8" and "uint8" vectors: the lowest and the highest value of each dimension.

    Args:
        function: an embedding function.
        values: inputs as the column will hold them, some hundreds or more; see `embed_column`.
    Returns:
        (2, d) float32, for `ranges=` of `fn.bind` and `Vector`.
    Raises:
        VectorError: fewer than two of them have a vector. EmbedregError: as `embed_column`.
    """
    made = embed_column(function, values)
    return Ranges.learnt(made.matrix[made.valid]).array()


def learn_from(config: EmbeddingFunctionConfig, sources: Iterable[Any]) -> EmbeddingFunctionConfig:
    """Return a declaration with its ranges, learnt from the first rows where they are needed and not known.

    Args:
        sources: the source column, in parts.
    Returns:
        The declaration as it is, where no ranges are needed or there are no rows.
    Raises:
        VectorError: there are rows, and too few vectors. EmbedregError: as `embed_column`.
    """
    import numpy as np

    if not is_unknown(config):
        return config
    found: list[np.ndarray] = []
    rows = 0
    for part in sources:
        made = embed_column(config.function, part, declared=codec.declared_by(config))
        found.append(made.matrix[made.valid])
        rows += len(part)
        if rows >= CALIBRATION_ROWS:
            break
    return codec.with_ranges(config, Ranges.learnt(np.concatenate(found))) if rows else config


def is_unknown(config: EmbeddingFunctionConfig) -> bool:
    """Return whether the ranges of a declaration's column have to be learnt."""
    quantizer = codec.quantizer(config)
    return quantizer is not None and not quantizer.known


def field_of(
    config: EmbeddingFunctionConfig, quantizer: Quantizer, declared: pa.Schema | None, own: pa.Field | None
) -> pa.Field:
    """Return the field of a quantised column.

    Args:
        declared: the declared columns, if any.
        own: the column of the data, if it has one.
    Raises:
        SchemaError: it is declared, or exists, with another type; a column of floats is quantised.
    """
    import pyarrow as pa

    name, wanted = config.vector_column, quantizer.type()
    there = declared.field(name) if declared is not None and name in declared.names else None
    for each in (there, own):
        floats = each is own and own is not None and pa.types.is_floating(getattr(own.type, "value_type", pa.null()))
        if each is not None and each.type != wanted and not floats and not pa.types.is_null(each.type):
            raise SchemaError(
                f"column {name!r} is {each.type}, and {quantizer.dtype} vectors of {quantizer.ndims} dimensions are "
                f"stored as {wanted}.",
                f"declare it as Vector(fn.ndims(), {quantizer.dtype!r}), or choose another vector column",
            ).for_shell("--vector NAME writes to another column")
    return there if there is not None else pa.field(name, wanted, nullable=own is None or own.nullable)


def given_floats(column: pa.Array, d: int, name: str) -> np.ndarray:
    """Return the valid vectors of a given column of floats, from which ranges can be learnt: (k, d) float32.

    Raises:
        VectorError: it holds integers, which mean nothing without their ranges; or vectors of another width.
    """
    import pyarrow as pa

    if pa.types.is_integer(getattr(column.type, "value_type", pa.null())):
        raise VectorError(
            f"column {name!r} holds {column.type} vectors, and the ranges that they were quantised by are not known.",
            f"declare them: fn.bind('text', {name!r}, dtype='int8', ranges=...)",
        ).for_shell("--vector NAME writes to another column")
    given, _ = given_vectors(column, d, name)
    valid: np.ndarray = given.matrix[given.valid]
    return valid


def given_values(column: pa.Array, quantizer: Quantizer, name: str) -> tuple[Embedded, dict[int, str], int]:
    """Read given vectors of a quantised column: stored values as they are, floats quantised.

    Returns:
        (n, width) int8 or uint8, valid in rows that have a vector; row -> why a given vector is invalid; how many
        numbers of floats were clipped.
    Raises:
        VectorError: a vector has another width, the column another type, or a value does not fit.
    """
    import numpy as np
    import pyarrow as pa

    kind = quantizer.type()
    if pa.types.is_floating(getattr(column.type, "value_type", pa.null())):
        given, reasons = given_vectors(column, quantizer.ndims, name)
        clipped = quantizer.outside(given.matrix[given.valid])
        given.matrix = quantizer.encode(given.matrix)
        return given, reasons, clipped
    given, reasons = given_vectors(column, quantizer.width, name)
    value = np.int8 if kind.value_type == pa.int8() else np.uint8
    bounds = np.iinfo(value)
    if given.valid.any() and not (bounds.min <= given.matrix.min() and given.matrix.max() <= bounds.max):
        raise VectorError(
            f"column {name!r} holds values that do not fit {kind}.", "give floats, or values of this type"
        )
    given.matrix = given.matrix.astype(value)
    return given, reasons, 0
