"""Finds the files of an open_clip model: in the library's configurations, a folder, the hub's cache or the hub.

The result is one file of weights, and a folder with a configuration if the library has none of that name. Only looking
up a pretrained tag imports open_clip and torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from embedreg.core.fields import MAX_NDIMS
from embedreg.errors import ConfigError, ModelNotFoundError, UntrustedError, Words
from embedreg.runtime.image.clip_config import (
    CONFIG,
    EXTRA,
    FOLDER_PREFIX,
    HUB_PREFIX,
    config_in,
    library,
    model_config,
    refuse_larger,
)
from embedreg.runtime.models import hub, integrity
from embedreg.runtime.models.folders import broken, read_object
from embedreg.security import grants
from embedreg.security.addresses import local_path
from embedreg.support.imports import did_you_mean

__all__ = ["ClipFiles", "names_folder", "ndims", "resolve"]

COPY = Words(
    "use local weights: pretrained='/path/to/open_clip_model.safetensors' or name='local-dir:/path/to/it'",
    "use local weights: --set pretrained=/path/to/open_clip_model.safetensors or --set name=local-dir:/path/to/it",
)
SAFE_SUFFIX = ".safetensors"
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
        try:
            if self.folder is None:
                return f"sha256:{integrity.digest(self.weights)}"
            parts = {"weights": integrity.digest(self.weights), "config": read_object(self.folder / CONFIG)}
            if self.own_tokenizer():
                for pattern in TOKENIZER_FILES:
                    found = sorted(path for path in self.folder.glob(pattern) if path.is_file())
                    parts |= {path.name: integrity.digest(path) for path in found}
        except OSError as exc:
            raise broken(self.weights) from exc
        return f"sha256:{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()}"

    def own_tokenizer(self) -> bool:
        """Return whether the folder has a Hugging Face tokenizer that its configuration uses."""
        if self.folder is None or not (config_in(self.folder).get("text_cfg") or {}).get("hf_tokenizer_name"):
            return False
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")) or any(
            self.folder.glob("*.model")
        )

    def stamp(self) -> int:
        """Return the time of the last change of its files, in nanoseconds, since a model may be trained further."""
        paths = [self.weights, *([] if self.folder is None else [self.folder / CONFIG])]
        try:
            return max(path.stat().st_mtime_ns for path in paths)
        except OSError as exc:
            raise broken(self.weights) from exc


def names_folder(name: str) -> Path | None:
    """Return the folder of a `local-dir:` name; None for other names."""
    if not name.startswith(FOLDER_PREFIX):
        return None
    return Path(local_path(name) or name.removeprefix(FOLDER_PREFIX))


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
    config = model_config(name) if folder is None else config_in(folder)
    width = config.get("embed_dim")
    if isinstance(width, bool) or not isinstance(width, int) or not 0 < width <= MAX_NDIMS:
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
        safe_only: whether weights must be in safetensors, and a folder must not lead outside of it; True for stored
            metadata, even where its path has been granted.
        download: whether the hub may be queried.
    Raises:
        ModelNotFoundError: it is not available. ConfigError: an invalid name, tag or configuration.
        UntrustedError: a local path is not allowed, or under `safe_only` leads to pickles or files elsewhere.
    """
    folder = names_folder(name)
    if folder is not None:
        if not allow_local:
            raise _ungranted("name", name)
        return _in_folder(folder, name, safe_only)
    if name.startswith(HUB_PREFIX):
        repository = name.removeprefix(HUB_PREFIX)
        if hub.HUB_ID.fullmatch(repository) is None or "/" not in repository:
            raise ModelNotFoundError(f"invalid model name {name!r}.", f"name={HUB_PREFIX + 'owner/model'!r}")
        pickled = () if safe_only else PICKLED_WEIGHTS[:1]
        found = _Repository(name, repository, (*SAFE_WEIGHTS, *pickled), whole=True).find(download)
        if safe_only and found.folder is not None:
            integrity.refuse_outside_names(found.folder, name)
            refuse_larger(found.folder, config_in(found.folder), found.weights)
        return found
    model_config(name)
    return _weights(name, pretrained, allow_local, safe_only, download)


def _ungranted(field_name: str, value: str) -> UntrustedError:
    return grants.path_refusal(f"stored metadata sets {field_name} to a local path, which has not been granted.", value)


def _in_folder(folder: Path, name: str, safe_only: bool) -> ClipFiles:
    folder = folder.resolve()
    if safe_only and folder.is_dir():  # before anything is read
        integrity.refuse_links(folder, name)
        integrity.refuse_outside_names(folder, name)
    if not (folder / CONFIG).is_file():
        raise ModelNotFoundError(
            f"{str(folder)!r} is not an open_clip model: it has no {CONFIG}.",
            "put its configuration there, as open_clip writes it for the hub",
        )
    config = config_in(folder)
    found = [folder / file for file in (*SAFE_WEIGHTS, *PICKLED_WEIGHTS, *OTHER_WEIGHTS)]
    for suffix in (".safetensors", ".bin", ".pth"):
        found += sorted(folder.glob(f"*{suffix}"))
    there = [path for path in found if path.is_file()]
    if not there:
        raise ModelNotFoundError(f"{str(folder)!r} contains no weights.", f"put {SAFE_WEIGHTS[0]} there")
    if safe_only:
        there = [path for path in there if path.suffix == SAFE_SUFFIX] or [_refuse_pickles(name)]
        refuse_larger(folder, config, there[0])
    return ClipFiles(there[0], folder, "local")


def _refuse_pickles(name: str) -> NoReturn:
    raise UntrustedError(f"the weights of {name!r} are pickles, which can run code when loaded.", integrity.PICKLES)


def _weights(name: str, pretrained: str | None, allow_local: bool, safe_only: bool, download: bool) -> ClipFiles:
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
        if safe_only and path.suffix != SAFE_SUFFIX:
            _refuse_pickles(pretrained)
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
