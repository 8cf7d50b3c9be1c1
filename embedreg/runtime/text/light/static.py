"""Static models in numpy: a text's vector is the mean of its tokens' rows of a table (StaticEmbedding, model2vec)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedreg.runtime.models.folders import Module
from embedreg.runtime.text.light.settings import Unsupported
from embedreg.runtime.text.light.tensors import Tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Table", "means", "read"]

_TOKENS = 2**12  # token vectors that are gathered at a time: 4 MiB of 256 dimensions, which a core's cache holds


class Table:
    """A table of token vectors.

    Args:
        rows: (tokens, d) float32.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows
        self.size = 0  # the table belongs to the model

    def __call__(self, batch: dict[str, Any]) -> np.ndarray:
        """Return the vectors of a padded batch: (b, d) float32; zeros for a text without tokens."""
        kept = batch["attention_mask"].astype(bool)
        return means(batch["input_ids"][kept], kept.sum(axis=1), self.rows.__getitem__, self.rows.shape[1])


def means(ids: np.ndarray, counts: np.ndarray, gathered: Callable[[np.ndarray], np.ndarray], width: int) -> np.ndarray:
    """Return the mean of the token vectors of each text: (n, d) float32; zeros for a text without tokens.

    Args:
        ids: all tokens of the first text, then those of the second, and so on.
        counts: (n,) int64, the tokens of each text.
        gathered: returns the vectors of tokens, (t, d) float32.
        width: d.
    """
    import numpy as np

    sums = np.zeros((len(counts), width), np.float32)
    starts = np.cumsum(counts) - counts
    for size in np.unique(counts[counts > 0]).tolist():
        texts = np.flatnonzero(counts == size)
        if size > _TOKENS:
            for text in texts:
                for start in range(int(starts[text]), int(starts[text]) + size, _TOKENS):
                    sums[text] += gathered(ids[start : min(start + _TOKENS, int(starts[text]) + size)]).sum(axis=0)
        else:
            places, step = np.arange(size), _TOKENS // size
            for some in (texts[at : at + step] for at in range(0, len(texts), step)):
                vectors = gathered(ids[(starts[some, None] + places).ravel()])
                sums[some] = vectors.reshape(len(some), size, width).sum(axis=1)
    sums /= np.maximum(counts, 1)[:, None]
    return sums


def read(module: Module) -> np.ndarray:
    """Return the table of a StaticEmbedding, also in model2vec's form with a mapping and weights of tokens.

    Raises:
        Unsupported: it is not in float32.
    """
    import numpy as np

    tensors = Tensors(module.folder / "model.safetensors")
    if "embedding.weight" in tensors:
        rows = tensors["embedding.weight"]
    else:
        rows = tensors["embeddings"]
        if "mapping" in tensors:
            mapping = tensors["mapping"].astype(np.int64)
            if len(mapping) and not (np.min(mapping) >= 0 and np.max(mapping) < len(rows)):
                raise Unsupported("its mapping names rows that its table does not have")
            rows = rows[mapping]
        if "weights" in tensors:
            rows = rows.astype(np.float32) * tensors["weights"].astype(np.float32)[:, None]
    if rows.dtype.str != "<f4" or rows.ndim != 2:
        raise Unsupported(f"its table is in {rows.dtype.name}")
    return rows
