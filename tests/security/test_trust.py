"""What a hostile table asks for and does not get: paths, addresses, guarded fields, variables, code."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedreg
from embedreg import register, trust
from embedreg.errors import ConfigError, EmbedregError, HardcodedSecretError, MetadataError, UntrustedError
from tests.hostile import KEY, Base, Service, granted, read, refused

# -- fields and values -------------------------------------------------------------------------------------------------

PATHS = [
    "/etc/passwd",
    "//server/share",
    "~/model",
    "~root/model",
    "./model",
    "../model",
    "..",
    ".",
    "models/../../etc",
    "models/..",
    "C:\\models\\x",
    "C:/models/x",
    "c:model",
    "\\\\server\\share\\model",
    "\\\\?\\C:\\model",
    "models\\x",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "file:model",
    "local-dir:/etc",
    "Local-Dir:model",
    "%2fetc%2fpasswd",
    "%252e%252e%252fetc",
    "..%2f..%2fetc",
    " /etc/passwd",
    "\t/etc/passwd",
    "\u200b/etc/passwd",
    "\u202e/etc/passwd",
    "\uff0fetc",  # a fullwidth solidus
    "\uff0e\uff0e/x",  # fullwidth full stops
    "\u2025/x",  # a two dot leader
    ".. /x",
]
URLS = [
    "https://evil.example/v1",
    "HTTPS://EVIL.EXAMPLE",
    "http://127.0.0.1:8000",
    "http://2130706433/",
    "ws://evil.example",
    "s3://bucket/key",
    "grpc+tls://evil.example:1",
    "https:/evil.example",
    "https:\\\\evil.example",
    "https:evil.example",
    " https://evil.example",
    "ht\ttps://evil.example",
    "\u200bhttps://evil.example",
    "%68ttps://evil.example",
    "\uff48ttps://evil.example",
    "unix:/var/run/docker.sock",
]


@pytest.mark.parametrize("text", [*PATHS, *URLS])
@pytest.mark.parametrize(
    "place",
    [
        lambda text: {"name": text},
        lambda text: {"organization": text},
        lambda text: {"prompts": {"query": text}},
        lambda text: {"options": {"deep": [{"er": [text]}]}},
        lambda text: {"options": {text: 1}},
        lambda text: {"name": f"$var:x:{text}"},
        lambda text: {"name": f"$var:x:$var:y:{text}"},
        lambda text: {"base_url": text},
        lambda text: {"weights_file": text},
    ],
    ids=["plain", "other", "dict", "deep", "key", "default", "default of a default", "endpoint", "file"],
)
def test_paths_and_addresses_are_refused_wherever_they_stand(text: str, place: Callable[[str], dict[str, Any]]) -> None:
    """In any field, at any depth, in any spelling, and as the default of a reference."""
    assert isinstance(refused(place(text)), UntrustedError)


PLAIN = [
    "all-MiniLM-L6-v2",
    "sentence-transformers/all-MiniLM-L6-v2",
    "BAAI/bge-small-en-v1.5",
    "hf-hub:org/name",
    "llama3:8b",
    "query: ",
    "Q: ",
    "Instruct: Given a question, find answers.\nQuery:",
    "50% of ... it, 3.14 e.g. this/that",
    "Represent the Science sentence: ",
    "日本語: ",
    "a..b",
    "v1.0",
]


@pytest.mark.parametrize("text", PLAIN)
def test_names_and_prompts_pass(text: str) -> None:
    """Hub names and prompts are neither paths nor addresses."""
    function = granted({"name": text, "prompts": {"query": text}, "options": {"a": [text, 1, 2.5, True, None]}})
    assert (function.name, function.prompts) == (text, {"query": text})


GUARDED = [
    ("base_url", "internal"),
    ("base_url", 5),
    ("host", "evil.example"),
    ("host", "evil.example:443"),
    ("default_headers", {"X-Forward": "x"}),
    ("weights_file", "model.bin"),
    ("local", "model"),
    ("link", "evil"),
    ("hook", "os.system"),
    ("mode", "fast"),
    ("verify", False),
    ("options", {"trust_remote_code": True}),
    ("options", {"trustRemoteCode": 1}),
    ("options", {"allow_pickle": True}),
    ("options", [{"proxies": {"all": "proxy"}}]),
    ("options", {"cache_dir": "cache"}),
    ("options", {"client": {"baseURL": "evil"}}),
    ("options", {"http_headers": {"a": "b"}}),
]


@pytest.mark.parametrize(("field", "value"), GUARDED)
def test_guarded_fields_are_refused_whatever_they_hold(field: str, value: Any) -> None:
    """By the class's own list, by field name, by type, and by the names of nested keys."""
    problem = refused({field: value})
    assert isinstance(problem, UntrustedError)
    assert field in problem.message
    assert "'service'" in problem.message


@pytest.mark.parametrize(("field", "value"), GUARDED)
def test_the_grant_in_the_message_is_the_grant_that_helps(field: str, value: Any) -> None:
    """Pasting the hint admits the value; the field then has the validated value."""
    hint = refused({field: value}).hint or ""
    code = hint[hint.index("embedreg.trust(") :].partition("),")[0] + ")"
    with eval(code, {"embedreg": embedreg}):
        found = read({field: value})
        problem = found.problems.get("vector")
        assert not isinstance(problem, UntrustedError)
        if problem is None:
            assert found["vector"].function.from_metadata
    assert isinstance(refused({field: value}), UntrustedError)


@pytest.mark.parametrize(
    "text", ["/data/model", "file:///data/model", "local-dir:/data/model", "../model", "/data/o'hara"]
)
def test_the_grant_for_a_path_can_be_pasted(text: str) -> None:
    """Whatever the path's spelling, the hint's grant admits it."""
    hint = refused({"name": text}).hint or ""
    with eval(hint[hint.index("embedreg.trust(") :].partition("),")[0] + ")", {"embedreg": embedreg}):
        assert granted({"name": text}).name == text


def test_null_and_the_class_default_pass() -> None:
    """An old table stores defaults and nulls of guarded fields; they ask for nothing."""

    @register("defaulted")
    class Defaulted(Base):
        """Has an endpoint of its own."""

        base_url: str = "https://api.example/v1"
        folder: str | None = None

    function = granted({"base_url": "https://api.example/v1", "folder": None}, "defaulted")
    assert function.base_url == "https://api.example/v1"
    refused({"base_url": "https://api.example/v2"}, "defaulted")
    assert granted({"base_url": None, "verify": True, "default_headers": None}).verify


def test_fields_that_no_class_has_are_held_to_the_rules() -> None:
    """A class that takes any field does not take any value."""
    refused({"server": "evil"}, "open-service")
    refused({"whatever": "https://evil.example"}, "open-service")
    refused({"x": "$var:openai_api_key"}, "open-service")
    assert granted({"whatever": 5}, "open-service").whatever == 5


def test_keys_that_the_class_does_not_have_are_kept_and_never_used() -> None:
    """Unknown fields need no grant, since nothing reads them."""
    found = read({"evil_url": "https://evil.example", "x": "$var:openai_api_key"})
    assert not hasattr(found["vector"].function, "evil_url")
    assert "evil_url" in found.notes[0]


def test_names_refer_to_registered_functions_only() -> None:
    """A dotted name, a module's path or the alias of an alias imports nothing."""
    for name in ("os.system", "os:system", "embedreg.functions.hashing:HashingEmbeddings", "../hashing", "embedreg:"):
        assert type(refused({}, name)).__name__ == "UnknownFunctionError"


def test_a_refusal_names_only_field_kind_and_grant() -> None:
    """The message names the function, the field and the kind of the value, the hint what to paste."""
    problem = refused({"name": "/srv/models/mine"})
    assert problem.message == "stored metadata sets name of 'service' to a local path, which has not been granted."
    assert "embedreg.trust(paths=['/srv/models/mine'])" in str(problem.hint)
    problem = refused({"base_url": "https://api.evil.example:8443/v1?token=abc"})
    assert "hosts=['api.evil.example:8443']" in str(problem.hint)
    assert "token" not in str(problem)


# -- variables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret() -> str:
    """A variable of this process, and its value."""
    embedreg.get_registry().set_var("mine", "sk-mine")
    return "sk-mine"


def test_a_variable_resolves_in_a_sensitive_field_only(secret: str) -> None:
    """It resolves there by default; elsewhere the default is used, or the table is refused."""
    assert granted({"api_key": "$var:mine"}).api_key == secret
    assert granted({"name": "$var:mine:fallback"}).name == "fallback"
    assert granted({"device": "$var:device:cpu"}).device == "cpu"
    problem = refused({"name": "$var:mine"})
    assert isinstance(problem, UntrustedError)
    assert "variables=['mine']" in str(problem.hint)
    assert secret not in str(problem)
    with trust(variables=["mine"]):
        assert granted({"name": "$var:mine"}).name == secret
        assert granted({"name": "$var:mine:fallback"}).name == secret
        assert granted({"name": "$var:unset:fallback"}).name == "fallback"


@pytest.mark.parametrize(
    "text",
    ["$var:no:$var:mine", "$var:no:$var:no:$var:mine", "$var:no:" * 1000 + "$var:mine", "$var:no:" * 100_000, "$var:"],
)
def test_a_default_that_is_a_reference_again_reads_no_variable(secret: str, text: str) -> None:
    """A chain of defaults is followed to its end, or refused; it never smuggles a reference past the check."""
    for model in ({"name": text}, {"options": {"a": [text]}}):
        problem = refused(model)
        assert isinstance(problem, UntrustedError | MetadataError | ConfigError)
        assert secret not in str(problem)


def test_a_variable_is_read_in_no_nested_place(secret: str) -> None:
    """Headers and other nested values are not sensitive fields, even under a secret's name."""
    for value in ({"Authorization": "$var:mine"}, {"a": ["$var:mine"]}):
        refused({"options": value})
    with trust(variables=["mine"]):
        function = granted({"options": {"Authorization": "$var:mine"}})
        assert function.options == {"Authorization": secret}
        assert secret not in repr(function)


@pytest.mark.parametrize(
    "endpoint",
    [
        {"base_url": "https://evil.example"},
        {"host": "evil.example"},
        {"name": "https://evil.example/m"},
        {"name": "huggingface/https://evil.example/m"},  # an address, to litellm
        {"options": {"x": ["https://evil.example"]}},
        {"default_headers": {"Host": "evil"}},
    ],
)
def test_no_secret_goes_to_an_endpoint_that_the_table_names(secret: str, endpoint: dict[str, Any]) -> None:
    """A granted host alone does not get the key: the variable must be granted beside it."""
    model = {**endpoint, "api_key": "$var:mine"}
    refused(model)
    every = [f"service.{field}" for field in endpoint]
    with trust(hosts=["evil.example"], fields=every):
        assert granted({**endpoint})
        problem = refused(model)
        assert "variables=['mine']" in str(problem.hint)
        with trust(variables=["mine"]):
            assert granted(model).api_key == secret
    with trust(hosts=["evil.example"], fields=every, variables=["other"]):
        refused(model)


def test_a_granted_path_is_not_an_endpoint(secret: str, tmp_path: Path) -> None:
    """A local model beside a key needs the path's grant only."""
    with trust(paths=[tmp_path]):
        assert granted({"name": f"{tmp_path}/m", "weights_file": f"{tmp_path}/w", "api_key": "$var:mine"}).api_key


def test_a_variable_goes_to_the_functions_that_it_is_for() -> None:
    """`functions=` restricts what metadata gets; the reader's own code gets it anyway."""
    registry = embedreg.get_registry()
    registry.set_var("theirs", "sk-theirs", functions=["open-service"])
    assert granted({"api_key": "$var:theirs"}, "open-service").api_key == "sk-theirs"
    assert granted({"api_key": "$var:theirs"}, "embedreg:open-service").api_key == "sk-theirs"
    with pytest.raises(EmbedregError) as caught:
        _ = granted({"api_key": "$var:theirs"}).api_key
    assert "sk-theirs" not in str(caught.value)
    assert Service(api_key="$var:theirs").api_key == "sk-theirs"


def test_scoped_variables_reach_metadata_inside_their_block() -> None:
    """A scope is the reader's own code too; after it the reference has nothing to stand for."""
    with embedreg.get_registry().variables(scoped="sk-scoped"):
        function = granted({"api_key": "$var:scoped"})
        assert function.api_key == "sk-scoped"
    with pytest.raises(EmbedregError, match="scoped"):
        _ = function.api_key
    with pytest.raises(EmbedregError, match="scoped"):
        _ = granted({"api_key": "$var:scoped"}).api_key


def test_two_tenants_never_share_what_one_table_resolved() -> None:
    """A function with a reference is built anew for each reader."""
    with embedreg.get_registry().variables(scoped="one"):
        first = granted({"api_key": "$var:scoped"})
    with embedreg.get_registry().variables(scoped="two"):
        assert granted({"api_key": "$var:scoped"}) is not first


def test_a_secret_written_out_in_a_table_is_refused_and_not_shown() -> None:
    """Another writer's key in plain text is neither used nor printed, whether its class is known or not."""
    for model in (
        {"api_key": "sk-live"},
        {"api_key": "$var:k:sk-live"},
        {"api_key": ["sk-live"]},
        {"options": {"headers": {"Authorization": "sk-live"}}},
        {"options": [{"password": "sk-live"}]},
    ):
        with trust(fields=["service.options"]):
            problem = refused(model)
        assert isinstance(problem, HardcodedSecretError | ConfigError | UntrustedError)
        for name in ("service", "not-installed"):
            entry = {"name": name, "model": model, "source_column": "text", "vector_column": "vector"}
            shown = embedreg.inspect({KEY: json.dumps([entry]).encode()})
            assert "sk-live" not in repr(shown) + str(problem)
            assert "***" in repr(shown[0]["config"])


# -- code --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, 1, "true", "yes", [1], {"a": 1}, "$var:x:true"])
def test_a_stored_trust_remote_code_reads_as_false(value: Any) -> None:
    """Whatever counts as true in some library, with a warning that holds the grant."""
    with pytest.warns(UserWarning, match=r"trust\(remote_code=\['org/model'\]\)"):
        assert granted({"name": "org/model", "trust_remote_code": value}).trust_remote_code is False


def test_remote_code_is_granted_by_model_and_revision() -> None:
    """Anyone may offer a revision of a model on a hub: a stored one must be granted with the name."""
    with trust(remote_code=["org/model"]):
        assert granted({"name": "org/model", "trust_remote_code": True}).trust_remote_code is True
        with pytest.warns(UserWarning, match="org/other"):
            assert granted({"name": "org/other", "trust_remote_code": True}).trust_remote_code is False
        model = {"name": "org/model", "revision": "refs/pr/7", "trust_remote_code": True}
        with pytest.warns(UserWarning, match=r"remote_code=\['org/model@refs/pr/7'\]"):
            assert granted(model).trust_remote_code is False
    with trust(remote_code=["org/model@refs/pr/7"]):
        assert granted(model).trust_remote_code is True
    with trust(remote_code=["small"]):  # the class's default name
        assert granted({"trust_remote_code": True}).trust_remote_code is True
    with trust(remote_code=["*"]):
        assert granted(model).trust_remote_code is True


def test_disabled_options_need_no_grant_and_no_warning() -> None:
    """`trust_remote_code: false`, which old tables hold, passes in silence, nested too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert granted({"trust_remote_code": False, "options": {"trust_remote_code": False}})
