"""A buffer pool for matrices: memory is allocated once and used again when no array references it.

A server fills and sends matrices of some megabytes many times a second. The allocator returns fresh pages for each,
which the kernel clears one by one: for cached vectors, that took as long as the rest of the call.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["BufferPool"]

KEPT = 3  # maximum number of unused blocks in the pool
SMALLEST, LARGEST = 1 << 20, 32 << 20  # bytes of a block that is pooled


class BufferPool:
    """Allocates (n, d) float32 matrices from a pool of blocks.

    A matrix may be sliced, passed to Arrow and kept for any time: its block returns to the pool only after the last
    array or buffer that references it is freed.
    """

    def __init__(self) -> None:
        # no lock: deque operations are atomic, and a matrix may be freed at any moment, in any thread
        self._free: deque[np.ndarray] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return len(self._free)

    def empty(self, n: int, d: int) -> np.ndarray:
        """Return an uninitialised (n, d) float32 matrix."""
        import numpy as np

        size = n * d
        if not SMALLEST <= 4 * size <= LARGEST:
            return np.empty((n, d), np.float32)
        try:
            block = self._free.pop()
            while not size <= block.size <= 2 * size:
                block = self._free.pop()
        except IndexError:
            block = np.empty(size, np.float32)
        return np.asarray(_BlockOwner(self._free, block, n, d))


class _BlockOwner:
    """The base object of every array that references a block; returns the block to the pool when it is freed."""

    def __init__(self, free: deque[np.ndarray], block: np.ndarray, n: int, d: int) -> None:
        self._free, self._block = free, block
        self.__array_interface__: dict[str, Any] = {**block[: n * d].reshape(n, d).__array_interface__}

    def __del__(self) -> None:
        self._free.append(self._block)
