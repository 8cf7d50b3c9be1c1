"""Which device a model runs on."""

from __future__ import annotations

import re

from embedreg.errors import ConfigError
from embedreg.imports import attempt_import_or_raise

__all__ = ["resolve"]

_KNOWN = re.compile(r"auto|cpu|mps|cuda(?::(\d+))?")


def resolve(device: str = "auto") -> str:
    """Turn a device's name into one that is there: "cpu", "mps" or "cuda:<index>".

    Args:
        device: "auto" (CUDA, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:<index>" or "mps".
    Raises:
        ConfigError: no such device, or not on this machine. MissingExtraError: torch is not installed.
    """
    match = _KNOWN.fullmatch(device)
    if match is None:
        raise ConfigError(f"{device!r} is no device.", "device='auto', 'cpu', 'cuda', 'cuda:0' or 'mps'")
    if device == "cpu":
        return device  # nothing to ask torch for
    torch = attempt_import_or_raise("torch", extra="sentence-transformers")
    mps = getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available()
    if device == "mps" or (device == "auto" and mps and not torch.cuda.is_available()):
        if not mps:
            raise _absent(device, "no Apple GPU that this torch can use")
        return "mps"
    if not torch.cuda.is_available():
        if device == "auto":
            return "cpu"
        raise _absent(device, "no CUDA device that this torch can use")
    index, count = match.group(1), torch.cuda.device_count()
    if index is None:
        return f"cuda:{torch.cuda.current_device()}"
    if int(index) >= count:
        raise _absent(device, f"{count} CUDA device(s), numbered from 0")
    return f"cuda:{int(index)}"


def _absent(device: str, what: str) -> ConfigError:
    return ConfigError(
        f"device {device!r} is not to be had: this machine has {what}.", "device='auto' takes the best there is"
    )
