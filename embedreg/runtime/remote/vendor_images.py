"""Base classes of functions whose service takes images and texts in one POST of JSON.

`VendorImageFunction` is for functions of images, `MultimodalFunction` for LanceDB's functions of texts, some models of
which take images as well.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, Literal

from pydantic import Field

from embedreg.arrow.columns import rows_of_media
from embedreg.core.base import Traits
from embedreg.core.modality import TEXT, is_mixed, source_modality
from embedreg.core.role import Role, compute_once
from embedreg.errors import InputError, RowError
from embedreg.runtime.remote.function import RemoteFunction
from embedreg.runtime.remote.pictures import Picture, names_a_picture, picture_of
from embedreg.runtime.remote.vendor import VendorBase, VendorFunction

__all__ = ["MultimodalFunction", "VendorImageFunction", "image_traits"]

_CHARACTERS_A_TOKEN = 64  # of a picture: this bounds the size of a request
_WINDOW = 64  # rows at a time of a function that holds their pictures


def image_traits(extra: str) -> Traits:
    """Return the traits of such a class: few rows at a time, since each picture is held as it is sent."""
    return Traits(
        modality="image+text",
        requires=("httpx2", "PIL"),
        extra=extra,
        remote=True,
        retry=False,
        window=_WINDOW,
        concurrency=4,
    )


class VendorImageFunction(VendorBase, RemoteFunction):
    """A function of images and texts whose service takes one POST of JSON.

    Images are opened under the image policy (`allow_images`), upright and as RGB, and sent as PNG; a picture of more
    than `max_bytes` as PNG is sent as JPEG. No address is passed on for the service to fetch. An image that cannot be
    opened is a bad row. A subclass defines `vendor`, its fields and `request(batch, role)`, whose inputs are texts and
    `Picture`s.

    Attributes:
        source_type: the meaning of a string in a source column: "image", a path or URL; "text"; or "mixed", a text
            unless it begins as the address of an image does (http:, https:, file:, data:image/).
        batch_size: maximum inputs of one request.
    """

    _takes_texts: ClassVar[bool] = True
    max_bytes: ClassVar[int] = 5 * 10**6  # of a picture
    max_pixels: ClassVar[int] = 16_000_000
    pixels_a_token: ClassVar[int] = 560

    source_type: Literal["image", "text", "mixed"] = "image"
    batch_size: int = Field(default=8, ge=1)

    @staticmethod
    def sensitive_keys() -> list[str]:
        return ["api_key"]

    def compute_embeddings(self, inputs: Any, role: Role = "source") -> Any:
        """Embed n images or texts.

        Returns:
            (n, d) float32; if rows have no vector, a list of n vectors, None (null, blank) and RowError.
        Raises:
            InputError: under source_type="text", a source row that is not text. CallError: a request failed.
            VectorError: the response does not fit the request.
        """
        rows = self.sanitize_input(inputs)
        return self._embed_rows(rows.to_pylist() if hasattr(rows, "to_pylist") else rows, role)

    def compute_source_embeddings(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed source rows, as `compute_embeddings` does."""
        return compute_once(self, inputs, "source")

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Embed one query, a text or an image, as `compute_embeddings` does."""
        return compute_once(self, [query], "query")

    def sanitize_input(self, texts: Any) -> Any:
        """Convert the inputs of an engine to rows: one value becomes a list of one, a chunked array one array."""
        return rows_of_media(texts)

    def count_tokens(self, text: Any) -> int:
        """Return an upper estimate of the tokens of a text or a picture."""
        return text.pixels // self.pixels_a_token + 1 if isinstance(text, Picture) else super().count_tokens(text)

    def _sent(self, value: Any, row: int, role: Role) -> Any:
        value = super()._sent(value, row, role)
        if value is None:
            return None
        if isinstance(value, str) and self._is_text(value, role):
            return str(value)
        if role == "source" and source_modality(self) is TEXT:
            raise InputError(f"row {row} is {type(value).__name__}, not text.", "source_type='image' embeds images")
        if isinstance(value, str) and value.lstrip()[:11].lower() == "data:image/":
            value = _inside(value)
        return picture_of(value, from_query=role == "query", max_bytes=self.max_bytes, max_pixels=self.max_pixels)

    def _is_text(self, value: str, role: Role) -> bool:
        if role == "query":
            return True
        return source_modality(self) is TEXT or (is_mixed(self) and not names_a_picture(value))


class MultimodalFunction(VendorFunction):
    """A text function of LanceDB's whose models partly take images too, in the form in which LanceDB sends them.

    A string of a source column is a text, or, for such a model, the image at an address (http: or https:, without
    spaces), which embedreg fetches under the image policy. Bytes, arrays and PIL images are images. A subclass defines
    `_takes_images` and `_picture`; its `request` gets texts and `Picture`s.
    """

    _takes_texts: ClassVar[bool] = True

    @abstractmethod
    def _takes_images(self) -> bool:
        """Return whether the model takes images."""

    @abstractmethod
    def _picture(self, value: Any, from_query: bool) -> Picture:
        """Return an image as it is sent, or raise a RowError."""

    def _own_traits(self) -> Traits:
        if not self._takes_images():
            return self.traits
        return dataclasses.replace(self.traits, modality="text+image", window=_WINDOW)

    def count_tokens(self, text: Any) -> int:
        """Return an upper estimate of the tokens of a text or a picture."""
        if not isinstance(text, Picture):
            return super().count_tokens(text)
        return max(text.pixels // VendorImageFunction.pixels_a_token, len(text.data) // _CHARACTERS_A_TOKEN) + 1

    def _sent(self, value: Any, row: int, role: Role) -> Any:
        text = isinstance(value, str) and not (role == "source" and _is_address(value))
        if value is None or isinstance(value, float) or text or not self._takes_images():
            return super()._sent(value, row, role)
        return self._picture(value, role == "query")


def _is_address(text: str) -> bool:
    """Return whether a whole text is the address of something to fetch."""
    return text.lower().startswith(("http://", "https://")) and len(text.split()) == 1


def _inside(url: str) -> bytes:
    """Return the bytes in a `data:` URL of an image.

    Raises:
        RowError: it is not base64.
    """
    head, _, content = url.partition(",")
    if not head.endswith(";base64"):
        raise RowError("a data: URL of an image has to be in base64")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise RowError("its data: URL is not valid base64") from None
