"""ModernBERT: rotary positions, gated layers, and attention to near tokens in two of three layers.

Source: Warner et al. 2024.
"""

from __future__ import annotations

from typing import Any, ClassVar

from embedreg.runtime.text.light.graph import ACTIVATIONS, MASKED, Graph, Node
from embedreg.runtime.text.light.settings import Settings, Unsupported

__all__ = ["ModernBert"]

_FULL, _NEAR = "full_attention", "sliding_attention"
_THETAS = {_FULL: ("global_rope_theta", 160_000.0), _NEAR: ("local_rope_theta", 10_000.0)}


class ModernBert:
    """A ModernBERT encoder; see `Architecture`."""

    prefixes: ClassVar[tuple[str, ...]] = ("", "model.")
    marker: ClassVar[str] = "embeddings.tok_embeddings.weight"

    def __init__(self, config: Settings) -> None:
        self.width = config.size("hidden_size")
        self.heads = config.size("num_attention_heads")
        self.inner = config.size("intermediate_size")
        self.words = config.size("vocab_size")
        self.positions: int | None = config.size("max_position_embeddings")
        self.epsilon = config.number("norm_eps", 1e-5)
        self.activation = config.choice("hidden_activation", ACTIVATIONS, "gelu")
        self.norm_bias = config.flag("norm_bias", False)
        self.attention_bias = config.flag("attention_bias", False)
        self.inner_bias = config.flag("mlp_bias", False)
        self.near = config.size("local_attention", 128) // 2
        layers = config.size("num_hidden_layers")
        every = config.size("global_attn_every_n_layers", 3)
        kinds = config.values.get("layer_types")
        self.kinds = [_NEAR if number % every else _FULL for number in range(layers)] if kinds is None else kinds
        if not isinstance(self.kinds, list) or len(self.kinds) != layers or not {*map(str, self.kinds)} <= {*_THETAS}:
            raise Unsupported("its layer_types are not known")
        self.thetas = {kind: _theta(config, kind) for kind in _THETAS}
        if self.width % (2 * self.heads):
            raise Unsupported("its width is not a multiple of its heads")

    def build(self, graph: Graph) -> Node:
        """Return the token vectors: (b, t, d) float32."""
        op, size = graph.op, self.width // self.heads

        def norm(x: Node, name: str) -> Node:
            return graph.norm(x, name, self.width, self.epsilon, bias=self.norm_bias)

        x = graph.token_vectors("embeddings.tok_embeddings.weight", self.words, self.width)
        x = norm(x, "embeddings.norm")
        biases = {_FULL: graph.padding_bias()}
        far = op.greater(op.abs(graph.distances()), graph.scalar(self.near))
        biases[_NEAR] = op.add(biases[_FULL], op.multiply(op.convert(far, "f32"), graph.floats(MASKED)))
        rotary = {kind: graph.rotary(size, theta) for kind, theta in self.thetas.items()}
        for number, kind in enumerate(self.kinds):
            at = f"layers.{number}"
            inputs = x if number == 0 else norm(x, f"{at}.attn_norm")
            attention = f"{at}.attn.Wqkv"
            biases_of = f"{attention}.bias" if self.attention_bias else None
            query, key, value = graph.cut(inputs, f"{attention}.weight", biases_of, self.width, self.heads)
            query, key = (graph.rotate(part, rotary[kind], size) for part in (query, key))
            made = graph.attend(query, key, value, biases[kind], self.width)
            x = op.add(x, graph.linear(made, f"{at}.attn.Wo", self.width, self.width, bias=self.attention_bias))
            inputs = norm(x, f"{at}.mlp_norm")
            joined = graph.linear(inputs, f"{at}.mlp.Wi", self.width, 2 * self.inner, bias=self.inner_bias)
            first, gate = op.split(joined, graph.scalar(2), 2).outputs()
            made = op.multiply(graph.activation(first, self.activation), gate)
            x = op.add(x, graph.linear(made, f"{at}.mlp.Wo", self.inner, self.width, bias=self.inner_bias))
        return norm(x, "final_norm")


def _theta(config: Settings, kind: str) -> float:
    """Return the base of a kind of layer's rotary positions, in the newer or the older form of the configuration."""
    if config.values.get("rope_scaling"):
        raise Unsupported("its config.json has rope_scaling")
    name, default = _THETAS[kind]
    given: Any = config.values.get("rope_parameters")
    if given is None:
        return config.number(name, default)
    own = given.get(kind) if isinstance(given, dict) else None
    if not isinstance(own, dict):
        raise Unsupported("its rope_parameters are not known")
    settings = Settings(own, "config.json's rope_parameters")
    settings.only("rope_type", "default")
    return settings.number("rope_theta", default)
