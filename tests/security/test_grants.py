"""What a reader can grant: hosts, paths, for how long; and the functions that this process vouches for."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import embedreg
from embedreg import register, trust
from embedreg.core import vouched
from embedreg.declaration import codec
from embedreg.errors import ConfigError, UntrustedError
from embedreg.security import grants
from tests.fakes import Lengths
from tests.hostile import KEY, Base, Service, granted, refused

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
def test_a_similar_host_is_not_granted(grant: str, text: str) -> None:
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
def test_an_ambiguous_grant_is_refused(bad: dict[str, Any]) -> None:
    """An empty path would be the working directory, a host with a path would grant more than it states."""
    with pytest.raises(ConfigError, match=r"trust\("):
        trust(**bad)
    assert not grants._grants


# -- paths -------------------------------------------------------------------------------------------------------------


def test_a_granted_folder_covers_everything_below_it(tmp_path: Path) -> None:
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


def test_a_relative_grant_is_resolved_when_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_may_read_decides_on_local_files(tmp_path: Path) -> None:
    """The reader's own function may; one from metadata only where the value is a path, granted now; never by name."""
    assert vouched.may_read(Service(name="model"), "model")
    with trust(paths=[tmp_path, "."]) as grant:
        function = granted({"name": f"{tmp_path}/model"})
        assert function.from_metadata
        assert vouched.may_read(function, function.name)
        assert not vouched.may_read(function, "/etc")
        assert not vouched.may_read(granted({"name": "model"}), "model")
        grant.revoke()
        assert not vouched.may_read(function, function.name)


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
    stored = codec.encode([mine.bind("text", "vector")])
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
    """Only create() vouches for an instance."""
    Service(name=str(tmp_path))
    refused({"name": str(tmp_path)})


def test_a_class_registered_later_is_another_one(tmp_path: Path) -> None:
    """Instances of the old class are not used for the new one."""

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
    """The record of a table is compared for that table alone, for any function.

    What is found by the table is held to its probe, and shares fields and model with the reader's own function.
    """
    mine = Lengths.create(scale=5)
    entry = json.loads(codec.encode([mine.bind("text", "vector")]))[0]
    entry["model"]["embedreg"] |= {"probe": "AACAPwAAgD8AAIA/", "ndims": 1}
    table = pa.table({"text": ["a"]}, metadata={KEY: json.dumps([entry])})
    found = embedreg.functions_in(table)["vector"].function
    assert found == mine
    for use in (
        lambda: embedreg.embed_table(table),
        lambda: embedreg.embed_query(found, "a"),
        lambda: embedreg.embed_column(found, ["a"]),
        lambda: embedreg.embed_query(pickle.loads(pickle.dumps(found)), "a"),
        lambda: asyncio.run(found.acompute_query_embeddings("a")),
        lambda: embedreg.embed_table(table.select(["text"]), embedreg.functions_in(table)["vector"]),
    ):
        with pytest.raises(embedreg.errors.DriftError):
            use()
    assert embedreg.embed_query(mine, "a").tolist() == [5.0, 5.0, 5.0]
    mine.max_retries = 3
    assert found.max_retries == 3
    fresh = embedreg.embed_table(pa.table({"text": ["a"]}), mine.bind("text", "vector"))
    assert fresh["vector"].to_pylist() == [[5.0, 5.0, 5.0]]
