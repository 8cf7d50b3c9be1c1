"""What a declaration records of quantised vectors: their `dtype`, and the ranges that every writer uses.

The record is untrusted: it is checked before anything is quantised with it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from embedreg.arrow.quantized import QUANTIZED, Quantizer, Ranges
from embedreg.core.fields import MAX_NDIMS
from embedreg.errors import EmbedregError, MetadataError, SchemaError
from embedreg.support.display import plain

__all__ = ["KEY", "calibration_rows", "is_quantized", "quantizer_of", "record_of", "refuse_in_lance"]

KEY = "quantization"  # in the reserved properties


def is_quantized(reserved: Mapping[str, Any]) -> bool:
    """Return whether the values of a column are quantised."""
    return reserved.get("dtype") in QUANTIZED


def refuse_in_lance(dtype: str | None, column: str) -> None:
    """Refuse a column of "uint8" values in a Lance table, which LanceDB 0.40 searches by the distance of their bits.

    Raises:
        SchemaError: it is one.
    """
    if dtype == "uint8":
        raise SchemaError(
            f"column {plain(column, 80)!r} would hold uint8 vectors, which LanceDB compares bit by bit, so that it "
            "finds wrong rows.",
            "dtype='int8' holds the same, or 'ubinary', which LanceDB searches",
        ).for_shell("--dtype int8 holds the same, or ubinary, which LanceDB searches")


def record_of(ranges: Ranges) -> dict[str, Any]:
    """Return what is stored of ranges."""
    return {"ranges": base64.b64encode(ranges.data).decode(), "rows": ranges.rows}


def quantizer_of(reserved: Mapping[str, Any]) -> Quantizer | None:
    """Return how the values of a column are made, from its record; None for floats.

    Raises:
        MetadataError: the record is invalid.
    """
    dtype, ndims = reserved.get("dtype"), reserved.get("ndims")
    if dtype not in QUANTIZED:
        return None
    if not isinstance(ndims, int) or isinstance(ndims, bool) or not 0 < ndims <= MAX_NDIMS:
        raise _invalid(f"it has no valid ndims for {dtype} vectors")
    try:
        return Quantizer(dtype, ndims, _ranges(reserved.get(KEY), ndims))
    except MetadataError:
        raise
    except EmbedregError as exc:
        raise _invalid(exc.message.rstrip(".")) from None


def calibration_rows(reserved: Mapping[str, Any]) -> int | None:
    """Return how many vectors the ranges of a record were learnt from, 0 for given ones; None without valid ranges."""
    try:
        quantizer = quantizer_of(reserved)
    except EmbedregError:
        return None
    return None if quantizer is None or quantizer.ranges is None else quantizer.ranges.rows


def _ranges(stored: Any, ndims: int) -> Ranges | None:
    if stored is None:
        return None
    text, rows = (stored.get("ranges"), stored.get("rows")) if isinstance(stored, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(rows, int) or isinstance(rows, bool) or not 0 <= rows < 2**62:
        raise _invalid(f"its {KEY} has no ranges and number of rows")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid("its ranges are not base64") from None
    if len(data) != 2 * 4 * ndims:
        raise _invalid(f"its ranges take {len(data)} bytes instead of {2 * 4 * ndims}")
    import numpy as np

    return Ranges.of(np.frombuffer(data, "<f4").reshape(2, ndims), rows)


def _invalid(why: str) -> MetadataError:
    return MetadataError(
        f"the declaration's record of quantised vectors is invalid: {why}.",
        "declare the column again: fn.bind('text', 'vector', dtype='int8')",
    ).for_shell("inspect it: embedreg inspect")
