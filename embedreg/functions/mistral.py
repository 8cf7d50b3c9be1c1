"""The `mistral` function: Mistral AI's embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.vendor import Model, Vendor, VendorFunction

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MistralEmbeddings"]

MODELS = {
    "mistral-embed": Model(1024, max_tokens=8192, request_tokens=16_384),
    "codestral-embed": Model(1536, max_tokens=8192, request_tokens=16_384),
}


class MistralEmbeddings(VendorFunction):
    """Mistral AI's embedding models, which embed queries and sources alike.

    Attributes:
        name: the model.
        dim: request vectors of this width (codestral-embed). None: the model's own.
        base_url: another address, with its `/v1`. None: Mistral's.
        api_key: a `$var:` reference. None: MISTRAL_API_KEY.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "mistral"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",), extra="mistral", remote=True, retry=False, window=8192, concurrency=4
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Mistral",
        models=MODELS,
        url="https://api.mistral.ai/v1",
        key_names=("MISTRAL_API_KEY",),
        max_inputs=256,
        docs="Mistral AI: Embeddings",
    )

    name: str = "mistral-embed"
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    base_url: str | None = None
    api_key: str | None = None
    batch_size: int = Field(default=256, ge=1)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        return self

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch: (m, d) float32 in the order of the batch."""
        body: dict[str, Any] = {"model": self.name, "input": batch}
        if self.dim is not None and self.dim != (self._model() or Model(0)).ndims:
            body["output_dimension"] = self.dim
        return self._listed(self._post("/embeddings", body), len(batch))
