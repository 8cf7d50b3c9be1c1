"""Quantised vectors: float32 to one byte or one bit a dimension, as `sentence_transformers.quantize_embeddings` does.

The stored values are bit for bit that library's for the same ranges; see its `util/quantization.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedreg.errors import SchemaError, VectorError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["FLOATS", "QUANTIZED", "SCALARS", "VALUE_TYPES", "Quantizer", "Ranges"]

FLOATS = ("float16", "float32", "float64")

SCALARS = ("int8", "uint8")
"""One byte a dimension, by its range."""

QUANTIZED = (*SCALARS, "binary", "ubinary")
"""All quantised types; the last two store one bit a dimension, its sign, packed into int8 or uint8."""

VALUE_TYPES = (*FLOATS, *QUANTIZED)
"""What a vector column may hold."""

_LEVELS = 255  # steps of a byte
_NEAR_ZERO = 0.02  # of the root mean square of a vector: what precision and devices may change


@dataclass(frozen=True)
class Ranges:
    """The range of each dimension, which a byte divides into 255 steps.

    Attributes:
        data: (2, d) little-endian float32: the lowest and the highest value of each dimension.
        rows: how many vectors they were learnt from; 0 for ranges that the user gave.
    """

    data: bytes
    rows: int = 0

    @classmethod
    def of(cls, values: Any, rows: int = 0) -> Ranges:
        """Return ranges from an array.

        Args:
            values: (2, d) numbers, or other `Ranges`.
        Raises:
            VectorError: another shape, a number that is not finite, or a lowest value above the highest.
        """
        import numpy as np

        if isinstance(values, Ranges):
            return values
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            array = np.empty(0, np.float32)
        if array.ndim != 2 or array.shape[0] != 2 or not array.shape[1]:
            raise VectorError(
                f"ranges have the shape (2, d), not {array.shape}.", "ranges=embedreg.calibrate(fn, texts)"
            )
        if not np.isfinite(array).all() or (array[0] > array[1]).any():
            raise VectorError(
                "ranges are finite numbers, the lowest of each dimension first.",
                "ranges=embedreg.calibrate(fn, texts)",
            )
        return cls(array.astype("<f4").tobytes(), rows)

    @classmethod
    def learnt(cls, matrix: np.ndarray) -> Ranges:
        """Return the ranges of some vectors: (n, d) float32.

        Raises:
            VectorError: fewer than two that differ, from which no range can be learnt.
        """
        import numpy as np

        if len(matrix) < 2 or (matrix == matrix[0]).all():
            given = f"{len(matrix)} vector(s)" if len(matrix) < 2 else f"{len(matrix):,} equal vectors"
            raise VectorError(
                f"ranges cannot be learnt from {given}: two or more that differ are needed, and hundreds make them "
                "good.",
                "give ranges: fn.bind('text', 'vector', dtype='int8', ranges=embedreg.calibrate(fn, texts))",
            ).for_shell("embed some hundreds of rows first, or use --dtype float16 or binary")
        return cls(np.vstack((matrix.min(axis=0), matrix.max(axis=0))).astype("<f4").tobytes(), len(matrix))

    @property
    def ndims(self) -> int:
        """The number of dimensions."""
        return len(self.data) // 8

    def array(self) -> np.ndarray:
        """Return them: (2, d) float32."""
        import numpy as np

        return np.frombuffer(self.data, "<f4").reshape(2, -1).astype(np.float32, copy=False)


@dataclass(frozen=True)
class Quantizer:
    """The conversion of a function's float32 vectors to a column's values.

    Attributes:
        dtype: one of `QUANTIZED`.
        ndims: d, of the function's vectors.
        ranges: for "int8" and "uint8"; None before they are learnt.
    """

    dtype: str
    ndims: int
    ranges: Ranges | None = None

    def __post_init__(self) -> None:
        if self.bits and self.ndims % 8:
            raise SchemaError(
                f"{self.dtype} vectors pack 8 dimensions into a byte, and {self.ndims} is not divisible by 8.",
                "another truncate_dim, or dtype='int8'",
            ).for_shell("--set truncate_dim=N, where the model has it, or --dtype int8")
        if self.ranges is not None and (self.bits or self.ranges.ndims != self.ndims):
            why = f"they have {self.ranges.ndims} dimensions, the function returns {self.ndims}"
            why = "only int8 and uint8 have any" if self.bits else why
            raise SchemaError(
                f"these ranges do not fit {self.dtype} vectors: {why}.",
                "ranges=embedreg.calibrate(fn, texts)",
            )

    @property
    def bits(self) -> bool:
        """Whether a value holds the signs of 8 dimensions."""
        return self.dtype not in SCALARS

    @property
    def known(self) -> bool:
        """Whether vectors can be quantised: no ranges have to be learnt first."""
        return self.bits or self.ranges is not None

    @property
    def width(self) -> int:
        """The number of values in a stored vector."""
        return self.ndims // 8 if self.bits else self.ndims

    def type(self) -> pa.DataType:
        """Return the Arrow type of the column."""
        import pyarrow as pa

        return pa.list_(pa.uint8() if self.dtype in ("uint8", "ubinary") else pa.int8(), self.width)

    def encode(self, matrix: np.ndarray) -> np.ndarray:
        """Quantise vectors; numbers outside the ranges are clipped.

        Args:
            matrix: (n, d) float32.
        Returns:
            (n, width) int8 or uint8.
        """
        import numpy as np

        if self.bits:
            packed: np.ndarray = np.packbits(matrix > 0, axis=-1)
            return packed if self.dtype == "ubinary" else np.asarray((packed ^ np.uint8(0x80)).view(np.int8))
        starts, steps = self._scale()
        levels: np.ndarray = np.clip(np.floor((matrix - starts) / steps), 0, _LEVELS)
        return levels.astype(np.uint8) if self.dtype == "uint8" else (levels - 128).astype(np.int8)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Return the vectors that stored values stand for: the middle of each step, or the signs at unit length.

        Encoding them gives the stored values again.

        Args:
            stored: (n, width) int8 or uint8, or these numbers as floats.
        Returns:
            (n, d) float32.
        """
        import numpy as np

        offset = 128 if self.dtype in ("int8", "binary") else 0
        levels = stored.astype(np.float32) + offset
        if self.bits:
            signs = np.unpackbits(levels.astype(np.uint8), axis=-1).astype(np.float32)
            return np.asarray((2 * signs - 1) / np.sqrt(self.ndims), np.float32)
        starts, steps = self._scale()
        ends = self._known().array()[1]
        constant = (ends <= starts) & (levels == 0)  # the value itself, not one of a step
        middles = np.where(constant, np.float32(0), levels + np.float32(0.5))
        return np.asarray(middles * steps + starts, np.float32)

    def settled(self, matrix: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """Return vectors as they would be read back once stored, to compare them with stored ones.

        A value within one step of the stored one, or next to zero where signs are stored, counts as the stored one,
        since back ends and devices round differently.

        Args:
            matrix: (n, d) float32.
            stored: (n, width) int8 or uint8.
        Returns:
            (n, d) float32, comparable with `decode(stored)`.
        """
        import numpy as np

        made = self.encode(matrix)
        if not self.bits:
            near = np.abs(made.astype(np.int16) - stored.astype(np.int16)) <= 1
            return self.decode(np.where(near, stored, made))
        lengths = np.sqrt(np.square(matrix).mean(axis=1, keepdims=True))
        near = np.abs(matrix) <= _NEAR_ZERO * lengths
        return np.asarray(np.where(near, self.decode(stored), self.decode(made)), np.float32)

    def outside(self, matrix: np.ndarray) -> int:
        """Return how many numbers of (n, d) vectors are outside the ranges, and are clipped."""
        if self.bits:
            return 0
        low, high = self._known().array()
        return int(((matrix < low) | (matrix > high)).sum())

    def _known(self) -> Ranges:
        if self.ranges is None:
            raise VectorError(
                f"the ranges of these {self.dtype} vectors are not known yet.",
                "embed_table, embed and engines.lancedb.add learn them at the first write; or give "
                "ranges=embedreg.calibrate(fn, texts)",
            ).for_shell("embedreg embed learns them as it fills the column")
        return self.ranges

    def _scale(self) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        low, high = self._known().array()
        steps = (high - low) / _LEVELS
        return low, np.where(steps == 0, 1, steps).astype(np.float32)
