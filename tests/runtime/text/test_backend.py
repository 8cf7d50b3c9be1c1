"""Back ends are a table: a new one is a class and a line, and nothing else knows its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import embedreg
from embedreg import errors
from embedreg.functions.sentence_transformers import SentenceTransformerEmbeddings
from embedreg.runtime import cache
from embedreg.runtime.progress import watch_stages
from embedreg.runtime.text import backend
from embedreg.runtime.text.pipeline import TextPipeline
from embedreg.runtime.vectors import queries
from tests.functions.conftest import tiny  # noqa: F401 (a fixture)

TEXTS = ["wait for a thread to finish", "json?", "a list of names, in no order"] * 20


class Copied:
    """What stands for a compiled form: it doubles what the transformer gives."""

    made: ClassVar[list[tuple[str, int, str | None]]] = []
    size = 64

    def __init__(self, model: Any, factor: float) -> None:
        self.model, self.factor = model, factor


@dataclass(frozen=True)
class Doubling(TextPipeline):
    """A back end whose vectors are twice the model's, so that it is seen which one ran."""

    label: ClassVar[str] = "Doubling"
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    compiles: ClassVar[bool] = True

    @classmethod
    def compile(cls, model: Any, precision: Any, threads: int, identity: str | None) -> Copied:
        Copied.made.append((precision, threads, identity))
        return Copied(model, 2.0)

    def _run(self, features: dict[str, Any]) -> Any:
        return self.compiled.model(features, **self._kwargs())["sentence_embedding"] * self.compiled.factor


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Leave no model, no query and no count behind."""
    yield
    embedreg.release()
    queries.recent.clear()
    Copied.made.clear()


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one line into the table."""
    monkeypatch.setitem(backend.BACKENDS, "doubling", f"{__name__}:Doubling")


@pytest.mark.usefixtures("doubling")
def test_a_line_in_the_table_adds_a_back_end(tiny: Callable[[str], Path]) -> None:  # noqa: F811 (the fixture)
    """It is compiled once for all equal functions, runs the sources, is announced, and goes with the model."""
    before = {*cache.models.keys()}
    plain = SentenceTransformerEmbeddings.create(name=str(tiny("causal")), device="cpu", normalize=False)
    expected = plain.generate_embeddings(TEXTS)
    stages: list[str] = []
    with watch_stages(lambda stage: stages.append(stage.what)):
        for _ in range(2):
            function = plain.model_copy(update={"backend": "doubling", "num_threads": 2})
            np.testing.assert_allclose(function.generate_embeddings(TEXTS), 2 * expected, atol=1e-5)
    assert [made[:2] for made in Copied.made] == [("float32", 2)]
    assert Copied.made[0][2] == function.model_identity()
    assert f"preparing {function.name} for Doubling" in stages
    np.testing.assert_array_equal(  # one query in float32 is left to torch
        function.compute_query_embeddings("json?"), plain.compute_query_embeddings("json?")
    )
    assert len({*cache.models.keys()} - before) == 2
    assert embedreg.release(function) == 2


@pytest.mark.usefixtures("doubling")
def test_a_back_end_says_where_it_runs(tiny: Callable[[str], Path]) -> None:  # noqa: F811 (the fixture)
    """On another device than its own it is refused, with the device to use; and where the library has to run whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedreg.runtime.hardware.device.resolve_all", lambda name: ("cpu:0",))
        function = SentenceTransformerEmbeddings.create(name=str(tiny("mean")), device="cuda", backend="doubling")
        with pytest.raises(errors.ConfigError, match="backend='doubling' runs on a CPU, not on 'cuda'") as caught:
            function.generate_embeddings(TEXTS)
        assert caught.value.hint == "device='cpu'"
    static = SentenceTransformerEmbeddings.create(name=str(tiny("static")), device="cpu", backend="doubling")
    with pytest.raises(errors.ConfigError, match="Doubling cannot run the model"):
        static.generate_embeddings(TEXTS)


def test_an_unknown_back_end_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error lists the table, a new line of it included."""
    with pytest.raises(errors.ConfigError, match=r"backend: Input should be 'auto', 'torch', 'openvino' or 'light'"):
        SentenceTransformerEmbeddings.create(backend="onnx")
    monkeypatch.setitem(backend.BACKENDS, "onnx", f"{__name__}:Doubling")
    SentenceTransformerEmbeddings.create(backend="onnx")
    with pytest.raises(errors.ConfigError, match=r"'auto', 'torch', 'openvino', 'light' or 'onnx'"):
        SentenceTransformerEmbeddings.create(backend="tensorrt")


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_every_line_of_the_table_is_a_back_end(name: str) -> None:
    """What a line names is there, and has what the runtime asks of it."""
    kind = backend.find(name)
    assert all(
        hasattr(kind, method)
        for method in (
            "tokenize",
            "forward",
            "usable",
            "one",
            "compile",
            "label",
            "devices",
            "compiles",
            "library",
            "torch",
        )
    )
    assert kind.devices <= {"cpu", "mps"}
    assert kind.label
