"""What a stored declaration needs before it may run is a value: all of it at once, and granting it is enough."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import pyarrow as pa
import pytest

import embedreg
from embedreg import Grant, trust
from embedreg.errors import ConfigError, MetadataError, UntrustedError
from embedreg.security import grants
from tests.hostile import KEY, granted, read, refused
from tests.security.test_trust import GUARDED, PATHS, URLS

EVERYTHING = {
    "name": "/srv/models/mine",
    "base_url": "https://llm.example:8443/v1",
    "api_key": "$var:mine",
    "organization": "$var:org",
    "default_headers": {"X-Forward": "x"},
    "mode": "fast",
    "options": {"url": "https://other.example", "depth": 2},
    "trust_remote_code": True,
    "revision": "v2",
    "max_retries": 1000,
}


def untrusted(model: dict[str, Any]) -> UntrustedError:
    """Read a configuration that needs grants, and return why."""
    problem = refused(model)
    assert isinstance(problem, UntrustedError)
    return problem


def test_everything_that_is_needed_is_asked_for_at_once() -> None:
    """Path, hosts, variables, fields and code are in one value, and the message names every field."""
    embedreg.get_registry().set_var("mine", "sk-mine")
    embedreg.get_registry().set_var("org", "acme")
    problem = untrusted(EVERYTHING)
    assert problem.needed == Grant(
        paths=("/srv/models/mine",),
        hosts=("llm.example:8443", "other.example"),
        variables=("org", "mine"),
        remote_code=("/srv/models/mine@v2",),
        fields=("service.default_headers", "service.mode", "service.max_retries"),
    )
    named = EVERYTHING.keys() - {"revision"}
    assert all(field in problem.message for field in named), problem.message
    assert "sk-mine" not in str(problem)
    assert str(problem.needed) in str(problem.hint)
    with trust(problem.needed):
        function = granted(EVERYTHING)
        assert (function.organization, function.api_key, function.trust_remote_code) == ("acme", "sk-mine", True)
    assert untrusted(EVERYTHING).needed == problem.needed


def test_the_hint_is_one_line_to_paste() -> None:
    """It equals the grants in `needed`."""
    problem = untrusted(EVERYTHING)
    code = str(problem.hint).partition(": ")[2].removesuffix(", or create the same function in your own code first")
    grant = eval(code, {"embedreg": embedreg})
    assert grant.grant == problem.needed
    grant.revoke()


PLACES = {
    "plain": lambda text: {"name": text},
    "deep": lambda text: {"options": {"deep": [{"er": [text]}], text: 1}},
    "default": lambda text: {"name": f"$var:x:{text}"},
    "endpoint": lambda text: {"base_url": text, "api_key": "$var:mine"},
    "file": lambda text: {"weights_file": text, "local": text},
}


@pytest.mark.parametrize("text", [*PATHS, *URLS])
@pytest.mark.parametrize("place", PLACES)
def test_what_is_needed_is_enough(text: str, place: str) -> None:
    """For every spelling of a path or an address, one round of grants is enough."""
    embedreg.get_registry().set_var("mine", "sk-mine")
    model = PLACES[place](text)
    problem = untrusted(model)
    with trust(**problem.needed):
        assert not isinstance(read(model).problems.get("vector"), UntrustedError)


@pytest.mark.parametrize(("field", "value"), GUARDED)
def test_what_a_guarded_field_needs_is_enough(field: str, value: Any) -> None:
    """A granted field is then what its class makes of it."""
    with trust(untrusted({field: value}).needed):
        assert not isinstance(read({field: value}).problems.get("vector"), UntrustedError)


@pytest.mark.parametrize(
    ("model", "message", "needed"),
    [
        ({"name": "/m"}, "stored metadata sets name of 'service' to a local path,", Grant(paths="/m")),
        (
            {"options": ["https://a.example", "https://b.example"]},
            "stored metadata sets options of 'service' to a URL,",
            Grant(hosts=("a.example", "b.example")),
        ),
        ({"name": "$var:k"}, "stored metadata puts variable 'k' into name of 'service',", Grant(variables="k")),
        ({"verify": False}, "stored metadata sets verify of 'service' to a value,", Grant(fields="service.verify")),
    ],
)
def test_a_single_need_keeps_its_own_message(model: dict[str, Any], message: str, needed: Grant) -> None:
    """One field of one kind has its own message."""
    problem = untrusted(model)
    assert problem.message.startswith(message)
    assert problem.needed == needed


def test_existing_grants_are_not_needed_again() -> None:
    """Beside a granted host, only the variable is."""
    embedreg.get_registry().set_var("mine", "sk-mine")
    model = {"base_url": "https://llm.example", "api_key": "$var:mine"}
    assert untrusted(model).needed == Grant(hosts="llm.example", variables="mine")
    with trust(hosts=["llm.example"]):
        assert untrusted(model).needed == Grant(variables="mine")


def test_code_is_named_where_something_else_is_refused_and_warned_of_where_nothing_is() -> None:
    """By itself it reads as false: the declaration can be used without."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert untrusted({"name": "./m", "trust_remote_code": True}).needed == Grant(paths="./m", remote_code="./m")
    with pytest.warns(UserWarning, match="read as false"):
        assert granted({"trust_remote_code": True}).trust_remote_code is False


def table(*models: dict[str, Any]) -> pa.Schema:
    """Declare several columns."""
    entries = [
        {"name": "service", "model": model, "source_column": "text", "vector_column": f"v{at}"}
        for at, model in enumerate(models)
    ]
    vectors = [pa.field(f"v{at}", pa.list_(pa.float32(), 1)) for at in range(len(models))]
    return pa.schema([pa.field("text", pa.string()), *vectors], {KEY: json.dumps(entries).encode()})


def test_several_columns_ask_for_what_each_needs_and_for_all_of_it() -> None:
    """A column's own error holds its own needs; filling all columns raises one error with the needs of all."""
    schema = table({"name": "/a"}, {"host": "b.example"}, {"name": "small"}, {"name": "/a"})
    found = embedreg.functions_in(schema)
    assert [found.problems[column].needed for column in ("v0", "v1", "v3")] == [  # type: ignore[attr-defined]
        Grant(paths="/a"),
        Grant(hosts="b.example"),
        Grant(paths="/a"),
    ]
    assert found.needed == Grant(paths="/a", hosts="b.example")
    with pytest.raises(UntrustedError) as caught:
        embedreg.embed_table({"text": ["x"]}, schema)
    assert caught.value.needed == found.needed
    assert "v0" in caught.value.message
    assert "v1" in caught.value.message
    with trust(caught.value.needed):
        assert embedreg.embed_table({"text": ["xyz"]}, schema)["v1"].to_pylist() == [[4.0]]
    [first, second, third, _] = embedreg.inspect(schema)
    assert (first["needed"], second["needed"], third["needed"]) == ({"paths": ["/a"]}, {"hosts": ["b.example"]}, {})
    with pytest.raises(UntrustedError, match="stored metadata sets name") as caught:
        embedreg.embed_table({"text": ["x"]}, table({"name": "/a"}, {"name": "/a"}))
    assert "Column" not in caught.value.message
    with pytest.raises(UntrustedError) as caught:  # said alike, and not the same
        embedreg.embed_table({"text": ["x"]}, table({"name": "/a"}, {"name": "/b"}))
    assert caught.value.needed == Grant(paths=("/a", "/b"))


def test_problems_without_a_remedy_need_no_grant() -> None:
    """A refusal for good, and an author's own error, hold an empty grant, which grants nothing."""
    problem = UntrustedError("the weights are pickles.", "use another model")
    assert problem.needed == Grant()
    assert not problem.needed
    with trust(problem.needed) as grant:
        assert not any(grants.granted(kind) for kind in ("paths", "hosts", "variables", "remote_code", "fields"))
    assert grant.grant == Grant()
    with pytest.raises(MetadataError):
        raise refused({"name": "/a", "organization": "\0"})


def test_too_many_needs_are_not_listed() -> None:
    """A table made to ask for thousands of things is refused for good; a message names some of many columns."""
    for many in ([f"https://h{at}.example" for at in range(50_000)], ["https://h.example"] * 50_000):
        problem = untrusted({"options": many})
        assert problem.needed == Grant()
        assert len(str(problem)) < 300
    same = untrusted({"options": ["https://h.example"] * 500})
    assert same.needed == Grant(hosts="h.example")
    assert len(str(same)) < 300
    with pytest.raises(UntrustedError) as caught:
        embedreg.functions_in(table(*({"name": f"/m/{at}"} for at in range(200)))).every()
    assert caught.value.message.endswith("And 180 more columns.")
    assert len(caught.value.needed.paths) == 200


# -- the value ---------------------------------------------------------------------------------------------------------


def test_a_grant_is_a_value() -> None:
    """Equal by what it holds, joined without repeating, printed as the call that puts it into force."""
    one = Grant(paths=["/a", "/b"], hosts="h")  # type: ignore[arg-type]  # as a caller may write it
    assert one == Grant(paths=("/a", "/b"), hosts=("h",))
    assert len({one, Grant(paths=("/a", "/b"), hosts=("h",))}) == 1
    assert one | Grant(paths="/b", fields="f.x") == Grant(paths=("/a", "/b"), hosts="h", fields="f.x")
    assert str(one) == "embedreg.trust(paths=['/a', '/b'], hosts=['h'])"
    assert dict(one) == {"paths": ("/a", "/b"), "hosts": ("h",)}
    assert not Grant()
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    problem = pickle.loads(pickle.dumps(UntrustedError("no.", "try", one)))
    assert (problem.needed, problem.hint) == (one, "try")


def test_two_grants_of_the_same_are_revoked_separately() -> None:
    """The value is compared; what `trust` returns is one thing of its own each time."""
    needed = untrusted({"host": "a.example"}).needed
    first, second = trust(needed), trust(needed)
    assert first.grant == second.grant == needed
    assert first != second
    first.revoke()
    assert grants.granted("hosts") == {"a.example"}
    assert "revoked" in repr(first)
    assert "in force" in repr(second)
    with trust(needed):
        second.revoke()
        assert grants.granted("hosts") == {"a.example"}
    assert not grants.granted("hosts")


def test_a_grant_adds_to_what_is_named_and_is_checked_like_it() -> None:
    """`trust(grant, hosts=...)` grants both; an ambiguous grant is refused."""
    with trust(Grant(hosts="a.example"), hosts=["b.example"], fields=["service.mode"]):
        assert grants.granted("hosts") == {"a.example", "b.example"}
        assert grants.in_force() == Grant(hosts=("a.example", "b.example"), fields="service.mode")
    for bad in (Grant(paths=""), Grant(hosts="a.example/v1"), "a.example", {"hosts": ["a.example"]}):
        with pytest.raises(ConfigError, match=r"trust\("):
            trust(bad)  # type: ignore[arg-type]
    assert not grants._grants
