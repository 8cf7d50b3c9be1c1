"""`open-clip` keeps the contract: its image half, and for a column of texts the other."""

from __future__ import annotations

from pathlib import Path

import pytest

import embedreg
from embedreg import EmbeddingFunction
from embedreg.testing import EmbeddingFunctionContract, ImageFunctionContract
from tests.tiny_clip import CAPTIONS


class TestOpenClip(ImageFunctionContract):
    """Images, with a tiny model of real meaning."""

    @pytest.fixture
    def function(self, tiny_clip: Path) -> EmbeddingFunction:
        return embedreg.get("open-clip").create(name=f"local-dir:{tiny_clip}", device="cpu")


class TestOpenClipOfTexts(EmbeddingFunctionContract):
    """Texts as a source."""

    @pytest.fixture
    def function(self, tiny_clip: Path) -> EmbeddingFunction:
        return embedreg.get("open-clip").create(name=f"local-dir:{tiny_clip}", device="cpu", source_type="text")

    @pytest.fixture
    def inputs(self) -> list[str]:
        return [*CAPTIONS[::9], "3.14 != 42", "two\nlines and more words than the model reads at a time " * 3]
