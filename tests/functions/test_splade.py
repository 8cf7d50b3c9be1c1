"""The `splade` function against sentence-transformers' `SparseEncoder`, on tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedreg
from embedreg.errors import ConfigError, RowError
from tests.functions import token_models
from tests.functions.token_models import TEXTS

KINDS = {"masked words": token_models.masked_words, "saved": token_models.sparse, "routed": token_models.routed}


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
            made[kind] = KINDS[kind](tmp_path_factory.mktemp("sparse") / "model")
        return made[kind]

    return get


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    return embedreg.get("splade").create(name=str(folder), **{"device": "cpu", "truncate": "silent", **config})


def dense(rows: list[Any], width: int) -> np.ndarray:
    """Return pairs of indices and values as a matrix, after a check that the indices ascend."""
    made = np.zeros((len(rows), width), np.float32)
    for row, (indices, values) in enumerate(rows):
        assert (indices.dtype, values.dtype) == (np.int32, np.float32)
        assert (np.diff(indices) > 0).all()
        assert (values != 0).all()
        made[row, indices] = values
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [None, 7])
def test_vectors_are_those_of_the_library(model: Callable[[str], Path], kind: str, most: int | None) -> None:
    """Documents and queries, in a batch and alone, with and without a limit of weights."""
    from sentence_transformers import SparseEncoder

    folder = model(kind)
    library, fn = SparseEncoder(str(folder), device="cpu"), create(folder, max_active_dims=most)
    width = fn.ndims()
    options = {"max_active_dims": most}
    documents = library.encode_document(TEXTS, **options).to_dense().numpy()
    queries = library.encode_query(TEXTS, **options).to_dense().numpy()
    assert documents.shape == (len(TEXTS), width)
    assert np.abs(dense(fn.compute_embeddings(TEXTS), width) - documents).max() < 1e-5
    assert np.abs(dense(fn.compute_embeddings(TEXTS, "query"), width) - queries).max() < 1e-5
    assert np.abs(dense(fn.compute_query_embeddings(TEXTS[0]), width) - queries[:1]).max() < 1e-5
    assert most is None or max(len(indices) for indices, _ in fn.compute_embeddings(TEXTS)) == most
    assert fn.vector_traits()["metric"] == "dot"
    assert fn.vector_traits()["normalized"] is False


def test_a_model_that_the_runtime_cannot_run_is_run_by_the_library(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's own methods give the same rows."""
    from embedreg.runtime.text.token_vectors import SparsePipeline

    fn = create(model("saved"))
    assert fn._backend("cpu", "query").usable(TEXTS)
    expected = dense(fn.compute_embeddings(TEXTS), fn.ndims())
    monkeypatch.setattr(SparsePipeline, "usable", lambda *_: False)
    assert np.abs(dense(fn.compute_embeddings(TEXTS), fn.ndims()) - expected).max() < 1e-5


def test_a_text_that_is_too_long_is_a_bad_row(model: Callable[[str], Path]) -> None:
    """As of the other text functions."""
    made = create(model("masked words"), truncate="error").compute_embeddings([*TEXTS, "a" * 100])
    assert [isinstance(row, RowError) for row in made] == [False, False, True, False, False, True]


def test_other_kinds_of_models_are_refused(tiny: Callable[[str], Path], model: Callable[[str], Path]) -> None:
    """A dense model has no weights of words; the library would add a layer of random numbers."""
    for kind in ("mean", "plain"):
        with pytest.raises(ConfigError, match="not sparse vectors"):
            create(tiny(kind)).ndims()
    with pytest.raises(ConfigError, match="splade"):
        embedreg.get("sentence-transformers").create(name=str(model("saved"))).ndims()
    for field in ("backend", "normalize", "truncate_dim"):
        with pytest.raises(ConfigError, match=field):
            create(model("saved"), **{field: "light"})
