"""No serializer brings a secret out of a function: whatever the class computes, whatever holds it, whoever asks."""

import copy
import dataclasses
import functools
import json
import logging
import pickle
import pprint
import typing
import warnings
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    RootModel,
    SecretStr,
    TypeAdapter,
    computed_field,
    create_model,
    field_serializer,
    model_serializer,
)
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from embedreg import get_registry
from embedreg.errors import CallError
from tests.secret_holders import SECRET, Base, assert_clean

PYDANTIC = tuple(int(part) for part in pydantic.VERSION.split(".")[:2])

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` stands for the secret."""
    get_registry().set_var("key", SECRET)


class Holder(Base):
    """A function with a key."""

    api_key: str = "$var:key"


Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Found:
    """A dataclass that some service's client returns."""

    header: str


class Answer(BaseModel):
    """A model that some service's client returns."""

    header: str


class Computed(Holder):
    """Computed fields of every kind of value."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def header(self) -> str:
        return f"Bearer {self.api_key}"

    @computed_field(alias="Listed", repr=True)  # type: ignore[prop-decorator]
    @property
    def listed(self) -> Any:
        key = self.api_key
        kinds = [{"a": [key]}, {key: 1}, (key,), frozenset([key]), OrderedDict(a=key), Pair(key, 1)]
        if PYDANTIC >= (2, 14):  # before, it has no JSON for a deque in a list of anything
            kinds.append(deque([key]))
        return [*kinds, key.encode(), bytearray(key.encode()), Found(key), Answer(header=key), key.upper()]

    @computed_field  # type: ignore[prop-decorator]
    @functools.cached_property
    def cached(self) -> dict[str, str]:
        return {"Authorization": self.api_key}

    @functools.cached_property
    def plainly_cached(self) -> list[str]:
        return [self.api_key]


class Plain(Holder):
    """A serializer of its own that replaces pydantic's."""

    @model_serializer
    def _all(self) -> dict[str, Any]:
        return {"key": self.api_key, "bytes": self.api_key.encode(), self.api_key: None}


class Wrapping(Holder):
    """A serializer of its own around pydantic's."""

    @model_serializer(mode="wrap")
    def _all(self, serialize: Callable[[Any], Any]) -> dict[str, Any]:
        return {**serialize(self), "key": (self.api_key,)}


class OneField(Holder):
    """A serializer of its own for one field."""

    wrapped: SecretStr = SecretStr("$var:key")

    @field_serializer("api_key", "wrapped")
    def _resolved(self, value: Any) -> str:
        return self.api_key


class Printing(Holder):
    """Every method that prints."""

    def __repr__(self) -> str:
        return f"Printing({self.api_key})"

    __str__ = __repr__

    def __format__(self, how: str) -> str:
        return self.api_key

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "api_key", self.api_key

    def __rich_repr__(self) -> Iterator[Any]:
        yield "api_key", self.api_key

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield "api_key", self.api_key


class Outer(Holder):
    """A function that works with others, and brings in their keys."""

    inner: Holder | None = None
    others: list[Holder] = []  # noqa: RUF012 (a field)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def header(self) -> str:
        return "" if self.inner is None else self.inner.api_key


class Open(Computed):
    """Extra fields."""

    model_config = ConfigDict(extra="allow")


class Private(Holder):
    """A client with the key, in a private attribute."""

    _client: Any = None

    def model_post_init(self, context: Any, /) -> None:
        self._client = {"key": self.api_key}


MADE: list[Callable[[], Holder]] = [
    Computed,
    Plain,
    Wrapping,
    OneField,
    Printing,
    lambda: Outer(inner=Computed(), others=[Plain()]),
    lambda: Open(more="$var:key"),
    Private,
]


@pytest.fixture(params=MADE, ids=["computed", "plain", "wrapping", "field", "printing", "outer", "open", "private"])
def function(request: pytest.FixtureRequest) -> Holder:
    """An instance whose properties have all been read."""
    made: Holder = request.param()
    for name in dir(made):
        if name.isidentifier() and not name.startswith(("_", "model_")):
            getattr(made, name, None)
    return made


def test_no_serializer_shows_it(function: Holder) -> None:
    """The function alone, in models, dataclasses, lists, unions and typed dicts, by each of pydantic's serializers."""
    kind: Any = type(function)
    held = create_model("held", f=(kind, ...), d=(dict[str, Any], ...), a=(Any, ...))(
        f=function, d={"x": function}, a=[function]
    )
    holder = dataclasses.make_dataclass("holder", [("f", kind)])
    options: list[dict[str, Any]] = [
        {},
        *({name: True} for name in ("by_alias", "exclude_unset", "exclude_defaults", "exclude_none", "round_trip")),
        {"serialize_as_any": True},
        {"mode": "json"},
        {"context": {"a": 1}},
        {"fallback": str},
    ]
    texts: list[Any] = []
    for each in (function, held, RootModel[dict[str, kind]]({"a": function})):
        for option in options:
            texts += [each.model_dump(**option)]
            texts += [each.model_dump_json(**option)] if "mode" not in option else []
    for typed, value in (
        (kind, function),
        (Any, function),
        (list[kind], [function]),
        (kind | None, function),
        (int | kind | str, function),
        (dict[str, list[kind]], {"a": [function]}),
        (holder, holder(function)),
    ):
        adapter: TypeAdapter[Any] = TypeAdapter(typed)
        texts += [adapter.dump_python(value), adapter.dump_python(value, mode="json"), adapter.dump_json(value)]
    texts += [to_json([function]), to_jsonable_python({"a": (function,)})]
    texts += [kind.__pydantic_serializer__.to_python(function), kind.__pydantic_serializer__.to_json(function)]
    for text in texts:
        assert_clean(text)


def test_no_printer_shows_it(function: Holder, caplog: pytest.LogCaptureFixture) -> None:
    """repr, str, format, pprint, vars, dict, asdict, JSON's default, pickle, copies, state, logs."""
    shown: list[Any] = [repr(function), str(function), f"{function}", f"{function!r}", f"{function} {function!r}"]
    shown += [pprint.pformat([function]), vars(function), dict(function), [*function], function.__getstate__()]
    shown += [dataclasses.asdict(dataclasses.make_dataclass("D", ["f"])(function)), json.dumps(function, default=repr)]
    shown += [json.dumps(vars(function), default=vars), [*function.__rich_repr__()], [*function.__repr_args__()]]
    shown += [copy.copy(function), copy.deepcopy([function]), function.model_copy(), function.safe_model_dump()]
    shown += [vars(each) for each in (copy.copy(function), copy.deepcopy(function))]
    shown += [
        type(function).model_json_schema(mode=mode)
        for mode in typing.get_args(typing.Literal["validation", "serialization"])
    ]
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("anybody").info("made %s and %r", function, [function])
    for text in [*shown, caplog.text]:
        assert_clean(text)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert b"sk-live" not in pickle.dumps([function], protocol)


def test_serializers_of_instances_without_a_secret_change_nothing() -> None:
    """Types and values come out as pydantic makes them."""

    class Open(Base):
        name: str = "x"

        @computed_field  # type: ignore[prop-decorator]
        @property
        def sizes(self) -> tuple[int, ...]:
            return (1, 2)

    class Holding(BaseModel):
        f: Open

    wanted = {"max_retries": 7, "name": "x", "sizes": (1, 2)}
    assert Open().model_dump() == wanted
    assert Holding(f=Open()).model_dump() == {"f": wanted}
    assert Open().model_dump(exclude={"max_retries"}, include={"name", "max_retries"}) == {"name": "x"}
    assert json.loads(to_json(Open())) == {**wanted, "sizes": [1, 2]}
    assert "sizes" in Open.model_json_schema(mode="serialization")["properties"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TypeAdapter(list[Open]).dump_json([Open()])


def test_a_cached_property_is_computed_once_wherever_it_is_kept() -> None:
    """It can be deleted and assigned, as Python's."""
    function = Computed()
    first = function.plainly_cached
    assert first == [SECRET]
    assert function.plainly_cached is first
    del function.plainly_cached
    assert function.plainly_cached is not first
    function.plainly_cached = ["mine"]
    assert function.plainly_cached == ["mine"]
    assert copy.copy(function).plainly_cached == [SECRET]


def test_what_a_computed_field_raises_is_ours_and_clean() -> None:
    """From the function's own dump as it was raised; from another model's in pydantic's words."""

    class Fails(Holder):
        @computed_field  # type: ignore[prop-decorator]
        @property
        def header(self) -> str:
            raise ValueError(f"no {self.api_key}")

    with pytest.raises(CallError) as caught:
        Fails().model_dump()
    assert_clean(str(caught.value))
    for dump in (Fails().model_dump_json, lambda: TypeAdapter(list[Fails]).dump_python([Fails()])):
        with pytest.raises(PydanticSerializationError) as other:
            dump()
        assert_clean(str(other.value))


def nested(key: str, draw: st.DrawFn) -> Any:
    """Return a value that has the key somewhere: as a text, a part of one, bytes, a key of a dict, in any container."""
    held: Any = draw(
        st.sampled_from([key, f"Bearer {key}", key.encode(), bytearray(key.encode()), Found(key), Answer(header=key)])
        | st.just(SecretStr(key))
    )
    for _ in range(draw(st.integers(0, 3))):
        wrap: Callable[[Any], Any] = draw(
            st.sampled_from(
                [
                    lambda value: [value, 1],
                    lambda value: (None, value),
                    lambda value: {"a": value},
                    lambda value: {key: value},
                    lambda value: deque([value]),
                    lambda value: OrderedDict(a=value),
                    lambda value: Pair(value, value),
                ]
            )
        )
        held = wrap(held)
    return held


HOLDERS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {  # a type and a value with the function in it
    "list": lambda kind, value: (list[kind], [value]),  # type: ignore[valid-type]
    "dict": lambda kind, value: (dict[str, kind], {"a": value}),  # type: ignore[valid-type]
    "any": lambda kind, value: (Any, value),
    "union": lambda kind, value: (int | kind | None, value),
    "tuple": lambda kind, value: (tuple[int, kind], (1, value)),  # type: ignore[valid-type]
    "model": lambda kind, value: (made := create_model("made", f=(kind, ...)), made(f=value)),
    "root": lambda kind, value: (made := RootModel[list[kind]], made([value])),  # type: ignore[valid-type]
    "dataclass": lambda kind, value: (made := dataclasses.make_dataclass("made", [("f", kind)]), made(value)),
}


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_class_and_no_holder_shows_a_key(data: st.DataObject) -> None:
    """Computed fields and serializers of any value, in models, dataclasses and containers of any depth."""
    get_registry().set_var("key", SECRET)
    draw = data.draw
    value = nested(SECRET, draw)  # type: ignore[arg-type]  # it is called alike

    def computed(self: Any) -> Any:
        return self.api_key and value

    body: dict[str, Any] = {"__annotations__": {}, "__module__": __name__}
    if draw(st.booleans()):
        body["extra"] = computed_field(property(computed))
    how = draw(st.sampled_from(["none", "plain", "wrap", "field"]))
    if how == "plain":
        body["_all"] = model_serializer(lambda self: {"a": computed(self)})
    elif how == "wrap":
        body["_all"] = model_serializer(mode="wrap")(lambda self, serialize: {**serialize(self), "b": computed(self)})
    elif how == "field":
        body["_one"] = field_serializer("api_key")(lambda self, _: computed(self))
    kind: Any = type("Drawn", (draw(st.sampled_from([Holder, Computed, Private])),), body)
    typed, held = kind, kind()
    for _ in range(draw(st.integers(0, 2))):
        typed, held = HOLDERS[draw(st.sampled_from(sorted(HOLDERS)))](typed, held)
    adapter: TypeAdapter[Any] = TypeAdapter(typed)
    option = draw(st.sampled_from([{}, {"by_alias": True}, {"exclude_none": True}, {"serialize_as_any": True}]))
    for show in (
        lambda: adapter.dump_python(held, **option),
        lambda: adapter.dump_python(held, mode="json", **option),
        lambda: adapter.dump_json(held, **option),
        lambda: to_json(held),
        lambda: to_jsonable_python(held),
        lambda: repr(held),
    ):
        try:
            shown = show()
        except PydanticSerializationError as exc:  # of a value that has no JSON
            shown = str(exc)
        assert_clean(shown)
