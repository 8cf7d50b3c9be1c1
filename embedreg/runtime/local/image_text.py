"""`LocalImageTextFunction`, the base class of local functions with images and texts in one vector space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field

from embedreg.core.base import Traits
from embedreg.core.modality import TEXT, source_modality
from embedreg.core.role import Role
from embedreg.errors import ConfigError, InputError, RowError
from embedreg.runtime import cache, progress
from embedreg.runtime.hardware import workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.execute import embed_picture
from embedreg.runtime.image.preprocess import Preprocess
from embedreg.runtime.local.image import LocalImageFunction
from embedreg.runtime.text import truncation
from embedreg.runtime.text.execute import Made
from embedreg.runtime.text.truncation import Truncate
from embedreg.runtime.vectors import queries

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LocalImageTextFunction", "PairModel"]


class PairModel(Protocol):
    """A model with a tower for images and one for texts, on a device.

    Attributes:
        preprocess: what its images go through.
        side: width and height of its input images, in pixels.
    """

    preprocess: Preprocess
    side: int

    def embed_images(self, batch: Any, normalize: bool) -> Any:
        """Run the image tower on b prepared images: (b, d) float32, on the model's device."""

    def embed_texts(self, texts: list[str], normalize: bool) -> Made:
        """Embed texts in this thread."""

    def embed_many_texts(
        self, texts: list[str], normalize: bool, *, batch_size: int, threads: int | None
    ) -> Iterator[tuple[int, Made]]:
        """Embed texts in batches, and yield the first row of each with its vectors, in any order."""

    def max_tokens(self) -> int:
        """Return the maximum number of tokens that the model reads of a text, special tokens included."""


class LocalImageTextFunction(LocalImageFunction):
    """A function of images and texts whose model runs on this machine; a subclass loads a `PairModel`.

    Attributes:
        batch_size: maximum images of a forward pass; on a CPU at most 8, which is fastest.
        normalize: whether vectors have unit length.
        source_type: the meaning of a string in a source column: "image", a path or URL; or "text".
        draft: whether JPEGs of at least twice the model's input size are decoded at 1/2, 1/4 or 1/8 of their size.
        truncate: policy for a text longer than the model takes.
        backend: "torch", or "openvino" on a CPU (the extra [openvino]), which agrees to 1e-5; "auto" is "torch".
    """

    traits: ClassVar[Traits] = replace(LocalImageFunction.traits, modality="image+text")

    batch_size: int = Field(default=64, ge=1)
    normalize: bool = True
    source_type: Literal["image", "text"] = "image"
    draft: bool = False
    truncate: Truncate = "warn"
    backend: Literal["auto", "torch", "light", "openvino"] = "auto"

    @staticmethod
    def runtime_keys() -> list[str]:
        """Return the names of the fields that cannot change a returned vector."""
        return ["backend", "truncate"]

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
        loaded = self._as_run(self._loaded())

        def embed(some: list[str]) -> tuple[np.ndarray, np.ndarray]:
            with self._failing(len(some)):
                if len(some) == 1:
                    made = workers.alone(loaded.embed_texts, some, self.normalize)
                else:
                    made = self._in_batches(loaded, some)
            return made.vectors, made.truncated

        key = (*self._cache_key(), self.normalize, self.precision)
        found = queries.recent.look_up(key, texts)
        some = [*found.missing_keys()]
        return self._settled(Made(*(queries.joined(found, *embed(some)) if some else queries.known(found))), loaded)

    def _embed_texts(self, rows: Any) -> Any:
        texts = rows.to_pylist() if hasattr(rows, "to_pylist") else list(rows)
        odd = next((index for index, text in enumerate(texts) if not isinstance(text, str)), None)
        if odd is not None:
            raise InputError(
                f"row {odd} is {type(texts[odd]).__name__}, not text.", "source_type='image' embeds a column of images"
            )
        loaded = self._as_run(self._loaded())
        with self._failing(len(texts)):
            return self._settled(self._in_batches(loaded, texts), loaded)

    def _in_batches(self, loaded: PairModel, texts: list[str]) -> Made:
        import numpy as np

        whole = Made(np.empty((len(texts), self.ndims()), np.float32), np.zeros(len(texts), bool))
        for start, made in loaded.embed_many_texts(
            texts, self.normalize, batch_size=self.batch_size, threads=self.num_threads
        ):
            stop = start + len(made.vectors)
            whole.vectors[start:stop], whole.truncated[start:stop] = made.vectors, made.truncated
            progress.report(progress.Step(rows=len(made.vectors)))
        return whole

    def _settled(self, made: Made, loaded: PairModel) -> Any:
        return truncation.settled(made.vectors, made.truncated, self.truncate, loaded.max_tokens(), self._model_name())

    # -- the model --------------------------------------------------------------------------------------------------

    def _weights_precision(self) -> Precision:
        return "float32" if self._compiles() else self.precision  # compiled from float32 weights

    def _backend_name(self) -> str:
        """Return the back end that runs the model: "torch", or one that is compiled for a CPU."""
        return "torch" if self.backend == "auto" else self.backend

    def _compiles(self) -> bool:
        return self._backend_name() != "torch"

    def _as_run(self, model: Any) -> Any:
        if not self._compiles():
            return model
        (on,) = self._devices()
        if on != "cpu":
            raise ConfigError(
                f"backend={self._backend_name()!r} runs on a CPU, not on {self.device!r}.", "device='cpu'"
            )
        self._check_precision(on)
        threads, group = self.num_threads or workers.worker_threads(), self._cache_key()
        key = (*group, on, self._backend_name(), cache.THREADED, self.precision, threads)
        return cache.get(key, lambda: self._compile(model, threads), lambda pair: pair.towers.nbytes, group=group)

    def _compile(self, model: Any, threads: int) -> Any:
        """Return a model whose towers run on OpenVINO, in `threads` batches at a time."""
        from embedreg.runtime.image import openvino

        return openvino.compiled(model, self.precision, threads, self.model_identity(), self._model_name())

    def _narrow(self, model: PairModel, on: str) -> None:
        """Do nothing: `load` has converted the model."""

    def draft_side(self, model: PairModel) -> int | None:
        """Return the side of the model's input in pixels if `draft` is set, else None."""
        return model.side if self.draft else None

    def prepare(self, model: PairModel, picture: Any) -> np.ndarray:
        """Resize and crop an image as the model's library does."""
        return model.preprocess.prepare(picture)

    def forward(self, model: PairModel, batch: Any) -> Any:
        """Normalise the pixels of images, and run the image tower."""
        return model.embed_images(batch, self.normalize)
