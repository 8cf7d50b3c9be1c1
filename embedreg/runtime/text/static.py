"""Static models: a vector for each token, and the mean of them for a text; numpy and tokenizers, no torch.

Two libraries save such models. They read a text a little differently, and a model is read as the library that saved it
reads it: model2vec leaves out unknown tokens and stops after `max_length` of them, sentence-transformers
(`StaticEmbedding`) does neither. Without a token the vector is zeros.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.errors import CallError, ConfigError
from embedreg.runtime.models.folders import Module, is_plain, modules, read_object
from embedreg.runtime.text.light.static import means
from embedreg.support.forks import ForkSafeLock
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import numpy as np

__all__ = ["StaticFolder", "StaticTable", "find", "load"]

EXTRA = "static"
MODEL2VEC_LIMIT = 512  # tokens, model2vec's default
_TEXTS = 1024  # texts per call of the tokenizer, which runs on all cores


@dataclass(frozen=True)
class StaticFolder:
    """The parts of a model's folder.

    Attributes:
        folder: where the tokenizer and the table are.
        skips_unknown: whether unknown tokens are left out.
        limit: the number of tokens after which a text is cut; None for no limit.
        normalize: whether the model scales its vectors to unit length.
    """

    folder: Path
    skips_unknown: bool
    limit: int | None
    normalize: bool


def find(path: Path, name: str) -> StaticFolder:
    """Return the parts of a model folder of either library, without reading its weights.

    Args:
        name: the model's name in messages.
    Raises:
        ConfigError: it is not a static model.
    """
    config = read_object(path / "config.json")
    own = config.get("model_type") == "model2vec" or "StaticModel" in (config.get("architectures") or ())
    if own or (is_plain(path) and not config.get("model_type")):
        limit = config.get("max_length", MODEL2VEC_LIMIT)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ConfigError(f"the model {name!r} has an invalid max_length.", "download the model's files again")
        return StaticFolder(path, True, limit, bool(config.get("normalize", False)))
    chain = modules(path)
    kinds = [module.kind for module in chain]
    if kinds not in (["StaticEmbedding"], ["StaticEmbedding", "Normalize"]):
        raise ConfigError(
            f"the model {name!r} is not a static model: it has the modules {', '.join(kinds)}.",
            "embedreg.get('sentence-transformers').create(name=...)",
        )
    first: Module = chain[0]
    return StaticFolder(first.folder, False, None, len(kinds) == 2)


class StaticTable:
    """A static model in memory.

    Attributes:
        vectors: (m, d) numbers of any type.
        nbytes: their bytes.
    """

    def __init__(self, parts: StaticFolder, tokenizer: Any, tensors: dict[str, np.ndarray]) -> None:
        import numpy as np

        self.parts, self.tokenizer = parts, tokenizer
        self.vectors = tensors["embeddings"] if "embeddings" in tensors else tensors["embedding.weight"]
        self.mapping, self.weights = tensors.get("mapping"), tensors.get("weights")
        self.nbytes = sum(each.nbytes for each in tensors.values())
        rows = len(self.vectors) if self.mapping is None else len(self.mapping)
        vocabulary = tokenizer.get_vocab()
        invalid = self.vectors.ndim != 2 or max(vocabulary.values(), default=0) >= rows
        if self.mapping is not None and not invalid:
            invalid = self.mapping.ndim != 1 or bool(
                (self.mapping < 0).any() or (self.mapping >= len(self.vectors)).any()
            )
        if self.weights is not None and not invalid:
            invalid = self.weights.shape != (rows,)
        if invalid:
            raise ConfigError("the tokens and the vectors of a static model do not match.", "download its files again")
        tokenizer.no_padding()
        tokenizer.no_truncation()  # `_tokens` cuts the ids, which is faster
        self.unknown = _unknown(tokenizer) if parts.skips_unknown else None
        # model2vec first cuts a text at this number of characters
        lengths = [len(token) for token in vocabulary]
        self.characters = None if parts.limit is None else parts.limit * int(np.median(lengths or [1]))
        self._lock = ForkSafeLock()  # a tokenizer that two threads use may raise "Already borrowed"

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text before it is cut."""
        with self._lock:
            return len(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def embed(self, texts: list[str], normalize: bool, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Embed texts: (n, width) float32, and (n,) bool: which were cut.

        Args:
            normalize: whether vectors are scaled to unit length, after they are cut to `width`.
        """
        import numpy as np

        made, cut = np.zeros((len(texts), width), np.float32), np.zeros(len(texts), bool)
        for start in range(0, len(texts), _TEXTS):
            ids, counts, cut[start : start + _TEXTS] = self._tokens(texts[start : start + _TEXTS])
            made[start : start + _TEXTS] = means(ids, counts, self._gathered, self.vectors.shape[1])[:, :width]
        if normalize:
            made /= np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12)
        return made, cut

    def _tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokenize n texts: all ids, (n,) tokens of each text, and (n,) bool: which were cut."""
        import numpy as np

        short = texts if self.characters is None else [text[: self.characters] for text in texts]
        with self._lock:  # without the places of tokens in their text, which cost more than the tokens
            encodings = self.tokenizer.encode_batch_fast(short, add_special_tokens=False)
        rows = [each.ids for each in encodings]
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        cut = np.fromiter(map(len, short), np.int64, len(texts)) < np.fromiter(map(len, texts), np.int64, len(texts))
        if (limit := self.parts.limit) is not None and (over := counts > limit).any():
            rows, counts, cut = [row[:limit] for row in rows], np.minimum(counts, limit), cut | over
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(counts.sum()))
        if self.unknown is not None:
            known = ids != self.unknown
            counts = np.bincount(np.repeat(np.arange(len(texts)), counts)[known], minlength=len(texts))
            ids = ids[known]
        return ids, counts, cut

    def _gathered(self, ids: np.ndarray) -> np.ndarray:
        """Return the vectors of tokens: (t, d) float32."""
        import numpy as np

        made: np.ndarray = self.vectors[ids if self.mapping is None else self.mapping[ids]].astype(
            np.float32, copy=False
        )
        if self.weights is not None:
            made = made * self.weights[ids].astype(np.float32, copy=False)[:, None]
        return made


def load(parts: StaticFolder, name: str) -> StaticTable:
    """Load a model's table and tokenizer.

    Raises:
        ConfigError: its parts do not match. CallError: they cannot be read. MissingExtraError: no tokenizers library.
    """
    numpy = attempt_import_or_raise("safetensors.numpy", "safetensors", extra=EXTRA)
    tokenizers = attempt_import_or_raise("tokenizers", extra=EXTRA)
    try:
        tensors = numpy.load_file(str(parts.folder / "model.safetensors"))
        tokenizer = tokenizers.Tokenizer.from_file(str(parts.folder / "tokenizer.json"))
        return StaticTable(parts, tokenizer, tensors)
    except ConfigError:
        raise
    except Exception as exc:
        raise CallError(
            f"the model {name!r} cannot be loaded: {type(exc).__name__}: {exc}", "download the model's files again"
        ) from exc


def _unknown(tokenizer: Any) -> int | None:
    """Return the id of the unknown token; None if the tokenizer has none."""
    model = json.loads(tokenizer.to_str())["model"]
    if "unk_id" in model:  # a unigram model
        return None if model["unk_id"] is None else int(model["unk_id"])
    token = model.get("unk_token")
    found: int | None = None if token is None else tokenizer.token_to_id(token)
    return found
