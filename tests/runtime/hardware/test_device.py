"""Which device a name stands for."""

import re
import sys

import pytest

from embedreg import errors
from embedreg.runtime.hardware import device


def test_the_cpu_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu` is known to be there; any other device asks torch, with a hint what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device.resolve("cpu") == "cpu"
    with pytest.raises(errors.MissingExtraError, match=r"embedreg\[sentence-transformers\]"):
        device.resolve("auto")


@pytest.mark.parametrize(
    "name", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "", "cpu:0", "cpu,cuda:0", "cuda:0,", "mps,1"]
)
def test_unknown_names_are_refused(name: str) -> None:
    """An unknown device is refused with the known names."""
    for resolve in (device.resolve, device.resolve_all):
        with pytest.raises(
            errors.ConfigError, match=rf"unknown device {re.escape(repr(name))}\.[^\0]*'auto', 'cpu', 'cuda'"
        ):
            resolve(name)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A machine as torch reports it: two CUDA devices, the second one current, or MPS; none at first."""
    import torch

    has = {"cuda": False, "mps": False}
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "NVIDIA T1000")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has["mps"])
    return has


def test_auto_prefers_cuda_then_mps(machine: dict[str, bool]) -> None:
    """`auto` takes CUDA before MPS before the CPU, and what is asked for by name must be there."""
    assert device.resolve("auto") == "cpu"
    assert device.resolve_all("auto") == ("cpu",)
    for name in ("cuda", "cuda:0", "mps", "cuda:0,1"):
        with pytest.raises(errors.ConfigError, match="is not available"):
            device.resolve_all(name)
    machine["mps"] = True
    assert device.resolve("auto") == device.resolve("mps") == "mps"
    assert device.resolve_all("auto") == ("mps",)
    machine["cuda"] = True
    assert device.resolve("auto") == device.resolve("cuda") == "cuda:1"
    assert device.resolve("cuda:0") == "cuda:0"
    with pytest.raises(errors.ConfigError, match=r"2 CUDA device\(s\)"):
        device.resolve("cuda:2")


def test_several_devices(machine: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """`cuda:0,1` is those two and `auto` all there are; what runs on one device refuses several, naming the first."""
    machine["cuda"] = True
    assert device.resolve_all("cuda:1,0") == device.resolve_all("cuda:1,cuda:0") == ("cuda:1", "cuda:0")
    assert device.resolve_all("auto") == ("cuda:0", "cuda:1")
    assert device.resolve_all("cuda") == device.resolve_all("cuda:1") == ("cuda:1",)
    with pytest.raises(errors.ConfigError, match="expected one device, got 2") as caught:
        device.resolve("cuda:1,0")
    assert caught.value.hint == "device='cuda:1'"
    with pytest.raises(errors.ConfigError, match="duplicate device") as caught:
        device.resolve_all("cuda:0,0,1")
    assert caught.value.hint == "device='cuda:0,1'"
    with pytest.raises(errors.ConfigError, match="numbered from 0"):
        device.resolve_all("cuda:0,7")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device.resolve_all("auto") == ("cuda:1",)


def test_devices_in_words(machine: dict[str, bool]) -> None:
    """A CUDA device is described with its model, equal ones once."""
    assert device.describe(["cpu"]) == "cpu"
    assert device.describe(["cuda:0", "cuda:1"]) == "cuda:0, cuda:1 (NVIDIA T1000)"


@pytest.mark.gpu
def test_a_real_cuda_device() -> None:
    """Where there is a CUDA device, `auto` is it."""
    assert device.resolve("auto").startswith("cuda:")
    assert device.resolve("auto") in device.resolve_all("auto")
