"""The `bedrock-text` function: Titan's and Cohere's text models on Amazon Bedrock, through boto3.

boto3 finds the credentials and signs the requests. Titan takes one text a request.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from embedreg.core.base import Traits
from embedreg.core.fields import MAX_NDIMS
from embedreg.core.role import Role
from embedreg.errors import CallError, ConfigError
from embedreg.runtime.remote import http
from embedreg.runtime.remote.answers import Refusal
from embedreg.runtime.remote.connections import client_key, clients
from embedreg.runtime.remote.vendor import Model, Vendor, VendorFunction
from embedreg.support.imports import attempt_import_or_raise
from embedreg.support.retry import http_status, is_transient

if TYPE_CHECKING:
    from typing import Self

__all__ = ["BedrockTextEmbeddings"]

# By the id without a region's prefix ("us.", "eu.", "global.").
MODELS = {
    "amazon.titan-embed-text-v1": Model(1536, max_tokens=8192, max_inputs=1),
    "amazon.titan-embed-text-v2:0": Model(1024, (256, 512), 8192, max_inputs=1),
    "cohere.embed-english-v3": Model(1024, max_tokens=512),
    "cohere.embed-multilingual-v3": Model(1024, max_tokens=512),
    "cohere.embed-v4:0": Model(1536, (256, 512, 1024), 128_000),
}
_MODEL = re.compile(r"(?:.*[./])?((?:amazon\.titan|cohere)[.-].+)")
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK")


class _Held:
    """A client of boto3's."""

    def __init__(self, client: Any) -> None:
        self.client = client


class BedrockTextEmbeddings(VendorFunction):
    """Titan's and Cohere's text embedding models on Amazon Bedrock.

    Attributes:
        name: the model's id, with or without a region's prefix ("us."), or the ARN of an inference profile of one.
        region: the AWS region.
        assumed_role: the ARN of a role to assume with the credentials that boto3 finds.
        profile_name: a profile of the AWS configuration. None: boto3's default credentials.
        role_session_name: of the assumed role.
        source_input_type, query_input_type: what sources and queries are for Cohere's models.
        dim: request vectors of this width (Titan v2, Cohere v4). None: the model's own.
        normalize: whether Titan v2 returns vectors of unit length. None: its default, which does.
        endpoint_url: another address. None: the region's.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "bedrock-text"
    traits: ClassVar[Traits] = Traits(
        requires=("boto3",),
        extra="bedrock-text",
        remote=True,
        retry=False,
        window=8192,
        concurrency=4,
        stock_fields=frozenset(
            {
                "name",
                "region",
                "assumed_role",
                "profile_name",
                "role_session_name",
                "source_input_type",
                "query_input_type",
                "max_retries",
            }
        ),
        width_defaults={"name": {1536: "amazon.titan-embed-text-v1"}},
    )
    vendor: ClassVar[Vendor] = Vendor(
        name="Bedrock",
        models=MODELS,
        address_field="endpoint_url",
        needs_key=False,
        max_inputs=96,
        docs="Amazon Bedrock: Inference request parameters for Titan and Cohere embeddings",
    )

    name: str = "amazon.titan-embed-text-v1"
    region: str = "us-east-1"
    assumed_role: str | None = None
    profile_name: str | None = None
    role_session_name: str = "lancedb-embeddings"
    source_input_type: str = "search_document"
    query_input_type: str = "search_query"
    dim: int | None = Field(default=None, ge=1, le=MAX_NDIMS)
    normalize: bool | None = None
    endpoint_url: str | None = None

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["region", "assumed_role", "profile_name", "role_session_name", "endpoint_url"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._refuse_address()
        self._refuse_width(self.__dict__["dim"])
        return self

    def _id(self) -> str:
        """Return the model's id without the prefix of a region or an ARN."""
        found = _MODEL.fullmatch(self.name)
        return found[1] if found else self.name

    def _model(self) -> Model | None:
        return MODELS.get(self._id())

    def _request_limits(self) -> tuple[int, int]:
        inputs, tokens = super()._request_limits()
        return (1 if self._id().startswith("amazon.") else inputs), tokens

    def _roles(self) -> tuple[str, str]:
        return (self.query_input_type, self.source_input_type) if self._id().startswith("cohere.") else ("", "")

    def request(self, batch: list[str], role: Role) -> Any:
        """Embed one batch of sources or queries: (m, d) float32 in the order of the batch."""
        model = self._id()
        if model.startswith("cohere."):
            input_type = self.query_input_type if role == "query" else self.source_input_type
            body: dict[str, Any] = {"input_type": input_type, "texts": batch}
            if model not in MODELS or "v3" not in model:
                body["embedding_types"] = ["float"]
            if self.dim is not None:
                body["output_dimension"] = self.dim
            vectors = self._field(self._invoke(body), "embeddings")
            if isinstance(vectors, dict):
                vectors = vectors.get("float")
            return self._matrix(vectors, len(batch))
        if not model.startswith("amazon.titan-embed"):
            raise ConfigError(
                f"{self.name!r} is not an id of Titan's or Cohere's embedding models.", f"one of {', '.join(MODELS)}"
            )
        body = {"inputText": batch[0]}
        optional = {"dimensions": self.dim, "normalize": self.normalize}
        body |= {name: value for name, value in optional.items() if value is not None}
        answer = self._invoke(body)
        vector = self._field(answer, "embedding")
        tokens = self._field(answer, "inputTextTokenCount")
        return self._matrix(None if vector is None else [vector], len(batch), tokens)

    def _invoke(self, body: Any) -> Any:
        kind = "application/json"
        sent = json.dumps(body)
        answer = self._client().invoke_model(body=sent, modelId=self.name, accept=kind, contentType=kind)
        with contextlib.closing(answer["body"]) as stream:  # one that is cut off would keep its connection
            content = stream.read(http.MAX_ANSWER_BYTES + 1)
        if len(content) > http.MAX_ANSWER_BYTES:
            raise CallError("the server's response is too long.", "check the endpoint, or choose a smaller batch_size")
        return http.parsed(content)

    # -- the client -------------------------------------------------------------------------------------------------

    def _client(self) -> Any:
        """Return boto3's client for this configuration: one per process, for all threads."""
        names = ("region", "assumed_role", "profile_name", "role_session_name", "endpoint_url", "timeout_s")
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        content = json.dumps([[getattr(self, name) for name in names], self._foreign(), environment], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()  # cache keys may be displayed
        return clients.get(client_key("bedrock", digest), self._connect).client

    def _connect(self) -> _Held:
        boto3 = attempt_import_or_raise("boto3", extra="bedrock-text")
        botocore = attempt_import_or_raise("botocore.config", "botocore", extra="bedrock-text")
        # A bearer token of the environment would take precedence over what the configuration names.
        named = self.profile_name or self.assumed_role or self._foreign()
        config = botocore.Config(
            retries={"total_max_attempts": 1},  # embedreg retries
            connect_timeout=self.timeout_s,
            read_timeout=self.timeout_s,
            max_pool_connections=64,
            **({"signature_version": "v4"} if named else {}),
            # a proxy could read what is not encrypted
            **({"proxies": {}} if (self.endpoint_url or "").startswith("http://") else {}),
        )
        session = boto3.Session(profile_name=self.profile_name, region_name=self.region)
        if self.assumed_role:
            session = self._assumed(boto3, session)
        try:
            client = session.client(
                "bedrock-runtime", region_name=self.region, endpoint_url=self.endpoint_url, config=config
            )
        except ValueError as exc:  # a region or an address that cannot be one
            raise ConfigError(f"{exc}.", "check region and endpoint_url") from None
        held = _Held(client)
        weakref.finalize(held, _close, client, os.getpid()).atexit = False
        return held

    def _assumed(self, boto3: Any, session: Any) -> Any:
        """Return a session that assumes the role again whenever its credentials expire."""
        credentials = attempt_import_or_raise("botocore.credentials", "botocore", extra="bedrock-text")
        sessions = attempt_import_or_raise("botocore.session", "botocore", extra="bedrock-text")
        fetcher = credentials.AssumeRoleCredentialFetcher(
            client_creator=functools.partial(session._session.create_client, region_name=self.region),
            source_credentials=session.get_credentials(),
            role_arn=self.assumed_role,
            extra_args={"RoleSessionName": self.role_session_name},
        )
        inner = sessions.Session()
        inner._credentials = credentials.DeferredRefreshableCredentials(
            method="assume-role", refresh_using=fetcher.fetch_credentials
        )
        return boto3.Session(botocore_session=inner, region_name=self.region)

    # -- errors -----------------------------------------------------------------------------------------------------

    def words_of(self, exc: Exception) -> str:
        message = self._field(getattr(exc, "response", None), "Error", "Message")
        return message if isinstance(message, str) else str(exc)

    def explain(self, exc: Exception) -> Refusal | None:
        library = type(exc).__module__.partition(".")[0]
        if library in ("boto3", "botocore") and http_status(exc) is None and not is_transient(exc):
            return Refusal("call", str(exc), self._credentials_hint())
        if self._field(getattr(exc, "response", None), "Error", "Code") == "ServiceQuotaExceededException":
            return Refusal("call", self.words_of(exc), "a quota of the account is used up: see its service quotas")
        return super().explain(exc)

    def _credentials_hint(self) -> str:
        return "check the credentials and the region: aws sts get-caller-identity"

    def _account_keys(self) -> list[str]:
        return [*self._held_secrets(), *filter(None, (self.profile_name, self.assumed_role))]

    def _held_secrets(self) -> list[str]:
        return [*super()._held_secrets(), *filter(None, map(os.environ.get, _SECRETS))]


def _close(client: Any, process: int) -> None:
    if os.getpid() == process:
        client.close()
