"""Recent vectors in memory: a bounded cache that is read and written in bulk."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from embedreg.arrow.vectors import Embedded
from embedreg.support.forks import ForkSafeLock

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Lookup", "RecentVectors", "keys_of"]

KEY_BYTES = 250  # overhead of an entry: its key, its dict entry and its slot
_SHORT = 64  # characters; the key of a longer input is its digest, which is smaller
_ROUND = 16  # an eviction frees at least 1/16 of the slots, since finding the oldest scans all of them


class RecentVectors:
    """Vectors by the key of their input; the least recently used are evicted first.

    One matrix holds all of them, so that thousands are read or written in a few array operations. The matrix takes
    physical memory only as it fills.

    Args:
        ndims: d, the width of a vector.
        max_rows: maximum number of vectors; 0 disables the cache.
        max_bytes: maximum memory of the vectors and their keys.
    """

    def __init__(self, ndims: int, max_rows: int, max_bytes: int) -> None:
        import numpy as np

        self.ndims = ndims
        self.capacity = max(0, min(max_rows, max_bytes // (4 * ndims + KEY_BYTES)))
        self._lock = ForkSafeLock()
        self._slots: dict[Hashable, int] = {}
        self._keys: list[Hashable] = []
        self._free: list[int] = []
        self._matrix = np.empty((self.capacity, ndims), np.float32)  # untouched pages cost nothing
        self._used = np.zeros(self.capacity, np.int64)
        self._clock = 0

    def __len__(self) -> int:
        return len(self._slots)

    def look_up(self, keys: Sequence[Hashable], empty: Callable[[int, int], np.ndarray] | None = None) -> Lookup:
        """Look up n different inputs.

        Args:
            keys: of the inputs.
            empty: allocates (n, d) float32 matrices.
        """
        return Lookup(self.put, keys, *self.get(keys, empty), empty)

    def get(
        self, keys: Sequence[Hashable], empty: Callable[[int, int], np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the cached vectors of n inputs.

        Args:
            empty: allocates the (k, d) float32 matrix of the vectors.
        Returns:
            (k, d) float32, the vectors of the hits, in order; and (n,) bool, which inputs are hits.
        """
        import numpy as np

        with self._lock:
            if not self._slots:
                return np.empty((0, self.ndims), np.float32), np.zeros(len(keys), bool)
            slots = np.fromiter(map(self._slots.get, keys, itertools.repeat(-1)), np.int64, len(keys))
            known = slots >= 0
            slots = slots[known]
            self._clock += 1
            self._used[slots] = self._clock
            vectors = np.empty((len(slots), self.ndims), np.float32) if empty is None else empty(len(slots), self.ndims)
            np.take(self._matrix, slots, axis=0, out=vectors, mode="clip")  # "raise" would copy once more
            return vectors, known

    def put(self, keys: Sequence[Hashable], vectors: np.ndarray) -> None:
        """Store the vectors of n inputs, (n, d) float32; if they exceed the capacity, only the last ones."""
        if not self.capacity or not keys:
            return
        with self._lock:
            new = {key: row for row, key in enumerate(keys) if key not in self._slots}
            names, rows = list(new)[-self.capacity :], list(new.values())[-self.capacity :]
            slots = self._allocate(len(names))
            self._clock += 1
            self._matrix[slots] = vectors[rows]
            self._used[slots] = self._clock
            self._slots.update(zip(names, slots, strict=True))
            for slot, name in zip(slots, names, strict=True):
                self._keys[slot] = name

    def _allocate(self, n: int) -> list[int]:
        """Return n free slots; evict the least recently used vectors if there are too few."""
        import numpy as np

        filled = len(self._keys)
        grown = min(n - len(self._free), self.capacity - filled)
        if grown > 0:
            self._keys += [None] * grown
            self._free += range(filled, filled + grown)
        if (short := n - len(self._free)) > 0:
            count = min(max(short, self.capacity // _ROUND), len(self._slots))
            oldest = np.argpartition(np.where(self._taken(), self._used, np.iinfo(np.int64).max), count - 1)[:count]
            for slot in oldest.tolist():
                del self._slots[self._keys[slot]]
                self._keys[slot] = None
            self._free += oldest.tolist()
        slots, self._free = self._free[:n], self._free[n:]
        return slots

    def _taken(self) -> np.ndarray:
        import numpy as np

        taken = np.zeros(self.capacity, bool)
        taken[list(self._slots.values())] = True
        return taken


class Lookup:
    """The hits and misses of n inputs.

    Args:
        put: stores the (m, d) float32 vectors of m keys.
        keys: of the inputs.
        vectors: (k, d) float32, of the hits, in order.
        known: (n,) bool, which inputs are hits.
        empty: allocates (n, d) float32 matrices.

    Attributes:
        missing: (m,) int64, the rows that are misses.
        whole: whether all rows are misses.
    """

    def __init__(
        self,
        put: Callable[[Sequence[Any], np.ndarray], None],
        keys: Sequence[Any],
        vectors: np.ndarray,
        known: np.ndarray,
        empty: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        import numpy as np

        self._put, self._keys, self._vectors, self._known, self._empty = put, keys, vectors, known, empty
        self.missing: np.ndarray = np.flatnonzero(~known)
        self.whole = len(self.missing) == len(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def of_missing(self, values: pa.Array) -> pa.Array:
        """Return the inputs that are misses."""
        import pyarrow as pa

        return values if self.whole else values.take(pa.array(self.missing))

    def missing_keys(self) -> Sequence[Any]:
        """Return the keys of the inputs that are misses."""
        return self._keys if self.whole else [self._keys[row] for row in self.missing.tolist()]

    def joined(self, made: Embedded | None, *, keep: bool | np.ndarray = True) -> Embedded:
        """Return the vectors of all n inputs.

        Args:
            made: vectors of the misses; None if there are none.
            keep: whether to store them, or (m,) bool, which of them; a bad row is never stored.
        """
        import numpy as np

        n = len(self._keys)
        if made is None:
            return Embedded(self._vectors, self._known, distinct=n, cached=n)
        if keep is not False:
            fresh, kept = self.missing_keys(), made.valid & keep
            if kept.all():
                self._put(fresh, made.matrix)
            else:
                good = np.flatnonzero(kept)
                self._put([fresh[row] for row in good.tolist()], made.matrix[good])
        if self.whole:
            return made
        shape = n, made.matrix.shape[1]
        matrix = np.empty(shape, np.float32) if self._empty is None else self._empty(*shape)
        matrix[self._known], matrix[self.missing] = self._vectors, made.matrix
        valid = self._known.copy()
        valid[self.missing] = made.valid
        reasons = {int(self.missing[row]): why for row, why in made.reasons.items()}
        return Embedded(matrix, valid, reasons, distinct=n, cached=len(self._vectors) + made.cached)


def keys_of(values: pa.Array) -> list[Any]:
    """Return a key for each of n inputs, none of them null; only equal inputs have equal keys.

    Args:
        values: strings or binaries. The key of a short text is the text; any other key is a digest of 16 bytes.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        keys: list[Any] = values.to_numpy(zero_copy_only=False).tolist()
    except (UnicodeDecodeError, pa.ArrowException):  # invalid UTF-8 in a string column: use its bytes
        wide = pa.types.is_large_string(values.type)
        return [_digest(key) for key in values.view(pa.large_binary() if wide else pa.binary()).to_pylist()]
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        if (pc.max(pc.binary_length(values)).as_py() or 0) <= _SHORT:
            return keys
        return [key if len(key) <= _SHORT else _digest(key.encode("utf-8", "surrogatepass")) for key in keys]
    return [_digest(key) for key in keys]  # short ones too: a short binary could equal the digest of another


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
