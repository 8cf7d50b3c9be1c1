"""Matrix products on a CPU by oneDNN where torch's own are slower, padded to few sizes, since oneDNN caches each size.

torch computes float32 products with MKL, which uses AVX-512 on Intel processors only: on an AMD EPYC it reaches less
than half the speed of oneDNN, which torch also contains and uses for bfloat16. The arithmetic is float32 in both; only
the order of summation differs.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["fastest", "use_onednn"]

Product: TypeAlias = Callable[[Any, Any, Any], Any]

_SHAPE = (16, 64, 32)  # rows, inputs and outputs of the test product
_CLOSE = 1e-5  # tolerance for sums of 64 products of numbers about 1


def use_onednn(model: Any) -> int:
    """Let the layers of a model on the CPU multiply by oneDNN where that is faster, in few sizes.

    Layers in bfloat16 multiply by oneDNN on every processor that supports it. Weights are not moved or converted. A
    layer falls back to torch's own implementation while operations are recorded, and for any call other than plain
    products and plain attention.

    Args:
        model: a `torch.nn.Module`, changed in place.
    Returns:
        The number of layers that were changed.
    """
    import torch

    product, count = _verified_product(), 0
    if product is None:
        return 0
    kinds = _replacements(product)
    wanted = {torch.float32: _mkl_without_avx512(), torch.bfloat16: _has_bfloat16()}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        weight = getattr(module, "in_proj_weight", None) if weight is None else weight
        kind = kinds.get(type(module))  # quantized layers, whose `weight` is a method, are of other types
        suitable = torch.is_tensor(weight) and weight.device.type == "cpu" and wanted.get(weight.dtype, False)
        if kind is not None and suitable:
            module.__class__ = kind
            count += 1
    return count


def fastest() -> Product | None:
    """Return oneDNN's `linear(input, weight, bias)` if torch's float32 product is slow; None if not, or if it is wrong.

    The processor's vendor decides, not a timing, so that the last digits on one machine are the same in every run.
    """
    return _verified_product() if _mkl_without_avx512() else None


@functools.cache
def _verified_product() -> Product | None:
    """Return oneDNN's product if this torch has it and it agrees with torch's own."""
    import torch

    product = _onednn()
    if product is None:
        return None
    rows, inputs, outputs = _SHAPE
    chance = torch.Generator().manual_seed(0)
    left, weight, bias = (
        torch.randn(*shape, generator=chance) for shape in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    with torch.inference_mode():
        try:
            made = product(left, weight, bias)
        except (RuntimeError, NotImplementedError):  # this torch has no such operator, or not for these sizes
            return None
        return product if torch.allclose(made, left @ weight.t() + bias, rtol=0, atol=_CLOSE) else None


def _mkl_without_avx512() -> bool:
    """Return whether torch multiplies by MKL on a processor whose AVX-512 MKL does not use."""
    import torch

    mkl: Any = torch.backends.mkl
    return mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and _vendor() != "GenuineIntel"


def _has_bfloat16() -> bool:
    """Return whether oneDNN can multiply in bfloat16 on this processor."""
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:
        return False


def _vendor() -> str:
    """Return the processor's vendor id, such as "AuthenticAMD"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, platform.processor().rpartition(",")[2].strip())  # the last part on Windows


def _onednn() -> Product | None:
    import torch

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        linear = torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None

    def product(values: Any, weight: Any, bias: Any) -> Any:
        rows = math.prod(values.shape[:-1])
        padding = _padding(rows)
        if not padding:
            return linear(values, weight, bias, "none", [], "")
        padded = torch.nn.functional.pad(values.reshape(rows, -1), (0, 0, 0, padding))
        return linear(padded, weight, bias, "none", [], "")[:rows].reshape(*values.shape[:-1], len(weight))

    return product


def _padding(rows: int) -> int:
    """Return the number of rows to pad a product by, so that there are eight sizes between two powers of two.

    oneDNN caches a kernel and a buffer of the result for each size of a product: a thousand sizes would take gigabytes.
    """
    return -rows % max(8, 1 << max(rows.bit_length() - 4, 0))


@functools.cache
def _replacements(product: Product) -> dict[type, type]:
    """Return the class that replaces each class of layer."""
    import torch

    def recorded() -> bool:
        """Return whether operations are recorded, by autograd, tracing or compilation, which do not know oneDNN's."""
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        return bool(torch.is_grad_enabled() or tracing or torch.compiler.is_compiling())

    class OneDnnLinear(torch.nn.Linear):
        def forward(self, input: Any) -> Any:  # noqa: A002  # torch's name for it
            if input.dtype != self.weight.dtype or recorded():
                return super().forward(input)
            return product(input, self.weight, self.bias)

    class OneDnnAttention(torch.nn.MultiheadAttention):
        def forward(self, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            mask = kwargs.get("attn_mask")
            asked = {name for name, given in kwargs.items() if given is not None} - {"attn_mask"}
            if (
                args
                or asked - {"need_weights", "average_attn_weights"}
                or kwargs.get("need_weights", True)
                or query is not key
                or key is not value
                or query.dim() != 3
                or query.dtype != torch.float32
                or recorded()
                or not self._qkv_same_embed_dim
                or self.bias_k is not None
                or self.add_zero_attn
                or (mask is not None and (mask.dim() != 2 or mask.dtype != torch.float32))
            ):
                return super().forward(query, key, value, *args, **kwargs)
            b, n = (0, 1) if self.batch_first else (1, 0)
            parts = product(query, self.in_proj_weight, self.in_proj_bias)
            parts = parts.unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, b, 3, n, 4)
            made = torch.nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
            made = made.permute(0, 2, 1, 3) if self.batch_first else made.permute(2, 0, 1, 3)
            return product(made.flatten(2), self.out_proj.weight, self.out_proj.bias), None

    return {torch.nn.Linear: OneDnnLinear, torch.nn.MultiheadAttention: OneDnnAttention}
