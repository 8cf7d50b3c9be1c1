"""Static models in numpy: a text's vector is the mean of its tokens' rows of a table (StaticEmbedding, model2vec)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedreg.runtime.models.folders import Module
from embedreg.runtime.text.light.settings import Unsupported
from embedreg.runtime.text.light.tensors import Tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Table", "read"]


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
        import numpy as np

        ids, mask = batch["input_ids"], batch["attention_mask"].astype(np.float32)
        count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
        return np.asarray(np.einsum("btd,bt->bd", self.rows[ids], mask) / count, np.float32)


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
