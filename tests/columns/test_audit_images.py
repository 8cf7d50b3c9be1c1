"""An audit names what made a column of images other than the declared function's vectors of them."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import embedreg
from embedreg.columns import Audit, audit
from embedreg.images.forms import forms
from embedreg.images.opening import open_image

ROWS = 12


class Grid(embedreg.EmbeddingFunction):
    """The middle of an image, after its shorter side has 32 pixels, as 8 x 8 x 3 numbers around a shift."""

    traits = embedreg.Traits(modality="image")
    shift: float = 0.0

    def ndims(self) -> int:
        return 192

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        return [self._one(open_image(each.as_py() if hasattr(each, "as_py") else each)) for each in images]

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        return self.compute_source_embeddings([query])

    def _one(self, image: Image.Image) -> np.ndarray:
        scale = 32 / min(image.size)
        image = image.resize((max(32, round(image.width * scale)), max(32, round(image.height * scale))))
        left, top = (image.width - 32) // 2, (image.height - 32) // 2
        pixels = np.asarray(image.crop((left, top, left + 32, top + 32)).resize((8, 8)), np.float32)
        return (pixels - pixels.mean() + self.shift * np.arange(192).reshape(8, 8, 3) + 1).ravel()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The function, registered."""
    embedreg.register("grid")(Grid)
    return


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    """Return a JPEG of the best quality, with an orientation."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Images of coarse noise, wider than high, some of which are to be turned."""
    chance = np.random.default_rng(0)
    made = [Image.fromarray(chance.integers(0, 255, (6, 9, 3), np.uint8)).resize((90, 60)) for _ in range(ROWS)]
    return [jpeg(image, 6 if row % 2 else 1) for row, image in enumerate(made)]


def audited(pictures: list[bytes], vectors: Any, candidates: Any = (), **options: Any) -> Audit:
    """Audit a column of these vectors, declared as `Grid`'s."""
    table = pa.table(
        {
            "image": pa.array(pictures, pa.binary()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(vectors, np.float32).ravel()), 192),
        }
    )
    metadata = embedreg.get_registry().get_table_metadata([Grid.create().bind("image", "vector")])
    [found] = audit(table.replace_schema_metadata(metadata), candidates=candidates, **options)
    return found


def vectors_of(pictures: list[bytes], function: Any = None) -> np.ndarray:
    """Return what `Grid`, or another function, gives images."""
    return embedreg.embed_column(function or Grid.create(), pa.array(pictures, pa.binary())).matrix


def test_a_sound_column_of_images(pictures: list[bytes]) -> None:
    """Each vector is its image's own."""
    found = audited(pictures, vectors_of(pictures))
    assert (found.verdict, found.agree, found.causes) == ("sound", ROWS, ())


FORMS: dict[str, Callable[[Any], bytes | None]] = {label: form for _, label, form in forms()}


@pytest.mark.parametrize(
    "label",
    [
        "images squashed to a square",
        "images in grey",
        "images rotate 180",
        "images as their pixels are stored, without the orientation in EXIF",
    ],
)
def test_a_form_of_the_images_is_named(pictures: list[bytes], label: str) -> None:
    """Squashed, without colours, turned: the declared function made the vectors, of other images."""
    changed = [FORMS[label](each) or each for each in pictures]
    found = audited(pictures, vectors_of(changed))
    assert found.verdict == "stale"
    assert found.causes
    named = found.causes[0]
    assert (named.kind, named.label) == ("form", label)
    assert named.named


def test_other_functions_moved_rows_and_digests_are_named(pictures: list[bytes]) -> None:
    """A candidate explains its rows, one of texts is passed over; rows of other images are found among the sample."""
    other = Grid.create(shift=3.0)
    found = audited(pictures, vectors_of(pictures, other), [embedreg.get("hashing").create(dim=192), other])
    assert found.verdict == "other-model"
    assert [cause.label for cause in found.causes] == ["grid (shift=3.0)"]
    own = vectors_of(pictures)
    found = audited(pictures, np.roll(own, 1, axis=0))
    assert (found.verdict, found.causes[0].kind) == ("broken", "moved")
    mixed = own.copy()
    mixed[:3] = vectors_of(pictures[:3], other)
    assert audited(pictures, mixed, [other]).foreign == 3
    chance = random.Random(0)
    mixed[:3] = [[chance.gauss(0, 1) for _ in range(192)] for _ in range(3)]
    found = audited(pictures, mixed)
    assert (found.verdict, found.unexplained) == ("mixed", 3)
