"""DistilBERT: a BERT of half the layers, without kinds of text. Source: Sanh et al. 2019."""

from __future__ import annotations

from typing import ClassVar

from embedreg.runtime.text.light.graph import ACTIVATIONS, Graph, Node
from embedreg.runtime.text.light.settings import Settings, Unsupported

__all__ = ["DistilBert"]

_EPSILON = 1e-12


class DistilBert:
    """A DistilBERT encoder; see `Architecture`."""

    prefixes: ClassVar[tuple[str, ...]] = ("", "distilbert.")
    marker: ClassVar[str] = "embeddings.word_embeddings.weight"

    def __init__(self, config: Settings) -> None:
        self.width = config.size("dim")
        self.layers = config.size("n_layers")
        self.heads = config.size("n_heads")
        self.inner = config.size("hidden_dim")
        self.words = config.size("vocab_size")
        self.table = config.size("max_position_embeddings")
        self.positions: int | None = self.table
        self.activation = config.choice("activation", ACTIVATIONS, "gelu")
        if self.width % self.heads:
            raise Unsupported("its width is not a multiple of its heads")

    def build(self, graph: Graph) -> Node:
        """Return the token vectors: (b, t, d) float32."""
        op, size = graph.op, self.width // self.heads
        x = graph.token_vectors("embeddings.word_embeddings.weight", self.words, self.width)
        x = op.add(x, graph.look_up("embeddings.position_embeddings.weight", self.table, self.width, graph.places()))
        x = graph.norm(x, "embeddings.LayerNorm", self.width, _EPSILON)
        bias = graph.padding_bias()
        for number in range(self.layers):
            at = f"transformer.layer.{number}"
            names = [f"{at}.attention.{part}_lin" for part in "qkv"]
            query, key, value = graph.projected(x, names, self.width, self.heads, size)
            made = graph.attend(query, key, value, bias, self.width)
            made = graph.linear(made, f"{at}.attention.out_lin", self.width, self.width)
            x = graph.norm(op.add(x, made), f"{at}.sa_layer_norm", self.width, _EPSILON)
            made = graph.feed_forward(x, f"{at}.ffn.lin1", f"{at}.ffn.lin2", self.width, self.inner, self.activation)
            x = graph.norm(op.add(x, made), f"{at}.output_layer_norm", self.width, _EPSILON)
        return x
