"""Every remote function keeps the contract, against a server on loopback that answers in its vendor's shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import embedreg
from embedreg import EmbeddingFunction
from embedreg.testing import EmbeddingFunctionContract
from embedreg.testing.contract import TEXTS
from tests.servers import Reply
from tests.vendors import CASES, KEY, Case, VendorServer, vendor_server


@pytest.fixture(scope="module")
def server() -> Iterator[VendorServer]:
    """The server of this module."""
    with vendor_server() as running:
        yield running


# Those of images have theirs in tests/functions/test_vendor_images.py.
OF_TEXTS = [case for case in CASES if "source_type" not in case.config("http://x")]


class TestVendors(EmbeddingFunctionContract):
    """Each function, with a key and its own form of queries."""

    @pytest.fixture(params=OF_TEXTS, ids=lambda case: case.name)
    def case(self, request: pytest.FixtureRequest) -> Case:
        found: Case = request.param
        return found

    @pytest.fixture(autouse=True)
    def tokens_stay(self, case: Case, request: pytest.FixtureRequest) -> None:
        """Leave out what would send a token of Google's to an address of stored metadata, which is refused."""
        rebuilt = ("test_another_process_gives_the_same_vectors", "test_metadata_rebuilds_the_function")
        if case.name == "vertex" and request.node.originalname in rebuilt:
            pytest.skip("the address of the tests' server would come from stored metadata")

    @pytest.fixture
    def function(self, case: Case, server: VendorServer) -> EmbeddingFunction:
        embedreg.get_registry().set_var("vendor_key", KEY)
        server.replies.clear()
        return case.create(server, max_retries=0)

    @pytest.fixture
    def inputs(self) -> list[str]:
        return [*TEXTS[:3], TEXTS[-1]]

    @pytest.fixture
    def tolerance(self) -> float:
        return 0.0  # the server counts letters

    @pytest.fixture
    def provoke(self, case: Case, function: EmbeddingFunction, server: VendorServer) -> Callable[[], Any]:
        """A server that repeats the key as it refuses it."""

        def fail() -> Any:
            server.replies.append(Reply("error", 401, f"Incorrect API key provided: {case.secret}."))
            return function.compute_source_embeddings(["some text"])

        return fail
