"""The contract suite: what every embedding function promises, as a test class.

Subclass it in your own tests, and give it your function:

    class TestMine(EmbeddingFunctionContract):
        @pytest.fixture
        def function(self):
            return embedreg.get("my-embedder").create(...)

For images there is `ImageFunctionContract`, which brings rows of its own. Each test says what was wrong and what to do.
Only this package imports pytest.
"""

from embedreg.support.imports import attempt_import_or_raise

attempt_import_or_raise("pytest")

from embedreg.testing.contract import EmbeddingFunctionContract  # noqa: E402 (without pytest: a hint, no traceback)
from embedreg.testing.images import ImageFunctionContract  # noqa: E402

__all__ = ["EmbeddingFunctionContract", "ImageFunctionContract"]
