"""Trust, from both sides: what a hostile table asks for and does not get, and what its reader can grant."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pytest
from pydantic import AnyUrl, ConfigDict, ImportString

import embedreg
from embedreg import TextEmbeddingFunction, Traits, grants, metadata, register, trust
from embedreg.errors import ConfigError, EmbedregError, HardcodedSecretError, MetadataError, UntrustedError
from tests.fakes import Lengths

KEY = b"embedding_functions"


class Base(TextEmbeddingFunction):
    """One dimension: the text's length."""

    max_retries: int = 0

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        return np.array([[len(str(text)) + 1] for text in texts], np.float32).reshape(-1, 1)


@register("service")
class Service(Base):
    """Has everything that a table should not decide."""

    traits: ClassVar[Traits] = Traits(remote=True)
    name: str = "small"
    base_url: str | None = None
    host: str | None = None
    default_headers: dict[str, str] | None = None
    weights_file: str | None = None
    local: Path | None = None
    link: AnyUrl | None = None
    hook: ImportString[Any] | None = None
    mode: str | None = None
    verify: bool = True
    options: dict[str, Any] | list[Any] | None = None
    prompts: dict[str, str] | None = None
    organization: str | None = None
    api_key: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    device: str = "auto"

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    @staticmethod
    def guarded_fields() -> list[str]:
        return ["base_url", "default_headers", "mode", "verify"]


@register("open-service")
class OpenService(Service):
    """The same, and any field besides."""

    model_config = ConfigDict(extra="allow")


def read(model: dict[str, Any], name: str = "service") -> Any:
    """Read a table that declares a configuration."""
    entry = {"name": name, "model": model, "source_column": "text", "vector_column": "vector"}
    return embedreg.functions_in({KEY: json.dumps([entry]).encode()})


def refused(model: dict[str, Any], name: str = "service") -> EmbedregError:
    """Read a configuration that is refused, and return why."""
    problem = read(model, name).problems["vector"]
    assert problem.hint
    assert isinstance(problem, EmbedregError)
    return problem


def granted(model: dict[str, Any], name: str = "service") -> Any:
    """Read a configuration that is admitted, and return the function."""
    return read(model, name)["vector"].function


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
    """A hub's names and the prompts that models have are no paths and no addresses."""
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
    """By what the class says, by the field's name, by its type, and by the names of keys inside."""
    problem = refused({field: value})
    assert isinstance(problem, UntrustedError)
    assert field in problem.message
    assert "'service'" in problem.message


@pytest.mark.parametrize(("field", "value"), GUARDED)
def test_the_grant_in_the_message_is_the_grant_that_helps(field: str, value: Any) -> None:
    """Pasting what the hint says admits the value; the field is then what the class makes of it."""
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


def test_names_stand_for_registered_functions_only() -> None:
    """A dotted name, a module's path or the alias of an alias imports nothing."""
    for name in ("os.system", "os:system", "embedreg.functions.hashing:HashingEmbeddings", "../hashing", "embedreg:"):
        assert type(refused({}, name)).__name__ == "UnknownFunctionError"


def test_a_refusal_tells_field_kind_and_grant_but_not_more() -> None:
    """The message names the function, the field and the kind of the value, the hint what to paste."""
    problem = refused({"name": "/srv/models/mine"})
    assert problem.message == "stored metadata sets name of 'service' to a local path, which nobody here has granted."
    assert "embedreg.trust(paths=['/srv/models/mine'])" in str(problem.hint)
    problem = refused({"base_url": "https://api.evil.example:8443/v1?token=abc"})
    assert "hosts=['api.evil.example:8443']" in str(problem.hint)
    assert "token" not in str(problem)


# -- hosts -------------------------------------------------------------------------------------------------------------

SAME_HOST = [
    ("good.example", "https://good.example/v1"),
    ("good.example", "https://GOOD.example:8443"),
    ("good.example", "good.example:9000"),
    ("GOOD.example", "http://good.example?x=@evil"),
    ("good.example:443", "https://good.example/"),
    ("good.example:8000", "http://good.example:8000/v1"),
    ("https://good.example", "https://good.example/v1"),
    ("https://good.example/", "https://good.example:443"),
    ("http://localhost:8000", "http://localhost:8000/v1"),
    ("127.0.0.1", "http://127.0.0.1:1234"),
    ("[::1]", "http://[0:0:0:0:0:0:0:1]:80"),
]
OTHER_HOST = [
    ("good.example", "https://evil.example/good.example"),
    ("good.example", "https://good.example@evil.example"),
    ("good.example", "https://user@good.example"),
    ("good.example", "https://good.example:443@evil.example"),
    ("good.example", "https://good.example.evil.example"),
    ("good.example", "https://evilgood.example"),
    ("good.example", "https://sub.good.example"),
    ("good.example", "https://good.example."),
    ("good.example", "https://good.example\\@evil.example"),
    ("good.example", "https://evil.example\\good.example"),
    ("good.example", "https://good.example\t.evil.example"),
    ("good.example", "https://good.example%2eevil.example"),
    ("good.example", "https://good.example:99999999"),
    ("good.example", "https://good.example:x"),
    ("good.example", "https:///good.example"),
    ("good.example", "https:/good.example"),
    ("good.example", "https:good.example"),
    ("good.example", " https://good.example"),
    ("good.example", "https://\uff47ood.example"),
    ("good.example", "https://good\u3002example"),
    ("good.example", "https://good.example\u2044@evil.example"),
    ("good.example:443", "https://good.example:8443"),
    ("good.example:443", "http://good.example"),
    ("https://good.example", "http://good.example"),
    ("https://good.example", "https://good.example:8443"),
    ("https://good.example", "good.example"),
    ("bank.example", "https://ban\u212a.example"),  # the Kelvin sign is lower-cased to a k
    ("fass.example", "https://fa\xdf.example"),
    ("127.0.0.1", "http://2130706433"),
    ("127.0.0.1", "http://0x7f000001"),
    ("127.0.0.1", "http://127.1"),
    ("[::1]", "http://[::ffff:127.0.0.1]"),
]


@pytest.mark.parametrize(("grant", "text"), SAME_HOST)
def test_a_granted_host_is_granted_in_every_field_and_path(grant: str, text: str) -> None:
    """Case, ports and paths are read as every client reads them."""
    with trust(hosts=[grant]):
        assert granted({"base_url": text}).base_url == text


@pytest.mark.parametrize(("grant", "text"), OTHER_HOST)
def test_another_host_is_not_granted_by_looking_like_one(grant: str, text: str) -> None:
    """Wherever two parsers could disagree on the host, the address is refused."""
    with trust(hosts=[grant]):
        assert isinstance(refused({"base_url": text}), UntrustedError)


@pytest.mark.parametrize(
    "bad",
    [
        {"hosts": [""]},
        {"hosts": ["good.example/v1"]},
        {"hosts": ["https://user@good.example"]},
        {"hosts": ["*.example"]},
        {"hosts": ["evil example"]},
        {"hosts": [5]},
        {"paths": [""]},
        {"paths": [" "]},
        {"paths": ["a\0b"]},
        {"paths": ["file://server/share"]},
        {"paths": [None]},
        {"variables": [""]},
        {"fields": [None]},
    ],
)
def test_a_grant_that_cannot_mean_what_it_says_is_refused(bad: dict[str, Any]) -> None:
    """An empty path would be the working directory, a host with a path would grant more than it says."""
    with pytest.raises(ConfigError, match=r"trust\("):
        trust(**bad)
    assert not grants._grants


# -- paths -------------------------------------------------------------------------------------------------------------


def test_a_granted_folder_holds_what_lies_below_it(tmp_path: Path) -> None:
    """The folder itself, what is in it, and nothing beside it."""
    (tmp_path / "models").mkdir()
    with trust(paths=[tmp_path / "models"]):
        for text in ("models", "models/", "models/a/b", "models/a/../b", "models/./a"):
            assert granted({"name": f"{tmp_path}/{text}"})
            assert granted({"name": f"local-dir:{tmp_path}/{text}"})
            assert granted({"name": f"file://{tmp_path}/{text}"})
        for text in ("models2", "models/..", "models/../x", "", "models/%2e%2e/x", "models/..%2fx"):
            refused({"name": f"{tmp_path}/{text}"})
        refused({"name": f"file://server{tmp_path}/models"})


def test_links_are_followed_before_a_path_is_granted(tmp_path: Path) -> None:
    """A link out of a granted folder grants nothing; a granted folder may itself be reached through a link."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (inside / "out").symlink_to(outside)
    (tmp_path / "door").symlink_to(inside)
    with trust(paths=[inside]):
        refused({"name": f"{inside}/out"})
        refused({"name": f"{inside}/out/model"})
        refused({"name": f"{inside}/out/../other"})
        assert granted({"name": f"{inside}/model"})
        refused({"name": f"{tmp_path}/door/model"})  # not below the granted folder by its letters
    with trust(paths=[tmp_path / "door"]):
        assert granted({"name": f"{tmp_path}/door/model"})
        assert granted({"name": f"{inside}/model"})


def test_a_relative_grant_is_taken_from_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changing the working directory later grants nothing else."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with trust(paths=["."]):
        assert granted({"name": "./model"})
        assert granted({"weights_file": "model.bin"})
        monkeypatch.chdir(tmp_path / "b")
        refused({"name": "./model"})
        refused({"weights_file": "model.bin"})


def test_may_read_is_what_a_function_asks_before_it_looks_at_files(tmp_path: Path) -> None:
    """The reader's own function may; one from metadata only where the value is a path, granted now; never by name."""
    assert grants.may_read(Service(name="model"), "model")
    with trust(paths=[tmp_path, "."]) as grant:
        function = granted({"name": f"{tmp_path}/model"})
        assert function.from_metadata
        assert grants.may_read(function, function.name)
        assert not grants.may_read(function, "/etc")
        assert not grants.may_read(granted({"name": "model"}), "model")
        grant.revoke()
        assert not grants.may_read(function, function.name)


# -- variables ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def secret() -> str:
    """A variable of this process, and its value."""
    embedreg.get_registry().set_var("mine", "sk-mine")
    return "sk-mine"


def test_a_variable_resolves_in_a_sensitive_field_only(secret: str) -> None:
    """There by default; elsewhere the default stands in, or the table is refused."""
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
    """Headers and other nested values are no sensitive fields, even under a secret's name."""
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


def test_a_granted_path_is_no_endpoint(secret: str, tmp_path: Path) -> None:
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
    """Another writer's key in the clear is neither used nor printed, whether its class is known or not."""
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


def test_what_is_off_needs_no_grant_and_no_warning() -> None:
    """`trust_remote_code: false`, which old tables hold, passes in silence, nested too."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert granted({"trust_remote_code": False, "options": {"trust_remote_code": False}})


# -- grants ------------------------------------------------------------------------------------------------------------


def test_a_grant_holds_until_it_is_revoked() -> None:
    """As a call it lasts, as a context manager it ends with the block, and can be entered again."""
    model = {"host": "good.example"}
    grant = trust(hosts="good.example")
    assert granted(model)
    grant.revoke()
    grant.revoke()
    refused(model)
    with grant:
        assert granted(model)
        with trust(hosts=["good.example"]):
            pass
        assert granted(model)
    refused(model)
    with pytest.raises(RuntimeError, match="inside"), trust(hosts=["good.example"]):
        raise RuntimeError("inside")
    refused(model)


def test_a_grant_reaches_other_threads_and_reset_ends_it() -> None:
    """Engines embed in threads of their own, so grants are the process's."""
    trust(hosts=["good.example"])
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(granted({"host": "good.example"})))
    thread.start()
    thread.join()
    assert seen
    embedreg.get_registry().reset()
    assert not grants.granted("hosts")


# -- vouched instances -------------------------------------------------------------------------------------------------


def test_a_configuration_that_this_process_created_is_that_instance(tmp_path: Path) -> None:
    """Runtime fields included, and with no grant; the last one created wins."""
    mine = Service.create(name=str(tmp_path), base_url="https://mine.example", device="cuda:7")
    stored = metadata.encode([mine.bind("text", "vector")])
    assert embedreg.functions_in({KEY: stored})["vector"].function is mine
    assert not mine.from_metadata
    later = Service.create(name=str(tmp_path), base_url="https://mine.example", device="cpu")
    assert embedreg.functions_in({KEY: stored})["vector"].function is later


def test_only_an_equal_configuration_is_vouched_for(tmp_path: Path) -> None:
    """One more field, another value, or another type of it is another configuration."""
    Service.create(name=str(tmp_path), options={"a": 1})
    for model in (
        {"name": f"{tmp_path}/x", "options": {"a": 1}},
        {"name": str(tmp_path)},
        {"name": str(tmp_path), "options": {"a": True}},
        {"name": str(tmp_path), "options": {"a": 1}, "api_key": "$var:k"},
        {"name": str(tmp_path), "options": {"a": 1}, "mode": "x"},
    ):
        refused(model)
    assert granted({"name": str(tmp_path), "options": {"a": 1}})


def test_the_plain_constructor_vouches_for_nothing(tmp_path: Path) -> None:
    """Only create() says: this is the one."""
    Service(name=str(tmp_path))
    refused({"name": str(tmp_path)})


def test_a_class_registered_later_is_another_one(tmp_path: Path) -> None:
    """What the old class's code created says nothing of the new one's."""

    def define() -> Any:
        @register("redefined")
        class Redefined(Base):
            """Is defined twice."""

            name: str = "x"

        return Redefined

    old = define().create(name=str(tmp_path))
    assert granted({"name": str(tmp_path)}, "redefined") is old
    define()
    refused({"name": str(tmp_path)}, "redefined")


def test_an_instance_that_was_changed_since_is_not_vouched_for(tmp_path: Path) -> None:
    """Assigning to a field makes it another configuration than the one that was created."""
    mine = Service.create(name=str(tmp_path))
    mine.organization = "other"
    refused({"name": str(tmp_path)})


def test_a_stored_function_cannot_vouch_for_another(tmp_path: Path) -> None:
    """A constructor that metadata runs may create functions; they are not the reader's own."""

    @register("outer")
    class Outer(Base):
        """Creates what its configuration says."""

        inner: dict[str, Any] = {}  # noqa: RUF012  # pydantic copies it

        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            Service.create(**self.inner)

    with trust(paths=[tmp_path]):
        granted({"inner": {"name": str(tmp_path)}}, "outer")
    refused({"name": str(tmp_path)})


def test_reset_forgets_what_was_vouched_for(tmp_path: Path) -> None:
    """After it, metadata gets what a bare process would give."""
    Service.create(name=str(tmp_path))
    embedreg.get_registry().reset()
    register("service")(Service)
    refused({"name": str(tmp_path)})


def test_a_table_does_not_change_the_readers_own_function() -> None:
    """What a table recorded of the vectors stays with the table, also when it declares the reader's function."""
    mine = Lengths.create(scale=5)
    entry = json.loads(metadata.encode([mine.bind("text", "vector")]))[0]
    entry["model"]["embedreg"] |= {"probe": "AACAPwAAgD8AAIA/", "ndims": 1}
    table = pa.table({"text": ["a"]}, metadata={KEY: json.dumps([entry])})
    assert embedreg.functions_in(table)["vector"].function is mine
    with pytest.raises(embedreg.errors.DriftError):
        embedreg.embed_table(table)
    fresh = embedreg.embed_table(pa.table({"text": ["a"]}), mine.bind("text", "vector"))
    assert fresh["vector"].to_pylist() == [[5.0, 5.0, 5.0]]


# -- nothing happens while metadata is read ----------------------------------------------------------------------------

AUDITED = """
import json, sys, warnings
import pyarrow, numpy
import embedreg
names = ["sentence-transformers", "openai", "hashing"]
for name in names:  # our own modules are imported before the audit; what they would import is not
    own = [{"name": name, "model": {}, "source_column": "t", "vector_column": "v"}]
    embedreg.inspect({b"embedding_functions": json.dumps(own).encode()})
events = []
def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.system", "exec", "compile"):
        events.append((event, str(args[0])[:200]))
    elif event.startswith(("socket.", "urllib.", "http.", "ctypes.")) or event == "import":
        events.append((event, str(args[0])[:200]))
sys.addaudithook(hook)
model, folder = sys.argv[1], sys.argv[2]
hostile = [
    {"name": model}, {"name": folder}, {"name": "all-MiniLM-L6-v2"}, {"name": "org/evil", "trust_remote_code": True},
    {"name": "org/x", "revision": "refs/pr/1"}, {"base_url": "http://127.0.0.1:9", "api_key": "$var:k"},
    {"dim": 4}, {"name": "$var:HOME"}, {"name": "$var:no:$var:HOME"}, {"name": "//server/share"},
    {"name": "\\\\\\\\server\\\\share"}, {"device": "cuda:99"}, {"name": "os:system"}, {"x": "y"},
]
entries = [
    {"name": name, "model": m, "source_column": "t", "vector_column": f"{name}{i}"}
    for name in [*names, "os.path:join", "evil.module", "torch"] for i, m in enumerate(hostile)
]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    before = len(events)
    found = embedreg.functions_in({b"embedding_functions": json.dumps(entries).encode()})
    looked = embedreg.inspect({b"embedding_functions": json.dumps(entries).encode()})
during = events[before:]
heavy = {"torch", "transformers", "sentence_transformers", "openai", "evil", "huggingface_hub"} & set(sys.modules)
print(json.dumps({"events": during, "heavy": sorted(heavy), "found": len(found), "problems": len(found.problems)}))
"""


def test_reading_metadata_opens_imports_and_contacts_nothing(
    run_python: Callable[..., str], minilm_path: Path, tmp_path: Path
) -> None:
    """No file is opened or folder listed, no socket made, no module imported, whatever is declared."""
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    told = json.loads(run_python(AUDITED, minilm_path, tmp_path, cwd=tmp_path))
    assert told["heavy"] == []
    assert told["events"] == []
    assert told["found"] > 10
    assert told["problems"] > 30


def test_reading_metadata_asks_no_function_anything() -> None:
    """Neither ndims() nor an embedding method is called; inspect() calls none either."""
    called: list[str] = []

    @register("watched")
    class Watched(Base):
        """Notes what is asked of it."""

        def ndims(self) -> int:
            called.append("ndims")
            return 1

        def generate_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
            called.append("generate")
            return super().generate_embeddings(texts)

        def model_identity(self) -> str | None:
            called.append("identity")
            return None

        def vector_traits(self) -> dict[str, Any]:
            called.append("traits")
            return {}

    entry = {
        "name": "watched",
        "model": {"embedreg": {"probe": "AACAPw==", "fingerprint": "x", "ndims": 9}},
        "source_column": "text",
        "vector_column": "vector",
    }
    data = {KEY: json.dumps([entry]).encode()}
    assert embedreg.functions_in(data)["vector"]
    assert embedreg.inspect(data)[0]["status"] == "ready"
    assert called == []


# -- the whole way, with a real model ----------------------------------------------------------------------------------

BARE = """
import sys, pyarrow as pa, pyarrow.parquet as pq
import embedreg
from embedreg.errors import UntrustedError
table, model, how = sys.argv[1:4]
if how == "grant":
    embedreg.trust(paths=[model])
if how == "create":
    embedreg.get("sentence-transformers").create(name=model)
found = embedreg.functions_in(table)
if how == "bare":
    problem = found.problems["vector"]
    assert isinstance(problem, UntrustedError), problem
    assert f"embedreg.trust(paths=[{model!r}])" in str(problem), problem
    assert "torch" not in sys.modules
else:
    made = embedreg.embed_table({"text": ["a wheel"]}, pq.read_schema(table))
    print(made["vector"][0].as_py()[:3])
"""


@pytest.fixture(scope="module")
def stored_path(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet file whose function is a local model's."""
    import pyarrow.parquet as pq

    function = embedreg.get("sentence-transformers").create(name=str(minilm_path))
    made = embedreg.embed_table({"text": ["a wheel"]}, function.bind("text", "vector"))
    path = tmp_path_factory.mktemp("stored") / "t.parquet"
    pq.write_table(made, path)
    return path


@pytest.mark.parametrize("how", ["bare", "grant", "create"])
def test_a_local_model_opens_with_a_grant_or_the_readers_own_code(
    how: Literal["bare", "grant", "create"], run_python: Callable[..., str], stored_path: Path, minilm_path: Path
) -> None:
    """Refused in a bare new process, with the grant to paste; it loads after trust() or after create()."""
    printed = run_python(BARE, stored_path, minilm_path, how, cwd=stored_path.parent)
    assert bool(printed.strip()) == (how != "bare")


def test_a_hub_name_needs_no_grant_and_never_means_a_folder_here(
    run_python: Callable[..., str], minilm_path: Path, tmp_path: Path
) -> None:
    """`all-MiniLM-L6-v2` loads from the verified wheel although the working directory has a folder of that name."""
    decoy = tmp_path / "all-MiniLM-L6-v2"
    decoy.mkdir()
    (decoy / "modules.json").write_text("[]")
    entry = {
        "name": "sentence-transformers",
        "model": {"name": "all-MiniLM-L6-v2"},
        "source_column": "text",
        "vector_column": "vector",
    }
    code = (
        "import sys, embedreg; found = embedreg.functions_in({b'embedding_functions': sys.argv[1].encode()});"
        "print(found['vector'].function.ndims())"
    )
    assert run_python(code, json.dumps([entry]), cwd=tmp_path).strip() == "384"
    assert os.listdir(decoy) == ["modules.json"]
