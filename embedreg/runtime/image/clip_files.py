"""Finds the files of an open_clip model: in the library's configurations, a folder, the hub's cache or the hub.

The result is one file of weights, and a folder with a configuration if the library has none of that name. Only looking
up a pretrained tag imports open_clip and torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from embedreg.errors import ConfigError, ModelNotFoundError, UntrustedError, Words
from embedreg.runtime.models import hub, integrity
from embedreg.runtime.models.folders import broken, read_object
from embedreg.security import grants
from embedreg.security.addresses import local_path
from embedreg.support.imports import attempt_import_or_raise, did_you_mean

__all__ = ["ClipFiles", "library", "model_config", "names_folder", "resolve"]

EXTRA = "open-clip"
COPY = Words(
    "use local weights: pretrained='/path/to/open_clip_model.safetensors' or name='local-dir:/path/to/it'",
    "use local weights: --set pretrained=/path/to/open_clip_model.safetensors or --set name=local-dir:/path/to/it",
)
HUB_PREFIX = "hf-hub:"
FOLDER_PREFIX = "local-dir:"
CONFIG = "open_clip_config.json"
SAFE_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLED_WEIGHTS = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth")
# In the library's order; next to its own files, these are often the same model for another library.
OTHER_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".npy")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
)
# Options that a configuration may pass to a tokenizer: cleaning and truncation of texts, but no file names or code.
TOKENIZER_OPTIONS = frozenset(
    {"add_prefix_space", "additional_special_tokens", "clean", "language", "padding_side", "reduction_mask"}
    | {"strip_sep_token", "use_fast"}
)


@dataclass(frozen=True)
class ClipFiles:
    """An open_clip model whose files are on this machine.

    Attributes:
        weights: the file of its weights.
        folder: the folder with its `open_clip_config.json`; None if the library's own configuration applies.
        origin: where it was found: "local", "hub-cache" or "hub" (just downloaded).
        tag: the library's metadata of pretrained weights, such as their preprocessing; empty for other weights.
    """

    weights: Path
    folder: Path | None
    origin: Literal["local", "hub-cache", "hub"]
    tag: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def identity(self) -> str:
        """Return a digest of everything that determines the vectors, except the library's own configuration."""
        if self.folder is None:
            return f"sha256:{integrity.digest(self.weights)}"
        parts = {"weights": integrity.digest(self.weights), "config": read_object(self.folder / CONFIG)}
        if self.own_tokenizer():
            for pattern in TOKENIZER_FILES:
                parts |= {path.name: integrity.digest(path) for path in sorted(self.folder.glob(pattern))}
        return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"

    def own_tokenizer(self) -> bool:
        """Return whether the folder has a Hugging Face tokenizer that its configuration uses."""
        if self.folder is None or not (_config_in(self.folder).get("text_cfg") or {}).get("hf_tokenizer_name"):
            return False
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")) or any(
            self.folder.glob("*.model")
        )

    def stamp(self) -> int:
        """Return the time of the last change of its files, in nanoseconds, since a model may be trained further."""
        paths = [self.weights, *([] if self.folder is None else [self.folder / CONFIG])]
        return max(path.stat().st_mtime_ns for path in paths)


def library() -> ModuleType:
    """Import open_clip; raise MissingExtraError with the way to install it."""
    return attempt_import_or_raise("open_clip", "open-clip-torch", extra=EXTRA)


def names_folder(name: str) -> Path | None:
    """Return the folder of a `local-dir:` name; None for other names."""
    if not name.startswith(FOLDER_PREFIX):
        return None
    return Path(local_path(name) or name.removeprefix(FOLDER_PREFIX))


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


def _config_in(folder: Path) -> dict[str, Any]:
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


def ndims(files_of: Any, name: str) -> int:
    """Return the width of a model's vectors.

    Args:
        files_of: returns the files of a model that the library has no configuration of.
    Raises:
        ConfigError: its configuration has no width.
    """
    folder = names_folder(name)
    if folder is None and name.startswith(HUB_PREFIX):
        folder = files_of().folder
    config = model_config(name) if folder is None else _config_in(folder)
    width = config.get("embed_dim")
    if not isinstance(width, int):
        raise ConfigError(f"the configuration of {name!r} has no embed_dim.", "use another model")
    return width


def resolve(
    name: str, pretrained: str | None, *, allow_local: bool, safe_only: bool, download: bool = True
) -> ClipFiles:
    """Find a model's files; download them if they are not on this machine.

    Args:
        name: a model of the library, `hf-hub:<owner>/<model>` or `local-dir:<folder>`.
        pretrained: a tag of the library, or a file of weights; ignored for `hf-hub:` and `local-dir:`.
        allow_local: whether local paths are allowed; False for ungranted paths of stored metadata.
        safe_only: whether the weights of an `hf-hub:` repository must be in safetensors.
        download: whether the hub may be queried.
    Raises:
        ModelNotFoundError: it is not available. UntrustedError: a local path is not allowed.
        ConfigError: an invalid name or tag.
    """
    folder = names_folder(name)
    if folder is not None:
        if not allow_local:
            raise _ungranted("name", name)
        return _in_folder(folder)
    if name.startswith(HUB_PREFIX):
        repository = name.removeprefix(HUB_PREFIX)
        if hub.HUB_ID.fullmatch(repository) is None or "/" not in repository:
            raise ModelNotFoundError(f"invalid model name {name!r}.", f"name={HUB_PREFIX + 'owner/model'!r}")
        pickled = () if safe_only else PICKLED_WEIGHTS[:1]
        return _Repository(name, repository, (*SAFE_WEIGHTS, *pickled), whole=True).find(download)
    model_config(name)
    return _weights(name, pretrained, allow_local, download)


def _ungranted(field_name: str, value: str) -> UntrustedError:
    return grants.path_refusal(f"stored metadata sets {field_name} to a local path, which has not been granted.", value)


def _in_folder(folder: Path) -> ClipFiles:
    folder = folder.resolve()
    if not (folder / CONFIG).is_file():
        raise ModelNotFoundError(
            f"{str(folder)!r} is not an open_clip model: it has no {CONFIG}.",
            "put its configuration there, as open_clip writes it for the hub",
        )
    _config_in(folder)
    found = [folder / name for name in (*SAFE_WEIGHTS, *PICKLED_WEIGHTS, *OTHER_WEIGHTS)]
    for suffix in (".safetensors", ".bin", ".pth"):
        found += sorted(folder.glob(f"*{suffix}"))
    weights = next((path for path in found if path.is_file()), None)
    if weights is None:
        raise ModelNotFoundError(f"{str(folder)!r} contains no weights.", f"put {SAFE_WEIGHTS[0]} there")
    return ClipFiles(weights, folder, "local")


def _weights(name: str, pretrained: str | None, allow_local: bool, download: bool) -> ClipFiles:
    """Find the weights of a model that the library has the configuration of."""
    if not pretrained:
        raise ConfigError(
            f"{name!r} without pretrained weights would return random vectors (untrained weights).",
            "pretrained='laion2b_s34b_b79k'",
        )
    plain = name.replace("/", "-")
    tag = library().get_pretrained_cfg(plain, pretrained)
    if tag:
        repository, file = os.path.split(tag.get("hf_hub") or "")
        if not repository:
            raise ModelNotFoundError(
                f"the weights {pretrained!r} of {name!r} are not available on the hub.",
                Words(
                    "download them, and give the path: pretrained='/path/to/weights.pt'",
                    "download them, and give the path: --set pretrained=/path/to/weights.pt",
                ),
            )
        found = _Repository(f"{name} {pretrained}", repository, _alternatives(file), whole=False).find(download)
        return ClipFiles(found.weights, None, found.origin, tag)
    if grants.is_path(pretrained) and not allow_local:
        raise _ungranted("pretrained", pretrained)
    path = Path(local_path(pretrained) or pretrained)
    if allow_local and path.is_file():
        return ClipFiles(path.resolve(), None, "local")
    if grants.is_path(pretrained) or path.suffix in WEIGHTS_SUFFIXES:
        raise ModelNotFoundError(
            f"the weights file {pretrained!r} does not exist.", "set pretrained to a checkpoint's path, or a tag"
        )
    tags = library().list_pretrained_tags_by_model(plain)
    raise ModelNotFoundError(
        f"open_clip has no weights {pretrained!r} for {name!r}.",
        f"{did_you_mean(pretrained, tags)}its tags: {', '.join(sorted(tags)) or 'none'}; or give a checkpoint's path",
    )


def _alternatives(file: str) -> tuple[str, ...]:
    """Return the file names that the library accepts for a file of weights, safetensors first."""
    if not file:
        return (*SAFE_WEIGHTS, PICKLED_WEIGHTS[0])
    stem, suffix = os.path.splitext(file)
    return (f"{stem}.safetensors", file) if suffix in (".bin", ".pth") else (file,)


class _Repository:
    """A search for a model in the hub's cache and on the hub.

    Args:
        what: the model's name in error messages.
        repository: its id on the hub.
        weights: names of files, in order of preference.
        whole: whether its configuration is needed too.
    """

    def __init__(self, what: str, repository: str, weights: tuple[str, ...], *, whole: bool) -> None:
        self.what, self.repository, self.weights, self.whole = what, repository, weights, whole
        self.cache = hub.cache_folder()

    def find(self, download: bool) -> ClipFiles:
        """Return the model from the cache, else download it."""
        found = self._cached("hub-cache")
        if found is not None:
            return found
        reason: str = "the hub was not queried"
        hint: str = hub.or_copy(hub.CONNECT)
        if download:
            refusal = hub.download(self.repository, None, self.cache, self._wanted, extra=EXTRA)
            found = self._cached("hub") if refusal is None else None
            if found is not None:
                return found
            reason, hint = self._refused(refusal)
        raise ModelNotFoundError(f"the model {self.what!r} was not found locally, and {reason}.", hint)

    def _refused(self, refusal: hub.Refusal | None) -> tuple[str, str]:
        """Return the reason why the hub has no usable files, and a hint."""
        if refusal is None:
            reason = f"the hub's {self.repository} has no {self.weights[0]}"
            return reason, "use a model with weights in safetensors: other formats can run code when loaded"
        hint = refusal.hint or "check the name on https://huggingface.co/models; for a private model: hf auth login"
        return refusal.why, hub.or_copy(hint, COPY) if refusal.copy else hint

    def _wanted(self, files: list[str]) -> list[str]:
        chosen = next((name for name in self.weights if name in files), None)
        rest = (CONFIG, *TOKENIZER_FILES) if self.whole else ()
        return [] if chosen is None else [chosen, *rest]

    def _cached(self, origin: Literal["hub-cache", "hub"]) -> ClipFiles | None:
        if self.cache is None:
            return None
        storage = hub.storage_of(self.cache, self.repository)
        commit = hub.commit_of(storage, None)
        snapshot = storage / "snapshots" / commit if commit else None
        if snapshot is None or (self.whole and not (snapshot / CONFIG).is_file()):
            return None
        weights = next((snapshot / name for name in self.weights if (snapshot / name).is_file()), None)
        if weights is None:
            return None
        return ClipFiles(weights, snapshot if self.whole else None, origin)
