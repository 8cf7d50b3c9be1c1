"""The `litellm` function: a bridge to the services that the litellm library knows, by `provider/model`.

Where embedreg has a function for a service, that is the better choice: litellm repeats failed requests itself, and
drops arguments that it does not know. By itself it follows redirects with the texts, and with Gemini's key; its
argument for another HTTP client reaches some providers only. So its HTTP libraries follow none while this function
waits for it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.runtime.remote import http
from embedreg.runtime.remote.prompts import PromptedFunction
from embedreg.runtime.remote.vendor import Vendor
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.retry import http_status

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LiteLLMEmbeddings"]


_HTTP_LIBRARIES = ("httpx", "httpx2")  # of litellm's own handlers, and of the openai library
_redirects: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("redirects", default=None)


@contextlib.contextmanager
def _unredirected() -> Iterator[list[int]]:
    """Stop the clients of the loaded HTTP libraries from following redirects in the block; yield their statuses.

    The clients that other code uses at the same time, in other threads and tasks, are not affected.
    """
    for library in filter(None, map(sys.modules.get, _HTTP_LIBRARIES)):
        for client, make in ((library.Client, _watched), (library.AsyncClient, _watched_async)):
            if not hasattr(client.send, "__wrapped__"):
                client.send = make(client.send)
    found: list[int] = []
    token = _redirects.set(found)
    try:
        yield found
    finally:
        _redirects.reset(token)


def _watched(send: Any) -> Any:
    """Wrap a client's `send`, through which all of its requests go."""

    @functools.wraps(send)
    def sent(client: Any, *args: Any, **options: Any) -> Any:
        return _noted(send(client, *args, **_followed(options)))

    return sent


def _watched_async(send: Any) -> Any:
    """Wrap an asynchronous client's `send`; apart from `_watched`, so that it stays a coroutine function for others."""

    @functools.wraps(send)
    async def sent(client: Any, *args: Any, **options: Any) -> Any:
        return _noted(await send(client, *args, **_followed(options)))

    return sent


def _followed(options: dict[str, Any]) -> dict[str, Any]:
    return options if _redirects.get() is None else {**options, "follow_redirects": False}


def _noted(response: Any) -> Any:
    found = _redirects.get()
    if found is not None and response.has_redirect_location:
        found.append(response.status_code)
    return response


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
        litellm: Any = attempt_import_or_raise("litellm", extra="litellm")
        litellm.suppress_debug_info = True  # else it prints advice to stdout, where a command's result is
        optional = {
            "api_base": self._given_address() and self._endpoint(),
            "api_key": self.api_key and http.key_for_header(self.api_key, self.name),
            "dimensions": self.dim,
            **((self.query_options if role == "query" else self.source_options) or {}),
        }
        failure: BridgeError | None = None
        redirects: list[int] = []
        try:
            with _unredirected() as redirects:
                answer = litellm.embedding(
                    model=self.name,
                    input=self._prompted(batch, role),
                    timeout=self.timeout_s,
                    num_retries=0,
                    max_retries=0,
                    **{name: value for name, value in optional.items() if value is not None},
                )
        except Exception as exc:
            # litellm words a redirect that is not followed as a status of 500, which would be repeated
            if (status := redirects[-1] if redirects else http_status(exc)) is None:
                raise
            failure = BridgeError(status, getattr(getattr(exc, "response", None), "headers", None), str(exc))
        optional.clear()  # the key: some tools show the variables of each frame in a traceback
        if failure is not None:  # outside the except block: litellm's error holds the response, and with it the key
            raise failure
        tokens = getattr(getattr(answer, "usage", None), "total_tokens", None)
        return self._listed(
            {"data": [dict(item) for item in answer.data], "usage": {"total_tokens": tokens}}, len(batch)
        )
