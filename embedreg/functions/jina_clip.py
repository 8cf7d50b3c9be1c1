"""The `jina-clip` function: Jina AI's models for images and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.pictures import Picture
from embedreg.runtime.remote.vendor import Model, Vendor
from embedreg.runtime.remote.vendor_images import VendorImageFunction, image_traits

if TYPE_CHECKING:
    from typing import Self

__all__ = ["JinaClipEmbeddings"]

MODELS = {
    "jina-clip-v1": Model(768),
    "jina-clip-v2": Model(1024, max_tokens=8192),
    "jina-embeddings-v4": Model(2048, max_tokens=32_768),
}


class JinaClipEmbeddings(VendorImageFunction):
    """Jina AI's models of images and texts in one space.

    Attributes:
        name: the model.
        api_key: a `$var:` reference. None: JINA_API_KEY.
        source_type: what a string in a source column is: "image", "text" or "mixed".
        source_task, query_task: the task of jina-embeddings-v4 and jina-clip-v2, "retrieval.passage" and
            "retrieval.query" for search. None: none is sent.
        dim: request vectors of this width, of models that have it. None: the model's own.
        base_url: another address, with its `/v1`. None: Jina's.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "jina-clip"
    traits: ClassVar[Traits] = image_traits("jina-clip")
    vendor: ClassVar[Vendor] = Vendor(
        name="Jina AI",
        models=MODELS,
        url="https://api.jina.ai/v1",
        key_names=("JINA_API_KEY",),
        max_inputs=512,
        docs="Jina AI: Embeddings API",
    )

    name: str = "jina-clip-v2"
    api_key: str | None = None
    source_task: str | None = None
    query_task: str | None = None
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    base_url: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        return self

    def _roles(self) -> tuple[str, str]:
        return self.query_task or "", self.source_task or ""

    def request(self, batch: list[Any], role: Role) -> Any:
        """Embed one batch of texts and pictures: (m, d) float32 in the order of the batch."""
        inputs = [{"image": each.data} if isinstance(each, Picture) else {"text": each} for each in batch]
        body: dict[str, Any] = {"input": inputs, "model": self.name}
        optional = {"task": self.query_task if role == "query" else self.source_task, "dimensions": self.dim}
        body |= {name: value for name, value in optional.items() if value is not None}
        return self._listed(self._post("/embeddings", body), len(batch))
