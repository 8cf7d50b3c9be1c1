"""The `colpali` function: images of pages with a vector for each patch, and queries with one for each token.

Faysse et al. 2024 (ColPali). The models are the transformers library's for late interaction with images: ColPali,
ColQwen2 and ColModernVBert. It has the fields and defaults of LanceDB's function of this name, which runs models of
another library, colpali-engine; most of them have a conversion of their authors' that is read here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from embedreg.core.base import Traits
from embedreg.core.role import Role
from embedreg.errors import ConfigError
from embedreg.runtime.hardware import workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.execute import Whole
from embedreg.runtime.local.image import LocalImageFunction
from embedreg.runtime.models import folders, kinds, weights
from embedreg.runtime.text import library
from embedreg.runtime.vectors.packed import Packed, concatenated, on_host

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ColPaliEmbeddings"]

# Models of colpali-engine's that are known to have no conversion, by a part of their names.
_ENGINE_ONLY = re.compile(r"colqwen2[._]5|colsmol|colidefics3")
# Adapters that colpali-engine reads -> the whole models that their authors made of them for transformers.
_CONVERSIONS = {
    "vidore/colpali-v1.2": "vidore/colpali-v1.2-hf",
    "vidore/colpali-v1.3": "vidore/colpali-v1.3-hf",
    "vidore/colqwen2-v1.0": "vidore/colqwen2-v1.0-hf",
}


class ColPaliEmbeddings(LocalImageFunction):
    """Embeddings of images of pages, and of text queries, with several vectors each.

    Attributes:
        model_name: a model of the hub, or a folder: a ColPali, ColQwen2 or ColModernVBert of the transformers library.
        revision: a branch, tag or commit of the hub; None for the one that is cached, else the newest.
        dtype: number type of the model's weights and computation; vectors are always float32. On a CPU, float32 is
            faster and more exact; on Apple's devices bfloat16 is computed as float32.
        batch_size: maximum images of a forward pass.
        use_token_pooling: whether vectors are pooled at all; LanceDB's older name of pooling_strategy=None.
        pooling_strategy: "hierarchical", or None to store the vector of every patch.
        pool_factor: number of vectors that are pooled to one, on average.
        pool_queries: whether the vectors of queries are pooled too, as LanceDB does.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "colpali"
    traits: ClassVar[Traits] = replace(
        LocalImageFunction.traits,
        modality="image+text",
        requires=("sentence_transformers", "torchvision", "PIL"),
        extra="colpali",
        stock_fields=frozenset(
            {
                "model_name",
                "device",
                "dtype",
                "use_token_pooling",
                "pooling_strategy",
                "pool_factor",
                "batch_size",
                "max_retries",
            }
        ),
        vectors="multi",
        window=64,  # an image has a thousand vectors
    )

    model_name: str = "Metric-AI/ColQwen2.5-3b-multilingual-v1.0"
    revision: str | None = None
    device: str = "auto"  # inherited, as others below: declared again for their order in declarations and listings
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    use_token_pooling: bool = True
    pooling_strategy: str | None = "hierarchical"
    pool_factor: int = Field(default=2, ge=1)
    pool_queries: bool = True
    batch_size: int = Field(default=2, ge=1)
    num_threads: int | None = Field(default=None, ge=1)
    precision: ClassVar[Precision] = "float32"  # type: ignore[misc]  # no field: LanceDB's name of it is `dtype`

    _packed: ClassVar[bool] = True

    @field_validator("pooling_strategy")
    @classmethod
    def _can_be_stored(cls, value: str | None) -> str | None:
        if value not in (None, "hierarchical"):
            raise ValueError("expected 'hierarchical' or None: the function that 'lambda' pools with cannot be stored")
        return value

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        folder = None if self.from_metadata else weights.absolute_folder(self.raw_fields()["model_name"])
        if folder is not None:
            self.model_name = folder

    def ndims(self) -> int:
        """Return the width of a vector, from the model's configuration."""
        if self._ndims is None:
            path = self._files().path
            whole = folders.is_plain(path)
            width = kinds.plain_width(path, folders.MULTI) if whole else folders.ndims(path)
            self._ndims = library.ndims(self._loaded()) if width is None else width
        return int(self._ndims)

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors: the model's last layer scales them to unit length."""
        return {"dtype": "float32", "normalized": True, "metric": "cosine"}

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed images of pages, or queries, each a text or an image: n arrays (k, d) float32.

        A RowError takes the place of an image that could not be opened.
        """
        rows = self.sanitize_input(inputs)
        if role == "source":
            return super().compute_embeddings(rows, role)
        rows = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
        texts = [row for row in rows if isinstance(row, str)]
        images = [row for row in rows if not isinstance(row, str)]
        made = iter(self._embed_texts(texts))
        seen = iter(super().compute_embeddings(images, role) if images else [])
        return [next(made if isinstance(row, str) else seen) for row in rows]

    def _embed_texts(self, texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        pages = self._pictures()

        def embed() -> Packed:
            batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
            made: Packed = concatenated([on_host(pages.embed(batch, "query")) for batch in batches])
            return made

        with self._failing(len(texts)):
            return workers.alone(embed).rows() if pages.device == "cpu" else embed().rows()

    def _remarks(self) -> list[str]:
        remarks = super()._remarks()
        if self.from_metadata and not self._declared:
            remarks.append(
                "LanceDB pads the rows of a batch to one length: those that it added may have vectors of zeros at one "
                "end; those that embedreg adds have none"
            )
        return remarks

    # -- the model --------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        return self.model_name

    def _model_name(self) -> str:
        return self.model_name

    def _find_files(self, *, download: bool) -> weights.ResolvedModel:
        name = self.model_name
        if not os.path.isdir(name) and (name in _CONVERSIONS or _ENGINE_ONLY.search(name.lower())):
            conversion = _CONVERSIONS.get(name, "vidore/colqwen2-v1.0-hf")
            raise ConfigError(
                f"only the library colpali-engine reads the model {name!r}, which embedreg does not use.",
                f"a column of its own with model_name={conversion!r}",
            )
        found = self._resolved(name, self.revision, download=download)
        kinds.refuse_other_kinds(found.path, name, folders.PAGES)
        return found

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the model's folder and number type."""
        files = self._files()
        return "colpali", str(files.path), files.stamp() if files.origin == "local" else 0, self.dtype

    def load(self, device: str) -> Any:
        """Load the model with its library, in its number type."""
        files = self._files()
        own = files.origin == "local" and not self.from_metadata
        dtype = "float32" if device == "mps" and self.dtype == "bfloat16" else self.dtype
        return library.load(
            files, self.model_name, device, code=False, own=own, revision=self.revision, kind=folders.MULTI, dtype=dtype
        )

    def prepare(self, model: Any, picture: Any) -> np.ndarray:
        """Return an image as it is: the model's library resizes it with its batch."""
        return Whole(picture).prepared()

    def forward(self, model: Any, batch: Any) -> Packed:
        """Embed images of pages."""
        return self._pictures().embed([page.picture for page in batch], "document")

    def _pictures(self) -> _Pages:  # type: ignore[override]  # both are a `PictureModel`
        (on,) = self._devices()
        pooled = self.use_token_pooling and self.pooling_strategy is not None
        return _Pages(self, self._loaded(on), on, self.pool_factor if pooled else 1, self.pool_queries)


@dataclass(frozen=True)
class _Pages:
    """A function's model as a `PictureModel` of `Packed` rows.

    Attributes:
        model: a `MultiVectorEncoder`.
        factor: number of vectors that are pooled to one.
    """

    function: ColPaliEmbeddings
    model: Any
    device: str
    factor: int
    queries: bool
    side: ClassVar[None] = None

    def prepare(self, picture: Any) -> np.ndarray:
        return self.function.prepare(self.model, picture)

    def forward(self, batch: Any) -> Packed:
        return self.embed([page.picture for page in batch], "document")

    def embed(self, inputs: list[Any], task: str) -> Packed:
        """Embed images as documents, or texts as queries."""
        import torch

        rows = [{"text": each} for each in inputs] if task == "query" else inputs  # a text may look like an address
        features = self.model.preprocess(rows, task=task)
        with torch.inference_mode():
            moved = {kind: each.to(self.device) if hasattr(each, "to") else each for kind, each in features.items()}
            made = self.model(moved, task=task)
            kept = made["attention_mask"].bool()
            vectors, lengths = made["token_embeddings"][kept].float(), kept.sum(1)
        if self.factor == 1 or (task == "query" and not self.queries):
            return Packed(lengths, (vectors,))
        fewer = [pooled(each, self.factor) for each in vectors.cpu().split(lengths.tolist())]
        return Packed(torch.tensor([len(each) for each in fewer]), (torch.cat(fewer),))


def pooled(vectors: Any, factor: int) -> Any:
    """Pool the vectors of one image or text by hierarchical clustering.

    Args:
        vectors: (k, d) float32 tensor of unit vectors.
        factor: number of vectors that are pooled to one, on average.
    Returns:
        (at most max(k // factor, 1), d), the mean of each cluster, scaled to unit length.
    Source: Clavié et al. 2024; as colpali-engine, vectors are clustered by Ward's method on their rows of the matrix of
        cosine distances.
    """
    import torch
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    if len(vectors) < 2:
        return vectors
    distances = 1 - (vectors @ vectors.T).numpy()
    labels = fcluster(linkage(pdist(distances), "ward"), max(len(vectors) // factor, 1), "maxclust")
    _, index = torch.unique(torch.from_numpy(labels), return_inverse=True)  # sorted by the number of the cluster
    sums = torch.zeros(int(index.max()) + 1, vectors.shape[1]).index_add_(0, index, vectors)
    return torch.nn.functional.normalize(sums, dim=1)  # of the same direction as the mean
