"""Invalid images: files that are damaged, disguised or meant to do harm, and the message about each."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from tests.image_fakes import encoded, picture, png


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(width: int, height: int) -> bytes:
    """Return a small PNG file that is a black image of width x height pixels, a bit each."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(
        [*(packer.compress(row * 256) for _ in range(height // 256)), packer.compress(row * (height % 256))]
    )
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", rows + packer.flush()) + _chunk(b"IEND", b"")


def many_scans() -> bytes:
    """Return a progressive JPEG that goes over its pixels again and again."""
    good = encoded(picture(), "JPEG", progressive=True)
    start = good.index(b"\xff\xda")
    stop = good.index(b"\xff", start + 14)
    while good[stop + 1] in (0, *range(0xD0, 0xD8)):
        stop = good.index(b"\xff", stop + 1)
    return good[:stop] + good[start:stop] * 100 + good[stop:]


def broken_exif() -> bytes:
    """Return a good JPEG whose EXIF is nonsense: its orientation points beyond the end."""
    nonsense = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff"
    return encoded(picture(), "JPEG", exif=nonsense)


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Return bytes of an invalid image, by name, each with a part of its message."""
    jpeg = encoded(picture(size=(320, 240)), "JPEG")
    noise = np.random.default_rng(0).bytes(5000)
    gif = bytearray(encoded(picture(), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"  # the size of its screen
    return {
        "truncated-jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated-png": (png()[:-200], "truncated"),
        "truncated-gif": (encoded(picture(), "GIF")[:-200], "truncated"),
        "truncated-bmp": (encoded(picture(), "BMP")[:-200], "truncated"),
        "truncated-tiff": (encoded(picture(), "TIFF")[:-200], "truncated"),
        "truncated-webp": (encoded(picture(), "WEBP")[:-20], "damaged"),
        "noise": (noise, "not an image of an allowed format"),
        "noise-after-a-header": (png()[:60] + noise, "damaged"),
        "text": (b"The quick brown fox jumps over the lazy dog. " * 20, "not an image of an allowed format"),
        "html": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        "svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "an SVG drawing"),
        "commented-svg": (b"<!---->" * 130 + b'<svg width="1"></svg>', "an SVG drawing"),
        "bare-svg": (b'<svg width="1" height="1"></svg>', "an SVG drawing"),
        "pdf": (b"%PDF-1.7\n", "a PDF document"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        "lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        "icon": (encoded(picture(), "ICO"), "not an image of an allowed format"),
        "zip-bomb": (bomb_png(50_000, 50_000), "pixels"),
        "100-megapixels": (bomb_png(10_000, 10_000), "10000 x 10000 pixels, over max_pixels=67,108,864"),
        "gif-bomb": (bytes(gif), "pixels"),
        "a-line": (bomb_png(60_000, 1), "max_aspect=100"),
        "many-scans": (many_scans(), "more than 64 scans"),
        "32-bit-integers": (encoded(Image.fromarray(np.full((4, 4), 70000, np.int32)), "TIFF"), "32-bit integers"),
        "floats-beyond-1": (encoded(Image.fromarray(np.full((4, 4), 7, np.float32)), "TIFF"), "floats outside 0 to 1"),
    }
