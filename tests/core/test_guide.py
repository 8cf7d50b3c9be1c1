"""Classes written for LanceDB's custom-embedding guide run once their imports are changed.

The guide (LanceDB's documentation, "Custom Embedding Functions") has a sentence-transformers class and an OpenCLIP
class. Here are classes of the same build, with the members, decorators, private attributes and results of the guide's,
and with what it leaves out filled in.
"""

from __future__ import annotations

import concurrent.futures
import struct
import warnings
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cachetools import cached
from lancedb.pydantic import LanceModel
from pydantic import PrivateAttr

import embedreg
from embedreg import (
    IMAGES,
    EmbeddingFunction,
    EmbeddingFunctionRegistry,
    Schema,
    TextEmbeddingFunction,
    Vector,
    register,
)
from embedreg.engines.lancedb import add
from embedreg.errors import MissingExtraError

# -- the sentence-transformers class -----------------------------------------------------------------------------------


@pytest.fixture
def stransformer(minilm_path: Path) -> Any:
    """An instance of the guide's class, registered under the very name that the guide takes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        @register("sentence-transformers")
        class GuideSentenceTransformer(TextEmbeddingFunction):
            name: str = "all-MiniLM-L6-v2"
            loads: ClassVar[int] = 0

            def __init__(self, **kwargs):  # as users write it
                super().__init__(**kwargs)
                self._ndims = None

            def generate_embeddings(self, texts):
                return self._embedding_model().encode(list(texts), normalize_embeddings=True).tolist()

            def ndims(self):
                if self._ndims is None:
                    self._ndims = len(self.generate_embeddings("foo")[0])
                return self._ndims

            @cached(cache={})
            def _embedding_model(self):
                sentence_transformers = embedreg.attempt_import_or_raise("sentence_transformers")
                type(self).loads += 1
                return sentence_transformers.SentenceTransformer(self.name, device="cpu")

    # taking a built-in's name is what the guide does; it is logged, and allowed
    assert [str(item.message).count("sentence-transformers") for item in caught] == [1]
    registry = EmbeddingFunctionRegistry.get_instance()
    return registry.get("sentence-transformers").create(name=str(minilm_path))


def library_vectors(path: Path, texts: list[str]) -> np.ndarray:
    """Return what the library itself gives: (n, 384)."""
    from sentence_transformers import SentenceTransformer

    return np.asarray(SentenceTransformer(str(path), device="cpu").encode(texts, normalize_embeddings=True))


def agree(stored: Any, wanted: np.ndarray) -> bool:
    """Say whether rows of vectors point the same way."""
    made = np.array(stored.to_pylist())
    return bool((np.einsum("nd,nd->n", made, wanted) / np.linalg.norm(made, axis=1) > 0.9999).all())


def test_the_sentence_transformers_class_works_everywhere(stransformer: Any, minilm_path: Path, tmp_path: Path) -> None:
    """In an embedreg Schema, and in a LanceModel with the guide's `Vector(fn.ndims)`, from one loaded model."""

    class TextModelSchema(LanceModel):
        vector: Vector(stransformer.ndims) = stransformer.VectorField()
        text: str = stransformer.SourceField()

    class OurSchema(Schema):
        vector: Vector(stransformer.ndims()) = stransformer.VectorField()
        text: str = stransformer.SourceField()

    frame = pd.DataFrame({"text": ["halo", "world"]})
    wanted = library_vectors(minilm_path, ["halo", "world"])
    assert agree(embedreg.embed_table(frame, OurSchema)["vector"], wanted)

    db = lancedb.connect(tmp_path)
    table = db.create_table("table", schema=TextModelSchema)
    table.add(frame)
    add(table, frame)
    assert agree(table.to_arrow()["vector"], np.concatenate([wanted, wanted]))
    found = table.search("world").limit(1).to_pydantic(TextModelSchema)
    assert [row.text for row in found] == ["world"]
    again = db.open_table("table")
    assert again.search("greeting").limit(4).to_list()
    again.add(frame)
    assert type(stransformer).loads == 1


def test_the_sentence_transformers_class_is_a_value(stransformer: Any, minilm_path: Path) -> None:
    """Its private attributes and its cached model are not part of it."""
    twin = type(stransformer).create(name=str(minilm_path))
    stransformer.ndims()
    assert stransformer._ndims == 384
    assert twin == stransformer
    assert hash(twin) == hash(stransformer)
    assert stransformer.safe_model_dump() == {"name": str(minilm_path)}
    assert twin._embedding_model() is stransformer._embedding_model()


def test_the_error_for_a_missing_library_has_the_install_command() -> None:
    """`attempt_import_or_raise` has LanceDB's name and arguments."""
    with pytest.raises(MissingExtraError, match="pip install open-clip"):
        embedreg.attempt_import_or_raise("open_clip_that_is_not_there", "open-clip")


# -- the OpenCLIP class ------------------------------------------------------------------------------------------------


class Picture:
    """A picture of one colour: what an image library would have decoded."""

    def __init__(self, red: int, green: int, blue: int) -> None:
        self.colour = np.array([red, green, blue], np.float32)

    def encoded(self) -> bytes:
        """The picture as a file's content."""
        return struct.pack("<4s3f", b"PIC0", *self.colour)


COLOURS = {"red": Picture(255, 0, 0), "green": Picture(0, 255, 0), "blue": Picture(0, 0, 255)}


class TinyClip:
    """Text and pictures in one space of three dimensions, computed by hand: how much of each colour."""

    loads = 0

    def __init__(self) -> None:
        TinyClip.loads += 1

    def encode_text(self, tokens: list[list[str]]) -> np.ndarray:
        return np.array([[row.count(colour) for colour in COLOURS] for row in tokens], np.float32)

    def encode_image(self, batch: np.ndarray) -> np.ndarray:
        return batch / 255


@register("tiny-clip")
class TinyClipEmbeddings(EmbeddingFunction):
    """Built as the guide's OpenCLIP class is."""

    name: str = "ViT-B-32"
    pretrained: str = "by-hand"
    device: str = "cpu"
    batch_size: int = 2
    normalize: bool = True
    _model = PrivateAttr()
    _preprocess = PrivateAttr()
    _tokenizer = PrivateAttr()

    def __init__(self, *args, **kwargs):  # as users write it
        super().__init__(*args, **kwargs)
        self._model, self._preprocess = TinyClip(), lambda image: image.colour
        self._tokenizer = lambda texts: [text.split() for text in texts]
        self._ndims = None

    def ndims(self):
        if self._ndims is None:
            self._ndims = self.generate_text_embeddings("foo").shape[0]
        return self._ndims

    def compute_query_embeddings(self, query: str | Picture, *args, **kwargs):
        if isinstance(query, str):
            return [self.generate_text_embeddings(query)]
        if isinstance(query, Picture):
            return [self.generate_image_embedding(query)]
        raise TypeError("TinyClip takes a str or a Picture as a query")

    def generate_text_embeddings(self, text: str) -> np.ndarray:
        return self._normalized(self._model.encode_text(self._tokenizer(self.sanitize_input(text))))

    def sanitize_input(self, images: IMAGES) -> Any:
        if isinstance(images, (str, bytes)):
            images = [images]
        elif isinstance(images, pa.Array):
            images = images.to_pylist()
        elif isinstance(images, pa.ChunkedArray):
            images = images.combine_chunks().to_pylist()
        return images

    def compute_source_embeddings(self, images: IMAGES, *args, **kwargs):
        images = self.sanitize_input(images)
        embeddings = []
        for start in range(0, len(images), self.batch_size):
            embeddings.extend(self._parallel_get(images[start : start + self.batch_size]))
        return embeddings

    def _parallel_get(self, images: list[bytes]) -> list[np.ndarray]:
        with concurrent.futures.ThreadPoolExecutor() as executor:
            return [done.result() for done in [executor.submit(self.generate_image_embedding, i) for i in images]]

    def generate_image_embedding(self, image: bytes | Picture) -> np.ndarray:
        return self._normalized(self._model.encode_image(self._preprocess(self._decoded(image))[None]))

    def _decoded(self, image: bytes | Picture) -> Picture:
        return image if isinstance(image, Picture) else Picture(*struct.unpack("<4s3f", image)[1:])

    def _normalized(self, features: np.ndarray) -> np.ndarray:
        if self.normalize:
            features = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-9)
        return features.squeeze()


ONE_HOT = {"red": [1.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0], "blue": [0.0, 0.0, 1.0]}


def test_a_class_built_like_open_clip_works_in_lancedb(tmp_path: Path) -> None:
    """Binary sources, text and image queries, squeezed results, a model in a private attribute, loaded once."""
    TinyClip.loads = 0
    clip = embedreg.get("tiny-clip").create()

    class Images(LanceModel):
        label: str
        image_bytes: bytes = clip.SourceField()
        vector: Vector(clip.ndims()) = clip.VectorField()

    db = lancedb.connect(tmp_path)
    table = db.create_table("images", schema=Images)
    rows = pa.table({"label": list(COLOURS), "image_bytes": [picture.encoded() for picture in COLOURS.values()]})
    table.add(rows)
    table.add(rows.slice(0, 1))
    add(table, rows)
    for row in table.to_arrow().to_pylist():
        assert row["vector"] == ONE_HOT[row["label"]]
    table = db.open_table("images")
    assert table.search("a green thing").limit(1).to_list()[0]["label"] == "green"
    assert table.search(Picture(0, 0, 99)).limit(1).to_list()[0]["label"] == "blue"
    assert TinyClip.loads == 1


def test_a_class_built_like_open_clip_works_in_our_schema() -> None:
    """The same without an engine; a null image has a null vector."""
    clip = embedreg.get("tiny-clip").create()

    class Images(Schema):
        image_bytes: bytes | None = clip.SourceField(default=None)
        vector: Vector(clip.ndims) = clip.VectorField()

    images = [COLOURS["blue"].encoded(), None, COLOURS["red"].encoded(), COLOURS["blue"].encoded()]
    made = embedreg.embed_table({"image_bytes": images}, Images)
    assert made["vector"].to_pylist() == [ONE_HOT["blue"], None, ONE_HOT["red"], ONE_HOT["blue"]]
    assert embedreg.embed_query(clip, "red").tolist() == ONE_HOT["red"]
    with pytest.raises(TypeError, match="takes a str or a Picture"):
        embedreg.embed_query(clip, 7)


def test_queries_of_the_guides_image_class_come_in_one_column() -> None:
    """Texts and pictures mixed, one by one through its own query method, squeezed results and all; a bad one fails."""
    clip = embedreg.get("tiny-clip").create()
    asked = ["a green thing", Picture(0, 0, 99), None, "red", "a green thing"]
    made = embedreg.embed_column(clip, asked, "query")
    assert made.valid.tolist() == [True, True, False, True, True]
    wanted = [ONE_HOT["green"], ONE_HOT["blue"], ONE_HOT["red"], ONE_HOT["green"]]
    assert made.matrix[made.valid].tolist() == wanted
    assert np.asarray(clip.compute_embeddings(asked[:2], "query")).tolist() == wanted[:2]
    assert np.asarray(clip.compute_embeddings([COLOURS["red"].encoded()])).tolist() == [ONE_HOT["red"]]


def test_queries_of_the_guides_text_class_are_one_call(stransformer: Any, minilm_path: Path) -> None:
    """It has no query method: a batch of queries is a batch of texts, with the vectors that each has alone."""
    calls: list[int] = []
    encode = stransformer._embedding_model().encode

    def counted(texts: Any, **options: Any) -> Any:
        calls.append(len(texts))
        return encode(texts, **options)

    stransformer._embedding_model().encode = counted
    texts = ["halo", "world", "a longer query"]
    made = embedreg.embed_column(stransformer, texts, "query")
    assert calls[-1] == 3
    np.testing.assert_allclose(made.matrix, library_vectors(minilm_path, texts), atol=2e-6)
    np.testing.assert_allclose(stransformer.compute_query_embeddings("halo")[0], made.matrix[0], atol=2e-6)
