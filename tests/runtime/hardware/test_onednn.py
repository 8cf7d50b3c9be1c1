"""Products of matrices by oneDNN: the numbers that torch gives, in the layers that it gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from embedreg.runtime.hardware import onednn, peak

CLOSE = 2e-6  # of sums of 64 products of numbers about 1


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use oneDNN on every processor, be it faster or not."""
    clear = onednn._verified_product.cache_clear
    clear()
    monkeypatch.setattr(onednn, "_mkl_without_avx512", lambda: True)
    yield
    clear()


def model() -> torch.nn.Module:
    """Return two layers."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32, bias=False)).eval()


@pytest.mark.parametrize("shape", [(64,), (1, 64), (7, 64), (3, 5, 64), (0, 64), (2, 3, 5, 64)])
def test_a_layer_gives_what_it_gave(shape: tuple[int, ...]) -> None:
    """Whatever the number of axes, with a bias and without."""
    layers, values = model(), torch.randn(*shape)
    with torch.inference_mode():
        before = layers(values)
        assert onednn.use_onednn(layers) == 2
        after = layers(values)
    assert after.shape == before.shape
    torch.testing.assert_close(after, before, rtol=0, atol=CLOSE)


def test_the_sizes_of_products_are_few() -> None:
    """For each of them oneDNN keeps memory as large as the result."""
    sizes = [rows + onednn._padding(rows) for rows in range(1, 8193)]
    assert len(set(sizes)) < 80
    assert all(rows <= size < max(rows + 8, 1.125 * rows + 1) for rows, size in enumerate(sizes, 1))
    assert onednn._padding(0) == 0


GROWTH = """
import sys, torch
from embedreg.runtime.hardware import onednn

dtype = getattr(torch, sys.argv[1])
onednn._mkl_without_avx512 = lambda: dtype == torch.float32
layer = torch.nn.Linear(384, 1536).to(dtype)
onednn.use_onednn(layer)
torch.set_num_threads(1)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

with torch.inference_mode():
    layer(torch.randn(1000, 384).to(dtype))
    before = resident()
    for rows in range(1, 1000):
        layer(torch.randn(rows, 384).to(dtype))
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_does_not_grow_with_the_sizes_of_batches(run_python: Callable[..., str], dtype: str) -> None:
    """A stream of texts has batches of every size: 2.9 GiB were held after a thousand of them.

    In bfloat16 on every processor, since there torch multiplies by oneDNN of any vendor.
    """
    if dtype == "bfloat16" and not onednn._has_bfloat16():
        pytest.skip("this processor multiplies no bfloat16")
    assert float(run_python(GROWTH, dtype)) < 250


def test_values_that_do_not_lie_in_order_are_read_right() -> None:
    """A transposed or sliced tensor gives the same result."""
    layers, values = model(), torch.randn(64, 9)
    with torch.inference_mode():
        before = layers(values.t()), layers(torch.randn(9, 128, generator=torch.Generator().manual_seed(1))[:, ::2])
        onednn.use_onednn(layers)
        after = layers(values.t()), layers(torch.randn(9, 128, generator=torch.Generator().manual_seed(1))[:, ::2])
    for mine, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_gives_what_it_gave(batch_first: bool, bias: bool, causal: bool) -> None:
    """Of one sequence with itself, as in both towers of a CLIP: with its mask and without."""
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(64, 4, bias=bias, batch_first=batch_first).eval()
    values = torch.randn(3, 11, 64) if batch_first else torch.randn(11, 3, 64)
    asked: dict[str, Any] = {"need_weights": False}
    if causal:
        asked["attn_mask"] = torch.full((11, 11), float("-inf")).triu(1)
    with torch.inference_mode():
        before = layer(values, values, values, **asked)[0]
        assert onednn.use_onednn(layer) == 1
        after = layer(values, values, values, **asked)
    assert after[1] is None
    torch.testing.assert_close(after[0], before, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"need_weights": True, "average_attn_weights": False},
        {"need_weights": False, "key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)},
        {"need_weights": False, "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
    ],
    ids=["weights", "each head's weights", "padding", "a mask of flags"],
)
def test_attention_that_is_asked_for_more_is_torchs_own(asked: dict[str, Any]) -> None:
    """What ours has no answer to, and keys that are not the queries."""
    torch.manual_seed(0)
    layer, values, others = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval(), *torch.randn(2, 2, 5, 16)
    with torch.inference_mode():
        before = layer(values, values, values, **asked), layer(values, others, others, **asked)
        onednn.use_onednn(layer)
        after = layer(values, values, values, **asked), layer(values, others, others, **asked)
    for mine, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=CLOSE)


def test_gradients_are_torchs_own() -> None:
    """A model in somebody's training goes on as it was."""
    layers = model()
    onednn.use_onednn(layers)
    layers(torch.randn(2, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in layers.parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:")
def test_a_trace_holds_no_operation_that_others_do_not_know() -> None:
    """OpenVINO reads traces."""
    layers = model()
    onednn.use_onednn(layers)
    with torch.no_grad():
        traced = torch.jit.trace(layers, torch.randn(2, 64))
    assert "mkldnn" not in str(traced.inlined_graph)


def test_weights_stay_as_and_where_they_are() -> None:
    """No copy, the same names; a layer in another type, or of a class of somebody's own, is left alone."""

    class Own(torch.nn.Linear):
        """Somebody's."""

    layers = torch.nn.ModuleDict({"mine": torch.nn.Linear(4, 4), "wide": torch.nn.Linear(4, 4).double()})
    layers["own"] = Own(4, 4)
    before = {name: value.data_ptr() for name, value in layers.state_dict().items()}
    assert onednn.use_onednn(layers) == 1
    assert {name: value.data_ptr() for name, value in layers.state_dict().items()} == before
    assert isinstance(layers["mine"], torch.nn.Linear)
    assert (type(layers["wide"]), type(layers["own"])) == (torch.nn.Linear, Own)


@pytest.mark.parametrize(
    ("capability", "vendor", "taken"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
        ("DEFAULT", "", False),
    ],
)
def test_a_processor_that_mkl_uses_fully_keeps_torchs_products(
    monkeypatch: pytest.MonkeyPatch, capability: str, vendor: str, taken: bool
) -> None:
    """MKL does not use AVX-512 on other vendors' processors only; only there oneDNN is faster."""
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(onednn, "_vendor", lambda: vendor)
    layers, narrow = model(), model().to(torch.bfloat16)
    assert onednn.use_onednn(layers) == 2 * taken
    assert (type(layers[0]) is torch.nn.Linear) is not taken
    assert onednn.use_onednn(narrow) == 2 * onednn._has_bfloat16(), "in bfloat16 oneDNN multiplies everywhere"


def test_the_processors_vendor_is_known() -> None:
    """In the words that processors use."""
    assert onednn._vendor() in {"AuthenticAMD", "GenuineIntel", "HygonGenuine", "CentaurHauls"} or not (
        Path("/proc/cpuinfo").read_text().count("vendor_id")
    )


def fails(*_: Any) -> Any:
    """Be a build of torch without it."""
    raise RuntimeError("no such product")


def lies(values: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor) -> torch.Tensor:
    """Be one with a fault."""
    return torch.zeros(len(values), len(weight))


@pytest.mark.parametrize("broken", [fails, lies, None])
def test_a_product_that_is_wrong_or_fails_is_not_used(monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    """It is tried before it is trusted."""
    monkeypatch.setattr(onednn, "_onednn", lambda: broken)
    assert onednn.fastest() is None


def test_the_limit_is_measured_with_the_product_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of the limit states what is left to gain, so the limit must not be a slower library's."""
    used = []
    monkeypatch.setattr(onednn, "fastest", lambda: lambda *args: used.append(args))
    monkeypatch.setattr(peak, "_TIMED_S", 0.001)
    assert peak.matmul_flops() > 0
    assert used
    used.clear()
    assert peak.matmul_flops(stock=True) > 0
    assert not used
