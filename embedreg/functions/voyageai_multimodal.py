"""The `voyageai-multimodal` function: Voyage AI's models for images and texts."""

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

__all__ = ["VoyageAIMultimodalEmbeddings"]

MODELS = {
    "voyage-multimodal-3.5": Model(1024, (256, 512, 2048), 32_000, request_tokens=120_000),
    "voyage-multimodal-3": Model(1024, max_tokens=32_000, request_tokens=120_000),
}


class VoyageAIMultimodalEmbeddings(VendorImageFunction):
    """Voyage AI's models of images and texts in one space.

    Queries and sources are sent as what they are (`input_type`).

    Attributes:
        name: the model.
        api_key: a `$var:` reference. None: VOYAGE_API_KEY.
        source_type: what a string in a source column is: "image", "text" or "mixed".
        dim: request vectors of this width, of a model that has it. None: the model's own.
        base_url: another address, with its `/v1`. None: Voyage's, or MongoDB's for a key of theirs ("al-").
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "voyageai-multimodal"
    traits: ClassVar[Traits] = image_traits("voyageai-multimodal")
    vendor: ClassVar[Vendor] = Vendor(
        name="Voyage AI",
        models=MODELS,
        url="https://api.voyageai.com/v1",
        key_names=("VOYAGE_API_KEY",),
        max_inputs=1000,
        docs="Voyage AI: Multimodal Embeddings",
    )
    max_bytes: ClassVar[int] = 20 * 10**6

    name: str = "voyage-multimodal-3.5"
    api_key: str | None = None
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    base_url: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        self._refuse_width(self.__dict__["dim"])
        return self

    def _endpoint(self) -> str:
        if self.base_url is None and (self._key() or "").startswith("al-"):
            return "https://ai.mongodb.com/v1"  # whose keys Voyage's own address refuses
        return super()._endpoint()

    def _roles(self) -> tuple[str, str]:
        return "query", "document"

    def request(self, batch: list[Any], role: Role) -> Any:
        """Embed one batch of texts and pictures: (m, d) float32 in the order of the batch."""
        parts = [
            {"type": "image_base64", "image_base64": each.url}
            if isinstance(each, Picture)
            else {"type": "text", "text": each}
            for each in batch
        ]
        body: dict[str, Any] = {
            "model": self.name,
            "input_type": "query" if role == "query" else "document",
            "inputs": [{"content": [part]} for part in parts],
            "truncation": True,
        }
        if self.dim is not None:
            body["output_dimension"] = self.dim
        return self._listed(self._post("/multimodalembeddings", body), len(batch))
