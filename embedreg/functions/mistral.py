"""The `mistral` function: Mistral AI's embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.batch_api import PAGE, PAGES, BatchApi, BatchState, FileBatches, Found, listed
from embedreg.runtime.remote.http import in_path
from embedreg.runtime.remote.prompts import PromptedFunction
from embedreg.runtime.remote.vendor import Model, Vendor

if TYPE_CHECKING:
    from typing import Self

__all__ = ["MistralEmbeddings"]

MODELS = {
    "mistral-embed": Model(1024, max_tokens=8192, request_tokens=16_384),
    "codestral-embed": Model(1536, max_tokens=8192, request_tokens=16_384),
}


class MistralEmbeddings(PromptedFunction):
    """Mistral AI's embedding models, which need no prompts: without some, queries and sources are embedded alike.

    Attributes:
        name: the model.
        dim: request vectors of this width (codestral-embed). None: the model's own.
        base_url: another address, with its `/v1`. None: Mistral's.
        api_key: a `$var:` reference. None: MISTRAL_API_KEY.
        query_prompt, document_prompt: text before queries and sources. Left out: what the model is known to need.
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
    query_prompt: str | None = None
    document_prompt: str | None = None
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
        return self._vectors_of(self._post("/embeddings", self._body(batch, role)), len(batch))

    def _body(self, batch: list[str], role: Role) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.name, "input": self._prompted(batch, role)}
        if self.dim is not None and self.dim != (self._model() or Model(0)).ndims:
            body["output_dimension"] = self.dim
        return body

    def _vectors_of(self, answer: Any, m: int) -> Any:
        return self._listed(answer, m)

    def batch_api(self) -> BatchApi:
        return _Batches(self, self.vendor.name)


class _Batches(FileBatches):
    """Mistral's batch jobs. Source: Mistral AI API, Batch. Read, not tried."""

    path: ClassVar[str] = "/batch/jobs"
    states: ClassVar[dict[str, str]] = {
        "SUCCESS": "ended",
        "TIMEOUT_EXCEEDED": "ended",
        "CANCELLED": "cancelled",
        "FAILED": "failed",
    }

    def line(self, place: int, text: str) -> Any:
        body = {name: value for name, value in self.function._body([text], "source").items() if name != "model"}
        return {"custom_id": str(place), "body": body}

    def batch(self, tag: str, file: str) -> dict[str, Any]:
        return {
            "input_files": [file],
            "model": self.function.name,
            "endpoint": "/v1/embeddings",
            "metadata": {"embedreg": tag},
            "timeout_hours": 24,
        }

    def found(self) -> Iterator[Found]:
        for page in range(PAGES):
            items = listed(self.get(f"{self.path}?page={page}&page_size={PAGE}&created_by_me=true"), "data")
            yield from map(self._found, items)
            if len(items) < PAGE:
                return

    def state(self, handle: str) -> BatchState:
        answer = self.get(f"{self.path}/{in_path(handle)}")
        files = [answer.get(name) for name in ("output_file", "error_file")]
        return self._state(answer, answer.get("succeeded_requests"), answer.get("total_requests"), files)
