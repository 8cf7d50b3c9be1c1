"""Whether a model folder is whole, whether it is safe to load, and which model it is: a digest of its files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from embedreg.errors import Grant, ModelNotFoundError, UntrustedError, Words
from embedreg.runtime.models import hub
from embedreg.runtime.models.folders import CONFIG_NAMES, Module, broken, flat, modules, read_json, read_object
from embedreg.security import grants
from embedreg.support.forks import ForkSafeLock

__all__ = ["check_safe", "digest", "missing", "refuse_links", "stamp", "weights_identity"]

# Written by whoever saved the files last; none of them changes a vector.
_INCIDENTAL = frozenset(
    {
        "__version__",
        "_name_or_path",
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_file",
        "transformers_version",
    }
)
PICKLED = ("pytorch_model.bin", "*.bin", "*.ckpt", "*.pickle", "*.pkl", "*.pt", "*.pth")
_CONFIGS = (
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "router_config.json",
    "sentence_*_config.json",
    "tokenizer_config.json",
    *CONFIG_NAMES.values(),
)
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "bpe.codes")

_SHARD = re.compile(r"[\w][\w.-]*\.safetensors")
# Words that a Transformer's configuration may pass on to the transformers library; and options that bring code along.
_WORDS = frozenset({"attn_implementation", "dtype", "padding_side", "torch_dtype", "truncation_side"})
_RUNNING = frozenset({"trust_remote_code", "use_kernels"})

_digests: LRUCache[tuple[str | int, ...], str] = LRUCache(maxsize=4096)
_lock = ForkSafeLock()


def missing(folder: Path, known_absent: Callable[[str], bool], *, code: bool = False) -> list[str]:
    """Name what a folder of the hub's cache lacks to be the whole model.

    Without `modules.json` the library would fall back to mean pooling, without its other files to another length or no
    prompts: other vectors, and no word of it. So their absence must be known, not assumed.

    Args:
        known_absent: says whether the model is known not to have a file.
        code: whether the Python files that it names are wanted too.
    """
    own = os.path.isfile(folder / "modules.json")
    if not own and not known_absent("modules.json"):
        return ["modules.json"]
    wanted = [folder / "config_sentence_transformers.json"] if own else []
    for module in flat(modules(folder)):
        if module.kind == "Transformer":
            wanted.append(module.folder / "config.json")
            if own and not module.files("sentence_*_config.json"):
                wanted.append(module.folder / "sentence_bert_config.json")
            if not module.files(*_TOKENIZERS):
                wanted.append(module.folder / "tokenizer.json")
        elif module.kind in ("Pooling", "Dense") and own:
            wanted.append(module.folder / "config.json")
        if code:
            wanted += [folder / file for file in _code_files(module)]
        if _weighted(module) and not _has_safe_weights(module):
            wanted.append(module.folder / "model.safetensors")
    # `Path.is_file` raises where a name is too long for any file
    names = [path.relative_to(folder).as_posix() for path in wanted if not os.path.isfile(path)]
    return [name for name in names if name.endswith("model.safetensors") or not known_absent(name)]


def _code_files(module: Module) -> list[str]:
    """Name the Python files that a module's class, or its configuration's `auto_map`, is to come from."""
    classes = [] if module.own else [module.kind]
    mapped = read_object(module.folder / "config.json").get("auto_map") or {}
    for value in mapped.values() if isinstance(mapped, dict) else ():
        classes += [str(item) for item in value if item] if isinstance(value, list) else [str(value or "")]
    # "owner/name--file.Class" lies in another repository
    return [f"{name.partition('.')[0]}.py" for name in classes if "." in name and "--" not in name]


def check_safe(folder: Path, name: str, *, code: bool, pickles: bool, revision: str | None = None) -> None:
    """Refuse a folder that would run, or read, anything but its own data.

    Args:
        name: what the model is called, for the message.
        code: whether Python code that comes with the model may run.
        pickles: whether weights in pickle form, and files that point to another model, are allowed.
        revision: which one was asked for, since a grant of code names it.
    Raises:
        UntrustedError: it would. ConfigError: files that no library wrote so.
    """
    if not pickles:
        refuse_links(folder, name)
    for module in flat(modules(folder)):
        if not module.own and not code:
            needed = Grant(remote_code=(name if revision is None else f"{name}@{revision}",))
            raise UntrustedError(
                f"the model {name!r} needs the class {module.kind!r}, which is code of its own.",
                "if you have read that code and trust it: trust_remote_code=True, or for a stored declaration "
                f"{needed}",
                needed,
            )
        if pickles or not module.own:
            continue
        pickled = module.files(*PICKLED if _weighted(module) else PICKLED[:1])
        if pickled and not _has_safe_weights(module):
            raise UntrustedError(
                f"the weights of {name!r} are pickles, which can run code as they load.",
                Words(
                    "use a model with safetensors weights, or a folder that your own code names: "
                    "name='/path/to/folder'",
                    "use a model with safetensors weights, or a folder that you name: --set name=/path/to/folder",
                ),
            )
        own = [read_object(path) for path in module.files("sentence_*_config.json")]
        if os.path.isfile(module.folder / "adapter_config.json") or any(
            "tokenizer_name_or_path" in item for item in own
        ):
            raise UntrustedError(
                f"the model {name!r} is made of parts of another model.",
                Words(
                    "save it whole into a folder, and name that: name='/path/to/folder'",
                    "save it whole into a folder, and name that: --set name=/path/to/folder",
                ),
            )
        if odd := sorted(option for item in own for option in _asked(item)):
            raise UntrustedError(
                f"the model {name!r} asks the transformers library for more than its own files: {', '.join(odd)}.",
                "use another model, or a folder that your own code names: name='/path/to/folder'",
            )


def refuse_links(folder: Path, name: str) -> None:
    """Refuse links out of a model's folder: granting the folder grants no file elsewhere. The hub's own blobs count.

    Raises:
        UntrustedError: there is one.
    """
    root = folder.resolve()
    for path in (each for pattern in ("*", "*/*", "*/*/*", "*/*/*/*") for each in root.glob(pattern)):
        if not path.is_symlink():
            continue
        target = Path(os.path.realpath(path))
        if not (target.is_relative_to(root) or _is_blob(target) or grants.path_granted(str(target))):
            raise UntrustedError(
                f"{path.relative_to(root).as_posix()!r} of the model {name!r} is a link out of the model's folder.",
                f"put the file itself there, or if you trust it: embedreg.trust(paths=[{str(target)!r}])",
            )


def _asked(config: dict[str, Any]) -> Iterator[str]:
    """Name what a Transformer's configuration passes on that could name files, code or another model.

    Numbers, flags and a few words are let through.
    """
    for part in ("model", "tokenizer", "processor", "config"):
        for key in (f"{part}_args", f"{part}_kwargs"):
            options = config.get(key) or {}
            if not isinstance(options, dict):
                yield key
                continue
            for option, value in options.items():
                plain = value is None or isinstance(value, bool | int | float)
                word = option in _WORDS and isinstance(value, str) and "/" not in value
                if not (plain or word) or (option in _RUNNING and value):
                    yield f"{option!r}"


def stamp(folder: Path) -> int:
    """Return when a model's files last changed, in nanoseconds: a model that was trained on is another one."""
    paths = [path for module in flat(modules(folder)) for path in module.files("*.safetensors", "*.bin", "*.json")]
    try:
        return max((path.stat().st_mtime_ns for path in paths), default=0)
    except OSError as exc:
        raise broken(folder) from exc


def _weighted(module: Module) -> bool:
    return module.kind in (
        "Transformer",
        "CLIPModel",
        "Dense",
        "StaticEmbedding",
        "LayerNorm",
        "WordEmbeddings",
        "CNN",
        "LSTM",
    )


def _has_safe_weights(module: Module) -> bool:
    """Return whether the library finds weights in safetensors, by the names that it looks for; else it reads pickles.

    Raises:
        ConfigError: an index that names anything but safetensors files beside it.
    """
    index = module.folder / "model.safetensors.index.json"
    if not os.path.isfile(index):
        return os.path.isfile(module.folder / "model.safetensors")
    shards = read_object(index).get("weight_map") or {}
    if not isinstance(shards, dict):
        raise broken(index)
    for name in shards.values():
        if not isinstance(name, str) or _SHARD.fullmatch(name) is None:
            raise broken(index)
    return bool(shards) and all(os.path.isfile(module.folder / name) for name in set(shards.values()))


def weights_identity(folder: Path) -> str:
    """Return a digest of every file that determines a model's vectors; moving or renaming the folder changes nothing.

    Raises:
        ModelNotFoundError: there are no weights. ConfigError: files that cannot be read.
    """
    parts: dict[str, str] = {}
    chain = modules(folder)
    weights = 0
    for module in [Module("", folder, True), *chain, *flat(chain)]:
        safe = module.files("*.safetensors")
        heavy = safe or module.files("*.bin")
        weights += len(heavy)
        tokenizers = module.files("tokenizer.json") or module.files(*_TOKENIZERS)
        for path in {*heavy, *tokenizers}:
            try:
                parts[path.relative_to(folder).as_posix()] = digest(path)
            except OSError as exc:
                raise broken(path) from exc
        for path in module.files(*_CONFIGS):
            parts[path.relative_to(folder).as_posix()] = _json_digest(path)
    if not weights:
        raise ModelNotFoundError(f"{folder} holds no weights.", "name a folder that holds a whole model")
    content = "".join(f"{name}\0{digest}\n" for name, digest in sorted(parts.items()))
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def digest(path: Path) -> str:
    """Return a file's sha256: by the name of its blob within the hub's own cache, else computed once.

    Anybody can lay out a folder as the hub's cache is: a name proves nothing elsewhere.
    """
    target = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", target.name) and _is_blob(target):
        return target.name
    stat = target.stat()
    key = (str(target), stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
    with _lock:
        known = _digests.get(key)
    if known is None:
        with target.open("rb") as file:
            known = hashlib.file_digest(file, "sha256").hexdigest()
        with _lock:
            _digests[key] = known
    return known


def _is_blob(target: Path) -> bool:
    """Return whether a real path is that of a blob in the hub's cache of this user."""
    repository = target.parent.parent
    if target.parent.name != "blobs" or not repository.name.startswith("models--"):
        return False
    caches = {hub.cache_folder(), hub.cache_folder("SENTENCE_TRANSFORMERS_HOME")} - {None}
    return any(cache.resolve() == repository.parent for cache in caches if cache is not None)


def _json_digest(path: Path) -> str:
    content = read_json(path)
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key not in _INCIDENTAL}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
