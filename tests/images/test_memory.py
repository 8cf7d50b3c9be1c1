"""What decoding takes: never more than its bound, for every format and mode, and refused before it is taken."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from embedreg.errors import RowError
from embedreg.images import ImagePolicy, open_image
from embedreg.images.memory import BYTES_PER_PIXEL

# Saves each kind, decodes it, and prints how far the peak of memory rose beside what was said to be needed.
MEASURE = """
import io, json, sys
import numpy as np
from PIL import Image
from embedreg.errors import RowError
from embedreg.images import ImagePolicy, memory, open_image

SIDE = 1280
grey = Image.new("L", (SIDE, SIDE))
grey.paste(128, (0, 0, SIDE // 2, SIDE // 2))

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def made(format, mode, options):
    frames = options.pop("frames", 0)
    if "tiffinfo" in options:
        options["tiffinfo"] = {int(tag): value for tag, value in options["tiffinfo"].items()}
    numbers = {"F": (np.float32, .5), "I;16": (np.uint16, 999), "I": (np.int32, 999)}
    if mode in numbers:
        image = Image.fromarray(np.full((SIDE, SIDE), numbers[mode][1], numbers[mode][0]))
    elif mode == "LAB":
        image = Image.merge("LAB", [grey] * 3)
    else:
        image = grey.convert("RGB").convert(mode)
    if "turned" in options:
        exif = Image.Exif()
        exif[0x0112] = options.pop("turned")
        options["exif"] = exif
    if frames:
        options |= {"save_all": True, "append_images": [image.rotate(90)] * frames}
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()

formats = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "TGA")
policy = ImagePolicy(max_bytes=2**30, max_pixels=2**28, formats=formats)
for kind in json.load(sys.stdin):
    data = made(*kind)
    header = Image.open(io.BytesIO(data))
    needed = memory._needed(header, data)
    del header
    try:
        open_image(data[:100], policy=policy)  # its plug-in is imported
    except RowError:
        pass
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    try:
        open_image(data, policy=policy)
    except RowError as problem:
        assert "32-bit integers" in str(problem), problem
    print(json.dumps([peak() - before, needed]))
"""
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    *(("JPEG", mode, options) for mode in ("L", "RGB", "CMYK") for options in ({}, {"progressive": True})),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("JPEG", "RGB", {"turned": 6}),
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("PNG", "RGBA", {"turned": 6}),
    ("PNG", "RGB", {"frames": 2}),
    ("PNG", "RGBA", {"frames": 2}),
    *(("WEBP", mode, options) for mode in ("RGB", "RGBA") for options in ({}, {"lossless": True}, {"frames": 2})),
    *(("GIF", mode, options) for mode in ("L", "P") for options in ({}, {"frames": 2})),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(
        ("TIFF", mode, options)
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "F", "I", "I;16")
        for options in ({}, {"compression": "tiff_adobe_deflate"})
    ),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "RGB", {"frames": 2}),
    ("TIFF", "RGBA", {"compression": "tiff_lzw", "tiffinfo": {278: 1280}}),
    ("MPO", "RGB", {"frames": 2}),
    *(("JPEG2000", mode, {}) for mode in ("L", "RGB", "RGBA", "I;16")),
    ("PPM", "RGB", {}),
    ("TGA", "RGBA", {}),
]
SLACK = 2**20  # of the allocator, and of buffers that do not grow with the image


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_no_kind_takes_more_than_the_estimate(run_python: Callable[..., str], tmp_path: Path) -> None:
    """Measured for each allowed format and mode, and for some that `formats=` can allow."""
    kinds = tmp_path / "kinds.json"
    kinds.write_text(json.dumps(KINDS))
    lines = run_python(MEASURE.replace("sys.stdin", f"open({str(kinds)!r})")).splitlines()
    assert len(lines) == len(KINDS)
    over = []
    for kind, line in zip(KINDS, lines, strict=True):
        taken, needed = json.loads(line)
        if taken > needed + SLACK:
            over.append((kind, taken, needed))
    assert over == []


def tiff(width: int, height: int, *, compression: int = 8, bits: int = 8, **tags: int) -> bytes:
    """Return a TIFF of one tile or strip; `tags` are further ones by number (`t322=...`)."""
    block = zlib.compress(bytes(1000))
    data = struct.pack("<2sHI", b"II", 42, 8 + len(block)) + block
    tiled = "t322" in tags
    entries = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 277: 1}
    entries |= {324 if tiled else 273: 8, 325 if tiled else 279: len(block)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    found = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return data + struct.pack("<H", len(entries)) + found + bytes(4)


def peak() -> int:
    """Return this process's peak of memory since it was last reset; 0 where it cannot be read."""
    try:
        return next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
    except OSError:
        return 0


BLOCKS = {
    "a tile larger than the image": tiff(10, 10, t322=46336, t323=46336),
    "a tile of a few rows, and very wide": tiff(10, 10, t322=2**30, t323=16),
    "a tile of 2**31": tiff(10, 10, t322=2**31, t323=2**31),
    "floats": tiff(64, 64, bits=32, t322=16384, t323=16384, t339=3),
    "lzw": tiff(10, 10, compression=5, t322=46336, t323=46336),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_that_is_larger_than_the_image_is_refused_first(kind: str) -> None:
    """A TIFF of a kilobyte would make libtiff allocate two gigabytes for its only tile."""
    before = peak()
    with pytest.raises(RowError, match="decoding the image of") as caught:
        open_image(BLOCKS[kind])
    assert "max_pixels=67,108,864" in caught.value.message
    with pytest.raises(RowError, match="decoding the image of"):
        open_image(Image.open(io.BytesIO(BLOCKS[kind])))  # the caller has only opened it
    assert peak() - before < 50 * 2**20


def test_kinds_that_take_more_may_have_fewer_pixels() -> None:
    """WebP takes 16 bytes a pixel: half of max_pixels, by its header alone."""
    file = io.BytesIO()
    Image.new("RGB", (300, 300)).save(file, "WEBP")
    allowed = 300 * 300 * 16 // BYTES_PER_PIXEL
    assert open_image(file.getvalue(), policy=ImagePolicy(max_pixels=allowed)).size == (300, 300)
    with pytest.raises(RowError, match="takes 1,440,000 bytes, over the 1,439,992 of max_pixels=179,999"):
        open_image(file.getvalue(), policy=ImagePolicy(max_pixels=allowed - 1))


def test_an_icon_that_holds_more_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """An icon's table declares 16 x 16 pixels, but the PNG in it has 20,000 x 20,000."""
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    png = file.getvalue()
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png
    with pytest.raises(RowError):
        open_image(icon, policy=ImagePolicy(formats=("ICO",)))
    small = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(small, "ICO")
    assert open_image(small.getvalue(), policy=ImagePolicy(formats=("ICO",))).getpixel((0, 0)) == (255, 0, 0)
