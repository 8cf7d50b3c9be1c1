"""The `late-interaction` function against sentence-transformers' `MultiVectorEncoder`, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg.errors import ConfigError, RowError
from tests.functions import token_models
from tests.functions.token_models import DIMS, TEXTS

KINDS: dict[str, Callable[[Path], Path]] = {
    "plain": token_models.multi,
    "fixed": lambda folder: token_models.multi(folder, query_expansion={"strategy": "fixed", "length": 12}),
    "attended": lambda folder: token_models.multi(
        folder, query_expansion={"strategy": "fixed", "length": 12, "attend": True}
    ),
    "least": lambda folder: token_models.multi(folder, query_expansion={"strategy": "min", "length": 12}),
    "pylate": token_models.pylate,
    "stanford": token_models.stanford,
}


@pytest.fixture(scope="module", autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a model by its kind."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return get


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    return embedreg.get("late-interaction").create(
        name=str(folder), **{"device": "cpu", "truncate": "silent", **config}
    )


def same(made: list[Any], expected: list[Any]) -> bool:
    """Return whether rows of vectors agree to 1e-5."""
    alike = [each.shape for each in made] == [tuple(each.shape) for each in expected]
    return alike and all(np.abs(one - other).max() < 1e-5 for one, other in zip(made, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_the_library(model: Callable[[str], Path], kind: str) -> None:
    """Documents and queries, in a batch and alone: prompts, lengths, expansion and left-out tokens are the model's."""
    from sentence_transformers import MultiVectorEncoder

    folder = model(kind)
    library, fn = MultiVectorEncoder(str(folder), device="cpu"), create(folder)
    assert fn.ndims() == DIMS
    documents = library.encode_document(TEXTS, convert_to_numpy=True)
    queries = library.encode_query(TEXTS, convert_to_numpy=True)
    assert same(fn.compute_embeddings(TEXTS), documents)
    assert same(fn.compute_embeddings(TEXTS, "query"), queries)
    assert same(fn.compute_embeddings(TEXTS[:1], "query"), queries[:1])
    assert same(fn.compute_query_embeddings(TEXTS[4]), queries[4:])
    assert all(np.abs(np.linalg.norm(row, axis=1) - 1).max() < 1e-5 for row in fn.compute_embeddings(TEXTS))
    assert fn.compute_embeddings([]) == []
    assert fn.vector_traits()["normalized"] is True
    assert fn._backend("cpu", "query").usable(TEXTS)
    assert fn._backend("cpu", "source").usable(TEXTS)


def test_documents_are_pooled_as_by_the_library(model: Callable[[str], Path]) -> None:
    """`pool_factor` pools the vectors of documents, and leaves queries as they are."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    folder = model("plain")
    library, fn = MultiVectorEncoder(str(folder), device="cpu"), create(folder, pool_factor=2)
    pooled = library.encode_document(TEXTS, convert_to_numpy=True, token_pooling=HierarchicalTokenPooling(2))
    assert same(fn.compute_embeddings(TEXTS), pooled)
    assert sum(map(len, pooled)) < sum(map(len, create(folder).compute_embeddings(TEXTS)))
    assert same(fn.compute_embeddings(TEXTS, "query"), library.encode_query(TEXTS, convert_to_numpy=True))
    assert embedreg.get_registry().function_to_metadata(fn.bind("text", "vector"))["model"]["pool_factor"] == 2


def test_a_model_that_the_runtime_cannot_run_is_run_by_the_library(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own methods give the same rows."""
    from embedreg.runtime.text.token_vectors import LateInteractionPipeline

    fn = create(model("fixed"), pool_factor=2, truncate_dim=5)
    expected = fn.compute_embeddings(TEXTS), fn.compute_embeddings(TEXTS, "query")
    monkeypatch.setattr(LateInteractionPipeline, "usable", lambda *_: False)
    assert same(fn.compute_embeddings(TEXTS, "query"), expected[1])
    assert [len(row) for row in fn.compute_embeddings(TEXTS)] == [len(row) for row in expected[0]]


def test_a_text_that_is_too_long_is_a_bad_row(model: Callable[[str], Path]) -> None:
    """The limit is that of the role, which the model's files state."""
    fn = create(model("stanford"), truncate="error")
    made = fn.compute_embeddings(TEXTS)
    assert [isinstance(row, RowError) for row in made] == [False, False, True, False, False]
    assert "18 tokens" in str(made[2])
    assert "12 tokens" in str(fn.compute_embeddings([TEXTS[2]], "query")[0])
    assert fn.max_tokens() == 18


def test_other_kinds_of_models_are_refused(tiny: Callable[[str], Path], model: Callable[[str], Path]) -> None:
    """A dense model has no projection of its tokens; the library would add one of random numbers."""
    for kind in ("mean", "plain"):
        with pytest.raises(ConfigError, match="not vectors of tokens"):
            create(tiny(kind)).ndims()
    with pytest.raises(ConfigError, match="late-interaction"):
        embedreg.get("sentence-transformers").create(name=str(model("plain"))).ndims()
    with pytest.raises(ConfigError, match="backend"):
        create(model("plain"), backend="light")


def test_devices_give_the_rows_of_one_batch(model: Callable[[str], Path]) -> None:
    """The workers of devices collect rows of several lengths, here on torch's CPU device."""
    from embedreg.runtime.text.execute import embed_texts
    from embedreg.runtime.text.token_vectors import LateInteractionPipeline

    fn = create(model("fixed"))
    made = fn._backend("cpu", "source")
    parts = [LateInteractionPipeline(made.model, "cpu", made.prompt, made.task, True, None) for _ in range(2)]
    many = [f"{text} {number}" for number in range(40) for text in TEXTS]
    found = embed_texts(parts, many, DIMS, budget=256, packed=True)
    assert same(found.vectors, fn.compute_embeddings(many))
