"""Recordings: decoding them to one channel of samples at a rate, under the policy that images are read under."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.audio.opening import open_audio

__all__ = ["open_audio"]

_HOMES = {"open_audio": "opening"}

if not TYPE_CHECKING:  # a type checker reads the imports above
    __getattr__, __dir__ = index(__name__, _HOMES)
