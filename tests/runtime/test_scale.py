"""What a row costs does not grow with the number of rows."""

import resource
import sys
import time

import numpy as np
import pytest

from embedreg.runtime.execute import embed_texts
from embedreg.runtime.tokens import Tokens


class Tiny:
    """The smallest model: a row of random vectors for each token, added up."""

    device = "cpu"

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).standard_normal((256, 32), np.float32)

    def tokenize(self, texts: list[str]) -> Tokens:
        """One token a byte."""
        return Tokens.from_rows({"ids": [text.encode()[:64] for text in texts]}, {"ids": 0})

    def forward(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """Add up the rows of the table."""
        return np.asarray(self.table[batch["ids"]].sum(axis=1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in kibibytes on Linux")
def test_100_000_rows_cost_per_row_what_10_000_cost() -> None:
    """A row among 100,000 takes what one among 10,000 takes, and memory grows by little more than the result.

    The fastest of some rounds, and with room for what else the machine does: the calls take milliseconds.
    """
    texts = [chr(97 + row % 26) * (1 + row * 7 % 60) for row in range(100_000)]
    taken: dict[int, list[float]] = {10_000: [], 100_000: []}
    embed_texts(Tiny(), texts[:10_000], 32, lanes=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(6):
        for rows, times in taken.items():
            start = time.perf_counter()
            made = embed_texts(Tiny(), texts[:rows], 32, lanes=2)
            times.append(time.perf_counter() - start)
            assert made.vectors.shape == (rows, 32)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert min(taken[100_000]) / min(taken[10_000]) < 10 * 1.7
    assert grown < 4 * made.vectors.nbytes
