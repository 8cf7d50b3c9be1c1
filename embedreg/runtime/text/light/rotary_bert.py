"""BERT with rotary positions and gated layers: NomicBERT, and GTE of its second generation.

Source: Nussbaum et al. 2024 (NomicBERT); Zhang et al. 2024 (mGTE). The names of the weights are those of the hub.
"""

from __future__ import annotations

from typing import Any, ClassVar

from embedreg.runtime.text.light.graph import ACTIVATIONS, Graph, Node
from embedreg.runtime.text.light.settings import Settings, Unsupported

__all__ = ["Gte", "NomicBert"]


class NomicBert:
    """A NomicBERT encoder, whose layers have no biases; see `Architecture`."""

    prefixes: ClassVar[tuple[str, ...]] = ("", "nomic_bert.")
    marker: ClassVar[str] = "embeddings.word_embeddings.weight"

    theta: ClassVar[float] = 1000.0
    usual: ClassVar[str] = "silu"  # activation
    biased: ClassVar[bool] = False
    first_norm: ClassVar[str] = "emb_ln"
    layer: ClassVar[str] = "encoder.layers"
    attention: ClassVar[tuple[str, str]] = ("attn.Wqkv", "attn.out_proj")
    norms: ClassVar[tuple[str, str]] = ("norm1", "norm2")
    outer: ClassVar[str] = "mlp.fc2"

    def __init__(self, config: Settings) -> None:
        self.width = config.size("hidden_size")
        self.layers = config.size("num_hidden_layers")
        self.heads = config.size("num_attention_heads")
        self.inner = config.size("intermediate_size")
        self.words = config.size("vocab_size")
        self.kinds = 0 if config.values.get("type_vocab_size") == 0 else config.size("type_vocab_size", 2)
        self.positions: int | None = config.size("max_position_embeddings")
        self.epsilon = config.number("layer_norm_eps", 1e-12)
        self.activation = config.choice("hidden_act", ACTIVATIONS, self.usual)
        self.base = _base(config, self.theta)
        if self.width % (2 * self.heads):
            raise Unsupported("its width is not a multiple of its heads")
        config.only("head_dim", self.width // self.heads)

    def build(self, graph: Graph) -> Node:
        """Return the token vectors: (b, t, d) float32."""
        op, size = graph.op, self.width // self.heads
        x = graph.token_vectors("embeddings.word_embeddings.weight", self.words, self.width)
        if self.kinds:  # one text is of one kind, the first
            name = "embeddings.token_type_embeddings.weight"
            x = op.add(x, graph.look_up(name, self.kinds, self.width, graph.scalar(0)))
        x = graph.norm(x, self.first_norm, self.width, self.epsilon)
        bias, rotary = graph.padding_bias(), graph.rotary(size, self.base)
        (inwards, outwards), (after_attention, after_layers) = self.attention, self.norms
        for number in range(self.layers):
            at = f"{self.layer}.{number}"
            biases = f"{at}.{inwards}.bias" if self.biased else None
            query, key, value = graph.cut(x, f"{at}.{inwards}.weight", biases, self.width, self.heads)
            query, key = (graph.rotate(part, rotary, size) for part in (query, key))
            made = graph.attend(query, key, value, bias, self.width)
            made = graph.linear(made, f"{at}.{outwards}", self.width, self.width, bias=self.biased)
            x = graph.norm(op.add(x, made), f"{at}.{after_attention}", self.width, self.epsilon)
            first, gate = self._gated(graph, x, at)
            made = op.multiply(graph.activation(gate, self.activation), first)
            made = graph.linear(made, f"{at}.{self.outer}", self.inner, self.width, bias=self.biased)
            x = graph.norm(op.add(x, made), f"{at}.{after_layers}", self.width, self.epsilon)
        return x

    def _gated(self, graph: Graph, x: Node, at: str) -> list[Node]:
        """Return the inner layer and its gate, each (b, t, inner)."""
        return [graph.linear(x, f"{at}.mlp.{name}", self.width, self.inner, bias=False) for name in ("fc11", "fc12")]


class Gte(NomicBert):
    """A GTE encoder: as NomicBERT, with biases and other names."""

    prefixes: ClassVar[tuple[str, ...]] = ("", "new.", "gte.")

    theta: ClassVar[float] = 160_000.0
    usual: ClassVar[str] = "gelu"
    biased: ClassVar[bool] = True
    first_norm: ClassVar[str] = "embeddings.LayerNorm"
    layer: ClassVar[str] = "encoder.layer"
    attention: ClassVar[tuple[str, str]] = ("attention.qkv_proj", "attention.o_proj")
    norms: ClassVar[tuple[str, str]] = ("attn_ln", "mlp_ln")
    outer: ClassVar[str] = "mlp.down_proj"

    def _gated(self, graph: Graph, x: Node, at: str) -> list[Node]:
        made = graph.linear(x, f"{at}.mlp.up_gate_proj", self.width, 2 * self.inner, bias=False)
        return list(graph.op.split(made, graph.scalar(2), 2).outputs())


def _base(config: Settings, default: float) -> float:
    """Return the base of the rotary positions.

    Raises:
        Unsupported: they are scaled, or turn a part of each head only.
    """
    for name in ("rope_scaling", "rope_theta"):
        if config.values.get(name):
            raise Unsupported(f"its config.json has {name}, of an older form")
    given: Any = config.values.get("rope_parameters")
    if given is None:
        return default
    if not isinstance(given, dict):
        raise Unsupported("its rope_parameters are not known")
    settings = Settings(given, "config.json's rope_parameters")
    settings.only("rope_type", "default")
    settings.only("partial_rotary_factor", 1, 1.0)
    return settings.number("rope_theta", default)
