"""The `gemini-text` function: Google's Gemini API.

A source is sent as LanceDB's function of this name sends it, so that stored vectors and new ones agree: for the task of
documents in two parts, the first of which is a constant. The models from gemini-embedding-2 on ignore the task; they
want it in the text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.instances import metadata_is_building
from embedreg.core.role import Role
from embedreg.runtime.remote import http
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
            gemini-embedding-2 on want, and their default there. None: none.
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
        task = self.query_task_type if role == "query" else self.source_task_type
        prompt = self._prompt(role)
        model = self.name if "/" in self.name else f"models/{self.name}"
        requests = []
        for text in batch:
            parts = [{"text": (prompt or "") + text}]
            item: dict[str, Any] = {"model": model, "outputDimensionality": self._requested_width()}
            if prompt is None:
                if task == "retrieval_document":
                    parts.insert(0, {"text": _TITLE})
                if task:
                    item["taskType"] = task.upper()
            requests.append({**item, "content": {"parts": parts}})
        try:
            place = "/".join(map(http.in_path, model.split("/")))
            answer = self._post(f"/v1/{place}:batchEmbedContents", {"requests": requests})
        except http.HttpError as exc:
            exc.retry_after_s = _delay_of(exc.body)
            raise
        items = self._field(answer, "embeddings")
        vectors = [self._field(item, "values") for item in items] if isinstance(items, list) else None
        return self._matrix(vectors, len(batch), self._field(answer, "usageMetadata", "promptTokenCount"))


def _delay_of(body: Any) -> float | None:
    """Return the seconds to wait in an error's details (`RetryInfo`), where Google puts them instead of a header."""
    error = body.get("error") if isinstance(body, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    for item in details if isinstance(details, list) else []:
        text = item.get("retryDelay") if isinstance(item, dict) else None
        if isinstance(text, str) and (found := _DELAY.fullmatch(text)):
            return float(found[1])
    return None
