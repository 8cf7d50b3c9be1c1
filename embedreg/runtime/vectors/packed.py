"""`Packed`: rows of different lengths, one after another: the vectors of tokens, or the entries of sparse vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Packed", "PackedRows", "concatenated", "on_host"]


@dataclass(frozen=True)
class Packed:
    """n rows that have several entries each; m is the number of all entries.

    Attributes:
        lengths: (n,) int64, the number of entries of each row.
        parts: the entries of all rows, row after row, as arrays of m: token vectors (m, d) float32; or, of sparse
            vectors, the indices (m,) int32 and the values (m,) float32. All are tensors, or all are numpy arrays.
    """

    lengths: Any
    parts: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def cpu(self) -> Packed:
        """Return tensors as tensors in main memory."""
        return Packed(self.lengths.cpu(), tuple(part.cpu() for part in self.parts))

    def numpy(self) -> Packed:
        """Return tensors in main memory as numpy arrays."""
        return Packed(self.lengths.numpy(), tuple(part.numpy() for part in self.parts))

    def rows(self) -> list[Any]:
        """Return the rows of numpy arrays, without copying: each a (k, d) array, or a pair of (k,) arrays."""
        import numpy as np

        if not len(self):
            return []
        ends = np.cumsum(self.lengths)[:-1]
        split = [np.split(part, ends) for part in self.parts]
        return split[0] if len(split) == 1 else list(zip(*split, strict=True))


class PackedRows:
    """The n rows of a call, which are filled in by batches in any order and from several threads."""

    def __init__(self, n: int) -> None:
        self._found: list[Any] = [None] * n
        self.empty: Any = None

    def __setitem__(self, rows: Any, packed: Any) -> None:
        made = on_host(packed) if not _is_numpy(packed) else packed
        self.empty = tuple(part[:0] for part in made.parts) if len(made.parts) > 1 else made.parts[0][:0]
        for row, each in zip(rows, made.rows(), strict=True):
            self._found[row] = each

    def part(self, start: int) -> _Part:
        """Return the rows from `start` on, which are numbered from 0."""
        return _Part(self, start)

    def rows(self) -> list[Any]:
        """Return the rows; one that no batch has filled in is empty."""
        return [self.empty if each is None else each for each in self._found]


@dataclass(frozen=True)
class _Part:
    whole: PackedRows
    start: int

    def __setitem__(self, rows: np.ndarray, packed: Packed) -> None:
        self.whole[rows + self.start] = packed


def on_host(made: Any, *, pinned: bool = False) -> Any:
    """Copy a result of a device to main memory: (b, d) to a float32 tensor, `Packed` to `Packed` numpy arrays.

    Args:
        pinned: whether the copy of (b, d) may still be under way when this returns. The copy of `Packed` is complete,
            since its size is known only when the device has finished.
    """
    import torch

    if isinstance(made, Packed):
        return made.cpu().numpy()
    host = torch.empty(made.shape, dtype=torch.float32, pin_memory=pinned)
    return host.copy_(made, non_blocking=pinned)


def concatenated(pieces: Sequence[Any]) -> Any:
    """Join results on the host, along their rows: tensors or arrays (b, d) to one array, `Packed` to one `Packed`."""
    import numpy as np

    if not isinstance(pieces[0], Packed):
        return np.concatenate([np.asarray(each) for each in pieces])
    return Packed(
        np.concatenate([each.lengths for each in pieces]),
        tuple(np.concatenate(parts) for parts in zip(*(each.parts for each in pieces), strict=True)),
    )


def _is_numpy(packed: Packed) -> bool:
    import numpy as np

    return isinstance(packed.lengths, np.ndarray)
