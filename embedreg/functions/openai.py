"""The `openai` function: OpenAI's embeddings, or any server with the same protocol, through the official SDK.

Over 400 lines: a request, its token limits and the client that sends it share one class's fields.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.errors import CallError, ConfigError, MissingVariableError, UntrustedError, VectorError, Words
from embedreg.runtime.remote import http, prompts
from embedreg.runtime.remote.answers import (
    AnswerError,
    Refusal,
    Usage,
    count_of,
    decode,
    host_of,
    in_order,
    report_usage,
)
from embedreg.runtime.remote.batch_api import FileBatches
from embedreg.runtime.remote.function import RemoteTextFunction, client_key, clients
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.retry import http_status

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

__all__ = ["SERVERS", "AzureOpenAIEmbeddings", "OpenAIEmbeddings"]

log = logging.getLogger("embedreg")

# Model -> its width, and whether `dim` can shorten it.
NDIMS = {
    "text-embedding-ada-002": (1536, False),
    "text-embedding-3-small": (1536, True),
    "text-embedding-3-large": (3072, True),
}
MAX_ROW_TOKENS = 8192  # of each model in NDIMS; other servers reject long texts themselves

NO_KEY = "no-key"  # the SDK requires a key; a server without accounts ignores it

# Environment variables that the SDK reads; a new client is created when one changes.
_ENVIRONMENT = (
    "AZURE_OPENAI_AD_TOKEN",
    "AZURE_OPENAI_API_KEY",
    "AZURE_OPENAI_ENDPOINT",
    "OPENAI_API_KEY",
    "OPENAI_API_VERSION",
    "OPENAI_BASE_URL",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_ORG_ID",
    "OPENAI_PROJECT_ID",
)
_AZURE_KEYS = ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN")
_SECRET_ENVIRONMENT = ("AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_API_KEY")

_TOO_LONG = re.compile(
    r"(?i)maximum (context|input|sequence) length|context[ _]length|too (long|many tokens)|max_tokens_per"
)
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})

_NO_VECTORS = "check that base_url is that of an embeddings endpoint"
_CHECK_SENT = "check base_url, default_headers, and the environment variables that the openai library reads"
_NUMBERS = Words("create(..., encoding_format='float')", "--set encoding_format=float")

TOKENIZER_WAIT_S = 10.0  # tiktoken downloads its table once; without it tokens are estimated
SHORT = 256  # characters: tokens of a shorter row are estimated, since the number of rows limits the request first
COUNTED = 65_536  # characters: the tokens of the rest are extrapolated; eight times the limit of any model


class OpenAIEmbeddings(RemoteTextFunction):
    """OpenAI's embedding models, and those of compatible servers (`base_url`: vLLM, Ollama, LM Studio, gateways).

    Attributes:
        name: the model; on Azure, the deployment.
        dim: request vectors of this width (models from text-embedding-3 on, and servers that support it). None: the
            model's own width; for an unknown model, the server is queried once.
        base_url: the endpoint, including its path such as `/v1`. None: OPENAI_BASE_URL, else OpenAI.
        default_headers: sent with each request; secrets in them only as `$var:`.
        organization: OpenAI's organization.
        api_key: a `$var:` reference. None: OPENAI_API_KEY (on Azure AZURE_OPENAI_API_KEY), as the SDK does, but never
            sent to an endpoint that stored metadata chose.
        use_azure: use Azure OpenAI; without `base_url`, at AZURE_OPENAI_ENDPOINT.
        api_version: Azure's. None: OPENAI_API_VERSION.
        encoding_format: encoding of the vectors in the response: "base64" is exact and a quarter of the size; "float"
            for a server without base64.
        query_prompt, document_prompt: text before queries and sources. Left out, with a `base_url`: what the model is
            known to need, else none.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "openai"  # also where it is imported directly
    traits: ClassVar[Traits] = Traits(
        requires=("openai",),
        extra="openai",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset(
            {"name", "dim", "base_url", "default_headers", "organization", "api_key", "use_azure", "max_retries"}
        ),
        stored_names={"model": "name", "apiKey": "api_key"},
        width_defaults={"name": {1536: "text-embedding-ada-002"}},
    )

    name: str = "text-embedding-ada-002"  # LanceDB's default, which tables that it wrote may omit
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    base_url: str | None = None
    default_headers: dict[str, str] | None = None
    organization: str | None = None
    api_key: str | None = None
    use_azure: bool = False
    api_version: str | None = None
    batch_size: int = Field(default=512, ge=1, le=2048)  # 2048 is OpenAI's limit
    max_batch_tokens: int = Field(default=250_000, ge=1, le=300_000)  # OpenAI's limit is 300k; the rest is a margin
    encoding_format: Literal["base64", "float"] = "base64"
    query_prompt: str | None = None
    document_prompt: str | None = None

    def __init__(self, **config: Any) -> None:
        # OpenAI's own models need no prompts
        super().__init__(**(config if config.get("base_url") is None else prompts.with_known(config)))

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @staticmethod
    def runtime_keys() -> list[str]:
        return [*RemoteTextFunction.runtime_keys(), "encoding_format"]

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["base_url", "default_headers", "use_azure"]  # they decide where the texts and the key are sent

    @staticmethod
    def model_names() -> list[str]:
        """Return the models with a known width."""
        return list(NDIMS)

    @classmethod
    def _facts(cls) -> dict[str, Any]:
        models = {
            name: {"ndims": width, "widths": [], "max_tokens": MAX_ROW_TOKENS} for name, (width, _) in NDIMS.items()
        }
        return {
            "limits": {"inputs": cls.model_fields["batch_size"].default},
            "models": models,
            "keys": ["AZURE_OPENAI_API_KEY" if cls.model_fields["use_azure"].default else "OPENAI_API_KEY"],
            "documentation": "OpenAI API reference: Embeddings",
        }

    @classmethod
    def at(cls, server: str, **config: Any) -> Self:
        """Create the function for a server with OpenAI's protocol, at its usual address on this machine.

        Args:
            server: "infinity", "llama.cpp", "lm-studio", "ollama" or "vllm".
            config: as for `create`; `name`, and another `base_url` if it is elsewhere.
        Raises:
            ConfigError: no such server is known.
        """
        if server not in SERVERS:
            raise ConfigError(
                f"unknown server {server!r}; expected one of {', '.join(SERVERS)}.", "create(base_url=...)"
            )
        return cls.create(**{**SERVERS[server], **config})

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = self.__dict__
        width, shortens = NDIMS.get(fields["name"], (None, True))
        dim, base_url = fields["dim"], fields["base_url"]
        if dim is not None and width is not None and (dim > width or not (shortens or dim == width)):
            raise ValueError(f"{fields['name']} has {width} dimensions, dim={dim} is not available")
        if base_url is not None and not re.match(r"https?://[^/\s]|\$var:", base_url):
            raise ValueError("base_url must begin with https:// or http:// and a host")
        for name in ("base_url", "azure_endpoint"):
            if re.search(r"[\s?#]", fields.get(name) or ""):
                raise ValueError(f"{name} ends at its path, without white space, '?' or '#'")
        return self

    # -- the width --------------------------------------------------------------------------------------------------

    def ndims(self) -> int:
        """Return the width: `dim`, or the model's own; for an unknown model, query the server once.

        Raises:
            CallError: the query failed.
        """
        known = self._known_ndims()
        if known is not None:
            return known
        try:
            super().generate_embeddings(["dimensions"])
        except CallError as exc:
            raise CallError(
                f"the width of {self.name!r} is unknown, and querying the server for it failed: {exc.message}",
                f"create(..., dim=...) sets the width without a query; {exc.hint}",
            ).for_shell(f"--set dim=... sets the width; {exc.shell_hint or exc.hint}") from exc.__cause__
        if self._ndims is None:  # the server refused this text too
            raise CallError(
                f"the server returns no vectors for {self.name!r}.", "check the model's name and the endpoint"
            )
        return int(self._ndims)

    def _known_ndims(self) -> int | None:
        if self.dim is not None:
            return self.dim
        if self.name in NDIMS:
            return NDIMS[self.name][0]
        if self._ndims is not None:
            return int(self._ndims)
        declared = self._declared.get("ndims")
        plausible = isinstance(declared, int) and not isinstance(declared, bool) and 0 < declared <= MAX_NDIMS
        return declared if plausible else None

    # -- one request ------------------------------------------------------------------------------------------------

    def vector_traits(self) -> dict[str, Any]:
        """Return the traits of the vectors; `prompts` is None if queries and sources are embedded alike."""
        query, document = prompts.prompt_of(self, "query"), prompts.prompt_of(self, "source")
        both = None if query == document else {"query": query, "document": document}
        return {**super().vector_traits(), "prompts": both}

    def _remarks(self) -> list[str]:
        note = prompts.missing(self)
        return [*super()._remarks(), *([note] if note else [])]

    def request(self, batch: list[str], role: Role = "source") -> np.ndarray:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        client, body = self._client(), self._body(batch, role)
        try:
            answer = client.embeddings.create(**body)
        except ValueError as exc:
            if type(exc) is not ValueError:  # of the library, or JSON's own
                raise
            raise AnswerError("the server's response has a number of thousands of digits.", _NO_VECTORS) from None
        if isinstance(answer, str) and answer.lstrip().startswith("<"):
            raise CallError("the endpoint returned a web page.", "check base_url: for most servers it ends with /v1")
        return self._vectors_of(answer, len(batch))

    def _body(self, batch: list[str], role: Role) -> dict[str, Any]:
        texts = prompts.prompted(self, batch, role)
        body: dict[str, Any] = {"input": texts, "model": self.name, "encoding_format": self.encoding_format}
        if self.dim is not None and NDIMS.get(self.name, (None, True))[0] != self.dim:
            body["dimensions"] = self.dim
        return body

    def _vectors_of(self, answer: Any, m: int) -> np.ndarray:
        """Return the vectors of a response, an object of the SDK or a dict, and report its usage."""
        import numpy as np

        items = in_order(_field(answer, "data"), m, _NO_VECTORS)
        vectors = [decode(_field(item, "embedding"), _NUMBERS) for item in items]
        widths = {len(vector) for vector in vectors}
        expected = self._known_ndims()
        if len(widths) > 1:
            raise AnswerError(
                f"the server's response contains vectors of {', '.join(map(str, sorted(widths)))} dimensions.",
                "check which model it serves",
            )
        if expected is not None and widths != {expected}:
            raise VectorError(
                f"{self.name!r} returned vectors of {', '.join(map(str, sorted(widths)))} dimensions"
                f"{f', expected {expected}' if expected is not None else ''}.",
                "leave dim out if the server cannot shorten vectors, or check which model it serves",
            )
        self._ndims = widths.pop()
        report_usage(Usage(1, m, count_of(_field(_field(answer, "usage"), "total_tokens"))))
        return np.stack(vectors)

    def batch_api(self) -> Any:
        number_bytes = 5.4 if self.encoding_format == "base64" else 22.0
        return None if self.use_azure else FileBatches(self, "OpenAI", number_bytes)

    def _request_bytes(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        upload: tuple[str, bytes] | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send a request of the batch API through the SDK's client; as `VendorFunction._request_bytes`."""
        httpx2 = attempt_import_or_raise("httpx2", extra="openai")
        options: dict[str, Any] = {"headers": headers or {}, "timeout": max(self.timeout_s, timeout_s or 0.0)}
        client = self._client()
        if method == "GET":
            response = client.get(path, cast_to=httpx2.Response, options=options)
        else:
            files = None if upload is None else [("file", (*upload, "application/jsonl"))]
            if files:
                options["headers"]["Content-Type"] = "multipart/form-data"
            response = client.post(path, cast_to=httpx2.Response, body=body, files=files, options=options)
        return bytes(response.content)

    def explain(self, exc: Exception) -> Refusal | None:
        status, code, param = http_status(exc), getattr(exc, "code", None), getattr(exc, "param", None)
        message = self.words_of(exc)
        if isinstance(exc.__cause__, CallError):  # from `_Bounded`; the SDK wraps it in a connection error
            return Refusal("call", exc.__cause__.message, exc.__cause__.hint)
        if (http.unsendable(exc) and status is None) or (exc.__cause__ is not None and http.unsendable(exc.__cause__)):
            return Refusal("call", "the address or a header is not one that can be sent", _CHECK_SENT)
        if code in _NO_CREDIT or getattr(exc, "type", None) in _NO_CREDIT:
            return Refusal("call", message, "the account has no credit or has reached its limit: see the billing page")
        if status in (400, 413, 422):
            if param == "encoding_format":
                return Refusal("call", message, "create(..., encoding_format='float')")
            if param == "dimensions":
                return Refusal("call", message, "leave dim out: this model's vectors cannot be shortened")
            if _TOO_LONG.search(f"{code} {message}"):
                return Refusal("row", message)
        if status == 401 and self._foreign() and self.api_key is None:
            hint = "keys of this environment are not sent to an endpoint that stored metadata chose; "
            return Refusal("call", message, hint + "create the same function in your own code to use a key there")
        return super().explain(exc)

    def words_of(self, exc: Exception) -> str:
        body = getattr(exc, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        if isinstance(message, str):
            return message
        # of a connection, the library reports no more than "Connection error."
        cause = exc.__cause__ if http_status(exc) is None else None
        return str(cause or "") or str(exc)

    # -- tokens -----------------------------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text: exact if tiktoken knows the model, else an upper estimate."""
        if len(text) <= SHORT:
            return super().count_tokens(text)
        exact = self._exact_tokens(text)
        return super().count_tokens(text) if exact is None else exact

    def max_tokens(self) -> int | None:
        """Return the maximum number of tokens of a text; None for an unknown model."""
        return MAX_ROW_TOKENS if self.name in NDIMS else None

    def row_problem(self, text: str) -> str | None:
        if self.name not in NDIMS or len(text.encode()) <= MAX_ROW_TOKENS:  # a token has at least one byte
            return None
        tokens = self._exact_tokens(text)
        if tokens is None or tokens <= MAX_ROW_TOKENS:
            return None
        return f"the text has {tokens} tokens, {self.name} takes {MAX_ROW_TOKENS}"

    def _exact_tokens(self, text: str) -> int | None:
        tokenizer = _tokenizer(self.name) if self.name in NDIMS else None
        if tokenizer is None:
            return None
        tokens = len(tokenizer.encode_ordinary(text[:COUNTED]))
        return tokens if len(text) <= COUNTED else tokens * len(text) // COUNTED

    # -- the client -------------------------------------------------------------------------------------------------

    def _foreign(self) -> bool:
        """Return whether stored metadata, not the reader's own code, chose the endpoint."""
        return self.from_metadata and bool(self.base_url or self.default_headers)

    def _settings(self) -> dict[str, Any]:
        """Return the arguments of the SDK's client."""
        settings: dict[str, Any] = {
            "base_url": self.base_url,
            "default_headers": self.default_headers,
            "organization": self.organization,
            "api_key": self._key(),
            "timeout": self.timeout_s,
        }
        if self.use_azure:
            settings["api_version"] = self.api_version
        return settings

    def _client(self) -> Any:
        """Return the SDK's client for this configuration: one per process, for all threads."""
        settings = self._settings()
        environment = [os.environ.get(name) for name in _ENVIRONMENT]
        content = json.dumps([self.use_azure, self._foreign(), settings, environment], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()  # cache keys may be displayed
        return clients.get(client_key("openai", digest), functools.partial(self._connect, settings))

    def _key(self) -> str | None:
        """Return the key to send, or None to let the SDK find Azure's.

        Raises:
            MissingVariableError: there is no key. UntrustedError: see `_refuse_environment`.
        """
        key = http.key_for_header(self.api_key, "OpenAI") if self.api_key else None
        if self._foreign():
            self._refuse_environment()
            return key or NO_KEY
        if key is not None:
            return key
        if self.use_azure:
            if any(map(os.environ.get, _AZURE_KEYS)):
                return None
            raise MissingVariableError(
                f"there is no key for Azure OpenAI: api_key is not set, nor the environment variable "
                f"{' or '.join(_AZURE_KEYS)}.",
                "export AZURE_OPENAI_API_KEY=..., or create(api_key='$var:azure_key') after "
                "embedreg.get_registry().set_var('azure_key', ...)",
            ).for_shell("export AZURE_OPENAI_API_KEY=..., or --set 'api_key=$var:key' --env key=ENVIRONMENT_VARIABLE")
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            return http.key_for_header(key, "OpenAI")
        if self.base_url or os.environ.get("OPENAI_BASE_URL"):
            return NO_KEY
        raise MissingVariableError(
            "there is no key for OpenAI: api_key is not set, nor the environment variable OPENAI_API_KEY.",
            "export OPENAI_API_KEY=..., or create(api_key='$var:openai_key') after "
            "embedreg.get_registry().set_var('openai_key', ...)",
        ).for_shell("export OPENAI_API_KEY=..., or --set 'api_key=$var:key' --env key=ENVIRONMENT_VARIABLE")

    def _refuse_environment(self) -> None:
        """Raise UntrustedError if the SDK would send secrets of this environment to an endpoint of stored metadata."""
        for name in ("OPENAI_CUSTOM_HEADERS", *(["AZURE_OPENAI_AD_TOKEN"] if self.use_azure else [])):
            if os.environ.get(name):
                raise UntrustedError(
                    f"stored metadata chose the endpoint, and the SDK would send {name} of this environment there.",
                    f"unset {name}, or create the same function in your own code first",
                )

    def _connect(self, settings: dict[str, Any]) -> Any:
        openai = attempt_import_or_raise("openai", extra="openai")
        httpx2 = attempt_import_or_raise("httpx2", extra="openai")
        # No redirects: following one would send texts and headers to another host.
        with http.of_this_environment():
            http_client = openai.DefaultHttpxClient(
                follow_redirects=False,
                headers=http.PACKING,
                event_hooks={"response": [http.bound]},
                # never through a proxy, which could read what is not encrypted
                mounts={"http://": httpx2.HTTPTransport()},
            )
        try:
            # embedreg retries, not the SDK: with a log line, a deadline, and separate handling of bad rows.
            client = (openai.AzureOpenAI if self.use_azure else openai.OpenAI)(
                max_retries=0, http_client=http_client, **settings
            )
        except (openai.OpenAIError, ValueError, httpx2.InvalidURL) as exc:
            http_client.close()
            raise ConfigError(
                f"the openai client cannot be created: {str(exc).rstrip('.')}.",
                "set the field or the variable that it names",
            ) from None
        # Not at exit, when sockets are closed anyway, nor in a forked child, since the parent uses them.
        weakref.finalize(client, _close, http_client, os.getpid()).atexit = False
        if self._foreign():
            client.organization, client.project = settings["organization"], None  # not from this environment
        return client

    def _address(self) -> str | None:
        default = os.environ.get("AZURE_OPENAI_ENDPOINT" if self.use_azure else "OPENAI_BASE_URL")
        url = self.base_url or (None if self._foreign() else default)
        return host_of(url or ("" if self.use_azure else "https://api.openai.com"))

    def _held_secrets(self) -> list[str]:
        own = [value for name in _SECRET_ENVIRONMENT if (value := os.environ.get(name))]
        lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
        return [*super()._held_secrets(), *own, *filter(None, (line.partition(":")[2].strip() for line in lines))]


# Servers with the same protocol: where they listen, and what they do not support.
SERVERS: dict[str, dict[str, Any]] = {
    "infinity": {"base_url": "http://localhost:7997"},
    "llama.cpp": {"base_url": "http://localhost:8080/v1", "encoding_format": "float"},
    "lm-studio": {"base_url": "http://localhost:1234/v1", "encoding_format": "float"},
    "ollama": {"base_url": "http://localhost:11434/v1", "encoding_format": "float"},
    "vllm": {"base_url": "http://localhost:8000/v1"},
}


class AzureOpenAIEmbeddings(OpenAIEmbeddings):
    """OpenAI's embedding models on Azure.

    Attributes:
        name: the model that the deployment serves, for its width.
        azure_endpoint: the resource, as https://NAME.openai.azure.com. None: AZURE_OPENAI_ENDPOINT.
        azure_deployment: the deployment. None: `name`.
        api_version: the API's version. None: OPENAI_API_VERSION.
        api_key: a `$var:` reference. None: AZURE_OPENAI_API_KEY.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "azure-openai"
    traits: ClassVar[Any] = replace(OpenAIEmbeddings.traits, stock_fields=None, stored_names={}, width_defaults={})

    use_azure: bool = True
    azure_endpoint: str | None = None
    azure_deployment: str | None = None

    @staticmethod
    def guarded_fields() -> list[str]:
        return [*OpenAIEmbeddings.guarded_fields(), "azure_endpoint"]

    @model_validator(mode="after")
    def _check_azure(self) -> Self:
        if self.__dict__["base_url"] is not None and self.__dict__["azure_endpoint"] is not None:
            raise ValueError("give azure_endpoint or base_url, not both")
        return self

    def _foreign(self) -> bool:
        return super()._foreign() or (self.from_metadata and bool(self.azure_endpoint))

    def _settings(self) -> dict[str, Any]:
        own = {"azure_endpoint": self.azure_endpoint, "azure_deployment": self.azure_deployment}
        return {**super()._settings(), **{name: value for name, value in own.items() if value is not None}}

    def _address(self) -> str | None:
        return host_of(self.azure_endpoint) if self.azure_endpoint else super()._address()


def _field(holder: Any, name: str) -> Any:
    """Return a field of an SDK's object or of a dict; None if there is none."""
    return holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)


def _close(http_client: Any, process: int) -> None:
    if os.getpid() == process:
        http_client.close()


@functools.cache
def _tokenizer(model: str) -> Any:
    """Return tiktoken's encoding of a model, or None if tiktoken or its table is not available."""
    try:
        import tiktoken
    except ImportError:
        return None
    loaded: list[Any] = []

    def load() -> None:
        try:
            loaded.append(tiktoken.encoding_for_model(model))
        except Exception as exc:  # noqa: BLE001 (any error of the download or its cache: tokens are then estimated)
            log.debug("tiktoken has no table for %s (%s): tokens are estimated", model, type(exc).__name__)

    # tiktoken downloads without a timeout, which can hang for minutes behind a firewall.
    thread = threading.Thread(target=load, daemon=True, name="embedreg-tokenizer")
    thread.start()
    thread.join(TOKENIZER_WAIT_S)
    return loaded[0] if loaded else None
