"""Which devices a model runs on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from embedreg.errors import ConfigError
from embedreg.support.imports import attempt_import_or_raise

__all__ = ["describe", "resolve", "resolve_all"]

_KNOWN = re.compile(r"auto|cpu|mps|cuda(?::(\d+(?:,(?:cuda:)?\d+)*))?")
_LAUNCHED = "LOCAL_RANK"  # set by torchrun and its like, which give each of their processes a device of its own


def resolve(device: str = "auto") -> str:
    """Turn a device's name into one that is there: "cpu", "mps" or "cuda:<index>".

    Args:
        device: "auto" (CUDA, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:<index>" or "mps".
    Raises:
        ConfigError: no such device, not on this machine, or several. MissingExtraError: torch is not installed.
    """
    if device == "auto":
        return _best()
    found = resolve_all(device)
    if len(found) > 1:
        raise ConfigError(f"{device!r} names {len(found)} devices, and this runs on one.", f"device={found[0]!r}")
    return found[0]


def resolve_all(device: str = "auto") -> tuple[str, ...]:
    """Turn a device's name into those that are there and are to share the work, one or more.

    Args:
        device: as for `resolve`, or several CUDA devices: "cuda:0,1". "auto" is all CUDA devices that this process
            sees, but only its own one in a process that a launcher such as torchrun has started.
    Raises:
        ConfigError: no such device, one that is named twice, or not on this machine. MissingExtraError: no torch.
    """
    match = _KNOWN.fullmatch(device)
    if match is None:
        hint = "device='auto', 'cpu', 'cuda', 'cuda:0', 'cuda:0,1' or 'mps'"
        raise ConfigError(f"{device!r} is no device.", hint)
    if device == "cpu":
        return (device,)  # nothing to ask torch for
    torch = attempt_import_or_raise("torch", extra="sentence-transformers")
    if device == "auto":
        best = _best()
        alone = not best.startswith("cuda") or _LAUNCHED in os.environ
        return (best,) if alone else tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if device == "mps":
        if not _has_mps(torch):
            raise _absent(device, "no Apple GPU that this torch can use")
        return (device,)
    if not torch.cuda.is_available():
        raise _absent(device, "no CUDA device that this torch can use")
    if match[1] is None:
        return (f"cuda:{torch.cuda.current_device()}",)
    indices, count = [int(index) for index in re.findall(r"\d+", match[1])], torch.cuda.device_count()
    if max(indices) >= count:
        raise _absent(device, f"{count} CUDA device(s), numbered from 0")
    if len(set(indices)) < len(indices):
        once = ",".join(str(index) for index in dict.fromkeys(indices))
        raise ConfigError(f"{device!r} names a device twice.", f"device='cuda:{once}'")
    return tuple(f"cuda:{index}" for index in indices)


def describe(devices: Sequence[str]) -> str:
    """Say in words what some devices are, as `resolve_all` gives them: "cuda:0, cuda:1 (NVIDIA H200)"."""
    cuda = [name for name in devices if name.startswith("cuda")]
    if not cuda:
        return ", ".join(devices)
    import torch

    models = dict.fromkeys(torch.cuda.get_device_name(name) for name in cuda)
    return f"{', '.join(devices)} ({', '.join(models)})"


def _best() -> str:
    torch = attempt_import_or_raise("torch", extra="sentence-transformers")
    if torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return "mps" if _has_mps(torch) else "cpu"


def _has_mps(torch: Any) -> bool:
    return getattr(torch.backends, "mps", None) is not None and bool(torch.backends.mps.is_available())


def _absent(device: str, what: str) -> ConfigError:
    return ConfigError(
        f"device {device!r} is not to be had: this machine has {what}.", "device='auto' takes the best there is"
    )
