"""The `openai` function: OpenAI's embeddings, or any server that speaks its protocol, through the official SDK."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.errors import CallError, ConfigError, MissingVariableError, UntrustedError, VectorError
from embedreg.runtime.remote.answers import AnswerError, Refusal, host_of
from embedreg.runtime.remote.function import RemoteTextFunction, client_key, clients
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.retry import http_status

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

__all__ = ["OpenAIEmbeddings"]

log = logging.getLogger("embedreg")

# Model -> its own width, and whether `dim` can shorten it.
NDIMS = {
    "text-embedding-ada-002": (1536, False),
    "text-embedding-3-small": (1536, True),
    "text-embedding-3-large": (3072, True),
}
MAX_ROW_TOKENS = 8192  # of each model in NDIMS; other servers say for themselves what is too long

MAX_ANSWER_BYTES = 256 * 2**20  # 2,048 vectors of 4,096 numbers written out, and some more

NO_KEY = "no-key"  # the SDK insists on one; a server without accounts ignores it

# What the SDK reads from the environment by itself, so that a client is made anew when one changes.
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
_SECRET_ENVIRONMENT = ("AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_API_KEY")

_TOO_LONG = re.compile(
    r"(?i)maximum (context|input|sequence) length|context[ _]length|too (long|many tokens)|max_tokens_per"
)
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})

TOKENIZER_WAIT_S = 10.0  # tiktoken fetches its table from the network once; without it the estimate does
SHORT = 256  # characters: so short a row is estimated, since the number of rows fills a request first
COUNTED = 65_536  # characters: more are extrapolated; eight times what any model takes


class OpenAIEmbeddings(RemoteTextFunction):
    """OpenAI's embedding models, and those of compatible servers (`base_url`: vLLM, Ollama, LM Studio, gateways).

    Attributes:
        name: the model; on Azure, the deployment.
        dim: ask for vectors of this width (the models from text-embedding-3 on, and servers that can). None: the
            model's own; of a model that is not OpenAI's, the server is asked once.
        base_url: the endpoint, with its `/v1` or whatever it has. None: OPENAI_BASE_URL, else OpenAI.
        default_headers: sent with each request; secrets in them only as `$var:`.
        organization: OpenAI's organization.
        api_key: a `$var:` reference. None: OPENAI_API_KEY (on Azure AZURE_OPENAI_API_KEY), as the SDK does, but never
            to an endpoint that stored metadata chose.
        use_azure: speak to Azure OpenAI; without `base_url`, at AZURE_OPENAI_ENDPOINT.
        api_version: Azure's. None: OPENAI_API_VERSION.
        encoding_format: how vectors travel: "base64" is exact and a quarter of the size; "float" for a server that
            knows no other.
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
    )

    name: str = "text-embedding-ada-002"  # LanceDB's default: a table that it wrote may not say
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    base_url: str | None = None
    default_headers: dict[str, str] | None = None
    organization: str | None = None
    api_key: str | None = None
    use_azure: bool = False
    api_version: str | None = None
    batch_size: int = Field(default=512, ge=1, le=2048)  # 2048 is OpenAI's limit
    max_batch_tokens: int = Field(default=250_000, ge=1, le=300_000)  # 300k is OpenAI's limit, less what estimates miss
    encoding_format: Literal["base64", "float"] = "base64"

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @staticmethod
    def runtime_keys() -> list[str]:
        return [*RemoteTextFunction.runtime_keys(), "encoding_format"]

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["base_url", "default_headers", "use_azure"]  # where the texts and the key go

    @staticmethod
    def model_names() -> list[str]:
        """Return the models whose width is known."""
        return list(NDIMS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = self.__dict__
        width, shortens = NDIMS.get(fields["name"], (None, True))
        dim, base_url = fields["dim"], fields["base_url"]
        if dim is not None and width is not None and (dim > width or not (shortens or dim == width)):
            raise ValueError(f"{fields['name']} gives {width} dimensions, dim={dim} cannot be had")
        if base_url is not None and not re.match(r"https?://[^/\s]|\$var:", base_url):
            raise ValueError("base_url must begin with https:// or http:// and a host")
        return self

    # -- the width --------------------------------------------------------------------------------------------------

    def ndims(self) -> int:
        """Return the width: `dim`, or the model's own; of a model that nobody knows, the server is asked, once.

        Raises:
            CallError: the server could not be asked.
        """
        known = self._known_ndims()
        if known is not None:
            return known
        try:
            super().generate_embeddings(["dimensions"])
        except CallError as exc:
            raise CallError(
                f"the width of {self.name!r} is not known, and asking the server for it failed: {exc.message}",
                f"create(..., dim=...) says the width without asking; {exc.hint}",
            ).for_shell(f"--set dim=... gives the width; {exc.shell_hint or exc.hint}") from exc.__cause__
        if self._ndims is None:  # even this text was refused
            raise CallError(
                f"the server gives no vectors for {self.name!r}.", "check the model's name and the endpoint"
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
        """Return what is true of the vectors; `prompts` is None, since the protocol has no word for the role."""
        return {**super().vector_traits(), "prompts": None}

    def request(self, batch: list[str], role: Role = "source") -> np.ndarray:
        """Embed one batch of sources or queries, alike: (m, d) float32, whatever order the server answers in."""
        import numpy as np

        options: dict[str, Any] = {}
        if self.dim is not None and NDIMS.get(self.name, (None, True))[0] != self.dim:
            options["dimensions"] = self.dim
        answer = self._client().embeddings.create(
            input=batch, model=self.name, encoding_format=self.encoding_format, **options
        )
        if isinstance(answer, str) and answer.lstrip().startswith("<"):
            raise CallError("the endpoint answers with a web page.", "check base_url: most servers want /v1 at its end")
        items = _in_order(getattr(answer, "data", None), len(batch))
        vectors = [_decode(getattr(item, "embedding", None)) for item in items]
        widths = {len(vector) for vector in vectors}
        expected = self._known_ndims()
        if len(widths) > 1:
            raise AnswerError(
                f"the server's answer holds vectors of {', '.join(map(str, sorted(widths)))} dimensions.",
                "check which model it serves",
            )
        if expected is not None and widths != {expected}:
            raise VectorError(
                f"{self.name!r} gave vectors of {', '.join(map(str, sorted(widths)))} dimensions"
                f"{f', not {expected}' if expected is not None else ''}.",
                "leave dim out if the server cannot shorten vectors, or check which model it serves",
            )
        self._ndims = widths.pop()
        usage = getattr(answer, "usage", None)
        log.debug("%s: %d texts, %s tokens", self.name, len(batch), getattr(usage, "total_tokens", "unknown"))
        return np.stack(vectors)

    def explain(self, exc: Exception) -> Refusal | None:
        status, code, param = http_status(exc), getattr(exc, "code", None), getattr(exc, "param", None)
        message = self.words_of(exc)
        if isinstance(exc.__cause__, CallError):  # of `_Bounded`, which the SDK takes for a connection's
            return Refusal("call", exc.__cause__.message, exc.__cause__.hint)
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
            hint = "no key from this environment is sent to an endpoint that stored metadata chose; "
            return Refusal("call", message, hint + "create the same function in your own code to use one there")
        return super().explain(exc)

    def words_of(self, exc: Exception) -> str:
        body = getattr(exc, "body", None)
        words = body.get("message") if isinstance(body, dict) else None
        return words if isinstance(words, str) else str(exc)

    # -- tokens -----------------------------------------------------------------------------------------------------

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has: exactly where model and tiktoken are known, else rather too many."""
        if len(text) <= SHORT:
            return super().count_tokens(text)
        exact = self._exact_tokens(text)
        return super().count_tokens(text) if exact is None else exact

    def max_tokens(self) -> int | None:
        """Return how many tokens of a text the model takes; None for one that is not OpenAI's."""
        return MAX_ROW_TOKENS if self.name in NDIMS else None

    def row_problem(self, text: str) -> str | None:
        if self.name not in NDIMS or len(text.encode()) <= MAX_ROW_TOKENS:  # a token is a byte at the least
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
        """Say whether stored metadata, and not the reader's own code, chose where requests go."""
        return self.from_metadata and bool(self.base_url or self.default_headers)

    def _client(self) -> Any:
        """Return the SDK's client for this configuration: one a process, for all threads."""
        settings: dict[str, Any] = {
            "base_url": self.base_url,
            "default_headers": self.default_headers,
            "organization": self.organization,
            "api_key": self._key(),
            "timeout": self.timeout_s,
        }
        if self.use_azure:
            settings["api_version"] = self.api_version
        environment = [os.environ.get(name) for name in _ENVIRONMENT]
        content = json.dumps([self.use_azure, self._foreign(), settings, environment], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()  # a key of the cache may be looked at
        return clients.get(client_key("openai", digest), functools.partial(self._connect, settings))

    def _key(self) -> str | None:
        """Return the key to send, or None to let the SDK find Azure's.

        Raises:
            MissingVariableError: there is none for OpenAI itself. UntrustedError: see `_refuse_environment`.
        """
        key = self.api_key or None
        if self._foreign():
            self._refuse_environment()
            return key or NO_KEY
        if key is not None or self.use_azure:
            return key
        key = os.environ.get("OPENAI_API_KEY")
        if key:
            return key
        if self.base_url or os.environ.get("OPENAI_BASE_URL"):
            return NO_KEY
        raise MissingVariableError(
            "there is no key for OpenAI: api_key is not set, nor the environment variable OPENAI_API_KEY.",
            "export OPENAI_API_KEY=..., or create(api_key='$var:openai_key') after "
            "embedreg.get_registry().set_var('openai_key', ...)",
        ).for_shell("export OPENAI_API_KEY=..., or --set 'api_key=$var:key' --env key=ENVIRONMENT_VARIABLE")

    def _refuse_environment(self) -> None:
        """Refuse to let the SDK send secrets of this environment to an endpoint that stored metadata chose."""
        for name in ("OPENAI_CUSTOM_HEADERS", *(["AZURE_OPENAI_AD_TOKEN"] if self.use_azure else [])):
            if os.environ.get(name):
                raise UntrustedError(
                    f"stored metadata chose the endpoint, and the SDK would send {name} of this environment there.",
                    f"unset {name}, or create the same function in your own code first",
                )

    def _connect(self, settings: dict[str, Any]) -> Any:
        openai = attempt_import_or_raise("openai", extra="openai")
        # An embeddings endpoint does not redirect: following one would take texts and headers to another host.
        http_client = openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [_bound]})
        try:
            # Retries are ours: they are visible, bounded in time, and know what a row's own fault is.
            client = (openai.AzureOpenAI if self.use_azure else openai.OpenAI)(
                max_retries=0, http_client=http_client, **settings
            )
        except (openai.OpenAIError, ValueError) as exc:
            http_client.close()
            raise ConfigError(
                f"the openai client cannot be made: {exc}.", "set the field or the variable that it names"
            ) from None
        # Not at the end of the process, where sockets close by themselves, nor in a forked child: its parent has them.
        weakref.finalize(client, _close, http_client, os.getpid()).atexit = False
        if self._foreign():
            client.organization, client.project = settings["organization"], None  # not those of this environment
        return client

    def _address(self) -> str | None:
        asked = os.environ.get("AZURE_OPENAI_ENDPOINT" if self.use_azure else "OPENAI_BASE_URL")
        url = self.base_url or (None if self._foreign() else asked)
        return host_of(url or ("" if self.use_azure else "https://api.openai.com"))

    def _held_secrets(self) -> list[str]:
        own = [value for name in _SECRET_ENVIRONMENT if (value := os.environ.get(name))]
        lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
        return [*super()._held_secrets(), *own, *filter(None, (line.partition(":")[2].strip() for line in lines))]


def _close(http_client: Any, process: int) -> None:
    if os.getpid() == process:
        http_client.close()


class _Bounded:
    """Ends an answer that is longer than any that was asked for, or drips for longer than one may take."""

    def __init__(self, response: Any) -> None:
        self._stream, self._left = response.stream, MAX_ANSWER_BYTES
        limit_s = response.request.extensions.get("timeout", {}).get("read")
        self._until = math.inf if limit_s is None else time.monotonic() + limit_s

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise CallError(
                    f"the server's answer is longer than {MAX_ANSWER_BYTES // 2**20} MiB.",
                    "check the endpoint, or choose a smaller batch_size",
                )
            if time.monotonic() > self._until:
                raise TimeoutError("the answer drips")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _bound(response: Any) -> None:
    """Bound an answer's body; the client is httpx's, or httpx2's under a newer SDK, and asks for its own kind."""
    library = sys.modules[type(response).__module__.partition(".")[0]]
    response.stream = type("Bounded", (_Bounded, library.SyncByteStream), {})(response)


def _in_order(items: Any, m: int) -> list[Any]:
    """Put the items of an answer in the order of the request, by their `index`; some servers leave it out."""
    if not isinstance(items, list):
        raise AnswerError(
            "the server's answer holds no vectors.", "check that base_url leads to an embeddings endpoint"
        )
    places = [getattr(item, "index", None) for item in items]
    if len(items) == m and all(place is None for place in places):
        return items
    if sorted(place if isinstance(place, int) else -1 for place in places) != list(range(m)):
        raise AnswerError(
            f"the server's answer does not say which of its {len(items)} vectors belongs to which of {m} texts.",
            "check that base_url leads to an embeddings endpoint",
        )
    return sorted(items, key=lambda item: int(item.index))


def _decode(embedding: Any) -> np.ndarray:
    """Turn base64 of little-endian float32, or the list of numbers that some servers give anyway, into (d,) float32."""
    import numpy as np

    try:
        if isinstance(embedding, str):
            return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
        vector = np.asarray(embedding, np.float32)
    except (TypeError, ValueError):
        vector = np.empty(0, np.float32)
    if vector.ndim != 1 or not vector.size:
        raise AnswerError(
            "the server's answer holds what is not a vector.", "create(..., encoding_format='float')"
        ).for_shell("--set encoding_format=float")
    return vector


@functools.cache
def _tokenizer(model: str) -> Any:
    """Return tiktoken's encoding of a model, or None: not installed, or its table is neither here nor to be had."""
    try:
        import tiktoken
    except ImportError:
        return None
    loaded: list[Any] = []

    def load() -> None:
        try:
            loaded.append(tiktoken.encoding_for_model(model))
        except Exception as exc:  # noqa: BLE001 (whatever a download or a cache may raise: there is an estimate)
            log.debug("tiktoken has no table for %s (%s): tokens are estimated", model, type(exc).__name__)

    # tiktoken downloads without a timeout: behind a firewall that would hang for minutes.
    thread = threading.Thread(target=load, daemon=True, name="embedreg-tokenizer")
    thread.start()
    thread.join(TOKENIZER_WAIT_S)
    return loaded[0] if loaded else None
