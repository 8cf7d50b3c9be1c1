"""Estimate the memory for decoding an image from its header, and refuse it before anything is decoded.

The limit is `BYTES_PER_PIXEL` for each of `max_pixels`. Most formats take no more than that per pixel; those that take
more may have fewer pixels. The numbers are measured peaks for each format and mode, and the tests measure them again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedreg.errors import RowError
from embedreg.media.allowances import ImagePolicy

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BYTES_PER_PIXEL", "refuse_costly"]

BYTES_PER_PIXEL = 8  # four for Pillow's decoded pixels, and four for RGB
# The WebP decoder holds two canvases besides its result; OpenJPEG holds integers for each channel.
_FORMATS = {"BMP": 8, "GIF": 8, "JPEG": 8, "MPO": 8, "PNG": 8, "TIFF": 8, "WEBP": 16}
_OTHERS = 25  # other formats, which only `allow_images(formats=...)` allows: the most expensive is JPEG 2000
_JPEG_IN_TIFF = frozenset({"jpeg", "tiff_jpeg", "webp", "lerc", "jpeg2000"})  # decoded a second time inside a block
_TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP, _BITS, _SAMPLES = 322, 323, 278, 258, 277


def refuse_costly(image: Image, policy: ImagePolicy, data: bytes = b"") -> None:
    """Raise if decoding an image would take more memory than the policy's pixels do.

    Args:
        image: opened, but not decoded yet.
        data: the bytes of its file, if they are known.
    Raises:
        RowError: decoding would take too much memory.
    """
    if not getattr(image, "tile", None) and image.format not in ("WEBP", "ICO"):
        return  # already decoded, or created in memory
    if image.format == "ICO":
        _refuse_icon(image, policy)
    bound = policy.max_pixels * BYTES_PER_PIXEL
    needed = _needed(image, data)
    if needed > bound:
        width, height = image.size
        raise RowError(
            f"decoding the image of {width} x {height} pixels takes {needed:,} bytes, over the {bound:,} of "
            f"max_pixels={policy.max_pixels:,}"
        )


def _needed(image: Image, data: bytes) -> int:
    """Return the maximum bytes for decoding, without those of the file itself."""
    pixels = image.size[0] * image.size[1]
    needed = pixels * _FORMATS.get(image.format or "", _OTHERS)
    if image.format in ("JPEG", "MPO"):
        return max(needed, int(pixels * (4 + _coefficients(image, data))))
    if image.format == "TIFF":
        return max(needed, pixels * 4 + _block(image))
    return needed


def _coefficients(image: Any, data: bytes) -> float:
    """Return the bytes per pixel of a multi-scan JPEG's coefficients, which are held until the last scan."""
    if not image.info.get("progressive") and data.count(b"\xff\xda") == 1:
        return 0
    sampling = [(h, v) for _, h, v, _ in getattr(image, "layer", ())] or [(1, 1)] * 4
    most = max(h for h, _ in sampling) * max(v for _, v in sampling)
    return float(2 * sum(h * v for h, v in sampling) / most)


def _block(image: Any) -> int:
    """Return the bytes of one tile or strip of a TIFF: libtiff decodes it as a whole, even beyond the image's size."""
    if image.tile[0][0] != "libtiff":
        return 0
    tags = image.tag_v2
    bits = tags.get(_BITS, (8,))
    bits = sum(bits) if isinstance(bits, tuple) else int(bits)
    samples = max(int(tags.get(_SAMPLES, 1)), 1)
    per_pixel = max(-(-max(bits, samples * 8) // 8), 4)  # 4: libtiff may return RGBA
    width, height = image.size
    if _TILE_WIDTH in tags or _TILE_LENGTH in tags:
        width, height = int(tags.get(_TILE_WIDTH, width)), int(tags.get(_TILE_LENGTH, height))
    else:
        height = min(int(tags.get(_ROWS_PER_STRIP, height)), height)
    twice = 2 if image.info.get("compression") in _JPEG_IN_TIFF else 1
    return int(max(width, 0) * max(height, 0) * per_pixel * twice)


def _refuse_icon(image: Any, policy: ImagePolicy) -> None:
    """Raise if an icon holds a larger image than it declares."""
    for index in range(len(image.ico.entry)):
        width, height = image.ico.frame(index).size
        if width * height > policy.max_pixels:
            shape = f"{width} x {height} pixels"
            raise RowError(f"the icon holds an image of {shape}, over max_pixels={policy.max_pixels:,}")
