"""BERT, and RoBERTa, XLM-RoBERTa and CamemBERT, which count positions differently.

Source: Devlin et al. 2019; Liu et al. 2019 (RoBERTa), section 3.
"""

from __future__ import annotations

from typing import ClassVar

from embedreg.runtime.text.light.graph import ACTIVATIONS, Graph, Node
from embedreg.runtime.text.light.settings import Settings, Unsupported

__all__ = ["Bert", "Roberta"]


class Bert:
    """A BERT encoder; see `Architecture`."""

    prefixes: ClassVar[tuple[str, ...]] = ("", "bert.")
    marker: ClassVar[str] = "embeddings.word_embeddings.weight"

    def __init__(self, config: Settings) -> None:
        self.width = config.size("hidden_size")
        self.layers = config.size("num_hidden_layers")
        self.heads = config.size("num_attention_heads")
        self.inner = config.size("intermediate_size")
        self.words = config.size("vocab_size")
        self.kinds = config.size("type_vocab_size")
        self.table = config.size("max_position_embeddings")
        self.positions: int | None = self.table
        self.epsilon = config.number("layer_norm_eps", 1e-12)
        self.activation = config.choice("hidden_act", ACTIVATIONS, "gelu")
        config.only("position_embedding_type", "absolute")
        for name in ("is_decoder", "add_cross_attention"):
            config.only(name, False)
        if self.width % self.heads:
            raise Unsupported("its width is not a multiple of its heads")

    def _places(self, graph: Graph) -> Node:
        return graph.places()

    def build(self, graph: Graph) -> Node:
        """Return the token vectors: (b, t, d) float32."""
        op, size = graph.op, self.width // self.heads
        x = graph.token_vectors("embeddings.word_embeddings.weight", self.words, self.width)
        places = self._places(graph)
        x = op.add(x, graph.look_up("embeddings.position_embeddings.weight", self.table, self.width, places))
        # one text is of one kind, the first
        kind = graph.look_up("embeddings.token_type_embeddings.weight", self.kinds, self.width, graph.scalar(0))
        x = graph.norm(op.add(x, kind), "embeddings.LayerNorm", self.width, self.epsilon)
        bias = graph.padding_bias()
        for number in range(self.layers):
            at = f"encoder.layer.{number}"
            names = [f"{at}.attention.self.{part}" for part in ("query", "key", "value")]
            query, key, value = graph.projected(x, names, self.width, self.heads, size)
            made = graph.attend(query, key, value, bias, self.width)
            made = graph.linear(made, f"{at}.attention.output.dense", self.width, self.width)
            x = graph.norm(op.add(x, made), f"{at}.attention.output.LayerNorm", self.width, self.epsilon)
            made = graph.feed_forward(
                x, f"{at}.intermediate.dense", f"{at}.output.dense", self.width, self.inner, self.activation
            )
            x = graph.norm(op.add(x, made), f"{at}.output.LayerNorm", self.width, self.epsilon)
        return x


class Roberta(Bert):
    """A BERT whose positions are counted from the id of the padding."""

    prefixes: ClassVar[tuple[str, ...]] = ("", "roberta.")

    def __init__(self, config: Settings) -> None:
        super().__init__(config)
        self.padding = config.size("pad_token_id", 1)
        self.positions = self.table - self.padding - 1

    def _places(self, graph: Graph) -> Node:
        return graph.places_after(self.padding)
