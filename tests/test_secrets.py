"""Secrets: what is refused, how references are resolved, and that a secret leaves a function nowhere."""

import asyncio
import base64
import contextlib
import copy
import enum
import functools
import io
import json
import logging
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretBytes,
    SecretStr,
    computed_field,
    field_validator,
    model_validator,
)

from embedreg import TextEmbeddingFunction, get_registry, secrets
from embedreg.base import sensitive_fields
from embedreg.errors import (
    CallError,
    ConfigError,
    EmbedregError,
    HardcodedSecretError,
    MissingVariableError,
    RowError,
)
from embedreg.redaction import redact

SECRET = "sk-live/π+12345 abc"
registry = get_registry()
HOME = Path(secrets.__file__).parent


class Base(TextEmbeddingFunction):
    """Embeds a text as its length."""

    def ndims(self) -> int:
        return 1

    def generate_embeddings(self, texts: Any) -> Any:
        return [[float(len(text))] for text in texts]


class Inner(BaseModel):
    """A nested model with a secret."""

    key: SecretStr | None = None
    host: str = "here"


@dataclass(frozen=True)
class Pair:
    """A nested dataclass whose one field has a secret's name."""

    password: str
    host: str = "here"


class Pool(str, enum.Enum):  # noqa: UP042 (the older spelling is the one that equals its text in every way)
    """A choice."""

    mean = "mean"
    first = "first"


class Keyed(Base):
    """Every kind of field that can hold a secret, and some that cannot."""

    api_key: str | None = None
    wrapped: SecretStr | None = None
    listed: list[SecretStr] = Field(default=[])
    inner: Inner | None = None
    pair: Pair | None = None
    raw: SecretBytes | None = None
    headers: dict[str, Any] = Field(default={})
    url: str = ""
    dim: int = 3

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` stands for the secret."""
    registry.set_var("key", SECRET)


def forms(secret: str = SECRET) -> list[str]:
    """The secret, and what can be recognised of it."""
    return [secret, secret[:7], quote(secret, safe=""), json.dumps(secret)[1:-1]]


def assert_clean(text: object) -> None:
    """No form of the secret is in a text."""
    for form in forms():
        assert form not in str(text)


def everything_about(exc: BaseException) -> str:
    """All that can be got out of an error: its chain, notes, members, attributes, and the variables of our frames."""
    out, seen, todo = io.StringIO(), set(), [exc]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        todo += [other for other in (item.__cause__, item.__context__) if other is not None]
        todo += list(getattr(item, "exceptions", ()))
        print(str(item), repr(item), item.args, vars(item), file=out)
        traceback.print_exception(item, file=out)
        for frame, _ in traceback.walk_tb(item.__traceback__):
            if (
                "embedreg" in frame.f_code.co_filename.split("/")[-2]
            ):  # our own frames; a caller's variables are its own
                print({k: v for k, v in frame.f_locals.items() if k != "config"}, file=out)
    return out.getvalue()


# -- what is refused ---------------------------------------------------------------------------------------------------

HARDCODED = {
    "a named field": {"api_key": SECRET},
    "a SecretStr field": {"wrapped": SECRET},
    "a SecretStr": {"wrapped": SecretStr(SECRET)},
    "a SecretBytes": {"raw": SecretBytes(SECRET.encode())},
    "bytes": {"raw": SECRET.encode()},
    "a list of SecretStr": {"listed": ["$var:key", SECRET]},
    "a nested model, as a dict": {"inner": {"key": SECRET}},
    "a nested model": {"inner": Inner(key=SecretStr(SECRET))},
    "a nested dataclass": {"pair": Pair(SECRET)},
    "a header": {"headers": {"Authorization": SECRET}},
    "a header in camel case": {"headers": {"xApiKey": SECRET}},
    "a dict at any depth": {"headers": {"a": [{"b": ({"client_secret": SECRET},)}]}},
    "a header of another name that carries a bearer token": {"headers": {"X-Custom": "Bearer abcdefgh"}},
    "a URL with a password": {"url": "https://user:hunter2@example.org/v1"},
    "a default": {"api_key": f"$var:key:{SECRET}"},
    "a default in a SecretStr": {"wrapped": SecretStr(f"$var:key:{SECRET}")},
    "a default in a header": {"headers": {"Authorization": f"$var:key:{SECRET}"}},
    "a number": {"headers": {"password": 1234}},
}

DOORS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "create": lambda config: Keyed.create(**config),
    "the constructor": lambda config: Keyed(**config),
    "model_validate": Keyed.model_validate,
    "model_construct": lambda config: Keyed.model_construct(**config),
    "model_copy": lambda config: Keyed().model_copy(update=config),
    "assignment": lambda config: [setattr(Keyed(), name, value) for name, value in config.items()],
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("config", HARDCODED.values(), ids=HARDCODED)
def test_a_hardcoded_secret_is_refused(config: dict[str, Any], door: Callable[[dict[str, Any]], Any]) -> None:
    """By every way into a configuration; the message names the place and the remedy, never the value."""
    with pytest.raises(HardcodedSecretError) as caught:
        door(config)
    assert next(iter(config)) in caught.value.message
    assert "$var:" in str(caught.value)
    assert "bind_env" in str(caught.value)
    assert_clean("".join(traceback.format_exception(caught.value)))
    assert "hunter2" not in str(caught.value)


def test_json_is_refused_alike() -> None:
    """`model_validate_json` builds through the constructor; what is no object is a ConfigError."""
    with pytest.raises(HardcodedSecretError):
        Keyed.model_validate_json(json.dumps({"api_key": SECRET}))
    with pytest.raises(HardcodedSecretError):
        Keyed.model_validate_strings({"api_key": SECRET})
    assert Keyed.model_validate_json(b'{"dim": 5}').dim == 5
    for text in ("[]", "not json", "3"):
        with pytest.raises(ConfigError, match="is a dict"):
            Keyed.model_validate_json(text)


@pytest.mark.parametrize("value", [None, "", "$var:key", "$var:key:", SecretStr("$var:key")])
def test_what_holds_no_secret_is_taken(value: Any) -> None:
    """Nothing, an empty text, a reference, and a reference whose default is empty."""
    Keyed.create(api_key=value if not isinstance(value, SecretStr) else None, wrapped=value)


def test_a_hardcoded_default_is_refused_when_the_class_is_made() -> None:
    """Otherwise it would be in the JSON schema that `describe` shows; the message names the class and the field."""
    with pytest.raises(HardcodedSecretError, match=r"the default of Leaky\.api_key"):

        class Leaky(Base):
            api_key: str = SECRET

    with pytest.raises(HardcodedSecretError, match=r"Nested\.headers.*Authorization"):

        class Nested(Base):
            headers: dict[str, str] = Field(default={"Authorization": SECRET})


def test_a_default_factory_cannot_bring_a_secret_either() -> None:
    """Reading the environment in a factory would pickle the value: the hint says how to bind the variable."""

    class Factory(Base):
        api_key: str = Field(default_factory=lambda: SECRET)

    with pytest.raises(HardcodedSecretError, match="bind_env"):
        Factory()
    assert Factory(api_key="$var:key").api_key == SECRET


def test_the_constructors_own_parameters_are_looked_at() -> None:
    """A subclass's `__init__` may take a secret under a name of its own; its pickle would carry it."""

    class Own(Base):
        def __init__(self, client_secret: str | None = None) -> None:
            super().__init__()

    with pytest.raises(HardcodedSecretError, match="client_secret"):
        Own(client_secret=SECRET)
    assert Own(client_secret="$var:key")


def test_a_field_cannot_take_over_a_resolved_secret() -> None:
    """A class that writes its key into another field would dump, store and pickle it; a private attribute does not."""

    class Derived(Base):
        api_key: str
        url: str = ""

        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            self.url = f"https://here/?q={self.api_key}"

    with pytest.raises(HardcodedSecretError, match=r"url would hold a secret.*\n.*self\._url") as caught:
        Derived(api_key="$var:key")
    assert_clean(everything_about(caught.value))

    class Validated(Base):
        api_key: str
        headers: dict[str, str] = Field(default={})

        @model_validator(mode="before")
        @classmethod
        def fill(cls, data: dict[str, Any]) -> dict[str, Any]:
            return {**data, "headers": {"X-Some": f"token {data['api_key']}"}}

    with pytest.raises(HardcodedSecretError, match="headers would hold a secret"):
        Validated(api_key="$var:key")


def test_a_dict_that_was_changed_in_place_is_checked_before_it_is_pickled() -> None:
    """Nobody sees `fn.headers[...] = ...`; what leaves the process is checked again."""
    function = Keyed(headers={"a": "b"})
    function.headers["Authorization"] = SECRET
    with pytest.raises(HardcodedSecretError, match="Authorization"):
        pickle.dumps(function)


def test_sensitive_is_what_the_class_says_what_its_types_say_and_what_the_name_says() -> None:
    """`sensitive_keys`, SecretStr in any form, and text fields called like a secret; no flags, numbers or choices."""

    class Fields(Base):
        said: str = ""
        typed: dict[str, list[SecretStr | None]] = Field(default={})
        access_token: str | None = None
        password: Any = None
        auth: bool = False
        token: Literal["cls", "mean"] = "cls"
        secret: Pool = Pool.mean
        pad_token: str = "[PAD]"
        monkey: str = ""
        credentials: Inner | None = None

        @staticmethod
        def sensitive_keys() -> list[str]:
            return ["said"]

    assert sensitive_fields(Fields) == {"said", "typed", "access_token", "password"}


SECRET_NAMES = """
Authorization Proxy-Authorization x-api-key X-Api-Key apikey apiKey openaiApiKey OPENAI_API_KEY token X-Auth-Token
X-Amz-Security-Token hf_token access_token clientSecret client_secret secretAccessKey private_key password db.password
pwd passphrase Cookie Set-Cookie Ocp-Apim-Subscription-Key X-Goog-Api-Key X-Vault-Token credentials connectionString
AccountKey jwt
"""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_of_secrets_are_known(name: str) -> None:
    """Headers and options as services spell them."""
    assert secrets.looks_sensitive(name)


@pytest.mark.parametrize(
    "name",
    [
        "pad_token",
        "eos_token",
        "max_tokens",
        "tokenizer",
        "monkey",
        "keyboard",
        "author",
        "secretary",
        "X-Title",
        3,
        None,
    ],
)
def test_names_of_other_things_are_left_alone(name: Any) -> None:
    """Tokenizer options, words that merely contain one, and what is no text."""
    assert not secrets.looks_sensitive(name)


# -- references --------------------------------------------------------------------------------------------------------


def test_a_reference_is_resolved_wherever_it_stands() -> None:
    """In text, SecretStr, SecretBytes, lists, nested models and dataclasses, dicts at any depth; read as typed."""
    function = Keyed.create(
        api_key="$var:key",
        wrapped="$var:key",
        listed=["$var:key", SecretStr("$var:key")],
        inner={"key": "$var:key", "host": "there"},
        pair=Pair("$var:key"),
        raw="$var:key",
        headers={"Authorization": "$var:key", "deep": [({"api_key": "$var:key"},)], "X": "plain"},
        url="$var:place:nowhere",
    )
    assert function.api_key == SECRET
    assert type(function.api_key) is str
    assert function.wrapped is not None
    assert function.wrapped.get_secret_value() == SECRET
    assert [item.get_secret_value() for item in function.listed] == [SECRET, SECRET]
    assert function.inner is not None
    assert function.inner.key is not None
    assert (function.inner.key.get_secret_value(), function.inner.host) == (SECRET, "there")
    assert function.pair == Pair(SECRET)
    assert function.raw is not None
    assert function.raw.get_secret_value() == SECRET.encode()
    assert function.headers == {"Authorization": SECRET, "deep": [({"api_key": SECRET},)], "X": "plain"}
    assert function.url == "nowhere"


def test_a_model_that_was_built_before_is_resolved_too() -> None:
    """A nested model may come as an instance; the caller's own object stays as it was."""
    inner = Inner(key=SecretStr("$var:key"))
    function = Keyed.create(inner=inner)
    assert function.inner is not None
    assert function.inner.key == SecretStr(SECRET)
    assert inner.key == SecretStr("$var:key")


class Typed(Base):
    """Fields that are no text."""

    count: int = 1
    ratio: float = 1.0
    flag: bool = False
    maybe: int | None = None
    choice: Literal["a", "b"] = "a"
    pool: Pool = Pool.mean
    numbers: list[int] = Field(default=[])
    inner: Inner = Inner()


def test_a_reference_may_stand_for_any_type() -> None:
    """Numbers, flags, choices, enums, optionals, lists, nested models: converted and checked as if written out."""
    for name, value in {"n": "7", "r": "2.5", "yes": "true", "b": "b", "first": "first", "host": "there"}.items():
        registry.set_var(name, value)
    function = Typed.create(
        count="$var:n",
        ratio="$var:r",
        flag="$var:yes",
        maybe="$var:n",
        choice="$var:b",
        pool="$var:first",
        numbers=[1, "$var:n"],
        inner={"host": "$var:host"},
    )
    assert (function.count, function.ratio, function.flag, function.maybe) == (7, 2.5, True, 7)
    assert (function.choice, function.numbers, function.inner.host) == ("b", [1, 7], "there")
    assert function.pool is Pool.first
    assert pickle.loads(pickle.dumps(function)) == function
    function.model_dump()
    json.loads(function.model_dump_json())
    with pytest.raises(ConfigError, match="count: Input should be a valid integer"):
        Typed.create(count="$var:b")
    with pytest.raises(ConfigError, match="choice"):
        Typed.create(choice="$var:n")


def test_a_stock_tables_reference_resolves_to_its_default() -> None:
    """`$var:device:cpu` is what LanceDB's own classes store; a default may hold colons."""

    class Stock(Base):
        device: str = "auto"
        batch_size: int = 32

    function = Stock.create(device="$var:device:cpu", batch_size="$var:batch:16")
    assert (function.device, function.batch_size) == ("cpu", 16)
    assert Stock.create(device="$var:device:cuda:1").device == "cuda:1"
    registry.set_var("device", "mps")
    assert function.device == "mps"


def test_a_class_default_may_be_a_reference() -> None:
    """It is checked, converted and kept as one that was passed."""

    class Defaults(Base):
        api_key: str = "$var:key"
        size: int = "$var:size:8"  # type: ignore[assignment]

    function = Defaults.create()
    assert (function.api_key, function.size) == (SECRET, 8)
    assert function.safe_model_dump() == {}
    assert_clean(function.model_dump())
    registry.set_var("size", "9")
    assert Defaults().size == 9
    secrets.variables.clear()
    with pytest.raises(MissingVariableError, match="'key' is not set"):
        Defaults.create()


class Bearer(Base):
    """Changes its key as it is validated; its number is sensitive; its instances are frozen."""

    api_key: str
    pin: int = 0
    model_config = ConfigDict(frozen=True)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key", "pin"]

    @field_validator("api_key")
    @classmethod
    def prefix(cls, value: str) -> str:
        return f"Bearer {value}"


def test_a_validators_conversion_of_a_secret_is_what_reading_gives() -> None:
    """The instance keeps the reference, also when a validator changes the value, and follows a rotated key."""

    registry.set_var("pin", "1234")
    function = Bearer.create(api_key="$var:key", pin="$var:pin")
    twin = pickle.loads(pickle.dumps(function))
    for each in (function, twin, copy.copy(function)):
        assert (each.api_key, each.pin) == (f"Bearer {SECRET}", 1234)
        assert each.raw_fields() == {"max_retries": 7, "api_key": "$var:key", "pin": "$var:pin"}
        assert_clean(each.model_dump())
        assert "1234" not in each.model_dump_json()
    registry.set_var("key", "rotated-key")
    assert function.api_key == "Bearer rotated-key"


def test_code_of_a_subclass_sees_references_kept_already() -> None:
    """In `model_post_init` and after-validators reading resolves, and printing shows no secret."""
    seen: list[str] = []

    class Watching(Base):
        api_key: str
        _client: str | None = None

        def model_post_init(self, context: Any) -> None:
            self._client = self.api_key
            seen.append(f"{self!r} {self.model_dump()}")

        @model_validator(mode="after")
        def look(self) -> "Watching":
            seen.append(f"{self!r} {self.__dict__} {self.api_key == SECRET}")
            return self

    function = Watching(api_key="$var:key")
    assert function._client == SECRET
    assert len(seen) == 2
    assert seen[1].endswith("True")
    assert_clean(seen)


def test_extra_fields_are_kept_as_references_too() -> None:
    """Under `extra="allow"` what a service calls its own is resolved when read, compared, copied, and never dumped."""

    class Open(Base):
        model_config = ConfigDict(extra="allow")

    function = Open.create(region="eu", api_key="$var:key", headers={"X": "$var:key"})
    assert function.api_key == SECRET  # type: ignore[attr-defined]
    assert function.headers == {"X": SECRET}  # type: ignore[attr-defined]
    assert function != Open.create(region="us", api_key="$var:key", headers={"X": "$var:key"})
    twin = copy.copy(function)
    assert twin == function
    assert twin.api_key == SECRET  # type: ignore[attr-defined]
    for text in (repr(function), str(function), function.model_dump(), function.model_dump_json()):
        assert_clean(text)
    with pytest.raises(HardcodedSecretError):
        Open.create(api_key=SECRET)
    with pytest.raises(HardcodedSecretError):
        function.api_key = SECRET  # type: ignore[attr-defined]


# -- variables ---------------------------------------------------------------------------------------------------------


def test_a_missing_variable_fails_at_once_in_the_users_own_call() -> None:
    """The message names it, what may have been meant, and how to set it."""
    with pytest.raises(MissingVariableError) as caught:
        Keyed.create(api_key="$var:kye")
    assert "'kye' is not set" in str(caught.value)
    assert "did you mean 'key'?" in str(caught.value)
    assert "bind_env('kye', 'KYE')" in str(caught.value)
    with pytest.raises(ConfigError, match="has no name"):
        Keyed.create(url="$var:")
    with pytest.raises(MissingVariableError):
        registry.get_var("kye")


@pytest.mark.parametrize("name", ["", "a:b", None, 3, ["a"]])
def test_a_variables_name_is_a_text_without_colons(name: Any) -> None:
    """At each door."""
    for door in (
        lambda: registry.set_var(name, "v"),
        lambda: registry.bind_env(name, "V"),
        lambda: registry.get_var(name),
    ):
        with pytest.raises(ConfigError, match="cannot name a variable"):
            door()


@pytest.mark.parametrize("value", [None, 3, b"bytes", SecretStr("x")])
def test_a_variables_value_is_a_text(value: Any) -> None:
    """Set for the process or for a block."""
    with pytest.raises(ConfigError, match="must be a str"):
        registry.set_var("v", value)
    with pytest.raises(ConfigError, match="must be a str"), registry.variables(v=value):
        pass


def test_a_bound_variable_is_read_from_the_environment_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binding holds the name alone; an environment without it says which export is missing."""
    registry.bind_env("key", "SOME_SERVICE_KEY")
    with pytest.raises(MissingVariableError, match=r"SOME_SERVICE_KEY, which is not set.*\n.*export SOME_SERVICE_KEY="):
        Keyed.create(api_key="$var:key")
    monkeypatch.setenv("SOME_SERVICE_KEY", "one")
    function = Keyed.create(api_key="$var:key")
    assert function.api_key == "one"
    monkeypatch.setenv("SOME_SERVICE_KEY", "two")
    assert function.api_key == "two"
    for env in ("", None, "A=B"):
        with pytest.raises(ConfigError, match="environment variable"):
            registry.bind_env("key", env)  # type: ignore[arg-type]


def test_scopes_nest_and_end() -> None:
    """The inner block wins, the outer comes back, also after an error."""
    function = Keyed(api_key="$var:key")
    with registry.variables(key="outer", other="kept"):
        with registry.variables(key="inner"):
            assert (function.api_key, registry.get_var("other")) == ("inner", "kept")
        with contextlib.suppress(KeyError), registry.variables(key="failing"):
            raise KeyError(function.api_key)
        assert function.api_key == "outer"
    assert function.api_key == SECRET


def test_threads_do_not_see_each_others_scopes() -> None:
    """Two tenants in two threads read their own keys through one shared instance, at the same moment."""
    function = Keyed(api_key="$var:key")
    barrier = threading.Barrier(4)

    def tenant(name: str) -> list[str]:
        found = []
        with registry.variables(key=name):
            for _ in range(50):
                barrier.wait(10)
                found.append(str(function.api_key))
        return found

    names = [f"tenant-{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(tenant, names))
    assert results == [[name] * 50 for name in names]
    assert function.api_key == SECRET


def test_tasks_do_not_see_each_others_scopes_and_inherit_their_parents() -> None:
    """Interleaved tasks keep their own; a child task and `to_thread` start with the scope they were made in."""
    function = Keyed(api_key="$var:key")

    async def tenant(name: str) -> list[Any]:
        with registry.variables(key=name):
            found = []
            for _ in range(5):
                await asyncio.sleep(0)
                found.append(function.api_key)
            found.append(await asyncio.to_thread(lambda: function.api_key))
            found.append(await asyncio.create_task(asyncio.sleep(0, None)) or function.api_key)
            return found

    async def main() -> list[list[Any]]:
        return await asyncio.gather(*(tenant(f"task-{number}") for number in range(3)))

    assert asyncio.run(main()) == [[f"task-{number}"] * 7 for number in range(3)]


def test_a_variable_for_named_functions_is_withheld_from_others() -> None:
    """`functions=` binds where stored metadata asks; the error does not pretend that the variable is missing."""
    from embedreg.base import from_stored

    registry.set_var("key", SECRET, functions=["mine"])
    assert from_stored(Keyed, {"api_key": "$var:key"}, "mine", {}).api_key == SECRET  # type: ignore[attr-defined]
    other = from_stored(Keyed, {"api_key": "$var:key"}, "other", {})
    with pytest.raises(MissingVariableError, match=r"not for 'other' to have.*\n.*functions=\['mine', 'other'\]"):
        _ = other.api_key  # type: ignore[attr-defined]
    assert Keyed(api_key="$var:key").api_key == SECRET


def test_what_metadata_built_is_withheld_from_its_own_hooks_as_well() -> None:
    """A class's `model_post_init` runs before the instance is done, and reads under the same rule."""
    from embedreg.base import from_stored

    class Early(Base):
        api_key: str
        _early: str = ""

        def model_post_init(self, context: Any) -> None:
            self._early = self.api_key

    registry.set_var("key", SECRET, functions=["mine"])
    with pytest.raises(MissingVariableError, match="not for 'other'"):
        from_stored(Early, {"api_key": "$var:key"}, "other", {})


# -- nowhere in clear --------------------------------------------------------------------------------------------------


@pytest.fixture
def full() -> Keyed:
    """An instance with the secret in each place that can hold one, all of them read once."""
    function = Keyed.create(
        api_key="$var:key",
        wrapped="$var:key",
        listed=["$var:key"],
        inner={"key": "$var:key"},
        raw="$var:key",
        headers={"Authorization": "$var:key"},
    )
    for name in Keyed.model_fields:
        getattr(function, name)
    return function


def test_it_is_in_no_print_dump_schema_or_pickle(full: Keyed) -> None:
    """repr, str, format, dict, vars, both dumps, the JSON schema, copies, pickles of each protocol, hash inputs."""
    shown = [repr(full), str(full), f"{full}", dict(full), vars(full), full.model_dump(), full.model_dump(mode="json")]
    shown += [full.model_dump_json(), Keyed.model_json_schema(), full.safe_model_dump(), full.raw_fields()]
    shown += [repr(copy.deepcopy(full)), repr(full.bind("a", "b")), repr(secrets.variables.__dict__)]
    shown += [full._embedreg.__class__.__repr__(full._embedreg)]  # type: ignore[attr-defined]
    for text in shown:
        assert_clean(text)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert SECRET.encode() not in pickle.dumps(full, protocol)
        assert b"sk-live" not in pickle.dumps(full, protocol)


def test_computed_fields_and_cached_properties_do_not_bring_it_in() -> None:
    """What a class derives from its key is readable as an attribute, and absent from prints and dumps."""

    class Derives(Base):
        api_key: str

        @computed_field  # type: ignore[prop-decorator]
        @property
        def bearer(self) -> str:
            return f"Bearer {self.api_key}"

        @functools.cached_property
        def auth(self) -> dict[str, str]:
            return {"Authorization": self.api_key}

    function = Derives(api_key="$var:key")
    assert function.bearer == f"Bearer {SECRET}"
    assert function.auth is function.auth
    assert function.model_dump()["bearer"] == "Bearer ***"
    for text in (repr(function), dict(function), function.model_dump(), function.model_dump_json()):
        assert_clean(text)
    assert b"sk-live" not in repr(function.__reduce__()).encode()


class Failing(Keyed):
    """Fails in a way that the test chooses, with the secret in its words."""

    _how: Any = None

    def generate_embeddings(self, texts: Any) -> Any:
        return self._how(self)

    @property
    def client(self) -> str:
        raise ConnectionError(f"refused: {self.api_key}")

    @functools.cached_property
    def session(self) -> str:
        raise ConnectionError(f"refused: {self.api_key}")

    def ping(self) -> str:
        raise ConnectionError(f"refused: {self.api_key}")


def plain(function: Failing) -> None:
    """Fail with the key in the words, raw and quoted."""
    raise ValueError(f"401 for {function.api_key} at https://x/?key={quote(str(function.api_key))}")


def chained(function: Failing) -> None:
    """Fail because of a failure."""
    try:
        plain(function)
    except ValueError as exc:
        raise ConnectionError(f"gave up on {function.api_key}") from exc


def in_context(function: Failing) -> None:
    """Fail while handling a failure, without naming it as the cause."""
    try:
        plain(function)
    except ValueError:
        raise KeyError(function.api_key) from None


def noted(function: Failing) -> None:
    """Fail with a note."""
    exc = RuntimeError("no")
    exc.add_note(f"the key was {function.api_key}")
    raise exc


def grouped(function: Failing) -> None:
    """Fail in several ways at once."""
    raise ExceptionGroup(
        f"of {function.api_key}", [ValueError(function.api_key), ExceptionGroup("in", [KeyError(SECRET)])]
    )


def our_own(function: Failing) -> None:
    """Fail with an error of embedreg that carries the key everywhere."""
    try:
        plain(function)
    except ValueError as exc:
        problem = EmbedregError(f"no {function.api_key}", f"try {function.api_key}")
        problem.body = {"sent": [function.api_key]}  # type: ignore[attr-defined]
        problem.add_note(f"note {function.api_key}")
        raise problem from exc


def in_a_thread(function: Failing) -> None:
    """Fail in another thread."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(plain, function).result()


def unprintable(function: Failing) -> None:
    """Fail with an error that cannot be printed."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError(function.api_key)

    raise Broken


def lazily(function: Failing) -> Iterator[Any]:
    """Fail after the call has returned, as a generator does."""
    yield [1.0]
    plain(function)


FAILURES = [plain, chained, in_context, noted, grouped, our_own, in_a_thread, unprintable, lazily]
CALLS: dict[str, Callable[[Failing], Any]] = {
    "generate_embeddings": lambda function: function.generate_embeddings(["a"]),
    "compute_source_embeddings": lambda function: function.compute_source_embeddings(["a"]),
    "compute_query_embeddings": lambda function: function.compute_query_embeddings("a"),
    "with_retry": lambda function: function.compute_source_embeddings_with_retry(["a"]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("failure", FAILURES)
def test_an_error_that_leaves_a_function_is_cleaned(
    failure: Callable[[Failing], Any], call: Callable[[Failing], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Message, cause, context, notes, members, attributes, the frames of our own and the log at DEBUG are all clean."""
    caplog.set_level(logging.DEBUG)
    function = Failing(api_key="$var:key", max_retries=0)
    function._how = failure
    try:
        call(function)
    except EmbedregError as exc:
        formatted = traceback.format_exc()
        found = everything_about(exc)
        caught = exc
    assert_clean(formatted)
    assert_clean(found)
    assert_clean(caplog.text)
    assert caught.__cause__ is None
    assert "***" in found or failure is unprintable


def test_the_stand_in_says_what_happened() -> None:
    """The vendor's type and words survive, notes and the members of a group too; DEBUG shows the way, cleaned."""
    function = Failing(api_key="$var:key")
    function._how = grouped
    with pytest.raises(CallError) as caught:
        function.generate_embeddings(["a"])
    assert caught.value.message == (
        "ExceptionGroup: of *** (2 sub-exceptions): ValueError: ***; ExceptionGroup: in (1 sub-exception): KeyError: '***'"
    )
    assert "DEBUG" in str(caught.value)
    function._how = noted
    with pytest.raises(CallError, match="^RuntimeError: no") as caught:
        function.generate_embeddings(["a"])
    assert caught.value.__notes__ == ["the key was ***"]


def test_an_error_of_embedregs_own_stays_itself() -> None:
    """Its type and attributes are kept; only the secret is gone."""

    def bad_row(function: Failing) -> None:
        raise RowError(f"row of {function.api_key}", "fix it")

    function = Failing(api_key="$var:key")
    function._how = bad_row
    with pytest.raises(RowError, match=r"row of \*\*\*\nHint: fix it"):
        function.generate_embeddings(["a"])


def test_a_property_and_any_other_method_are_guarded_alike() -> None:
    """What a class defines beside the contract is called by users too."""
    function = Failing(api_key="$var:key")
    for call in (lambda: function.client, lambda: function.session, function.ping):
        with pytest.raises(CallError, match=r"ConnectionError: refused: \*\*\*") as caught:
            call()
        assert_clean(everything_about(caught.value))


def test_without_a_secret_the_error_is_the_functions_own() -> None:
    """Type, cause and traceback are left alone where there is nothing to hide."""
    function = Failing()
    function._how = chained
    with pytest.raises(ConnectionError) as caught:
        function.generate_embeddings(["a"])
    assert isinstance(caught.value.__cause__, ValueError)


def test_retries_see_the_vendors_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass by itself is tried again; when it never does, what comes out at last is clean."""
    monkeypatch.setattr("embedreg.runtime.retry.FIRST_WAIT_S", 0.001)
    tries: list[int] = []

    def flaky(function: Failing) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError(f"lost: {function.api_key}")
        return [[1.0]]

    function = Failing(api_key="$var:key", max_retries=2)
    function._how = flaky
    assert function.compute_source_embeddings_with_retry(["a"]) == [[1.0]]
    tries.clear()

    def never(function: Failing) -> Any:
        tries.append(1)
        raise ConnectionError(f"lost: {function.api_key}")

    function._how = never
    with pytest.raises(CallError, match=r"ConnectionError: lost: \*\*\*") as caught:
        function.compute_source_embeddings_with_retry(["a"])
    assert len(tries) == 3
    assert_clean(everything_about(caught.value))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_an_interrupt_stays_what_it_is(kind: type[BaseException]) -> None:
    """The very object arrives, cleaned; what it interrupted is no longer in its chain."""
    made: list[BaseException] = []

    def interrupted(function: Failing) -> None:
        try:
            plain(function)
        except ValueError:
            made.append(kind(f"while using {function.api_key}"))
            raise made[0]  # noqa: B904 (its context is the point)

    function = Failing(api_key="$var:key")
    function._how = interrupted
    with pytest.raises(kind) as caught:
        function.generate_embeddings(["a"])
    assert caught.value is made[0]
    assert_clean("".join(traceback.format_exception(caught.value)))
    assert caught.value.__context__ is None
    assert_clean(getattr(caught.value, "code", ""))


def test_a_key_that_is_no_longer_set_is_still_redacted() -> None:
    """A client keeps the key it was made with: what an instance has resolved once stays out of its errors."""
    with registry.variables(other=SECRET):
        function = Failing(api_key="$var:other")
        kept = function.api_key

    def late(function: Failing) -> None:
        raise ValueError(f"bad key {kept}")

    function._how = late
    with pytest.raises(CallError, match=r"bad key \*\*\*"):
        function.generate_embeddings(["a"])


def test_construction_is_guarded() -> None:
    """An `__init__`, a validator or `model_post_init` that fails with the key in its words shows none of it."""

    class InInit(Base):
        api_key: str

        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            raise OSError(f"cannot connect with {self.api_key}")

    class InPostInit(Base):
        api_key: str

        def model_post_init(self, context: Any) -> None:
            raise TypeError(f"bad {self.api_key}")

    class InValidator(Base):
        api_key: str
        model_config = ConfigDict(hide_input_in_errors=False)

        @field_validator("api_key")
        @classmethod
        def check(cls, value: str) -> str:
            raise ValueError(f"{value} does not start with pk-")

    class InRudeValidator(Base):
        api_key: str

        @field_validator("api_key")
        @classmethod
        def check(cls, value: str) -> str:
            raise RuntimeError(f"{value} is bad")

    for cls in (InInit, InPostInit, InValidator, InRudeValidator):
        with pytest.raises(EmbedregError, match=r"\*\*\*") as caught:
            cls(api_key="$var:key")
        assert_clean(everything_about(caught.value))
        assert caught.value.__context__ is None


def test_pydantics_own_complaint_shows_no_value() -> None:
    """A secret of the wrong form is refused by the name of its field."""

    class Patterned(Base):
        api_key: str = Field(pattern="^pk-", max_length=3)

    with pytest.raises(ConfigError, match=r"api_key: String should") as caught:
        Patterned(api_key="$var:key")
    assert_clean(everything_about(caught.value))


def test_nothing_is_warned_or_logged_of_it(full: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    """Dumping references where the types say otherwise warns of nothing, and logging an instance prints references."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        full.model_dump()
        full.model_dump_json()
        Typed(choice="$var:c:b").model_dump_json()  # type: ignore[arg-type]
        logging.getLogger("someone").debug("%s %r", full, full)
    assert raised == []
    assert_clean(caplog.text)


# -- the words themselves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        quote(SECRET, safe="").replace("%20", "+"),
        json.dumps({"key": SECRET}),
        repr(SECRET),
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"user:{SECRET}".encode()).decode(),
        base64.b64encode(f"me:{SECRET}:more".encode()).decode(),
        base64.b64encode(f"u:{SECRET}".encode()).decode(),
    ],
)
def test_a_secret_is_known_in_every_spelling(spelling: str) -> None:
    """Quoted for a URL, escaped for JSON, in hex, and in base64 at any offset."""
    cleaned = redact(f"before {spelling} after", [SECRET])
    assert cleaned.startswith("before ")
    assert cleaned.endswith(" after")
    assert "***" in cleaned
    for piece in (spelling[i : i + 8] for i in range(6, max(7, len(spelling) - 12))):
        assert piece not in cleaned.replace('{"key": "', "")


def test_a_part_that_stands_for_the_whole_is_known() -> None:
    """The key of a "Bearer <key>", each line of a PEM key, and a value that came with a line break."""
    assert redact("bad abcdefgh!", ["Bearer abcdefgh"]) == "bad ***!"
    assert redact("bad abcdefgh", ["abcdefgh\n"]) == "bad ***"
    pem = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
    assert redact("read MIIEvQIBADANBgkq", [pem]) == "read ***"


def test_the_longer_of_two_secrets_goes_first() -> None:
    """One secret may begin another: no tail is left."""
    assert redact("abcd-efgh", ["abcd", "abcd-efgh"]) == "***"


def test_a_very_short_secret_does_not_destroy_the_message() -> None:
    """Under four characters it is replaced only where it stands by itself; elsewhere nobody can tell it from the word."""
    assert redact("a bad apple: key=a, 'a' and /a/", ["a"]) == "*** bad apple: key=***, '***' and /***/"
    assert redact("error 404 for 40 at 4040", ["40"]) == "error 404 for *** at 4040"
    assert redact("untouched", [""]) == "untouched"
