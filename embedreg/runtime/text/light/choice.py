"""The choice of a back end under `backend="auto"`: by what is installed, the devices and the model, never by timing.

Every back end returns the same vectors, so the choice is not stored with the data.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from embedreg.errors import CallError, MissingExtraError
from embedreg.runtime.hardware import device as devices
from embedreg.runtime.text.light import model as light
from embedreg.support.imports import importable

__all__ = ["LIGHT", "REQUIRED", "TORCH", "Choice", "choose", "installed", "may_have_gpu"]

LIGHT, TORCH = "light", "torch"
REQUIRED = {LIGHT: ("openvino", "tokenizers"), TORCH: ("torch", "sentence_transformers")}


@dataclass(frozen=True)
class Choice:
    """A back end, and why the ones that are tried before it were not chosen.

    Attributes:
        name: of the back end.
        passed: (name, reason) of each back end that was passed over.
    """

    name: str
    passed: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.name, *(f"not {name}: {reason}" for name, reason in self.passed)])


def installed(name: str) -> list[str]:
    """Return the modules that a back end lacks here; empty if it can run."""
    return [module for module in REQUIRED.get(name, ()) if not importable(module)]


def may_have_gpu() -> bool:
    """Return whether torch might find a device other than the CPU; False is certain, and is found without torch."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if sys.platform == "linux":
        return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
    return ctypes.util.find_library("nvcuda") is not None


def choose(folder: Path, name: str, device: str, precision: str, *, plain: bool = False) -> Choice:
    """Choose a back end for a model.

    Args:
        folder: of the model's files.
        name: of the model, for messages.
        device: as the user named it.
        precision: number type of the computation.
        plain: whether the modules of the folder are ignored: its transformer, and the mean over all tokens.
    Raises:
        MissingExtraError: no back end is installed. CallError: only torch could run the model, and is not installed.
    """
    has_torch = not installed(TORCH)
    reason = _elsewhere(device, has_torch)
    if reason is None and precision != "float32" and has_torch:
        reason = f"it rounds {precision} at other places than torch"
    if reason is None and (lacking := installed(LIGHT)):
        reason = f"{lacking[0]} is not installed"
    if reason is None and (problem := light.why_not(folder, plain=plain)) is not None:
        reason = problem
    if reason is None:
        return Choice(LIGHT)
    if has_torch:
        return Choice(TORCH, ((LIGHT, reason),))
    if installed(LIGHT):
        raise MissingExtraError(
            f"no back end for the model {name!r} is installed.",
            "pip install 'embedreg[light]', or 'embedreg[sentence-transformers]' for every model and GPUs",
        )
    raise CallError(
        f"the light back end cannot run the model {name!r}: {reason}.", "pip install 'embedreg[sentence-transformers]'"
    )


def _elsewhere(device: str, has_torch: bool) -> str | None:
    """Return why a model has to run on another device than the CPU; None if it does not."""
    if device == "cpu":
        return None
    if device != "auto":
        return f"it runs on a CPU, not on {device!r}"
    if has_torch and may_have_gpu() and (found := devices.resolve_all()) != ("cpu",):
        return f"it runs on a CPU, and there is {found[0]}"
    return None
