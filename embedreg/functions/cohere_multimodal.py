"""The `cohere-multimodal` function: Cohere's models for images and texts, from v4 on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.pictures import Picture
from embedreg.runtime.remote.vendor import Model, Vendor
from embedreg.runtime.remote.vendor_images import VendorImageFunction, image_traits

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CohereMultimodalEmbeddings"]

MODELS = {"embed-v4.0": Model(1536, (256, 512, 1024), 128_000)}


class CohereMultimodalEmbeddings(VendorImageFunction):
    """Cohere's models of images and texts in one space.

    Attributes:
        name: the model.
        api_key: a `$var:` reference. None: COHERE_API_KEY or CO_API_KEY.
        source_type: what a string in a source column is: "image", "text" or "mixed".
        source_input_type, query_input_type: what sources and queries are for Cohere.
        dim: request vectors of this width. None: the model's own.
        truncate: which end of a text over the model's limit is cut off; "NONE" refuses it. None: Cohere's default, END.
        base_url: another address. None: Cohere's.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "cohere-multimodal"
    traits: ClassVar[Traits] = image_traits("cohere-multimodal")
    vendor: ClassVar[Vendor] = Vendor(
        name="Cohere",
        models=MODELS,
        url="https://api.cohere.com",
        key_names=("COHERE_API_KEY", "CO_API_KEY"),
        max_inputs=96,
        docs="Cohere API reference: Embed",
    )

    name: str = "embed-v4.0"
    api_key: str | None = None
    source_input_type: str = "search_document"
    query_input_type: str = "search_query"
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    truncate: Literal["START", "END", "NONE"] | None = None
    base_url: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        self._refuse_width(self.__dict__["dim"])
        return self

    def _roles(self) -> tuple[str, str]:
        return self.query_input_type, self.source_input_type

    def request(self, batch: list[Any], role: Role) -> Any:
        """Embed one batch of texts and pictures: (m, d) float32 in the order of the batch."""
        parts = [
            {"type": "image_url", "image_url": {"url": each.url}}
            if isinstance(each, Picture)
            else {"type": "text", "text": each}
            for each in batch
        ]
        body: dict[str, Any] = {
            "model": self.name,
            "input_type": self.query_input_type if role == "query" else self.source_input_type,
            "inputs": [{"content": [part]} for part in parts],
            "embedding_types": ["float"],
        }
        optional = {"output_dimension": self.dim, "truncate": self.truncate}
        body |= {name: value for name, value in optional.items() if value is not None}
        answer = self._post("/v2/embed", body)
        units = self._field(answer, "meta", "billed_units") or {}
        tokens = [units.get(name) for name in ("input_tokens", "image_tokens") if isinstance(units.get(name), int)]
        return self._matrix(self._field(answer, "embeddings", "float"), len(batch), sum(tokens) if tokens else None)
