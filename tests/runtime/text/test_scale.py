"""What a row costs does not grow with the number of rows."""

import resource
import statistics
import sys
import time

import numpy as np
import pytest

from embedreg.runtime.text.execute import embed_texts
from embedreg.runtime.text.tokens import Tokens


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
    """100,000 rows at once take the processor about as long as in ten calls, and little more memory than the result.

    The same rows both ways, in turns, by processor time, and the median of the pairs: other programs disturb that
    least. What they do to caches is still seen, hence the room; `benchmarks/bench_scale.py` measures it closely.
    """
    texts = [chr(97 + row % 26) * (1 + row * 7 % 60) for row in range(100_000)]

    def took(size: int) -> float:
        start = time.process_time()
        for at in range(0, len(texts), size):
            assert embed_texts(Tiny(), texts[at : at + size], 32, threads=2).vectors.shape == (size, 32)
        return time.process_time() - start

    took(10_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ratio = statistics.median(took(100_000) / took(10_000) for _ in range(7))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert ratio < 1.35
    assert grown < 4 * len(texts) * 32 * 4
