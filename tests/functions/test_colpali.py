"""The `colpali` function against transformers' ColPali, on a tiny random model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import embedreg
from embedreg.declaration import codec
from embedreg.errors import ConfigError, RowError
from tests.functions import token_models
from tests.functions.token_models import DIMS

TEXTS = ["a red circle", "x", "https://example.com/a.png"]


@pytest.fixture(scope="module", autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


@pytest.fixture(scope="module")
def colpali(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model."""
    return token_models.colpali(tmp_path_factory.mktemp("colpali"))


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    return embedreg.get("colpali").create(model_name=str(folder), **{"device": "cpu", "dtype": "float32", **config})


def pictures() -> list[Image.Image]:
    """Return pictures of several shapes."""
    chance = np.random.default_rng(2)
    sizes = [(50, 70), (32, 32), (20, 90)]
    return [Image.fromarray(chance.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def png(picture: Image.Image) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def same(made: list[Any], expected: list[Any]) -> bool:
    """Return whether rows of vectors agree to 1e-5."""
    alike = [each.shape for each in made] == [tuple(each.shape) for each in expected]
    return alike and all(np.abs(one - other).max() < 1e-5 for one, other in zip(made, expected, strict=True))


def library(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the vectors of `pictures` and `TEXTS` from transformers alone."""
    import torch
    from transformers import ColPaliForRetrieval, ColPaliProcessor

    model = ColPaliForRetrieval.from_pretrained(folder).eval()
    processor = ColPaliProcessor.from_pretrained(folder)
    found = []
    for features in (processor(images=pictures()), processor(text=TEXTS)):
        with torch.no_grad():
            made = model(**{kind: features[kind] for kind in features if kind != "labels"}).embeddings.numpy()
        mask = features["attention_mask"].numpy().astype(bool)
        found.append([row[kept] for row, kept in zip(made, mask, strict=True)])
    return found[0], found[1]


def test_vectors_are_those_of_the_library(colpali: Path) -> None:
    """Pages and queries, in batches and alone; a text that looks like an address is a text."""
    images, texts = library(colpali)
    fn = create(colpali, pooling_strategy=None)
    assert fn.ndims() == DIMS
    made = fn.compute_embeddings([*map(png, pictures()), b"not an image"])
    assert isinstance(made.pop(), RowError)
    assert same(made, images)
    assert same(fn.compute_embeddings(TEXTS, "query"), texts)
    assert same(fn.compute_query_embeddings(TEXTS[1]), texts[1:2])
    mixed = fn.compute_embeddings([TEXTS[0], pictures()[2], TEXTS[2]], "query")
    assert same(mixed, [texts[0], images[2], texts[2]])
    assert same(fn.compute_query_embeddings(pictures()[0]), images[:1])


def test_pages_and_queries_are_pooled_as_lancedb_does(colpali: Path) -> None:
    """The clusters are those of the cosine distances' rows by Ward's method, and no row has vectors of zeros."""
    from scipy.cluster.hierarchy import fcluster, ward

    images, texts = library(colpali)
    expected = []
    for vectors in [*images, *texts]:
        labels = fcluster(ward(1 - vectors @ vectors.T), max(len(vectors) // 2, 1), "maxclust")
        means = [vectors[labels == each].mean(axis=0) for each in sorted(set(labels.tolist()))]
        expected.append(np.array([each / np.linalg.norm(each) for each in means]))
    fn = create(colpali)
    made = [*fn.compute_embeddings([png(each) for each in pictures()]), *fn.compute_embeddings(TEXTS, "query")]
    assert same(made, expected)
    assert all(np.abs(np.linalg.norm(row, axis=1) - 1).max() < 1e-5 for row in made)
    assert same(create(colpali, pool_queries=False).compute_embeddings(TEXTS, "query"), texts)
    assert same(create(colpali, use_token_pooling=False).compute_embeddings(TEXTS, "query"), texts)


def test_devices_give_the_same_rows(colpali: Path) -> None:
    """The queue of a device takes images of any size, here on torch's CPU device."""
    import dataclasses

    from embedreg.runtime.image import execute

    fn = create(colpali)
    files = [png(each) for each in pictures()] * 3
    expected = fn.compute_embeddings(files)
    run = execute._Run(dataclasses.replace(fn._pictures(), device="cpu"), [*files, b"no image"], None)
    run.on_device(2, 2)
    found = run.result()
    assert isinstance(found.pop(), RowError)
    assert same(found, expected)


def test_a_table_of_lancedb_is_read_with_its_defaults(colpali: Path) -> None:
    """Its options keep their names; what only its own library reads is refused by name, with what there is."""
    entry = {"name": "colpali", "model": {"model_name": str(colpali), "dtype": "float32", "pool_factor": 3}}
    entry |= {"source_column": "image", "vector_column": "vector"}
    with embedreg.trust(paths=[colpali]):
        fn: Any = embedreg.get_registry().parse_functions({codec.KEY: json.dumps([entry])})["vector"].function
        made = fn.compute_embeddings([png(pictures()[0])])
    assert same(made, create(colpali, pool_factor=3).compute_embeddings([png(pictures()[0])]))
    assert (fn.pooling_strategy, fn.pool_queries, fn.batch_size) == ("hierarchical", True, 2)
    assert any("zeros" in said for said in fn._remarks())
    for name in ("Metric-AI/ColQwen2.5-3b-multilingual-v1.0", "vidore/colpali-v1.3", "vidore/colSmol-256M"):
        with pytest.raises(ConfigError, match="colpali-engine"):
            embedreg.get("colpali").create(model_name=name).ndims()
    with pytest.raises(ConfigError, match="lambda"):
        create(colpali, pooling_strategy="lambda")


def test_another_kind_of_model_is_refused(colpali: Path, tmp_path: Path) -> None:
    """A ColPali is read by this function alone, and this function reads nothing else."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(ConfigError, match="not vectors of images of pages"):
        create(tmp_path).ndims()
    with pytest.raises(ConfigError, match="'colpali'"):
        embedreg.get("late-interaction").create(name=str(colpali)).ndims()
