"""Image functions that break the promises about images, as authors do by mistake; the good one is `PixelMeans`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedreg import RowError, register
from embedreg.images import open_image
from tests.image_fakes import PixelMeans, cell_means


class Handmade(PixelMeans):
    """Opens its inputs itself, in `opened`."""

    def opened(self, value: Any) -> Image.Image:
        """Return the image of a row or a query."""
        return open_image(value)

    def _embed(self, value: Any, from_query: bool = False) -> np.ndarray | RowError:
        try:
            return cell_means(self.opened(value))
        except RowError as problem:
            return problem


@register("only-bytes")
class OnlyBytes(Handmade):
    """Does not support PIL images, arrays and paths."""

    def opened(self, value: Any) -> Image.Image:
        if not isinstance(value, bytes):
            raise TypeError(f"{type(value).__name__}?")
        return open_image(value)


@register("bgr-arrays")
class BackwardsArrays(Handmade):
    """Takes arrays for OpenCV's, blue first."""

    def opened(self, value: Any) -> Image.Image:
        return open_image(value[:, :, ::-1] if isinstance(value, np.ndarray) else value)


@register("alphabetical")
class SortsByType(PixelMeans):
    """Treats rows kind by kind, and forgets to put them back."""

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        rows = sorted(self.sanitize_input(images), key=lambda value: type(value).__name__)
        return super().compute_source_embeddings(rows)


@register("on-white")
class OnWhite(Handmade):
    """Lays what is transparent on white, where others drop the transparency."""

    def opened(self, value: Any) -> Image.Image:
        if isinstance(value, bytes) and (image := self._transparent(value)) is not None:
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return open_image(value)

    @staticmethod
    def _transparent(value: bytes) -> Image.Image | None:
        try:
            image = Image.open(io.BytesIO(value))
        except OSError:
            return None
        if image.mode != "RGBA":
            return None
        image.putalpha(image.convert("L"))
        return image


@register("sideways")
class Sideways(Handmade):
    """Does not look at EXIF."""

    def opened(self, value: Any) -> Image.Image:
        if not isinstance(value, bytes):
            return open_image(value)
        open_image(value)
        return Image.open(io.BytesIO(value)).convert("RGB")


@register("all-or-nothing")
class AllOrNothing(PixelMeans):
    """Lets one bad image take the others with it."""

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        return np.stack([cell_means(open_image(value)) for value in self.sanitize_input(images)])


@register("embeds-anything")
class EmbedsAnything(Handmade):
    """Makes a black picture of what it cannot read."""

    def opened(self, value: Any) -> Image.Image:
        try:
            return open_image(value, from_query=True)
        except RowError:
            return Image.new("RGB", (4, 4))


@register("reads-anything")
class ReadsAnything(Handmade):
    """Opens any path in data."""

    def opened(self, value: Any) -> Image.Image:
        return open_image(Path(value).read_bytes() if isinstance(value, str) and "://" not in value else value)


@register("other-for-paths")
class OtherForPaths(Handmade):
    """Adds a frame to what comes from a file."""

    def opened(self, value: Any) -> Image.Image:
        image = open_image(value)
        if isinstance(value, str):
            image.paste("red", (0, 0, 9, image.height))
        return image


@register("asks-for-leave")
class AsksForLeave(PixelMeans):
    """Wants an allowance for a file that its own user names."""

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [self._embed(query)]
