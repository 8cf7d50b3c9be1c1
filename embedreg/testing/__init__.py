"""The contract suite: the requirements on every embedding function, as a test class.

Subclass it in your own tests, and give it your function:

    class TestMine(EmbeddingFunctionContract):
        @pytest.fixture
        def function(self):
            return embedreg.get("my-embedder").create(...)

For images there is `ImageFunctionContract`, which has its own rows; for multi-vectors and sparse vectors
`VectorKindContract`. A failure states what is wrong and how to fix it.
Only this package imports pytest.
"""

from embedreg.support.imports import attempt_import_or_raise

attempt_import_or_raise("pytest")

from embedreg.testing.contract import EmbeddingFunctionContract  # noqa: E402 (without pytest it raises a hint, not a traceback)
from embedreg.testing.images import ImageFunctionContract  # noqa: E402
from embedreg.testing.kinds import VectorKindContract  # noqa: E402

__all__ = ["EmbeddingFunctionContract", "ImageFunctionContract", "VectorKindContract"]
