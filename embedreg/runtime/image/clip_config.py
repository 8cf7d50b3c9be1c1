"""Reads the configuration of an open_clip model: the library's own, or a folder's, which is not trusted.

Only `library` imports open_clip.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from embedreg.core.fields import MAX_NDIMS
from embedreg.errors import ConfigError, ModelNotFoundError, UntrustedError
from embedreg.runtime.models import hub
from embedreg.runtime.models.folders import broken, read_object
from embedreg.support.imports import attempt_import_or_raise, did_you_mean

__all__ = ["config_in", "library", "model_config", "refuse_larger"]

EXTRA = "open-clip"
HUB_PREFIX = "hf-hub:"
FOLDER_PREFIX = "local-dir:"
CONFIG = "open_clip_config.json"
# Of a configuration's numbers: more would take all memory, or endless time, before the weights are looked at.
LIMITS = {"context_length": 2**13, "image_size": 2**13, "layers": 1000, "mlp_ratio": 64}
MAX_TOKEN = 2**22
# Options that a configuration may pass to a tokenizer: cleaning and truncation of texts, but no file names or code.
TOKENIZER_OPTIONS = frozenset(
    {"add_prefix_space", "additional_special_tokens", "clean", "language", "padding_side", "reduction_mask"}
    | {"strip_sep_token", "use_fast"}
)


def library() -> ModuleType:
    """Import open_clip; raise MissingExtraError with the way to install it."""
    return attempt_import_or_raise("open_clip", "open-clip-torch", extra=EXTRA)


def model_config(name: str) -> dict[str, Any]:
    """Return the library's own configuration of a model, without importing the library.

    Raises:
        ModelNotFoundError: the library has no such model. MissingExtraError: it is not installed.
    """
    plain = name.replace("/", "-")  # as the library reads it
    if "open_clip" in sys.modules:  # the user's code may have registered more models
        known = library().get_model_config(plain)
        if known is not None:
            return dict(known)
    folder = _configs()
    path = folder / f"{plain}.json"
    if Path(plain).name != plain or not path.is_file():
        names = [each.stem for each in folder.glob("*.json")]
        raise ModelNotFoundError(
            f"open_clip has no model {name!r}.",
            f"{did_you_mean(name, names)}name={HUB_PREFIX + 'owner/model'!r} is a model of the hub, "
            f"{FOLDER_PREFIX + '/path'!r} a folder; open_clip.list_models() lists the library's models",
        )
    return read_object(path)


def _configs() -> Path:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        library()  # raises MissingExtraError
        raise ConfigError("the installed open_clip has no files.", "pip install --force-reinstall open-clip-torch")
    return Path(next(iter(spec.submodule_search_locations))) / "model_configs"


def config_in(folder: Path) -> dict[str, Any]:
    """Read the `model_cfg` of a folder, and refuse one that would read other files or run code.

    Raises:
        ConfigError: it is not an open_clip configuration. UntrustedError: it refers to other files or code.
    """
    config = read_object(folder / CONFIG).get("model_cfg")
    if not isinstance(config, dict) or not all(
        isinstance(config.get(part), dict) for part in ("text_cfg", "vision_cfg")
    ):
        raise broken(folder / CONFIG)
    options = config["text_cfg"].get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or not _bounded("", config):
        raise broken(folder / CONFIG)
    odd = [f"tokenizer_kwargs {key!r}" for key in options if key not in TOKENIZER_OPTIONS]
    for part, name in (
        ("text_cfg", "hf_tokenizer_name"),
        ("text_cfg", "hf_model_name"),
        ("vision_cfg", "timm_model_name"),
    ):
        value = config[part].get(name)
        if value and (not isinstance(value, str) or hub.HUB_ID.fullmatch(value) is None):
            odd.append(f"{name} {value!r}")
    if odd:
        raise UntrustedError(
            f"{CONFIG} of the model has settings that are not allowed: {', '.join(sorted(odd))}.",
            "remove them if the model does not need them, or use another model",
        )
    return config


def _bounded(key: str, value: Any) -> bool:
    """Return whether all numbers of a configuration are within the limits of any model."""
    if isinstance(value, dict):
        return all(_bounded(str(name), each) for name, each in value.items())
    if isinstance(value, list):
        return all(_bounded(key, each) for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    limit = MAX_TOKEN if key in ("vocab_size", "eos_id", "pad_id") else LIMITS.get(key, MAX_NDIMS)
    return -limit <= value <= limit  # not so for NaN and infinity


def refuse_larger(folder: Path, config: dict[str, Any], weights: Path) -> None:
    """Raise ConfigError if a configuration describes a larger model than its weights are, before memory is allocated.

    Only towers of the library itself are checked; those of timm and transformers have their size by their name.
    """
    if weights.suffix in (".npz", ".npy"):
        return  # these may be compressed
    text, vision, both = (config.get(part) or {} for part in ("text_cfg", "vision_cfg", "multimodal_cfg"))
    try:
        size = weights.stat().st_size
        parts = [*_tensors(text, "hf_model_name"), *_tensors(vision, "timm_model_name"), *_tensors(both, "")]
    except (AttributeError, OSError, TypeError, ValueError) as exc:
        raise broken(folder / CONFIG) from exc
    if any(numbers > size for numbers in parts):
        raise ConfigError(
            f"the {CONFIG} in {folder.name!r} describes a larger model than the weights {weights.name!r}.",
            "download the model's files again",
        )


def _tensors(config: dict[str, Any], other: str) -> Iterator[int]:
    """Yield lower bounds of the numbers in some tensors of a tower; a number takes two bytes or more."""
    if config.get(other):
        return
    layers, width, side = config.get("layers", 0), int(config.get("width", 0)), config.get("image_size", 0)
    yield width * width * int(sum(layers) if isinstance(layers, list) else layers)
    for name in ("vocab_size", "context_length", "attn_pooler_queries"):
        yield width * int(config.get(name, 0))
    yield width * (int(max(side) if isinstance(side, list) else side) // max(int(config.get("patch_size", 16)), 1))
