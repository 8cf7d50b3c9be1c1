"""The functions that ship, the plug-in and a class written for LanceDB keep the contract."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cachetools import cached

import embedreg
from embedreg import EmbeddingFunction, TextEmbeddingFunction, register
from embedreg.testing import EmbeddingFunctionContract
from embedreg.testing.contract import TEXTS
from tests.servers import EmbeddingServer, Reply

KEY = "sk-loopback-0815-4711"


class TestHashing(EmbeddingFunctionContract):
    """`hashing`, to the last bit."""

    @pytest.fixture
    def function(self) -> EmbeddingFunction:
        return embedreg.get("hashing").create(dim=64)

    @pytest.fixture
    def tolerance(self) -> float:
        return 0.0  # counts are whole numbers, and each row is scaled by itself


class TestHashingCounts(TestHashing):
    """`hashing` without normalising, and with another seed."""

    @pytest.fixture
    def function(self) -> EmbeddingFunction:
        return embedreg.get("hashing").create(dim=300, normalize=False, char_ngrams=None, seed=7)


class TestSentenceTransformers(EmbeddingFunctionContract):
    """`sentence-transformers` with the real weights of all-MiniLM-L6-v2; its instances share one loaded model."""

    @pytest.fixture
    def function(self, minilm_path: Path) -> EmbeddingFunction:
        return embedreg.get("sentence-transformers").create(name="all-MiniLM-L6-v2", device="cpu")

    @pytest.fixture
    def inputs(self) -> list[str]:
        return [*TEXTS[1:4], TEXTS[-1]]  # enough to pad and to reorder; each row is a forward pass some thirty times


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddingServer]:
    """A server on loopback that wants a key and answers backwards."""
    with EmbeddingServer(key=KEY, backwards=True) as made:
        yield made


class TestOpenAI(EmbeddingFunctionContract):
    """`openai`, against a real server on loopback, with a key."""

    @pytest.fixture
    def function(self, server: EmbeddingServer) -> EmbeddingFunction:
        embedreg.get_registry().set_var("loopback_key", KEY)
        return embedreg.get("openai").create(
            name="text-embedding-3-small",
            dim=20,
            base_url=server.url,
            api_key="$var:loopback_key",
            batch_size=4,
            max_retries=0,
        )

    @pytest.fixture
    def tolerance(self) -> float:
        return 0.0  # what travels as base64 arrives as it was

    @pytest.fixture
    def provoke(self, function: EmbeddingFunction, server: EmbeddingServer) -> Callable[[], Any]:
        """A server that repeats the key as it refuses it."""

        def fail() -> Any:
            server.replies.append(Reply("error", 401, f"Incorrect API key provided: {KEY}.", "invalid_api_key"))
            return function.compute_source_embeddings(["some text"])

        return fail


class TestThePlugIn(EmbeddingFunctionContract):
    """`letters`, from the plug-in package in tests/plugin, as its own author would test it."""

    @pytest.fixture
    def function(self, plugin: Path) -> EmbeddingFunction:
        return embedreg.get("letters").create(case_sensitive=True)


@register("lancedb-style")
class LanceDBStyle(TextEmbeddingFunction):
    """Written as LanceDB's guide has it: `_ndims` set in `__init__`, a cached method, lists of lists."""

    name: str = "small"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ndims = None

    def generate_embeddings(self, texts: Any) -> list[list[float]]:
        table = self._embedding_model()
        return [table[[zlib.crc32(word.encode()) % 512 for word in text.split()]].sum(0).tolist() for text in texts]

    def ndims(self) -> int:
        if self._ndims is None:
            self._ndims = len(self.generate_embeddings(["foo"])[0])
        return int(self._ndims)

    @cached(cache={})
    def _embedding_model(self) -> np.ndarray:
        return np.random.default_rng(len(self.name)).standard_normal((512, 24))


class TestLanceDBStyle(EmbeddingFunctionContract):
    """A class written for LanceDB keeps the contract as it is."""

    @pytest.fixture
    def function(self) -> EmbeddingFunction:
        return LanceDBStyle.create(name="other")

    @pytest.fixture
    def tolerance(self) -> float:
        return 1e-6  # lists hold what float64 gave, and a table rounds it to float32
