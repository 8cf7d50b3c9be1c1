"""Which device a name stands for."""

import sys

import pytest

from embedreg import errors
from embedreg.runtime import device


def test_the_cpu_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu` is known to be there; any other device asks torch, and says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device.resolve("cpu") == "cpu"
    with pytest.raises(errors.MissingExtraError, match=r"embedreg\[sentence-transformers\]"):
        device.resolve("auto")


@pytest.mark.parametrize("name", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "", "cpu:0", "cuda:0,1"])
def test_unknown_names_are_refused(name: str) -> None:
    """A name that is no device is refused with the names that are."""
    with pytest.raises(errors.ConfigError, match="'auto', 'cpu', 'cuda'"):
        device.resolve(name)


def test_auto_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes CUDA before MPS before the CPU, and what is asked for by name must be there."""
    import torch

    cuda, mps = [False], [False]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda[0])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps[0])
    assert device.resolve("auto") == "cpu"
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(errors.ConfigError, match="not to be had"):
            device.resolve(name)
    mps[0] = True
    assert device.resolve("auto") == device.resolve("mps") == "mps"
    cuda[0] = True
    assert device.resolve("auto") == device.resolve("cuda") == "cuda:1"
    assert device.resolve("cuda:0") == "cuda:0"
    with pytest.raises(errors.ConfigError, match=r"2 CUDA device\(s\)"):
        device.resolve("cuda:2")


@pytest.mark.gpu
def test_a_real_cuda_device() -> None:
    """Where there is a CUDA device, `auto` is it."""
    assert device.resolve("auto").startswith("cuda:")
