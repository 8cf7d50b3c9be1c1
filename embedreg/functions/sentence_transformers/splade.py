"""The `splade` function: sparse vectors with a weight for each word of a model's vocabulary, compared by dot product.

Formal et al. 2021 (SPLADE). The models are those of sentence-transformers' `SparseEncoder`, and plain transformers with
a head for masked words, which the library reads as SPLADE models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, cast

from pydantic import Field

from embedreg.core.base import Metric
from embedreg.core.role import Role
from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings
from embedreg.functions.sentence_transformers.late_interaction import TokenModelEmbeddings
from embedreg.runtime.models import folders
from embedreg.runtime.text.backend import ModelBackend
from embedreg.runtime.text.token_vectors import SparsePipeline

__all__ = ["SpladeEmbeddings"]


class SpladeEmbeddings(TokenModelEmbeddings):
    """Sparse text embeddings with a SPLADE model.

    Attributes:
        name: a model of the hub, or a folder.
        max_active_dims: maximum number of weights of a vector, the largest of them; None for the model's own limit.
        others: as those of `sentence-transformers`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "splade"
    traits = replace(
        SentenceTransformerEmbeddings.traits,
        alternatives=(),
        extra="splade",
        stock_fields=None,
        metric="dot",
        vectors="sparse",
        window=4096,
    )

    name: str = "ibm-granite/granite-embedding-30m-sparse"
    max_active_dims: int | None = Field(default=None, ge=1)
    normalize: ClassVar[bool] = False  # type: ignore[misc]  # no field, here and below: the weights have a meaning
    truncate_dim: ClassVar[None] = None  # type: ignore[misc]

    _class: ClassVar[str] = folders.SPARSE

    def _kind(self) -> type[ModelBackend]:
        return SparsePipeline

    def _metric(self, path: Path, unit: bool) -> Metric:
        return "dot"

    def _budget(self, on: str) -> int:
        return SparsePipeline.CPU_BUDGET if on == "cpu" else SparsePipeline.BUDGET

    def _backend(self, on: str, role: Role, *, alone: bool = False, few: bool = False) -> ModelBackend:
        made = cast("SparsePipeline", super()._backend(on, role, alone=alone, few=few))
        return replace(made, max_active_dims=self.max_active_dims)
