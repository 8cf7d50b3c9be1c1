"""`Cutter`: cuts the texts of parents for one function, whose tokens are counted."""

from __future__ import annotations

import math

from embedreg.chunks.settings import Settings
from embedreg.chunks.spans import Measure, Span
from embedreg.chunks.splitters import Splitter
from embedreg.core.base import EmbeddingFunction
from embedreg.declaration.fingerprint import fingerprint
from embedreg.errors import ConfigError

__all__ = ["OVERLAP", "SIZE", "Cutter"]

SIZE, OVERLAP = 256, 32  # tokens
_BYTES_PER_TOKEN = 4  # of prose, where a function counts no tokens


class Cutter:
    """Cuts texts for one function.

    Raises:
        ConfigError: a size or an overlap that is invalid, or more than the model takes.
    """

    def __init__(
        self, function: EmbeddingFunction, splitter: Splitter, size: int | None = None, overlap: int | None = None
    ) -> None:
        self.function, self.splitter = function, splitter
        count = getattr(function, "count_tokens", None)
        self.measure = Measure(_estimated if count is None else count, count is not None)
        limit = getattr(function, "max_tokens", lambda: None)()
        for name, value, least in (("size", size, 1), ("overlap", overlap, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ConfigError(f"invalid {name}={value!r}: expected a number of tokens.", f"{name}={SIZE}")
        self.size = size if size is not None else min(SIZE, limit or SIZE)
        if limit is not None and self.size > limit:
            raise ConfigError(
                f"size={self.size:,} is more than the {limit:,} tokens that the model takes.", f"size={limit}"
            )
        self.overlap = overlap if overlap is not None else min(OVERLAP, self.size // 8)
        room = self.size - self.measure.own
        if room < 1 or self.overlap >= max(room, 1):
            raise ConfigError(
                f"size={self.size} and overlap={self.overlap} leave no room: {self.measure.own} tokens of each chunk "
                "are special ones or a prompt.",
                f"size={min(SIZE, limit or SIZE)}",
            )

    def spans(self, text: str) -> list[Span]:
        """Return the spans of a text's chunks."""
        return self.splitter.spans(text, self.measure, self.size, self.overlap)

    def settings(self, parent: str, key: str, source: str, vector: str) -> Settings:
        """Return the settings of the cut in stored form.

        Raises:
            ConfigError: a name that cannot be stored.
        """
        try:
            return Settings(
                parent=parent,
                key=key,
                source=source,
                vector=vector,
                splitter=self.splitter.name,
                version=self.splitter.version,
                size=self.size,
                overlap=self.overlap,
                counted_by=fingerprint(self.function).rpartition(":")[2][:8],
            )
        except ValueError as exc:
            raise ConfigError(f"the way of cutting cannot be stored: {exc}.", "key='id', source='text'") from None


def _estimated(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)
