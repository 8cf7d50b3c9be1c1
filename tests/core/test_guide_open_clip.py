"""The OpenCLIP class of LanceDB's custom-embedding guide runs on embedreg once its imports are changed.

A class of the same build (members, decorators, private attributes, results) as the guide's multi-modal example, on a
model whose weights are random and lie in a file: what the guide downloads is not needed to show that it works.
"""

from __future__ import annotations

import concurrent.futures
import io
import os
import urllib.parse as urlparse
from pathlib import Path
from typing import Any, ClassVar

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.pydantic import LanceModel
from PIL import Image
from pydantic import PrivateAttr

import embedreg
from embedreg import (
    IMAGES,
    EmbeddingFunction,
    EmbeddingFunctionRegistry,
    Schema,
    Vector,
    attempt_import_or_raise,
    register,
    url_retrieve,
)
from embedreg.engines.lancedb import add
from embedreg.functions.open_clip import OpenClipEmbeddings
from tests.image_servers import ImageServer
from tests.tiny_clip import CAPTIONS, pictures, png


@pytest.fixture
def clip(tiny_clip: Path) -> Any:
    """An instance of the guide's class, registered under the very name that the guide takes."""
    with pytest.warns(UserWarning, match="'open-clip' was"):

        @register("open-clip")
        class GuideOpenClip(EmbeddingFunction):
            name: str = "ViT-B-32"
            pretrained: str = "laion2b_s34b_b79k"
            device: str = "cpu"
            batch_size: int = 64
            normalize: bool = True
            _model = PrivateAttr()
            _preprocess = PrivateAttr()
            _tokenizer = PrivateAttr()
            loads: ClassVar[int] = 0

            def __init__(self, *args, **kwargs):  # as users write it
                super().__init__(*args, **kwargs)
                open_clip = attempt_import_or_raise("open_clip", "open-clip")
                model, _, preprocess = open_clip.create_model_and_transforms(self.name, pretrained=self.pretrained)
                type(self).loads += 1
                model.to(self.device)
                self._model, self._preprocess = model, preprocess
                self._tokenizer = open_clip.get_tokenizer(self.name)
                self._ndims = None

            def ndims(self):
                if self._ndims is None:
                    self._ndims = self.generate_text_embeddings("foo").shape[0]
                return self._ndims

            def compute_query_embeddings(self, query: str | Image.Image, *args, **kwargs) -> list[np.ndarray]:
                if isinstance(query, str):
                    return [self.generate_text_embeddings(query)]
                pil = attempt_import_or_raise("PIL", "pillow")
                if isinstance(query, pil.Image.Image):
                    return [self.generate_image_embedding(query)]
                raise TypeError("OpenClip supports str or PIL Image as query")

            def generate_text_embeddings(self, text: str) -> np.ndarray:
                torch = attempt_import_or_raise("torch")
                text = self._tokenizer(self.sanitize_input(text))
                with torch.no_grad():
                    return self._finished(self._model.encode_text(text.to(self.device)))

            def sanitize_input(self, images: IMAGES) -> Any:
                if isinstance(images, (str, bytes)):
                    images = [images]
                elif isinstance(images, pa.Array):
                    images = images.to_pylist()
                elif isinstance(images, pa.ChunkedArray):
                    images = images.combine_chunks().to_pylist()
                return images

            def compute_source_embeddings(self, images: IMAGES, *args, **kwargs) -> list[np.ndarray]:
                images = self.sanitize_input(images)
                embeddings = []
                for start in range(0, len(images), self.batch_size):
                    embeddings.extend(self._parallel_get(images[start : start + self.batch_size]))
                return embeddings

            def _parallel_get(self, images: list[str] | list[bytes]) -> list[np.ndarray]:
                with concurrent.futures.ThreadPoolExecutor() as executor:
                    futures = [executor.submit(self.generate_image_embedding, image) for image in images]
                    return [future.result() for future in futures]

            def generate_image_embedding(self, image: str | bytes | Image.Image) -> np.ndarray:
                torch = attempt_import_or_raise("torch")
                image = self._preprocess(self._to_pil(image)).unsqueeze(0)
                with torch.no_grad():
                    return self._finished(self._model.encode_image(image))

            def _to_pil(self, image: str | bytes | Image.Image) -> Image.Image:
                pil = attempt_import_or_raise("PIL.Image", "pillow")
                if isinstance(image, bytes):
                    return pil.open(io.BytesIO(image))
                if isinstance(image, pil.Image):
                    return image
                parsed = urlparse.urlparse(image)
                if parsed.scheme == "file":
                    return pil.open(parsed.path)
                if parsed.scheme == "":
                    return pil.open(image if os.name == "nt" else parsed.path)
                if parsed.scheme.startswith("http"):
                    return pil.open(io.BytesIO(url_retrieve(image)))
                raise NotImplementedError("Only local and http(s) urls are supported")

            def _finished(self, features: Any) -> np.ndarray:
                if self.normalize:
                    features /= features.norm(dim=-1, keepdim=True)
                return features.cpu().numpy().squeeze()

    registry = EmbeddingFunctionRegistry.get_instance()
    return registry.get("open-clip").create(name=f"local-dir:{tiny_clip}", pretrained="")


def test_the_class_works_everywhere(clip: Any, tmp_path: Path) -> None:
    """In a LanceModel with text and image queries and in an embedreg Schema, from one loaded model."""

    class Images(LanceModel):
        label: str
        image_bytes: bytes = clip.SourceField()
        vec_from_bytes: Vector(clip.ndims()) = clip.VectorField()

    class OurImages(Schema):
        label: str
        image_bytes: bytes | None = clip.SourceField(default=None)
        vec_from_bytes: Vector(clip.ndims) = clip.VectorField()

    labels, drawn = pictures(1, seed=7)
    rows = pa.table({"label": labels, "image_bytes": [png(picture) for picture in drawn]})
    table = lancedb.connect(tmp_path).create_table("images", schema=Images)
    table.add(rows)
    add(table, rows.slice(0, 2))
    found = [table.search(caption).limit(1).to_list()[0]["label"] for caption in CAPTIONS]
    assert sum(label == caption for label, caption in zip(found, CAPTIONS, strict=True)) >= 27
    assert table.search(drawn[4]).limit(1).to_list()[0]["label"] == labels[4]
    ours = embedreg.embed_table(rows, OurImages)["vec_from_bytes"].to_pylist()
    built_in = OpenClipEmbeddings.create(name=clip.name, device="cpu")
    np.testing.assert_allclose(ours, built_in.compute_source_embeddings(rows["image_bytes"]), atol=1e-5)
    assert type(clip).loads == 1


def test_addresses_are_checked_by_the_policy(clip: Any) -> None:
    """`url_retrieve` has LanceDB's name, and fetches what is allowed only."""
    picture = pictures(1, seed=7)[1][0]
    with ImageServer(png(picture)) as server:
        with pytest.raises(embedreg.EmbedregError, match="allow_images"):
            clip.compute_source_embeddings([server.url()])
        with embedreg.allow_images(private_hosts=[server.host]):
            (made,) = clip.compute_source_embeddings([server.url()])
    np.testing.assert_allclose(made, clip.generate_image_embedding(picture), atol=1e-5)
