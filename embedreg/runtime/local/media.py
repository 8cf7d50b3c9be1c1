"""`LocalMediaFunction`, the base class of local functions whose inputs are opened: images, recordings."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.arrow.columns import rows_of_media
from embedreg.core.base import IMAGES
from embedreg.core.role import Role, compute_once
from embedreg.errors import RowError
from embedreg.runtime.hardware import device, workers
from embedreg.runtime.image.execute import PictureModel, embed_picture, embed_pictures
from embedreg.runtime.local.model import LocalModel, matrix, run
from embedreg.runtime.vectors.packed import Packed
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LocalMediaFunction"]


class LocalMediaFunction(LocalModel):
    """A function of images or recordings whose model runs on this machine.

    The runtime opens and prepares inputs in threads and runs them in batches; one that cannot be opened is a bad row.
    """

    _packed: ClassVar[bool] = False  # whether the model returns `Packed` rows

    # -- defined by a subclass --------------------------------------------------------------------------------------

    @abc.abstractmethod
    def prepare(self, model: Any, opened: Any) -> np.ndarray:
        """Convert an opened input to an array, all of the same shape; called in many threads.

        A RowError fails that row, any other error the call.
        """

    @abc.abstractmethod
    def forward(self, model: Any, batch: Any) -> Any:
        """Embed b prepared inputs; called in several threads on a CPU.

        Args:
            model: what `load` returned.
            batch: (b, ...) tensor on the model's device; no gradients are recorded.
        Returns:
            (b, d), a tensor or an array of floats.
        """

    @abc.abstractmethod
    def _opened(self, model: PictureModel, value: Any, from_query: bool) -> np.ndarray:
        """Open an input and prepare it, as `runtime.image.execute.opened_image`."""

    # -- the contract -----------------------------------------------------------------------------------------------

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed images or recordings: (n, d) float32; a list with a RowError for each that could not be opened.

        Args:
            inputs: paths, URLs, encoded inputs or, of images, `PIL` images, in a list or an Arrow array.
            role: a query may be any file that its user may read, a source only what is allowed (docs/images.md).
        Raises:
            CallError: the model failed.
        """
        rows = self.sanitize_input(inputs)
        from_query = role == "query"
        with self._failing(len(rows)):
            if from_query and len(rows) == 1:
                try:
                    made = workers.alone(embed_picture, self._pictures(), rows[0], self._opened)
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
                opened=self._opened,
            )

    def compute_source_embeddings(self, images: IMAGES, *args: Any, **kwargs: Any) -> Any:
        """Embed source rows, as `compute_embeddings` does."""
        return compute_once(self, images, "source")

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed one query, as `compute_embeddings` does: (1, d) float32, or a list of one RowError."""
        return compute_once(self, [query], "query")

    def sanitize_input(self, texts: Any) -> Any:
        """Convert the inputs of an engine to rows: one value becomes a list of one, a chunked array one array."""
        return rows_of_media(texts)

    # -- the model --------------------------------------------------------------------------------------------------

    def _named_devices(self, name: str) -> tuple[str, ...]:
        if name != "cpu" and self._uses_torch():
            attempt_import_or_raise("torch", extra=self.traits.extra)  # a hint with the extra of this function
        return (device.resolve(name),)  # inputs are prepared for one device

    def _as_run(self, model: Any) -> Any:
        """Return the model in the form that its back end runs; called in the caller's thread."""
        return model

    def _uses_torch(self) -> bool:
        """Return whether `forward` takes tensors of torch; else it takes numpy arrays, on a CPU."""
        return True

    def _pictures(self) -> _Pictures:
        (on,) = self._devices()
        model = self._as_run(self._loaded(on))
        return _Pictures(self, model, on, self._side(model), self.ndims())

    def _side(self, model: Any) -> int | None:
        """Return the side in pixels that images may be decoded for, or None."""
        return None


@dataclass(frozen=True)
class _Pictures:
    """A function's model as a `PictureModel`."""

    function: LocalMediaFunction
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
