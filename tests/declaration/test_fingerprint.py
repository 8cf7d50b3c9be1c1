"""The fingerprint: one for each configuration that gives other vectors, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedreg
from embedreg import register
from embedreg.declaration.fingerprint import fingerprint
from embedreg.errors import ConfigError
from tests.turning import FarModel, Model

ACROSS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from embedreg.declaration.fingerprint import fingerprint
from tests.turning import Model
print(fingerprint(Model(labels={"a", "b", "c", "dd", "eee"}, prompts={"q": "1", "d": "2"})))
"""


def test_the_fingerprint_is_the_same_in_every_process(run_python: Callable[..., str]) -> None:
    """Neither the hash seed nor the order of a dict's keys shows in it."""
    root = Path(__file__).parents[2]
    told = {run_python(ACROSS, root, env={"PYTHONHASHSEED": seed}) for seed in ("0", "1", "4711")}
    here = fingerprint(Model(labels={"eee", "dd", "c", "b", "a"}, prompts={"d": "2", "q": "1"}))
    assert told == {f"{here}\n"}
    assert here.startswith("sha256:")


def test_the_fingerprint_depends_on_semantic_fields() -> None:
    """Another value of a semantic field changes it; runtime fields and another instance do not."""
    plain = fingerprint(Model())
    assert fingerprint(Model()) == plain
    assert fingerprint(Model(device="cuda", batch_size=1, max_retries=3)) == plain
    different = [
        Model(name="big"),
        Model(prompts={"q": "x"}),
        Model(labels={"x"}),
        Model(dim=3),
        Model(headers={"a": "b"}),
        FarModel(),
    ]
    assert len({plain, *map(fingerprint, different)}) == 7


def test_the_fingerprint_ignores_secrets() -> None:
    """Neither a key's value, nor its variable's name, nor a header that holds one has a part in it."""
    registry = embedreg.get_registry()
    registry.set_var("one", "sk-1")
    registry.set_var("two", "sk-2")
    told = {
        fingerprint(Model(api_key=key, headers={"Authorization": header, "x": "y"}))
        for key, header in (("$var:one", "$var:one"), ("$var:two", "$var:two"))
    }
    registry.set_var("one", "sk-3")
    told.add(fingerprint(Model(api_key="$var:one", headers={"Authorization": "$var:one", "x": "y"})))
    told.add(fingerprint(Model(headers={"x": "y"})))
    assert len(told) == 1


def test_the_fingerprint_depends_on_resolved_references() -> None:
    """`$var:` in a semantic field counts as the value in effect."""
    registry = embedreg.get_registry()
    registry.set_var("size", "big")
    registry.set_var("width", "3")
    assert fingerprint(Model(name="$var:size", dim="$var:width")) == fingerprint(Model(name="big", dim=3))  # type: ignore[arg-type]
    assert fingerprint(Model(prompts={"q": "$var:size"})) == fingerprint(Model(prompts={"q": "big"}))
    assert fingerprint(Model(name="$var:unset:big")) == fingerprint(Model(name="big"))


def test_the_fingerprint_depends_on_model_files_but_not_their_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving a folder changes nothing; other weights in it do; a prompt that looks like a path stays a prompt."""
    monkeypatch.setattr(Model, "hash_of_weights", "sha256:1")
    first = fingerprint(Model(name="/one/place"))
    assert fingerprint(Model(name="/another/place")) == first
    assert fingerprint(Model(name="file:///third")) == first
    assert fingerprint(Model(name="small")) != first
    assert fingerprint(Model(name="/one/place", prompts={"q": "/a"})) != fingerprint(
        Model(name="/one/place", prompts={"q": "/b"})
    )
    monkeypatch.setattr(Model, "hash_of_weights", "sha256:2")
    assert fingerprint(Model(name="/one/place")) != first


def test_a_field_that_a_later_version_adds_changes_no_fingerprint() -> None:
    """Null by default, it is as if it were not there."""

    def define(extra: bool) -> Any:
        @register("growing")
        class Growing(Model):
            """Gets a field."""

            if extra:
                new: str | None = None

        return Growing()

    assert fingerprint(define(False)) == fingerprint(define(True))


def test_a_value_without_a_stable_form_has_no_fingerprint() -> None:
    """An object's repr holds its address: refused rather than different in each process."""

    @register("odd")
    class Odd(Model):
        """Holds an object."""

        thing: Any = None

    with pytest.raises(ConfigError, match="JSON"):
        fingerprint(Odd(thing=object()))
