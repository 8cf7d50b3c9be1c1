"""The `gemini-text` function: Google's Gemini API.

A source is sent as LanceDB's function of this name sends it, so that stored vectors and new ones agree: for the task of
documents in two parts, the first of which is a constant. The models from gemini-embedding-2 on ignore the task; they
expect it in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.instances import metadata_is_building
from embedreg.core.role import Role
from embedreg.runtime.remote import http
from embedreg.runtime.remote.answers import count_of
from embedreg.runtime.remote.batch_api import (
    PAGE,
    PAGES,
    TRANSFER_S,
    BatchApi,
    BatchResult,
    BatchState,
    Found,
    as_object,
    listed,
    name_in,
    place_of,
    time_of,
)
from embedreg.runtime.remote.vendor import Model, Vendor, VendorFunction

if TYPE_CHECKING:
    from typing import Self

__all__ = ["GeminiTextEmbeddings"]

MODELS = {
    "gemini-embedding-001": Model(3072, (128, 256, 512, 768, 1536), 2048),
    "gemini-embedding-2": Model(3072, (128, 256, 512, 768, 1536), 8192),
    "embedding-001": Model(768, retired=""),
    "text-embedding-004": Model(768, retired=""),
}
STOCK_WIDTH = 768  # LanceDB's function sends it where `dim` is not set
_TITLE = "Embedding of a document"  # the first part of a source, as LanceDB's function sends it
_PROMPTS = {"query_prompt": "task: search result | query: ", "document_prompt": "title: none | text: "}
_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")


def _takes_prompts(name: Any) -> bool:
    return isinstance(name, str) and name.removeprefix("models/").startswith("gemini-embedding-2")


class GeminiTextEmbeddings(VendorFunction):
    """Google's Gemini embedding models.

    Attributes:
        name: the model.
        dim: the width of the vectors, always requested. None: 768, as in LanceDB.
        query_task_type, source_task_type: the task, for models up to gemini-embedding-001, as "retrieval_query".
        query_prompt, document_prompt: text before queries and sources, in place of the task: what the models from
            gemini-embedding-2 on expect, and their default there. None: none.
        base_url: another address. None: Google's.
        api_key: a `$var:` reference. None: GOOGLE_API_KEY or GEMINI_API_KEY.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "gemini-text"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",),
        extra="gemini-text",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset({"name", "dim", "query_task_type", "source_task_type", "max_retries", "api_key"}),
    )
    counts_inputs: ClassVar[bool] = True  # Google counts each item of a batch
    vendor: ClassVar[Vendor] = Vendor(
        name="Gemini",
        models=MODELS,
        url="https://generativelanguage.googleapis.com",
        key_names=("GOOGLE_API_KEY", "GEMINI_API_KEY"),
        key_header="x-goog-api-key",
        key_scheme="",
        max_inputs=100,
        docs="Gemini API: Embeddings",
    )

    name: str = "gemini-embedding-001"
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    query_task_type: str = "retrieval_query"
    source_task_type: str = "retrieval_document"
    query_prompt: str | None = None
    document_prompt: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    batch_size: int = Field(default=100, ge=1)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    def __init__(self, **config: Any) -> None:
        # A declaration that embedreg wrote has the prompts; one without them was written by LanceDB, which sends none.
        if _takes_prompts(config.get("name")) and not metadata_is_building():
            config = {**_PROMPTS, **config}
        super().__init__(**config)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        return self

    def _model(self) -> Model | None:
        return MODELS.get(self.name.removeprefix("models/"))

    def _requested_width(self) -> int | None:
        return self.dim or STOCK_WIDTH

    def _prompt(self, role: Role) -> str | None:
        return self.query_prompt if role == "query" else self.document_prompt

    def _remarks(self) -> list[str]:
        if _takes_prompts(self.name) and self.query_prompt is None and self.document_prompt is None:
            return [f"{self.name!r} ignores the task type; query_prompt and document_prompt are what it takes instead"]
        if self.from_metadata and not self._declared and "name" not in self._original_args:
            return [
                "the declaration leaves the model out: LanceDB's default was models/embedding-001 before 0.32, which "
                f"Google has switched off, and is {self.name!r} since; the column's width is that of both"
            ]
        return super()._remarks()

    def _roles(self) -> tuple[str, str]:
        tasks = (self.query_prompt, self.query_task_type), (self.document_prompt, self.source_task_type)
        query, document = (task if prompt is None else prompt for prompt, task in tasks)
        return query, document

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        requests = [self._item(text, role) for text in batch]
        try:
            answer = self._post(f"/v1/{self._place()}:batchEmbedContents", {"requests": requests})
        except http.HttpError as exc:
            exc.retry_after_s = _delay_of(exc.body)
            raise
        items = self._field(answer, "embeddings")
        vectors = [self._field(item, "values") for item in items] if isinstance(items, list) else None
        return self._matrix(vectors, len(batch), self._field(answer, "usageMetadata", "promptTokenCount"))

    def _full_name(self) -> str:
        return self.name if "/" in self.name else f"models/{self.name}"

    def _place(self) -> str:
        return "/".join(map(http.in_path, self._full_name().split("/")))

    def _item(self, text: str, role: Role) -> dict[str, Any]:
        """Return the request for one text."""
        task = self.query_task_type if role == "query" else self.source_task_type
        prompt = self._prompt(role)
        parts = [{"text": (prompt or "") + text}]
        item: dict[str, Any] = {"model": self._full_name(), "outputDimensionality": self._requested_width()}
        if prompt is None:
            if task == "retrieval_document":
                parts.insert(0, {"text": _TITLE})
            if task:
                item["taskType"] = task.upper()
        return {**item, "content": {"parts": parts}}

    def _vectors_of(self, answer: Any, m: int) -> Any:
        """Return the vector of one response of a batch job: (1, d)."""
        tokens = self._field(answer, "usageMetadata", "promptTokenCount") or self._field(answer, "tokenCount")
        return self._matrix([self._field(answer, "embedding", "values")], m, count_of(_number(tokens)))

    def batch_api(self) -> BatchApi:
        return _Batches(self, self.vendor.name)


class _Batches(BatchApi):
    """Gemini's batch jobs, with the requests and their results inline. The display name of a job is its tag.

    Source: Gemini API reference, Batch API (`asyncBatchEmbedContent`). Read, not tried.
    """

    max_bytes: ClassVar[int] = 18 * 2**20  # a request may have 20 MB
    states: ClassVar[dict[str, str]] = {
        "SUCCEEDED": "ended",
        "EXPIRED": "ended",
        "CANCELLED": "cancelled",
        "FAILED": "failed",
    }

    def line(self, place: int, text: str) -> Any:
        return {"request": self.function._item(text, "source"), "metadata": {"key": str(place)}}

    def create(self, tag: str, prepared: Any) -> str:
        batch = {
            "displayName": tag,
            "model": self.function._full_name(),
            "inputConfig": {"requests": {"requests": prepared}},
        }
        path = f"/v1beta/{self.function._place()}:asyncBatchEmbedContent"
        return name_in(self.post(path, {"batch": batch}, timeout_s=TRANSFER_S), "name")

    def found(self) -> Iterator[Found]:
        token = ""
        for _ in range(PAGES):
            answer = self.get(f"/v1beta/batches?pageSize={PAGE}{token}")
            for item in listed(answer, "operations"):
                metadata = item.get("metadata") or {}
                tag = str(metadata.get("displayName") or "")
                yield Found(name_in(item, "name"), tag, time_of(metadata.get("createTime")))
            if not (following := answer.get("nextPageToken")):
                return
            token = f"&pageToken={http.in_path(str(following))}"

    def state(self, handle: str) -> BatchState:
        place = "/".join(map(http.in_path, handle.split("/")))
        answer = self.get(f"/v1beta/{place}", TRANSFER_S)
        metadata = answer.get("metadata") or {}
        word = str(metadata.get("state", "")).rpartition("STATE_")[2]
        status: Any = self.states.get(word, "running")
        if answer.get("error"):
            status = "failed"
        counts = metadata.get("batchStats") or {}
        done, total = (count_of(_number(counts.get(name))) or 0 for name in ("successfulRequestCount", "requestCount"))
        response = answer.get("response") or metadata.get("output") or {}
        items = self.function._field(response, "inlinedResponses", "inlinedResponses")
        found = items if isinstance(items, list) else []
        message = http.message_of(answer.get("error"))
        return BatchState(status, done, total, message, metadata.get("displayName"), (), found)

    def results(self, handle: str, state: BatchState, inputs: int) -> Iterator[BatchResult]:
        keys = [self.function._field(as_object(item), "metadata", "key") for item in state.results]
        if not any(keys):  # then they are in the order of the requests
            keys = [*map(str, range(len(keys)))]
        for key, item in zip(keys, state.results, strict=True):
            error, response = item.get("error"), item.get("response")
            if (place := place_of(key)) is not None:
                code = _number(error.get("code")) if isinstance(error, dict) else None
                status = _STATUS.get(code or 0, 0) if error or not response else 200
                yield BatchResult(place, status, response, http.message_of(error))


# Google's codes of errors -> HTTP's.
_STATUS = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 12: 501, 13: 500, 14: 503, 16: 401, 400: 400, 404: 404}


def _number(value: Any) -> int | None:
    """Return a count, which Google's JSON has as a text."""
    return int(value) if isinstance(value, int | str) and str(value).isdecimal() and len(str(value)) < 16 else None


def _delay_of(body: Any) -> float | None:
    """Return the seconds to wait in an error's details (`RetryInfo`), where Google puts them instead of a header."""
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    for item in details if isinstance(details, list) else []:
        text = item.get("retryDelay") if isinstance(item, dict) else None
        if isinstance(text, str) and (found := _DELAY.fullmatch(text)):
            return float(found[1])
    return None
