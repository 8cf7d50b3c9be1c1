"""A real HTTP server on loopback that answers in the shape of every vendor, and each function on it."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import embedreg
from embedreg import EmbeddingFunction
from tests.servers import EmbeddingServer, Received, _Handler, alone, vector_of

KEY = "sk-loopback-0815-4711"
TOKEN = "token-loopback-1234567890"
WIDTH = 20
# What AWS's token service answers to AssumeRole.
ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ASIAASSUMED</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken>
<Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
# boto3 needs credentials to sign with, and none of this machine's.
AWS = {
    "AWS_ACCESS_KEY_ID": "AKIALOOPBACK",
    "AWS_SECRET_ACCESS_KEY": KEY,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@dataclass
class Case:
    """A function on the server.

    Attributes:
        name: of the function.
        config: its fields, given the server's address; `$var:vendor_key` stands for the key.
        roles: whether queries are sent in another form than sources.
        needs: modules that it needs here; without them it is left out.
        secret: what a careless service may repeat: the key, or the token for it.
    """

    name: str
    config: Callable[[str], dict[str, Any]]
    roles: bool = True
    needs: tuple[str, ...] = ()
    secret: str = field(default=KEY, repr=False)

    def create(self, server: VendorServer, **more: Any) -> EmbeddingFunction:
        """Return the function, as a user creates it."""
        config = self.config(f"http://{server.host}")
        made: EmbeddingFunction = embedreg.get(self.name).create(**{**config, **more})
        return made


def is_there(module: str) -> bool:
    """Return whether a module is installed."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


_KEYED = {"api_key": "$var:vendor_key"}
_OF_TEXTS = {**_KEYED, "source_type": "text", "dim": 256}  # of a function of images
_PROMPTS = {"query_prompt": "query: ", "document_prompt": "passage: "}
CASES = [
    Case(
        "azure-openai",
        lambda url: {
            **_KEYED,
            "name": "m",
            "azure_endpoint": url,
            "azure_deployment": "d",
            "api_version": "1",
            "dim": WIDTH,
        },
        roles=False,
    ),
    Case("bedrock-text", lambda url: {"name": "cohere.embed-v4:0", "dim": 256, "endpoint_url": url}),
    Case("cohere", lambda url: {**_KEYED, "name": "embed-v4.0", "dim": 256, "base_url": url}),
    Case("cohere-multimodal", lambda url: {**_OF_TEXTS, "base_url": url}),
    Case("gemini-text", lambda url: {**_KEYED, "dim": WIDTH, "base_url": url}),
    Case(
        "huggingface-inference",
        lambda url: {**_KEYED, **_PROMPTS, "name": "a/m", "dim": WIDTH, "base_url": url + "/hf"},
    ),
    Case("jina", lambda url: {**_KEYED, "dim": WIDTH, "base_url": url + "/v1", "query_task": "retrieval.query"}),
    Case("jina-clip", lambda url: {**_OF_TEXTS, "base_url": url + "/v1", "query_task": "retrieval.query"}),
    Case(
        "litellm",
        lambda url: {
            **_KEYED,
            "name": "jina_ai/m",
            "dim": WIDTH,
            "api_base": url + "/v1/embeddings",
            "query_options": {"task": "retrieval.query"},
        },
        needs=("litellm",),
    ),
    Case("mistral", lambda url: {**_KEYED, "name": "m", "dim": WIDTH, "base_url": url + "/v1"}, roles=False),
    Case("ollama", lambda url: {**_PROMPTS, "name": "m", "dim": WIDTH, "host": url}),
    Case("openai", lambda url: {**_KEYED, **_PROMPTS, "name": "m", "dim": WIDTH, "base_url": url + "/v1"}),
    Case("tei", lambda url: {**_KEYED, **_PROMPTS, "base_url": url, "dim": WIDTH}),
    Case(
        "vertex",
        lambda url: {"name": "text-embedding-005", "dim": 256, "base_url": url},
        needs=("google.auth",),
        secret=TOKEN,
    ),
    Case("voyageai", lambda url: {**_KEYED, "name": "voyage-m", "dim": WIDTH, "base_url": url + "/v1"}),
    Case("voyageai-multimodal", lambda url: {**_OF_TEXTS, "base_url": url + "/v1"}),
    Case(
        "watsonx",
        lambda url: {**_KEYED, **_PROMPTS, "name": "m", "dim": WIDTH, "url": url, "iam_url": url, "project_id": "p"},
    ),
]


CASES = [case for case in CASES if all(map(is_there, case.needs))]


@contextmanager
def vendor_server() -> Iterator[VendorServer]:
    """Run a server, without the keys of this machine, and with something for boto3 and google-auth to sign with."""
    with alone(), pytest.MonkeyPatch.context() as patch, VendorServer() as server:
        for name in [name for name in os.environ if name.endswith("_API_KEY") or name == "HF_TOKEN"]:
            patch.delenv(name)
        for name, value in AWS.items():
            patch.setenv(name, value)
        with tempfile.TemporaryDirectory() as folder:
            if is_there("google.auth"):
                path = Path(folder, "account.json")
                path.write_text(json.dumps(service_account(server.host)))
                patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
            yield server


def service_account(host: str) -> dict[str, str]:
    """Return an account of Google's whose tokens come from a server on loopback."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return {
        "type": "service_account",
        "project_id": "p",
        "private_key": key.private_bytes(*forms).decode(),
        "client_email": "me@example.com",
        "token_uri": f"http://{host}/identity/token",
    }


class VendorServer(EmbeddingServer):
    """The server, as a context manager; `replies` are given to requests for embeddings only.

    Attributes:
        counted: tokens of all responses.
        widths: of models, by a part of the request's path or its `model`.
        wrong: "{}", "count", "width", "tokens" (a vector for each token), "texts" or "flags" (in place of numbers) or
            None.
    """

    def __init__(self) -> None:
        super().__init__(WIDTH)
        self.wrong: str | None = None
        self.widths: dict[str, int] = {}
        self.counted = 0
        self.backwards = True

    @property
    def asked(self) -> list[Received]:
        """The requests for embeddings."""
        return [
            request
            for request in self.requests
            if request.path != "/" and not request.path.endswith(("/info", "/token"))
        ]


def texts_of(path: str, body: Any) -> list[str]:
    """Return the texts of a request, with the role that the request states before them."""
    if "batchEmbedContents" in path or "embedContent" in path:
        items = body.get("requests", [body])
        tasks = [i.get("taskType") or i.get("embedContentConfig", {}).get("taskType", "") for i in items]
        return [
            "|".join([task, *(p["text"] for p in i["content"]["parts"])]) for i, task in zip(items, tasks, strict=True)
        ]
    if path.endswith(":predict"):
        return [item["task_type"] + item["content"] for item in body["instances"]]
    role = body.get("input_type") or body.get("task") or body.get("prompt_name") or ""
    found = body.get("texts") or body.get("inputs") or body.get("input") or [body.get("inputText")]
    texts = [_text_in(i) if isinstance(i, dict) else i[0] if isinstance(i, list) else i for i in found]
    return [role + text for text in texts]


def _text_in(item: dict[str, Any]) -> str:
    """Return a text, or what stands for a picture."""
    part = item["content"][0] if "content" in item else item
    url = part.get("image_url", {}).get("url") or part.get("image_base64") or part.get("image")
    return part["text"] if url is None else "picture " + url.rpartition(",")[2]


class _Vendors(_Handler):
    owner: VendorServer
    disable_nagle_algorithm = True  # else each response waits 40 ms for an acknowledgement

    def do_GET(self) -> None:  # noqa: N802 (the base's name)
        """Answer what a text-embeddings-inference server says of itself."""
        with self.owner.lock:
            self.owner.requests.append(Received(self.path, "", {k.lower(): v for k, v in self.headers.items()}, {}))
        info = {"model_id": "a/m", "model_sha": "abc123", "max_client_batch_size": 3, "max_batch_tokens": 16_384}
        self._send(200, json.dumps(info))

    def do_POST(self) -> None:  # noqa: N802 (the base's name)
        """Answer one request."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        parts = urlsplit(self.path)
        headers = {k.lower(): v for k, v in self.headers.items()}
        token = parts.path in ("/identity/token", "/")
        body = parse_qs(content.decode()) if token else json.loads(content)
        with self.owner.lock:
            self.owner.requests.append(Received(unquote(parts.path), parts.query, headers, body))
            reply = self.owner.replies.popleft() if self.owner.replies and not token else None
        if parts.path == "/":
            self._send(200, ASSUMED, {"Content-Type": "text/xml"})
        elif token:
            self._send(200, json.dumps({"access_token": TOKEN, "expires_in": 3600}))
        else:
            self._answer(parts.path, body, reply)

    def _answer(self, path: str, body: Any, reply: Any) -> None:
        if reply is not None and reply.kind == "slow":
            self.owner.closing.wait(reply.delay_s)
        elif reply is not None and reply.kind != "error":
            self._misbehave(reply)
            return
        elif reply is not None:
            self._send(reply.status, json.dumps({"message": reply.message}), reply.headers)
            return
        self._send(200, json.dumps(self._shaped(path, body)))

    def _shaped(self, path: str, body: Any) -> Any:
        texts, wrong = texts_of(path, body), self.owner.wrong
        first = (body.get("requests") or [{}])[0] if isinstance(body, dict) else {}
        width = body.get("output_dimension") or body.get("dimensions") or first.get("outputDimensionality") or WIDTH
        config = body.get("parameters") or {**body, **first}.get("embedContentConfig") or {}
        width = config.get("outputDimensionality") or width
        place = f"{path} {body.get('model') or body.get('model_id')}"
        width = next((own for model, own in self.owner.widths.items() if model in place), width)
        vectors: list[Any] = [vector_of(text, width + (wrong == "width")) for text in texts]
        if wrong == "{}":
            return {}
        if wrong == "count":
            vectors = vectors[:-1]
        if wrong == "tokens":
            vectors = [[vector, vector] for vector in vectors]
        if wrong in ("texts", "flags"):
            kind = str if wrong == "texts" else bool
            vectors = [[*map(kind, vector)] for vector in vectors]
        tokens = sum(len(text.split()) for text in texts)
        self.owner.counted += tokens
        if path.endswith(":predict"):
            counts = [{"token_count": len(text.split())} for text in texts]
            pairs = zip(vectors, counts, strict=False)
            return {"predictions": [{"embeddings": {"values": v, "statistics": n}} for v, n in pairs]}
        if path.endswith(":embedContent"):
            return {"embedding": {"values": vectors[0]}}
        if "batchEmbedContents" in path:
            usage = {"promptTokenCount": tokens}
            return {"embeddings": [{"values": vector} for vector in vectors], "usageMetadata": usage}
        if path.endswith("/api/embed"):
            return {"embeddings": vectors, "prompt_eval_count": tokens}
        if path.endswith("/v2/embed"):
            return {"embeddings": {"float": vectors}, "meta": {"billed_units": {"input_tokens": tokens}}}
        if path.endswith("/v1/embed"):
            meta = {"billed_units": {"input_tokens": tokens}}
            return {"id": "1", "response_type": "embeddings_floats", "texts": [], "embeddings": vectors, "meta": meta}
        if path.endswith("/invoke"):
            if "texts" in body:
                return {"embeddings": {"float": vectors} if "embedding_types" in body else vectors}
            return {"embedding": vectors[0] if vectors else None, "inputTextTokenCount": tokens}
        if path.endswith(("/embed", "/hf")):
            lengths = [sum(x * x for x in v) ** 0.5 if body.get("normalize") and not wrong else 1.0 for v in vectors]
            return [v if wrong else [x / n for x in v] for v, n in zip(vectors, lengths, strict=True)]
        if path.startswith("/ml/"):
            return {"results": [{"embedding": vector} for vector in vectors], "input_token_count": tokens}
        if path.endswith("/contextualizedembeddings"):
            data = [{"index": k, "data": [{"index": 0, "embedding": v}]} for k, v in enumerate(vectors)]
            return {"data": data, "usage": {"total_tokens": tokens}}
        packed = body.get("encoding_format") == "base64" and wrong not in ("tokens", "texts", "flags")
        data = [{"index": k, "embedding": _packed(v) if packed else v} for k, v in enumerate(vectors)]
        data = data[::-1] if self.owner.backwards else data
        usage = {"total_tokens": tokens, "text_tokens": tokens, "image_pixels": 0, "video_pixels": 0}
        return {"object": "list", "model": body.get("model"), "data": data, "usage": usage}


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


VendorServer.handler = _Vendors
