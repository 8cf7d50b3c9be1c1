"""Other forms of an image: scaled, cropped, turned or stored otherwise. A vector may have been made of one of them."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from embedreg.errors import RowError
from embedreg.images.opening import open_image

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["forms"]

_SIDES = (224, 256, 336, 384, 448, 512, 128, 64)  # pixels: the sizes of known models and of thumbnails
_QUALITY = 75  # of a JPEG, Pillow's default

Form = Callable[[Any], "bytes | None"]


def forms() -> Iterator[tuple[str, str, Form]]:
    """Yield a kind ("cut" or "form"), a label, and a form, which takes a source and returns a PNG or JPEG.

    A form that is not another image, and a source that cannot be read here, give None.
    """
    yield "cut", "the middle square of each image", _formed(_middle)
    yield "form", "images squashed to a square", _formed(_squashed)
    for side in _SIDES:
        yield "form", f"images scaled to {side} x {side} pixels first", _formed(functools.partial(_scaled, side=side))
        yield "form", f"thumbnails of {side} pixels", _formed(functools.partial(_thumbnail, side=side))
    yield "form", "images in grey", _formed(lambda image: image.convert("L").convert("RGB"))
    yield "form", "images as their pixels are stored, without the orientation in EXIF", without_orientation
    for name in ("ROTATE_90", "ROTATE_180", "ROTATE_270", "FLIP_LEFT_RIGHT"):
        yield "form", f"images {name.lower().replace('_', ' ')}", _formed(functools.partial(_turned, name=name))
    yield "form", f"images as JPEG of quality {_QUALITY}", _recompressed


def _formed(change: Callable[[Image], Image | None]) -> Form:
    def form(source: Any) -> bytes | None:
        image = _opened(source)
        made = None if image is None else change(image)
        return None if made is None else _stored(made, "PNG")

    return form


def _opened(source: Any) -> Image | None:
    try:
        return open_image(source)
    except RowError:
        return None


def _stored(image: Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _middle(image: Image) -> Image | None:
    width, height = image.size
    side = min(width, height)
    if width == height:
        return None
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _squashed(image: Image) -> Image | None:
    side = min(image.size)
    return None if image.width == image.height else image.resize((side, side))


def _scaled(image: Image, side: int) -> Image | None:
    return None if image.size == (side, side) else image.resize((side, side))


def _thumbnail(image: Image, side: int) -> Image | None:
    if max(image.size) <= side:
        return None
    made = image.copy()
    made.thumbnail((side, side))
    return made


def _turned(image: Image, name: str) -> Image:
    from PIL import Image as Pillow

    return image.transpose(getattr(Pillow.Transpose, name))


def _recompressed(source: Any) -> bytes | None:
    image = _opened(source)
    return None if image is None else _stored(image, "JPEG", quality=_QUALITY)


def without_orientation(source: Any) -> bytes | None:
    """Return a JPEG without its EXIF data, which holds the orientation; None for anything else."""
    if not isinstance(source, bytes) or source[:2] != b"\xff\xd8":
        return None
    kept, at, found = [source[:2]], 2, False
    while at + 4 <= len(source) and source[at] == 0xFF and source[at + 1] != 0xDA:  # up to the start of the pixels
        size = 2 + int.from_bytes(source[at + 2 : at + 4], "big")
        if source[at + 1] == 0xE1 and source[at + 4 : at + 8] == b"Exif":
            found = True
        else:
            kept.append(source[at : at + size])
        at += size
    return b"".join([*kept, source[at:]]) if found else None
