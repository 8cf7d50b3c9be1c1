"""What a job has submitted to batch APIs: values, recorded beside the ledger's records of pieces."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Batch", "Submission", "digest_of", "ranges_of"]


@dataclass
class Batch:
    """A batch of a service, recorded before it is sent.

    Attributes:
        tag: identifies it in the service's list.
        ranges: the inputs in it, as ranges [start, stop) of the column's.
        sent: when it was first sent, in seconds since 1970; None if it never was.
        handle: the service's name for it; None while that is unknown.
        ended: whether the service has ended it.
        attempt: 1, or more for inputs that an earlier batch did not embed.
    """

    ranges: list[tuple[int, int]]
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)
    sent: float | None = None
    handle: str | None = None
    ended: bool = False
    attempt: int = 1

    def places(self) -> list[int]:
        """Return the places of its inputs among the column's, in their order in the batch."""
        return [place for start, stop in self.ranges for place in range(start, stop)]

    @property
    def inputs(self) -> int:
        """The number of its inputs."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass
class Submission:
    """The submission of one column of a piece.

    Attributes:
        digest: of the inputs.
        inputs: how many they are.
        batches: the batches that hold them.
    """

    digest: str
    inputs: int
    batches: list[Batch]

    def is_of(self, texts: Sequence[str]) -> bool:
        """Return whether these inputs were submitted; a ledger is untrusted, so their number counts, too."""
        return self.inputs == len(texts) and self.digest == digest_of(texts)


def digest_of(texts: Sequence[str]) -> str:
    """Return a digest that identifies a list of texts."""
    found = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()


def ranges_of(places: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending places as ranges."""
    ranges: list[tuple[int, int]] = []
    for place in places:
        if ranges and ranges[-1][1] == place:
            ranges[-1] = (ranges[-1][0], place + 1)
        else:
            ranges.append((place, place + 1))
    return ranges
