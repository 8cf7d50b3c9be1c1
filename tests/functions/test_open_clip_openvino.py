"""`open-clip` and its text tower on OpenVINO, against torch: a CLIP with random weights."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import embedreg
from embedreg.errors import CallError, ConfigError
from embedreg.runtime.hardware import precision
from embedreg.runtime.image import openvino
from embedreg.runtime.vectors import queries
from tests.tiny_clip import CONFIG, png, save

TEXTS = ["a red circle", "x", "a blue square " * 9, "green"]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Leave no loaded model and no recent query behind."""
    queries.recent.clear()
    yield
    embedreg.release()
    queries.recent.clear()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as open_clip saves it."""
    import open_clip
    import torch

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(5)
    save(open_clip.model.CLIP(**CONFIG), folder)
    return folder


@pytest.fixture(autouse=True)
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of conversions on disk, empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    return embedreg.get("open-clip").create(
        name=f"local-dir:{folder}", **{"device": "cpu", "truncate": "silent", **config}
    )


def pictures(count: int) -> list[bytes]:
    """Return files of pictures of several shapes."""
    chance = np.random.default_rng(1)
    shapes = [(40 + row, 60, 3) for row in range(count)]
    return [png(Image.fromarray(chance.integers(0, 256, shape, dtype=np.uint8))) for shape in shapes]


def everything(fn: Any) -> list[np.ndarray]:
    """Return the vectors of a column, of queries in a batch, and of one text and one image as queries."""
    files = pictures(19)
    one = Image.open(io.BytesIO(files[3]))
    return [
        embedreg.embed_column(fn, files).matrix,
        np.asarray(fn.compute_embeddings(TEXTS, "query")),
        np.asarray(fn.compute_query_embeddings("a blue ring")),
        np.asarray(fn.compute_query_embeddings(one)),
    ]


def test_both_towers_agree_with_torch(clip: Path, conversions: Path) -> None:
    """Images and texts, alone and in batches, to 1e-5; the conversions are kept, and used by the next process."""
    wanted = everything(create(clip))
    for _ in range(2):
        queries.recent.clear()
        made = everything(create(clip, backend="openvino"))
        assert [float(np.abs(a - b).max()) < 1e-5 for a, b in zip(wanted, made, strict=True)] == [True] * 4
        assert len(list(conversions.rglob("model.xml"))) == 2
        embedreg.release()
    texts = create(clip, source_type="text", backend="openvino")
    assert np.abs(texts.compute_embeddings(TEXTS) - wanted[1]).max() < 1e-5


def test_a_stored_column_does_not_say_which_back_end_made_it(clip: Path) -> None:
    """It is a runtime field: the declarations of both are one."""
    entries = [
        embedreg.get_registry().function_to_metadata(create(clip, backend=each).bind("image", "vector"))
        for each in ("auto", "torch", "openvino")
    ]
    assert entries[0] == entries[1] == entries[2]


def test_bfloat16_is_near(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled from float32 weights, where the processor is faster with it."""
    monkeypatch.setattr(precision, "check", lambda *_: None)  # tried on any processor
    exact = everything(create(clip))
    near = everything(create(clip, backend="openvino", precision="bfloat16"))
    for a, b in zip(exact, near, strict=True):
        assert (np.einsum("nd,nd->n", a, b) > 0.999).all()


def test_a_damaged_conversion_is_made_again(clip: Path, conversions: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is compared with torch's vectors before it is used, and its digest before that."""
    fn = create(clip, backend="openvino")
    wanted = embedreg.embed_query(fn, "a red circle")
    (stored,) = conversions.rglob("model.bin")
    stored.write_bytes(stored.read_bytes()[:-4] + b"1234")
    embedreg.release()
    queries.recent.clear()
    with caplog.at_level(logging.WARNING, "embedreg"):
        assert np.abs(embedreg.embed_query(fn, "a red circle") - wanted).max() < 1e-6
    assert "converting again" in caplog.text


def test_other_vectors_are_an_error(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower whose conversion differs from torch's is not used, and the error names the way out."""
    monkeypatch.setitem(openvino.openvino.TOLERANCE, "float32", -1.0)
    with pytest.raises(CallError, match="vectors of the textual tower differ") as caught:
        create(clip, backend="openvino").compute_query_embeddings("x")
    assert "backend='torch'" in str(caught.value)


def test_it_runs_on_a_cpu(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device is refused before anything is converted."""
    fn = create(clip, backend="openvino")
    monkeypatch.setattr(type(fn), "_devices", lambda _: ("cuda:0",))
    with pytest.raises(ConfigError, match="runs on a CPU"):
        fn._as_run(None)
