"""`LocalImageFunction`, the base class of local image functions; a subclass loads, prepares images and runs batches."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar

from embedreg.core.base import Traits
from embedreg.runtime.image.execute import PictureModel, opened_image
from embedreg.runtime.local.media import LocalMediaFunction
from embedreg.runtime.local.model import run

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LocalImageFunction"]


class LocalImageFunction(LocalMediaFunction):
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

    # -- defined by a subclass --------------------------------------------------------------------------------------

    @abc.abstractmethod
    def prepare(self, model: Any, picture: Any) -> np.ndarray:
        """Convert an RGB `PIL.Image.Image` to an array, all of the same shape; called in many threads.

        uint8 is best, a quarter of the bytes of float32. A RowError fails that image, any other error the call.
        """

    def draft_side(self, model: Any) -> int | None:
        """Return the side of the model's input in pixels to allow decoding large JPEGs at a fraction of their size.

        They are never decoded below twice this side. None decodes every pixel, which is exact.
        """
        return None

    # -- the runtime's side -----------------------------------------------------------------------------------------

    def _opened(self, model: PictureModel, value: Any, from_query: bool) -> np.ndarray:
        return opened_image(model, value, from_query)

    def _side(self, model: Any) -> int | None:
        return self.draft_side(model)

    def _try(self, model: Any, on: str) -> None:
        import numpy as np
        import torch
        from PIL import Image

        pictures = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black")]
        batch = np.stack([self.prepare(model, picture) for picture in pictures])
        run(self, model, torch.from_numpy(batch).to(on), len(batch), self.ndims())
