"""`LightModel`: a sentence-transformers model read from its folder; and the decision whether it can be run.

The functions from `load` on are those of `runtime.text.library`, for this back end.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedreg.errors import CallError, EmbedregError
from embedreg.runtime.models import folders, integrity
from embedreg.runtime.models.folders import Module
from embedreg.runtime.models.weights import PROMPT_NOT_POOLED, ResolvedModel
from embedreg.runtime.text.light import architectures, heads, static, tokenizer
from embedreg.runtime.text.light.architectures import Architecture
from embedreg.runtime.text.light.graph import Graph
from embedreg.runtime.text.light.pooling import Pooling
from embedreg.runtime.text.light.settings import Settings, Unsupported
from embedreg.runtime.text.light.tensors import Tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["LightModel", "count_tokens", "flops_per_token", "load", "max_tokens", "ndims", "why_not"]

EXTRA = "light"
TORCH = "backend='torch' (pip install 'embedreg[sentence-transformers]')"

_FORWARD = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
_NO_PRODUCT = ("embed", "shared", "relative_attention_bias", "pooler", "decoder")  # in the names of other matrices
_KNOWN = frozenset({"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"})


@dataclass(frozen=True)
class _Plan:
    """The contents of a model folder, except for its weights.

    Attributes:
        folder: of the first module.
        transformer: None for a static model.
        pooling: after the transformer.
        after: the modules after both.
        limit: maximum number of tokens of a text.
        lower: whether texts are put into lower case.
        width: of the vectors that `after` begins with; 0 for a static model, whose table has it.
    """

    folder: Path
    transformer: Architecture | None
    pooling: Pooling
    after: tuple[Module, ...]
    limit: int | None
    lower: bool
    width: int


def why_not(folder: Path, *, plain: bool = False) -> str | None:
    """Return why the model in a folder cannot be run with the same vectors as its library; None if it can.

    It reads the configurations, not the weights, and imports neither OpenVINO nor the tokenizer.
    """
    try:
        plan = _plan(folder, plain)
        width = plan.width or int(static.read(_modules(folder)[0]).shape[1])
        for module in plan.after:
            _, width = heads.read(module, width)
        if plan.transformer is not None:
            _prefix(Tensors(plan.folder / "model.safetensors"), plan.transformer)
    except Unsupported as exc:
        return exc.message
    except EmbedregError:
        return "its files cannot be read"
    return None


class LightModel:
    """A model in memory: its tokenizer, its mapped weights, and the modules after its pooling.

    Args:
        folder: of the model.
        include_prompt: False if the prompt's tokens are not pooled, regardless of the configuration.
        plain: whether the modules of the folder are ignored: its transformer, and the mean over all tokens.
    Raises:
        Unsupported: it cannot be run.
    """

    def __init__(self, folder: Path, *, include_prompt: bool = True, plain: bool = False) -> None:
        plan = _plan(folder, plain)
        self.folder, self.limit = plan.folder, plan.limit
        self.pooling = plan.pooling if include_prompt else replace(plan.pooling, include_prompt=False)
        self.architecture = plan.transformer
        static_one = plan.transformer is None
        self.tokenizer = tokenizer.load(plan.folder, limit=plan.limit, lower=plan.lower, plain=static_one)
        self.table = static.read(_modules(folder)[0]) if static_one else None
        self.heads = []
        width = plan.width if self.table is None else int(self.table.shape[1])
        for module in plan.after:
            head, width = heads.read(module, width)
            self.heads.append(head)
        self.width = width
        own = (
            {}
            if plain or folders.is_plain(folder)
            else folders.read_object(folder / "config_sentence_transformers.json")
        )
        self.truncate_dim = None if own.get("truncate_dim") is None else Settings(own).size("truncate_dim")
        self.tensors = None if static_one else Tensors(plan.folder / "model.safetensors")
        weights = plan.folder / "model.safetensors"
        self.nbytes = os.path.getsize(weights)

    @property
    def special(self) -> bool:
        """Return whether special tokens are added to a text."""
        return self.table is None

    @property
    def excludes_prompt(self) -> bool:
        """Return whether the graph takes a second mask, which leaves the prompt out of the pooling."""
        return self.table is None and not self.pooling.include_prompt

    def set_pooling_include_prompt(self, include_prompt: bool) -> None:
        """Set whether the prompt's tokens are pooled; the library's method of this name. Call it before compiling."""
        self.pooling = replace(self.pooling, include_prompt=include_prompt)

    def build(self, openvino: Any, op: Any) -> tuple[Any, np.ndarray]:
        """Build the graph.

        Returns:
            An `openvino.Model` from token vectors, ids and masks to pooled vectors; and the table of token vectors.
        """
        assert self.architecture is not None
        assert self.tensors is not None
        graph = Graph(op, self.tensors, _prefix(self.tensors, self.architecture))
        tokens = self.architecture.build(graph)
        assert graph.table is not None
        inputs, kept = [graph.tokens, graph.ids, graph.mask], graph.mask
        if self.excludes_prompt:
            kept = graph.input("pooled")
            inputs.append(kept)
        return openvino.Model([self.pooling.build(graph, tokens, kept)], inputs, "embedreg"), graph.table

    def finish(self, vectors: np.ndarray) -> np.ndarray:
        """Apply the modules after the pooling: (b, n) -> (b, d)."""
        for head in self.heads:
            vectors = head(vectors)
        return vectors


def _modules(folder: Path) -> list[Module]:
    chain = folders.modules(folder)
    if not chain:
        raise Unsupported("it has no modules")
    return chain


def _plan(folder: Path, plain: bool) -> _Plan:
    whole = not plain and not folders.is_plain(folder)
    first, *rest = _modules(folder) if whole else [Module("Transformer", folder, True)]
    if first.kind == "StaticEmbedding":
        if not (first.folder / "tokenizer.json").is_file():
            raise Unsupported("it has no tokenizer.json")
        return _Plan(first.folder, None, Pooling(), tuple(rest), None, False, 0)
    if first.kind != "Transformer":
        raise Unsupported(f"its first module is a {first.kind[:60]!r}")
    if any(first.files("adapter_config.json")):
        raise Unsupported("its weights are an adapter of another model's")
    config = Settings(folders.read_object(first.folder / "config.json"))
    architecture = architectures.find(config)
    own = Settings({} if plain else _own(first), "sentence_bert_config.json")
    if more := [name for name in sorted(set(own.values) - _KNOWN) if own.values[name] not in (None, {}, False)]:
        raise Unsupported(f"its {own.where} has {more[0]!r}")
    own.only("transformer_task", "feature-extraction")
    own.only("module_output_name", "token_embeddings")
    own.only("modality_config", _FORWARD)
    tokenizer.check(first.folder, str(config.values["model_type"]))
    table = config.values.get("max_position_embeddings", architecture.positions)
    limit = tokenizer.read(first.folder, own, architecture.positions, table)
    pooling, width = Pooling(), architecture.width
    if whole:
        if not rest or rest[0].kind != "Pooling":
            raise Unsupported("it has no pooling after its transformer")
        pooling = Pooling.read(rest.pop(0).config(), width)
    return _Plan(
        first.folder,
        architecture,
        pooling,
        tuple(rest),
        limit,
        own.flag("do_lower_case", False),
        width * len(pooling.modes),
    )


def _own(module: Module) -> dict[str, Any]:
    """Return the configuration of the library's Transformer module, of which several names are known."""
    found = module.files("sentence_*_config.json")
    if len(found) > 1:
        raise Unsupported("it has several sentence_*_config.json")
    return folders.read_object(found[0]) if found else {}


def _prefix(names: Tensors, architecture: Architecture) -> str:
    """Return the prefix of the names of the weights."""
    for prefix in architecture.prefixes:
        if prefix + architecture.marker in names:
            return prefix
    raise Unsupported(f"its weights have no {architecture.marker!r}")


# -- as `runtime.text.library` -----------------------------------------------------------------------------------------


def load(
    found: ResolvedModel,
    name: str,
    device: str,
    *,
    code: bool,
    own: bool,
    revision: str | None = None,
    plain: bool = False,
) -> LightModel:
    """Load a model; see `library.load`.

    Raises:
        UntrustedError: its files refer to files outside of its folder. CallError: it cannot be run without torch.
    """
    integrity.check_safe(found.path, name, code=code, pickles=own, revision=revision)
    try:
        return LightModel(found.path, include_prompt=found.repository not in PROMPT_NOT_POOLED, plain=plain)
    except Unsupported as exc:
        raise refusal(name, exc.message) from exc


def refusal(name: str, reason: str) -> CallError:
    """Return the error for a model that the light back end cannot run."""
    return CallError(f"the light back end cannot run the model {name!r}: {reason}.", TORCH)


def count_tokens(model: LightModel, text: str) -> int:
    """Return the number of tokens of a text before truncation, special tokens included."""
    found = model.tokenizer.encode(text, add_special_tokens=model.special)
    return len(found.ids) + sum(_beyond(found, model))


def _beyond(found: Any, model: LightModel) -> Iterable[int]:
    """Yield the numbers of tokens that were truncated, in parts that repeat the special tokens."""
    extra = model.tokenizer.num_special_tokens_to_add(False) if model.special else 0
    for part in found.overflowing:
        yield len(part.ids) - extra


def max_tokens(model: LightModel) -> int | None:
    """Return the maximum number of tokens that a model reads of a text; None if there is no limit."""
    return model.limit


def ndims(model: LightModel) -> int:
    """Return the width of the vectors, before `truncate_dim`."""
    return model.width


def flops_per_token(model: LightModel) -> float | None:
    """Return the operations of the transformer's matrix products per token, without attention scores; or None."""
    if model.tensors is None:
        return None
    shapes = model.tensors.shapes().items()
    matrices = [shape for name, shape in shapes if len(shape) == 2 and not any(part in name for part in _NO_PRODUCT)]
    return 2.0 * sum(math.prod(shape) for shape in matrices) or None
