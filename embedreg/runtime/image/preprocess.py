"""A CLIP model's preprocessing, split into the part for one image and the arithmetic for a whole batch.

The library resizes and crops an image, then converts its pixels to floats and normalises them. The first part runs as
it is. The second runs on whole batches on the model's device: a quarter of the bytes to copy, with the same result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedreg.errors import RowError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Preprocess"]

MAX_RATIO = 200  # of an image's sides: the shorter side sets the scale, so a narrower image would take gigabytes
_ON_PICTURES = frozenset(
    {"CenterCrop", "CenterCropOrPad", "MaybeConvertMode", "Resize", "ResizeKeepRatio", "_convert_to_rgb"}
)
_TO_FLOATS = frozenset({"MaybeToTensor", "ToTensor"})


class Preprocess:
    """One model's preprocessing.

    Args:
        transform: converts an RGB image to a (3, h, w) float tensor; a chain of resizing, cropping, conversion to
            floats and normalisation is split in two.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform
        self.stages: list[Any] | None = None
        chain = list(getattr(transform, "transforms", ()))
        kinds = [getattr(stage, "__name__", type(stage).__name__) for stage in chain]
        if kinds[-1:] == ["Normalize"] and set(kinds[-2:-1]) <= _TO_FLOATS and set(kinds[:-2]) <= _ON_PICTURES:
            self.stages = chain[:-2]
            self.mean, self.std = (tuple(map(float, each)) for each in (chain[-1].mean, chain[-1].std))
            if not self._agrees():
                self.stages = None

    def prepare(self, picture: Any) -> np.ndarray:
        """Convert an image to (h, w, 3) uint8; to (3, h, w) float32 if the transform could not be split.

        Raises:
            RowError: the image is too narrow to be resized.
        """
        import numpy as np

        if max(picture.size) > MAX_RATIO * min(picture.size):
            width, height = picture.size
            raise RowError(
                f"it is {width} x {height} pixels, too narrow to be resized",
                f"crop it: one side may be up to {MAX_RATIO} times the other",
            )
        if self.stages is None:
            return np.asarray(self.transform(picture).numpy())
        for stage in self.stages:
            picture = stage(picture)
        return np.array(picture)  # a copy: torch needs writable memory

    def tensor(self, batch: Any) -> Any:
        """Convert b prepared images, an array or a tensor on any device, to (b, 3, h, w) float32 on the same device."""
        import torch

        tensor = torch.from_numpy(batch) if not torch.is_tensor(batch) else batch
        if self.stages is None:
            return tensor
        pixels = tensor.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255)
        mean, std = (torch.tensor(each, device=pixels.device).view(1, 3, 1, 1) for each in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)

    def _agrees(self) -> bool:
        """Return whether both parts together equal the transform exactly, on an image with every brightness."""
        import numpy as np
        import torch
        from PIL import Image

        pixels = np.arange(300 * 260 * 3, dtype=np.int64) * 7919 % 256
        picture = Image.fromarray(pixels.astype(np.uint8).reshape(260, 300, 3))
        return torch.equal(self.tensor(self.prepare(picture)[None])[0], self.transform(picture))
