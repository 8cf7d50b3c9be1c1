"""`LocalImageFunction`, the base class of local image functions; a subclass loads, prepares images and runs batches."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.core.base import IMAGES, Traits
from embedreg.core.role import Role, compute_once
from embedreg.errors import RowError
from embedreg.runtime.hardware import device, workers
from embedreg.runtime.image.execute import embed_picture, embed_pictures
from embedreg.runtime.local.model import LocalModel, matrix, run
from embedreg.runtime.vectors.packed import Packed

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LocalImageFunction"]


class LocalImageFunction(LocalModel):
    """An image embedding function whose model runs on this machine.

    A subclass defines `ndims()`, `load(device)`, `prepare(model, picture)` and `forward(model, batch)`. The runtime
    opens and prepares images in threads and runs them in batches; an image that cannot be opened is a bad row.
    """

    traits: ClassVar[Traits] = Traits(
        modality="image",
        requires=("torch", "PIL"),
        retry=False,  # a local failure is not transient
        window=8192,  # rows per call: batches are cut from them, and the last ones of each call leave cores idle
        concurrency=2,  # callers share the runtime's workers, so that a query does not wait for a whole table
    )

    _packed: ClassVar[bool] = False  # whether the model returns `Packed` rows

    # -- defined by a subclass --------------------------------------------------------------------------------------

    @abc.abstractmethod
    def prepare(self, model: Any, picture: Any) -> np.ndarray:
        """Convert an RGB `PIL.Image.Image` to an array, all of the same shape; called in many threads.

        uint8 is best, a quarter of the bytes of float32. A RowError fails that image, any other error the call.
        """

    @abc.abstractmethod
    def forward(self, model: Any, batch: Any) -> Any:
        """Embed b prepared images; called in several threads on a CPU.

        Args:
            model: what `load` returned.
            batch: (b, ...) tensor on the model's device; no gradients are recorded.
        Returns:
            (b, d), a tensor or an array of floats.
        """

    def draft_side(self, model: Any) -> int | None:
        """Return the side of the model's input in pixels to allow decoding large JPEGs at a fraction of their size.

        They are never decoded below twice this side. None decodes every pixel, which is exact.
        """
        return None

    # -- the contract -----------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed images: (n, d) float32; a list with a RowError for each that could not be opened.

        Args:
            inputs: paths, URLs, encoded images or `PIL` images, in a list or an Arrow array.
            role: a query may be any file that its user may read, a source only what is allowed (docs/images.md).
        Raises:
            CallError: the model failed.
        """
        rows = self.sanitize_input(inputs)
        from_query = role == "query"
        with self._failing(len(rows)):
            if from_query and len(rows) == 1:
                try:
                    made = workers.alone(embed_picture, self._pictures(), rows[0])
                    return made.rows() if isinstance(made, Packed) else made
                except RowError as exc:
                    return [exc]
            return embed_pictures(
                self._pictures(),
                rows,
                self.ndims(),
                batch_size=self.batch_size,
                threads=self.num_threads,
                from_query=from_query,
                packed=self._packed,
            )

    def compute_source_embeddings(self, images: IMAGES, *args: Any, **kwargs: Any) -> Any:
        """Embed source rows, as `compute_embeddings` does."""
        return compute_once(self, images, "source")

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed one query, as `compute_embeddings` does: (1, d) float32, or a list of one RowError."""
        return compute_once(self, [query], "query")

    def sanitize_input(self, texts: Any) -> Any:
        """Convert the inputs of an engine to rows: one value becomes a list of one, a chunked array one array."""
        if isinstance(texts, str | bytes):
            return [texts]
        return texts.combine_chunks() if hasattr(texts, "combine_chunks") else texts

    # -- the model --------------------------------------------------------------------------------------------------

    def _named_devices(self, name: str) -> tuple[str, ...]:
        return (device.resolve(name),)  # images are prepared for one device

    def _as_run(self, model: Any) -> Any:
        """Return the model in the form that its back end runs; called in the caller's thread."""
        return model

    def _uses_torch(self) -> bool:
        """Return whether `forward` takes tensors of torch; else it takes numpy arrays, on a CPU."""
        return True

    def _pictures(self) -> _Pictures:
        (on,) = self._devices()
        model = self._as_run(self._loaded(on))
        return _Pictures(self, model, on, self.draft_side(model), self.ndims())

    def _try(self, model: Any, on: str) -> None:
        import numpy as np
        import torch
        from PIL import Image

        pictures = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black")]
        batch = np.stack([self.prepare(model, picture) for picture in pictures])
        run(self, model, torch.from_numpy(batch).to(on), len(batch), self.ndims())


@dataclass(frozen=True)
class _Pictures:
    """A function's model as a `PictureModel`."""

    function: LocalImageFunction
    model: Any
    device: str
    side: int | None
    ndims: int

    def prepare(self, picture: Any) -> np.ndarray:
        made = self.function.prepare(self.model, picture)
        return made if made.flags.writeable else made.copy()  # torch needs writable memory

    def forward(self, batch: Any) -> Any:
        if not self.function._uses_torch():
            return matrix(self.function.forward(self.model, batch), len(batch), self.ndims)
        import torch

        tensor = batch if torch.is_tensor(batch) else torch.from_numpy(batch)
        return run(self.function, self.model, tensor, len(tensor), self.ndims)
