"""`LocalImageTextFunction`, the base class of local functions with images and texts in one vector space."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import Field

from embedreg.core.base import Traits
from embedreg.errors import ConfigError, RowError
from embedreg.runtime import cache
from embedreg.runtime.hardware import workers
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.execute import embed_picture
from embedreg.runtime.image.preprocess import Preprocess
from embedreg.runtime.local.image import LocalImageFunction
from embedreg.runtime.local.pair import LocalPairFunction, TextTower
from embedreg.runtime.text.truncation import Truncate

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LocalImageTextFunction", "PairModel"]


class PairModel(TextTower, Protocol):
    """A model with a tower for images and one for texts, on a device.

    Attributes:
        preprocess: what its images go through.
        side: width and height of its input images, in pixels.
    """

    preprocess: Preprocess
    side: int

    def embed_images(self, batch: Any, normalize: bool) -> Any:
        """Run the image tower on b prepared images: (b, d) float32, on the model's device."""


class LocalImageTextFunction(LocalPairFunction, LocalImageFunction):
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

    def draft_side(self, model: PairModel) -> int | None:
        """Return the side of the model's input in pixels if `draft` is set, else None."""
        return model.side if self.draft else None

    def prepare(self, model: PairModel, picture: Any) -> np.ndarray:
        """Resize and crop an image as the model's library does."""
        return model.preprocess.prepare(picture)

    def forward(self, model: PairModel, batch: Any) -> Any:
        """Normalise the pixels of images, and run the image tower."""
        return model.embed_images(batch, self.normalize)
