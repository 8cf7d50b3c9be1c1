"""The `late-interaction` function: ColBERT models, with a vector for each token, compared by MaxSim.

Khattab & Zaharia 2020 (ColBERT). The models are those of sentence-transformers' `MultiVectorEncoder`: its own, PyLate's
and Stanford's. What expands queries, which tokens of a document are left out, and how long either may be is in the
model's files. LanceDB's `colbert` is not this: it returns one vector, and is the function of that name.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import Field

from embedreg.core.base import Metric
from embedreg.core.role import Role
from embedreg.functions.sentence_transformers import TASKS, SentenceTransformerEmbeddings
from embedreg.runtime.models import folders, kinds, weights
from embedreg.runtime.text.backend import ModelBackend
from embedreg.runtime.text.light import choice
from embedreg.runtime.text.token_vectors import LateInteractionPipeline, max_tokens

__all__ = ["LateInteractionEmbeddings", "TokenModelEmbeddings"]


class TokenModelEmbeddings(SentenceTransformerEmbeddings):
    """A model of the sentence-transformers library whose rows have several entries; torch runs it."""

    backend: ClassVar[str] = choice.TORCH  # type: ignore[misc]  # no field: no other back end can run these models

    _packed: ClassVar[bool] = True
    _class: ClassVar[str]  # of the library

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return [key for key in SentenceTransformerEmbeddings.runtime_keys() if key != "backend"]

    def _refuse_other_kinds(self, path: Path) -> None:
        kinds.refuse_other_kinds(path, self.name, self._class)

    def _find_files(self, *, download: bool) -> weights.ResolvedModel:
        return self._resolve(download=download, beside=True)

    def _width(self, path: Path) -> int | None:
        return kinds.plain_width(path, self._class) if folders.is_plain(path) else folders.ndims(path)

    def _ends_normalized(self, path: Path) -> bool:
        return False

    def _as_stock(self) -> bool:
        return False

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the key of the model as this class of the library loads it."""
        return self._class, *super().weights_key()

    def load(self, device: str) -> Any:
        """Load the model with its class of the library."""
        files = self._files()
        own = files.origin == "local" and not self.from_metadata
        load = self._library().load
        code = self.trust_remote_code
        return load(files, self.name, device, code=code, own=own, revision=self.revision, kind=self._class)

    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens that the model reads of a document; None if there is no limit."""
        return self._limit("source")

    def _limit(self, role: Role) -> int | None:
        return max_tokens(self._loaded(), TASKS[role])

    def _encode(self, first: ModelBackend, rows: list[str], role: Role, batch_size: int) -> Any:
        return cast("LateInteractionPipeline", first).encode(rows, batch_size)


class LateInteractionEmbeddings(TokenModelEmbeddings):
    """Text embeddings with a ColBERT model: a vector for each token.

    Attributes:
        name: a model of the hub, or a folder.
        normalize: whether vectors have unit length.
        pool_factor: number of a document's token vectors that are pooled to one, on average, by hierarchical clustering
            (Clavié et al. 2024); 1 stores all of them. Queries are never pooled.
        others: as those of `sentence-transformers`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "late-interaction"
    traits = replace(
        SentenceTransformerEmbeddings.traits,
        alternatives=(),
        extra="late-interaction",
        stock_fields=None,
        vectors="multi",
        window=1024,  # a row has hundreds of vectors
    )

    name: str = "answerdotai/answerai-colbert-small-v1"
    pool_factor: float = Field(default=1.0, ge=1)

    _class: ClassVar[str] = folders.MULTI

    def _kind(self) -> type[ModelBackend]:
        return LateInteractionPipeline

    def _metric(self, path: Path, unit: bool) -> Metric:
        return "cosine"

    def _backend(self, on: str, role: Role, *, alone: bool = False, few: bool = False) -> ModelBackend:
        made = cast("LateInteractionPipeline", super()._backend(on, role, alone=alone, few=few))
        return replace(made, pool_factor=self.pool_factor)
