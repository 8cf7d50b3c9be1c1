"""The `huggingface-inference` function: models that Hugging Face hosts, or an endpoint with the same API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote import http
from embedreg.runtime.remote.prompts import PromptedFunction
from embedreg.runtime.remote.vendor import Vendor

if TYPE_CHECKING:
    from typing import Self

__all__ = ["HuggingFaceInferenceEmbeddings"]


class HuggingFaceInferenceEmbeddings(PromptedFunction):
    """Models that Hugging Face hosts (feature extraction).

    Attributes:
        name: a model of the hub that pools its tokens, such as a sentence-transformers model.
        base_url: an inference endpoint, which serves one model. None: Hugging Face's, by `name`.
        normalize, truncate: sent where set; support depends on the model's server.
        query_prompt_name, document_prompt_name: names of the model's own prompts, as "query". None: none.
        query_prompt, document_prompt: text before queries and sources. Left out: what the model is known to need.
        dim: the width; left out, the server is queried once.
        api_key: a `$var:` reference. None: HF_TOKEN.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "huggingface-inference"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",), extra="huggingface-inference", remote=True, retry=False, window=8192, concurrency=4
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Hugging Face",
        url="https://router.huggingface.co/hf-inference",
        key_names=("HF_TOKEN",),
        docs="Hugging Face Inference Providers: Feature Extraction",
    )

    name: str = "sentence-transformers/all-MiniLM-L6-v2"
    base_url: str | None = None
    normalize: bool | None = None
    truncate: bool | None = None
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    api_key: str | None = None
    batch_size: int = Field(default=32, ge=1)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        return self

    def _roles(self) -> tuple[str, str]:
        query, document = super()._roles()
        return self.query_prompt_name or query, self.document_prompt_name or document

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        optional = {
            "normalize": self.normalize,
            "truncate": self.truncate,
            "prompt_name": self.query_prompt_name if role == "query" else self.document_prompt_name,
        }
        body: dict[str, Any] = {"inputs": self._prompted(batch, role)}
        body |= {name: value for name, value in optional.items() if value is not None}
        model = "/".join(http.in_path(part) for part in self.name.split("/"))
        path = "" if self.base_url else f"/models/{model}/pipeline/feature-extraction"
        return self._matrix(self._post(path, body), len(batch))

    def _missing(self) -> str | None:
        return None if self.query_prompt_name or self.document_prompt_name else super()._missing()
