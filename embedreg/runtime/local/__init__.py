"""The base classes of local functions; a subclass of `LocalFunction` or `LocalImageFunction` loads and runs a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from embedreg.support.lazy import index

if TYPE_CHECKING:
    from embedreg.runtime.local.image import LocalImageFunction
    from embedreg.runtime.local.model import LocalModel
    from embedreg.runtime.local.text import LocalFunction
else:
    __getattr__, __dir__ = index(
        __name__, {"LocalFunction": "text", "LocalImageFunction": "image", "LocalModel": "model"}
    )

__all__ = ["LocalFunction", "LocalImageFunction", "LocalModel"]
