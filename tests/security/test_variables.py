"""What references stand for: set for the process, bound to the environment, or for a block of code."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import (
    SecretStr,
)

from embedreg import get_registry
from embedreg.errors import (
    ConfigError,
    MissingVariableError,
)
from tests.secret_holders import SECRET, Base, Keyed

registry = get_registry()


@pytest.fixture(autouse=True)
def key() -> None:
    """`$var:key` stands for the secret."""
    registry.set_var("key", SECRET)


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
    """The binding holds the name alone; without the variable, the error names the missing export."""
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
    """The inner block wins, and the outer is restored, also after an error."""
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
    from embedreg.core.base import from_stored

    registry.set_var("key", SECRET, functions=["mine"])
    assert from_stored(Keyed, {"api_key": "$var:key"}, "mine", {}).api_key == SECRET  # type: ignore[attr-defined]
    other = from_stored(Keyed, {"api_key": "$var:key"}, "other", {})
    with pytest.raises(MissingVariableError, match=r"not allowed for 'other' in.*\n.*functions=\['mine', 'other'\]"):
        _ = other.api_key  # type: ignore[attr-defined]
    assert Keyed(api_key="$var:key").api_key == SECRET


def test_what_metadata_built_is_withheld_from_its_own_hooks_as_well() -> None:
    """A class's `model_post_init` runs before the instance is done, and reads under the same rule."""
    from embedreg.core.base import from_stored

    class Early(Base):
        api_key: str
        _early: str = ""

        def model_post_init(self, context: Any) -> None:
            self._early = self.api_key

    registry.set_var("key", SECRET, functions=["mine"])
    with pytest.raises(MissingVariableError, match="not allowed for 'other'"):
        from_stored(Early, {"api_key": "$var:key"}, "other", {})
