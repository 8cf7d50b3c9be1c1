"""The `gte-text` function: GTE models, with the fields and defaults of LanceDB's function of this name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings

__all__ = ["GteEmbeddings"]

MLX_MODEL = "thenlper/gte-large"


class GteEmbeddings(SentenceTransformerEmbeddings):
    """Text embeddings with a GTE model.

    Attributes:
        name: a model of the hub, or a folder.
        mlx: whether LanceDB used its conversion of gte-large for Apple's processors: the same weights for any `name`,
            and vectors that are not scaled for any `normalize`.
        others: as those of `sentence-transformers`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "gte-text"
    traits = replace(
        SentenceTransformerEmbeddings.traits,
        stock_fields=frozenset({"name", "device", "normalize", "mlx", "max_retries"}),
    )

    name: str = "thenlper/gte-large"
    mlx: bool = False

    def _model_id(self) -> str:
        return MLX_MODEL if self.mlx else self.name

    def _unit(self) -> bool:
        return self.normalize and not self.mlx

    def _ends_normalized(self, path: Path) -> bool:
        return not self.mlx and super()._ends_normalized(path)
