"""`$var:` references: resolved wherever they stand, converted as if written out, and kept."""

import copy
import json
import pickle
from typing import Any

import pytest
from pydantic import (
    ConfigDict,
    SecretStr,
    field_validator,
    model_validator,
)

from embedreg import get_registry
from embedreg.errors import (
    ConfigError,
    HardcodedSecretError,
    MissingVariableError,
)
from embedreg.security import references
from tests.secret_holders import SECRET, Base, Inner, Keyed, Pair, Pool, Typed, assert_clean

registry = get_registry()


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` stands for the secret."""
    registry.set_var("key", SECRET)


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
    references.variables.clear()
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
