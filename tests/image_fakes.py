"""Pictures that tests make themselves, and an image function whose vectors can be computed by hand."""

from __future__ import annotations

import io
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from embedreg import EmbeddingFunction, RowError, Traits, register
from embedreg.images import open_image

GRID = 4


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Make a smooth picture of its own for each seed, (w, h) pixels: lossy formats keep it well."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return a picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int = 0, size: tuple[int, int] = (60, 40)) -> bytes:
    """Return a picture as a PNG file."""
    return encoded(picture(seed, size))


def cell_means(image: Image.Image) -> np.ndarray:
    """Return the mean colour of each cell of a 4 x 4 grid, 0 to 1: (48,) float32."""
    small = image.resize((GRID, GRID), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1) / 255 + np.float32(0.01)  # black has a direction too


@register("pixel-means")
class PixelMeans(EmbeddingFunction):
    """Embeds a picture as the mean colours of a 4 x 4 grid; a text query is the name of a colour.

    Attributes:
        gain: what the vectors are multiplied with.
    """

    traits: ClassVar[Traits] = Traits(modality="image", requires=("PIL",), extra="images", retry=False)

    gain: float = 1.0

    def ndims(self) -> int:
        return 3 * GRID * GRID

    def _embed(self, value: Any, from_query: bool = False) -> np.ndarray | RowError:
        try:
            return cell_means(open_image(value, from_query=from_query)) * np.float32(self.gain)
        except RowError as problem:
            return problem

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        rows = [self._embed(value) for value in self.sanitize_input(images)]
        return rows if any(isinstance(row, RowError) for row in rows) else np.array(rows, np.float32).reshape(-1, 48)

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(query, str):
            query = Image.new("RGB", (GRID, GRID), query)
        return [self._embed(query, from_query=True)]
