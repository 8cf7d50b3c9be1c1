"""The encoder of T5. Source: Raffel et al. 2020; gated layers: Shazeer 2020."""

from __future__ import annotations

from typing import ClassVar

from embedreg.runtime.text.light.graph import ACTIVATIONS, Graph, Node
from embedreg.runtime.text.light.settings import Settings

__all__ = ["T5Encoder"]


class T5Encoder:
    """A T5 encoder; see `Architecture`."""

    prefixes: ClassVar[tuple[str, ...]] = ("",)
    marker: ClassVar[str] = "encoder.final_layer_norm.weight"

    def __init__(self, config: Settings) -> None:
        self.width = config.size("d_model")
        self.layers = config.size("num_layers")
        self.heads = config.size("num_heads")
        self.size = config.size("d_kv")
        self.inner = config.size("d_ff")
        self.words = config.size("vocab_size")
        self.buckets = config.size("relative_attention_num_buckets", 32)
        self.longest = config.size("relative_attention_max_distance", 128)
        self.positions: int | None = None
        self.epsilon = config.number("layer_norm_epsilon", 1e-6)
        kind = config.choice(
            "feed_forward_proj", {"gated-gelu", *ACTIVATIONS, *(f"gated-{n}" for n in ACTIVATIONS)}, "relu"
        )
        self.gated = kind.startswith("gated-")
        name = kind.removeprefix("gated-")
        self.activation = "gelu_new" if kind == "gated-gelu" else name  # the library's rule

    def build(self, graph: Graph) -> Node:
        """Return the token vectors: (b, t, d) float32."""
        op, inside = graph.op, self.heads * self.size
        table = "shared.weight" if graph.prefix + "shared.weight" in graph.tensors else "encoder.embed_tokens.weight"
        x = graph.token_vectors(table, self.words, self.width)
        name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        bias = op.add(graph.bucket_bias(name, self.buckets, self.heads, self.longest), graph.padding_bias())
        for number in range(self.layers):
            at = f"encoder.block.{number}.layer"
            inputs = graph.root_mean_square(x, f"{at}.0.layer_norm", self.width, self.epsilon)
            names = [f"{at}.0.SelfAttention.{part}" for part in "qkv"]
            query, key, value = graph.projected(inputs, names, self.width, self.heads, self.size, bias=False)
            made = graph.attend(query, key, value, bias, inside, scale=1.0)
            x = op.add(x, graph.linear(made, f"{at}.0.SelfAttention.o", inside, self.width, bias=False))
            inputs = graph.root_mean_square(x, f"{at}.1.layer_norm", self.width, self.epsilon)
            layer = f"{at}.1.DenseReluDense"
            first = f"{layer}.wi_0" if self.gated else f"{layer}.wi"
            made = graph.activation(graph.linear(inputs, first, self.width, self.inner, bias=False), self.activation)
            if self.gated:
                made = op.multiply(made, graph.linear(inputs, f"{layer}.wi_1", self.width, self.inner, bias=False))
            x = op.add(x, graph.linear(made, f"{layer}.wo", self.inner, self.width, bias=False))
        return graph.root_mean_square(x, "encoder.final_layer_norm", self.width, self.epsilon)
