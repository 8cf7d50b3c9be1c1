"""Reads a model folder without torch: its modules, the width of its vectors, its prompts.

The layout is that of sentence-transformers: `modules.json` lists a chain of modules, each with its own folder. A folder
without it is a plain Hugging Face model, to which the library adds mean (or last-token) pooling.
"""

from __future__ import annotations

import json
import re
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from embedreg.core.fields import MAX_NDIMS
from embedreg.errors import ConfigError, EmbedregError

__all__ = [
    "ARTIFACT",
    "DENSE",
    "MULTI",
    "PAGES",
    "PYLATE",
    "SPARSE",
    "STANFORD",
    "Module",
    "architectures",
    "broken",
    "ends_normalized",
    "flat",
    "hidden_size",
    "is_plain",
    "modules",
    "ndims",
    "prompts",
    "read_json",
    "read_object",
    "routed",
    "safetensors_header",
    "table_width",
]

DENSE, MULTI, SPARSE = "SentenceTransformer", "MultiVectorEncoder", "SparseEncoder"  # classes of the library
PAGES = "ForRetrieval"  # models of transformers' that embed images of pages, which MULTI reads
PYLATE = "ColBERT"  # the kind of a model that PyLate saved, which is one of MULTI
STANFORD = "HF_ColBERT"  # the architecture of a ColBERT that Stanford's library saved
ARTIFACT = "artifact.metadata"  # the settings of such a model
LIBRARY = "sentence_transformers."
# Classes that the library reads as another of its own.
_SAME_CLASS = {"pylate.models.Dense.Dense": "Dense", "MLMTransformer": "Transformer"}
CONFIG_NAMES = {"CNN": "cnn_config.json", "LSTM": "lstm_config.json", "WordEmbeddings": "wordembedding_config.json"}
_MAX_BYTES = 2**28  # of a JSON file: some contain a vocabulary
_MAX_MODULES = 1000
_HIDDEN_SIZE = ("hidden_size", "d_model", "n_embd", "dim", "emb_dim")  # BERT, T5 and XLNet, GPT-2, DistilBERT, XLM
_POOLING_FLAGS = re.compile(r"pooling_mode_(cls_token|(max|mean|mean_sqrt_len|weightedmean)_tokens|lasttoken)")


@dataclass(frozen=True)
class Module:
    """One module of the chain.

    Attributes:
        kind: the library's class name ("Transformer", "Pooling"), or the full name of another class.
        folder: where its files are.
        shared: whether this is the model's own folder, which also contains the other modules' folders.
    """

    kind: str
    folder: Path
    shared: bool

    @property
    def own(self) -> bool:
        """Whether the class belongs to the library."""
        return "." not in self.kind

    def config(self) -> dict[str, Any]:
        """Return the module's configuration; empty if it has none."""
        return read_object(self.folder / CONFIG_NAMES.get(self.kind, "config.json"))

    def routes(self) -> dict[str, list[Module]]:
        """Return the chains of a Router (formerly Asym) by the name of the route."""
        config = read_object(self.folder / "router_config.json") or self.config()
        types, structure = config.get("types", {}), config.get("structure", {})
        named = isinstance(types, dict) and all(isinstance(kind, str) for kind in types.values())
        listed = isinstance(structure, dict) and all(isinstance(names, list) for names in structure.values())
        if not named or not listed or not {"", "."}.isdisjoint(types):  # each needs its own folder
            raise broken(self.folder / "router_config.json")
        return {
            str(route): [_module(types[name], self.folder, name) for name in names if str(name) == name in types]
            for route, names in structure.items()
        }

    def files(self, *patterns: str) -> list[Path]:
        """Return the module's files that match some patterns, sorted."""
        wanted = patterns if self.shared else tuple(f"**/{pattern}" for pattern in patterns)
        try:
            found = {path for pattern in wanted for path in self.folder.glob(pattern)}
        except (OSError, ValueError) as exc:
            raise broken(self.folder) from exc
        return sorted(path for path in found if path.is_file())


def modules(folder: Path) -> list[Module]:
    """Return the chain of a model folder.

    Raises:
        ConfigError: invalid files: not JSON, or a module outside the folder.
    """
    if is_plain(folder):
        return [Module("Transformer", folder, True), Module("Pooling", folder / "1_Pooling", False)]
    listed = read_json(folder / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(item, dict) and "type" in item for item in listed or [0]):
        raise broken(folder / "modules.json")
    return [_module(str(item["type"]), folder, str(item.get("path", ""))) for item in listed]


def is_plain(folder: Path) -> bool:
    """Return whether the folder is not a sentence-transformers model, so that the library adds its default modules."""
    own = read_object(folder / "config_sentence_transformers.json").get("model_type", DENSE)
    return not (folder / "modules.json").is_file() or own not in (DENSE, MULTI, SPARSE, PYLATE)


def ndims(folder: Path) -> int | None:
    """Return the width of a model's vectors; None if its files do not determine it.

    Raises:
        ConfigError: files that cannot be read.
    """
    try:
        width = _width(modules(folder), None)
    except EmbedregError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as exc:
        raise broken(folder / "modules.json") from exc  # values of unexpected types
    own = None if is_plain(folder) else read_object(folder / "config_sentence_transformers.json").get("truncate_dim")
    widths = [each for each in (width, own) if each is not None]
    if any(isinstance(each, bool) or not isinstance(each, int) or not 0 < each <= MAX_NDIMS for each in widths):
        raise broken(folder / "modules.json")
    return None if width is None else min(widths)


def hidden_size(folder: Path) -> int | None:
    """Return the width of a plain Hugging Face model's hidden states; None if its configuration does not have it.

    Raises:
        ConfigError: files that cannot be read.
    """
    config = read_object(folder / "config.json")
    for part in (config, config.get("text_config") or {}):
        found = next((part[name] for name in _HIDDEN_SIZE if isinstance(part.get(name), int)), None)
        if found is not None and not isinstance(found, bool) and 0 < found <= MAX_NDIMS:
            return int(found)
    return None


def prompts(folder: Path) -> tuple[dict[str, str], str | None]:
    """Return the prompts of a model folder by name, and the name of the default prompt."""
    config = {} if is_plain(folder) else read_object(folder / "config_sentence_transformers.json")
    given, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(given, dict) or not isinstance(default, str | None):
        raise broken(folder / "config_sentence_transformers.json")
    stored = {"query": "", "document": "", **{str(key): str(value or "") for key, value in given.items()}}
    for task, marker in _markers(folder, config).items():
        stored[task] = marker + stored[task].removeprefix(marker)
    return stored, default


def _markers(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return what PyLate's and Stanford's ColBERT models put before queries and documents, as the library reads it."""
    if STANFORD in architectures(folder) and is_plain(folder):
        own = read_object(folder / ARTIFACT)
        return {
            "query": f"{own.get('query_token_id') or '[unused0]'} ",
            "document": f"{own.get('doc_token_id') or '[unused1]'} ",
        }
    return {task: str(config.get(f"{task}_prefix") or "") for task in ("query", "document")}


def architectures(folder: Path) -> list[str]:
    """Return the architectures that a model's configuration names."""
    named = read_object(folder / "config.json").get("architectures")
    return [str(each) for each in named] if isinstance(named, list) else []


def similarity(folder: Path) -> str:
    """Return the similarity function of a model's configuration: "cosine", "dot", "euclidean" or "manhattan"."""
    config = {} if is_plain(folder) else read_object(folder / "config_sentence_transformers.json")
    return str(config.get("similarity_fn_name") or "cosine")


def ends_normalized(folder: Path) -> bool:
    """Return whether the last module normalises the vectors."""
    return modules(folder)[-1].kind == "Normalize"


def routed(folder: Path) -> bool:
    """Return whether queries and documents take different routes through the model."""
    return any(module.kind in ("Router", "Asym") for module in modules(folder))


def flat(chain: list[Module]) -> Iterator[Module]:
    """Yield every module; a Router is replaced by the modules of its routes.

    Raises:
        ConfigError: endless routes, which links between folders can create.
    """
    waiting, seen = list(reversed(chain)), 0
    while waiting:
        module, seen = waiting.pop(), seen + 1
        if seen > _MAX_MODULES:
            raise broken(module.folder)
        if module.kind in ("Router", "Asym"):
            waiting += reversed([each for route in module.routes().values() for each in route])
        else:
            yield module


def _module(kind: str, folder: Path, path: str) -> Module:
    if PureWindowsPath(path).anchor or ".." in PureWindowsPath(path).parts:
        raise ConfigError(f"a module of {folder.name} points outside the model's folder.", "do not use this model")
    kind = kind.rpartition(".")[2] if kind.startswith(LIBRARY) else kind
    return Module(_SAME_CLASS.get(kind, kind), folder / path, path in ("", "."))


# -- widths ------------------------------------------------------------------------------------------------------------


def _width(chain: list[Module], width: int | None) -> int | None:
    for module in chain:
        if module.kind in ("Router", "Asym"):
            routes = list(module.routes().values())
            width = _width(routes[0], width) if routes else None
        elif module.kind in _WIDTHS:
            width = _WIDTHS[module.kind](module, width)
        else:
            return None  # an unknown module: the model has to be loaded
    return width


def _transformer_width(module: Module, _width: int | None) -> int | None:
    config = read_object(module.folder / "config.json")
    own = next((read_object(path) for path in module.files("sentence_*_config.json")), {})
    task = own.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        return config.get({"fill-mask": "vocab_size", "retrieval": "embedding_dim"}.get(task, ""))
    pooled = module.kind == "CLIPModel" or own.get("module_output_name") == "sentence_embedding"
    for part in (config, config.get("text_config") or {}):
        names = ("projection_dim", *_HIDDEN_SIZE) if pooled else _HIDDEN_SIZE
        found = next((part[name] for name in names if isinstance(part.get(name), int)), None)
        if found is not None:
            return int(found)
    return None


def _pooling_width(module: Module, width: int | None) -> int | None:
    config = module.config()
    one = config.get("embedding_dimension", config.get("word_embedding_dimension", width))
    mode = config.get("pooling_mode")
    if mode is not None:
        modes = 1 if isinstance(mode, str) else len(mode)
    else:
        modes = sum(bool(value) for key, value in config.items() if _POOLING_FLAGS.fullmatch(key)) or 1
    return None if one is None else int(one) * modes


def _dense_width(module: Module, width: int | None) -> int | None:
    config = module.config()
    target = config.get("module_output_name") or config.get("module_input_name") or "sentence_embedding"
    return config.get("out_features") if target in ("sentence_embedding", "token_embeddings") else width


def _lstm_width(module: Module, _width: int | None) -> int | None:
    config = module.config()
    hidden = config.get("hidden_dim")
    return None if hidden is None else int(hidden) * (2 if config.get("bidirectional", True) else 1)


def _cnn_width(module: Module, _width: int | None) -> int | None:
    config = module.config()
    channels, kernels = config.get("out_channels"), config.get("kernel_sizes")
    return None if channels is None or not kernels else int(channels) * len(kernels)


def table_width(folder: Path) -> int | None:
    """Return the width of the table of token vectors in a folder of a static model; None if it has none.

    Raises:
        ConfigError: files that cannot be read.
    """
    try:
        width = _table_width(Module("StaticEmbedding", folder, True), None)
    except (LookupError, TypeError, ValueError) as exc:
        raise broken(folder / "model.safetensors") from exc
    if width is not None and not 0 < width <= MAX_NDIMS:
        raise broken(folder / "model.safetensors")
    return width


def _table_width(module: Module, _width: int | None) -> int | None:
    """Read the width of an embedding table from the header of its file."""
    for path in module.files("model.safetensors"):
        header = safetensors_header(path)
        for name in ("embedding.weight", "embeddings", "emb_layer.weight"):
            if name in header:
                return int(header[name]["shape"][1])
    return None


def _vocabulary(module: Module, _width: int | None) -> int | None:
    """Read the number of weights of a table that has one for each word, from the header of its file."""
    for path in module.files("model.safetensors"):
        if "weight" in (header := safetensors_header(path)):
            return int(header["weight"]["shape"][0])
    return None


def _same(_module: Module, width: int | None) -> int | None:
    return width


_WIDTHS: dict[str, Callable[[Module, int | None], int | None]] = {
    "BoW": lambda module, _: len(module.config().get("vocab", ())) or None,
    "CLIPModel": _transformer_width,
    "CNN": _cnn_width,
    "Dense": _dense_width,
    "Dropout": _same,
    "LSTM": _lstm_width,
    "LayerNorm": lambda module, width: module.config().get("dimension", width),
    "HierarchicalTokenPooling": _same,
    "MultiVectorMask": _same,
    "Normalize": _same,
    "Pooling": _pooling_width,
    "SparseAutoEncoder": lambda module, _: module.config().get("hidden_dim"),
    "SparseStaticEmbedding": _vocabulary,
    "SpladePooling": _same,
    "StaticEmbedding": _table_width,
    "Transformer": _transformer_width,
    "WeightedLayerPooling": _same,
    "WordEmbeddings": _table_width,
    "WordWeights": _same,
}


# -- files -------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """Read a JSON file; return an empty object if it does not exist.

    Raises:
        ConfigError: it is not JSON, too large, or not a regular file, since reading a pipe would block.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
            raise broken(path)
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as exc:  # ValueError: not UTF-8, or an invalid file name
        raise broken(path) from exc
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise broken(path) from exc


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file; raise ConfigError unless it contains an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise broken(path)
    return content


def safetensors_header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file: 8 bytes of length, then JSON of names, types and shapes."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 2**26)))
    except (OSError, RecursionError, ValueError, struct.error) as exc:
        raise broken(path) from exc
    return header if isinstance(header, dict) else {}


def broken(path: Path) -> ConfigError:
    """Return the error for an invalid model file."""
    return ConfigError(f"{path.parent.name}/{path.name} is not a valid model file.", "download the model's files again")
