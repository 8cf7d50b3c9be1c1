"""A CLIP's preprocessing in two halves gives the pixels of the whole, to the last bit, for every shape of transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedreg.errors import RowError
from embedreg.runtime.image.preprocess import MAX_RATIO, Preprocess

SIZES = [(640, 480), (480, 640), (224, 224), (37, 90), (1000, 333), (1, 1), (300, 2)]


def transform(**config: Any) -> Any:
    """Return the library's own."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(**config), is_train=False)


def noise(size: tuple[int, int]) -> Image.Image:
    """A picture of a size in which no pixel is like the next."""
    chance = np.random.default_rng(size[0] * size[1])
    return Image.fromarray(chance.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [224, (384, 128)])
def test_the_halves_make_the_whole(resize_mode: str, interpolation: str, size: Any) -> None:
    """Whatever the library resizes, crops and pads to, whole batches get its very numbers from uint8 pixels."""
    whole = transform(size=size, resize_mode=resize_mode, interpolation=interpolation, mean=(0.4, 0.5, 0.6))
    halves = Preprocess(whole)
    assert halves.stages is not None
    prepared = [halves.prepare(noise(each)) for each in SIZES if max(each) <= MAX_RATIO * min(each)]
    assert {array.dtype for array in prepared} == {np.dtype(np.uint8)}
    expected = torch.stack([whole(noise(each)) for each in SIZES if max(each) <= MAX_RATIO * min(each)])
    assert torch.equal(halves.tensor(np.stack(prepared)), expected)
    assert torch.equal(halves.tensor(torch.from_numpy(np.stack(prepared))), expected)


def test_what_cannot_be_cut_is_run_whole() -> None:
    """A stage that is not known, or any callable, gives floats and is left as it is."""
    from torchvision import transforms

    picture = noise((60, 50))
    known = list(transform(size=32).transforms)
    for chain in (
        transforms.Compose([*known[:2], transforms.Grayscale(3), *known[2:]]),
        transforms.Compose(known[:-1]),
        lambda picture: known[-2](known[1](known[0](picture))),
    ):
        whole = Preprocess(chain)
        assert whole.stages is None
        prepared = whole.prepare(picture)
        assert prepared.dtype == np.float32
        assert torch.equal(whole.tensor(prepared[None])[0], chain(picture))


def test_a_strip_is_refused_before_it_takes_gigabytes() -> None:
    """Resized by its shorter side, a strip of 4 by 100,000 pixels would have a billion of them."""
    preprocess = Preprocess(transform(size=224))
    for size in ((100_000, 4), (4, 100_000)):
        with pytest.raises(RowError, match="too narrow to be resized") as caught:
            preprocess.prepare(Image.new("RGB", size))
        assert "crop it" in str(caught.value)
    assert preprocess.prepare(Image.new("RGB", (MAX_RATIO, 1))).shape == (224, 224, 3)
