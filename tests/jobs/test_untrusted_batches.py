"""Batch jobs whose ledger or whose service is not as it should be: the right vectors, or one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedreg.errors import EmbedregError
from tests.batches import BatchServer
from tests.jobs.test_batches import interrupted, ordinary, run, running, server, source, vectors

__all__ = ["running", "server", "source"]

Twist = Callable[[list[Any], int], list[Any]]


def name(line: Any, place: Any) -> Any:
    """Return a result of another input."""
    made = copy.deepcopy(line)
    if "metadata" in made:
        made["metadata"]["key"] = place
    else:
        made["custom_id"] = place
    return made


def doubled(lines: list[Any], number: int) -> list[Any]:
    """Give the first two inputs the result of the other one, too."""
    own = {line["metadata"]["key"] if "metadata" in line else line["custom_id"]: line for line in lines}
    first, second = sorted(own, key=lambda each: (len(each), each))[:2]
    return [name(own[second], first), *lines, name(own[first], second)]


TWISTS: dict[str, Twist] = {
    "odd ids": lambda lines, _: [
        *(
            name(lines[0], odd)
            for odd in ("9" * 400, "-1", "../../0", "٣", "1.0", "", None, [0], {"a": 0}, True, 10**30)
        ),
        *lines,
    ],
    "lines that are no objects": lambda lines, _: [*lines, 3, "x", [], None, [{}], True],
    "no response": lambda lines, _: [*lines, {}, {"custom_id": "0"}, {"custom_id": "0", "response": []}],
    "deep": lambda lines, _: [*lines, json.loads("[" * 900 + "]" * 900)],
    "duplicates": lambda lines, _: [*lines, *lines],
    "conflicting duplicates": doubled,
    "missing": lambda lines, number: lines[1:] if number < 3 else lines,
}


FAILS = {
    "lines that are no objects": "not a JSON object",
    "deep": "not a JSON object",
    "conflicting duplicates": "two results for an input",
}
CASES = [("openai", twist) for twist in TWISTS]
CASES += [(vendor, twist) for vendor in ("gemini-text", "jina") for twist in ("odd ids", "conflicting duplicates")]


@pytest.mark.parametrize(("server", "twist"), CASES, indirect=["server"])
def test_odd_results_are_right_or_one_error(server: BatchServer, source: Path, tmp_path: Path, twist: str) -> None:
    """Never the vector of another input."""
    server.twist = TWISTS[twist]
    if twist in FAILS:
        with pytest.raises(EmbedregError, match=FAILS[twist]):
            run(server, source, tmp_path / "out")
    else:
        run(server, source, tmp_path / "out")
        assert vectors(tmp_path / "out") == ordinary(server, source)


def other_tag(server: BatchServer, record: dict[str, Any]) -> None:
    """Somebody else's batch, which has no tag of ours."""
    server.batches["batch_0"].tag = ""


def other_size(server: BatchServer, record: dict[str, Any]) -> None:
    """A batch of another number of inputs, at a service that keeps no tags."""
    server.batches["batch_0"].lines.append(server.batches["batch_0"].lines[0])


def huge(server: BatchServer, record: dict[str, Any]) -> None:
    """Ranges that no memory holds, over the right digest."""
    record["columns"]["vector"]["inputs"] = 2**61
    record["columns"]["vector"]["batches"][0]["ranges"] = [[0, 2**61]]


def partial(server: BatchServer, record: dict[str, Any]) -> None:
    """A record that leaves inputs out."""
    record["columns"]["vector"]["batches"][0]["ranges"] = [[0, 3]]


def elsewhere(server: BatchServer, record: dict[str, Any]) -> None:
    """A handle that leads to another path of the service."""
    record["columns"]["vector"]["batches"][0]["handle"] = "batches/../v1/files"


@pytest.mark.parametrize(
    ("server", "change", "why"),
    [
        ("openai", other_tag, "is not the one"),
        ("jina", other_size, "is not the one"),
        ("openai", huge, None),
        ("openai", partial, None),
        ("gemini-text", elsewhere, "part of an address"),
    ],
    indirect=["server"],
)
def test_a_ledger_cannot_name_the_results(
    server: BatchServer, source: Path, tmp_path: Path, change: Any, why: str | None
) -> None:
    """Results are used if they are those of what was submitted; else it is submitted, or refused."""
    server.polls = 10**6
    interrupted(server, source, tmp_path / "out", after=3)
    server.polls = 1
    path = sorted((tmp_path / "out" / "_embedreg" / "ledger").glob("*.batches"))[0]
    record = json.loads(path.read_text())
    change(server, record)
    path.write_text(json.dumps(record))
    if why is not None:
        with pytest.raises(EmbedregError, match=why):
            run(server, source, tmp_path / "out")
    else:
        run(server, source, tmp_path / "out")
        assert vectors(tmp_path / "out") == ordinary(server, source)
