"""A local function of images defines how to load, prepare and run a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import embedreg
from embedreg import errors
from embedreg.runtime.hardware import device, precision
from embedreg.runtime.progress import Step, watch
from tests.image_fakes import picture, png
from tests.local_functions import GridProjection


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Begin and end without a model or a count."""
    for _ in range(2):
        embedreg.release()
        GridProjection.loads.clear()
        GridProjection.batches.clear()
        if _ == 0:
            yield


def create(**config: Any) -> GridProjection:
    """Create the function on the CPU."""
    return GridProjection.create(**{"device": "cpu", **config})


def by_hand(seeds: range) -> np.ndarray:
    """Embed pictures one at a time, with nothing but the module."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 12)).eval()
    with torch.inference_mode():
        rows = [torch.from_numpy(np.array(picture(seed).resize((4, 4))))[None].float() / 255 for seed in seeds]
        return np.concatenate([model(row).numpy() for row in rows])


@pytest.mark.parametrize("on", ["cpu", "cpu:0"])
def test_each_picture_has_its_vector(on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources and queries, in whole batches, in workers or queued on a device; loaded once, reported row by row."""
    monkeypatch.setattr(device, "resolve", lambda name: on)
    function = create(device="cuda")
    steps: list[Step] = []
    with watch(steps.append):
        made = function.compute_source_embeddings([png(seed) for seed in range(30)])
    np.testing.assert_allclose(made, by_hand(range(30)), atol=1e-6)
    assert sum(step.rows for step in steps) == 30
    assert len(GridProjection.batches) <= 8
    np.testing.assert_allclose(function.compute_query_embeddings(png(2)), by_hand(range(2, 3)), atol=1e-6)
    several = function.compute_embeddings([picture(seed) for seed in range(5)], "query")
    np.testing.assert_allclose(several, by_hand(range(5)), atol=1e-6)
    assert GridProjection.loads == [on]
    assert function.compute_source_embeddings([]).shape == (0, 12)


def test_a_picture_that_cannot_be_opened_fails_alone() -> None:
    """Its neighbours have their vectors; as a query it is a failed row too."""
    made = embedreg.embed_column(create(), [png(0), b"not a picture", None, png(1)])
    assert made.valid.tolist() == [True, False, False, True]
    np.testing.assert_allclose(made.matrix[[0, 3]], by_hand(range(2)), atol=1e-6)
    (query,) = create().compute_query_embeddings(b"not a picture")
    assert isinstance(query, embedreg.RowError)


def test_several_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are prepared for one device, and the error names one."""
    monkeypatch.setattr(device, "resolve_all", lambda name: ("cuda:0", "cuda:1"))
    with pytest.raises(errors.ConfigError, match="expected one device, got 2") as caught:
        create(device="cuda:0,1").compute_source_embeddings([png()])
    assert caught.value.hint == "device='cuda:0'"


@pytest.mark.skipif(not precision._has("bfloat16", "cpu"), reason="this processor has no arithmetic in bfloat16")
def test_a_precision_converts_the_module() -> None:
    """In bfloat16 the products are narrow, and the vectors float32 and near."""
    function = create(precision="bfloat16")
    made = function.compute_source_embeddings([png(seed) for seed in range(9)])
    assert made.dtype == np.float32
    assert 0 < np.abs(made - by_hand(range(9))).max() < 0.02
    assert function._loaded()[1].weight.dtype == torch.bfloat16
