"""The `litellm` function: a bridge to the services that the litellm library knows, by `provider/model`.

Where embedreg has a function for a service, that is the better choice: litellm repeats failed requests itself, drops
arguments that it does not know, and follows redirects, with the texts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote.prompts import PromptedFunction
from embedreg.runtime.remote.vendor import Vendor
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.retry import http_status

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LiteLLMEmbeddings"]


class BridgeError(Exception):
    """An error response, as litellm words it, without the objects that its errors hold."""

    def __init__(self, status_code: int, headers: Any, message: str) -> None:
        super().__init__(message)
        self.status_code, self.headers = status_code, headers


class LiteLLMEmbeddings(PromptedFunction):
    """Embeddings through the litellm library.

    Attributes:
        name: the provider and the model, as "cohere/embed-v4.0".
        dim: request vectors of this width. None: the model's own, for which the service is queried once.
        source_options, query_options: further arguments of the service, as {"input_type": "search_query"}.
        query_prompt, document_prompt: text before queries and sources. Left out: what the model is known to need.
        api_base: another address.
        api_key: a `$var:` reference. None: the variable that litellm reads for the provider.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "litellm"
    traits: ClassVar[Traits] = Traits(
        requires=("litellm",), extra="litellm", remote=True, retry=False, window=8192, concurrency=4
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="litellm", address_field="api_base", needs_key=False, docs="LiteLLM: Embedding models"
    )

    name: str
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    source_options: dict[str, Any] | None = None
    query_options: dict[str, Any] | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    api_base: str | None = None
    api_key: str | None = None

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["api_base", "query_options", "source_options"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        if "/" not in self.__dict__["name"] and "$var:" not in self.__dict__["name"]:
            raise ValueError("name is a provider and a model, as 'cohere/embed-v4.0'")
        return self

    def _roles(self) -> tuple[str, str]:
        options = (self.query_options, self.source_options)
        query, document = (str(given) if given else "" for given in options)
        return query or super()._roles()[0], document or super()._roles()[1]

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        if self._foreign() and not self.api_key:
            self._refuse_foreign("a key of this environment")
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import fetches a table of prices
        litellm = attempt_import_or_raise("litellm", extra="litellm")
        optional = {
            "api_base": self._given_address() and self._endpoint(),
            "api_key": self.api_key,
            "dimensions": self.dim,
            **((self.query_options if role == "query" else self.source_options) or {}),
        }
        failure: BridgeError | None = None
        try:
            answer = litellm.embedding(
                model=self.name,
                input=self._prompted(batch, role),
                timeout=self.timeout_s,
                num_retries=0,
                max_retries=0,
                **{name: value for name, value in optional.items() if value is not None},
            )
        except Exception as exc:
            if (status := http_status(exc)) is None:
                raise
            failure = BridgeError(status, getattr(getattr(exc, "response", None), "headers", None), str(exc))
        optional.clear()  # the key: some tools show the variables of each frame in a traceback
        if failure is not None:  # outside the except block: litellm's error holds the response, and with it the key
            raise failure
        tokens = getattr(getattr(answer, "usage", None), "total_tokens", None)
        return self._listed(
            {"data": [dict(item) for item in answer.data], "usage": {"total_tokens": tokens}}, len(batch)
        )
