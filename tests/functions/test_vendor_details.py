"""What is particular to each remote function: its forms, limits, addresses, keys and environment."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg.errors import CallError, ConfigError, UntrustedError
from embedreg.functions.ollama import _url
from embedreg.functions.openai import SERVERS, OpenAIEmbeddings
from embedreg.runtime import remote
from embedreg.runtime.remote import http
from tests.servers import EmbeddingServer, Reply
from tests.vendors import CASES, KEY, TOKEN, Case, VendorServer, is_there, vendor_server

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def running() -> Iterator[VendorServer]:
    """The server of this module."""
    with vendor_server() as server:
        yield server


@pytest.fixture
def server(running: VendorServer) -> VendorServer:
    """The server, with nothing in it."""
    embedreg.get_registry().set_var("vendor_key", KEY)
    running.requests.clear()
    running.replies.clear()
    running.wrong = None
    return running


# -- environment and keys ----------------------------------------------------------------------------------------------


def stored(function: Any) -> dict[str, Any]:
    """Return the declaration of a function without its key, as another process would find it."""
    entry = embedreg.get_registry().function_to_metadata(function.bind("text", "vector"))
    entry["model"] = {k: v for k, v in entry["model"].items() if k not in ("api_key", "apiKey")}
    return {"embedding_functions": json.dumps([entry])}


@pytest.mark.parametrize("case", [case for case in CASES if "api_key" in case.config("http://x")], ids=lambda c: c.name)
def test_keys_of_the_environment_do_not_follow_a_stored_address(
    case: Case, server: VendorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stored metadata chose the endpoint, and the reader granted its host, the reader's key is not sent there."""
    for name in embedreg.get_registry().describe(case.name)["keys"]:
        monkeypatch.setenv(name, KEY)
    found = embedreg.functions_in(stored(case.create(server)))
    assert isinstance(found.problems["vector"], UntrustedError)
    with embedreg.trust(found.needed):
        function = embedreg.functions_in(stored(case.create(server)))["vector"].function
        assert function.from_metadata
        # litellm reads keys by itself, so that nothing at all is sent
        refused = pytest.raises(UntrustedError) if case.name == "litellm" else contextlib.nullcontext()
        with refused:
            function.compute_query_embeddings("a")
    for request in server.requests:
        assert KEY not in str(request.headers)


ENVIRONMENT = {
    "OLLAMA_API_KEY": KEY,
    "OLLAMA_HOST": "http://127.0.0.1:9",
    "CO_API_URL": "http://127.0.0.1:9",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9",
    "VOYAGE_API_KEY_PATH": "/dev/null",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "http://127.0.0.1:9",
    "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": "http://127.0.0.1:9",
    "AWS_BEARER_TOKEN_BEDROCK": TOKEN,
    "AWS_PROFILE": "no-such-profile",
    "HF_INFERENCE_ENDPOINT": "http://127.0.0.1:9",
    "MISTRAL_SERVER": "http://127.0.0.1:9",
    "OPENAI_BASE_URL": "http://127.0.0.1:9",
    "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9",
    "AZURE_OPENAI_AD_TOKEN": TOKEN,
}


@pytest.mark.parametrize("case", [c for c in CASES if c.name != "vertex"], ids=lambda c: c.name)
def test_the_environment_does_not_override_the_configuration(
    case: Case, server: VendorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses, keys, modes and proxies that vendors' clients obey unasked change nothing.

    google-auth fetches its tokens through a proxy of the environment; in earnest by https, which a proxy cannot read.
    What litellm sends goes through one too, and its clients last as long as the process.
    """
    remote.release()
    left_out = {"bedrock-text": ["AWS_BEARER_TOKEN_BEDROCK", "AWS_PROFILE"], "litellm": ["HTTP_PROXY", "ALL_PROXY"]}
    for name in ENVIRONMENT.keys() - left_out.get(case.name, []):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    case.create(server, max_retries=0).compute_query_embeddings("a")
    [request] = server.asked
    if case.name == "ollama":
        assert "authorization" not in request.headers
    assert TOKEN not in str(request.headers) or case.name == "watsonx"
    remote.release()


@pytest.mark.parametrize(
    ("name", "value"), [("SSL_CERT_FILE", "/no/such/file"), ("HTTPS_PROXY", "socks9://me:geheim@host:1:2")]
)
def test_an_environment_that_cannot_be_used_is_named(
    name: str, value: str, server: VendorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate file that is missing, a proxy that is none: one line, without the proxy's password."""
    remote.release()
    monkeypatch.setenv(name, value)
    for function in ("cohere", "openai"):
        with pytest.raises((ConfigError, CallError), match="of the environment cannot be used") as caught:
            BY_NAME[function].create(server).compute_query_embeddings("a")
        assert name in str(caught.value.hint)
        assert "geheim" not in str(caught.value)
    assert not server.requests
    remote.release()


def test_a_named_profile_is_not_overridden_by_a_bearer_token(
    server: VendorServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A profile that the configuration names signs the request, whatever token the environment has."""
    config = tmp_path / "credentials"
    config.write_text("[mine]\naws_access_key_id = AKIAMINE\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", TOKEN)
    BY_NAME["bedrock-text"].create(server, profile_name="mine").compute_query_embeddings("a")
    assert "AKIAMINE" in server.asked[0].headers["authorization"]


def test_a_role_is_assumed_with_the_credentials_that_boto3_finds(
    server: VendorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token service is asked once for the role, and its credentials sign the requests."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{server.host}")
    role = "arn:aws:iam::123456789012:role/embedder"
    function = BY_NAME["bedrock-text"].create(server, assumed_role=role, batch_size=1, concurrency=1)
    embedreg.embed_column(function, ["a", "b"])
    [asked] = [request for request in server.requests if request.path == "/"]
    assert asked.body["RoleArn"] == [role]
    assert asked.body["RoleSessionName"] == ["lancedb-embeddings"]
    assert all("ASIAASSUMED" in request.headers["authorization"] for request in server.asked)
    assert [request.headers["x-amz-security-token"] for request in server.asked] == ["session"] * 2


def test_missing_credentials_are_one_clear_line(server: VendorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is retried where boto3 finds no credentials or no such profile."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    case = BY_NAME["bedrock-text"]
    for config, words in (({}, "credentials"), ({"profile_name": "no-such"}, "no-such")):
        with pytest.raises(CallError, match=words) as caught:
            case.create(server, **config).compute_query_embeddings("a")
        assert "aws sts" in str(caught.value.hint)
    assert not server.requests


KEYED = [case for case in CASES if "api_key" in case.config("http://x")]


@pytest.mark.parametrize("case", KEYED, ids=lambda c: c.name)
def test_a_key_that_no_header_can_hold_is_refused(case: Case, server: VendorServer) -> None:
    """One with a line break inside, a letter beyond ASCII or nothing else is named, not sent, and not shown."""
    for key, words in (("sk-geheim-ß", "characters"), ("sk-ge\nheim", "characters"), ("  ", "blank")):
        embedreg.get_registry().set_var("vendor_key", key)
        with pytest.raises(ConfigError, match=words) as caught:
            case.create(server).compute_query_embeddings("a")
        assert "heim" not in str(caught.value)
    assert not server.requests


@pytest.mark.parametrize("case", KEYED, ids=lambda c: c.name)
def test_white_space_around_a_key_is_not_a_part_of_it(case: Case, server: VendorServer) -> None:
    """As that of a file that ends with a line break."""
    embedreg.get_registry().set_var("vendor_key", f" {KEY}\n")
    case.create(server).compute_query_embeddings("a")
    sent = [value for request in server.requests for value in request.headers.values() if KEY in value]
    assert sent or case.name == "watsonx"  # which sends it to the identity service, in a form
    assert {value.removeprefix("Bearer ") for value in sent} <= {KEY}


@pytest.mark.parametrize("name", ["b\nc", "ä"])
def test_a_header_that_cannot_be_sent_is_one_line(name: str, server: VendorServer) -> None:
    """Nothing is sent, nothing is repeated, and the header is not shown."""
    ollama = {"ollama_client_kwargs": {"headers": {"X-A": name}}}
    for kind, headers in (("ollama", ollama), ("openai", {"default_headers": {"X-A": name}})):
        with pytest.raises((ConfigError, CallError), match="header is not one that can be sent") as caught:
            BY_NAME[kind].create(server, **headers).compute_query_embeddings("a")
        assert name not in str(caught.value)
        assert caught.value.hint
    assert not server.requests


@pytest.mark.parametrize("url", ["ftp://x", "http://user:pass@host", "//host", "host", "http://hö.st", "http://a\\b"])
def test_an_address_that_can_be_read_two_ways_is_refused(url: str) -> None:
    """Only http(s), no user name, ASCII: what every parser reads alike."""
    with pytest.raises(ConfigError):
        embedreg.get("cohere").create(base_url=url)
    with pytest.raises(ConfigError):
        http.endpoint(url, "base_url")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_an_address_ends_at_its_path(case: Case, server: VendorServer) -> None:
    """Where a query follows, the paths of requests would end up in it."""
    for rest in ("?version=1", "#part"):
        url = "http://host/v1" + rest
        places = {name: url for name, value in case.config("http://x").items() if "http://x" in str(value)}
        with pytest.raises(ConfigError, match="ends at its path"):
            case.create(server, **places)


@pytest.mark.parametrize("url", ["http://host:99999", "http://host:0", "http://" + "a" * 70 + ".com", "http://a..b"])
def test_an_address_that_cannot_be_one_is_one_line(url: str, server: VendorServer) -> None:
    """A port or a name that no host can have."""
    for name, field in (("cohere", "base_url"), ("bedrock-text", "endpoint_url"), ("openai", "base_url")):
        with pytest.raises((ConfigError, CallError)) as caught:
            BY_NAME[name].create(server, **{field: url}).compute_query_embeddings("a")
        assert "\n" not in caught.value.message
        assert caught.value.hint


def test_a_token_that_is_renewed_is_not_another_account(server: VendorServer) -> None:
    """One budget for a login, whatever token it has at the moment; other profiles and projects have their own."""
    for name, other in (("watsonx", {}), ("vertex", {"project": "other"}), ("bedrock-text", {"profile_name": "other"})):
        if name not in BY_NAME:
            continue
        function = BY_NAME[name].create(server)
        before = function.account()
        if not other.get("profile_name"):
            function.compute_query_embeddings("a")
        assert function.account() == before
        assert not other or BY_NAME[name].create(server, **other).account() != before


# -- one function after another ----------------------------------------------------------------------------------------


def test_newer_models_of_cohere_take_version_2(server: VendorServer) -> None:
    """Up to v3 the form that LanceDB sends; from v4 on the second version, with the width."""
    case = BY_NAME["cohere"]
    server.wrong = "width"  # the vectors are not looked at here
    for config, path in (({"name": "embed-english-v3.0", "dim": None}, "/v1/embed"), ({"dim": 256}, "/v2/embed")):
        with pytest.raises(embedreg.errors.VectorError):
            case.create(server, **config).compute_query_embeddings("a")
        assert server.requests[-1].path == path
    assert server.requests[-1].body["output_dimension"] == 256
    with pytest.raises(ConfigError, match="1536"):
        embedreg.get("cohere").create(name="embed-v4.0", dim=300)


def test_a_model_that_was_switched_off_is_explained(server: VendorServer) -> None:
    """The server's refusal of a retired model says so, and that the column has to be made anew."""
    server.replies.append(Reply("error", 404, "model not found"))
    function = BY_NAME["cohere"].create(server, name="embed-multilingual-v2.0", dim=None)
    with pytest.raises(CallError) as caught:
        function.compute_query_embeddings("a")
    assert "2026-04-04" in str(caught.value.hint)


def test_gemini_states_its_wait_in_the_body(server: VendorServer, caplog: pytest.LogCaptureFixture) -> None:
    """`RetryInfo` in an error's details counts as Retry-After."""
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "75.5s"}
    body = {"error": {"code": 429, "message": "quota", "details": [{"@type": "other"}, info]}}
    server.replies.append(Reply("raw", 429, json.dumps(body)))
    BY_NAME["gemini-text"].create(server).compute_query_embeddings("a")
    assert "trying again in 75." in caplog.text or "trying again in 76." in caplog.text


def test_newer_models_of_gemini_take_prompts_and_stored_ones_stay(server: VendorServer) -> None:
    """From gemini-embedding-2 on the role is in the text; an entry of LanceDB's for it is read as it was sent."""
    case = BY_NAME["gemini-text"]
    function = pickle.loads(pickle.dumps(case.create(server, name="gemini-embedding-2")))
    function.compute_query_embeddings("a")
    function.compute_source_embeddings(["b"])
    query, source = (request.body["requests"][0] for request in server.requests)
    assert query["content"]["parts"] == [{"text": "task: search result | query: a"}]
    assert source["content"]["parts"] == [{"text": "title: none | text: b"}]
    assert "taskType" not in query
    entry = {"name": "gemini-text", "model": {"name": "gemini-embedding-2"}, "source_column": "t", "vector_column": "v"}
    found = embedreg.functions_in({"embedding_functions": json.dumps([entry])})
    read = pickle.loads(pickle.dumps(found["v"].function))
    assert (read.query_prompt, read.document_prompt) == (None, None)
    assert any("ignores the task type" in note for note in found.notes)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "http://localhost:11434"),
        ("10.0.0.1:80", "http://10.0.0.1:80"),
        ("https://ollama.example.com", "https://ollama.example.com"),
    ],
)
def test_a_host_of_ollama_is_read_as_its_clients_do(host: str, url: str) -> None:
    """Without a scheme it is http, without both the usual port."""
    assert _url(host) == url
    assert embedreg.get("ollama").create(host=host)._endpoint() == url  # type: ignore[attr-defined]


def test_ollama_sends_headers_of_its_client_and_refuses_the_rest(server: VendorServer) -> None:
    """`ollama_client_kwargs` may hold headers, secrets in them as references; what is not supported is named."""
    function = BY_NAME["ollama"].create(
        server, ollama_client_kwargs={"headers": {"Authorization": "$var:vendor_key", "x-team": "search"}}
    )
    function.compute_query_embeddings("a")
    assert (server.asked[0].headers["authorization"], server.asked[0].headers["x-team"]) == (KEY, "search")
    with pytest.raises(ConfigError, match="verify"):
        embedreg.get("ollama").create(ollama_client_kwargs={"verify": False})
    server.replies.append(Reply("error", 404, "model 'm' not found"))
    with pytest.raises(CallError) as caught:
        function.compute_query_embeddings("b")
    assert caught.value.hint == "on the server: ollama pull m"


def test_a_model_that_needs_prompts_is_named_once(server: VendorServer, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log for a model, however many batches; none where prompts are set."""
    case = BY_NAME["ollama"]
    for _ in range(2):
        bare = case.create(server, name="nomic-embed-text:v1.5", query_prompt=None, document_prompt=None, dim=20)
        bare.compute_query_embeddings("a")
    assert sum("nomic-embed-text:v1.5" in message for message in caplog.messages) == 1
    assert "search_query" in caplog.text


def test_functions_that_lancedb_lacks_take_known_prompts(server: VendorServer) -> None:
    """Without a decision they are the model's; a decision, other forms and stored declarations stay as they are."""
    case = BY_NAME["huggingface-inference"]
    config = {k: v for k, v in case.config(f"http://{server.host}").items() if "prompt" not in k}
    hosted = embedreg.get("huggingface-inference")
    function = hosted.create(**{**config, "name": "intfloat/e5-base-v2"})
    pickle.loads(pickle.dumps(function)).compute_query_embeddings("a")
    assert server.asked[0].body["inputs"] == ["query: a"]
    decided = hosted.create(**{**config, "name": "intfloat/e5-base-v2", "query_prompt": "", "document_prompt": ""})
    named = hosted.create(**{**config, "name": "intfloat/e5-base-v2", "query_prompt_name": "query"})
    assert (decided.query_prompt, named.query_prompt) == ("", None)  # type: ignore[attr-defined]
    entry = {"name": "huggingface-inference", "model": {"name": "intfloat/e5-base-v2"}, "source_column": "t"}
    found = embedreg.functions_in({"embedding_functions": json.dumps([{**entry, "vector_column": "v"}])})
    assert found["v"].function.query_prompt is None
    assert any("trained with prompts" in note for note in found.notes)


def test_every_function_of_texts_tells_queries_from_sources(server: VendorServer) -> None:
    """By fields of its own, or, as Voyage does, by the service's form."""
    without = {case.name for case in CASES if not embedreg.get_registry().describe(case.name)["roles"]}
    assert without == {"voyageai", "voyageai-multimodal"}
    function = BY_NAME["mistral"].create(server, query_prompt="query: ", document_prompt="passage: ")
    embedreg.embed_column(function, ["a"])
    embedreg.embed_query(function, "a")
    assert [request.body["input"] for request in server.asked] == [["passage: a"], ["query: a"]]


def test_voyage_keys_of_mongodb_go_to_mongodb(running: VendorServer) -> None:
    """A key that begins with "al-" belongs to another address, unless one is set."""
    embedreg.get_registry().set_var("key", "al-1234")
    function: Any = embedreg.get("voyageai").create(name="voyage-4", api_key="$var:key")
    assert function._endpoint() == "https://ai.mongodb.com/v1"
    assert (
        embedreg.get("voyageai").create(name="voyage-4", api_key="$var:key", base_url="https://x")._endpoint()
        == "https://x"
    )  # type: ignore[attr-defined]


def test_contextual_texts_are_documents_of_their_own(server: VendorServer) -> None:
    """Each text is sent as one document: its vector does not depend on its neighbours."""
    function = BY_NAME["voyageai"].create(server, name="voyage-context-m", dim=None)
    made = embedreg.embed_column(function, ["a", "b"])
    assert server.asked[-1].body["inputs"] == [["a"], ["b"]]
    assert np.array_equal(made.matrix[0], embedreg.embed_column(function, ["a"]).matrix[0])


def test_tei_takes_its_limits_and_identity_from_the_server(server: VendorServer) -> None:
    """`/info` is read once: its limit holds, the model's commit is the identity, and its name is checked."""
    function = BY_NAME["tei"].create(server, concurrency=1)
    assert function.model_identity() == "abc123"
    embedreg.embed_column(function, [f"text {number}" for number in range(7)])
    assert [len(request.body["inputs"]) for request in server.asked] == [3, 3, 1]
    assert sum(request.path == "/info" for request in server.requests) == 1
    with pytest.raises(CallError, match="runs 'a/m', not 'b/m'"):
        BY_NAME["tei"].create(server, name="b/m").compute_query_embeddings("a")


def test_titan_takes_one_text_a_request(server: VendorServer) -> None:
    """Titan's API has one text; Cohere's on Bedrock up to 96. A prefix of a region changes nothing."""
    server.wrong = None
    case = BY_NAME["bedrock-text"]
    function = case.create(server, name="us.amazon.titan-embed-text-v2:0", dim=None)
    assert function.ndims() == 1024
    with pytest.raises(embedreg.errors.VectorError):  # the server's vectors are 20 wide
        embedreg.embed_column(function, ["a", "b"])
    assert {request.body["inputText"] for request in server.asked} <= {"a", "b"}
    with pytest.raises(ConfigError, match="not an id"):
        case.create(server, name="meta.llama", dim=8).compute_query_embeddings("a")


def test_a_token_of_watsonx_is_fetched_once(server: VendorServer) -> None:
    """The key goes to the identity service alone, once; the token goes with each request."""
    remote.release()
    function = BY_NAME["watsonx"].create(server, batch_size=1, concurrency=1)
    embedreg.embed_column(function, ["a", "b", "c"])
    tokens = [request for request in server.requests if request.path == "/identity/token"]
    assert [request.body["apikey"] for request in tokens] == [[KEY]]
    assert {request.headers["authorization"] for request in server.asked} == {f"Bearer {TOKEN}"}
    with pytest.raises(ConfigError, match="neither a project nor a space"):
        BY_NAME["watsonx"].create(server, project_id=None).compute_query_embeddings("a")


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_openai_at_a_known_server(name: str) -> None:
    """Each server's usual address and what it does not know; another address is a field."""
    pytest.importorskip("openai")
    usual = OpenAIEmbeddings.at(name, name="m", dim=8)
    assert usual.base_url == SERVERS[name]["base_url"]
    with EmbeddingServer(base64=SERVERS[name].get("encoding_format") != "float") as there:
        path = "" if name == "infinity" else "/v1"
        made = OpenAIEmbeddings.at(name, name="m", dim=8, base_url=f"http://{there.host}{path}")
        assert embedreg.embed_column(made, ["a", "bad"]).valid.all()
        assert there.requests[0].path == f"{path}/embeddings"
        assert there.requests[0].body["encoding_format"] == SERVERS[name].get("encoding_format", "base64")
    with pytest.raises(ConfigError, match="vllm"):
        OpenAIEmbeddings.at("another")


def test_cookies_are_not_kept_and_a_client_is_shared(server: VendorServer) -> None:
    """What one service sets is sent to none; functions of all vendors share the connections."""
    remote.release()
    for name in ("cohere", "jina"):
        server.replies.append(Reply("error", 503, "busy", headers={"Set-Cookie": "a=b"}))
        BY_NAME[name].create(server).compute_query_embeddings("a")
    assert all("cookie" not in request.headers for request in server.requests)
    assert remote.release() == 1


def test_a_server_that_is_not_there_is_named() -> None:
    """A server that is not there is one line with its address."""
    function = embedreg.get("jina").create(base_url="http://127.0.0.1:9/v1", dim=8, max_retries=0)
    with pytest.raises(CallError, match=r"ConnectError at 127\.0\.0\.1:9"):
        function.compute_query_embeddings("a")


# -- libraries that the tests do not install ---------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="needs litellm, which is not part of [dev]")
def test_litellm_is_a_bridge(server: VendorServer, caplog: pytest.LogCaptureFixture) -> None:
    """`provider/model` whole, options by role, the key as a reference, vectors checked."""
    with caplog.at_level(logging.INFO):
        function = embedreg.get("litellm").create(
            name="jina_ai/m",
            api_base=f"http://{server.host}/v1/embeddings",
            api_key="$var:vendor_key",
            dim=20,
            query_options={"task": "retrieval.query"},
        )
        made = embedreg.embed_column(function, ["a", "b"])
    assert made.valid.all()
    assert server.asked[0].body["model"] == "m"
    assert KEY in server.asked[0].headers["authorization"]


@pytest.mark.skipif(not is_there("google.auth"), reason="needs google-auth")
@pytest.mark.parametrize("name", ["text-embedding-005", "gemini-embedding-001"])
def test_vertex_sends_googles_forms_with_a_token(name: str, server: VendorServer) -> None:
    """A service account's token, fetched by google-auth from its own address; the role in each instance."""
    function = embedreg.get("vertex").create(name=name, dim=256, base_url=f"http://{server.host}")
    for texts in (["a"], ["a", "b"]):
        server.requests.clear()
        made = embedreg.embed_column(function, texts)
        assert made.matrix.shape == (len(texts), 256)
        assert {request.headers["authorization"] for request in server.asked} == {f"Bearer {TOKEN}"}
        path = "/v1beta1/projects/p/locations/us-central1/publishers/google/models/"
        assert all(request.path.startswith(path + name) for request in server.asked)
    assert not np.array_equal(embedreg.embed_query(function, "a"), made.matrix[0])
