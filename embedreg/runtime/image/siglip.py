"""Loads a SigLIP model of the transformers library, and runs its towers with its own tokenizer.

Source: Zhai et al. 2023. Texts are padded to the model's whole context, since the vector of a text is that of its last
position; images are resized without keeping their shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedreg.errors import CallError, ConfigError
from embedreg.runtime.hardware import onednn
from embedreg.runtime.hardware.precision import Precision
from embedreg.runtime.image.clip import Clip
from embedreg.runtime.image.preprocess import Preprocess
from embedreg.runtime.models.folders import broken, read_object
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = ["EXTRA", "Siglip", "load", "ndims"]

EXTRA = "siglip"
CONTEXT = 64  # tokens, those of every SigLIP so far
PREPROCESSOR = "preprocessor_config.json"
_MODES = {"0": "NEAREST", "2": "BILINEAR", "3": "BICUBIC"}  # Pillow's numbers
_MAX_SIDE = 4096  # pixels: the configuration may be untrusted
_TOKENS = ("input_ids", "attention_mask")  # the second where the model's tokenizer returns one
_WIDTH = 768  # of SigLIP's own default configuration


class Siglip(Clip):
    """A `SiglipModel` on a device; see `Clip`."""

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess, device: str, dtype: Any) -> None:
        self._init(model, tokenizer, preprocess, device, dtype)
        self.side = int(model.config.vision_config.image_size)

    def tower(self, tower: Literal["visual", "textual"], tensors: tuple[Any, ...]) -> Any:
        """Run a tower of the library's model: (b, d)."""
        run, names = {
            "visual": (self.model.get_image_features, ("pixel_values",)),
            "textual": (self.model.get_text_features, _TOKENS),
        }[tower]
        return _pooled(run(**dict(zip(names, tensors, strict=False))))

    def tokens(self, texts: list[str]) -> tuple[tuple[Any, ...], np.ndarray]:
        """Tokenize texts: one or two of (b, t) int64, and (b,) bool, the texts that exceed the limit of tokens."""
        import numpy as np

        limit = self.max_tokens()
        with self._lock:
            tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
            whole = self.tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        kinds = tuple(tokens[kind] for kind in _TOKENS if kind in tokens)
        return kinds, np.fromiter((len(ids) > limit for ids in whole), bool, len(texts))

    def max_tokens(self) -> int:
        """Return the model's context."""
        return min(CONTEXT, int(self.model.config.text_config.max_position_embeddings))


def _pooled(made: Any) -> Any:
    return getattr(made, "pooler_output", made)  # before transformers 5, the vectors themselves


def ndims(folder: Path) -> int:
    """Return the width of the vectors, from the model's configuration.

    Raises:
        ConfigError: it is not that of a SigLIP.
    """
    config = read_object(folder / "config.json")
    vision = config.get("vision_config") or {}
    if config.get("model_type") != "siglip" or not isinstance(vision, dict):
        raise ConfigError(
            f"a model of the kind {config.get('model_type')!r} is not a SigLIP.",
            "model_name='google/siglip-base-patch16-224'; other models: embedreg.get('open-clip')",
        )
    width = vision.get("hidden_size", _WIDTH)
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise broken(folder / "config.json")
    return width


def load(folder: Path, name: str, device: str, precision: Precision, *, own: bool) -> Siglip:
    """Load a model in eval mode, from files that contain only data.

    Args:
        name: the model's name in messages.
        own: whether the user's own code names the folder, so that pickled weights may load.
    Raises:
        ConfigError: its preprocessing is of another kind. CallError: it cannot be loaded.
    """
    import torch

    transformers = attempt_import_or_raise("transformers", extra=EXTRA)
    preprocess = Preprocess(_transform(folder))
    dtype = torch.float32 if precision == "float32" else getattr(torch, precision)
    options = {} if own else {"use_safetensors": True}
    try:
        model = transformers.SiglipModel.from_pretrained(str(folder), local_files_only=True, dtype=dtype, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as exc:
        raise CallError(
            f"the model {name!r} cannot be loaded: {type(exc).__name__}: {exc}",
            "check its files and your versions with `embedreg doctor`; a tokenizer may need: pip install sentencepiece",
        ) from exc
    model = model.to(device).eval()
    onednn.use_onednn(model)
    return Siglip(model, tokenizer, preprocess, device, dtype)


def _transform(folder: Path) -> Any:
    """Return what the model's image processor does to an RGB image, with Pillow's resizing.

    Raises:
        ConfigError: the processor does something else.
    """
    config: Any = read_object(folder / PREPROCESSOR)
    config = config or read_object(folder / "processor_config.json").get("image_processor")
    config = config if isinstance(config, dict) else {}
    transforms = attempt_import_or_raise("torchvision.transforms", "torchvision", extra=EXTRA)
    size = config.get("size")
    size = size if isinstance(size, dict) else {}
    height, width, scale = size.get("height"), size.get("width"), config.get("rescale_factor", 1 / 255)
    sized = all(isinstance(side, int) and 0 < side <= _MAX_SIDE for side in (height, width))
    scaled = isinstance(scale, float) and abs(scale - 1 / 255) < 1e-9
    steps = all(config.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize"))
    mode = _MODES.get(str(config.get("resample", 3)))
    if not (sized and scaled and steps and mode) or config.get("do_center_crop"):
        raise ConfigError(
            f"{PREPROCESSOR} of {folder.name} describes another preprocessing than SigLIP's.", "use another model"
        )
    try:
        mean, std = ([float(part) for part in config.get(name, (0.5,) * 3)] for name in ("image_mean", "image_std"))
    except (TypeError, ValueError) as exc:
        raise broken(folder / PREPROCESSOR) from exc
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise broken(folder / PREPROCESSOR)
    resize = transforms.Resize((height, width), transforms.InterpolationMode[mode])
    return transforms.Compose([resize, transforms.ToTensor(), transforms.Normalize(mean, std)])
