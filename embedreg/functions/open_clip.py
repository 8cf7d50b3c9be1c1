"""The `open-clip` function: texts and images in one vector space, with any model of the open_clip library.

It has the fields and defaults of LanceDB's function of this name. The library's code, preprocessing and tokenizer
determine the vectors; the runtime opens images, batches, and overlaps both.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from embedreg.core.base import Traits
from embedreg.core.modality import TEXT, source_modality
from embedreg.core.role import Role
from embedreg.errors import InputError, RowError
from embedreg.runtime import progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image import clip, clip_config, clip_files
from embedreg.runtime.image.execute import embed_picture
from embedreg.runtime.local import LocalImageFunction
from embedreg.runtime.text import truncation
from embedreg.runtime.text.execute import Made
from embedreg.runtime.text.truncation import Truncate
from embedreg.runtime.vectors import queries
from embedreg.security.references import is_reference

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpenClipEmbeddings"]


class OpenClipEmbeddings(LocalImageFunction):
    """Embeddings of images and texts, in one space, with the open_clip library.

    A query that is a `str` is a text; a PIL image, bytes, a `pathlib.Path` or a numpy array is an image.

    Attributes:
        name: a model of the library ("ViT-B-32"), "hf-hub:<owner>/<model>", or "local-dir:<folder>".
        pretrained: a tag of the library, or a file of weights; ignored for the other two kinds of names.
        device: "auto", "cpu", "cuda", "cuda:<index>" or "mps".
        batch_size: maximum images of a forward pass; on a CPU at most 8, which is fastest.
        normalize: whether vectors have unit length.
        source_type: the meaning of a string in a source column: "image", a path or URL; or "text".
        precision: number type of the towers' computation; vectors are always float32. Types other than "float32" are
            allowed only on hardware that is faster with them.
        draft: whether JPEGs of at least twice the model's input size are decoded at 1/2, 1/4 or 1/8 of their size:
            several times faster, but not exact (docs/open-clip.md lists the differences).
        truncate: policy for a text longer than the model takes: "warn" embeds its beginning and logs the number of such
            rows, "silent" embeds its beginning, "error" makes it a bad row.
        num_threads: worker threads on a CPU, elsewhere those that open images; None for one per core that torch may
            use.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "open-clip"  # also where it is imported directly
    traits: ClassVar[Traits] = replace(
        LocalImageFunction.traits,
        modality="image+text",
        requires=("open_clip", "PIL"),
        extra=clip_config.EXTRA,
        stock_fields=frozenset({"name", "pretrained", "device", "batch_size", "normalize", "max_retries"}),
    )

    name: str = "ViT-B-32"
    pretrained: str | None = "laion2b_s34b_b79k"
    device: str = "auto"  # inherited, as others below: declared again for their order in declarations and listings
    batch_size: int = Field(default=64, ge=1)
    normalize: bool = True
    source_type: Literal["image", "text"] = "image"
    precision: Precision = "float32"
    draft: bool = False
    truncate: Truncate = "warn"
    num_threads: int | None = Field(default=None, ge=1)

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return ["truncate"]

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        if self.from_metadata:
            return
        # a stored relative path would be wrong in any other working directory
        fields = self.raw_fields()
        if not is_reference(fields["name"]) and fields["name"].startswith(clip_config.FOLDER_PREFIX):
            folder = clip_files.names_folder(fields["name"])
            if folder is not None and not folder.is_absolute():
                self.name = f"{clip_config.FOLDER_PREFIX}{os.path.abspath(folder)}"
        weights = fields["pretrained"]
        named = isinstance(weights, str) and not is_reference(weights) and weights.endswith(clip_files.WEIGHTS_SUFFIXES)
        if named and os.path.isfile(weights):
            self.pretrained = os.path.abspath(weights)

    def ndims(self) -> int:
        """Return the width of the vectors, from the model's configuration."""
        if self._ndims is None:
            self._ndims = clip_files.ndims(self._files, self.name)
        return int(self._ndims)

    # -- texts and images -------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed source rows, or queries, each of which may be a text or an image: (n, d) float32.

        If rows fail, the result is a list with a RowError for each image that could not be opened, and under
        truncate="error" for each text that is too long.

        Raises:
            InputError: under source_type="text", a source row that is not text.
        """
        rows = self.sanitize_input(inputs)
        if role == "source":
            return self._embed_texts(rows) if source_modality(self) is TEXT else super().compute_embeddings(rows, role)
        rows = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
        images = [number for number, row in enumerate(rows) if not isinstance(row, str)]
        if len(images) in (0, len(rows)):
            return super().compute_embeddings(rows, role) if images else self._embed_queries(rows)
        found: list[Any] = [None] * len(rows)
        texts = [number for number, row in enumerate(rows) if isinstance(row, str)]
        for numbers, embed in ((texts, self._embed_queries), (images, self._embed_query_images)):
            for number, vector in zip(numbers, embed([rows[number] for number in numbers]), strict=True):
                found[number] = vector
        return found

    def generate_text_embeddings(self, text: str) -> np.ndarray:
        """Embed one text: (d,) float32; LanceDB's method of this name.

        Raises:
            RowError: the text is too long, under truncate="error".
        """
        (made,) = self.compute_query_embeddings(text)
        if isinstance(made, RowError):
            raise made
        return made  # type: ignore[no-any-return]

    def generate_image_embedding(self, image: Any) -> np.ndarray:
        """Embed one image: (d,) float32; LanceDB's method of this name, where a `str` is a path or a URL."""
        with self._failing(1):
            return workers.alone(embed_picture, self._pictures(), image)[0]  # type: ignore[no-any-return]

    def _embed_query_images(self, images: list[Any]) -> Any:
        return super().compute_embeddings(images, "query")

    def _embed_queries(self, texts: list[str]) -> Any:
        if not texts:
            return self._embed_texts(texts)
        loaded = self._loaded()

        def embed(some: list[str]) -> tuple[np.ndarray, np.ndarray]:
            with self._failing(len(some)):
                if len(some) == 1:
                    made = workers.alone(loaded.embed_texts, some, self.normalize)
                else:
                    made = self._in_batches(loaded, some)
            return made.vectors, made.truncated

        key = (*self._cache_key(), self.normalize)
        found = queries.recent.look_up(key, texts)
        known = found.joined(*embed(found.missing)) if found.missing else found.known()
        return self._settled(Made(*known), loaded)

    def _embed_texts(self, rows: Any) -> Any:
        texts = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
        odd = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
        if odd is not None:
            raise InputError(
                f"row {odd} is {type(texts[odd]).__name__}, not text.", "source_type='image' embeds a column of images"
            )
        loaded = self._loaded()
        with self._failing(len(texts)):
            return self._settled(self._in_batches(loaded, texts), loaded)

    def _in_batches(self, loaded: clip.Clip, texts: list[str]) -> Made:
        import numpy as np

        whole = Made(np.empty((len(texts), self.ndims()), np.float32), np.zeros(len(texts), bool))
        for start, made in loaded.embed_many_texts(
            texts, self.normalize, batch_size=self.batch_size, threads=self.num_threads
        ):
            stop = start + len(made.vectors)
            whole.vectors[start:stop], whole.truncated[start:stop] = made.vectors, made.truncated
            progress.report(progress.Step(rows=len(made.vectors)))
        return whole

    def _settled(self, made: Made, loaded: clip.Clip) -> Any:
        return truncation.settled(made.vectors, made.truncated, self.truncate, loaded.max_tokens(), self.name)

    # -- the model --------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        return self.name if self.name.startswith(clip_config.FOLDER_PREFIX) else self.pretrained or ""

    def _find_files(self, *, download: bool) -> clip_files.ClipFiles:
        return clip_files.resolve(
            self.name,
            self.pretrained,
            allow_local=self._may_read(),
            safe_only=self.from_metadata,
            download=download,
        )

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the model's configuration, weights and precision."""
        files = self._files()
        stamp = files.stamp() if files.origin == "local" else 0
        model = self.name if files.folder is None else str(files.folder)
        return "open-clip", model, str(files.weights), stamp, self.precision

    def load(self, device: str) -> clip.Clip:
        """Load the model with its library, in its precision."""
        return clip.load(self.name, self._files(), device, self.precision)

    def _narrow(self, model: clip.Clip, on: str) -> None:
        """Do nothing: the library has converted the model."""

    def draft_side(self, model: clip.Clip) -> int | None:
        """Return the side of the model's input in pixels if `draft` is set, else None."""
        return model.side if self.draft else None

    def prepare(self, model: clip.Clip, picture: Any) -> np.ndarray:
        """Resize and crop an image as the library does."""
        return model.preprocess.prepare(picture)

    def forward(self, model: clip.Clip, batch: Any) -> Any:
        """Normalise the pixels of images, and run the image tower."""
        return model.embed_images(batch, self.normalize)
