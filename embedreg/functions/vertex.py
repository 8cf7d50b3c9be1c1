"""The `vertex` function: Google's text models on Vertex AI, with the credentials that google-auth finds."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.errors import ConfigError
from embedreg.runtime.remote import http
from embedreg.runtime.remote.answers import Refusal
from embedreg.runtime.remote.vendor import Model, Vendor, VendorFunction
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    from typing import Self

__all__ = ["VertexEmbeddings"]

MODELS = {
    "gemini-embedding-001": Model(3072, (768, 1536), 2048),
    "text-embedding-005": Model(768, (256, 512), 2048, request_tokens=20_000),
    "text-embedding-004": Model(768, (256, 512), 2048, request_tokens=20_000),
    "text-multilingual-embedding-002": Model(768, (256, 512), 2048, request_tokens=20_000),
}
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_loading = threading.Lock()


class VertexEmbeddings(VendorFunction):
    """Google's text embedding models on Vertex AI.

    Attributes:
        name: the model.
        project: the Google Cloud project. None: that of the credentials.
        location: the region.
        dim: request vectors of this width. None: the model's own.
        source_task_type, query_task_type: the task of sources and queries.
        truncate: whether a text over the model's limit is cut off; otherwise it is refused.
        base_url: another address. None: the region's.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "vertex"
    traits: ClassVar[Traits] = Traits(
        requires=("google.auth", "httpx2"), extra="vertex", remote=True, retry=False, window=8192, concurrency=4
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Vertex AI", models=MODELS, needs_key=False, max_inputs=250, docs="Vertex AI: Text embeddings API"
    )

    name: str = "gemini-embedding-001"
    project: str | None = None
    location: str = "us-central1"
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    source_task_type: str = "RETRIEVAL_DOCUMENT"
    query_task_type: str = "RETRIEVAL_QUERY"
    truncate: bool = True
    base_url: str | None = None
    batch_size: int = Field(default=100, ge=1)

    _login: Any = PrivateAttr(default=None)
    _token: str | None = PrivateAttr(default=None)  # the last one that was sent, to keep it out of messages

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["project", "location"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        location = self.__dict__["location"]
        if not location.replace("-", "").isalnum() or not location.isascii():
            raise ValueError("location is a region's name, as us-central1")
        return self

    def _endpoint(self) -> str:
        if self.base_url:
            return super()._endpoint()
        prefix = "" if self.location == "global" else f"{self.location}-"
        return f"https://{prefix}aiplatform.googleapis.com"

    def _credentials(self) -> tuple[Any, str]:
        """Return google-auth's credentials, valid now, and the project.

        Raises:
            ConfigError: there is no project.
        """
        self._refuse_foreign("a token of this machine's Google credentials")
        auth = attempt_import_or_raise("google.auth", "google-auth", extra="vertex")
        transport = attempt_import_or_raise("google.auth.transport.requests", "google-auth", extra="vertex")
        with _loading:
            if self._login is None:
                self._login = auth.default(scopes=[SCOPE])
            credentials, project = self._login
            if not credentials.valid:
                credentials.refresh(transport.Request())
        if not (self.project or project):
            raise ConfigError("the Google credentials name no project.", "create(project='my-project')")
        return credentials, self.project or project

    def _credentials_hint(self) -> str:
        return "log in with an account that may use Vertex AI in the project: gcloud auth application-default login"

    def _roles(self) -> tuple[str, str]:
        return self.query_task_type, self.source_task_type

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        credentials, project = self._credentials()
        self._token = credentials.token
        model = "/".join(map(http.in_path, ("projects", project, "locations", self.location)))
        path = f"/v1beta1/{model}/publishers/google/models/{http.in_path(self.name)}"
        headers = {"Authorization": f"Bearer {self._token}"}
        task = self.query_task_type if role == "query" else self.source_task_type
        parameters: dict[str, Any] = {"autoTruncate": self.truncate}
        if self.dim is not None:
            parameters["outputDimensionality"] = self.dim
        if not self.name.startswith("gemini-"):
            instances = [{"content": text, "task_type": task} for text in batch]
            body: dict[str, Any] = {"instances": instances, "parameters": parameters}
            found = self._field(self._post(f"{path}:predict", body, **headers), "predictions")
            items = [self._field(item, "embeddings") for item in found] if isinstance(found, list) else []
            counts = [self._field(item, "statistics", "token_count") for item in items]
            tokens = sum(counts) if counts and all(isinstance(count, int) for count in counts) else None
            return self._matrix([self._field(item, "values") for item in items], len(batch), tokens)
        config = {"taskType": task, **parameters}
        requests = [{"content": {"parts": [{"text": text}]}, "embedContentConfig": config} for text in batch]
        if len(batch) == 1:  # as Google's client does
            answer = self._post(f"{path}:embedContent", requests[0], **headers)
            found = [self._field(answer, "embedding")]
        else:
            answer = self._post(f"{path}:batchEmbedContents", {"requests": requests}, **headers)
            found = self._field(answer, "embeddings")
        vectors = [self._field(item, "values") for item in found] if isinstance(found, list) else None
        return self._matrix(vectors, len(batch), self._field(answer, "usageMetadata", "promptTokenCount"))

    def explain(self, exc: Exception) -> Refusal | None:
        if type(exc).__module__.startswith("google.auth") and getattr(exc, "retryable", None) is False:
            return Refusal("call", str(exc), "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS")
        return super().explain(exc)

    def _account_keys(self) -> list[str]:
        return [*super()._held_secrets(), *filter(None, [self.project])]

    def _held_secrets(self) -> list[str]:
        return [*super()._held_secrets(), *filter(None, [getattr(self, "_token", None)])]
