"""Back ends of the sentence-transformers models whose rows have several entries: late interaction, and sparse vectors.

Both run the library's modules in planned batches, as `TextPipeline` does, and return `Packed` rows: of a
`MultiVectorEncoder` a vector for each token that it scores, of a `SparseEncoder` the weights that are not zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.runtime.text.pipeline import TextPipeline, first_module
from embedreg.runtime.text.tokens import Tokens
from embedreg.runtime.vectors.packed import Packed, on_host

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LateInteractionPipeline", "SparsePipeline", "max_tokens"]


@dataclass(frozen=True)
class LateInteractionPipeline(TextPipeline):
    """A `MultiVectorEncoder` in one role; the expansion of queries and the tokens that are left out are the library's.

    Attributes:
        pool_factor: number of token vectors of a document that are pooled to one, on average; 1 for no pooling.
    """

    pool_factor: float = 1.0

    def tokenize(self, texts: list[str]) -> Tokens:
        """Tokenize without padding; a query keeps the tokens that expand it."""
        import numpy as np

        if self._expansion() is None:
            return super().tokenize(texts)
        features = dict(self._preprocess(texts))  # padded by the library, which puts its tokens in place of padding
        encodings = features.pop("", None)
        tokenizer = first_module(self.model, self.task).tokenizer
        rows = {kind: value.numpy() for kind, value in features.items() if getattr(value, "ndim", 0) == 2}
        kept = (rows["attention_mask"] != 0) | rows["query_expansion_positions"]
        pads = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        truncated = None
        if encodings is not None:
            truncated = np.fromiter((bool(each.overflowing) for each in encodings), bool, len(texts))
        return Tokens(
            {kind: value[kept].astype(np.int64) for kind, value in rows.items()},
            kept.sum(axis=1),
            {kind: pads.get(kind, 0) for kind in rows},
            False,
            {kind: value for kind, value in features.items() if kind not in rows},
            truncated,
        )

    def vectors(self, features: dict[str, Any]) -> Any:
        """Run the modules on tensors: `Packed` (m, d) float32, truncated, normalised and pooled as configured."""
        import torch

        with torch.inference_mode():
            made = self.model(features, **self._kwargs())
            kept = made["attention_mask"].bool()
            return self._finished(made["token_embeddings"][kept], kept.sum(1))

    def encode(self, rows: list[str], batch_size: int) -> list[np.ndarray]:
        """Embed rows with the library's own method, for a model that the runtime cannot run."""
        import torch

        method = getattr(self.model, f"encode_{self.task}")
        made = method(rows, prompt=self.prompt, batch_size=batch_size, show_progress_bar=False)
        with torch.inference_mode():
            packed = self._finished(torch.cat(made), torch.tensor([len(each) for each in made]))
        found: list[np.ndarray] = on_host(packed).rows()
        return found

    def _finished(self, vectors: Any, lengths: Any) -> Packed:
        """Truncate, normalise and pool the vectors (m, d) of rows of given lengths."""
        import torch

        vectors = vectors[:, : self.truncate_dim].float()
        if self.normalize:
            vectors = torch.nn.functional.normalize(vectors, p=2, dim=1)
        if self.pool_factor == 1 or self.task != "document":
            return Packed(lengths, (vectors,))
        from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

        rows = HierarchicalTokenPooling(self.pool_factor).pool(list(vectors.split(lengths.tolist())))
        return Packed(torch.tensor([len(each) for each in rows]), (torch.cat(rows),))

    def _expands_nothing(self) -> bool:
        expansion = self._expansion()
        # with padding on the left, which positions expand a query depends on the batch
        return expansion is None or first_module(self.model, self.task).tokenizer.padding_side == "right"


@dataclass(frozen=True)
class SparsePipeline(TextPipeline):
    """A `SparseEncoder` in one role.

    Attributes:
        max_active_dims: maximum number of weights of a vector, the largest; None for the model's own limit.
    """

    CPU_BUDGET: ClassVar[int] = 256  # padded tokens of a batch: each has a weight for every word of the vocabulary
    BUDGET: ClassVar[int] = 4096

    max_active_dims: int | None = None

    def vectors(self, features: dict[str, Any]) -> Any:
        """Run the modules on tensors: `Packed` indices (m,) int32, ascending in each row, and values (m,) float32."""
        import torch
        from sentence_transformers.util import select_max_active_dims

        most = self.model.max_active_dims if self.max_active_dims is None else self.max_active_dims
        with torch.inference_mode():
            made = self.model(features, **self._kwargs(), **({} if most is None else {"max_active_dims": most}))
            dense = select_max_active_dims(made["sentence_embedding"], most).float()
            rows, indices = dense.nonzero(as_tuple=True)
            lengths = torch.bincount(rows, minlength=len(dense))
            return Packed(lengths, (indices.int(), dense[rows, indices]))

    def encode(self, rows: list[str], batch_size: int) -> list[Any]:
        """Embed rows with the library's own method, for a model that the runtime cannot run."""
        method = getattr(self.model, f"encode_{self.task}")
        options = {"batch_size": batch_size, "show_progress_bar": False, "save_to_cpu": True}
        made = method(
            rows, prompt=self.prompt, max_active_dims=self.max_active_dims, convert_to_tensor=False, **options
        )
        found = [each.coalesce() for each in made]
        return [(each.indices()[0].int().numpy(), each.values().float().numpy()) for each in found]


def max_tokens(model: Any, task: str) -> int | None:
    """Return the maximum number of tokens that a model reads of a text in a role; None if there is no limit."""
    from embedreg.runtime.text import library

    first = first_module(model, task)
    expansion = getattr(first, "query_expansion", None) or {}
    if task == "query" and expansion.get("strategy") == "fixed":
        return int(expansion["length"])
    own = getattr(first, f"{task}_length", None)
    limits = [each for each in (own, library.max_tokens(model)) if each is not None]
    return min(limits, default=None)
