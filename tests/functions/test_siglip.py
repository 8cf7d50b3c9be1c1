"""The `siglip` function against the transformers library, on a tiny random model."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import embedreg
from embedreg import EmbeddingFunction
from embedreg.declaration import codec
from embedreg.errors import ConfigError
from embedreg.testing import ImageFunctionContract
from tests.functions.conftest import _tokenizer
from tests.functions.on_open_clips_base import OnOpenClipsBase

WIDTH, SIDE = 16, 32
TEXTS = ["a red circle", "x", "two words " * 20]


@pytest.fixture(autouse=True)
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP with random weights, as transformers saves it."""
    import torch
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    made, tokenizer = tmp_path_factory.mktemp("siglip") / "model", _tokenizer(64, causal=True)
    tokenizer.model_input_names = ["input_ids"]
    size = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": len(tokenizer), "projection_size": WIDTH, **special, **size}
    vision = {"image_size": SIDE, "patch_size": 8, **size}
    torch.manual_seed(3)
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(made)
    tokenizer.save_pretrained(made)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(made)
    return made


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    return embedreg.get("siglip").create(
        model_name=str(folder), **{"device": "cpu", "truncate": "silent", "normalize": False, **config}
    )


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


def test_vectors_are_those_of_the_library(siglip: Path) -> None:
    """Images through the exact preprocessing; texts padded to all 64 tokens, alone and in batches."""
    import torch
    from transformers import AutoTokenizer, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    model, tokenizer = SiglipModel.from_pretrained(siglip).eval(), AutoTokenizer.from_pretrained(siglip)
    pixels = SiglipImageProcessorPil.from_pretrained(siglip)(images=pictures(), return_tensors="pt")["pixel_values"]
    tokens = tokenizer(TEXTS, return_tensors="pt", padding="max_length", truncation=True, max_length=64)
    assert tokens["input_ids"].shape == (3, 64)
    with torch.no_grad():
        images = model.get_image_features(pixel_values=pixels).pooler_output.numpy()
        texts = model.get_text_features(**tokens).pooler_output.numpy()
    fn = create(siglip)
    made = embedreg.embed_column(fn, [*map(png, pictures()), b"not an image"])
    assert made.valid.tolist() == [True, True, True, False]
    assert np.abs(made.matrix[:3] - images).max() < 1e-5
    assert np.abs(fn.compute_embeddings(TEXTS, "query") - texts).max() < 1e-5
    assert np.abs(embedreg.embed_query(fn, TEXTS[2]) - texts[2]).max() < 1e-5
    assert np.abs(create(siglip, source_type="text").compute_embeddings(TEXTS) - texts).max() < 1e-5
    faster = create(siglip, backend="openvino")
    assert np.abs(faster.compute_embeddings(TEXTS, "query") - texts).max() < 1e-5
    assert np.abs(embedreg.embed_column(faster, [*map(png, pictures())]).matrix - images).max() < 1e-5
    unit = create(siglip, normalize=True).compute_query_embeddings(pictures()[0])[0]
    assert np.abs(unit - images[0] / np.linalg.norm(images[0])).max() < 1e-5
    assert fn.ndims() == WIDTH


def test_a_table_of_lancedb_is_searched_and_extended(siglip: Path) -> None:
    """LanceDB's own function fails since transformers 5: the entry is as its code writes it."""
    entry = {
        "name": "siglip",
        "model": {"model_name": str(siglip)},
        "source_column": "image",
        "vector_column": "vector",
    }
    with embedreg.trust(paths=[siglip]):
        fn = embedreg.get_registry().parse_functions({codec.KEY: json.dumps([entry])})["vector"].function
        made = embedreg.embed_table({"image": [png(each) for each in pictures()]}, fn.bind("image", "vector"))
        query = embedreg.embed_query(fn, pictures()[1])
    found = np.array(made["vector"].to_pylist()) @ query
    assert (found.argmax(), round(float(found[1]), 4)) == (1, 1.0)
    names = [
        embedreg.get_registry().function_to_metadata(each.bind("image", "vector"))["name"]
        for each in (create(siglip), create(siglip, source_type="text"))
    ]
    assert names == ["siglip", "embedreg:siglip"]
    assert embedreg.get("siglip").create().model_name == "google/siglip-base-patch16-224"


@pytest.mark.parametrize(
    "change", [{"do_center_crop": True}, {"size": {"shortest_edge": 32}}, {"resample": [3]}, {"image_std": [1, 0, 1]}]
)
def test_another_preprocessing_is_refused(siglip: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """One that crops, keeps the shape or cannot be read is not SigLIP's."""
    shutil.copytree(siglip, tmp_path / "model")
    config = json.loads((siglip / "preprocessor_config.json").read_text())
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match="preprocess"):
        create(tmp_path / "model").compute_query_embeddings("x")


def test_another_kind_of_model_is_refused(tiny: Callable[[str], Path]) -> None:
    """A BERT is not a SigLIP."""
    with pytest.raises(ConfigError, match="'bert' is not a SigLIP"):
        create(tiny("plain")).ndims()


class TestSiglip(OnOpenClipsBase, ImageFunctionContract):
    """`siglip` on the tiny model."""

    @pytest.fixture
    def function(self, siglip: Path) -> EmbeddingFunction:
        return create(siglip, normalize=True)  # type: ignore[no-any-return]
