"""The choice of a back end under `backend="auto"`: by what is installed, the devices and the model, never by timing.

Every back end returns the same vectors, so the choice is not stored with the data.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from embedreg.errors import CallError, MissingExtraError
from embedreg.runtime.hardware import device as devices
from embedreg.runtime.text.light import model as light
from embedreg.support.imports import importable

__all__ = ["LIGHT", "REQUIRED", "TEXT", "TORCH", "Choice", "Needs", "choose", "decide", "installed", "may_have_gpu"]

LIGHT, TORCH = "light", "torch"
REQUIRED = {LIGHT: ("openvino", "tokenizers"), TORCH: ("torch", "sentence_transformers")}


@dataclass(frozen=True)
class Needs:
    """The packages that the two back ends of a function require.

    Attributes:
        light, torch: their modules.
        light_extra, torch_extra: the extras that install them.
    """

    light: tuple[str, ...]
    torch: tuple[str, ...]
    light_extra: str
    torch_extra: str


TEXT = Needs(REQUIRED[LIGHT], REQUIRED[TORCH], "light", "sentence-transformers")


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
    return _lacking(REQUIRED.get(name, ()))


def _lacking(modules: tuple[str, ...]) -> list[str]:
    return [module for module in modules if not importable(module)]


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
    """Choose a back end for a text model.

    Args:
        folder: of the model's files.
        name: of the model, for messages.
        device: as the user named it.
        precision: number type of the computation.
        plain: whether the modules of the folder are ignored: its transformer, and the mean over all tokens.
    Raises:
        MissingExtraError: no back end is installed. CallError: only torch could run the model, and is not installed.
    """
    return decide(lambda: light.why_not(folder, plain=plain), name, device, precision)


def decide(why_not: Callable[[], str | None], name: str, device: str, precision: str, needs: Needs = TEXT) -> Choice:
    """Choose a back end for a model of any kind.

    Args:
        why_not: returns why the light back end cannot run the model.
        name, device, precision: as for `choose`.
        needs: what the back ends need.
    Raises:
        MissingExtraError, CallError: as `choose`.
    """
    has_torch = not _lacking(needs.torch)
    reason = _elsewhere(device, has_torch)
    if reason is None and precision != "float32" and has_torch:
        reason = f"it rounds {precision} at other places than torch"
    if reason is None and (lacking := _lacking(needs.light)):
        reason = f"{lacking[0]} is not installed"
    if reason is None and (problem := why_not()) is not None:
        reason = problem
    if reason is None:
        return Choice(LIGHT)
    if has_torch:
        return Choice(TORCH, ((LIGHT, reason),))
    extra = needs.torch_extra
    if _lacking(needs.light):
        raise MissingExtraError(
            f"no back end for the model {name!r} is installed.",
            f"pip install 'embedreg[{needs.light_extra}]', or 'embedreg[{extra}]' for every model and GPUs",
        )
    raise CallError(f"the light back end cannot run the model {name!r}: {reason}.", f"pip install 'embedreg[{extra}]'")


def _elsewhere(device: str, has_torch: bool) -> str | None:
    """Return why a model has to run on another device than the CPU; None if it does not."""
    if device == "cpu":
        return None
    if device != "auto":
        return f"it runs on a CPU, not on {device!r}"
    if has_torch and may_have_gpu() and (found := devices.resolve_all()) != ("cpu",):
        return f"it runs on a CPU, and there is {found[0]}"
    return None
