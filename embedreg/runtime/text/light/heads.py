"""The modules after the pooling, in numpy and float32: Dense, LayerNorm, Normalize, Dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from embedreg.runtime.models.folders import Module
from embedreg.runtime.text.light.settings import Settings, Unsupported
from embedreg.runtime.text.light.tensors import Tensors

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Head", "read", "unit"]

Head: TypeAlias = "Callable[[np.ndarray], np.ndarray]"  # (b, n) -> (b, m)

_TINY = 1e-12  # torch's least divisor of `normalize`
_EPSILON = 1e-5  # torch's, of LayerNorm
_DENSE = frozenset(
    {"in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name"}
)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale rows to length 1; rows of zeros stay."""
    import numpy as np

    return np.asarray(vectors / np.maximum(np.sqrt((vectors * vectors).sum(axis=1, keepdims=True)), _TINY))


def read(module: Module, width: int) -> tuple[Head, int]:
    """Return a module as a function of (b, width), and the width of what it returns.

    Raises:
        Unsupported: it is of another kind, or configured in a way that is not known.
    """
    if module.kind not in _KINDS:
        raise Unsupported(f"it has a module {module.kind[:60]!r}")
    return _KINDS[module.kind](module, width)


def _dense(module: Module, width: int) -> tuple[Head, int]:
    import numpy as np

    config = module.config()
    settings = Settings(config, "Dense's config.json")
    if more := sorted(set(config) - _DENSE):
        settings.only(more[0], False)
    for name in ("module_input_name", "module_output_name"):
        settings.only(name, "sentence_embedding")
    if settings.size("in_features") != width:
        raise Unsupported("its Dense layer has another width than its pooling")
    outputs = settings.size("out_features")
    activation = _ACTIVATIONS[settings.choice("activation_function", _ACTIVATIONS, "torch.nn.modules.activation.Tanh")]
    tensors = Tensors(module.folder / "model.safetensors")
    weight = np.ascontiguousarray(tensors.float32("linear.weight", (outputs, width)).T)
    bias = tensors.float32("linear.bias", (outputs,)).copy() if settings.flag("bias", True) else np.float32(0)
    return lambda vectors: activation(vectors @ weight + bias), outputs


def _layer_norm(module: Module, width: int) -> tuple[Head, int]:
    import numpy as np

    if Settings(module.config(), "LayerNorm's config.json").size("dimension") != width:
        raise Unsupported("its LayerNorm has another width than the module before it")
    tensors = Tensors(module.folder / "model.safetensors")
    weight, bias = (tensors.float32(f"norm.{name}", (width,)).copy() for name in ("weight", "bias"))

    def norm(vectors: np.ndarray) -> np.ndarray:
        centred = vectors - vectors.mean(axis=1, keepdims=True)
        variance = (centred * centred).mean(axis=1, keepdims=True)
        return np.asarray(centred / np.sqrt(variance + np.float32(_EPSILON)) * weight + bias)

    return norm, width


def _identity(vectors: np.ndarray) -> np.ndarray:
    return vectors


def _tanh(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.asarray(np.tanh(vectors))


def _relu(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.asarray(np.maximum(vectors, 0))


_ACTIVATIONS: dict[str, Head] = {
    "torch.nn.modules.linear.Identity": _identity,
    "torch.nn.modules.activation.Tanh": _tanh,
    "torch.nn.modules.activation.ReLU": _relu,
}

_KINDS: dict[str, Callable[[Module, int], tuple[Head, int]]] = {
    "Dense": _dense,
    "Dropout": lambda _module, width: (_identity, width),
    "LayerNorm": _layer_norm,
    "Normalize": lambda _module, width: (unit, width),
}
