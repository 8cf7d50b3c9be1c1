"""The architectures that the light back end runs: a table of `model_type` -> "module:function"."""

from __future__ import annotations

from typing import Protocol, cast

from embedreg.runtime.text.light.graph import Graph, Node
from embedreg.runtime.text.light.settings import Settings, Unsupported
from embedreg.support.lazy import load

__all__ = ["ARCHITECTURES", "Architecture", "find"]

ARCHITECTURES = {
    "bert": "embedreg.runtime.text.light.bert:Bert",
    "camembert": "embedreg.runtime.text.light.bert:Roberta",
    "distilbert": "embedreg.runtime.text.light.distilbert:DistilBert",
    "gte": "embedreg.runtime.text.light.rotary_bert:Gte",
    "modernbert": "embedreg.runtime.text.light.modernbert:ModernBert",
    "mpnet": "embedreg.runtime.text.light.mpnet:MPNet",
    "nomic_bert": "embedreg.runtime.text.light.rotary_bert:NomicBert",
    "roberta": "embedreg.runtime.text.light.bert:Roberta",
    "t5": "embedreg.runtime.text.light.t5:T5Encoder",
    "xlm-roberta": "embedreg.runtime.text.light.bert:Roberta",
}


class Architecture(Protocol):
    """A transformer of one architecture.

    Attributes:
        width: d, the width of its token vectors.
        positions: the tokens that it has positions for; None for any number.
        prefixes: possible prefixes of the names of its weights.
        marker: the name of weights that every model of this architecture has.
    """

    width: int
    positions: int | None
    prefixes: tuple[str, ...]
    marker: str

    def __init__(self, config: Settings) -> None:
        """Read a configuration; raise Unsupported for one that is not exactly what `build` builds."""

    def build(self, graph: Graph) -> Node:
        """Return the token vectors: (b, t, d) float32."""


def find(config: Settings) -> Architecture:
    """Return the architecture of a configuration.

    Raises:
        Unsupported: it is not known, or it is configured in a way that is not.
    """
    kind = config.values.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise Unsupported(f"its architecture is {str(kind)[:60]!r}")
    if config.values.get("auto_map"):
        raise Unsupported("its architecture is code of its own")
    for name in ("dtype", "torch_dtype"):
        config.only(name, "float32")  # the library computes in this type
    for name in ("quantization_config", "pruned_heads", "chunk_size_feed_forward"):
        if config.values.get(name):
            raise Unsupported(f"its config.json has {name}")
    return cast("type[Architecture]", load(ARCHITECTURES[kind]))(config)
