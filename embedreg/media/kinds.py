"""The kinds of inputs that data may name by a path or URL: what messages call them, and what a server may send."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AUDIO", "IMAGE", "Kind"]


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        noun: the name of one input in messages.
        file: the name of one file.
        article: the indefinite article of both.
        accept: the Accept header of a request.
        types: the starts of content types that a server may send, beside those for data of any kind.
    """

    noun: str
    file: str
    article: str
    accept: str
    types: tuple[str, ...]

    @property
    def plural(self) -> str:
        """The plural of the noun."""
        return f"{self.noun}s"


IMAGE = Kind("image", "image file", "an", "image/*", ("image/",))
# Many servers send Ogg files as video, and some as an application.
AUDIO = Kind("recording", "audio file", "a", "audio/*", ("audio/", "application/ogg", "video/ogg"))
