"""The `open-clip` function: texts and images in one vector space, with any model of the open_clip library.

It has the fields and defaults of LanceDB's function of this name. The library's code, preprocessing and tokenizer
determine the vectors; the runtime opens images, batches, and overlaps both.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, PrivateAttr

from embedreg.core.base import Traits
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image import clip, clip_config, clip_files, light, light_config
from embedreg.runtime.local.image_text import LocalImageTextFunction
from embedreg.runtime.text.light import choice
from embedreg.runtime.text.light.choice import Choice
from embedreg.runtime.text.truncation import Truncate
from embedreg.security.references import is_reference

__all__ = ["OpenClipEmbeddings"]

log = logging.getLogger("embedreg")

NEEDS = choice.Needs(("openvino", "tokenizers", "PIL"), ("open_clip", "torch"), light.EXTRA, clip_config.EXTRA)


class OpenClipEmbeddings(LocalImageTextFunction):
    """Embeddings of images and texts, in one space, with the open_clip library.

    A query that is a `str` is a text; a PIL image, bytes, a `pathlib.Path` or a numpy array is an image.

    Attributes:
        name: a model of the library ("ViT-B-32"), "hf-hub:<owner>/<model>", or "local-dir:<folder>".
        pretrained: a tag of the library, or a file of weights; ignored for the other two kinds of names.
        device: "auto", "cpu", "cuda", "cuda:<index>" or "mps".
        batch_size: maximum images of a forward pass; on a CPU at most 8, which is fastest.
        normalize: whether vectors have unit length.
        source_type: the meaning of a string in a source column: "image", a path or URL; or "text".
        precision: number type of the towers' computation; vectors are always float32. Types other than "float32" are
            allowed only on hardware that is faster with them.
        draft: whether JPEGs of at least twice the model's input size are decoded at 1/2, 1/4 or 1/8 of their size:
            several times faster, but not exact (docs/open-clip.md lists the differences).
        truncate: policy for a text longer than the model takes: "warn" embeds its beginning and logs the number of such
            rows, "silent" embeds its beginning, "error" makes it a bad row.
        num_threads: worker threads on a CPU, elsewhere those that open images; None for one per core that torch may
            use.
        backend: "torch"; on a CPU also "light" (the extra [open-clip-light], without torch and the library), or
            "openvino" (the extra [openvino]), which converts torch's model; all agree to 1e-5. "auto" is torch if there
            is a GPU, else light if it can run the model, else torch.
    """

    __embedding_function_registry_alias__: ClassVar[str | None] = "open-clip"  # also where it is imported directly
    traits: ClassVar[Traits] = replace(
        LocalImageTextFunction.traits,
        requires=("open_clip", "PIL"),
        alternatives=(NEEDS.light,),
        extra=clip_config.EXTRA,
        stock_fields=frozenset({"name", "pretrained", "device", "batch_size", "normalize", "max_retries"}),
    )

    name: str = "ViT-B-32"
    pretrained: str | None = "laion2b_s34b_b79k"
    device: str = "auto"  # inherited, as others below: declared again for their order in declarations and listings
    batch_size: int = Field(default=64, ge=1)
    normalize: bool = True
    source_type: Literal["image", "text"] = "image"
    precision: Precision = "float32"
    draft: bool = False
    truncate: Truncate = "warn"
    num_threads: int | None = Field(default=None, ge=1)
    backend: Literal["auto", "torch", "light", "openvino"] = "auto"

    _chosen: tuple[clip_files.ClipFiles, Choice] | None = PrivateAttr(default=None)

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        if self.from_metadata:
            return
        # a stored relative path would be wrong in any other working directory
        fields = self.raw_fields()
        if not is_reference(fields["name"]) and fields["name"].startswith(clip_config.FOLDER_PREFIX):
            folder = clip_files.names_folder(fields["name"])
            if folder is not None and not folder.is_absolute():
                self.name = f"{clip_config.FOLDER_PREFIX}{os.path.abspath(folder)}"
        weights = fields["pretrained"]
        named = isinstance(weights, str) and not is_reference(weights) and weights.endswith(clip_files.WEIGHTS_SUFFIXES)
        if named and os.path.isfile(weights):
            self.pretrained = os.path.abspath(weights)

    def ndims(self) -> int:
        """Return the width of the vectors, from the model's configuration."""
        if self._ndims is None:
            self._ndims = clip_files.ndims(self._files, self.name)
        return int(self._ndims)

    # -- the model --------------------------------------------------------------------------------------------------

    def _path(self) -> str:
        return self.name if self.name.startswith(clip_config.FOLDER_PREFIX) else self.pretrained or ""

    def _find_files(self, *, download: bool) -> clip_files.ClipFiles:
        return clip_files.resolve(
            self.name,
            self.pretrained,
            allow_local=self._may_read(),
            safe_only=self.from_metadata,
            download=download,
        )

    def weights_key(self) -> tuple[Hashable, ...]:
        """Return the model's configuration, weights and precision."""
        files = self._files()
        stamp = files.stamp() if files.origin == "local" else 0
        model = self.name if files.folder is None else str(files.folder)
        kind = "open-clip" if self._uses_torch() else "open-clip-light"
        return kind, model, str(files.weights), stamp, self._weights_precision()

    def load(self, device: str) -> clip.Clip | light.LightClip:
        """Load the model, with its library in its precision, or for the light back end."""
        if not self._uses_torch():
            return light.load(self.name, self._files())
        return clip.load(self.name, self._files(), device, self._weights_precision())

    def chosen_backend(self, *, download: bool = True) -> Choice:
        """Return the back end that runs the model here, and why others were passed over.

        Args:
            download: whether the model's files may be downloaded, which the choice depends on.
        Raises:
            ModelNotFoundError: the model is not available. MissingExtraError, CallError: no back end can run it.
        """
        if self.backend != "auto":
            return Choice(self.backend)
        files = self._files(download=download)
        if self._chosen is None or self._chosen[0] is not files:  # once for each instance, as its weights
            why_not = functools.partial(light_config.why_not, files)
            found = choice.decide(why_not, self.name, self.device, self.precision, NEEDS)
            log.info("%s runs on the back end %s", self.name, found)
            self._chosen = files, found
        return self._chosen[1]

    def _backend_name(self) -> str:
        return self.chosen_backend().name

    def _uses_torch(self) -> bool:
        return self._backend_name() != choice.LIGHT

    def _named_devices(self, name: str) -> tuple[str, ...]:
        return ("cpu",) if name == "auto" and not self._uses_torch() else super()._named_devices(name)

    def _compile(self, model: Any, threads: int) -> Any:
        return super()._compile(model, threads) if self._uses_torch() else model.compiled(self.precision, threads)
