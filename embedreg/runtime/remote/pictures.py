"""Pictures for services that take images: opened under the image policy, and always sent in the same form."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from embedreg.errors import RowError
from embedreg.images import open_image

__all__ = ["Picture", "checked", "jpeg_of", "names_a_picture", "picture_of"]

_JPEG_QUALITY = 95  # for a picture that is too large as PNG
_NAMES = ("http://", "https://", "file:", "data:image/")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is sent.

    Attributes:
        kind: "png", "jpeg", or "file" for one that is sent as it came.
        data: the file in base64.
        pixels: their number.
    """

    kind: str
    data: str
    pixels: int

    @property
    def url(self) -> str:
        """The picture as a `data:` URL."""
        return f"data:image/{self.kind};base64,{self.data}"


def picture_of(value: Any, *, from_query: bool, max_bytes: int, max_pixels: int) -> Picture:
    """Open an image as `open_image` does, and encode it: PNG, or JPEG if that has more than `max_bytes`.

    Equal pictures become equal bytes, whether they come as files, arrays or `PIL` images.

    Raises:
        RowError: it cannot be opened, is not allowed, or is larger than the service takes.
    """
    image = open_image(value, from_query=from_query)
    width, height = image.size
    if width * height > max_pixels:
        raise RowError(f"the image has {width * height:,} pixels, the service takes {max_pixels:,}")
    for kind, options in (("png", {"compress_level": 1}), ("jpeg", {"quality": _JPEG_QUALITY})):
        file = io.BytesIO()
        image.save(file, kind, **options)
        if file.tell() <= max_bytes:
            return Picture(kind, base64.b64encode(file.getvalue()).decode(), width * height)
    raise RowError(f"the image has more than {max_bytes:,} bytes, which is what the service takes")


def jpeg_of(value: Any, *, from_query: bool) -> Picture:
    """Open an image as `open_image` does, and encode it as JPEG of Pillow's usual quality.

    Raises:
        RowError: it cannot be opened, or is not allowed.
    """
    image = open_image(value, from_query=from_query)
    file = io.BytesIO()
    image.save(file, "jpeg")
    width, height = image.size
    return Picture("jpeg", base64.b64encode(file.getvalue()).decode(), width * height)


def checked(value: bytes) -> Picture:
    """Return a file of an image as it is, after `open_image` has opened it.

    Raises:
        RowError: it cannot be opened.
    """
    width, height = open_image(value).size
    return Picture("file", base64.b64encode(value).decode(), width * height)


def names_a_picture(text: str) -> bool:
    """Return whether a text of a mixed column is the address of an image."""
    return text.lstrip()[:16].lower().startswith(_NAMES)
