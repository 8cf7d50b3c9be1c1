"""Resolves device names such as "auto" or "cuda:0,1" to devices of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from embedreg.errors import ConfigError
from embedreg.support.imports import attempt_import_or_raise, importable

__all__ = ["check", "describe", "resolve", "resolve_all"]

_KNOWN = re.compile(r"auto|cpu|mps|cuda(?::(\d+(?:,(?:cuda:)?\d+)*))?")
_LAUNCHED = "LOCAL_RANK"  # set by launchers such as torchrun, which give each process its own device


def resolve(device: str = "auto") -> str:
    """Resolve a device name to an available device: "cpu", "mps" or "cuda:<index>".

    Args:
        device: "auto" (CUDA, else Apple's MPS, else the CPU), "cpu", "cuda", "cuda:<index>" or "mps".
    Raises:
        ConfigError: the device is unknown or not available, or several are named.
        MissingExtraError: torch is not installed.
    """
    if device == "auto":
        return _best()
    found = resolve_all(device)
    if len(found) > 1:
        raise ConfigError(f"expected one device, got {len(found)}: {device!r}.", f"device={found[0]!r}")
    return found[0]


def resolve_all(device: str = "auto") -> tuple[str, ...]:
    """Resolve a device name to one or more available devices, which share the work.

    Args:
        device: as for `resolve`, or several CUDA devices: "cuda:0,1". "auto" is all CUDA devices that this process
            sees, but only its own one in a process that a launcher such as torchrun has started.
    Raises:
        ConfigError: a device is unknown, not available, or named twice. MissingExtraError: torch is not installed.
    """
    match = check(device)
    if device == "cpu":
        return (device,)  # without importing torch
    torch = attempt_import_or_raise("torch", extra="sentence-transformers")
    if device == "auto":
        best = _best()
        single = not best.startswith("cuda") or _LAUNCHED in os.environ
        return (best,) if single else tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    if device == "mps":
        if not _has_mps(torch):
            raise _unavailable(device, "no Apple GPU that this torch can use")
        return (device,)
    if not torch.cuda.is_available():
        raise _unavailable(device, "no CUDA device that this torch can use")
    if match[1] is None:
        return (f"cuda:{torch.cuda.current_device()}",)
    indices, count = [int(index) for index in re.findall(r"\d+", match[1])], torch.cuda.device_count()
    if max(indices) >= count:
        raise _unavailable(device, f"{count} CUDA device(s), numbered from 0")
    if len(set(indices)) < len(indices):
        once = ",".join(str(index) for index in dict.fromkeys(indices))
        raise ConfigError(f"duplicate device in {device!r}.", f"device='cuda:{once}'")
    return tuple(f"cuda:{index}" for index in indices)


def check(device: str) -> re.Match[str]:
    """Match a device name, whether or not this machine has the device.

    Raises:
        ConfigError: no machine has a device of this name.
    """
    match = _KNOWN.fullmatch(device)
    if match is None:
        names = "device='auto', 'cpu', 'cuda', 'cuda:0', 'cuda:0,1' or 'mps'"
        raise ConfigError(f"unknown device {device!r}.", f"{names}; this machine has {', '.join(_present())}")
    return match


def _present() -> list[str]:
    """Return the devices of this machine; only the CPU if torch is not installed."""
    if not importable("torch"):
        return ["cpu"]
    import torch

    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if _has_mps(torch) else []), "cpu"]


def describe(devices: Sequence[str]) -> str:
    """Return a description of devices as `resolve_all` returns them: "cuda:0, cuda:1 (NVIDIA H200)"."""
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


def _unavailable(device: str, what: str) -> ConfigError:
    return ConfigError(
        f"device {device!r} is not available: this machine has {what}.", "device='auto' takes the best available one"
    )
