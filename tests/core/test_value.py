"""A configuration is a value: equality, hash, copies, pickles, and the same in other processes and threads."""

import copy
import enum
import multiprocessing
import pickle
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field, PrivateAttr

import embedreg
from embedreg import get_registry
from embedreg.core.base import runtime_fields
from embedreg.core.canonical import registered_name
from embedreg.errors import ConfigError, EmbedregError, MissingVariableError
from embedreg.security import references
from tests.function_styles import (
    MAKERS,
    Arrays,
    Bounded,
    Cached,
    Heavy,
    Lengths,
    Own,
)

registry = get_registry()


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` is set."""
    registry.set_var("key", "sk-live-0123456789")


@pytest.fixture(params=MAKERS)
def function(request: pytest.FixtureRequest) -> Any:
    """An instance of each style of class."""
    return MAKERS[request.param]()


def test_equal_fields_make_equal_instances(function: Any) -> None:
    """Equality and hash are type plus field values: private and cached attributes do not count."""
    twin = copy.copy(function)
    if isinstance(function, Cached):
        _ = function.client, function.ndims()
    function._ndims = 12
    assert twin == function
    assert hash(twin) == hash(function)
    assert {function: 1}[twin] == 1
    changed = function.model_copy(update={"max_retries": 99})
    assert changed != function
    assert function != function.raw_fields()
    assert function != Lengths(name="somebody else")


def test_types_make_a_difference() -> None:
    """A subclass with the same fields is another function."""

    class Sub(Lengths):
        pass

    assert Sub() != Lengths()
    assert Lengths() != Sub()


@pytest.mark.parametrize(
    "way",
    [
        lambda function: pickle.loads(pickle.dumps(function)),
        lambda function: pickle.loads(pickle.dumps(function, 0)),
        copy.copy,
        copy.deepcopy,
        lambda function: function.model_copy(),
        lambda function: function.model_copy(deep=True),
    ],
    ids=["pickle", "pickle-0", "copy", "deepcopy", "model_copy", "model_copy-deep"],
)
def test_copies_are_rebuilt_from_the_configuration(function: Any, way: Any) -> None:
    """Through `__init__`, whatever its signature; equal, of one type, with private attributes as `__init__` makes."""
    function._ndims = "mine"
    if isinstance(function, Cached):
        _ = function.client
    twin = way(function)
    assert twin is not function
    assert type(twin) is type(function)
    assert twin == function
    assert twin._ndims is None
    assert "client" not in vars(twin)
    assert twin.safe_model_dump() == function.safe_model_dump()
    again = way(twin)
    assert again == function


def test_a_pickle_carries_no_weights_and_no_locks() -> None:
    """The pickle of an instance with a model, a lock and a cache is as small as that of its configuration."""
    heavy = Heavy()
    assert len(pickle.dumps(heavy)) < 1000
    cached = Cached()
    before = len(pickle.dumps(cached))
    cached.client.append("x" * 10_000)
    assert len(pickle.dumps(cached)) == before
    assert len(pickle.loads(pickle.dumps(heavy))._model) == 10_000


def test_a_value_that_cannot_be_copied_is_shared() -> None:
    """A lock or a client among the fields does not keep a function from being created."""
    lock = threading.Lock()
    function = Arrays.create(lock=lock)
    assert function.lock is lock
    assert copy.copy(function).lock is lock


def test_arrays_among_the_fields_can_be_compared() -> None:
    """An array has no one truth value; equality and hash work all the same."""
    one, two = Arrays(weights=np.ones(3)), Arrays(weights=np.ones(3))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Arrays(weights=np.zeros(3))
    assert copy.deepcopy(one) == one


def test_deepcopy_keeps_shared_objects_shared() -> None:
    """A schema pairs source and vector by identity, so a copied pair is still a pair."""
    function = Lengths()
    first, second = copy.deepcopy([function, function])
    assert first is second is not function


def test_model_copy_changes_fields_and_keeps_the_rest() -> None:
    """Also what was assigned after creation, and what `__init__` works out anew; the change is validated."""
    function = Lengths(name="a", dim=3)
    function.options = {"later": True}
    changed = function.model_copy(update={"dim": "5"})
    assert (changed.name, changed.dim, changed.options) == ("a", 5, {"later": True})
    assert (function.dim, function.name) == (3, "a")
    with pytest.raises(ConfigError):
        function.model_copy(update={"dim": "many"})
    assert Own(3).model_copy(update={"dim": 8}).dim == 8
    assert Own(3).model_copy(update={"name": "new"}).name == "new-False"


def test_instances_support_weak_references() -> None:
    """Caches hold functions weakly."""
    function = Lengths()
    assert weakref.ref(function)() is function


def _inspect(function: Any) -> dict[str, Any]:
    """In another process: what arrived, and what reading the key does there."""
    try:
        resolved = function.api_key
    except MissingVariableError as exc:
        resolved = str(exc)
    return {"fields": function.raw_fields(), "key": resolved, "vectors": function.generate_embeddings(["ab"]).tolist()}


def test_a_spawned_process_resolves_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bindings travel by name, values never: the worker reads its own environment, and fails only when it reads."""
    monkeypatch.setenv("BOUND_KEY", "from the environment")
    registry.bind_env("bound", "BOUND_KEY")
    bound, unbound = Lengths(api_key="$var:bound", dim="$var:dim:3"), Lengths(api_key="$var:key")  # type: ignore[arg-type]
    assert b"from the environment" not in pickle.dumps(bound)
    assert b"sk-live" not in pickle.dumps(unbound)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there, missing = pool.map(_inspect, [bound, unbound])
    assert there["key"] == "from the environment"
    assert there["fields"] == bound.raw_fields()
    assert there["vectors"] == [[2.0, 2.0, 2.0]]
    assert "variable 'key' is not set" in missing["key"]
    assert missing["vectors"] == [[2.0, 2.0]]


def test_a_pickled_binding_keeps_its_restriction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable for some functions only is for those only in a worker too; a worker's own binding wins."""
    monkeypatch.setenv("BOUND_KEY", "value")
    registry.bind_env("bound", "BOUND_KEY", functions=["mine"])
    pickled = pickle.dumps(Lengths(api_key="$var:bound"))
    references.variables.clear()
    pickle.loads(pickled)
    assert references.variables.bindings({"bound"}) == {"bound": ("BOUND_KEY", ("mine",))}
    registry.set_var("bound", "own value")
    assert pickle.loads(pickled).api_key == "own value"


def test_a_variable_for_a_validator_may_be_missing_when_unpickling() -> None:
    """A key that must begin with "sk-" is not there yet: the copy is whole, and the key is checked when it is read."""
    registry.set_var("count", "5")
    pickled = pickle.dumps(Bounded(api_key="$var:key", count="$var:count"))  # type: ignore[arg-type]
    references.variables.clear()
    function = pickle.loads(pickled)
    assert (function.count, function.dim) == (5, 2)
    assert function.generate_embeddings(["a"]).shape == (1, 2)
    with pytest.raises(MissingVariableError):
        _ = function.api_key
    registry.set_var("key", "sk-now")
    assert function.api_key == "sk-now"


def test_a_registered_name_is_not_inherited() -> None:
    """An unregistered subclass has no name, so that it cannot be stored as its parent."""

    class Sub(Lengths):
        pass

    embedreg.register("own-name")(Lengths)
    assert registered_name(Lengths) == "own-name"
    assert registered_name(Sub) is None


def test_runtime_fields_are_those_that_cannot_change_a_vector() -> None:
    """`device`, `batch_size`, `max_retries`, timeouts, worker counts, and what the class declares."""

    class Runtime(Lengths):
        device: str = "cpu"
        timeout_s: float = 1
        read_timeout: float = 1
        parallel: int = 1

        @staticmethod
        def runtime_keys() -> list[str]:
            return ["parallel"]

    found = runtime_fields(Runtime)
    assert {"device", "timeout_s", "read_timeout", "parallel", "max_retries", "batch_size"} <= found
    assert not {"name", "dim"} & found


# -- threads -----------------------------------------------------------------------------------------------------------


def test_one_instance_serves_many_threads() -> None:
    """Reading, embedding, failing, copying and comparing at once give each thread its own result."""

    class Shared(Lengths):
        def generate_embeddings(self, texts: Any) -> Any:
            if texts[0] == "fail":
                raise ValueError(f"thread {texts[1]} with {self.api_key}")
            return super().generate_embeddings(texts)

    function = Shared(api_key="$var:key", dim=1)

    def work(number: int) -> list[Any]:
        found: list[Any] = []
        for _ in range(30):
            found.append(function.generate_embeddings(["x" * number]).tolist())
            with pytest.raises(EmbedregError, match=rf"thread {number} with \*\*\*"):
                function.generate_embeddings(["fail", number])
            assert copy.copy(function) == function
        return found

    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(work, range(8))):
            assert found == [[[float(number)]]] * 30


class Colour(enum.Enum):
    """Not a text."""

    red = 1


def test_any_value_can_be_a_configuration() -> None:
    """Sets, tuples, enums, nested models and literals are hashable together, with any contents."""

    class Inner(BaseModel):
        items: list[int] = Field(default=[1])

    class Many(Lengths):
        tags: set[str] = Field(default={"a"})
        pair: tuple[int, list[int]] = (1, [2])
        colour: Colour = Colour.red
        inner: Inner = Inner()
        mode: Literal["x", "y"] = "x"

    assert hash(Many()) == hash(Many(tags={"a"}, inner={"items": [1]}))
    assert Many() == Many(tags={"a"}, inner={"items": [1]})
    assert Many() != Many(inner={"items": [2]})


class Doubled:
    """A descriptor."""

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return 2 * instance.ndims()


def test_private_attributes_are_those_of_pydantic() -> None:
    """Plain ones, descriptors, ones that a subclass overrides with a property, and missing ones."""

    class Private(Lengths):
        _plain: int = PrivateAttr(default=1)
        _doubled: Any = PrivateAttr(default=Doubled())
        _late: int = PrivateAttr()

    class Over(Private):
        @property
        def _plain(self) -> int:  # type: ignore[override]
            return 7

    fn = Private()
    assert (fn._plain, fn._doubled, Over()._plain) == (1, 2 * fn.ndims(), 7)
    fn._plain = 3
    assert fn._plain == 3
    for made, name in ((fn, "_late"), (fn, "_other"), (fn, "other"), (Private.__new__(Private), "other")):
        with pytest.raises(AttributeError, match=f"'Private' object has no attribute '{name}'"):
            getattr(made, name)
    fn._late = 4
    assert fn._late == 4
