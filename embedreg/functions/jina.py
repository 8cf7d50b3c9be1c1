"""The `jina` function: Jina AI's embeddings of texts, and of images by its models that take them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.answers import AnswerError, count_of
from embedreg.runtime.remote.batch_api import (
    TRANSFER_S,
    BatchApi,
    BatchResult,
    BatchState,
    Found,
    listed,
    name_in,
    result_of,
    time_of,
)
from embedreg.runtime.remote.http import in_path, message_of
from embedreg.runtime.remote.pictures import Picture, checked, picture_of
from embedreg.runtime.remote.vendor import Model, Vendor
from embedreg.runtime.remote.vendor_images import MultimodalFunction

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
    "jina-embeddings-v5-text-small": Model(1024, max_tokens=32_768),
}
_OF_IMAGES = ("jina-clip-v1", "jina-clip-v2", "jina-embeddings-v4")
_MAX_BYTES, _MAX_PIXELS = 5 * 10**6, 16_000_000  # of a picture that is not sent as it came
_BATCHED = ("jina-embeddings-v5-text-nano", "jina-embeddings-v5-text-small")
_REQUEST = re.compile("request-([0-9]{1,8})")


class JinaEmbeddings(MultimodalFunction):
    """Jina AI's embedding models, for texts; the models of images and texts take images too, as LanceDB sends them.

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
        width_defaults={"name": {768: "jina-clip-v1"}},
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

    def _takes_images(self) -> bool:
        return self.name in _OF_IMAGES or "clip" in self.name

    def _picture(self, value: Any, from_query: bool) -> Picture:
        if isinstance(value, bytes):
            return checked(value)
        return picture_of(value, from_query=from_query, max_bytes=_MAX_BYTES, max_pixels=_MAX_PIXELS)

    def request(self, batch: list[Any], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        return self._vectors_of(self._post("/embeddings", self._body(batch, role)), len(batch))

    def _body(self, batch: list[Any], role: Role) -> dict[str, Any]:
        body: dict[str, Any] = {"input": batch, "model": self.name}
        if any(isinstance(each, Picture) for each in batch):
            body["input"] = [{"image": each.data} if isinstance(each, Picture) else {"text": each} for each in batch]
        optional = {"task": self.query_task if role == "query" else self.source_task, "dimensions": self.dim}
        return body | {name: value for name, value in optional.items() if value is not None}

    def _vectors_of(self, answer: Any, m: int) -> Any:
        return self._listed(answer, m)

    def batch_api(self) -> BatchApi | None:
        return _Batches(self, self.vendor.name) if self.name in _BATCHED else None


class _Batches(BatchApi):
    """Jina's batches, with the inputs inline; it keeps no tags, so a lost one is known by its time and its inputs.

    Source: Jina AI's description of its API for models (docs.jina.ai), Batch Embeddings API. Read, not tried.
    """

    max_inputs: ClassVar[int] = 10_000
    states: ClassVar[dict[str, str]] = {"completed": "ended", "cancelled": "cancelled", "failed": "failed"}

    def line(self, place: int, text: str) -> Any:
        return text

    def create(self, tag: str, prepared: Any) -> str:
        body = self.function._body([*prepared], "source")
        return name_in(self.post("/batch/embeddings", body, {"Idempotency-Key": tag}, TRANSFER_S), "batch_id")

    def found(self) -> Iterator[Found]:
        answer = self.get("/batches")
        items = [*listed(answer, "data"), *listed(answer, "batches")]
        for item in sorted(items, key=lambda item: -time_of(item.get("created_at"))):
            inputs = count_of(self.function._field(item, "stats", "total")) or 0
            yield Found(name_in(item, "batch_id"), None, time_of(item.get("created_at")), inputs)

    def state(self, handle: str) -> BatchState:
        answer = self.get(f"/batch/{in_path(handle)}")
        status: Any = self.states.get(str(answer.get("status")), "running")
        done, total, failed = (
            count_of(self.function._field(answer, "stats", name)) or 0 for name in ("completed", "total", "failed")
        )
        outputs = (f"/batch/{in_path(handle)}/output", *([f"/batch/{in_path(handle)}/errors"] if failed else []))
        return BatchState(status, done, total, message_of(answer.get("error")), None, outputs)

    def results(self, handle: str, state: BatchState, inputs: int) -> Iterator[BatchResult]:
        lines = [
            (int(found[1]), line)
            for path in state.outputs
            for line in self.lines_at(path)
            if (found := _REQUEST.fullmatch(str(line.get("custom_id", ""))))
        ]
        numbers = {number for number, _ in lines}
        first = 0 if 0 in numbers else 1  # its documents show both
        if (not first and inputs in numbers) or (first and lines and inputs not in numbers):
            raise AnswerError(
                f"the results of batch {handle} cannot be matched with its inputs.", "embed without the batch API"
            )
        for number, line in lines:
            yield result_of(number - first, line)
