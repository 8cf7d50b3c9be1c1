"""Memory for matrices that come and go: taken once, lent again when nothing looks at it any longer.

A server fills and sends a matrix of some megabytes many times a second. From the allocator each comes as fresh pages,
which the kernel clears one by one: for vectors that are ready, that took as long as all the rest.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Blocks"]

KEPT = 3  # blocks, while nobody uses them
SMALLEST, LARGEST = 1 << 20, 32 << 20  # bytes of a block that is kept


class Blocks:
    """Lends (n, d) float32 matrices.

    A matrix may be sliced, handed to Arrow and kept for as long as it is wanted: its memory is lent again only after
    the last array or buffer over it is gone.
    """

    def __init__(self) -> None:
        # no lock: what it does is one step each, and a matrix may go at any moment, in any thread
        self._free: deque[np.ndarray] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return len(self._free)

    def empty(self, n: int, d: int) -> np.ndarray:
        """Return (n, d) float32 of any content."""
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
        return np.asarray(_Lent(self._free, block, n, d))


class _Lent:
    """Stands under every array over a block, and gives it back when the last of them is gone."""

    def __init__(self, free: deque[np.ndarray], block: np.ndarray, n: int, d: int) -> None:
        self._free, self._block = free, block
        self.__array_interface__: dict[str, Any] = {**block[: n * d].reshape(n, d).__array_interface__}

    def __del__(self) -> None:
        self._free.append(self._block)
