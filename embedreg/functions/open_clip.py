"""`open-clip`: text and images in one space, with any model of the open_clip library.

LanceDB's function of this name, with its fields and defaults. The library's own code, preprocessing and tokenizer make
the vectors; the runtime opens, batches and overlaps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from embedreg.core import vouched
from embedreg.core.base import IMAGES, EmbeddingFunction, Traits
from embedreg.core.modality import TEXT, source_modality
from embedreg.core.role import Role
from embedreg.errors import CallError, ConfigError, EmbedregError, InputError, ModelNotFoundError, RowError
from embedreg.runtime import cache, progress
from embedreg.runtime.hardware import device, precision, workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image import clip, clip_files
from embedreg.runtime.image.execute import embed_picture, embed_pictures
from embedreg.runtime.text import truncation
from embedreg.runtime.text.execute import Made
from embedreg.runtime.text.truncation import Truncate
from embedreg.runtime.vectors import queries
from embedreg.security.references import is_reference

if TYPE_CHECKING:
    import numpy as np

__all__ = ["OpenClipEmbeddings"]


class OpenClipEmbeddings(EmbeddingFunction):
    """Embeddings of images and texts, in one space, with the open_clip library.

    A query that is a `str` is a text; a PIL image, bytes, a `pathlib.Path` or a numpy array is an image.

    Attributes:
        name: a model of the library ("ViT-B-32"), "hf-hub:<owner>/<model>", or "local-dir:<folder>".
        pretrained: a tag of the library, or a file of weights; of no meaning for the other two kinds of names.
        device: "auto", "cpu", "cuda", "cuda:<index>" or "mps".
        batch_size: the most images of a forward pass; on a CPU never more than 8, which is quickest.
        normalize: whether vectors have unit length.
        source_type: what a string in a source column is: the path or URL of an "image", or "text".
        precision: what the towers compute in; vectors are float32 all the same. Other than "float32" only where the
            hardware is quicker so.
        draft: whether JPEGs of twice the size that the model sees, and more, are decoded at a half, a quarter or an
            eighth of theirs: several times quicker, and no longer exact (docs/open-clip.md has what it changes).
        truncate: what becomes of a text longer than the model takes: its vector is that of its beginning, with
            ("warn") or without ("silent") a line in the log that counts such rows; or ("error") it has none, and fails
            as a row.
        num_threads: worker threads on a CPU, elsewhere those that open images; None for one per core that torch may
            use.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "open-clip"  # also where it is imported directly
    traits: ClassVar[Traits] = Traits(
        modality="image+text",
        requires=("open_clip", "PIL"),
        extra=clip_files.EXTRA,
        retry=False,  # what fails on this machine fails again
        window=8192,  # its batches are cut from these, so the last few of each window leave cores idle
        concurrency=2,  # callers share the runtime's workers: a query need not wait for a whole table
        stock_fields=frozenset({"name", "pretrained", "device", "batch_size", "normalize", "max_retries"}),
    )

    name: str = "ViT-B-32"
    pretrained: str | None = "laion2b_s34b_b79k"
    device: str = "auto"
    batch_size: int = Field(default=64, ge=1)
    normalize: bool = True
    source_type: Literal["image", "text"] = "image"
    precision: Precision = "float32"
    draft: bool = False
    truncate: Truncate = "warn"
    num_threads: int | None = Field(default=None, ge=1)

    _files: clip_files.ClipFiles | None = PrivateAttr(default=None)
    _key: tuple[Any, ...] | None = PrivateAttr(default=None)

    @staticmethod
    def runtime_keys() -> list[str]:
        """Name what cannot change a vector that is given out."""
        return ["truncate"]

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        if self.from_metadata:
            return
        # a stored relative path would name nothing, or something else, from any other folder
        fields = self.raw_fields()
        if not is_reference(fields["name"]) and fields["name"].startswith(clip_files.FOLDER_PREFIX):
            folder = clip_files.names_folder(fields["name"])
            if folder is not None and not folder.is_absolute():
                self.name = f"{clip_files.FOLDER_PREFIX}{os.path.abspath(folder)}"
        weights = fields["pretrained"]
        named = isinstance(weights, str) and not is_reference(weights) and weights.endswith(clip_files.WEIGHTS_SUFFIXES)
        if named and os.path.isfile(weights):
            self.pretrained = os.path.abspath(weights)

    def ndims(self) -> int:
        """Return the width of the vectors, from the model's configuration."""
        if self._ndims is None:
            self._ndims = clip_files.ndims(self._model_files, self.name)
        return int(self._ndims)

    # -- queries ----------------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed source rows, or queries, of which each may be a text or an image: (n, d) float32.

        A list with a RowError for each image that could not be opened, and under truncate="error" for each text that is
        too long.
        """
        if role == "source":
            return self.compute_source_embeddings(inputs)
        rows = inputs.to_pylist() if hasattr(inputs, "to_pylist") else list(inputs)
        texts = [number for number, row in enumerate(rows) if isinstance(row, str)]
        if len(texts) == len(rows):
            return self._embed_queries(rows)
        images = [number for number, row in enumerate(rows) if not isinstance(row, str)]
        found: list[Any] = [None] * len(rows)
        for numbers, embed in ((texts, self._embed_queries), (images, self._embed_query_images)):
            for number, vector in zip(numbers, embed([rows[number] for number in numbers]), strict=True):
                found[number] = vector
        return found

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed one query, a text or an image: (1, d) float32; a list of one RowError for one without a vector."""
        return self._embed_queries([query]) if isinstance(query, str) else self._embed_query_images([query])

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

        made = Made(*queries.recent.through((*self._cache_key(), self.normalize), texts, embed))
        return self._settled(made, loaded)

    def _embed_query_images(self, images: list[Any]) -> Any:
        with self._failing(len(images)):
            if len(images) != 1:
                return self._embed_images(images, from_query=True)
            try:
                return workers.alone(embed_picture, self._pictures(), images[0])
            except RowError as exc:
                return [exc]

    def generate_text_embeddings(self, text: str) -> np.ndarray:
        """Embed one text: (d,) float32; LanceDB's method of this name.

        Raises:
            RowError: a text that is too long, under truncate="error".
        """
        (made,) = self.compute_query_embeddings(text)
        if isinstance(made, RowError):
            raise made
        return made  # type: ignore[no-any-return]

    def generate_image_embedding(self, image: Any) -> np.ndarray:
        """Embed one image: (d,) float32; LanceDB's method of this name, where a `str` is a path or a URL."""
        with self._failing(1):
            return workers.alone(embed_picture, self._pictures(), image)[0]  # type: ignore[no-any-return]

    # -- sources ----------------------------------------------------------------------------------------------------

    def compute_source_embeddings(self, images: IMAGES, *args: Any, **kwargs: Any) -> Any:
        """Embed source rows: (n, d) float32; a list with a RowError for each image that could not be opened.

        Under truncate="error" each text that is too long has one.

        Raises:
            InputError: under source_type="text", a row that is no text.
        """
        rows = self.sanitize_input(images)
        if source_modality(self) is TEXT:
            return self._embed_texts(rows)
        with self._failing(len(rows)):
            return self._embed_images(rows)

    def _embed_images(self, rows: Any, *, from_query: bool = False) -> Any:
        return embed_pictures(
            self._pictures(),
            rows,
            self.ndims(),
            batch_size=self.batch_size,
            threads=self.num_threads,
            from_query=from_query,
        )

    def sanitize_input(self, texts: Any) -> Any:
        """Turn what an engine passes into rows: one value becomes a list of one, a chunked array one array."""
        if isinstance(texts, str | bytes):
            return [texts]
        return texts.combine_chunks() if hasattr(texts, "combine_chunks") else texts

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

    def model_identity(self) -> str | None:
        """Return a hash of the model's files, the same wherever they lie; None where they are not on this machine."""
        try:
            return self._model_files(download=False).identity()
        except ModelNotFoundError:
            return None

    def cache_key(self) -> tuple[Any, ...] | None:
        """Return what this function's model is kept under in memory; None where the model is not on this machine."""
        try:
            return self._cache_key(download=False)
        except ModelNotFoundError:
            return None

    def _model_files(self, *, download: bool = True) -> clip_files.ClipFiles:
        path = self.name if self.name.startswith(clip_files.FOLDER_PREFIX) else self.pretrained or ""
        allowed = vouched.may_read(self, path)
        if self._files is None or (self._files.origin == "local" and not allowed):  # a grant can be revoked
            self._files = clip_files.resolve(
                self.name, self.pretrained, allow_local=allowed, safe_only=self.from_metadata, download=download
            )
        return self._files

    def _cache_key(self, *, download: bool = True) -> tuple[Any, ...]:
        files = self._model_files(download=download)
        if self._key is None:
            stamp = files.stamp() if files.origin == "local" else 0
            model = self.name if files.folder is None else str(files.folder)
            self._key = ("open-clip", model, str(files.weights), stamp, self._device(), self.precision)
        return self._key

    def _device(self) -> str:
        try:
            return device.resolve(self.device)
        except ConfigError:
            if not self.from_metadata:
                raise
            return device.resolve("auto")  # it was another machine's device, and no device changes a vector

    def _loaded(self) -> clip.Clip:
        return cache.get(self._cache_key(), lambda: workers.alone(self._load), clip.Clip.held_bytes)

    def _load(self) -> clip.Clip:
        if not self.from_metadata:  # stored vectors have to be matched, at whatever speed
            precision.check(self.precision, self._device())
        return clip.load(self.name, self._model_files(), self._device(), self.precision)

    def _pictures(self) -> clip.ClipPictures:
        return clip.ClipPictures(self._loaded(), self.normalize, self.draft)

    @contextmanager
    def _failing(self, rows: int) -> Iterator[None]:
        try:
            yield
        except EmbedregError:
            raise
        except Exception as exc:
            raise CallError(
                f"the model {self.name!r} failed on {rows} row(s): {type(exc).__name__}: {exc}",
                "for a lack of memory, a small batch_size; embedreg.release() frees other models",
            ) from exc
