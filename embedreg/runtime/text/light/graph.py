"""`Graph`: the layers of transformers as OpenVINO operations, on the weights of a file.

Shapes: b texts of t tokens, h heads, d the width of the model. Weights have the layout of torch: (outputs, inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from embedreg.runtime.text.light.settings import Unsupported
from embedreg.runtime.text.light.tensors import Tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ACTIVATIONS", "Graph", "Node"]

Node: TypeAlias = Any  # openvino.Node or Output, which ship incomplete types

MASKED = -1e9  # added to the score of a padded token

# Names in configurations, with those of the same function in older ones.
ACTIVATIONS: dict[str, Callable[[Any, Node], Node]] = {
    "gelu": lambda op, x: op.gelu(x, "ERF"),
    "gelu_fast": lambda op, x: op.gelu(x, "TANH"),
    "gelu_new": lambda op, x: op.gelu(x, "TANH"),
    "gelu_pytorch_tanh": lambda op, x: op.gelu(x, "TANH"),
    "quick_gelu": lambda op, x: _quick_gelu(op, x),
    "relu": lambda op, x: op.relu(x),
    "silu": lambda op, x: op.swish(x),
    "swish": lambda op, x: op.swish(x),
}


def _quick_gelu(op: Any, x: Node) -> Node:
    """Multiply by the sigmoid of 1.702 x, as OpenAI's CLIP does."""
    import numpy as np

    return op.multiply(x, op.sigmoid(op.multiply(x, op.constant(np.array(1.702, np.float32)))))


class Graph:
    """A graph under construction.

    Args:
        op: OpenVINO's operations, such as `openvino.opset13`.
        tensors: the weights, which the graph shares.
        prefix: of their names, such as "bert."
    """

    def __init__(self, op: Any, tensors: Tensors, prefix: str = "") -> None:
        import numpy as np

        self.op, self.tensors, self.prefix = op, tensors, prefix
        self.ids = op.parameter([-1, -1], np.int64, name="ids")
        self.mask = self.input("mask")
        self.table: np.ndarray | None = None  # (tokens, d), which the caller looks up: see `token_vectors`

    def input(self, name: str, *more: int) -> Node:
        """Return an input of float32: (b, t), and more axes."""
        import numpy as np

        return self.op.parameter([-1, -1, *more], np.float32, name=name)

    def token_vectors(self, name: str, rows: int, width: int) -> Node:
        """Return an input for the rows of the table of tokens, (b, t, width).

        The caller looks them up. As a constant of the graph the whole table would be read when it is compiled: it is
        half of a small model, and most of a multilingual one.
        """
        self.table = self.tensors.float32(self.prefix + name, (rows, width))
        self.tokens = self.input("tokens", width)
        return self.tokens

    # -- constants -----------------------------------------------------------------------------------------------------

    def floats(self, values: Any) -> Node:
        """Return a constant of float32."""
        import numpy as np

        return self.op.constant(np.asarray(values, np.float32, order="C"))

    def ints(self, *values: int) -> Node:
        """Return a constant (n,) of int64."""
        import numpy as np

        return self.op.constant(np.array(values, np.int64))

    def scalar(self, value: int) -> Node:
        """Return a constant number of int64, without axes."""
        import numpy as np

        return self.op.constant(np.array(value, np.int64))

    def weight(self, name: str, *shape: int) -> Node:
        """Return weights of the file as a constant, without a copy."""
        return self.op.constant(self.tensors.float32(self.prefix + name, shape), shared_memory=True)

    # -- layers --------------------------------------------------------------------------------------------------------

    def look_up(self, name: str, rows: int, width: int, ids: Node) -> Node:
        """Return the rows of a table for ids."""
        return self.op.gather(self.weight(name, rows, width), ids, self.scalar(0))

    def linear(self, x: Node, name: str, inputs: int, outputs: int, *, bias: bool = True) -> Node:
        """Multiply by a layer's weights, and add its bias."""
        made = self.op.matmul(x, self.weight(f"{name}.weight", outputs, inputs), False, True)
        return self.op.add(made, self.weight(f"{name}.bias", outputs)) if bias else made

    def norm(self, x: Node, name: str, width: int, epsilon: float, *, bias: bool = True) -> Node:
        """Normalise the last axis to mean 0 and variance 1, then scale it (LayerNorm)."""
        made = self.op.mvn(x, self.ints(-1), True, epsilon, "INSIDE_SQRT")
        made = self.op.multiply(made, self.weight(f"{name}.weight", width))
        return self.op.add(made, self.weight(f"{name}.bias", width)) if bias else made

    def root_mean_square(self, x: Node, name: str, width: int, epsilon: float) -> Node:
        """Divide the last axis by its root mean square, then scale it (RMSNorm)."""
        op = self.op
        mean = op.reduce_mean(op.multiply(x, x), self.ints(-1), True)
        made = op.divide(x, op.sqrt(op.add(mean, self.floats(epsilon))))
        return op.multiply(made, self.weight(f"{name}.weight", width))

    def activation(self, x: Node, name: str) -> Node:
        """Apply an activation function by its name in configurations."""
        if name not in ACTIVATIONS:
            raise Unsupported(f"its activation is {name!r}")
        return ACTIVATIONS[name](self.op, x)

    def feed_forward(self, x: Node, first: str, second: str, width: int, inner: int, activation: str) -> Node:
        """Apply two layers with an activation between them."""
        made = self.activation(self.linear(x, first, width, inner), activation)
        return self.linear(made, second, inner, width)

    # -- attention -----------------------------------------------------------------------------------------------------

    def heads(self, x: Node, heads: int, size: int) -> Node:
        """Split (b, t, heads * size) into (b, heads, t, size)."""
        op = self.op
        return op.transpose(op.reshape(x, self.ints(0, 0, heads, size), True), self.ints(0, 2, 1, 3))

    def projected(
        self, x: Node, names: Sequence[str], inputs: int, heads: int, size: int, *, bias: bool = True
    ) -> list[Node]:
        """Multiply by the weights of query, key and value: each (b, heads, t, size).

        One product of all three would be no faster, and its result would have to be cut and copied: OpenVINO reads the
        heads of separate ones in place.
        """
        return [self.heads(self.linear(x, name, inputs, heads * size, bias=bias), heads, size) for name in names]

    def cut(self, x: Node, weight: str, bias: str | None, width: int, heads: int) -> list[Node]:
        """Multiply by query, key and value that the file has in one matrix of (3 * width, width): see `projected`."""
        whole = self.tensors.float32(self.prefix + weight, (3 * width, width))
        biases = None if bias is None else self.tensors.float32(self.prefix + bias, (3 * width,))
        found = []
        for start in range(0, 3 * width, width):
            part = self.op.constant(whole[start : start + width], shared_memory=True)
            made = self.op.matmul(x, part, False, True)
            if biases is not None:
                made = self.op.add(made, self.op.constant(biases[start : start + width], shared_memory=True))
            found.append(self.heads(made, heads, width // heads))
        return found

    def attend(self, query: Node, key: Node, value: Node, bias: Node, width: int, scale: float | None = None) -> Node:
        """Attend from each token to all: (b, h, t, size) three times -> (b, t, width).

        Args:
            bias: added to the scores, in a shape that broadcasts to (b, h, t, t).
            scale: of the scores; None for one over the root of a head's size.
        """
        op = self.op
        more = () if scale is None else (self.floats(scale),)
        made = op.scaled_dot_product_attention(query, key, value, bias, *more)
        return op.reshape(op.transpose(made, self.ints(0, 2, 1, 3)), self.ints(0, 0, width), True)

    def padding_bias(self) -> Node:
        """Return (b, 1, 1, t), which excludes padding from attention."""
        op = self.op
        masked = op.subtract(self.floats(1.0), op.unsqueeze(self.mask, self.ints(1, 2)))
        return op.multiply(masked, self.floats(MASKED))

    # -- positions -----------------------------------------------------------------------------------------------------

    def places(self) -> Node:
        """Return (t,): 0, 1, 2, ..."""
        op = self.op
        length = op.gather(op.shape_of(self.ids), self.scalar(1), self.scalar(0))
        return op.range(self.scalar(0), length, self.scalar(1), "i64")

    def distances(self) -> Node:
        """Return (t, t): the place of the key minus that of the query."""
        op, places = self.op, self.places()
        return op.subtract(op.unsqueeze(places, self.ints(0)), op.unsqueeze(places, self.ints(1)))

    def places_after(self, padding: int) -> Node:
        """Return (b, t): the places of tokens other than padding, counted from `padding` + 1, as of RoBERTa."""
        op = self.op
        real = op.convert(op.not_equal(self.ids, self.scalar(padding)), "i64")
        counted = op.multiply(op.cum_sum(real, self.scalar(1)), real)
        return op.add(counted, self.scalar(padding))

    def bucket_bias(self, name: str, buckets: int, heads: int, longest: int) -> Node:
        """Return (1, h, t, t): a learned bias for each distance, in buckets that grow with it, as of T5 and MPNet.

        Args:
            longest: the distance from which on all are in the last bucket.
        """
        import numpy as np

        op, half = self.op, buckets // 2
        exact = half // 2
        # The bucket of each distance: computed here as in torch, in float32, and looked up.
        away = np.arange(1, longest + 1, dtype=np.float32)
        large = exact + (
            np.log(away / np.float32(exact)) / np.float32(np.log(longest / exact)) * np.float32(half - exact)
        ).astype(np.int64)
        table = np.where(away < exact, away.astype(np.int64), np.minimum(large, half - 1))
        table = np.concatenate([[0], table])
        distance = self.distances()
        near = op.minimum(op.abs(distance), self.scalar(longest))
        bucket = op.gather(op.constant(table), near, self.scalar(0))
        after = op.multiply(op.convert(op.greater(distance, self.scalar(0)), "i64"), self.scalar(half))
        learned = self.look_up(name, buckets, heads, op.add(bucket, after))
        return op.unsqueeze(op.transpose(learned, self.ints(2, 0, 1)), self.ints(0))

    def rotary(self, size: int, theta: float) -> tuple[Node, Node]:
        """Return the cosines and sines of rotary positions, each (t, size)."""
        import numpy as np

        op = self.op
        steps = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        frequencies = (1.0 / np.power(np.float32(theta), steps)).astype(np.float32)
        places = op.unsqueeze(op.convert(self.places(), "f32"), self.ints(1))
        angles = op.multiply(places, self.floats(frequencies[None]))
        angles = op.concat([angles, angles], 1)
        return op.cos(angles), op.sin(angles)

    def rotate(self, x: Node, rotary: tuple[Node, Node], size: int) -> Node:
        """Rotate (b, h, t, size) by its positions."""
        op, (cosines, sines) = self.op, rotary
        first, second = op.split(x, self.scalar(3), 2).outputs()
        turned = op.concat([op.negative(second), first], 3)
        return op.add(op.multiply(x, cosines), op.multiply(turned, sines))
