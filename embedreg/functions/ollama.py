"""The `ollama` function: models of an Ollama server, by its own API.

Ollama's `/v1` is OpenAI's protocol: the function `openai` takes that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.errors import Words
from embedreg.runtime.remote import http
from embedreg.runtime.remote.answers import Refusal
from embedreg.runtime.remote.prompts import PromptedFunction
from embedreg.runtime.remote.vendor import Model, Vendor
from embedreg.security.variables import binding
from embedreg.support.retry import http_status

if TYPE_CHECKING:
    from typing import Self

__all__ = ["OllamaEmbeddings"]

MODELS = {
    "nomic-embed-text": Model(768),
    "mxbai-embed-large": Model(1024),
    "all-minilm": Model(384),
    "bge-m3": Model(1024),
}
PORT = 11434
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def _url(host: str) -> str:
    """Return a host as Ollama's clients read it: without a scheme it is http, without both its own port."""
    if _SCHEME.match(host):
        return host
    return f"http://{host}" if re.search(r":\d+(/|$)", host) else f"http://{host}:{PORT}"


class OllamaEmbeddings(PromptedFunction):
    """Embedding models of an Ollama server.

    Attributes:
        name: the model, as `ollama pull` takes it.
        host: the server.
        options: Ollama's options of a model, such as {"num_ctx": 2048}.
        keep_alive: how long the server keeps the model loaded: seconds, or a text such as "5m".
        ollama_client_kwargs: settings of Ollama's Python client; of them `headers` and `timeout` are used.
        dim: request vectors of this width. None: the model's own; for an unknown model, the server is queried once.
        query_prompt, document_prompt: text before queries and sources. None: none, as in LanceDB.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "ollama"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",),
        extra="ollama",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset({"name", "host", "options", "keep_alive", "ollama_client_kwargs", "max_retries"}),
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Ollama", models=MODELS, address_field="host", needs_key=False, docs="Ollama API: Generate embeddings"
    )

    name: str = "nomic-embed-text"
    host: str = "http://localhost:11434"
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    ollama_client_kwargs: dict[str, Any] | None = {}  # noqa: RUF012 (a field; LanceDB's default)
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    query_prompt: str | None = None
    document_prompt: str | None = None
    batch_size: int = Field(default=64, ge=1)  # it answers when all are done: on a CPU, more would take minutes
    concurrency: int = Field(default=2, ge=1, le=64)

    @staticmethod
    def runtime_keys() -> list[str]:
        return [*PromptedFunction.runtime_keys(), "keep_alive"]

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["host", "ollama_client_kwargs"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        host = self.__dict__["host"]
        if "$var:" not in host:
            http.endpoint(_url(host), "host")
        unknown = set(self.__dict__["ollama_client_kwargs"] or {}) - {"headers", "timeout", "follow_redirects"}
        if unknown:
            raise ValueError(f"ollama_client_kwargs: {', '.join(sorted(unknown))} is not supported")
        return self

    def _model(self) -> Model | None:
        return MODELS.get(self.name.removesuffix(":latest"))

    def _endpoint(self) -> str:
        return http.endpoint(_url(self.host), "host")

    def _key_headers(self) -> dict[str, str]:
        headers = (self.ollama_client_kwargs or {}).get("headers") or {}
        return {str(name): str(value) for name, value in headers.items()}

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        body: dict[str, Any] = {"model": self.name, "input": self._prompted(batch, role)}
        optional = {"options": self.options, "keep_alive": self.keep_alive, "dimensions": self.dim}
        body |= {name: value for name, value in optional.items() if value is not None}
        answer = self._post("/api/embed", body)
        tokens = self._field(answer, "prompt_eval_count")
        return self._matrix(self._field(answer, "embeddings"), len(batch), tokens)

    def _credentials_hint(self) -> str:
        # Ollama itself asks for no key
        header = "{'headers': {'Authorization': '$var:my_header'}}"
        lead = "a proxy before the server asks for credentials, which go into a header: "
        return Words(
            f"{lead}create(ollama_client_kwargs={header}) after get_registry().set_var('my_header', 'Bearer ...')",
            f'{lead}--set "ollama_client_kwargs={header}" {binding("my_header", "MY_HEADER")}',
        )

    def explain(self, exc: Exception) -> Refusal | None:
        if http_status(exc) == 404:
            return Refusal("call", self.words_of(exc), f"on the server: ollama pull {self.name}")
        return super().explain(exc)
