"""The `cohere` function: Cohere's embeddings, and servers with the same API.

LanceDB's function of this name sends the form of version 1, which the models up to v3 take; newer ones take version 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.vendor import Model, Vendor, VendorFunction

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CohereEmbeddings"]

_RETIRED = "on 2026-04-04"
MODELS = {
    "embed-multilingual-v2.0": Model(768, retired=_RETIRED),
    "embed-english-v2.0": Model(4096, retired=_RETIRED),
    "embed-english-light-v2.0": Model(1024, retired=_RETIRED),
    "embed-multilingual-v3.0": Model(1024, max_tokens=512),
    "embed-english-v3.0": Model(1024, max_tokens=512),
    "embed-multilingual-light-v3.0": Model(384, max_tokens=512),
    "embed-english-light-v3.0": Model(384, max_tokens=512),
    "embed-v4.0": Model(1536, (256, 512, 1024), 128_000),
    "embed-v5.0-pro": Model(2048, (256, 512, 1024, 1536), 128_000),
    "embed-v5.0-fast": Model(2048, (256, 512, 1024, 1536), 128_000),
}
# Of LanceDB's function; the others take only version 2 of the API.
_FIRST_FORM = frozenset(name for name in MODELS if name.endswith(("v2.0", "v3.0")))


class CohereEmbeddings(VendorFunction):
    """Cohere's embedding models.

    Attributes:
        name: the model.
        source_input_type, query_input_type: what sources and queries are for Cohere: "search_document",
            "search_query", "classification" or "clustering".
        dim: request vectors of this width (models from v4 on). None: the model's own.
        truncate: which end of a text over the model's limit is cut off; "NONE" refuses it. None: Cohere's default, END.
        base_url: another address. None: Cohere's.
        api_key: a `$var:` reference. None: COHERE_API_KEY or CO_API_KEY.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "cohere"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",),
        extra="cohere",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset({"name", "source_input_type", "query_input_type", "max_retries", "api_key"}),
        width_defaults={"name": {768: "embed-multilingual-v2.0", 1024: "embed-multilingual-v3.0"}},
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Cohere",
        models=MODELS,
        url="https://api.cohere.com",
        key_names=("COHERE_API_KEY", "CO_API_KEY"),
        max_inputs=96,
        docs="Cohere API reference: Embed",
    )

    name: str = "embed-multilingual-v2.0"  # LanceDB's default up to 0.41, which tables that it wrote omit
    source_input_type: str = "search_document"
    query_input_type: str = "search_query"
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    truncate: Literal["START", "END", "NONE"] | None = None
    base_url: str | None = None
    api_key: str | None = None
    batch_size: int = Field(default=96, ge=1)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        self._refuse_width(self.__dict__["dim"])
        return self

    def _roles(self) -> tuple[str, str]:
        return self.query_input_type, self.source_input_type

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        input_type = self.query_input_type if role == "query" else self.source_input_type
        body: dict[str, Any] = {"texts": batch, "model": self.name, "input_type": input_type}
        if self.truncate is not None:
            body["truncate"] = self.truncate
        first = self.name in _FIRST_FORM
        if not first:
            body["embedding_types"] = ["float"]
            if self.dim is not None:
                body["output_dimension"] = self.dim
        answer = self._post("/v1/embed" if first else "/v2/embed", body)
        vectors = self._field(answer, "embeddings")
        if isinstance(vectors, dict):
            vectors = vectors.get("float")
        return self._matrix(vectors, len(batch), self._field(answer, "meta", "billed_units", "input_tokens"))
