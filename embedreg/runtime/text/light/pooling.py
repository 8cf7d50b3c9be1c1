"""The pooling of sentence-transformers, as part of a graph: token vectors -> one vector for each text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedreg.runtime.text.light.graph import Graph, Node
from embedreg.runtime.text.light.settings import Settings, Unsupported

__all__ = ["Pooling"]

# Modes, and the flags of older configurations, in the order of the concatenated vectors.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KNOWN = frozenset({*_FLAGS, "pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension"})
_LEAST = 1e-9  # divisor of a text without tokens


@dataclass(frozen=True)
class Pooling:
    """One pooling module.

    Attributes:
        modes: their vectors are concatenated.
        include_prompt: whether the tokens of the prompt are pooled too.
    """

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    @classmethod
    def read(cls, config: dict[str, Any], width: int) -> Pooling:
        """Read a configuration.

        Raises:
            Unsupported: it has a mode or a setting that is not known.
        """
        settings = Settings(config, "pooling's config.json")
        if more := sorted(set(config) - _KNOWN):
            raise Unsupported(f"its pooling has the setting {more[0]!r}")
        for name in ("embedding_dimension", "word_embedding_dimension"):
            settings.only(name, width)
        given = config.get("pooling_mode")
        if given is None:
            given = [mode for flag, mode in _FLAGS.items() if settings.flag(flag, False)] or ["mean"]
        modes = [given] if isinstance(given, str) else given
        if not isinstance(modes, list) or not modes or not all(mode in _FLAGS.values() for mode in modes):
            raise Unsupported(f"its pooling is {str(given)[:60]!r}")
        return cls(tuple(modes), settings.flag("include_prompt", True))

    def build(self, graph: Graph, tokens: Node, kept: Node) -> Node:
        """Return the vectors, (b, modes * d).

        Args:
            tokens: (b, t, d), padded on the right.
            kept: (b, t) float32, 1 for a token that is pooled.
        """
        parts = [getattr(_Modes(graph, tokens, kept), mode)() for mode in self.modes]
        return parts[0] if len(parts) == 1 else graph.op.concat(parts, 1)


class _Modes:
    """One method for each mode, of its name."""

    def __init__(self, graph: Graph, tokens: Node, kept: Node) -> None:
        self.graph, self.op, self.tokens, self.kept = graph, graph.op, tokens, kept

    def _sum(self, weights: Node) -> Node:
        """Return the weighted sum of the tokens: (b, t) -> (b, d)."""
        op, graph = self.op, self.graph
        return op.reduce_sum(op.multiply(self.tokens, op.unsqueeze(weights, graph.ints(2))), graph.ints(1), False)

    def _mean(self, weights: Node, divisor: Node) -> Node:
        op = self.op
        return op.divide(self._sum(weights), op.maximum(divisor, self.graph.floats(_LEAST)))

    def _count(self, weights: Node) -> Node:
        return self.op.reduce_sum(weights, self.graph.ints(1), True)

    def mean(self) -> Node:
        return self._mean(self.kept, self._count(self.kept))

    def mean_sqrt_len_tokens(self) -> Node:
        return self._mean(self.kept, self.op.sqrt(self._count(self.kept)))

    def weightedmean(self) -> Node:
        op, graph = self.op, self.graph
        places = op.convert(op.add(graph.places(), graph.scalar(1)), "f32")
        weights = op.multiply(self.kept, places)
        return self._mean(weights, self._count(weights))

    def max(self) -> Node:
        op, graph = self.op, self.graph
        real = op.greater(op.unsqueeze(self.kept, graph.ints(2)), graph.floats(0.5))
        return op.reduce_max(op.select(real, self.tokens, graph.floats(float("-inf"))), graph.ints(1), False)

    def cls(self) -> Node:
        """Take the first kept token."""
        op, graph = self.op, self.graph
        first = op.equal(op.cum_sum(self.kept, graph.scalar(1)), graph.floats(1.0))
        return self._sum(op.multiply(op.convert(first, "f32"), self.kept))

    def lasttoken(self) -> Node:
        """Take the last kept token."""
        op, graph = self.op, self.graph
        last = op.equal(op.cum_sum(self.kept, graph.scalar(1)), self._count(self.kept))
        return self._sum(op.multiply(op.convert(last, "f32"), self.kept))
