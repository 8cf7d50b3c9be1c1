"""The `siglip` function: texts and images in one vector space, with the SigLIP models of the transformers library.

It has the fields and defaults of LanceDB's function of this name, whose own code fails since transformers 5.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from embedreg.core.base import Traits
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image import siglip
from embedreg.runtime.local.image_text import LocalImageTextFunction
from embedreg.runtime.models import integrity, weights
from embedreg.runtime.text.truncation import Truncate

__all__ = ["SiglipEmbeddings"]


class SiglipEmbeddings(LocalImageTextFunction):
    """Embeddings of images and texts, in one space, with a SigLIP model.

    A query that is a `str` is a text; a PIL image, bytes, a `pathlib.Path` or a numpy array is an image.

    Attributes:
        model_name: a model of the hub, or a folder.
        revision: a branch, tag or commit of the hub; None for the one that is cached, else the newest.
        others: as those of `open-clip`.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "siglip"
    traits: ClassVar[Traits] = replace(
        LocalImageTextFunction.traits,
        requires=("transformers", "torchvision", "PIL"),
        extra=siglip.EXTRA,
        stock_fields=frozenset({"model_name", "device", "batch_size", "normalize", "max_retries"}),
    )

    model_name: str = "google/siglip-base-patch16-224"
    revision: str | None = None
    device: str = "auto"  # inherited, as others below: declared again for their order in declarations and listings
    batch_size: int = Field(default=64, ge=1)
    normalize: bool = True
    source_type: Literal["image", "text"] = "image"
    precision: Precision = "float32"
    draft: bool = False
    truncate: Truncate = "warn"
    num_threads: int | None = Field(default=None, ge=1)
    backend: Literal["auto", "torch", "openvino"] = "auto"

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        folder = None if self.from_metadata else weights.absolute_folder(self.raw_fields()["model_name"])
        if folder is not None:
            self.model_name = folder

    def ndims(self) -> int:
        """Return the width of the vectors, from the model's configuration."""
        if self._ndims is None:
            self._ndims = siglip.ndims(self._files().path)
        return int(self._ndims)

    # -- the model --------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        return self.model_name

    def _model_name(self) -> str:
        return self.model_name

    def _find_files(self, *, download: bool) -> weights.ResolvedModel:
        return self._resolved(self.model_name, self.revision, download=download)

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the model's folder and precision."""
        files = self._files()
        return "siglip", str(files.path), files.stamp() if files.origin == "local" else 0, self._weights_precision()

    def load(self, device: str) -> siglip.Siglip:
        """Load the model with its library, in its precision."""
        files = self._files()
        own = files.origin == "local" and not self.from_metadata
        integrity.check_safe(files.path, self.model_name, code=False, pickles=own, revision=self.revision)
        return siglip.load(files.path, self.model_name, device, self._weights_precision(), own=own)
