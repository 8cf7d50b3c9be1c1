"""The `watsonx` function: IBM watsonx.ai's embeddings.

A request needs a token, which IBM's identity service issues for a key; it is kept until it expires.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.errors import CallError, ConfigError
from embedreg.runtime.remote import http
from embedreg.runtime.remote.connections import client_key, clients
from embedreg.runtime.remote.prompts import PromptedFunction
from embedreg.runtime.remote.vendor import Model, Vendor

if TYPE_CHECKING:
    from typing import Self

__all__ = ["WatsonxEmbeddings"]

MODELS = {
    "ibm/granite-embedding-278m-multilingual": Model(768, max_tokens=512),
    "ibm/slate-125m-english-rtrvr-v2": Model(768, max_tokens=512),
    "ibm/slate-30m-english-rtrvr-v2": Model(384, max_tokens=512),
    "intfloat/multilingual-e5-large": Model(1024, max_tokens=512),
    "ibm/slate-125m-english-rtrvr": Model(768, max_tokens=512),
    "ibm/slate-30m-english-rtrvr": Model(384, max_tokens=512),
    "sentence-transformers/all-minilm-l6-v2": Model(384, max_tokens=256),
    "sentence-transformers/all-minilm-l12-v2": Model(384, max_tokens=256),
}
VERSION = "2024-05-02"  # the API's, a date
IDENTITY = "https://iam.cloud.ibm.com"
_EARLY_S = 60  # a token is replaced this long before it expires


class _Token:
    """A token, and until when it is used, by `time.monotonic`."""

    def __init__(self, text: str, until: float) -> None:
        self.text, self.until = text, until


class WatsonxEmbeddings(PromptedFunction):
    """IBM watsonx.ai's embedding models.

    Attributes:
        name: the model.
        api_key: a `$var:` reference. None: WATSONX_API_KEY.
        project_id, space_id: one of them. None for both: WATSONX_PROJECT_ID or WATSONX_SPACE_ID.
        url: the address of the region. None: us-south.
        params: parameters of the request, such as {"truncate_input_tokens": 512}; without that one, a longer text is
            refused.
        iam_url: another identity service, which is sent the key. None: IBM Cloud's.
        query_prompt, document_prompt: text before queries and sources. None: none, as in LanceDB.
        dim: the width of a model that is not known here; left out, the server is queried once.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "watsonx"
    traits: ClassVar[Traits] = Traits(
        requires=("httpx2",),
        extra="watsonx",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset({"name", "api_key", "project_id", "space_id", "url", "params", "max_retries"}),
        width_defaults={"name": {768: "ibm/slate-125m-english-rtrvr"}},
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="watsonx",
        models=MODELS,
        url="https://us-south.ml.cloud.ibm.com",
        address_field="url",
        key_names=("WATSONX_API_KEY",),
        max_inputs=1000,
        docs="watsonx.ai API: Text embeddings",
    )

    name: str = "ibm/slate-125m-english-rtrvr"
    api_key: str | None = None
    project_id: str | None = None
    space_id: str | None = None
    url: str | None = None
    params: dict[str, Any] | None = None
    iam_url: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)

    _token: str | None = PrivateAttr(default=None)  # the last one that was sent, to keep it out of messages

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        if self.__dict__["project_id"] and self.__dict__["space_id"]:
            raise ValueError("give project_id or space_id, not both")
        return self

    def _foreign(self) -> bool:
        return self.from_metadata and bool(self._given_address() or self.iam_url)

    def _place(self) -> dict[str, str]:
        """Return the project or space of the requests."""
        found = {"project_id": self.project_id, "space_id": self.space_id}
        if not any(found.values()):
            found = {name: os.environ.get(f"WATSONX_{name.upper()}") for name in found}
        given = {name: value for name, value in found.items() if value}
        if len(given) != 1:
            what = (
                "neither a project nor a space is set" if not given else "both WATSONX_PROJECT_ID and _SPACE_ID are set"
            )
            raise ConfigError(
                f"watsonx needs one project or space, and {what}.",
                "create(project_id='...'), or create(space_id='...')",
            ).for_shell("--set project_id=..., or --set space_id=...")
        return given

    def _key_headers(self) -> dict[str, str]:
        headers = super()._key_headers()
        if not headers:
            return {}  # a server that wants no key
        key = headers["Authorization"].removeprefix("Bearer ")
        identity = http.endpoint(self.iam_url or IDENTITY, "iam_url")
        digest = hashlib.sha256(key.encode()).hexdigest()  # cache keys may be displayed
        place = client_key("watsonx", identity, digest)
        token = clients.get(place, functools.partial(self._fetch, identity, key))
        if time.monotonic() >= token.until:
            fresh = self._fetch(identity, key)
            token.text, token.until = fresh.text, fresh.until
        self._token = token.text
        return {"Authorization": f"Bearer {token.text}"}

    def _fetch(self, identity: str, key: str) -> _Token:
        """Exchange the key for a token."""
        form = {"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": key}
        url = f"{identity}/identity/token"
        answer = http.exchange(url, form=form, headers={}, timeout_s=self.timeout_s, extra=self.traits.extra)
        text, seconds = self._field(answer, "access_token"), self._field(answer, "expires_in")
        if not isinstance(text, str) or not text.isascii() or not text.isprintable():
            raise CallError("the identity service returned no token.", "check iam_url and the key")
        lasts_s = seconds if isinstance(seconds, int | float) else 600
        return _Token(text, time.monotonic() + max(0.0, lasts_s - _EARLY_S))

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        self._key()  # first: what is missing is named in this order
        body: dict[str, Any] = {"model_id": self.name, "inputs": self._prompted(batch, role), **self._place()}
        if self.params:
            body["parameters"] = self.params
        answer = self._post(f"/ml/v1/text/embeddings?version={VERSION}", body)
        results = self._field(answer, "results")
        vectors = [self._field(item, "embedding") for item in results] if isinstance(results, list) else None
        return self._matrix(vectors, len(batch), self._field(answer, "input_token_count"))

    def _account_keys(self) -> list[str]:
        return super()._held_secrets()

    def _held_secrets(self) -> list[str]:
        return [*super()._held_secrets(), *filter(None, [getattr(self, "_token", None)])]
