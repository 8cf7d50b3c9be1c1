"""The `sentence-transformers-multimodal` function: the models of that library that embed images as well as texts.

It has a name of its own, since under `sentence-transformers` stock LanceDB would take the names of images for texts.
Texts are embedded as by that function. Images are opened under the image policy, and embedded as by the library's
`encode_document` and `encode_query`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from embedreg.arrow.columns import rows_of_media
from embedreg.core.modality import TEXT, is_mixed, source_modality
from embedreg.core.role import Role, compute_once
from embedreg.errors import ConfigError, InputError, RowError
from embedreg.functions.sentence_transformers import TASKS, SentenceTransformerEmbeddings
from embedreg.runtime.hardware import workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.execute import Whole, embed_picture, embed_pictures
from embedreg.runtime.remote.pictures import names_a_picture
from embedreg.runtime.text import library
from embedreg.runtime.text.light import choice

__all__ = ["MultimodalEmbeddings"]


class MultimodalEmbeddings(SentenceTransformerEmbeddings):
    """Embeddings of images and texts, in one space, with the sentence-transformers library.

    A query that is a `str` is a text; a PIL image, bytes, a `pathlib.Path` or a numpy array is an image.

    Attributes:
        name: a model of the hub ("clip-ViT-B-32"; without an owner, sentence-transformers' own), or a folder.
        source_type: the meaning of a string in a source column: "image", a path or URL; "text"; or "mixed", a text
            unless it begins as the address of an image does (http:, https:, file:, data:image/).
        batch_size: maximum rows of a forward pass; on a CPU at most 8 images.
        others: as those of `sentence-transformers`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "sentence-transformers-multimodal"
    traits = replace(
        SentenceTransformerEmbeddings.traits,
        modality="image+text",
        requires=("sentence_transformers", "torchvision", "PIL"),
        alternatives=(),
        extra="sentence-transformers-multimodal",
        stock_fields=None,
        window=8192,  # rows per call, as of other functions of images
    )

    name: str = "clip-ViT-B-32"
    batch_size: int | None = Field(default=None, ge=1)
    source_type: Literal["image", "text", "mixed"] = "image"
    trust_remote_code: ClassVar[bool] = False  # type: ignore[misc]  # no field: the library's own classes only
    precision: ClassVar[Precision] = "float32"  # type: ignore[misc]  # no field: others have not been tried
    backend: ClassVar[str] = choice.TORCH  # type: ignore[misc]  # no field: no other back end can run these models

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return [key for key in SentenceTransformerEmbeddings.runtime_keys() if key != "backend"]

    # -- the contract -------------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed source rows, or queries, each of which may be a text or an image: (n, d) float32.

        If rows fail, the result is a list with a RowError for each image that could not be opened, and under
        truncate="error" for each text that is too long.

        Raises:
            InputError: under source_type="text", a source row that is not text. ConfigError: the model takes no images.
        """
        rows = self.sanitize_input(inputs)
        if role == "source" and source_modality(self) is not TEXT and not is_mixed(self):
            return self._embed_images(rows, role)
        rows = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
        if role == "source" and source_modality(self) is TEXT:
            odd = next((index for index, row in enumerate(rows) if not isinstance(row, str)), None)
            if odd is not None:
                raise InputError(
                    f"row {odd} is {type(rows[odd]).__name__}, not text.", "source_type='image' embeds images"
                )
        else:
            images = [number for number, row in enumerate(rows) if not self._is_text(row, role)]
            if len(images) == len(rows) and rows:
                return self._embed_images(rows, role)
            if images:
                return self._embed_both(rows, images, role)
        return super().compute_embeddings(rows, role)

    def compute_source_embeddings(self, texts: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed source rows, as `compute_embeddings` does."""
        return compute_once(self, texts, "source")

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed one query, as `compute_embeddings` does: (1, d) float32, or a list of one RowError."""
        return compute_once(self, [query], "query")

    def sanitize_input(self, texts: Any) -> Any:
        """Convert the inputs of an engine to rows: one value becomes a list of one, a chunked array one array."""
        return rows_of_media(texts)

    def _is_text(self, row: Any, role: Role) -> bool:
        return isinstance(row, str) and (role == "query" or not names_a_picture(row))

    def _embed_both(self, rows: list[Any], images: list[int], role: Role) -> list[Any]:
        found: list[Any] = [None] * len(rows)
        texts = sorted({*range(len(rows))} - {*images})
        made = super().compute_embeddings([rows[number] for number in texts], role)
        seen = self._embed_images([rows[number] for number in images], role)
        for number, vector in (*zip(texts, made, strict=True), *zip(images, seen, strict=True)):
            found[number] = vector
        return found

    def _embed_images(self, rows: Any, role: Role) -> Any:
        with self._failing(len(rows)):
            model = self._pictures(role)
            if role == "query" and len(rows) == 1:
                try:
                    return workers.alone(embed_picture, model, rows[0])
                except RowError as exc:
                    return [exc]
            return embed_pictures(
                model,
                rows,
                self.ndims(),
                batch_size=self.batch_size,
                threads=self.num_threads,
                from_query=role == "query",
            )

    # -- the model ----------------------------------------------------------------------------------------------------

    def _as_stock(self) -> bool:
        return False

    def load(self, device: str) -> Any:
        """Load the model with its library."""
        model = super().load(device)
        if not library.takes_images(model):
            raise ConfigError(
                f"the model {self.name!r} embeds no images.", "embedreg.get('sentence-transformers') reads it"
            )
        return model

    def weights_key(self) -> tuple[Any, ...]:
        """Return the key of the model under a name of its own, since loading it checks that it takes images."""
        return "multimodal", *super().weights_key()

    def _pictures(self, role: Role) -> _Pictures:
        query, document = self._prompts()
        on = self._devices()[0]
        prompt = query if role == "query" else document
        return _Pictures(self._loaded(on), on, prompt, TASKS[role], self._unit(), self.truncate_dim)


@dataclass(frozen=True)
class _Pictures:
    """A model of the library as a `PictureModel`."""

    model: Any
    device: str
    prompt: str
    task: str
    unit: bool
    truncate_dim: int | None
    side: ClassVar[None] = None

    def prepare(self, picture: Any) -> Any:
        return Whole(picture).prepared()

    def forward(self, batch: Any) -> Any:
        """Embed images as the library's `encode` does."""
        import torch

        preprocess = self.model.preprocess
        if "message" not in self.model.modalities:  # no tokenizer takes part, which one thread at a time may use
            preprocess = functools.partial(type(self.model).preprocess, self.model)
        features = preprocess([each.picture for each in batch], prompt=self.prompt or None, task=self.task)
        with torch.inference_mode():
            moved = {kind: each.to(self.device) if hasattr(each, "to") else each for kind, each in features.items()}
            made = self.model(moved, task=self.task)["sentence_embedding"].float()
            width = self.model.truncate_dim if self.truncate_dim is None else self.truncate_dim
            made = made[:, :width]
            return torch.nn.functional.normalize(made, dim=1) if self.unit else made
