"""MPNet: BERT with a bias for the distance of two tokens. Source: Song et al. 2020."""

from __future__ import annotations

from typing import ClassVar

from embedreg.runtime.text.light.graph import ACTIVATIONS, Graph, Node
from embedreg.runtime.text.light.settings import Settings, Unsupported

__all__ = ["MPNet"]

_PADDING = 1  # of the positions, in any configuration
_LONGEST = 128  # distance of the last bucket
_BUCKETS = 32  # the library's, in any configuration


class MPNet:
    """An MPNet encoder; see `Architecture`."""

    prefixes: ClassVar[tuple[str, ...]] = ("", "mpnet.")
    marker: ClassVar[str] = "encoder.relative_attention_bias.weight"

    def __init__(self, config: Settings) -> None:
        self.width = config.size("hidden_size")
        self.layers = config.size("num_hidden_layers")
        self.heads = config.size("num_attention_heads")
        self.inner = config.size("intermediate_size")
        self.words = config.size("vocab_size")
        self.table = config.size("max_position_embeddings")
        self.positions: int | None = self.table - _PADDING - 1
        self.buckets = config.size("relative_attention_num_buckets", _BUCKETS)
        self.epsilon = config.number("layer_norm_eps", 1e-12)
        self.activation = config.choice("hidden_act", ACTIVATIONS, "gelu")
        if self.width % self.heads or self.buckets != _BUCKETS:
            raise Unsupported("its attention has an unusual size")

    def build(self, graph: Graph) -> Node:
        """Return the token vectors: (b, t, d) float32."""
        op, size = graph.op, self.width // self.heads
        x = graph.token_vectors("embeddings.word_embeddings.weight", self.words, self.width)
        places = graph.places_after(_PADDING)
        x = op.add(x, graph.look_up("embeddings.position_embeddings.weight", self.table, self.width, places))
        x = graph.norm(x, "embeddings.LayerNorm", self.width, self.epsilon)
        bias = graph.bucket_bias("encoder.relative_attention_bias.weight", self.buckets, self.heads, _LONGEST)
        bias = op.add(bias, graph.padding_bias())
        for number in range(self.layers):
            at = f"encoder.layer.{number}"
            names = [f"{at}.attention.attn.{part}" for part in "qkv"]
            query, key, value = graph.projected(x, names, self.width, self.heads, size)
            made = graph.attend(query, key, value, bias, self.width)
            made = graph.linear(made, f"{at}.attention.attn.o", self.width, self.width)
            x = graph.norm(op.add(x, made), f"{at}.attention.LayerNorm", self.width, self.epsilon)
            made = graph.feed_forward(
                x, f"{at}.intermediate.dense", f"{at}.output.dense", self.width, self.inner, self.activation
            )
            x = graph.norm(op.add(x, made), f"{at}.output.LayerNorm", self.width, self.epsilon)
        return x
