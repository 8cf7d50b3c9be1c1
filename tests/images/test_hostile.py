"""Untrusted images with any headers: an image within the limits, or a row's error.

The memory that it takes is measured for each example.
"""

from __future__ import annotations

import ctypes
import functools
import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from embedreg.errors import RowError
from embedreg.images import ImagePolicy, open_image
from embedreg.images.memory import BYTES_PER_PIXEL
from tests.watched import nothing_touched

POLICY = ImagePolicy(max_pixels=2**20, max_bytes=2**22)
SLACK = 3 * 2**20  # of the allocator, of buffers that do not grow with the image, and of the file's own bytes
EXAMPLES = settings(
    max_examples=int(os.environ.get("EMBEDREG_EXAMPLES", "200")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SIZES = st.sampled_from([0, 1, 2, 7, 16, 100, 255, 1023, 1024, 1025, 4096, 16384, 46336, 2**16 - 1, 2**24 - 1])
LARGE = SIZES | st.sampled_from([2**30, 2**31 - 1, 2**31, 2**32 - 1])


def _memory(name: str) -> int:
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(name)
    )


_give_back: Any = getattr(ctypes.CDLL(None), "malloc_trim", abs) if sys.platform == "linux" else abs


def opened(value: Any, **options: Any) -> Image.Image | None:
    """Open a picture; return None for a row's error. Whatever else it does fails the test."""
    allowed = POLICY.max_pixels * BYTES_PER_PIXEL + SLACK
    taken = [0]
    for _ in range(3):  # a thread of the process that allocates meanwhile is not the image's memory
        _give_back(0)  # or what earlier examples have freed would hide what this one takes
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = _memory("VmRSS")
        image, words = None, ""
        try:
            image = open_image(value, policy=POLICY, **options)
        except RowError as problem:
            words = problem.message
        if sys.platform == "linux":
            taken.append(_memory("VmHWM") - before)
        if taken[-1] <= allowed:
            break
    assert taken[-1] <= allowed, taken
    if image is None:
        assert words
        return None
    width, height = image.size
    assert image.mode == "RGB"
    assert 1 <= width * height <= POLICY.max_pixels
    assert max(width, height) <= POLICY.max_aspect * min(width, height)
    assert len(image.tobytes()) == 3 * width * height
    return image


def picture(mode: str, size: tuple[int, int]) -> Image.Image:
    """Make a picture of a mode."""
    rows = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(size[1], size[0], 3)
    if mode in ("F", "I;16", "I"):
        kinds: dict[str, Any] = {"F": np.float32, "I;16": np.uint16, "I": np.int32}
        return Image.fromarray((rows[:, :, 0] % 2).astype(kinds[mode]))
    image = Image.fromarray((rows % 251).astype(np.uint8))
    return Image.merge("LAB", image.split()) if mode == "LAB" else image.convert(mode)


KINDS: dict[str, tuple[tuple[str, ...], tuple[dict[str, Any], ...]]] = {
    "PNG": (("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), ({}, {"save_all": True})),
    "JPEG": (("L", "RGB", "CMYK"), ({}, {"progressive": True}, {"subsampling": 0})),
    "MPO": (("RGB",), ({"save_all": True},)),
    "GIF": (("L", "P", "RGB"), ({}, {"save_all": True})),
    "BMP": (("1", "L", "P", "RGB", "RGBA"), ({},)),
    "WEBP": (("RGB", "RGBA"), ({}, {"lossless": True}, {"save_all": True})),
    "TIFF": (
        ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "F", "I", "I;16"),
        ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"save_all": True}),
    ),
}


@functools.cache
def largest(kind: str, mode: str, way: int) -> bytes:
    """Return the file of a picture that has as many pixels as are allowed, all alike."""
    side = int(POLICY.max_pixels**0.5)
    options = dict(KINDS[kind][1][way])
    image = picture(mode, (1, 1)).resize((side, side))
    if "save_all" in options:
        options["append_images"] = [picture(mode, (2, 1)).resize((side, side))] * 2
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@st.composite
def saved(draw: st.DrawFn) -> bytes:
    """Draw a good picture's file, of any allowed kind."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    modes, ways = KINDS[kind]
    if draw(st.integers(0, 9)) < 2:
        return largest(kind, draw(st.sampled_from(modes)), draw(st.sampled_from(range(len(ways)))))
    options = dict(draw(st.sampled_from(ways)))
    size = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    image = picture(draw(st.sampled_from(modes)), size)
    if "save_all" in options:
        other = size if kind == "WEBP" else (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
        options["append_images"] = [image.resize(other)] * draw(st.integers(1, 3))
    if draw(st.booleans()) and kind in ("JPEG", "PNG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 9))
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# Where the sizes stand in each kind of file: (what is before them, how far behind it, width of a number, byte order).
NUMBERS = (
    *((b"IHDR", at, 4, ">") for at in (4, 8)),
    *((b"IHDR", at, 1, ">") for at in (12, 13, 14, 15, 16)),
    *((b"fcTL", at, 4, ">") for at in (8, 12, 16, 20)),
    *((b"acTL", at, 4, ">") for at in (4, 8)),
    *((b"GIF8", at, 2, "<") for at in (6, 8)),
    (b"GIF8", 10, 1, "<"),
    *((b"\x2c\0\0\0\0", at, 2, "<") for at in (1, 3, 5, 7)),
    *((b"BM", at, 4, "<") for at in (2, 10, 14, 18, 22, 30, 34, 46)),
    *((b"BM", at, 2, "<") for at in (26, 28)),
    *((mark, at, 2, ">") for mark in (b"\xff\xc0", b"\xff\xc2") for at in (2, 5, 7)),
    *((b"VP8X", at, 3, "<") for at in (12, 15)),
    *((b"ANMF", at, 3, "<") for at in (8, 11, 14, 17)),
    *((b"VP8 ", at, 2, "<") for at in (14, 16)),
    (b"VP8L", 9, 4, "<"),
    *((struct.pack("<H", tag), at, 4, "<") for tag in (256, 257, 277, 278, 279, 322, 323) for at in (4, 8)),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a file whose numbers lie, or that has been cut, joined or written over."""
    data = bytearray(draw(saved()))
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["number", "number", "number", "bytes", "cut", "join", "twice"]))
        if what == "number":
            found = [each for each in NUMBERS if each[0] in data]
            if found:
                mark, behind, width, order = draw(st.sampled_from(found))
                at = data.index(mark) + behind
                number = draw(LARGE) % 256**width
                data[at : at + width] = number.to_bytes(width, "little" if order == "<" else "big")
        elif what == "bytes":
            at = draw(st.integers(0, max(0, len(data) - 1)))
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(new)] = new
        elif what == "cut":
            del data[draw(st.integers(0, len(data))) :]
        elif what == "join":
            data += draw(saved())
        else:
            data[len(data) // 2 :] = data
    return bytes(with_sums(data))


def with_sums(data: bytearray) -> bytearray:
    """Put a PNG's checksums right, so that what its chunks say is believed."""
    at = 8
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            break
        data[at + 8 + length : at + 12 + length] = zlib.crc32(data[at + 4 : at + 8 + length]).to_bytes(4, "big")
        at += 12 + length
    return data


@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # or it hides what failed
@given(data=damaged(), draft=st.none() | st.tuples(st.integers(1, 300), st.integers(1, 300)))
@EXAMPLES
def test_any_damage_is_an_image_or_a_rows_error(data: bytes, draft: tuple[int, int] | None) -> None:
    """Sizes that lie, bodies that end early, files in files: within the limits, or refused, by bytes and by Pillow."""
    opened(data, draft=draft)
    try:
        image = Image.open(io.BytesIO(data), formats=POLICY.formats)
    except Exception:  # noqa: BLE001 (Pillow's own)
        return
    opened(image)


PACKED = {char: zlib.compress(char.encode() * (2**20 // len(char.encode()) - 1)) for char in "xé\0"}


TEXTS = {
    "packed": lambda word, char: (b"zTXt", word + b"\0\0" + PACKED[char]),
    "packed Unicode": lambda word, char: (b"iTXt", word + b"\0\1\0\0\0" + PACKED[char]),
    "plain": lambda word, char: (b"tEXt", word + b"\0" + char.encode() * 99),
    "damaged": lambda word, char: (b"zTXt", word + b"\0\0" + char.encode()),
    "without a keyword": lambda word, char: (b"iTXt", char.encode()),
}


def text_chunk(how: str, word: bytes, char: str) -> bytes:
    """Return a text chunk of a PNG; its checksum is put right later."""
    kind, body = TEXTS[how](word, char)
    return struct.pack(">I", len(body)) + kind + body + bytes(4)


@given(
    chunks=st.lists(
        st.tuples(
            st.sampled_from(sorted(TEXTS)),
            st.sampled_from([b"Comment", b"Raw profile type exif", b"XML:com.adobe.xmp", b"exif", b"xmp"]),
            st.sampled_from(sorted(PACKED)),
            st.integers(1, 70),
            st.sampled_from([b"IDAT", b"IEND"]),
        ),
        max_size=4,
    ),
    turned=st.integers(1, 8),
    end=st.none() | st.integers(0, 200),
)
@settings(EXAMPLES, max_examples=60)
def test_text_in_a_png_takes_no_memory(
    chunks: list[tuple[str, bytes, str, int, bytes]], turned: int, end: int | None
) -> None:
    """Text before and after the pixels, 64 MiB of it when unpacked, changes no pixel and is not kept; EXIF is read."""
    exif = Image.Exif()
    exif[0x0112] = turned
    file = io.BytesIO()
    picture("RGB", (6, 4)).save(file, "PNG", exif=exif)
    data = plain = file.getvalue()
    for how, word, char, times, before in chunks:
        at = data.rindex(before) - 4
        data = data[:at] + text_chunk(how, word, char) * times + data[at:]
    image = opened(bytes(with_sums(bytearray(data)))[: None if end is None else -end or None])
    assert end or image is not None
    if image is not None:
        expected = opened(plain)
        assert expected is not None
        assert image.tobytes() == expected.tobytes()
        kept = [value for value in image.info.values() if isinstance(value, str | bytes)]
        assert sum(len(value) for value in kept) <= 4 * 2**20  # one of each that may turn it


FILLED = zlib.compress(bytes(2**24))  # enough for a tile of 4096 x 4096


@st.composite
def tiffs(draw: st.DrawFn) -> bytes:
    """Draw a TIFF by its tags: their values, types and counts, and where the next one begins."""
    block = draw(st.sampled_from([FILLED, FILLED, FILLED, bytes(1000), b"", b"\x80" * 300]))
    small = draw(st.booleans())
    sides = st.integers(1, 64) if small else SIZES
    tags: dict[int, Any] = {
        256: draw(sides),
        257: draw(sides),
        258: draw(st.sampled_from([1, 2, 4, 8, 12, 16, 32, 64])),
        259: draw(
            st.sampled_from([8, 8, 8, 8, 8, 1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34676, 34887, 34925, 50000, 50001])
        ),
        262: draw(st.integers(0, 8)),
        277: draw(st.sampled_from([0, 1, 2, 3, 4, 5, 2**15])),
    }
    for tag, values in (
        (278, LARGE),
        (284, st.integers(0, 3)),
        (338, st.integers(0, 3)),
        (339, st.integers(1, 6)),
        (317, st.integers(0, 4)),
        (266, st.integers(0, 3)),
    ):
        if draw(st.booleans()):
            tags[tag] = draw(values)
    tiled = draw(st.booleans())
    if tiled:
        tags |= {322: draw(LARGE), 323: draw(LARGE)}
    tags |= {324 if tiled else 273: 8, 325 if tiled else 279: draw(st.just(len(block)) | LARGE)}
    for tag in draw(st.lists(st.sampled_from(sorted(tags)), max_size=2, unique=True)):
        del tags[tag]
    entries = b""
    for tag, value in sorted(tags.items()):
        kind, count = draw(
            st.sampled_from([(4, 1)] * 12 + [(3, 1), (1, 4), (4, 0), (4, 2**20), (5, 1), (12, 1), (99, 1)])
        )
        entries += struct.pack("<HHII", tag, kind, count, value)
    start = 8 + len(block)
    following = draw(st.sampled_from([0, 0, start, 2**31, 9]))
    head = struct.pack("<2sHI", b"II", 42, start) + block
    return head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following)


@given(data=tiffs())
@EXAMPLES
def test_any_tags_of_a_tiff_are_an_image_or_a_rows_error(data: bytes) -> None:
    """Tiles and strips larger than the image, every compression and depth, tags of other types, loops of pages."""
    opened(data)


THINGS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=20),
    st.sampled_from(["a\0b.png", "\ud800.png", "/etc/passwd", "file:///etc/passwd", "http://[::1", "x" * 5000, " "]),
    st.binary(max_size=40),
    st.binary(max_size=40).map(bytearray),
    st.binary(max_size=40).map(lambda data: memoryview(data)[::2]),
    st.builds(Path, st.sampled_from(["a.png", "/etc/passwd", "a\0b", ".."])),
    st.lists(st.integers(), max_size=3),
)
DTYPES = ("?", "u1", "i1", "<u2", ">u2", "u4", "i8", "f2", "f4", ">f8", "c8", "O", "M8[s]", "S3", "V4")


@given(value=THINGS)
@example(value=memoryview(bytearray(64)).cast("I"))
@EXAMPLES
def test_any_value_is_a_rows_error_and_nothing_is_opened(value: Any) -> None:
    """A value that is not an image, and the name of one that is not allowed, open neither file nor socket."""
    with nothing_touched(), pytest.raises(RowError):
        open_image(value, policy=POLICY)


@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 70, 1025]), min_size=0, max_size=4),
    dtype=st.sampled_from(DTYPES),
    fill=st.sampled_from([0, 1, 0.5, 255, -1, np.nan, np.inf]),
    step=st.sampled_from([1, -1, 2]),
)
@EXAMPLES
def test_any_array_is_an_image_or_a_rows_error(shape: list[int], dtype: str, fill: float, step: int) -> None:
    """Every type, byte order, number of axes and stride, and values beyond the range."""
    if np.prod(shape, dtype=float) > 2**22:
        shape = shape[:2]
    array: Any = np.zeros(shape, dtype)
    if array.dtype.kind == "f":
        array[...] = fill
    if array.ndim:
        array = array[::step]
    opened(array)
