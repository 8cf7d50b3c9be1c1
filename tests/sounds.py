"""Two modalities that the library does not know, with a function of each: signals as WAV, and lists of numbers."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from embedreg import EmbeddingFunction, InputFiles, Modality, RowError, Traits, add_modality, register
from embedreg.core import modality

RATE = 8000
PARTS = 4


def samples(seed: int) -> np.ndarray:
    """Return a quarter of a second of noise, louder in some parts of it: (2000,) int16."""
    rng = np.random.default_rng(seed)
    louder = np.repeat(rng.integers(100, 10_000, PARTS), RATE // 4 // PARTS)
    return (rng.uniform(-1, 1, RATE // 4) * louder).astype("<i2")


def wav(seed: int) -> bytes:
    """Return a recording as a WAV file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples(seed).tobytes())
    return buffer.getvalue()


def loudness(seed: int) -> np.ndarray:
    """Return the mean amplitude of each part of a recording: (4,) float32."""
    return np.abs(samples(seed).astype(np.float32)).reshape(PARTS, -1).mean(axis=1) / 1000


SIGNAL = Modality(
    "signal",
    string="name",
    types=("string", "large_string", "binary", "large_binary"),
    objects=True,
    probe=wav(0),
    sql={"duckdb": "BLOB", "databend": "BINARY"},
    hint="signals are WAV files as bytes, or their paths",
    files=InputFiles("signals", (".signal",), "a signal"),
)
NUMBERS = Modality(
    "number-list",
    types=("list", "large_list", "fixed_size_list"),
    probe=[1.0, 2.0, 3.0],
    sql={"duckdb": "DOUBLE[]"},
    hint="cast it to a list of numbers",
)


@contextmanager
def in_the_table() -> Iterator[None]:
    """Add both rows to the table for a time."""
    for each in (SIGNAL, NUMBERS):
        add_modality(each)
    try:
        yield
    finally:
        for each in (SIGNAL, NUMBERS):
            del modality.MODALITIES[each.name]
        modality._parsed.cache_clear()


@register("loudness")
class Loudness(EmbeddingFunction):
    """Embeds a recording as the mean amplitude of its four parts."""

    traits: ClassVar[Traits] = Traits(modality="signal", metric="l2", retry=False)

    def ndims(self) -> int:
        return PARTS

    def compute_source_embeddings(self, recordings: Any, *args: Any, **kwargs: Any) -> Any:
        return [self._one(recording) for recording in self.sanitize_input(recordings)]

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [self._one(query)]

    def _one(self, recording: Any) -> np.ndarray | RowError:
        try:
            with wave.open(
                io.BytesIO(Path(recording).read_bytes() if isinstance(recording, str) else recording)
            ) as file:
                heard = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
        except (wave.Error, EOFError, OSError) as exc:
            return RowError(f"it cannot be heard: {type(exc).__name__}")
        return np.abs(heard).reshape(PARTS, -1).mean(axis=1) / 1000


@register("moments")
class Moments(EmbeddingFunction):
    """Embeds a list of numbers as its sum and its length."""

    traits: ClassVar[Traits] = Traits(modality="number-list", metric="l2", retry=False)

    def ndims(self) -> int:
        return 2

    def compute_source_embeddings(self, rows: Any, *args: Any, **kwargs: Any) -> Any:
        return [[sum(row), len(row)] for row in self.sanitize_input(rows)]

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return [[sum(query), len(query)]]
