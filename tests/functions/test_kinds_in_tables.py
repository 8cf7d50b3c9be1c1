"""`late-interaction`, `splade` and `colpali` in tables: filled, declared, read back, drifting, and refused by name."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import embedreg
from embedreg.declaration import drift
from tests.functions import token_models
from tests.functions.token_models import DIMS, TEXTS


@pytest.fixture(scope="module", autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folders of tiny models, by the name of their function."""
    builders = {
        "late-interaction": token_models.multi,
        "splade": token_models.sparse,
        "colpali": token_models.colpali,
    }
    return {name: str(build(tmp_path_factory.mktemp("tokens") / "base")) for name, build in builders.items()}


@pytest.fixture
def create(folders: dict[str, str]) -> Callable[..., Any]:
    """Create a function of its tiny model."""

    def make(name: str, **options: Any) -> Any:
        if name == "colpali":
            usual: dict[str, Any] = {"model_name": folders[name], "dtype": "float32"}
        else:
            usual = {"name": folders[name], "truncate": "silent"}
        return embedreg.get(name).create(**{"device": "cpu", **usual, **options})

    return make


def rows(name: str) -> list[Any]:
    """Return source rows of a function."""
    if name != "colpali":
        return TEXTS
    files = []
    for colour in ("red", "green", "blue"):
        file = io.BytesIO()
        Image.new("RGB", (30, 40), colour).save(file, "PNG")
        files.append(file.getvalue())
    return files


NAMES = ["late-interaction", "splade", "colpali"]
OPTIONS: dict[str, dict[str, Any]] = {
    "late-interaction": {"pool_factor": 2},
    "splade": {"max_active_dims": 9},
    "colpali": {},
}
OTHER: dict[str, dict[str, Any]] = {
    "late-interaction": {"normalize": False},
    "splade": {"max_active_dims": 3},
    "colpali": {"pooling_strategy": None},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_filled_stored_and_read_back(create: Callable[..., Any], name: str, tmp_path: Path) -> None:
    """The column holds the function's own rows; what reads it back has the function, and adds rows of it."""
    fn, given = create(name, **OPTIONS[name]), rows(name)
    table = embedreg.embed_table({"source": [*given, None]}, fn.bind("source", "vector"))
    pq.write_table(table, tmp_path / "t.parquet")
    again = pq.read_table(tmp_path / "t.parquet")
    stored = again["vector"].to_pylist()
    assert stored.pop() is None
    for row, own in zip(stored, fn.compute_embeddings(given), strict=True):
        if name == "splade":
            assert row["indices"] == own[0].tolist()
            assert np.abs(np.array(row["values"]) - own[1]).max() < 1e-5
        else:
            assert np.abs(np.array(row) - own).max() < 1e-5
    found = embedreg.functions_in(tmp_path / "t.parquet")["vector"].function
    assert found == fn
    more = embedreg.embed_table(pa.table({"source": given[:1]}), fn.bind("source", "vector"))
    assert more.schema.field("vector").type == again.schema.field("vector").type
    assert [each.verdict for each in embedreg.check_drift(again)] == ["same"]


@pytest.mark.parametrize("name", NAMES)
def test_drift_is_noticed(create: Callable[..., Any], name: str) -> None:
    """Another pooling, another limit of weights, another model: the probe or the configuration differs."""
    fn = create(name, **OPTIONS[name])
    table = embedreg.embed_table({"source": rows(name)}, fn.bind("source", "vector"))
    changed = create(name, **OTHER[name])
    reserved = embedreg.functions_in(table).entries["vector"].reserved
    assert drift.compare(fn, reserved).verdict == "same"
    assert drift.compare(changed, reserved).verdict == "drift"


def test_a_schema_declares_the_widths(create: Callable[..., Any]) -> None:
    """`MultiVector(d)` and `SparseVector(d)` take the functions' own widths."""
    late, sparse = create("late-interaction"), create("splade")

    class Articles(embedreg.Schema):
        text: str = late.SourceField()
        tokens: embedreg.MultiVector(late.ndims()) = late.VectorField()  # type: ignore[valid-type]

    made = embedreg.embed_table(pa.table({"text": TEXTS}), Articles)
    assert made.schema.field("tokens").type == pa.list_(pa.list_(pa.float32(), DIMS))

    class Words(embedreg.Schema):
        text: str = sparse.SourceField()
        words: embedreg.SparseVector(sparse.ndims()) = sparse.VectorField()  # type: ignore[valid-type]

    made = embedreg.embed_table(pa.table({"text": TEXTS}), Words)
    assert made.schema.field("words").type.field("indices").type == pa.list_(pa.int32())
