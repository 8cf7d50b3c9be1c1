"""`sentence-transformers-multimodal` against the library's own `encode`, on a tiny random CLIP in its two layouts."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import embedreg
from embedreg import EmbeddingFunction
from embedreg.declaration import drift
from embedreg.errors import CallError, ConfigError, InputError
from embedreg.testing import ImageFunctionContract
from tests.functions.conftest import _tokenizer
from tests.functions.on_open_clips_base import OnOpenClipsBase

WIDTH, SIDE = 16, 32
TEXTS = ["a red circle", "x", "http://images.invalid/a.png"]


@pytest.fixture(autouse=True, scope="module")
def no_model_left() -> Iterator[None]:
    """Leave no loaded model behind."""
    yield
    embedreg.release()


def _clip(folder: Path, seed: int) -> Path:
    """Save a CLIP of transformers with random weights."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    tokenizer = _tokenizer(40)
    size = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 40, **special, **size}
    config = CLIPConfig(text_config=text, vision_config={"image_size": SIDE, "patch_size": 8, **size})
    config.projection_dim = WIDTH
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    square = {"height": SIDE, "width": SIDE}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model whose first module is a `Transformer`, as the library saves it now, and one of its former `CLIPModel`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    made = tmp_path_factory.mktemp("multimodal")
    prompts = {"query": "find: ", "document": ""}
    model = SentenceTransformer(modules=[Transformer(str(_clip(made / "base", 3)))], prompts=prompts, device="cpu")
    model.save(str(made / "transformer"), create_model_card=False)
    shutil.copytree(made / "base", made / "clip" / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (made / "clip" / "modules.json").write_text(json.dumps([module]))
    return {name: made / name for name in ("transformer", "clip")}


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Path:
    """The first of them."""
    return models["transformer"]


def create(folder: Path, **config: Any) -> Any:
    """Create the function on the CPU."""
    return embedreg.get("sentence-transformers-multimodal").create(
        name=str(folder), **{"device": "cpu", "truncate": "silent", "normalize": False, "num_threads": 2, **config}
    )


def pictures() -> list[Image.Image]:
    """Return pictures of several shapes."""
    chance = np.random.default_rng(2)
    sizes = [(50, 70), (32, 32), (20, 90), (64, 40)]
    return [Image.fromarray(chance.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


def png(picture: Image.Image) -> bytes:
    """Return a picture as a file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["transformer", "clip"])
def test_vectors_are_those_of_the_library(models: dict[str, Path], kind: str) -> None:
    """Of images and texts, as sources and as queries, with the model's prompts, cut to a width and scaled."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(models[kind]), device="cpu")
    texts = [{"text": text} for text in TEXTS]  # otherwise it would fetch the one that looks like an image's address
    fn, files = create(models[kind]), [png(each) for each in pictures()]
    images = theirs.encode(pictures())
    made = embedreg.embed_column(fn, [*files, b"not an image"])
    assert made.valid.tolist() == [True] * 4 + [False]
    assert np.abs(made.matrix[:4] - images).max() < 1e-5
    assert np.abs(embedreg.embed_query(fn, pictures()[2]) - images[2]).max() < 1e-5
    assert np.abs(fn.compute_embeddings(TEXTS, "query") - theirs.encode_query(texts)).max() < 1e-5
    assert np.abs(embedreg.embed_query(fn, TEXTS[2]) - theirs.encode_query(texts)[2]).max() < 1e-5
    column = create(models[kind], source_type="text").compute_embeddings(TEXTS)
    assert np.abs(column - theirs.encode_document(texts)).max() < 1e-5
    mixed = fn.compute_embeddings([TEXTS[0], files[1], TEXTS[1]], "query")
    expected = [theirs.encode_query(texts)[0], images[1], theirs.encode_query(texts)[1]]
    assert np.abs(np.array(mixed) - expected).max() < 1e-5
    cut = create(models[kind], truncate_dim=8, normalize=True)
    expected = theirs.encode(pictures(), truncate_dim=8, normalize_embeddings=True)
    assert np.abs(embedreg.embed_column(cut, files).matrix - expected).max() < 1e-5
    assert (fn.ndims(), cut.ndims()) == (WIDTH, 8)


def test_texts_and_images_in_one_column(model: Path, tmp_path: Path) -> None:
    """A string of a mixed column is a text, unless it begins as the address of an image; bytes are an image."""
    files = [png(each) for each in pictures()]
    (tmp_path / "a.png").write_bytes(files[0])
    fn = create(model, source_type="mixed", document_prompt="")
    rows = ["a red circle", files[1], (tmp_path / "a.png").as_uri(), "cat.png", "http://10.0.0.1/a.png"]
    with embedreg.allow_images(dirs=[tmp_path]):
        made = embedreg.embed_column(fn, rows)
    assert made.valid.tolist() == [True, True, True, True, False]
    assert "images may not be fetched" in made.reasons[4]
    texts = create(model, source_type="text", document_prompt="").compute_embeddings([rows[0], rows[3]])
    images = embedreg.embed_column(create(model), files[:2]).matrix
    expected = np.array([texts[0], images[1], images[0], texts[1]])
    assert np.abs(made.matrix[:4] - expected).max() < 1e-5
    with pytest.raises(InputError, match="row 1 is bytes, not text"):
        create(model, source_type="text").compute_embeddings(["a", files[0]])


def test_an_image_is_decoded_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `open_image`, and by nothing else."""
    opened: list[int] = []
    own = Image.open

    def counted(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(1)
        return own(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", counted)
    embedreg.embed_column(create(model), [png(each) for each in pictures()])
    assert len(opened) == len(pictures())


def test_a_model_of_texts_is_refused(tiny: Callable[[str], Path]) -> None:
    """The other function reads it."""
    with pytest.raises(ConfigError, match="embeds no images") as caught:
        embedreg.embed_column(create(tiny("mean")), [png(pictures()[0])])
    assert caught.value.hint == "embedreg.get('sentence-transformers') reads it"


def test_a_table_is_filled_declared_and_watched(model: Path, tmp_path: Path) -> None:
    """The declaration reads back with the model's prompts; another checkpoint drifts; the job goes on after a stop."""
    fn, files = create(model), [png(each) for each in pictures()]
    table = embedreg.embed_table({"image": [*files, None]}, fn.bind("image", "vector"))
    pq.write_table(table, tmp_path / "t.parquet")
    found = embedreg.functions_in(tmp_path / "t.parquet")["vector"].function
    assert found == fn
    assert [each.verdict for each in embedreg.check_drift(tmp_path / "t.parquet")] == ["same"]
    reserved = embedreg.functions_in(table).entries["vector"].reserved
    assert reserved["prompts"] == {"query": "find: ", "document": ""}
    shutil.copytree(model, tmp_path / "other")
    _clip(tmp_path / "other", 4)
    assert drift.compare(create(tmp_path / "other"), reserved).verdict == "drift"


def test_a_job_goes_on_after_a_failure(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published is not embedded again."""
    files = [png(each) for each in pictures()]
    pq.write_table(pa.table({"image": files}), tmp_path / "in.parquet", row_group_size=2)  # pieces are whole groups
    fn, calls = create(model), []
    own = type(fn).compute_embeddings

    def counted(self: Any, inputs: Any, role: Any = "source") -> Any:
        if len(inputs) == 2:  # the probe has one row
            calls.append(role)
            if len(calls) == 2:
                raise CallError("the power is out")
        return own(self, inputs, role)

    monkeypatch.setattr(type(fn), "compute_embeddings", counted)
    config = fn.bind("image", "vector")
    with pytest.raises(CallError, match="the power is out"):
        embedreg.embed(tmp_path / "in.parquet", tmp_path / "out.parquet", config, piece_rows=2)
    embedreg.embed(tmp_path / "in.parquet", tmp_path / "out.parquet", config, piece_rows=2)
    assert len(calls) == 3  # two pieces, one of them twice
    made = np.array(pq.read_table(tmp_path / "out.parquet")["vector"].to_pylist())
    monkeypatch.undo()
    assert np.abs(made - embedreg.embed_column(fn, files).matrix).max() < 1e-5


def test_a_table_of_lancedb_is_searched_and_opened_again(model: Path, tmp_path: Path) -> None:
    """By a text and by an image; rows that are added later are embedded by the declaration."""
    fn, files = create(model), [png(each) for each in pictures()]

    class Pictures(lancedb.pydantic.LanceModel):
        image: bytes = fn.SourceField()
        vector: lancedb.pydantic.Vector(WIDTH) = fn.VectorField()  # type: ignore[valid-type]

    lancedb.connect(tmp_path).create_table("t", schema=Pictures).add([{"image": each} for each in files[:3]])
    table = lancedb.connect(tmp_path).open_table("t")
    table.add([{"image": files[3]}])
    expected = embedreg.embed_column(fn, files).matrix
    assert np.abs(np.array(table.to_arrow()["vector"].to_pylist()) - expected).max() < 1e-5
    distances = np.linalg.norm(expected - embedreg.embed_query(fn, "a red circle"), axis=1)
    assert table.search("a red circle").limit(1).to_arrow()["image"][0].as_py() == files[int(distances.argmin())]
    found = table.search(embedreg.embed_query(fn, pictures()[3])).limit(1).to_arrow()
    assert found["image"].to_pylist() == [files[3]]


class TestMultimodal(OnOpenClipsBase, ImageFunctionContract):
    """The function on the tiny model."""

    @pytest.fixture
    def function(self, model: Path) -> EmbeddingFunction:
        return create(model, normalize=True)  # type: ignore[no-any-return]

    def test_ndims_loads_no_weights(self, function: EmbeddingFunction, monkeypatch: pytest.MonkeyPatch) -> None:
        """The width is known where loading fails; the contract's own process takes seconds to import torch."""
        embedreg.release()
        monkeypatch.setattr(type(function), "load", None)
        assert function.ndims() > 0
