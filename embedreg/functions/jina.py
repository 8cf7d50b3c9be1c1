"""The `jina` function: Jina AI's embeddings of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.vendor import Model, Vendor, VendorFunction

if TYPE_CHECKING:
    from typing import Self

__all__ = ["JinaEmbeddings"]

MODELS = {
    "jina-clip-v1": Model(768),
    "jina-clip-v2": Model(1024),
    "jina-embeddings-v2-base-en": Model(768, max_tokens=8192),
    "jina-embeddings-v2-base-de": Model(768, max_tokens=8192),
    "jina-embeddings-v2-base-es": Model(768, max_tokens=8192),
    "jina-embeddings-v2-base-zh": Model(768, max_tokens=8192),
    "jina-embeddings-v2-base-code": Model(768, max_tokens=8192),
    "jina-embeddings-v2-small-en": Model(512, max_tokens=8192),
    "jina-embeddings-v3": Model(1024, max_tokens=8192),
    "jina-embeddings-v4": Model(2048, max_tokens=32_768),
    "jina-embeddings-v5-text-nano": Model(768, max_tokens=8192),
}


class JinaEmbeddings(VendorFunction):
    """Jina AI's embedding models, for texts. A text that looks like an address is a text.

    Attributes:
        name: the model.
        api_key: a `$var:` reference. None: JINA_API_KEY.
        source_task, query_task: the task of models from v3 on, "retrieval.passage" and "retrieval.query" for search.
            None: none is sent, as in LanceDB.
        dim: request vectors of this width, of models that have it. None: the model's own.
        base_url: another address, with its `/v1`. None: Jina's.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "jina"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",),
        extra="jina",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset({"name", "api_key", "max_retries"}),
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Jina AI",
        models=MODELS,
        url="https://api.jina.ai/v1",
        key_names=("JINA_API_KEY",),
        max_inputs=512,
        docs="Jina AI: Embeddings API",
    )

    name: str = "jina-clip-v1"
    api_key: str | None = None
    source_task: str | None = None
    query_task: str | None = None
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    base_url: str | None = None

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        return self

    def _roles(self) -> tuple[str, str]:
        return self.query_task or "", self.source_task or ""

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        body: dict[str, Any] = {"input": batch, "model": self.name}
        optional = {"task": self.query_task if role == "query" else self.source_task, "dimensions": self.dim}
        body |= {name: value for name, value in optional.items() if value is not None}
        return self._listed(self._post("/embeddings", body), len(batch))
