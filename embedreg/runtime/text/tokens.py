"""`Tokens`: tokenized texts without padding, which are counted for the plan and padded when their batch runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Tokens"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of n texts, one concatenated array for each kind of token.

    Attributes:
        joined: kind ("input_ids", "attention_mask", ...) -> (sum of lengths,) int64, row after row.
        lengths: (n,) tokens of each row.
        pads: kind -> the padding value.
        left: whether the padding is on the left.
        extras: other inputs of the model, passed unchanged with every batch.
        truncated: (n,) bool, the rows that exceed the model's limit of tokens.
    """

    joined: Mapping[str, np.ndarray]
    lengths: np.ndarray
    pads: Mapping[str, int]
    left: bool
    extras: Mapping[str, Any] = field(default_factory=dict)
    truncated: np.ndarray | None = None

    @classmethod
    def from_rows(
        cls,
        rows: Mapping[str, Sequence[Sequence[int]]],
        pads: Mapping[str, int],
        *,
        left: bool = False,
        extras: Mapping[str, Any] | None = None,
        truncated: np.ndarray | None = None,
    ) -> Tokens:
        """Join rows of tokens.

        Args:
            rows: kind -> n rows of tokens; all kinds have the same lengths.
            pads, left, extras, truncated: as the attributes.
        Raises:
            ValueError: there are no kinds, their lengths differ, or one has no padding value.
        """
        import numpy as np

        if not rows:
            raise ValueError("no kind of tokens")
        kinds = iter(rows.values())
        lengths = np.fromiter(map(len, next(kinds)), np.int64)
        if any(not np.array_equal(lengths, np.fromiter(map(len, each), np.int64)) for each in kinds):
            raise ValueError("kinds of tokens differ in length")
        if missing := set(rows) - set(pads):
            raise ValueError(f"no padding value for {sorted(missing)}")
        total = int(lengths.sum())
        joined = {
            kind: np.fromiter(itertools.chain.from_iterable(each), np.int64, total) for kind, each in rows.items()
        }
        return cls(joined, lengths, {kind: pads[kind] for kind in rows}, left, dict(extras or {}), truncated)

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """Concatenate the rows of several; the other attributes are those of the first."""
        import numpy as np

        first = parts[0]
        if len(parts) == 1:
            return first
        joined = {kind: np.concatenate([part.joined[kind] for part in parts]) for kind in first.joined}
        truncated = [part.truncated for part in parts if part.truncated is not None]
        return cls(
            joined,
            np.concatenate([part.lengths for part in parts]),
            first.pads,
            first.left,
            first.extras,
            np.concatenate(truncated) if len(truncated) == len(parts) else None,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, rows: np.ndarray) -> dict[str, Any]:
        """Return a padded batch: each kind (b, t) int64, t the length of the longest row, and the extras."""
        import numpy as np

        lengths = self.lengths[rows]
        longest = int(lengths.max())
        places = np.arange(longest)
        kept = places >= longest - lengths[:, None] if self.left else places < lengths[:, None]
        starts = np.repeat(self._starts()[rows] - (np.cumsum(lengths) - lengths), lengths)
        taken = starts + np.arange(int(lengths.sum()))
        batch: dict[str, Any] = {}
        for kind, flat in self.joined.items():
            filled = np.full((len(rows), longest), self.pads[kind], np.int64)
            filled[kept] = flat[taken]
            batch[kind] = filled
        return {**batch, **self.extras}

    def _starts(self) -> np.ndarray:
        import numpy as np

        starts: np.ndarray | None = self.__dict__.get("_cached_starts")
        if starts is None:
            starts = np.cumsum(self.lengths) - self.lengths
            self.__dict__["_cached_starts"] = starts
        return starts
