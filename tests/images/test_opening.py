"""Images in every form are opened as upright RGB; errors become the reason of a row."""

from __future__ import annotations

import functools
import gc
import io
import os
import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from embedreg import ImagePolicy, RowError, allow_images
from embedreg.errors import ConfigError
from embedreg.images import open_image
from tests.bad_images import bad_images, bomb_png, broken_exif
from tests.image_fakes import encoded, picture, png

BAD = bad_images()


def pixels(image: Image.Image) -> np.ndarray:
    """(h, w, 3) uint8 of an RGB image."""
    assert image.mode == "RGB"
    return np.asarray(image)


def by_hand(data: bytes) -> np.ndarray:
    """What open_clip makes of a file before it resizes: `image.convert("RGB")`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# -- formats and colours -----------------------------------------------------------------------------------------------

SMOOTH = picture(3)
GOOD: dict[str, bytes] = {
    **{kind: encoded(SMOOTH, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")},
    "grey": encoded(SMOOTH.convert("L"), "PNG"),
    "grey-jpeg": encoded(SMOOTH.convert("L"), "JPEG"),
    "grey-and-alpha": encoded(SMOOTH.convert("LA"), "PNG"),
    "black-and-white": encoded(SMOOTH.convert("1"), "PNG"),
    "palette": encoded(SMOOTH.quantize(16), "PNG"),
    "palette-and-one-clear": encoded(SMOOTH.quantize(16), "PNG", transparency=3),
    "palette-and-alpha": encoded(SMOOTH.quantize(16), "PNG", transparency=bytes(range(0, 240, 15))),
    "alpha": encoded(Image.merge("RGBA", (*SMOOTH.split(), SMOOTH.convert("L"))), "PNG"),
    "alpha-webp": encoded(Image.merge("RGBA", (*SMOOTH.split(), SMOOTH.convert("L"))), "WEBP", lossless=True),
    "cmyk": encoded(SMOOTH.convert("CMYK"), "JPEG"),
    "cmyk-tiff": encoded(SMOOTH.convert("CMYK"), "TIFF"),
    "progressive": encoded(SMOOTH, "JPEG", progressive=True),
    "packed-tiff": encoded(SMOOTH, "TIFF", compression="tiff_lzw"),
    "jpeg-in-tiff": encoded(SMOOTH, "TIFF", compression="jpeg"),
    "several-in-jpeg": encoded(SMOOTH, "MPO", save_all=True, append_images=[picture(4)]),
    "broken-exif": broken_exif(),
    "one-pixel": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
}


@pytest.mark.parametrize("name", GOOD)
def test_colours_are_those_of_open_clip(name: str) -> None:
    """Every format and mode gives the pixels of `convert("RGB")`, what is transparent included."""
    assert np.array_equal(pixels(open_image(GOOD[name])), by_hand(GOOD[name]))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_greyscale_of_16_bits_is_scaled(kind: str) -> None:
    """The high byte counts; Pillow's own conversion to RGB would make almost all of it white, or clip it."""
    ramp = np.linspace(0, 65535, 48 * 32).reshape(32, 48).astype(np.uint16)
    found = pixels(open_image(encoded(Image.fromarray(ramp), kind)))
    assert np.array_equal(found, np.repeat((ramp >> 8).astype(np.uint8)[:, :, None], 3, axis=2))
    assert np.array_equal(pixels(open_image(ramp)), found)
    assert np.array_equal(pixels(open_image(Image.fromarray(ramp))), found)


def test_floats_in_a_file_are_of_0_to_1() -> None:
    """As in an array; other ranges are refused (see the bad images)."""
    ramp = np.linspace(0, 1, 32 * 8, dtype=np.float32).reshape(8, 32)
    assert np.array_equal(pixels(open_image(encoded(Image.fromarray(ramp), "TIFF"))), pixels(open_image(ramp)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    """The other frames change nothing."""
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [picture(seed) for seed in (7, 8, 9)]
    several = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(pixels(open_image(several)), by_hand(several))
    near = pixels(frames[0]).astype(int) - pixels(open_image(several))
    assert np.abs(near).mean() < (8 if kind == "GIF" else 1)  # a GIF has 256 colours


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_set_upright(kind: str, orientation: int) -> None:
    """An image with any EXIF orientation, in each format that has one, is returned upright."""
    seen = picture(5)
    # EXIF 2.3, section 4.6.4: which side of what was seen the first row and the first column of what is stored are.
    stored = np.asarray(seen) if orientation < 5 else np.asarray(seen).transpose(1, 0, 2)
    stored = stored[::-1] if orientation in (3, 4, 6, 7) else stored
    stored = stored[:, ::-1] if orientation in (2, 3, 7, 8) else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(stored), kind, exif=exif, **options)
    found = open_image(data)
    assert found.size == seen.size
    assert np.abs(pixels(found).astype(int) - pixels(seen)).mean() < 2
    assert np.array_equal(pixels(open_image(Image.open(io.BytesIO(data)))), pixels(found))  # one that a caller opened
    assert np.array_equal(pixels(ImageOps.exif_transpose(found)), pixels(found))  # it is not turned twice
    assert open_image(data, draft=(15, 10)).size == ((15, 10) if kind == "JPEG" else seen.size)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not(orientation: int) -> None:
    """It changes nothing."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(SMOOTH, "PNG", exif=exif)
    assert np.array_equal(pixels(open_image(data)), pixels(SMOOTH))


# -- values ------------------------------------------------------------------------------------------------------------


def test_every_way_to_hold_a_picture_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of any kind, PIL images loaded and not, arrays, paths in every spelling."""
    data, file = png(6), tmp_path / "a picture %41.png"
    file.write_bytes(data)
    expected = pixels(open_image(data))
    with Image.open(file) as lazy:
        loaded = Image.open(io.BytesIO(data))
        loaded.load()
        monkeypatch.chdir(tmp_path)
        url = file.as_uri()
        with allow_images(dirs=[tmp_path]):
            for value in (
                bytearray(data),
                memoryview(data),
                lazy,
                loaded,
                expected,
                expected.astype(np.float32) / 255,
                expected.astype(np.float64) / 255,
                expected.astype(np.uint16) << 8,
                np.dstack([expected, expected[:, :, :1]]),
                np.asfortranarray(expected),
                file,
                str(file),
                url,
                url.replace("file:///", "FILE://localhost/"),
                file.name,
                f"./{file.name}",
                Path(file.name),
            ):
                assert np.array_equal(pixels(open_image(value)), expected), repr(value)[:60]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 40, 60), np.uint8), "put the channels last"),
        (np.zeros((40, 60, 2), np.uint8), "shape (40, 60, 2)"),
        (np.zeros(40, np.uint8), "shape (40,)"),
        (np.zeros((2, 40, 60, 3), np.uint8), "shape (2, 40, 60, 3)"),
        (np.zeros((0, 60, 3), np.uint8), "60 x 0 pixels"),
        (np.zeros((40, 60, 3), np.int64), "int64 has no agreed range"),
        (np.full((4, 6), 255.0), "floats outside 0 to 1"),
        (np.full((4, 6), np.nan), "floats outside 0 to 1"),
        (np.array([["a"]]), "no agreed range"),
    ],
)
def test_invalid_arrays(array: np.ndarray, said: str) -> None:
    """Other shapes and ranges raise an error instead of a guess."""
    with pytest.raises(RowError) as caught:
        open_image(array)
    assert said in caught.value.message


def test_grey_and_bool_arrays() -> None:
    """(h, w) and (h, w, 1) are grey, bool is black and white."""
    grey = np.arange(240, dtype=np.uint8).reshape(12, 20)
    assert np.array_equal(pixels(open_image(grey))[:, :, 1], grey)
    assert np.array_equal(pixels(open_image(grey[:, :, None]))[:, :, 2], grey)
    assert np.array_equal(pixels(open_image(grey > 100))[:, :, 0], np.where(grey > 100, 255, 0))


@pytest.mark.parametrize("value", [None, 7, object(), ["a.png"], {"bytes": b""}, np.float32(1), "", "  "])
def test_values_that_are_not_images(value: Any) -> None:
    """Such a row fails alone."""
    with pytest.raises(RowError):
        open_image(value)


# -- bad images --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_bad_images_have_a_reason(name: str) -> None:
    """Each is a RowError with the reason, quotes nothing of the file, and emits no warning."""
    data, said = BAD[name]
    with pytest.raises(RowError) as caught:
        open_image(data)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert not caught.value.message.endswith(".")  # a report puts it between others
    assert caught.value.__cause__ is None


def test_no_bytes_are_an_empty_image() -> None:
    """Bytes, and a file."""
    with pytest.raises(RowError, match="is empty"):
        open_image(b"")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """100 megapixels, that would take 100 to 400 megabytes, take less than one."""
    data = bomb_png(10_000, 10_000)
    gc.collect()
    tracemalloc.start()
    before = _resident()
    with pytest.raises(RowError):
        open_image(data)
    grown = _resident() - before
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert grown < 50 * 2**20


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # another system than Linux
        return 0


def test_limits_can_be_set(tmp_path: Path) -> None:
    """Pixels, bytes, proportions and formats are limited, for an image in any form."""
    data = png(1, (60, 40))
    (tmp_path / "x.png").write_bytes(data)
    for limits, said in (
        ({"max_pixels": 2399}, "over max_pixels=2,399"),
        ({"max_bytes": len(data) - 1}, "over max_bytes"),
        ({"max_aspect": 1.4}, "max_aspect=1.4"),
        ({"formats": ["JPEG"]}, "not an image of an allowed format (JPEG)"),
    ):
        with allow_images(dirs=[tmp_path], **limits):
            for value in (data, tmp_path / "x.png", Image.open(io.BytesIO(data)), np.asarray(picture(1, (60, 40)))):
                if not isinstance(value, bytes | Path) and said.split("=")[0].endswith(("bytes", "format (JPEG)")):
                    continue  # a caller's own image has neither any more
                with pytest.raises(RowError) as caught:
                    open_image(value)
                assert said in caught.value.message
    open_image(data, policy=ImagePolicy(max_pixels=2400, max_bytes=len(data), max_aspect=1.5, formats=["png"]))


def test_a_format_that_pillow_has_and_we_do_not_allow_by_ourselves() -> None:
    """The policy may name it; a name that Pillow does not know is a mistake, not a bad image."""
    assert open_image(encoded(SMOOTH, "PPM"), policy=ImagePolicy(formats=["PPM"])).size == SMOOTH.size
    with pytest.raises(ConfigError, match="unknown image format 'NEVER'"):
        open_image(GOOD["PNG"], policy=ImagePolicy(formats=["NEVER"]))


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    """A PNG under a JPEG's name is a PNG; a text under it is not an image."""
    (tmp_path / "a.jpg").write_bytes(GOOD["PNG"])
    (tmp_path / "b.jpg").write_text("no picture")
    with allow_images(dirs=[tmp_path]):
        assert np.array_equal(pixels(open_image(tmp_path / "a.jpg")), pixels(SMOOTH))
        with pytest.raises(RowError, match="allowed format"):
            open_image(tmp_path / "b.jpg")


# -- Pillow is left as it is -------------------------------------------------------------------------------------------


def test_warnings_neither_get_out_nor_decide() -> None:
    """Where warnings are errors, and in many threads, a file that Pillow warns of is decoded all the same."""
    warned = encoded(SMOOTH.quantize(16), "PNG", transparency=bytes(range(0, 240, 15)))
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen, ThreadPoolExecutor(8) as pool:
        warnings.simplefilter("always")
        for data in (warned, broken_exif(), GOOD["several-in-jpeg"]):
            assert len({pixels(image).tobytes() for image in pool.map(open_image, [data] * 50)}) == 1
    assert seen == []
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="Transparency"):  # the file is one that Pillow warns of
        Image.open(io.BytesIO(warned)).convert("RGB")


def test_global_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a caller's own settings nor Pillow's defaults are changed."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 123_456)
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, Image.WARN_POSSIBLE_FORMATS)
    for data, _ in BAD.values():
        with pytest.raises(RowError):
            open_image(data)
    for data in GOOD.values():
        open_image(data)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, Image.WARN_POSSIBLE_FORMATS)


def test_a_callers_own_image_is_left_as_it_was() -> None:
    """Its pixels, its mode and what it knows of itself stay, also where it is converted or turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = Image.open(io.BytesIO(GOOD["palette-and-alpha"]))
    turned = Image.open(io.BytesIO(encoded(SMOOTH, "JPEG", exif=exif)))
    animated = Image.open(io.BytesIO(encoded(SMOOTH, "GIF", save_all=True, append_images=[picture(4)])))
    animated.seek(1)
    second = np.asarray(animated.convert("RGB"))
    for image in (palette, turned, animated):
        mode, size, info = image.mode, image.size, dict(image.info)
        open_image(image)
        assert (image.mode, image.size, image.info) == (mode, size, info)
    assert np.array_equal(pixels(open_image(animated)), second)  # the frame that it stands at
    assert animated.tell() == 1


def test_one_lazy_image_in_many_threads() -> None:
    """An image that Pillow reads from its file only now is read by one thread at a time."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "PNG")  # of many blocks: threads would take them from each other
    expected = pixels(open_image(data)).tobytes()
    for _ in range(10):
        lazy, start = Image.open(io.BytesIO(data)), threading.Barrier(8)

        def at_once(_: int, lazy: Any = lazy, start: Any = start) -> bytes:
            start.wait()
            return pixels(open_image(lazy)).tobytes()

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(at_once, range(8))) == {expected}


# -- draft -------------------------------------------------------------------------------------------------------------


def _shrunk(image: Image.Image, side: int) -> np.ndarray:
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC), int)


@functools.cache
def _scene(seed: int, size: tuple[int, int]) -> Image.Image:
    """Something like a photograph: detail at every scale, in natural proportions (amplitude falls with frequency)."""
    rng = np.random.default_rng(seed)
    out = np.zeros((size[1], size[0], 3))
    for octave in range(2, 9):
        cells = 2**octave
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        out += np.asarray(layer.resize(size, Image.Resampling.BICUBIC), float) / 2 ** (octave - 2)
    return Image.fromarray(np.clip(out / 1.98, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("side", "quality"), [(56, 75), (112, 95), (224, 85)])
def test_draft_decoding_keeps_what_is_left_after_shrinking(side: int, quality: int) -> None:
    """At twice the size that is shrunk to, pixels differ by less than 1 of 255 on average and by 8 at the most."""
    for seed, size in ((1, (1536, 1024)), (2, (960, 1280))):
        data = encoded(_scene(seed, size), "JPEG", quality=quality)
        drafted = open_image(data, draft=(2 * side, 2 * side))
        assert drafted.width < size[0]  # it was used
        assert min(drafted.size) >= 2 * side
        apart = np.abs(_shrunk(open_image(data), side) - _shrunk(drafted, side))
        assert apart.mean() < 1
        assert apart.max() <= 8


def test_draft_is_never_smaller_than_asked_and_only_of_what_divides_evenly() -> None:
    """A fraction of the size that would cut a pixel in two is not taken: all pixels stand for the same."""
    for size, draft, expected in (
        ((1600, 1200), (100, 100), (200, 150)),
        ((1600, 1200), (200, 150), (200, 150)),
        ((1600, 1200), (200, 151), (400, 300)),
        ((1600, 1200), (401, 300), (800, 600)),
        ((1600, 1200), (801, 600), (1600, 1200)),
        ((1604, 1204), (100, 100), (401, 301)),
        ((1601, 1200), (100, 100), (1601, 1200)),
        ((640, 480), (448, 448), (640, 480)),
    ):
        assert open_image(encoded(picture(1, size), "JPEG"), draft=draft).size == expected
    assert open_image(encoded(picture(1, (1600, 1200)), "PNG"), draft=(100, 100)).size == (1600, 1200)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: the draft is of the upright picture
    assert open_image(encoded(picture(1, (1600, 1200)), "JPEG", exif=exif), draft=(150, 200)).size == (150, 200)
