"""Every test of the image contract can fail, with a hint; a good image function passes it."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest

import embedreg
from embedreg.images import open_image
from embedreg.testing import EmbeddingFunctionContract, ImageFunctionContract
from embedreg.testing.checks import Agreement
from embedreg.testing.images import SIZES, image_file
from tests.contract import image_specimens as specimens
from tests.image_fakes import PixelMeans

Failed = pytest.fail.Exception

# The broken function, the test that must notice with its parameter, and a piece of what it says.
BROKEN: list[tuple[type[PixelMeans], str, str]] = [
    (specimens.OnlyBytes, "test_images_are_equal_however_they_are_held[pil]", "TypeError: PngImageFile?"),
    (specimens.OnlyBytes, "test_images_are_equal_however_they_are_held[path]", "open_image"),
    (specimens.BackwardsArrays, "test_images_are_equal_however_they_are_held[array]", "rows as array and as bytes"),
    (specimens.SortsByType, "test_images_of_every_kind_may_be_mixed", "in the order of the rows"),
    (specimens.OnWhite, "test_colours_of_every_kind_are_read[alpha]", "alpha images and the same in RGB"),
    (specimens.Sideways, "test_images_are_seen_upright", "upright RGB image"),
    (specimens.AllOrNothing, "test_a_bad_image_fails_alone", "made the whole column fail: RowError"),
    (specimens.EmbedsAnything, "test_a_bad_image_fails_alone", "5 are good, but 8 have vectors"),
    (specimens.ReadsAnything, "test_nothing_is_read_that_was_not_allowed", "a file that is not allowed: it was read"),
    (specimens.AllOrNothing, "test_nothing_is_read_that_was_not_allowed", "made the column fail"),
    (specimens.OtherForPaths, "test_a_table_of_bytes_and_of_paths", "a column of paths and one of bytes"),
    (specimens.AsksForLeave, "test_image_queries_are_equal_however_they_are_held[path]", "from_query=True"),
    (specimens.EmbedsAnything, "test_a_bad_image_query_is_told", "gave a vector"),
]


class TestPixelMeans(ImageFunctionContract):
    """The image function of the tests keeps every promise."""

    @pytest.fixture
    def function(self) -> PixelMeans:
        return embedreg.get("pixel-means").create(gain=2.0)


@pytest.mark.parametrize(("broken", "test", "said"), BROKEN, ids=[f"{cls.__name__}-{test}" for cls, test, _ in BROKEN])
def test_a_broken_image_function_is_noticed(broken: type[PixelMeans], test: str, said: str, tmp_path: Path) -> None:
    """The test fails with a message and a hint, and the good function passes it."""
    name, _, parameter = test.removesuffix("]").partition("[")
    suite = ImageFunctionContract()
    inputs = [image_file(seed, size) for seed, size in enumerate(SIZES)]
    for number, data in enumerate(inputs):
        (tmp_path / f"{number}.png").write_bytes(data)

    def check(function: PixelMeans) -> None:
        known = {
            "function": function,
            "inputs": inputs,
            "folder": tmp_path,
            "agree": Agreement(1e-3, deterministic=True),
            "holder": parameter,
            "kind": parameter,
        }
        method = getattr(suite, name)
        method(**{each: known[each] for each in inspect.signature(method).parameters})

    with pytest.raises(Failed) as caught:
        check(broken())
    assert said in str(caught.value)
    assert "\nHint: " in str(caught.value)
    check(PixelMeans())


def test_each_promise_about_images_has_a_function_that_breaks_it() -> None:
    """No test of the image half is without a function that makes it fail."""
    own = {name for name in dir(ImageFunctionContract) if name.startswith("test_")}
    own -= {name for name in dir(EmbeddingFunctionContract) if name.startswith("test_")}
    assert own == {test.partition("[")[0] for _, test, _ in BROKEN}


def test_the_pictures_of_the_suite_differ() -> None:
    """Another seed is another picture, the same seed the same bytes."""
    assert image_file(1) == image_file(1)
    assert len({image_file(seed) for seed in range(9)}) == 9
    assert np.asarray(open_image(image_file(3, (20, 10)))).shape == (10, 20, 3)
