"""Checks of a model folder: whether it is complete and safe to load, and the digest that identifies the model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from embedreg.errors import ConfigError, Grant, ModelNotFoundError, UntrustedError, Words
from embedreg.runtime.models import hub
from embedreg.runtime.models.folders import (
    ARTIFACT,
    CONFIG_NAMES,
    Module,
    broken,
    flat,
    modules,
    read_json,
    read_object,
)
from embedreg.security import grants
from embedreg.support.forks import ForkSafeLock

__all__ = [
    "PICKLES",
    "check_safe",
    "digest",
    "missing",
    "refuse_links",
    "refuse_outside_names",
    "stamp",
    "weights_identity",
]

# They depend on who saved the files last; none of them changes a vector.
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
    ARTIFACT,
    *CONFIG_NAMES.values(),
)
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "bpe.codes")

# Files whose values the transformers library may take for names of files, and the keys that it does so with.
_NAMING = frozenset(
    {
        "config.json",
        "generation_config.json",
        "open_clip_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
    }
)
_FILE_KEY = re.compile(r"(?:.*_)?(?:backbone|dir|directory|files?|folder|paths?|spm)|.*name_or_path|hf_.*_name")
_MAX_PATH = 4096  # characters; a longer text is not a path
_MAX_ENTRIES = 100_000  # of a model's folder, which are all looked at

_WITH_WEIGHTS = re.compile(
    "Transformer|CLIPModel|Dense|LayerNorm|WordEmbeddings|CNN|LSTM|StaticEmbedding|SparseAutoEncoder|SparseStaticEmbedding"
)
_SHARD = re.compile(r"[\w][\w.-]*\.safetensors")
# Options that may have a string value when a Transformer's configuration passes them to the transformers library.
_STRING_OPTIONS = frozenset({"attn_implementation", "dtype", "padding_side", "torch_dtype", "truncation_side"})
_CODE_OPTIONS = frozenset({"trust_remote_code", "use_kernels"})  # they load code

_digests: LRUCache[tuple[str | int, ...], str] = LRUCache(maxsize=4096)
_lock = ForkSafeLock()

# The hint of a refusal of pickled weights.
PICKLES = Words(
    "use a model with safetensors weights, or a folder that your own code names: name='/path/to/folder'",
    "use a model with safetensors weights, or a folder that you name: --set name=/path/to/folder",
)


def missing(
    folder: Path,
    known_absent: Callable[[str], bool],
    *,
    code: bool = False,
    beside: Callable[[Path], Sequence[str]] = lambda _: (),
) -> list[str]:
    """Return the files that a folder of the hub's cache lacks to be the complete model.

    Without `modules.json` the library would silently fall back to mean pooling, and without the other files to another
    maximum length or no prompts, which changes the vectors. So a file may be absent only if the model does not have it.

    Args:
        known_absent: returns whether the model is known not to have a file.
        code: whether the Python files that it refers to are needed too.
        beside: returns the names of further files that are needed.
    """
    own = os.path.isfile(folder / "modules.json")
    if not own and not known_absent("modules.json"):
        return ["modules.json"]
    wanted = [folder / "config_sentence_transformers.json"] if own else []
    wanted += [folder / each for each in beside(folder)]
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
        if _has_weights(module) and not _has_safe_weights(module):
            wanted.append(module.folder / "model.safetensors")
    # `Path.is_file` raises for a name that is too long
    names = [path.relative_to(folder).as_posix() for path in wanted if not os.path.isfile(path)]
    return [name for name in names if name.endswith("model.safetensors") or not known_absent(name)]


def _code_files(module: Module) -> list[str]:
    """Return the Python files of a module's class, and of its configuration's `auto_map`."""
    classes = [] if module.own else [module.kind]
    mapped = read_object(module.folder / "config.json").get("auto_map") or {}
    for value in mapped.values() if isinstance(mapped, dict) else ():
        classes += [str(item) for item in value if item] if isinstance(value, list) else [str(value or "")]
    # "owner/name--file.Class" is in another repository
    return [f"{name.partition('.')[0]}.py" for name in classes if "." in name and "--" not in name]


def check_safe(folder: Path, name: str, *, code: bool, pickles: bool, revision: str | None = None) -> None:
    """Raise UntrustedError for a folder that would run code, or read files outside of it.

    Args:
        name: the model's name in messages.
        code: whether Python code that comes with the model may run.
        pickles: whether weights in pickle form, and files that refer to another model, are allowed.
        revision: the requested revision, which a grant of code includes.
    Raises:
        UntrustedError: it would run code or read other files. ConfigError: invalid files.
    """
    if not pickles:
        refuse_links(folder, name)
        refuse_outside_names(folder, name)
    for module in flat(modules(folder)):
        if not module.own and not code:
            needed = Grant(remote_code=(name if revision is None else f"{name}@{revision}",))
            raise UntrustedError(
                f"the model {name!r} needs the class {module.kind!r}, which is code from its repository.",
                "if you have read that code and trust it: trust_remote_code=True, or for a stored declaration "
                f"{needed}",
                needed,
            )
        if pickles or not module.own:
            continue
        pickled = module.files(*PICKLED if _has_weights(module) else PICKLED[:1])
        if pickled and not _has_safe_weights(module):
            raise UntrustedError(
                f"the weights of {name!r} are pickles, which can run code when loaded.",
                PICKLES,
            )
        own = [read_object(path) for path in module.files("sentence_*_config.json")]
        if os.path.isfile(module.folder / "adapter_config.json") or any(
            "tokenizer_name_or_path" in item for item in own
        ):
            raise UntrustedError(
                f"the model {name!r} refers to files of another model.",
                Words(
                    "save the complete model to a folder, and give its path: name='/path/to/folder'",
                    "save the complete model to a folder, and give its path: --set name=/path/to/folder",
                ),
            )
        if odd := sorted(option for item in own for option in _unsafe_options(item)):
            raise UntrustedError(
                f"the model {name!r} has options for the transformers library that are not allowed: {', '.join(odd)}.",
                "use another model, or a folder that your own code names: name='/path/to/folder'",
            )


def refuse_links(folder: Path, name: str) -> None:
    """Raise UntrustedError for a link out of a model's folder, since granting the folder grants no other file.

    Links to blobs of the hub's cache are allowed.

    Raises:
        UntrustedError: there is such a link.
    """
    root = folder.resolve()
    for path in _entries(root, name):
        if not path.is_symlink():
            continue
        target = Path(os.path.realpath(path))
        if not (target.is_relative_to(root) or _is_blob(target) or grants.path_granted(str(target))):
            raise UntrustedError(
                f"{path.relative_to(root).as_posix()!r} of the model {name!r} is a link out of the model's folder.",
                f"replace it by the file, or if you trust it: embedreg.trust(paths=[{str(target)!r}])",
            )


def refuse_outside_names(folder: Path, name: str) -> None:
    """Raise UntrustedError if a configuration of a model's folder names a file on this machine outside of the folder.

    The transformers library may open the `vocab_file` of a `tokenizer_config.json`, for example. A path of another
    machine does no harm, and is common. A hub's name is refused if the working directory has a folder of that name,
    since the library would read it.

    Raises:
        UntrustedError: there is such a name. ConfigError: invalid files.
    """
    root = folder.resolve()
    for path in _entries(root, name):
        if path.name not in _NAMING or not path.is_file():
            continue
        for key, value in _texts(read_json(path)):
            if ("/" in value or os.sep in value or _FILE_KEY.fullmatch(key)) and _is_outside(value, path.parent, root):
                raise UntrustedError(
                    f"{path.relative_to(root).as_posix()!r} of the model {name!r} names a file outside of the model's "
                    f"folder in {key!r}.",
                    "remove the entry if the model does not need it, or use another model",
                )


def _entries(root: Path, name: str) -> Iterator[Path]:
    """Yield every file, folder and link below a model's folder, those next to its root first; links are not followed.

    Raises:
        ConfigError: too many, so that this is not a model's folder.
    """
    waiting, seen = [root], 0
    for folder in waiting:
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as exc:
            raise broken(folder) from exc
        seen += len(found)
        if seen > _MAX_ENTRIES:
            raise ConfigError(
                f"the folder of the model {name!r} contains over {_MAX_ENTRIES:,} files.",
                "give a folder that contains the model alone",
            )
        for entry in found:
            yield Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))


def _texts(content: Any) -> Iterator[tuple[str, str]]:
    """Yield the texts of a JSON value, each with the closest key."""
    waiting = [("", content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            waiting += [(name, each) for name, each in value.items() if name not in _INCIDENTAL - {"tokenizer_file"}]
        elif isinstance(value, list):
            waiting += [(key, each) for each in value]


def _is_outside(value: str, folder: Path, root: Path) -> bool:
    """Return whether a value names something on this machine, from a folder or from here, that is not below a root."""
    if not value or len(value) > _MAX_PATH or "\0" in value:
        return False
    try:
        found = [os.path.realpath(path) for path in (folder / value, Path(value)) if os.path.lexists(path)]
    except ValueError:  # half a surrogate pair
        return False
    return not all(Path(path).is_relative_to(root) or _is_blob(Path(path)) for path in found)


def _unsafe_options(config: dict[str, Any]) -> Iterator[str]:
    """Yield the options of a Transformer's configuration that could refer to files, code or another model.

    Numbers, flags and a few string options are allowed.
    """
    for part in ("model", "tokenizer", "processor", "config"):
        for key in (f"{part}_args", f"{part}_kwargs"):
            options = config.get(key) or {}
            if not isinstance(options, dict):
                yield key
                continue
            for option, value in options.items():
                plain = value is None or isinstance(value, bool | int | float)
                name = option in _STRING_OPTIONS and isinstance(value, str) and "/" not in value
                if not (plain or name) or (option in _CODE_OPTIONS and value):
                    yield f"{option!r}"


def stamp(folder: Path) -> int:
    """Return the time of the last change of a model's files, in nanoseconds, since a model may be trained further."""
    paths = [path for module in flat(modules(folder)) for path in module.files("*.safetensors", "*.bin", "*.json")]
    try:
        return max((path.stat().st_mtime_ns for path in paths), default=0)
    except OSError as exc:
        raise broken(folder) from exc


def _has_weights(module: Module) -> bool:
    return _WITH_WEIGHTS.fullmatch(module.kind) is not None


def _has_safe_weights(module: Module) -> bool:
    """Return whether the library finds weights in safetensors under the names that it expects; else it reads pickles.

    Raises:
        ConfigError: an index that lists anything but safetensors files in the same folder.
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
    """Return a digest of every file that determines a model's vectors, independent of the folder's path.

    Raises:
        ModelNotFoundError: there are no weights. ConfigError: files cannot be read.
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
        raise ModelNotFoundError(f"{folder} contains no weights.", "use a folder that contains a complete model")
    content = "".join(f"{name}\0{digest}\n" for name, digest in sorted(parts.items()))
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def digest(path: Path) -> str:
    """Return a file's sha256: the name of its blob if it is in the hub's cache, else computed once.

    Outside the hub's cache the name is not trusted, since any folder can have the same layout.
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
    """Return whether a resolved path is a blob in this user's hub cache."""
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
