"""Products of matrices on a CPU: by oneDNN, where torch's own are slower, and in few sizes, since it holds each.

torch leaves float32 to MKL, which does not use the wide registers (AVX-512) of other makers' processors than its own:
on an AMD EPYC it reaches less than half the speed of oneDNN, which torch brings too and uses for bfloat16. The
arithmetic is the same, float32 throughout; sums are added up in another order.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["fastest", "quicken"]

Product: TypeAlias = Callable[[Any, Any, Any], Any]

_SHAPE = (16, 64, 32)  # rows, inputs and outputs of the product that is tried
_CLOSE = 1e-5  # between sums of 64 products of numbers about 1


def quicken(model: Any) -> int:
    """Let the layers of a model on the CPU multiply by oneDNN, where that is faster here, and in few sizes.

    Layers in bfloat16 multiply by oneDNN on every processor that has it. Weights stay as and where they are. Where
    operations are recorded, and where a layer is asked for more than plain products and attention, it does what it did.

    Args:
        model: a `torch.nn.Module`, changed in place.
    Returns:
        How many layers were changed.
    """
    import torch

    product, count = _tried(), 0
    if product is None:
        return 0
    kinds = _kinds(product)
    wanted = {torch.float32: _held_back(), torch.bfloat16: _has_bfloat16()}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        weight = getattr(module, "in_proj_weight", None) if weight is None else weight
        kind = kinds.get(type(module))
        known = weight is not None and weight.device.type == "cpu" and wanted.get(weight.dtype, False)
        if kind is not None and known:
            module.__class__ = kind
            count += 1
    return count


def fastest() -> Product | None:
    """Return oneDNN's `linear(input, weight, bias)` if torch's float32 is held back; None if not, or if it is wrong.

    By what the processor is, and not by the clock: one machine must not give other last digits from run to run.
    """
    return _tried() if _held_back() else None


@functools.cache
def _tried() -> Product | None:
    """Return oneDNN's product if this torch has it and it gives what torch's own gives."""
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
        except (RuntimeError, NotImplementedError):
            return None
        return product if torch.allclose(made, left @ weight.t() + bias, rtol=0, atol=_CLOSE) else None


def _held_back() -> bool:
    """Say whether torch multiplies by MKL on a processor whose AVX-512 MKL leaves unused."""
    import torch

    mkl: Any = torch.backends.mkl
    return mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512" and _maker() != "GenuineIntel"


def _has_bfloat16() -> bool:
    """Say whether oneDNN multiplies in bfloat16 on this processor, by whatever instructions."""
    import torch

    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:
        return False


def _maker() -> str:
    """Return the name that the processor gives of its maker, as "AuthenticAMD"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, platform.processor().rpartition(",")[2].strip())  # Windows says it last


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
        more = _more(rows)
        if not more:
            return linear(values, weight, bias, "none", [], "")
        padded = torch.nn.functional.pad(values.reshape(rows, -1), (0, 0, 0, more))
        return linear(padded, weight, bias, "none", [], "")[:rows].reshape(*values.shape[:-1], len(weight))

    return product


def _more(rows: int) -> int:
    """Return how many rows a product is padded by, so that there are eight sizes from each power of two to the next.

    oneDNN keeps what it made for each size of a product, a working copy of the result included: a thousand sizes would
    hold gigabytes.
    """
    return -rows % max(8, 1 << max(rows.bit_length() - 4, 0))


@functools.cache
def _kinds(product: Product) -> dict[type, type]:
    """Return what takes the place of which layer."""
    import torch

    def watched() -> bool:
        """Say whether operations are recorded, by autograd or for another back end, which know nothing of oneDNN's."""
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        return bool(torch.is_grad_enabled() or tracing or torch.compiler.is_compiling())

    class QuickLinear(torch.nn.Linear):
        def forward(self, input: Any) -> Any:  # noqa: A002  # torch's name for it
            if input.dtype != self.weight.dtype or watched():
                return super().forward(input)
            return product(input, self.weight, self.bias)

    class QuickAttention(torch.nn.MultiheadAttention):
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
                or watched()
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

    return {torch.nn.Linear: QuickLinear, torch.nn.MultiheadAttention: QuickAttention}
