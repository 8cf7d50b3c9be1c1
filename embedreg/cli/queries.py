"""What a search looks for: a text, or a file that the user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.core import modality
from embedreg.errors import InputError, RowError, in_shell

if TYPE_CHECKING:
    from PIL.Image import Image

    from embedreg.core.base import EmbeddingFunction

__all__ = ["modality_of", "opened_image", "opened_recording", "refuse"]

_CHECKED_AT = 8_000  # samples per second at which a recording is decoded to see that it can be; the least to compute


def opened_image(path: Path) -> Image:
    """Open the user's image; it needs no allowance, since it is not named by data.

    Raises:
        InputError: it cannot be read.
    """
    from embedreg.images import open_image

    try:
        return open_image(path, from_query=True)
    except RowError as exc:
        raise InputError(
            f"--image {path}: {in_shell(exc.message)}.", "give an image file, such as a JPEG or a PNG"
        ) from None


def opened_recording(path: Path) -> Path:
    """Return the path of the user's recording, which can be decoded; the function opens it at its own rate.

    Raises:
        InputError: it cannot be read.
        MissingExtraError: soundfile or soxr is not installed.
    """
    from embedreg.audio import open_audio

    try:
        open_audio(path, rate=_CHECKED_AT, from_query=True)
    except RowError as exc:
        raise InputError(
            f"--audio {path}: {in_shell(exc.message)}.", "give an audio file, such as a WAV or a FLAC"
        ) from None
    return path


def modality_of(query: Any) -> modality.Modality:
    """Return the modality of a text, a recording's path, or a PIL image."""
    if isinstance(query, str):
        return modality.TEXT
    return modality.AUDIO if isinstance(query, Path) else modality.IMAGE


def refuse(function: EmbeddingFunction, query: Any, where: object) -> None:
    """Raise an `InputError` if a table's function embeds no queries of this modality; a text is never refused here."""
    embedded, asked = modality.modalities(function), modality_of(query)
    if asked.files is None or asked in embedded or modality.ANY in embedded:
        return
    noun = asked.files.noun.split()[-1]
    raise InputError(f"{where} holds {embedded[0].plural}, which no {noun} can be compared with.", "look for a text")
