"""Converts a model's weights to bfloat16 or float16 on hardware that is faster with them.

The weights are converted; autocast would be slower than float32 on a CPU. Pooling and the vectors stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from embedreg.errors import ConfigError
from embedreg.support.imports import importable

__all__ = ["Precision", "check", "convert"]

Precision = Literal["float32", "bfloat16", "float16"]

_CPU_BFLOAT16 = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
_PRODUCTS = ("Linear", "Conv1D")  # Conv1D is the linear layer of GPT-2 and similar models
_CPU_FLOAT16 = ("_is_amx_fp16_supported",)
_CPU_FLAGS = {"bfloat16": frozenset({"avx512_bf16", "amx_tile"}), "float16": frozenset({"amx_fp16"})}  # of the same


def check(precision: Precision, device: str) -> None:
    """Raise ConfigError unless a device supports a precision natively; emulation is slower than float32.

    Args:
        device: as `device.resolve` returns it.
    Raises:
        ConfigError: it does not; the hint names a precision that it supports.
    """
    if precision == "float32" or _has(precision, device):
        return
    other = next((name for name in ("bfloat16", "float16") if _has(name, device)), "float32")
    what = "this processor" if device == "cpu" else f"the device {device!r}"
    raise ConfigError(
        f"{what} has no arithmetic in {precision}: it would be slower than float32.", f"precision={other!r}"
    )


def _has(precision: str, device: str) -> bool:
    if device == "cpu" and not importable("torch"):
        return _named(_CPU_FLAGS[precision])
    import torch

    if device == "cpu":
        probes = _CPU_BFLOAT16 if precision == "bfloat16" else _CPU_FLOAT16
        return any(getattr(torch.cpu, probe, bool)() for probe in probes)
    if device.startswith("cuda") and precision == "bfloat16":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return precision == "float16" or device != "mps"


def _named(flags: frozenset[str]) -> bool:
    """Return whether Linux lists one of some flags of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return False
    listed = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return not flags.isdisjoint(listed)


def convert(parts: Sequence[Any], precision: Precision, device: str, run: Callable[[], object]) -> None:
    """Convert parts of a model in place; the modules after them stay in float32.

    On a CPU only the matrix products and attention are converted: sums and norms between them stay in float32, which
    costs no time there and is more accurate. A model that fails with mixed types, or is on another device, is converted
    completely.

    Args:
        parts: torch modules with weights, such as the transformers of the model.
        device: where the model is.
        run: runs the model on a sample; an error means that mixed types fail.
    """
    import torch

    dtype = getattr(torch, precision)
    for module in parts:
        module.register_forward_hook(_widen)  # pooling would round its sums back to the narrow type
    on_cpu = torch.device(device).type == "cpu"
    if not on_cpu or not all(_narrow_products(module, dtype) for module in parts) or not _runs(run):
        for module in parts:
            module.to(dtype)


def _narrow_products(part: Any, dtype: Any) -> bool:
    """Convert the product layers of a module, and their inputs; return whether it has any."""

    def narrow(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].to(dtype), *args[1:])

    products = [module for module in part.modules() if type(module).__name__ in _PRODUCTS]
    for module in products:
        module.to(dtype)
        module.register_forward_pre_hook(narrow)
    return bool(products)


def _runs(run: Callable[[], object]) -> bool:
    """Return whether a model runs with mixed types: some models multiply the outputs of several layers."""
    import torch

    try:
        with torch.inference_mode():
            run()
    except Exception:  # noqa: BLE001 (any error: the model is then converted completely, and a lasting error shows)
        return False
    return True


def _widen(_module: Any, _args: Any, output: Any) -> Any:
    import torch

    if isinstance(output, dict):
        for name in ("token_embeddings", "sentence_embedding"):
            if torch.is_tensor(output.get(name)):
                output[name] = output[name].float()
    return output
