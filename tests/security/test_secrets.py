"""What counts as a secret, and how a hard-coded one is refused at every door."""

import json
import pickle
import traceback
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import (
    Field,
    SecretBytes,
    SecretStr,
    model_validator,
)

from embedreg import get_registry
from embedreg.core.base import sensitive_fields
from embedreg.errors import (
    ConfigError,
    HardcodedSecretError,
)
from embedreg.security import references
from tests.secret_holders import SECRET, Base, Inner, Keyed, Pair, Pool, assert_clean, everything_about

registry = get_registry()


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` stands for the secret."""
    registry.set_var("key", SECRET)


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
    """`model_validate_json` builds through the constructor; a value that is not an object is a ConfigError."""
    with pytest.raises(HardcodedSecretError):
        Keyed.model_validate_json(json.dumps({"api_key": SECRET}))
    with pytest.raises(HardcodedSecretError):
        Keyed.model_validate_strings({"api_key": SECRET})
    assert Keyed.model_validate_json(b'{"dim": 5}').dim == 5
    for text in ("[]", "not json", "3"):
        with pytest.raises(ConfigError, match="must be a dict"):
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
    """Reading the environment in a factory would pickle the value: the hint explains how to bind the variable."""

    class Factory(Base):
        api_key: str = Field(default_factory=lambda: SECRET)

    with pytest.raises(HardcodedSecretError, match="bind_env"):
        Factory()
    assert Factory(api_key="$var:key").api_key == SECRET


def test_the_constructors_own_parameters_are_checked() -> None:
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


def test_sensitive_fields_come_from_the_class_its_types_and_names() -> None:
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
def test_names_of_secrets_are_recognised(name: str) -> None:
    """Headers and options as services spell them."""
    assert references.looks_sensitive(name)


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
    """Tokenizer options, words that merely contain a secret's name, and values that are not text."""
    assert not references.looks_sensitive(name)
