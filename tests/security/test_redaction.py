"""A secret leaves a function nowhere: no dump, no pickle, no error, no log."""

import asyncio
import copy
import functools
import logging
import pickle
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import (
    ConfigDict,
    Field,
    computed_field,
    field_validator,
)

from embedreg import get_registry
from embedreg.errors import (
    CallError,
    ConfigError,
    EmbedregError,
    RowError,
)
from embedreg.security import references
from tests.secret_holders import SECRET, Base, Keyed, Typed, assert_clean, everything_about

registry = get_registry()


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` stands for the secret."""
    registry.set_var("key", SECRET)


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
    shown += [repr(copy.deepcopy(full)), repr(full.bind("a", "b")), repr(references.variables.__dict__)]
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
        "ExceptionGroup: of *** (2 sub-exceptions): ValueError: ***; "
        "ExceptionGroup: in (1 sub-exception): KeyError: '***'"
    )
    assert "DEBUG" in str(caught.value)
    function._how = noted
    with pytest.raises(CallError, match=r"^RuntimeError: no") as caught:
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
    """Transient errors are retried; the final error is redacted."""
    monkeypatch.setattr("embedreg.support.retry.FIRST_WAIT_S", 0.001)
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
    """The same object is raised, redacted; the interrupted error is removed from its chain."""
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


def test_an_unset_key_is_still_redacted() -> None:
    """A client keeps the key it was made with: what an instance has resolved once stays out of its errors."""
    with registry.variables(other=SECRET):
        function = Failing(api_key="$var:other")
        kept = function.api_key

    def late(function: Failing) -> None:
        raise ValueError(f"bad key {kept}")

    function._how = late
    with pytest.raises(CallError, match=r"bad key \*\*\*"):
        function.generate_embeddings(["a"])


def test_a_function_that_works_with_another_keeps_its_secrets_too() -> None:
    """As a field, in a list, or in a private attribute; also when the two hold each other."""

    class Outer(Base):
        inner: Any = None
        _inner: Any = None

        def generate_embeddings(self, texts: Any) -> Any:
            raise ValueError(f"inside: {SECRET}")

    keyed = Keyed(api_key="$var:key")
    private = Outer()
    private._inner = keyed
    circle = Outer(inner=keyed)
    circle._inner = Outer(inner=[circle])
    for function in (
        Outer(inner=keyed),
        Outer(inner=[keyed]),
        Outer(inner={"a": keyed}),
        private,
        circle,
        circle._inner,
    ):
        with pytest.raises(CallError, match=r"inside: \*\*\*"):
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
