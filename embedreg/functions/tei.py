"""The `tei` function: a text-embeddings-inference server, by its own API.

The server describes what it runs: `/info` has the model's name, its commit and the limits of a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote import http
from embedreg.runtime.remote.answers import Refusal, count_of
from embedreg.runtime.remote.prompts import PromptedFunction
from embedreg.runtime.remote.vendor import Vendor
from embedreg.support.retry import http_status

if TYPE_CHECKING:
    from typing import Self

__all__ = ["TextEmbeddingsInference"]


class TextEmbeddingsInference(PromptedFunction):
    """A text-embeddings-inference server.

    Attributes:
        base_url: the server.
        name: the model that the server has to run; a request to a server with another one fails. None: any.
        normalize: whether vectors have unit length.
        truncate: whether a text over the model's limit is cut off; otherwise its row fails.
        query_prompt_name, document_prompt_name: names of the model's own prompts, as "query". None: none.
        query_prompt, document_prompt: text before queries and sources. Left out: what the model is known to need.
        dim: request vectors of this width. None: the model's own, for which the server is queried once.
        api_key: a `$var:` reference, for a server that wants a key.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "tei"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",), extra="tei", remote=True, retry=False, window=8192, concurrency=4
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="text-embeddings-inference", needs_key=False, docs="text-embeddings-inference: HTTP API"
    )

    base_url: str = "http://localhost:8080"
    name: str | None = None
    normalize: bool = True
    truncate: bool = False
    query_prompt_name: str | None = None
    document_prompt_name: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    api_key: str | None = None

    _info: dict[str, Any] | None = PrivateAttr(default=None)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        return self

    def _described(self) -> dict[str, Any]:
        """Return the server's description of itself, requested once; empty if there is none."""
        if self._info is None:
            url = f"{self._endpoint()}/info"
            headers = self._key_headers()
            found = http.exchange(url, method="GET", headers=headers, timeout_s=self.timeout_s, extra=self.traits.extra)
            self._info = found if isinstance(found, dict) else {}
        return self._info

    def model_identity(self) -> str | None:
        """Return the commit of the model that the server runs; None if it does not report one."""
        sha = self._described().get("model_sha")
        return sha if isinstance(sha, str) and sha else None

    def _request_limits(self) -> tuple[int, int]:
        inputs, tokens = super()._request_limits()
        if self._info is None:  # known from the first request on
            return min(inputs, 32), tokens  # the server's default
        most = count_of(self._info.get("max_client_batch_size")) or inputs
        return min(inputs, most), min(tokens, count_of(self._info.get("max_batch_tokens")) or tokens)

    def _roles(self) -> tuple[str, str]:
        query, document = super()._roles()
        return self.query_prompt_name or query, self.document_prompt_name or document

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        served = self._described().get("model_id")
        if self.name is not None and served != self.name:
            raise self._other_model(served)
        body = {"inputs": self._prompted(batch, role), "normalize": self.normalize, "truncate": self.truncate}
        optional = {
            "prompt_name": self.query_prompt_name if role == "query" else self.document_prompt_name,
            "dimensions": self.dim,
        }
        body |= {name: value for name, value in optional.items() if value is not None}
        return self._matrix(self._post("/embed", body), len(batch))

    def _other_model(self, served: Any) -> Exception:
        from embedreg.errors import CallError

        return CallError(f"the server runs {str(served)[:200]!r}, not {self.name!r}.", "check base_url, or name=None")

    def _missing(self) -> str | None:
        return None if self.query_prompt_name or self.document_prompt_name else super()._missing()

    def explain(self, exc: Exception) -> Refusal | None:
        body = getattr(exc, "body", None)
        if http_status(exc) == 413 and self._field(body, "error_type") == "Validation":
            return Refusal("row", self.words_of(exc))  # of older servers: a text that is too long
        return super().explain(exc)
