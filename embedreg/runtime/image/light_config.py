"""Whether the light back end can run a CLIP with the same vectors as open_clip, read from its configuration.

Source: Radford et al. 2021; the settings and their defaults are open_clip's. A setting that is not known to give the
library's vectors is the reason to leave the model to torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embedreg.errors import EmbedregError
from embedreg.runtime.image.clip_config import CONFIG, config_in
from embedreg.runtime.image.clip_files import SAFE_SUFFIX, ClipFiles
from embedreg.runtime.models.folders import read_object
from embedreg.runtime.text.light.settings import Settings, Unsupported
from embedreg.runtime.text.light.tensors import Tensors

__all__ = ["Plan", "Tower", "read", "why_not"]

TOKENIZER = "tokenizer.json"
_CENTRE = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, of a configuration that has none
_SPREAD = (0.26862954, 0.26130258, 0.27577711)

# What the towers have beside the sizes that are read, with the values that the graph is built for.
_TOP: dict[str, Any] = {"embed_dim": ..., "vision_cfg": ..., "text_cfg": ..., "quick_gelu": ..., "custom_text": False}
_VISION: dict[str, Any] = {
    "layers": ..., "width": ..., "head_width": ..., "mlp_ratio": ..., "patch_size": ..., "image_size": ...,
    "patch_dropout": ..., "attentional_pool": False, "no_ln_pre": False, "pos_embed_type": "learnable",
    "final_ln_after_pool": False, "pool_type": "tok", "output_tokens": False, "block_type": "default",
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "context_length": ..., "vocab_size": ..., "width": ..., "heads": ..., "layers": ..., "mlp_ratio": ...,
    "pad_id": ..., "eos_id": ..., "embed_cls": False, "no_causal_mask": False, "final_ln_after_pool": False,
    "pool_type": "argmax", "proj_bias": False, "proj_type": "linear", "output_tokens": False, "block_type": "default",
}  # fmt: skip
_PIXELS: dict[str, Any] = {
    "size": ..., "mean": ..., "std": ..., "interpolation": ..., "mode": "RGB", "resize_mode": "shortest",
    "fill_color": ...,
}  # fmt: skip


@dataclass(frozen=True)
class Tower:
    """The sizes of one tower's transformer."""

    width: int
    layers: int
    heads: int
    inner: int


@dataclass(frozen=True)
class Plan:
    """The settings read from a model's configuration.

    Attributes:
        ndims: d, the width of the vectors.
        activation: of the inner layers, a name in `graph.ACTIVATIONS`.
        side, patch: of its images, and of the squares that they are cut into, in pixels.
        bilinear: whether images are resized by this filter and not by the bicubic one.
        mean, std: of the three colours, for the normalisation of pixels.
        context, words: maximum tokens of a text, and size of the vocabulary.
    """

    ndims: int
    activation: str
    visual: Tower
    side: int
    patch: int
    bilinear: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    textual: Tower
    context: int
    words: int


def why_not(files: ClipFiles) -> str | None:
    """Return why a model cannot be run with the same vectors as its library; None if it can.

    It reads the configuration and the names of the weights, and imports neither OpenVINO nor the tokenizer.
    """
    try:
        read(files)
    except Unsupported as exc:
        return exc.message
    except EmbedregError:
        return "its files cannot be read"
    return None


def read(files: ClipFiles) -> Plan:
    """Read a model's configuration.

    Raises:
        Unsupported: it is not one that the graph is built for, or has no files for it.
    """
    if files.folder is None:
        raise Unsupported("its configuration is in open_clip, not in a folder")
    if files.weights.suffix != SAFE_SUFFIX:
        raise Unsupported(f"its weights are not in {SAFE_SUFFIX}")
    if not (files.folder / TOKENIZER).is_file():
        raise Unsupported(f"it has no {TOKENIZER}")
    config = config_in(files.folder)
    _check(config, _TOP, CONFIG)
    _check(config["vision_cfg"], _VISION, "vision_cfg")
    _check(config["text_cfg"], _TEXT, "text_cfg")
    pixels = read_object(files.folder / CONFIG).get("preprocess_cfg") or {}
    if not isinstance(pixels, dict):
        raise Unsupported("its preprocess_cfg is not an object")
    _check(pixels, _PIXELS, "preprocess_cfg")
    whole = Settings(config, CONFIG)
    vision, text = Settings(config["vision_cfg"], "vision_cfg"), Settings(config["text_cfg"], "text_cfg")
    found = Plan(
        whole.size("embed_dim"),
        "quick_gelu" if whole.flag("quick_gelu", False) else "gelu",
        _tower(vision, 768, vision.size("width", 768) // vision.size("head_width", 64)),
        vision.size("image_size", 224),
        vision.size("patch_size", 16),
        Settings(pixels).choice("interpolation", ("bicubic", "bilinear", "random"), "bicubic") == "bilinear",
        _colours(pixels, "mean", _CENTRE),
        _colours(pixels, "std", _SPREAD),
        _tower(text, 512, text.size("heads", 8)),
        text.size("context_length", 77),
        text.size("vocab_size", 49408),
    )
    if found.side % found.patch:
        raise Unsupported("its image_size is not a multiple of its patch_size")
    names = Tensors(files.weights)
    for name in ("visual.class_embedding", "visual.proj", "token_embedding.weight", "text_projection"):
        if name not in names:
            raise Unsupported(f"its weights have no {name!r}")
    return found


def _tower(settings: Settings, width: int, heads: int) -> Tower:
    width = settings.size("width", width)
    if not heads or width % heads:
        raise Unsupported(f"width of its {settings.where} is not a multiple of its heads")
    return Tower(width, settings.size("layers", 12), heads, int(width * settings.number("mlp_ratio", 4.0)))


def _check(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Raise Unsupported for a setting that is not known, or that has another value than the one that is."""
    for name, value in values.items():
        if value in (None, False):
            continue
        if known.get(name) is not ... and (name not in known or value != known[name]):
            raise Unsupported(f"{name[:60]!r} of its {where} is set")


def _colours(pixels: Mapping[str, Any], name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    given = pixels.get(name) or default
    listed = [given] * 3 if isinstance(given, int | float) else given
    if not isinstance(listed, list | tuple) or len(listed) != 3:
        raise Unsupported(f"{name} of its preprocess_cfg is not three numbers")
    return tuple(Settings({name: each}, "preprocess_cfg").number(name) for each in listed)
