"""Local functions, as authors write them, keep the contract."""

from __future__ import annotations

import pytest

from embedreg import EmbeddingFunction
from embedreg.testing import EmbeddingFunctionContract, ImageFunctionContract
from tests.local_functions import GridProjection, LetterMeans


class TestLocalFunction(EmbeddingFunctionContract):
    """A torch module of texts on the base."""

    @pytest.fixture
    def function(self) -> EmbeddingFunction:
        return LetterMeans.create(device="cpu", truncate="silent")


class TestLocalImageFunction(ImageFunctionContract):
    """A torch module of pictures on the base."""

    @pytest.fixture
    def function(self) -> EmbeddingFunction:
        return GridProjection.create(device="cpu")
